"""Looking at a queue and keeping it in order: states, ranges, counts, moves, removal."""

from __future__ import annotations

import collections.abc
import datetime
import json
import logging

import pytest
import redis

from geventq import GeventqError, Job, JobSpec, LockLostError, Queue, UnrecoverableError, Worker
from tests.conftest import Make
from tests.support.waiting import TurnedClock, eventually


@pytest.fixture
def finish(redis_url: str, prefix: str, queue: Queue) -> collections.abc.Callable[[], None]:
    """Runs what waits: jobs named `bad` fail for good, the others complete."""

    def process(job: Job) -> str:
        if job.name == "bad":
            raise UnrecoverableError("bad")
        return "ok"

    def finish() -> None:
        with Worker("q", process, redis_url, prefix):
            eventually(lambda: queue.get_job_count("waiting", "prioritized", "active") == 0)

    return finish


def events(raw: redis.Redis, prefix: str) -> list[dict[str, str]]:
    return [fields for _, fields in raw.xrange(f"{prefix}:q:events")]


# -- looking -------------------------------------------------------------------------------------


def test_an_unknown_job(queue: Queue) -> None:
    assert queue.get_job("nope") is None
    assert queue.get_job_state("nope") == "unknown"
    assert queue.get_job_logs("nope") == []
    assert queue.remove("nope")  # as with BullMQ: it is not there


def test_counts_and_states(queue: Queue, finish: collections.abc.Callable[[], None]) -> None:
    done, bad = queue.add("n"), queue.add("bad")
    finish()
    queue.add("n")
    later = queue.add("n", delay=60)
    soon = queue.add("n", priority=3)
    assert queue.get_job_counts() == {
        "active": 0,
        "waiting": 1,
        "completed": 1,
        "delayed": 1,
        "failed": 1,
        "prioritized": 1,
        "waiting-children": 0,
    }
    assert (done.is_completed(), bad.is_failed(), later.is_delayed()) == (True, True, True)
    assert soon.get_state() == "prioritized"
    assert queue.count() == 3
    assert queue.get_job_count("failed", "completed") == 2
    assert queue.get_job_count() == 5
    assert queue.get_counts_per_priority([0, 1, 3]) == {0: 1, 1: 0, 3: 1}
    assert queue.get_job_counts("failed", ["delayed", "failed"]) == {"failed": 1, "delayed": 1}
    with pytest.raises(ValueError, match="'sleeping'"):
        queue.get_job_count("sleeping")


def test_a_state_that_is_named_twice_counts_once(queue: Queue) -> None:
    """As Node's getters, which make a set of the types."""
    job = queue.add("n")
    assert [one.id for one in queue.get_jobs(["waiting", "waiting"])] == [job.id]
    assert queue.get_job_count("waiting", "waiting") == 1
    assert queue.get_job_count(["waiting", "active"]) == 1


def test_ranges_begin_with_what_is_next_and_finished_ones_with_the_newest(
    queue: Queue, finish: collections.abc.Callable[[], None], turned_clock: TurnedClock
) -> None:
    for _ in range(3):
        queue.add("n")
        finish()
        turned_clock.advance(0.002)  # ends in milliseconds of their own: the order is theirs
    queue.add_bulk([JobSpec("n"), JobSpec("n"), JobSpec("n", options={"lifo": True})])
    queue.add_bulk([JobSpec("n", options={"delay": seconds}) for seconds in (30, 10, 20)])
    queue.add_bulk([JobSpec("n", options={"priority": priority}) for priority in (2, 1, 2)])

    def ids(jobs: list[Job]) -> list[str]:
        return [job.id for job in jobs]

    assert ids(queue.get_completed()) == ["3", "2", "1"]
    assert ids(queue.get_completed(1, 1)) == ["2"]
    assert ids(queue.get_waiting()) == ["6", "4", "5"]
    assert ids(queue.get_waiting(1, -1)) == ["4", "5"]
    assert ids(queue.get_waiting(-1, -1)) == ["5"]
    assert ids(queue.get_delayed()) == ["8", "9", "7"]
    assert ids(queue.get_prioritized(0, 1)) == ["11", "10"]
    assert ids(queue.get_jobs(["delayed", "completed"], 0, 0)) == ["7", "3"]
    assert ids(queue.get_jobs(["delayed", "completed"], 0, 0, ascending=True)) == ["8", "1"]
    assert len(queue.get_jobs()) == 12
    assert ids(queue.get_active()) == ids(queue.get_failed()) == ids(queue.get_waiting_children())
    with pytest.raises(ValueError, match="state"):
        queue.get_jobs("sleeping")
    with pytest.raises(TypeError, match="start"):
        queue.get_jobs("waiting", "0")  # type: ignore[arg-type]


