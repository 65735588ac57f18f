"""Job hashes that are missing, half-written or of a foreign type: they fail or are skipped, are
told, and harm nobody else.  Redis does not roll a script back, so a script has to look, or to be
able to fail, before its first write (cancellation.md 3.7)."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import DelayedError, GeventqError, Job, JobSpec, Queue, WaitingError, Worker, clock
from tests.conftest import Make
from tests.support.vectors import dump
from tests.support.waiting import TurnedClock, eventually

Break = collections.abc.Callable[[redis.Redis, str], object]


def gone(raw: redis.Redis, key: str) -> None:
    raw.delete(key)


def foreign(raw: redis.Redis, key: str) -> None:
    raw.delete(key)
    raw.set(key, "no hash")


BROKEN = pytest.mark.parametrize("breaks", [gone, foreign])


def places(raw: redis.Redis, prefix: str, job_id: str) -> set[str]:
    """Where the queue knows the id."""
    found = set()
    for place in ("wait", "active"):
        if job_id in raw.lrange(f"{prefix}:q:{place}", 0, -1):
            found.add(place)
    for place in ("delayed", "prioritized", "completed", "failed"):
        if raw.zscore(f"{prefix}:q:{place}", job_id) is not None:
            found.add(place)
    return found


def keyspace(raw: redis.Redis, prefix: str) -> typing.Any:
    return dump(raw, f"{prefix}:*")


@BROKEN
def test_due_jobs_with_a_broken_one_among_them(
    queue: Queue,
    make: Make,
    redis_client: redis.Redis,
    prefix: str,
    turned_clock: TurnedClock,
    breaks: Break,
) -> None:
    """All three fall due at once; the one in the middle is broken."""
    jobs = queue.add_bulk([JobSpec("n", options={"delay": 60})] * 3)
    breaks(redis_client, f"{prefix}:q:{jobs[1].id}")
    turned_clock.advance(61)
    errors: list[BaseException] = []
    worker = Worker("q", lambda job: "ran", queue._connection, prefix)
    worker.on("error", errors.append)
    with worker:
        eventually(lambda: queue.get_job_counts()["completed"] == 2)
        eventually(lambda: errors)
    assert f"job {jobs[1].id}" in str(errors[0])
    assert len(errors) == 1
    assert places(redis_client, prefix, jobs[1].id) == set()


@pytest.mark.parametrize("breaks", [gone, foreign, "stc", "ats", "priority"])
def test_stalled_jobs_with_a_broken_one_among_them(
    queue: Queue, redis_client: redis.Redis, prefix: str, breaks: Break | str
) -> None:
    """A worker died with three jobs; the hash of one is broken since, or holds foreign text."""
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    key = f"{prefix}:q:{jobs[1].id}"
    if isinstance(breaks, str):
        redis_client.hset(key, breaks, "many")
    else:
        breaks(redis_client, key)
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:active")
    redis_client.sadd(f"{prefix}:q:stalled", *[job.id for job in jobs])
    errors: list[BaseException] = []
    worker = Worker("q", lambda job: "ran", queue._connection, prefix)
    worker.on("error", errors.append)
    sound = 3 if isinstance(breaks, str) else 2
    with worker:
        eventually(lambda: queue.get_job_counts()["completed"] == sound)
        eventually(lambda: len(errors) == 3 - sound)
    assert places(redis_client, prefix, jobs[1].id) == ({"completed"} if sound == 3 else set())


@BROKEN
@pytest.mark.parametrize(
    ("delay", "change"),
    [
        (60, lambda job: job.promote()),
        (60, lambda job: job.change_delay(5)),
        (0, lambda job: job.change_priority(5)),
        (0, lambda job: job.update_data(5)),
        (0, lambda job: job.update_progress(5)),
        (0, lambda job: job.log("row")),
        (None, lambda job: job.retry()),
    ],
)
def test_a_change_of_a_broken_job_is_refused_and_writes_nothing(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    breaks: Break,
    delay: float | None,
    change: collections.abc.Callable[[Job], object],
) -> None:
    job = queue.add("n", delay=delay)
    if delay is None:  # it has failed
        redis_client.delete(f"{prefix}:q:wait")
        redis_client.zadd(f"{prefix}:q:failed", {job.id: 1})
    breaks(redis_client, f"{prefix}:q:{job.id}")
    before = keyspace(redis_client, prefix)
    with pytest.raises(GeventqError):
        change(job)
    after = keyspace(redis_client, prefix)
    assert after == before


@BROKEN
def test_all_failed_jobs_are_retried_but_a_broken_one(
    queue: Queue, redis_client: redis.Redis, prefix: str, breaks: Break, make: Make
) -> None:
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    redis_client.delete(f"{prefix}:q:wait")
    redis_client.zadd(f"{prefix}:q:failed", {job.id: number for number, job in enumerate(jobs)})
    breaks(redis_client, f"{prefix}:q:{jobs[1].id}")
    assert queue.retry_jobs() == 3
    errors: list[BaseException] = []
    worker = make(lambda job: "ran")
    worker.on("error", errors.append)
    eventually(lambda: queue.get_job_counts()["completed"] == 2)
    assert places(redis_client, prefix, jobs[1].id) == set()


@pytest.mark.parametrize("ends", [WaitingError(), DelayedError(60), ValueError("boom"), None])
def test_attempts_that_end_together_with_one_whose_hash_is_broken(
    queue: Queue,
    make: Make,
    redis_client: redis.Redis,
    prefix: str,
    ends: Exception | None,
) -> None:
    """Both outcomes travel in one call; the broken one comes first."""
    go = gevent.event.Event()

    def process(job: Job) -> str:
        go.wait()
        if job.name == "broken" and ends is not None:
            raise ends
        return "done"

    errors: list[BaseException] = []
    worker = make(process, concurrency=2)
    worker.on("error", errors.append)
    broken, sound = queue.add_bulk([JobSpec("broken", options={"attempts": 2}), JobSpec("sound")])
    eventually(lambda: len(worker.active_jobs) == 2)
    foreign(redis_client, f"{prefix}:q:{broken.id}")
    go.set()
    eventually(lambda: queue.get_job_state(sound.id) == "completed")
    eventually(lambda: not worker.active_jobs)
    assert redis_client.get(f"{prefix}:q:{broken.id}") == "no hash"
    assert places(redis_client, prefix, broken.id) == set()
    assert not any("script" in str(error) for error in errors), errors


@pytest.mark.parametrize(
    ("key", "value"),
    [("meta concurrency", "many"), ("meta opts.maxLenEvents", "some"), ("meta concurrency", "")],
)
def test_foreign_settings_of_the_queue_are_as_good_as_none(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, key: str, value: str
) -> None:
    redis_client.hset(f"{prefix}:q:meta", key.split()[1], value)
    job = queue.add("n", priority=1)
    job.update_progress(5)
    assert not queue.is_maxed()
    make(lambda job: "ran")
    eventually(job.is_completed)


def test_a_broken_counter_of_priorities_begins_anew(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    redis_client.set(f"{prefix}:q:pc", "many")
    jobs = queue.add_bulk([JobSpec("n", options={"priority": 1})] * 2)
    assert queue.get_prioritized()[0].id == jobs[0].id
    assert redis_client.get(f"{prefix}:q:pc") == "2"


@pytest.mark.parametrize("value", ["many", "1.5"])
def test_a_broken_counter_of_ids_is_told_and_nothing_is_written(
    queue: Queue, redis_client: redis.Redis, prefix: str, value: str
) -> None:
    redis_client.set(f"{prefix}:q:id", value)
    with pytest.raises(GeventqError, match="not an integer"):
        queue.add_bulk([JobSpec("n"), JobSpec("n", options={"priority": 1})])
    assert set(redis_client.scan_iter(match=f"{prefix}:*")) == {f"{prefix}:q:id"}


def test_the_clock_of_the_tests_moves_due_times(turned_clock: TurnedClock) -> None:
    """The first test here stands on it."""
    before = clock.wall_ms()
    turned_clock.advance(60)
    assert clock.wall_ms() - before >= 60_000
