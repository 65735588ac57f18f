"""`Queue.cancel_jobs`: which jobs, in which order, and what is told when not all can be done."""

from __future__ import annotations

import datetime
import functools
import operator
import typing

import pytest
import redis

from geventq import GeventqError, Job, JobSpec, Queue, RedisUnavailableError
from geventq.store import walking
from tests.support.locks import Locks
from tests.support.proxy import Proxy
from tests.support.servers import Server


def test_results_come_in_the_order_of_the_ids(queue: Queue) -> None:
    first, second = queue.add("n"), queue.add("n", delay=60)
    results = queue.cancel_jobs([second.id, "nope", first.id, second.id], "all")
    assert [one.job_id for one in results] == [second.id, "nope", first.id, second.id]
    assert [one.status for one in results] == ["cancelled", "not_found", "cancelled", "cancelled"]
    assert [one.state for one in results] == ["delayed", "unknown", "waiting", "delayed"]


def test_filters_combine_by_and(queue: Queue) -> None:
    queue.add("export", {"n": 1})
    two = queue.add("export", {"n": 2}, delay=60)
    queue.add("resize", {"n": 2}, delay=60)
    results = queue.cancel_jobs(
        name="export", state="delayed", where=lambda job: job.data["n"] == 2
    )
    assert [one.job_id for one in results] == [two.id]
    assert queue.cancel_jobs(name="no such") == []
    assert len(queue.cancel_jobs(where=lambda job: True)) == 2, "unfinished ones alone"


