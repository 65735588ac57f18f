"""4.1, 4.2, 4.3: `Queue.cancel_job` in every state, by effects in Redis."""

from __future__ import annotations

import json
import re
import typing

import pytest
import redis

from geventq import CancelResult, GeventqError, Job, JobSpec, Queue
from geventq.store.keys import RequestKeys
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.vectors import dump
from tests.support.waiting import eventually

STATES = ["waiting", "prioritized", "delayed", "backing off", "lifo", "left by version 5"]
HOME = {"waiting": "wait", "lifo": "wait", "left by version 5": "wait", "backing off": "delayed"}


def put(queue: Queue, make: Make, raw: redis.Redis, state: str, **options: typing.Any) -> Job:
    """A job that does not run, in that state."""
    if state == "delayed":
        return queue.add("n", delay=60, **options)
    if state == "prioritized":
        return queue.add("n", priority=7, **options)
    if state == "lifo":
        return queue.add("n", lifo=True, **options)
    job = queue.add("n", attempts=3, backoff=60.0, **options)
    if state == "left by version 5":
        base = f"{queue.prefix}:q"
        assert raw.rename(f"{base}:wait", f"{base}:paused")
    if state == "backing off":

        def fails(job: Job) -> None:
            raise RuntimeError("no")

        worker = make(fails)
        eventually(lambda: queue.get_job_state(job.id) == "delayed")
        worker.close()
    return job


def of_stream(raw: redis.Redis, prefix: str, job_id: str) -> list[dict[str, str]]:
    return [told for _, told in raw.xrange(f"{prefix}:q:events") if told.get("jobId") == job_id]


def places(raw: redis.Redis, prefix: str, job_id: str) -> list[str]:
    """Every list and set that the job is in."""
    found = [
        name
        for name in ("wait", "active", "paused")
        if raw.lpos(f"{prefix}:q:{name}", job_id) is not None
    ]
    return found + [
        name
        for name in ("prioritized", "delayed", "completed", "failed", "waiting-children")
        if raw.zscore(f"{prefix}:q:{name}", job_id) is not None
    ]


@pytest.mark.parametrize("state", STATES)
def test_what_does_not_run_fails_here_and_now(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, state: str
) -> None:
    """4.2: with the text of 2.6; `atm`, `ats` and `processedOn` stay, `failed` names where it
    was, and nothing says that its retries were exhausted."""
    job = put(queue, make, redis_client, state)
    key = f"{prefix}:q:{job.id}"
    before = redis_client.hmget(key, "atm", "ats", "processedOn")
    result = queue.cancel_job(job.id, "no more")
    home = HOME.get(state, state)
    shown = "waiting" if home == "wait" else home
    assert result == CancelResult(status="cancelled", job_id=job.id, state=shown)
    assert result
    assert places(redis_client, prefix, job.id) == ["failed"]
    assert redis_client.hmget(key, "atm", "ats", "processedOn") == before
    failed = queue.get_job(job.id)
    assert failed is not None
    assert failed.failed_reason == "Job cancelled: no more"
    assert failed.finished_on is not None
    told = [one for one in of_stream(redis_client, prefix, job.id) if one["event"] != "added"]
    assert told[-2:] == [
        {
            "event": "failed",
            "jobId": job.id,
            "failedReason": "Job cancelled: no more",
            "prev": home,
        },
        {
            "event": "cancelled",
            "jobId": job.id,
            "reason": "no more",
            "kind": "remote",
            "stage": "settled",
            "ms": "0",
        },
    ]
    assert "retries-exhausted" not in [one["event"] for one in told]


