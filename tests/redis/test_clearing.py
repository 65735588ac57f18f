"""Deleting jobs in large numbers: `drain`, `clean`, `obliterate` (wire-format 9.15-9.17)."""

from __future__ import annotations

import collections.abc
import datetime
import itertools
import json
import typing

import gevent
import pytest
import redis

from geventq import GeventqError, Job, JobSpec, Queue, RedisUnavailableError
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.proxy import Proxy
from tests.support.told import Told
from tests.support.vectors import dump
from tests.support.waiting import TurnedClock, eventually

Clear = collections.abc.Callable[[Queue], object]
CLEARS = pytest.mark.parametrize(
    "clear", [lambda queue: queue.drain(), lambda queue: queue.clean(0, state="waiting")]
)
PLACES = ("waiting", "prioritized", "delayed", "completed", "failed")


def put(queue: Queue, raw: redis.Redis, state: str) -> Job:
    """A job in that state, from outside."""
    if state == "delayed":
        return queue.add("n", delay=60)
    if state == "prioritized":
        return queue.add("n", priority=7)
    job = queue.add("n")
    if state != "waiting":
        base = f"{queue.prefix}:q"
        raw.lrem(f"{base}:wait", 0, job.id)
        if state == "active":
            raw.lpush(f"{base}:active", job.id)
        else:
            ended = str(int(job.timestamp * 1000))
            raw.zadd(f"{base}:{state}", {job.id: float(ended)})
            raw.hset(f"{base}:{job.id}", "finishedOn", ended)
    return job


def of(queue: Queue, raw: redis.Redis) -> dict[str, list[str]]:
    """Two jobs of each state, by state."""
    return {state: [put(queue, raw, state).id for _ in range(2)] for state in (*PLACES, "active")}


def events(raw: redis.Redis, prefix: str, name: str) -> list[dict[str, str]]:
    return [told for _, told in raw.xrange(f"{prefix}:q:events") if told["event"] == name]


# -- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delayed", [False, True])
def test_what_waits_is_drained_and_nothing_else(
    queue: Queue, redis_client: redis.Redis, prefix: str, delayed: bool
) -> None:
    jobs = of(queue, redis_client)
    before = redis_client.xlen(f"{prefix}:q:events")
    queue.drain(delayed)
    gone = {"waiting", "prioritized", *(["delayed"] if delayed else [])}
    counts = queue.get_job_counts()
    assert {state: counts[state] for state in jobs} == {
        state: 0 if state in gone else 2 for state in jobs
    }
    for state, ids in jobs.items():
        there = redis_client.exists(*[f"{prefix}:q:{job_id}" for job_id in ids])
        assert there == (0 if state in gone else 2)
    assert redis_client.xlen(f"{prefix}:q:events") == before, "BullMQ tells of it by no event"
    assert queue.add("n").get_state() == "waiting"