def test_a_job_that_moves_while_others_are_looked_at_is_not_missed(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """4.2: its run fails meanwhile, and the next attempt waits, behind what was looked at."""
    runs = queue.add("n")
    redis_client.lmove(f"{prefix}:q:wait", f"{prefix}:q:active", "RIGHT", "LEFT")
    waits = queue.add("n")

    def where(job: Job) -> bool:
        redis_client.lmove(f"{prefix}:q:active", f"{prefix}:q:wait", "LEFT", "LEFT")
        return True

    results = queue.cancel_jobs(where=where)
    assert [(one.job_id, one.status) for one in results] == [
        (waits.id, "cancelled"),
        (runs.id, "cancelled"),
    ]


def test_a_job_that_moves_while_a_long_queue_is_gone_through_is_not_missed(
    queue: Queue, redis_client: redis.Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4.2: it was not looked at yet, is taken, fails, and waits where the others were looked at."""
    pages = functools.partial(walking.unfinished_pages, size=2)
    monkeypatch.setattr("geventq.store.queue_store.unfinished_pages", pages)
    queue.add_bulk([JobSpec("n", options={"delay": 60 * n}) for n in (0, 0, 0, 0, 0, 1, 2, 3, 4)])
    found: list[tuple[str, list[str]]] = []
    for state, ids in queue.unfinished_ids():
        if not found:
            redis_client.lmove(f"{prefix}:q:wait", f"{prefix}:q:wait", "RIGHT", "LEFT")
        found.append((state, ids))
    assert sorted(one for _, ids in found for one in ids) == [str(n) for n in range(1, 10)]
    assert found[0] == ("waiting", ["5", "4"])
    assert found[-1] == ("waiting", ["1"])


def test_what_a_version_5_has_paused_is_found_too(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """4.2: its jobs would wait again at the next resume."""
    job = queue.add("n")
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:paused")
    assert [one.status for one in queue.cancel_jobs(name="n")] == ["cancelled"]
    assert queue.get_job_state(job.id) == "failed"


def test_a_dry_run_tells_and_changes_nothing(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    queue.add_bulk([JobSpec("n")] * 100)
    queue.add("n", delay=60)
    before = {key: redis_client.dump(key) for key in redis_client.scan_iter(f"{prefix}:*")}
    results = queue.cancel_jobs(name="n", dry_run=True)
    assert {one.status for one in results} == {"cancelled"}
    assert [one.state for one in results].count("delayed") == 1
    after = {key: redis_client.dump(key) for key in redis_client.scan_iter(f"{prefix}:*")}
    assert after == before
    assert queue.get_job_counts()["waiting"] == 100


@pytest.mark.parametrize("force", [False, True])
def test_a_dry_run_tells_what_would_become_of_running_jobs(
    queue: Queue, locks: Locks, redis_client: redis.Redis, prefix: str, force: bool
) -> None:
    """4.5: with force they would be taken away; who lacks the secret is told so."""
    job = queue.add("n")
    locks.leave_as_a_dead_worker_does(job.id)
    (told,) = queue.cancel_jobs([job.id], force=force, dry_run=True)
    assert (told.status, told.state) == ("stopped" if force else "requested", "active")
    assert queue.get_job_state(job.id) == "active"
    redis_client.hset(f"{prefix}:q:meta", "gqs", "a secret's key")
    if force:
        with pytest.raises(GeventqError, match="cancel_secret"):
            queue.cancel_jobs([job.id], force=True, dry_run=True)
    assert queue.get_job_state(job.id) == "active"


@pytest.mark.parametrize("count", [40, 60, 1200])
def test_those_that_are_not_meant_stay_in_their_order(queue: Queue, count: int) -> None:
    """Few are taken out of the list one by one, many by going through it once."""
    jobs = queue.add_bulk([JobSpec("n", {"at": n}) for n in range(3 * count)])
    cancelled = [job.id for n, job in enumerate(jobs) if n % 3 == 1]
    assert all(queue.cancel_jobs(cancelled))
    stay = [job.id for n, job in enumerate(jobs) if n % 3 != 1]
    assert [job.id for job in queue.get_waiting()] == stay


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "ids, or one of name, state and where"),
        ({"job_ids": ["1"], "name": "n"}, ValueError, "together with name"),
        ({"job_ids": "12"}, TypeError, "job_ids"),
        ({"job_ids": [1]}, TypeError, "job_ids"),
        ({"state": "running"}, ValueError, "state: one of"),
        ({"state": ["waiting"]}, TypeError, "state: text"),
        ({"state": 5}, TypeError, "state: text"),
        ({"job_ids": [b"1"]}, TypeError, "job_ids: text"),
        ({"job_ids": b"12"}, TypeError, "job_ids: a list"),
        ({"job_ids": 5}, TypeError, "job_ids: a list"),
        ({"job_ids": [], "name": "n"}, ValueError, "together with name"),
        ({"name": b"n"}, TypeError, "name: text"),
        ({"name": ""}, ValueError, "name"),
        ({"where": 3}, TypeError, "where: a callable"),
        ({"name": "n", "dry_run": 1}, TypeError, "dry_run"),
        ({"name": "n", "hard": 1}, TypeError, "hard"),
        ({"name": "n", "retry": None}, TypeError, "retry"),
        ({"name": "n", "force": "yes"}, TypeError, "force"),
        ({"name": "n", "cascade": 0}, TypeError, "cascade"),
        ({"name": "n", "wait": -1}, ValueError, "wait"),
        ({"name": "n", "wait": float("nan")}, ValueError, "wait"),
        ({"name": "n", "kill_after": 1, "hard": False}, ValueError, "kill_after"),
        ({"name": "n", "reason": {1, 2}}, TypeError, "reason"),
        ({"name": "n", "reason": "x" * 17_000}, ValueError, "reason: at most 16384 bytes"),
        ({"name": "n", "reason": "caf\udce9"}, ValueError, "reason"),
        ({"name": "n", "reason": [float("inf")]}, ValueError, r"reason\[0\]"),
        ({"name": "n", "silent": True}, TypeError, "silent"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_cancelled(
    queue: Queue, arguments: dict[str, typing.Any], error: type[Exception], says: str
) -> None:
    job = queue.add("n")
    with pytest.raises(error, match=says):
        queue.cancel_jobs(**arguments)
    assert job.get_state() == "waiting"


def test_any_number_of_ids_in_any_form(queue: Queue) -> None:
    """None at all, many, the same one again and again, from a generator; wait= looks at all."""
    job = queue.add("n")
    assert queue.cancel_jobs([]) == queue.cancel_jobs([], wait=1) == []
    ids = [str(n) for n in range(1000, 21_000)]
    assert {one.status for one in queue.cancel_jobs(iter(ids), wait=1)} == {"not_found"}
    assert len(queue.cancel_jobs(one for one in [job.id] * 20_000)) == 20_000
    assert job.get_state() == "failed"


def test_what_a_filter_raises_and_what_it_answers(queue: Queue) -> None:
    """Whatever is true chooses; what is raised comes out, and nothing is cancelled."""
    jobs = queue.add_bulk([JobSpec("n", n) for n in range(3)])
    with pytest.raises(ZeroDivisionError):
        queue.cancel_jobs(where=lambda job: 1 / job.data)
    assert queue.get_job_count("waiting") == 3
    assert queue.cancel_jobs(where=lambda job: None) == []
    chosen = queue.cancel_jobs(where=lambda job: "yes" if job.data == 1 else "")
    assert [one.job_id for one in chosen] == [jobs[1].id]


def test_times_may_be_timedeltas_and_a_reason_changed_later_is_not_sent(queue: Queue) -> None:
    reason = {"files": ["a"]}
    job = queue.add("n")
    second = datetime.timedelta(seconds=1)
    queue.cancel_job(job.id, reason, kill_after=second, wait=second)
    reason["files"].append("b")
    shown = queue.get_job(job.id)
    assert shown is not None
    assert shown.cancellation is not None
    assert shown.cancellation.reason == {"files": ["a"]}


def test_an_answer_that_was_lost_is_given_again(proxy: Proxy, prefix: str, queue: Queue) -> None:
    """3.6, 4.1: the script finds its own nonce and answers as it did at first, also for jobs
    that are not kept."""
    from geventq.store.scripts import load

    kept, gone = queue.add("n"), queue.add("n", remove_on_fail=True)
    with Queue("q", proxy.url, prefix) as through:
        through.get_job_counts()
        lost = proxy.swallow_next(load("cancel").sha.encode())
        results = through.cancel_jobs([kept.id, gone.id], "once")
        assert lost.was_reached
    assert [(one.status, one.state) for one in results] == [("cancelled", "waiting")] * 2
    assert queue.get_job(gone.id) is None


def test_an_outage_in_its_midst_tells_what_was_done(own_server: Server, prefix: str) -> None:
    with Queue("q", own_server.url, prefix, timeout=1) as queue:
        jobs = queue.add_bulk([JobSpec("n") for _ in range(700)])
        first_call: list[bool] = []

        def where(job: Job) -> bool:
            return True

        import geventq.store.cancel_calls as calls

        send = calls.CancelCalls._call

        def dies_after_one(self: typing.Any, *args: typing.Any) -> typing.Any:
            if first_call:
                own_server.kill()
            first_call.append(True)
            return send(self, *args)

        calls.CancelCalls._call = dies_after_one  # type: ignore[method-assign]
        try:
            with pytest.raises(RedisUnavailableError) as raised:
                queue.cancel_jobs(where=where)
        finally:
            calls.CancelCalls._call = send  # type: ignore[method-assign]
        results = raised.value.results
        assert len(results) == len(jobs)
        assert [one is not None for one in results] == [True] * 500 + [False] * 200
        own_server.start()
        assert queue.get_job_counts()["failed"] == 500


def _scripts(server: redis.Redis) -> tuple[int, float]:
    """How many scripts it has run, and the seconds of CPU that it has used."""
    stats, cpu = server.info("commandstats"), server.info("cpu")
    calls = stats.get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls, cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]


@pytest.mark.slow
def test_no_call_holds_the_server_for_long(own_server: Server, prefix: str) -> None:
    """10,000 jobs of 30,000, and 2,000 of a list that is too long to be filtered.  All calls are
    alike, so what counts is the server's CPU a call: other tests run beside this one."""
    with Queue("q", own_server.url, prefix) as queue:
        for length, chosen in ((30_000, 10_000), (100_000, 200)):
            for _ in range(length // 10_000):
                queue.add_bulk([JobSpec("n")] * 10_000)
            ids = [job.id for job in queue.get_waiting(0, chosen - 1)]
            with redis.Redis.from_url(own_server.url) as raw:
                before = _scripts(raw)
                assert all(queue.cancel_jobs(ids))
                calls, seconds = map(operator.sub, _scripts(raw), before)
            assert seconds / calls < 0.1
            queue.cancel_jobs(state="waiting", dry_run=True)