def test_what_was_asked_is_shown_and_heeded_by_no_take(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.3: a job that was cancelled while it waited runs when somebody retries it, be it from a
    dashboard that knows nothing of us."""
    job = queue.add("n")
    queue.cancel_job(job.id, {"why": []}, retry=True)  # on such a job `retry` changes nothing
    shown = queue.get_job(job.id)
    assert shown is not None
    assert shown.get_state() == "failed"
    assert shown.cancellation is not None
    assert (shown.cancellation.reason, shown.cancellation.kind) == ({"why": []}, "remote")
    key = f"{prefix}:q:{job.id}"
    assert not redis_client.hexists(key, "gqc")
    assert not redis_client.hexists(key, "defa")
    redis_client.zrem(f"{prefix}:q:failed", job.id)  # as Bull Board's retry does it
    redis_client.hdel(key, "finishedOn", "processedOn", "failedReason")
    redis_client.lpush(f"{prefix}:q:wait", job.id)
    retried = queue.get_job(job.id)
    assert retried is not None
    assert retried.cancellation is None
    make(lambda job: "ran")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    done = queue.get_job(job.id)
    assert done is not None
    assert done.cancellation is None


def test_a_retry_by_hand_forgets_what_was_asked(queue: Queue, make: Make) -> None:
    """4.4."""
    job = queue.add("n")
    queue.cancel_job(job.id)
    job.retry()
    again = queue.get_job(job.id)
    assert again is not None
    assert again.cancellation is job.cancellation is None
    make(lambda job: "ran")
    assert job.wait_until_finished(20) == "ran"


@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        (None, True),
        (False, True),
        (True, False),
        (0, False),
        (5, True),
        ({"count": 0}, False),
        ({"age": 3600}, True),
    ],
)
@pytest.mark.parametrize("state", ["waiting", "delayed"])
def test_the_jobs_own_removal_policy_holds(
    queue: Queue,
    make: Make,
    redis_client: redis.Redis,
    prefix: str,
    keep: typing.Any,
    stays: bool,
    state: str,
) -> None:
    options = {} if keep is None else {"remove_on_fail": keep}
    job = put(queue, make, redis_client, state, **options)
    assert queue.cancel_job(job.id).status == "cancelled"
    assert places(redis_client, prefix, job.id) == (["failed"] if stays else [])
    assert bool(redis_client.exists(f"{prefix}:q:{job.id}")) is stays


def test_a_policy_by_count_trims_the_failed_ones(queue: Queue) -> None:
    jobs = queue.add_bulk([JobSpec("n", {}, {"remove_on_fail": 2}) for _ in range(5)])
    for job in jobs:
        assert queue.cancel_job(job.id)
    assert sorted(job.id for job in queue.get_failed()) == sorted(job.id for job in jobs[-2:])


def test_the_end_of_a_job_is_told_to_who_waits_for_it(queue: Queue) -> None:
    job = queue.add("n", remove_on_fail=True)
    queue.cancel_job(job.id, "enough")
    with pytest.raises(GeventqError, match="Job cancelled: enough"):
        job.wait_until_finished(20)


def test_a_deduplication_ends_with_its_owner(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """wire-format 9.2: without a time limit the id is free again; with one it is left alone."""
    for name, limit in (("free", None), ("held", 60_000)):
        job = queue.add("n")
        redis_client.hset(f"{prefix}:q:{job.id}", "deid", name)
        redis_client.set(f"{prefix}:q:de:{name}", job.id, px=limit)
        queue.cancel_job(job.id)
    assert not redis_client.exists(f"{prefix}:q:de:free")
    assert redis_client.exists(f"{prefix}:q:de:held")


# -- over, unknown, strange ----------------------------------------------------------------------


def test_what_is_over_or_unknown_leaves_nothing_behind(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.1: a tombstone would kill a later job with that id."""
    done = queue.add("n")
    make(lambda job: 1)
    done.wait_until_finished(20)
    before = set(redis_client.scan_iter(f"{prefix}:*"))
    for job_id in ("nope", "", "meta", "wait", "gq:x", "12:lock"):
        result = queue.cancel_job(job_id)
        assert (result.status, result.state, bool(result)) == ("not_found", "unknown", False)
    result = queue.cancel_job(done.id)
    assert (result.status, result.state, bool(result)) == ("finished", "completed", False)
    queue.cancel_job(done.id, force=True)
    assert set(redis_client.scan_iter(f"{prefix}:*")) == before
    later = queue.add("n", job_id="nope")
    assert later.wait_until_finished(20) == 1


def test_a_key_that_holds_no_job_is_named(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    redis_client.set(f"{prefix}:q:strange", "x")
    with pytest.raises(GeventqError, match=r"strange.*holds no hash"):
        queue.cancel_job("strange")


@pytest.mark.parametrize("link", ["parentKey", "dependencies", "scheduler"])
def test_what_needs_flows_is_left_alone_and_the_rest_is_carried_out(
    queue: Queue, redis_client: redis.Redis, prefix: str, link: str
) -> None:
    job, other = queue.add("n"), queue.add("n")
    base = f"{prefix}:q"
    if link == "parentKey":
        redis_client.hset(f"{base}:{job.id}", "parentKey", f"{base}:1")
    elif link == "dependencies":
        redis_client.sadd(f"{base}:{job.id}:dependencies", f"{base}:9")
    else:
        redis_client.hset(f"{base}:{job.id}", "rjk", "daily")
        redis_client.zadd(f"{base}:repeat", {"daily": 1})
    before = redis_client.hgetall(f"{base}:{job.id}")
    with pytest.raises(GeventqError, match=f"job {job.id} .*children, a parent or"):
        queue.cancel_job(job.id)
    with pytest.raises(GeventqError) as raised:
        queue.cancel_jobs([job.id, other.id])
    left, carried_out = raised.value.results
    assert left is None
    assert carried_out.status == "cancelled"
    assert redis_client.hgetall(f"{base}:{job.id}") == before
    assert queue.get_job_state(job.id) == "waiting"


def test_a_running_job_that_needs_flows_is_asked_but_not_taken_away(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """4.5: its parent would have to hear of that end."""
    redis_client.hset(f"{prefix}:q:{running.id}", "parentKey", f"{prefix}:q:1")
    with pytest.raises(GeventqError, match="cannot be taken from its worker yet, but without"):
        queue.cancel_job(running.id, force=True)
    assert queue.get_job_state(running.id) == "active"
    assert queue.cancel_job(running.id).status == "requested"


# What a request to a running job needs: the rest may be of any type.
OF_RUNNING: typing.Final = ("active", "meta", "events", "answers", "pc")
NONCE: typing.Final = "17"


def make_foreign(raw: redis.Redis, queue: Queue, key: str) -> str:
    """Put what is none of BullMQ's under one of the script's keys; its name."""
    name: str = getattr(RequestKeys(queue._store.keys, NONCE), key)
    raw.delete(name)
    if key == "events":
        raw.set(name, "foreign")
    else:
        raw.xadd(name, {"foreign": "1"})
    return name


@pytest.mark.parametrize("key", load("cancel").key_names)
def test_a_key_of_a_foreign_type_stops_it_before_the_first_write(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3.7."""
    monkeypatch.setattr("geventq.cancel_request.new_nonce", lambda: NONCE)
    job = queue.add("n")
    name = make_foreign(redis_client, queue, key)
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match=f"WRONGTYPE.*{re.escape(name)}"):
        queue.cancel_job(job.id)
    assert dump(redis_client, f"{prefix}:*") == before


@pytest.mark.parametrize("key", load("cancel").key_names)
def test_a_key_of_a_foreign_type_stops_a_request_to_a_running_job_that_needs_it(
    queue: Queue,
    running: Job,
    redis_client: redis.Redis,
    prefix: str,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3.7: before the first write; and no other key keeps a job from being stopped."""
    monkeypatch.setattr("geventq.cancel_request.new_nonce", lambda: NONCE)
    name = make_foreign(redis_client, queue, key)
    redis_client.persist(f"{prefix}:q:{running.id}:lock")  # its life would differ in the dumps
    before = dump(redis_client, f"{prefix}:*")
    if key in OF_RUNNING:
        with pytest.raises(GeventqError, match=f"WRONGTYPE.*{re.escape(name)}"):
            queue.cancel_job(running.id)
        assert dump(redis_client, f"{prefix}:*") == before
    else:
        assert queue.cancel_job(running.id).status == "requested"


# -- running -------------------------------------------------------------------------------------


def record(raw: redis.Redis, prefix: str, job: Job) -> dict[str, typing.Any]:
    stored = raw.hget(f"{prefix}:q:{job.id}", "gqc")
    assert stored is not None
    return typing.cast(dict[str, typing.Any], json.loads(stored))


@pytest.fixture
def running(queue: Queue, redis_client: redis.Redis, prefix: str) -> Job:
    """A job that a worker of another program runs: nobody here hears of the request."""
    job = queue.add("n", {"x": 1}, attempts=3)
    base = f"{prefix}:q"
    redis_client.lmove(f"{base}:wait", f"{base}:active", "RIGHT", "LEFT")
    redis_client.set(f"{base}:{job.id}:lock", "node's", px=60_000)
    redis_client.hset(f"{base}:{job.id}", mapping={"processedOn": 1, "ats": 1, "pb": "node-1"})
    return job


@pytest.mark.parametrize("retry", [False, True])
def test_a_running_job_gets_the_request_into_its_hash(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str, retry: bool
) -> None:
    """4.3: and into no other key of the job; with ``retry=False`` also as BullMQ's deferred
    failure, which every worker heeds at its next pick-up."""
    keys = set(redis_client.scan_iter(f"{prefix}:*"))
    result = queue.cancel_job(running.id, "stop", kill_after=2.5, retry=retry)
    assert result == CancelResult(
        status="requested", job_id=running.id, state="active", worker="node-1", stage="sent"
    )
    assert set(redis_client.scan_iter(f"{prefix}:*")) == keys
    told = record(redis_client, prefix, running)
    assert (told["reason"], told["hard"], told["kill_after"]) == ('"stop"', True, 2.5)
    assert (told["retry"], told["atm"], told["kind"]) == (retry, 0, "remote")
    deferred = redis_client.hget(f"{prefix}:q:{running.id}", "defa")
    assert deferred == (None if retry else "Job cancelled: stop")
    shown = queue.get_job(running.id)
    assert shown is not None
    assert shown.cancellation is not None
    assert shown.cancellation.reason == "stop"
    assert of_stream(redis_client, prefix, running.id)[-1]["event"] == "cancel-requested"


def test_a_mode_that_is_left_to_the_worker_is_shown_as_soft(queue: Queue, running: Job) -> None:
    """4.6."""
    queue.cancel_job(running.id)
    shown = queue.get_job(running.id)
    assert shown is not None
    assert shown.cancellation is not None
    assert shown.cancellation.hard is False


def test_requests_to_one_run_merge_as_they_do_in_a_worker(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """2.2, 4.6: hard, the shorter grace and no retry are added; reason and text follow the
    strongest, of equals the first; no reason is encoded anew."""
    queue.cancel_job(running.id, {"first": []}, retry=True)
    told = record(redis_client, prefix, running)
    assert (told["reason"], told["hard"], told["retry"]) == ('{"first":[]}', None, True)
    queue.cancel_job(running.id, "second", kill_after=30, retry=True)
    queue.cancel_job(running.id, "third", kill_after=5, retry=True)
    told = record(redis_client, prefix, running)
    assert (told["reason"], told["hard"], told["kill_after"]) == ('{"first":[]}', True, 5)
    queue.cancel_job(running.id, "fourth", hard=False)
    told = record(redis_client, prefix, running)
    assert (told["reason"], told["hard"], told["retry"]) == ('"fourth"', True, False)
    assert redis_client.hget(f"{prefix}:q:{running.id}", "defa") == "Job cancelled: fourth"
    queue.cancel_job(running.id, "fifth")
    told = record(redis_client, prefix, running)
    assert told["reason"] == '"fourth"'
    assert len(told["nonces"]) == 5
    assert redis_client.hget(f"{prefix}:q:{running.id}", "defa") == "Job cancelled: fourth"


def test_what_was_asked_of_an_earlier_run_alone_is_no_part_of_the_record(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """4.4: a worker of another language has left it; merged, the new request would be void, too."""
    queue.cancel_job(running.id, "the run before", hard=True, retry=True)
    redis_client.hset(f"{prefix}:q:{running.id}", "atm", 1)
    queue.cancel_job(running.id, "this run", retry=True)
    told = record(redis_client, prefix, running)
    assert (told["reason"], told["hard"], told["atm"]) == ('"this run"', None, 1)
    assert len(told["nonces"]) == 1
    shown = queue.get_job(running.id)
    assert shown is not None
    assert shown.cancellation is not None
    assert shown.cancellation.reason == "this run"


def test_each_request_raises_the_queues_counter(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """At least to the server's microseconds: no old value comes back when the queue is new."""
    seen = [0.0]
    for _ in range(3):
        queue.cancel_job(running.id)
        seen.append(float(redis_client.hget(f"{prefix}:q:meta", "gqn") or 0))
    assert seen == sorted(set(seen))
    seconds, micros = typing.cast(tuple[int, int], redis_client.time())
    assert abs(seen[1] - (seconds * 1e6 + micros)) < 60e6


def test_requests_to_a_listening_worker_go_to_its_own_channel_alone(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """5.1: and to the common one where nobody listens there, and to who holds another token."""

    def heard(listener: typing.Any) -> list[tuple[str, dict[str, typing.Any]]]:
        found = []
        while message := listener.get_message(timeout=0.2):
            if message["type"] == "message":
                told = json.loads(message["data"])
                if told.get("prefix") == prefix:
                    found.append((message["channel"], told))
        return found

    own = f"bullmq:cancel:w-{prefix}"
    lock = f"{prefix}:q:{running.id}:lock"
    with redis_client.pubsub() as listener:
        listener.subscribe("bullmq:cancel")
        queue.cancel_job(running.id, "one")
        (channel, told), *more = heard(listener)
        assert (channel, more) == ("bullmq:cancel", [])
        assert told["queue"] == "q"
        assert (told["jobId"], told["reason"], told["prefix"]) == (running.id, "one", prefix)
        redis_client.set(lock, f"gq:w-{prefix}:7", px=60_000)
        result = queue.cancel_job(running.id, "two")
        assert result.worker == f"w-{prefix}"
        assert [channel for channel, _ in heard(listener)] == ["bullmq:cancel"]
        listener.subscribe(own)
        queue.cancel_job(running.id, {"three": [1, "é"]})
        (channel, told), *more = heard(listener)
        assert (channel, more, told["reason"]) == (own, [], {"three": [1, "é"]})


# -- force ---------------------------------------------------------------------------------------


def test_force_takes_a_job_from_a_dead_worker(
    queue: Queue, running: Job, redis_client: redis.Redis, prefix: str
) -> None:
    """4.5."""
    result = queue.cancel_job(running.id, "gone", force=True)
    assert (result.status, result.state) == ("stopped", "active")
    assert places(redis_client, prefix, running.id) == ["failed"]
    assert not redis_client.exists(f"{prefix}:q:{running.id}:lock")
    failed = queue.get_job(running.id)
    assert failed is not None
    assert (failed.failed_reason, failed.attempts_made) == ("Job cancelled: gone", 1)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"attempts": 2}, "waiting"),
        ({"attempts": 2, "priority": 3}, "prioritized"),
        ({"attempts": 2, "backoff": 60.0}, "delayed"),
        ({"attempts": 2, "backoff": {"type": "mine"}}, "waiting"),
        ({}, "failed"),
    ],
)
def test_with_retry_the_jobs_own_rules_decide_what_follows(
    queue: Queue,
    locks: Locks,
    redis_client: redis.Redis,
    prefix: str,
    options: dict[str, typing.Any],
    state: str,
) -> None:
    job = queue.add("n", **options)
    redis_client.zrem(f"{prefix}:q:prioritized", job.id)
    locks.leave_as_a_dead_worker_does(job.id)
    assert queue.cancel_job(job.id, force=True, retry=True).status == "stopped"
    assert queue.get_job_state(job.id) == state
    after = queue.get_job(job.id)
    assert after is not None
    assert (after.attempts_made, after.cancellation) == (1, None)
    assert places(redis_client, prefix, job.id) == ["wait" if state == "waiting" else state]


def test_a_live_worker_whose_job_was_taken_away_writes_nothing(queue: Queue, make: Make) -> None:
    """4.5: its result is refused, and it says `lock_lost`, never `completed`."""
    import gevent.event

    begun, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> str:
        begun.set()
        go.wait()
        return "late"

    worker = make(process)
    told: list[str] = []
    for name in ("completed", "lock_lost"):
        worker.on(name, lambda job, _, name=name: told.append(name))
    job = queue.add("n")
    begun.wait()
    assert queue.cancel_job(job.id, "now", force=True).status == "stopped"
    go.set()
    eventually(lambda: told)
    assert told == ["lock_lost"]
    after = queue.get_job(job.id)
    assert after is not None
    assert (after.get_state(), after.return_value) == ("failed", None)


def test_force_on_what_does_not_run_is_an_ordinary_cancel(queue: Queue) -> None:
    job = queue.add("n")
    assert queue.cancel_job(job.id, force=True, wait=5).status == "cancelled"