def test_all_keys_of_a_drained_job_go(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    """wire-format 8.8: its log, and the deduplication that it owns, with what that keeps."""
    job, other = queue.add("n"), queue.add("n", delay=60)
    job.log("row")
    base = f"{prefix}:q"
    for one, dedup in ((job, "mine"), (other, "theirs")):
        redis_client.hset(f"{base}:{one.id}", "deid", dedup)
        redis_client.set(f"{base}:de:{dedup}", one.id)
    redis_client.hset(f"{base}:dn:mine", "name", "next")
    third = queue.add("n")
    redis_client.hset(f"{base}:{third.id}", "deid", "theirs")  # but another job owns it
    queue.drain()
    assert {key.removeprefix(base) for key in redis_client.scan_iter(f"{base}:*")} == {
        *(":meta", ":id", ":events", ":marker", ":delayed", f":{other.id}", ":de:theirs")
    }


def test_what_a_version_5_left_in_paused_is_drained(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    job = queue.add("n")
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:paused")
    queue.drain()
    assert queue.get_job(job.id) is None
    assert not redis_client.exists(f"{prefix}:q:paused")


@pytest.mark.parametrize("state", ["waiting", "prioritized", "delayed"])
@pytest.mark.parametrize("how", ["drain", "clean"])
def test_the_planned_run_of_a_living_scheduler_stays_wherever_it_stands(
    queue: Queue, redis_client: redis.Redis, prefix: str, state: str, how: str
) -> None:
    """wire-format 9.16, the defect to avoid: by its value, not by counting."""
    base = f"{prefix}:q"
    redis_client.zadd(f"{base}:repeat", {"daily": 1_750_000_000_000})
    planned = "repeat:daily:1750000000000"
    ids = [put(queue, redis_client, state).id for _ in range(5)]
    names = {ids[1]: planned, ids[3]: "repeat:daily:1"}  # the other is a run of long ago
    for old, new in names.items():
        redis_client.rename(f"{base}:{old}", f"{base}:{new}")
        redis_client.hset(f"{base}:{new}", "rjk", "daily")
        if state == "waiting":
            redis_client.linsert(f"{base}:wait", "BEFORE", old, new)
            redis_client.lrem(f"{base}:wait", 0, old)
        else:
            score = redis_client.zscore(f"{base}:{state}", old)
            redis_client.zadd(f"{base}:{state}", {new: score or 0})
            redis_client.zrem(f"{base}:{state}", old)
    if how == "drain":
        queue.drain(delayed=True)
    else:
        gone = queue.clean(0, state=typing.cast(typing.Any, state))
        assert sorted(gone) == sorted([ids[0], ids[2], ids[4], "repeat:daily:1"])
    key = f"{base}:wait" if state == "waiting" else f"{base}:{state}"
    there = (
        redis_client.lrange(key, 0, -1) if state == "waiting" else redis_client.zrange(key, 0, -1)
    )
    assert there == [planned]
    assert redis_client.exists(f"{base}:{planned}")


@pytest.mark.slow
def test_who_waits_for_a_drained_job_is_told(queue: Queue) -> None:
    job = queue.add("n")
    waiter = gevent.spawn(job.wait_until_finished, 30)
    eventually(lambda: queue._store.ends_of_jobs()._waiting)
    queue.drain()
    with pytest.raises(GeventqError, match="does not exist"):
        waiter.get()


@CLEARS
def test_an_id_that_is_a_key_of_the_queue_takes_nothing_with_it(
    queue: Queue, redis_client: redis.Redis, prefix: str, clear: Clear
) -> None:
    """wire-format 1: some program has put it into the list; it leaves that, and the key stays."""
    from geventq.checks import is_queue_key

    base = f"{prefix}:q"
    queue.add("n")
    hashes = ["meta", "repeat:daily", "gq:worker:w", "dn:one", "metrics:completed", "7:processed"]
    for name in hashes:
        redis_client.hset(f"{base}:{name}", "timestamp", 1)
        assert is_queue_key(name)
    redis_client.lpush(f"{base}:wait", *hashes, "repeat:daily:1")
    redis_client.hset(f"{base}:repeat:daily:1", "timestamp", 1)
    clear(queue)
    assert redis_client.exists(*[f"{base}:{name}" for name in hashes]) == len(hashes)
    assert not redis_client.exists(f"{base}:wait", f"{base}:1", f"{base}:repeat:daily:1")
    assert queue.add("n").id == "2"


# -- parents -------------------------------------------------------------------------------------


def family(raw: redis.Redis, prefix: str, child: Job, parent: str, queue: str = "q") -> str:
    """Makes `child` the last one that a waiting parent waits for; the parent's key."""
    key, child_key = f"{prefix}:{queue}:{parent}", f"{prefix}:q:{child.id}"
    raw.hset(key, mapping={"name": "p", "data": "{}", "opts": "{}", "timestamp": 1})
    raw.sadd(f"{key}:dependencies", child_key)
    raw.zadd(f"{prefix}:{queue}:waiting-children", {parent: 1})
    told = json.dumps({"id": parent, "queueKey": f"{prefix}:{queue}"})
    raw.hset(child_key, mapping={"parentKey": key, "parent": told})
    return key


@CLEARS
def test_parents_in_the_same_queue_go_with_their_last_child(
    queue: Queue, redis_client: redis.Redis, prefix: str, clear: Clear
) -> None:
    """wire-format 8.7 hard: upward, with what they deduplicate; ids may hold colons."""
    child = queue.add("n")
    parent = family(redis_client, prefix, child, "a:b:c")
    middle = Job(queue._store, "a:b:c", {})
    above = family(redis_client, prefix, middle, "top")
    redis_client.hset(above, "deid", "one")
    redis_client.set(f"{prefix}:q:de:one", "top")
    clear(queue)
    for key in (parent, above):
        assert not redis_client.exists(key, f"{key}:dependencies")
    assert not redis_client.exists(f"{prefix}:q:waiting-children", f"{prefix}:q:de:one")


@CLEARS
def test_a_parent_in_another_queue_runs_next(
    queue: Queue, redis_client: redis.Redis, prefix: str, clear: Clear
) -> None:
    """wire-format 8.7 hard: without an event, and woken for unless its queue is paused."""
    first = family(redis_client, prefix, queue.add("n"), "P", "other")
    second = family(redis_client, prefix, queue.add("n"), "P", "paused-one")
    redis_client.hset(f"{prefix}:paused-one:meta", "paused", 1)
    clear(queue)
    for key, name, woken in ((first, "other", 1), (second, "paused-one", 0)):
        assert redis_client.exists(key, f"{key}:dependencies") == 1
        assert redis_client.lrange(f"{prefix}:{name}:wait", 0, -1) == ["P"]
        assert redis_client.exists(f"{prefix}:{name}:marker") == woken
        assert not redis_client.exists(f"{prefix}:{name}:events")


def test_a_parent_that_waits_for_others_or_is_none_is_left_alone(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7: whatever somebody keeps at such keys."""
    children = [queue.add("n") for _ in range(3)]
    busy = family(redis_client, prefix, children[0], "busy")
    redis_client.sadd(f"{busy}:dependencies", "p:q:other")
    odd = family(redis_client, prefix, children[1], "odd", "other")
    redis_client.set(f"{prefix}:other:wait", "foreign")
    redis_client.hset(f"{prefix}:q:{children[2].id}", "parentKey", f"{prefix}:gone:1")
    queue.drain()
    assert redis_client.smembers(f"{busy}:dependencies") == {"p:q:other"}
    assert redis_client.zrange(f"{prefix}:q:waiting-children", 0, -1) == ["busy"]
    assert redis_client.exists(odd)
    assert redis_client.get(f"{prefix}:other:wait") == "foreign"
    assert queue.count() == 1


# -- clean ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [*PLACES, "active"])
def test_old_jobs_of_one_state_are_cleaned(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    turned_clock: TurnedClock,
    state: typing.Any,
) -> None:
    old = of(queue, redis_client)
    turned_clock.advance(100)
    young = of(queue, redis_client)
    gone = queue.clean(50, state=state)
    assert sorted(gone) == sorted(old[state])
    assert {job.id for job in queue.get_jobs(state)} == set(young[state])
    assert queue.get_job_count() == 22
    assert events(redis_client, prefix, "cleaned") == [{"event": "cleaned", "count": "2"}]
    assert queue.clean(50, state=state) == []
    assert [one["count"] for one in events(redis_client, prefix, "cleaned")] == ["2", "0"]
    assert sorted(queue.clean(datetime.timedelta(0), state=state)) == sorted(young[state])


@pytest.mark.parametrize("state", [*PLACES, "active"])
def test_a_limit_takes_the_oldest(
    queue: Queue, redis_client: redis.Redis, turned_clock: TurnedClock, state: typing.Any
) -> None:
    ids = []
    for _ in range(5):
        ids.append(put(queue, redis_client, state).id)
        turned_clock.advance(0.01)
    assert sorted(queue.clean(0, 2, state)) == ids[:2]
    assert sorted(queue.clean(0, limit=0, state=state)) == ids[2:]


def test_the_completed_ones_are_meant_and_a_thousand_of_them(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """The defaults."""
    ids = [str(n) for n in range(1, 1203)]
    with redis_client.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hset(f"{prefix}:q:{job_id}", mapping={"name": "n", "timestamp": 1})
            pipe.zadd(f"{prefix}:q:completed", {job_id: int(job_id)})
        pipe.execute()
    assert queue.clean(0) == ids[:1000]
    assert queue.clean(0) == ids[1000:]


def test_young_ones_between_old_ones_stay_in_their_order(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """Over many calls of the script, also where an id stands in the list twice."""
    jobs = queue.add_bulk(
        [JobSpec("n", {}, {"timestamp": 9e9 if n % 3 else 1.0}) for n in range(2500)]
    )
    twice = jobs[7].id
    redis_client.lpush(f"{prefix}:q:wait", twice)
    gone = queue.clean(0, 0, "waiting")
    assert sorted(gone, key=int) == [job.id for n, job in enumerate(jobs) if n % 3 == 0]
    stay = [job.id for n, job in enumerate(jobs) if n % 3]
    assert redis_client.lrange(f"{prefix}:q:wait", 0, -1)[::-1] == [*stay, twice]


def test_jobs_that_leave_between_two_calls_hide_none(
    queue: Queue, redis_client: redis.Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor is found again where it is then, or all are looked at again."""
    jobs = queue.add_bulk(
        [JobSpec("n", {}, {"timestamp": 1.0 if n > 2000 else 9e9}) for n in range(2500)]
    )
    client = queue._store._client
    script = client.script
    counts, taken = itertools.cycle([150, 600]), set[str]()  # short of the anchor, and past it

    def others_take(*args: typing.Any, **more: typing.Any) -> typing.Any:
        reply = script(*args, **more)
        found: typing.Any = redis_client.rpop(f"{prefix}:q:wait", next(counts))
        taken.update(found or ())
        return reply

    monkeypatch.setattr(client, "script", others_take)
    gone = set(queue.clean(0, 0, "waiting"))
    monkeypatch.undo()
    assert len(taken) > 1000
    assert not taken & gone
    assert gone == {job.id for job in jobs[2001:]} - taken
    assert {job.id for job in queue.get_waiting()} == {job.id for job in jobs} - taken - gone


def test_locked_jobs_and_what_is_no_job(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, locks: Locks
) -> None:
    """Those that run stay; an id without a hash goes, a foreign key is nobody's to delete."""
    go = gevent.event.Event()
    make(lambda job: go.wait())
    running = queue.add("n")
    eventually(running.is_active)
    lost = queue.add("n")
    locks.leave_as_a_dead_worker_does(lost.id)
    redis_client.sadd(f"{prefix}:q:stalled", lost.id, running.id)
    redis_client.lpush(f"{prefix}:q:active", "ghost", "foreign")
    redis_client.set(f"{prefix}:q:foreign", "theirs")
    assert sorted(queue.clean(0, state="active")) == sorted([lost.id, "ghost", "foreign"])
    assert redis_client.get(f"{prefix}:q:foreign") == "theirs"
    assert lost.id not in redis_client.smembers(f"{prefix}:q:stalled")
    go.set()
    running.wait_until_finished(30)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((-1,), ValueError, "grace"),
        ((float("nan"),), ValueError, "grace"),
        (("1",), TypeError, "grace"),
        ((True,), TypeError, "grace"),
        ((0, -1), ValueError, "limit"),
        ((0, 1.5), TypeError, "limit"),
        ((0, True), TypeError, "limit"),
        ((0, 5, "waiting-children"), ValueError, "state: one of completed"),
        ((0, 5, "wait"), ValueError, "state"),
        ((0, 5, None), ValueError, "state"),
        ((0, 5, ["failed"]), ValueError, "state"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_deleted(
    queue: Queue,
    redis_client: redis.Redis,
    arguments: tuple[typing.Any, ...],
    error: type[Exception],
    says: str,
) -> None:
    of(queue, redis_client)
    with pytest.raises(error, match=says):
        queue.clean(*arguments)
    with pytest.raises(TypeError, match="delayed"):
        queue.drain(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="force"):
        queue.obliterate("yes")  # type: ignore[arg-type]
    assert queue.get_job_count() == 12


def test_a_clean_whose_answer_was_lost_is_not_sent_again(
    proxy: Proxy, prefix: str, queue: Queue, redis_client: redis.Redis
) -> None:
    """3.6: it would take more than its limit; it may be done, says the error, and what is known."""
    for _ in range(3):
        put(queue, redis_client, "completed")
    with Queue("q", proxy.url, prefix) as through:
        through.get_job_counts()
        lost = proxy.swallow_next(load("clean").sha.encode())
        with pytest.raises(RedisUnavailableError) as raised:
            through.clean(0, 1)
        assert lost.was_reached
    assert raised.value.may_be_done
    assert raised.value.results == []
    assert queue.get_job_count("completed") == 2


# -- obliterate ----------------------------------------------------------------------------------


def test_nothing_of_the_queue_is_left(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """wire-format 9.17, and what is ours (cancellation.md 8): heartbeats, answers, replies; but
    nothing of another queue, whatever its name looks like."""
    of(queue, redis_client)
    redis_client.delete(f"{prefix}:q:active")
    worker = make(print)
    eventually(lambda: redis_client.exists(f"{prefix}:q:gq:workers"))
    worker.close()
    base = f"{prefix}:q"
    queue.cancel_job(queue.add("n", remove_on_fail=True).id)
    assert redis_client.keys(f"{base}:gq:answer:*")
    redis_client.zadd(f"{base}:repeat", {"daily": 5})
    redis_client.hset(f"{base}:repeat:daily", "name", "n")
    redis_client.hset(f"{base}:metrics:completed", "count", 1)
    redis_client.zadd(f"{base}:gq:workers", {"w": 1})
    redis_client.hset(f"{base}:gq:worker:w", "pid", 1)
    for theirs in (f"{prefix}:qq:gq:workers", f"{prefix}:x:gq:workers"):
        redis_client.zadd(theirs, {"w": 1})
    active = list(redis_client.scan_iter(f"{base}:[0-9]*"))
    assert active
    queue.obliterate()
    ids = list(redis_client.scan_iter(f"{base}:*"))
    assert set(ids) <= set(active), "what was in no list any more is nobody's"
    assert not redis_client.keys(f"{base}:gq:*")
    assert len(redis_client.keys(f"{prefix}:*:gq:workers")) == 2
    assert queue.get_job_count() == 0
    assert not queue.is_paused()


def test_a_prefix_that_looks_like_a_pattern(redis_url: str, redis_client: redis.Redis) -> None:
    mine, theirs = "x[ab]*?\\{t}", "xa--{t}"
    for prefix in (mine, theirs):
        redis_client.zadd(f"{prefix}:q:gq:workers", {"w": 1})
        redis_client.hset(f"{prefix}:q:gq:worker:w", "pid", 1)
    with Queue("q", redis_url, mine) as queue:
        queue.add("n")
        queue.obliterate()
    assert not redis_client.exists(f"{mine}:q:gq:workers", f"{mine}:q:gq:worker:w", f"{mine}:q:1")
    assert redis_client.delete(f"{theirs}:q:gq:workers", f"{theirs}:q:gq:worker:w") == 2


def test_while_jobs_run_it_is_refused_and_the_queue_stays_paused(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """As with BullMQ; with force it goes, and what the worker writes then is refused."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait())
    told = Told(worker)
    running, waiting = queue.add("n"), queue.add("n")
    eventually(running.is_active)
    before = dump(redis_client, f"{prefix}:q:[0-9]*")
    with pytest.raises(GeventqError, match="running jobs"):
        queue.obliterate()
    assert queue.is_paused()
    after = dump(redis_client, f"{prefix}:q:[0-9]*")
    assert {key: one["value"] for key, one in after.items()} == {
        key: one["value"] for key, one in before.items()
    }
    queue.obliterate(force=True)
    assert not redis_client.keys(f"{prefix}:q:[0-9]*")
    go.set()
    eventually(lambda: told.of(running) == ["lock_lost"])
    assert queue.get_job(running.id) is queue.get_job(waiting.id) is None


def test_it_begins_anew_and_workers_that_live_go_on(queue: Queue, make: Make) -> None:
    make(lambda job: "done")
    for _ in range(2):
        job = queue.add("n")
        assert job.id == "1"
        assert job.wait_until_finished(30) == "done"
        queue.obliterate()


@pytest.mark.parametrize("script", ["drain", "obliterate"])
def test_a_call_whose_answer_was_lost_is_sent_again(
    proxy: Proxy, prefix: str, queue: Queue, script: str
) -> None:
    """3.6: a second one finds nothing, or what is left."""
    queue.add_bulk([JobSpec("n")] * 5)
    with Queue("q", proxy.url, prefix) as through:
        through.get_job_counts()
        lost = proxy.swallow_next(load(script).sha.encode())
        getattr(through, script)()
        assert lost.was_reached
    assert queue.get_job_count() == 0
    assert not queue.is_paused()