def test_broken_jobs_are_skipped_and_told(
    queue: Queue, redis_client: redis.Redis, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue.add_bulk([JobSpec("n")] * 3)
    redis_client.delete(f"{prefix}:q:1", f"{prefix}:q:2")
    redis_client.set(f"{prefix}:q:2", "no hash")
    redis_client.hset(f"{prefix}:q:3", "data", "{")
    with caplog.at_level(logging.WARNING, "geventq"):
        jobs = queue.get_waiting()
    assert [job.id for job in jobs] == ["3"]
    assert "job 2" in caplog.text
    assert jobs[0].defect() is not None
    with pytest.raises(GeventqError, match="WRONGTYPE"):
        queue.get_job("2")


def test_workers_are_listed_by_their_connections(queue: Queue, redis_url: str, prefix: str) -> None:
    with (
        Worker("q", print, redis_url, prefix, name="first"),
        Worker("q", print, redis_url, prefix),
        Worker("other", print, redis_url, prefix),
    ):
        eventually(lambda: len(queue.get_workers()) == 2)
        assert {worker["name"] for worker in queue.get_workers()} == {"first", ""}
    eventually(lambda: not queue.get_workers())


# -- pausing -------------------------------------------------------------------------------------


def test_a_paused_queue_gives_no_jobs_until_it_is_resumed(
    queue: Queue, redis_url: str, prefix: str
) -> None:
    queue.pause()
    assert queue.is_paused()
    job = queue.add("n")
    with Worker("q", lambda job: "ran", redis_url, prefix, drain_delay=0.05) as worker:
        eventually(lambda: queue.get_workers())
        assert job.is_waiting()
        queue.resume()
        eventually(job.is_completed)
        assert worker.is_running
    assert not queue.is_paused()


def test_a_paused_list_of_version_5_is_merged_however_long(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    queue.pause()
    queue.add("n")
    redis_client.rpush(f"{prefix}:q:paused", *[f"old{n}" for n in range(15_000)])
    queue.resume()
    assert queue.get_job_counts()["waiting"] == 15_001
    assert not redis_client.exists(f"{prefix}:q:paused")
    assert [one["event"] for one in events(redis_client, prefix)].count("resumed") == 1


def test_maxed(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    assert not queue.is_maxed()
    redis_client.hset(f"{prefix}:q:meta", "concurrency", 1)
    assert not queue.is_maxed()
    redis_client.lpush(f"{prefix}:q:active", "1")
    assert queue.is_maxed()


# -- moving --------------------------------------------------------------------------------------


def test_a_delayed_job_is_promoted(queue: Queue) -> None:
    job = queue.add("n", delay=60)
    job.promote()
    assert (job.get_state(), job.delay) == ("waiting", 0)
    with pytest.raises(GeventqError, match=f"job {job.id}"):
        job.promote()
    prioritized = queue.add("n", delay=60, priority=5)
    prioritized.promote()
    assert prioritized.get_state() == "prioritized"


def test_all_delayed_jobs_are_promoted(queue: Queue) -> None:
    queue.add_bulk([JobSpec("n", options={"delay": 60})] * 1001)
    assert queue.promote_jobs() == 1001
    assert queue.get_job_counts()["waiting"] == 1001
    assert queue.promote_jobs() == 0


def test_the_delay_is_changed(queue: Queue) -> None:
    job = queue.add("n", delay=60)
    job.change_delay(120)
    read = queue.get_job(job.id)
    assert read is not None
    assert (job.delay, read.delay) == (120, 120)
    with pytest.raises(GeventqError):
        queue.add("n").change_delay(5)


def test_the_priority_is_changed(queue: Queue) -> None:
    first, second = queue.add("n", priority=5), queue.add("n", priority=5)
    third = queue.add("n")
    third.change_priority(5)
    assert [job.id for job in queue.get_prioritized()] == [first.id, second.id, third.id]
    third.change_priority(5, lifo=True)
    assert [job.id for job in queue.get_prioritized()] == [third.id, first.id, second.id]
    third.change_priority(0)
    assert (third.get_state(), third.priority) == ("waiting", 0)
    third.remove()
    with pytest.raises(GeventqError, match="does not exist"):
        third.change_priority(1)


def test_a_failed_job_is_retried_by_hand(
    queue: Queue, finish: collections.abc.Callable[[], None], redis_client: redis.Redis, prefix: str
) -> None:
    """cancellation.md 4.4: a retry by hand clears the recorded request and its `defa`."""
    job = queue.add("bad", priority=2)
    finish()
    key = f"{prefix}:q:{job.id}"
    record = {"reason": "r", "kind": "user", "hard": False, "retry": False, "at": 1, "atm": 0}
    redis_client.hset(key, mapping={"gqc": json.dumps(record), "defa": "Job cancelled: r"})
    failed = queue.get_job(job.id)
    assert failed is not None
    assert failed.cancellation is not None
    assert failed.cancellation.reason == "r"
    failed.retry()
    again = queue.get_job(job.id)
    assert again is not None
    assert again.get_state() == "prioritized"
    assert again.cancellation is failed.cancellation is None
    assert (again.failed_reason, again.finished_on, again.deferred_failure) == (None, None, None)
    assert again.attempts_made == 1
    with pytest.raises(GeventqError):
        again.retry()


def test_a_retry_can_count_from_the_beginning(
    queue: Queue, finish: collections.abc.Callable[[], None]
) -> None:
    job = queue.add("bad")
    finish()
    job.retry(reset_attempts_made=True, reset_attempts_started=True)
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.attempts_made, read.attempts_started) == (0, 0)


def test_a_lifo_job_is_retried_in_front(
    queue: Queue, finish: collections.abc.Callable[[], None]
) -> None:
    job = queue.add("bad", {"lifo": True}, lifo=True)
    finish()
    queue.add("n")
    job.retry()
    assert queue.get_waiting()[0].id == job.id


def test_all_failed_jobs_are_retried(
    queue: Queue, finish: collections.abc.Callable[[], None]
) -> None:
    queue.add_bulk([JobSpec("bad", options={"priority": 1}), JobSpec("bad"), JobSpec("n")])
    finish()
    assert queue.retry_jobs(until=5) == 0  # none of them ended in 1970
    assert queue.retry_jobs() == 2
    assert queue.retry_jobs("completed") == 1
    assert queue.get_job_counts()["waiting"] == 3
    with pytest.raises(ValueError, match="'active'"):
        queue.retry_jobs("active")
    with pytest.raises(TypeError, match="until: seconds since the epoch are needed"):
        queue.retry_jobs(until=datetime.timedelta(hours=1))  # type: ignore[arg-type]


# -- removing ------------------------------------------------------------------------------------


def test_a_removed_job_leaves_nothing(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    job = queue.add("n", delay=60)
    job.log("row")
    assert job.remove()
    assert queue.get_job(job.id) is None
    assert not list(redis_client.scan_iter(match=f"{prefix}:q:{job.id}*"))
    assert events(redis_client, prefix)[-1] == {
        "event": "removed",
        "jobId": job.id,
        "prev": "delayed",
    }


def test_a_running_job_is_not_removed(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    job = queue.add("n")
    redis_client.set(f"{prefix}:q:{job.id}:lock", "somebody", px=60_000)
    assert not queue.remove(job.id)
    assert queue.get_job(job.id) is not None


def test_a_policy_that_is_new_to_a_long_queue_does_not_stop_the_server(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """The work of one call is bounded: each end removes a thousand, until the count is reached."""
    key = f"{prefix}:q:completed"
    redis_client.zadd(key, {f"old{number}": number for number in range(2500)})
    make(lambda job: "ran")
    left = []
    for number in range(3):
        job = queue.add("n", number, remove_on_complete=10)
        assert job.wait_until_finished(20) == "ran"
        left.append(redis_client.zcard(key))
    assert left == [1500, 500, 10]
    assert redis_client.zscore(key, "old2499") is not None


# -- what a job tells ----------------------------------------------------------------------------


def test_progress_data_and_logs(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    job = queue.add("n", {"a": 1}, keep_logs=2)
    job.update_progress({"percent": 10, "who": "é"})
    job.update_data([1, 2])
    assert [job.log(row) for row in ("one", "two", "drei é")] == [1, 2, 2]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.progress, read.data) == ({"percent": 10, "who": "é"}, [1, 2])
    assert (job.progress, job.data) == (read.progress, read.data)
    assert queue.get_job_logs(job.id) == ["two", "drei é"]
    job.clear_logs(keep=1)
    assert queue.get_job_logs(job.id) == ["drei é"]
    job.clear_logs()
    assert queue.get_job_logs(job.id) == []
    assert events(redis_client, prefix)[-1]["event"] == "progress"


@pytest.mark.parametrize("method", ["update_progress", "update_data", "log", "clear_logs"])
def test_a_job_that_is_gone_is_not_written_to(
    queue: Queue, redis_client: redis.Redis, prefix: str, method: str
) -> None:
    job = queue.add("n")
    job.remove()
    argument = {"log": "row", "clear_logs": 1}.get(method, 5)
    with pytest.raises(GeventqError, match="does not exist"):
        getattr(job, method)(argument)
    assert not list(redis_client.scan_iter(match=f"{prefix}:q:{job.id}*"))


class Owner:
    """The run of a job, as far as writes need it."""

    def __init__(self, lock_token: str) -> None:
        self.lock_token = lock_token
        self.told: list[object] = []

    def progressed(self, job: Job, value: object) -> None:
        self.told.append(value)


@pytest.mark.parametrize("lock", [None, "another worker's", "mine"])
def test_writes_of_an_attempt_need_its_lock(
    queue: Queue, redis_client: redis.Redis, prefix: str, lock: str | None
) -> None:
    """3.4: an attempt whose lock was lost writes nothing."""
    job = queue.add("n", 1)
    owner = Owner("mine")
    job._owner = owner  # type: ignore[assignment]
    if lock is not None:
        redis_client.set(f"{prefix}:q:{job.id}:lock", lock)
    writes = (
        *(lambda: job.update_progress(2), lambda: job.update_data(2), lambda: job.log("row")),
    )
    for write in writes:
        if lock == "mine":
            write()
        else:
            with pytest.raises(LockLostError):
                write()
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.data, read.progress) == ((2, 2) if lock == "mine" else (1, 0))
    assert queue.get_job_logs(job.id) == (["row"] if lock == "mine" else [])
    assert owner.told == ([2] if lock == "mine" else [])


# -- closing -------------------------------------------------------------------------------------


def test_a_closed_queue_opens_again_when_it_is_used(queue: Queue) -> None:
    queue.add("n")
    queue.close()
    queue.close()
    assert queue.count() == 1
