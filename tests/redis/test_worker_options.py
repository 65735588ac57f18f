"""The options of a worker and what may be changed while it runs, by their effects."""

from __future__ import annotations

import time
import typing

import gevent
import gevent.event
import gevent.queue
import pytest

from geventq import CancellationToken, Job, JobSpec, Queue, Worker
from tests.conftest import Make
from tests.support.native import in_native_thread
from tests.support.told import Told, ended
from tests.support.waiting import eventually


class Crowd:
    """Jobs that stay inside until they are let go; `most` were inside at once."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.most = 0
        self._go: gevent.queue.Queue[None] = gevent.queue.Queue()

    def __call__(self, job: Job) -> None:
        self.inside.append(job.id)
        self.most = max(self.most, len(self.inside))
        self._go.get()
        self.inside.remove(job.id)

    def let_go(self, count: int) -> None:
        for _ in range(count):
            self._go.put(None)


# -- concurrency, pause --------------------------------------------------------------------------


def test_concurrency_goes_up_and_down_while_running(queue: Queue, make: Make) -> None:
    """More takes effect at once, fewer as jobs end."""
    crowd = Crowd()
    worker = make(crowd, concurrency=2)
    queue.add_bulk([JobSpec("n") for _ in range(20)])
    eventually(lambda: len(crowd.inside) == 2)
    worker.concurrency = 6
    eventually(lambda: len(crowd.inside) == 6)
    worker.concurrency = 1
    crowd.most = 0
    crowd.let_go(5)
    eventually(lambda: len(crowd.inside) == 1)
    crowd.let_go(3)
    eventually(lambda: queue.get_job_counts()["completed"] == 8)
    eventually(lambda: len(crowd.inside) == 1)
    assert crowd.most <= 6
    crowd.most = 0
    crowd.let_go(1)
    eventually(lambda: queue.get_job_counts()["completed"] == 9)
    eventually(lambda: crowd.most)
    assert crowd.most == 1
    crowd.let_go(11)
    eventually(lambda: queue.get_job_counts()["completed"] == 20)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
def test_a_bad_concurrency_is_refused_while_running(make: Make, value: typing.Any) -> None:
    worker = make(lambda job: None, concurrency=3)
    with pytest.raises((TypeError, ValueError), match="concurrency"):
        worker.concurrency = value
    assert worker.concurrency == 3


def test_a_paused_worker_finishes_what_runs_and_takes_nothing(queue: Queue, make: Make) -> None:
    crowd = Crowd()
    worker = make(crowd, concurrency=5)
    first = queue.add("n")
    eventually(lambda: crowd.inside)
    worker.pause()
    assert (worker.is_paused, worker.is_running) == (True, True)
    second = queue.add("n")
    crowd.let_go(1)
    ended(queue, first, "completed")
    gevent.sleep(0.05)
    assert queue.get_job_state(second.id) == "waiting"
    worker.resume()
    eventually(lambda: crowd.inside == [second.id])
    crowd.let_go(1)
    ended(queue, second, "completed")


def test_autorun_starts_in_the_constructor(queue: Queue, redis_url: str, prefix: str) -> None:
    worker = Worker("q", lambda job: "ran", redis_url, prefix, autorun=True)
    try:
        assert worker.is_running
        ended(queue, queue.add("n"), "completed")
    finally:
        worker.close()


@pytest.mark.slow
def test_drain_delay_is_how_long_it_waits_for_work(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """A job that was pushed without a marker, as very old programs do, is found at the end of the
    wait, not before and not never."""
    told = Told(make(lambda job: None, drain_delay=2.0))
    told.wait("drained")
    gevent.sleep(0.1)
    redis_client.hset(f"{prefix}:q:old", mapping={"name": "n", "data": "{}", "opts": "{}"})
    pushed = time.perf_counter()
    redis_client.lpush(f"{prefix}:q:wait", "old")
    eventually(lambda: queue.get_job_state("old") == "completed")
    assert time.perf_counter() - pushed > 0.2


# -- names ---------------------------------------------------------------------------------------


def test_a_named_worker_is_found_and_signs_what_it_takes(queue: Queue, make: Make) -> None:
    """`get_workers` tells names; `processed_by` says who took a job last."""
    make(lambda job: None, name="painter")
    job = ended(queue, queue.add("n"), "completed")
    assert job.processed_by == "painter"
    make(lambda job: None)
    eventually(lambda: sorted(worker["name"] for worker in queue.get_workers()) == ["", "painter"])


@pytest.mark.parametrize("name", ["two words", "zoë", "line\n"])
def test_a_name_that_redis_would_not_take_for_a_connection_is_refused(name: str) -> None:
    """Else the worker runs, and each of its waits fails."""
    with pytest.raises(ValueError, match=r"^name: must be printable ASCII without spaces, got "):
        Worker("q", lambda job: None, name=name)


# -- attempts ------------------------------------------------------------------------------------


def test_max_started_attempts_counts_stalls_too(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """A job that took its worker down twice (`ats` 2, `atm` 0) is failed unrun at its third."""
    ran: list[str] = []
    job = queue.add("n", attempts=10)
    redis_client.hset(f"{prefix}:q:{job.id}", "ats", 2)
    make(lambda job: ran.append(job.id), max_started_attempts=2)
    read = ended(queue, job, "failed")
    assert (ran, read.failed_reason) == ([], "job started more than allowable limit")


def test_max_started_attempts_ends_retries(queue: Queue, make: Make) -> None:
    """Of ten attempts two are made; the second failure is final."""

    def fails(job: Job) -> None:
        raise ValueError(f"try {job.attempts_started}")

    told = Told(make(fails, max_started_attempts=2))
    read = ended(queue, queue.add("n", attempts=10), "failed")
    assert (read.failed_reason, read.attempts_made) == ("try 2", 2)
    assert len(read.stacktrace) == 2
    told.wait("failed")
    assert told.of(read) == ["retrying", "failed"]


def raises(error: BaseException) -> typing.Callable[..., float]:
    def strategy(made: int, error_of_job: BaseException, job: Job) -> float:
        raise error

    return strategy


def times_out(made: int, error: BaseException, job: Job) -> float:
    with gevent.Timeout(0.01):
        gevent.sleep(5)
    return 0


def test_a_named_backoff_gets_attempts_error_and_job(queue: Queue, make: Make) -> None:
    """`fn(attempts_made, error, job) -> seconds`, 1 after the first attempt."""
    asked: list[tuple[int, str, str]] = []

    def strategy(made: int, error: BaseException, job: Job) -> float:
        asked.append((made, str(error), job.id))
        return 0.01

    def fails(job: Job) -> None:
        raise ValueError(f"after {job.attempts_made}")

    make(fails, backoff_strategies={"mine": strategy})
    job = queue.add("n", attempts=3, backoff={"type": "mine"})
    ended(queue, job, "failed")
    assert asked == [(1, "after 0", job.id), (2, "after 1", job.id)]


def test_a_negative_backoff_fails_the_job_now(queue: Queue, make: Make) -> None:
    make(lambda job: 1 / 0, backoff_strategies={"never": lambda made, error, job: -1})
    read = ended(queue, queue.add("n", attempts=5, backoff={"type": "never"}), "failed")
    assert (read.failed_reason, read.attempts_made) == ("division by zero", 1)


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        pytest.param(raises(KeyError("no such table")), "'no such table'", id="an error"),
        pytest.param(raises(SystemExit(3)), "3", id="SystemExit"),
        pytest.param(times_out, "0.01 seconds", id="gevent.Timeout"),
        pytest.param(lambda *_: "soon", "soon", id="no number"),
        pytest.param(lambda *_: float("nan"), "nan", id="NaN"),
    ],
)
def test_a_backoff_that_fails_fails_the_job_and_shows_both(
    queue: Queue, make: Make, strategy: typing.Any, text: str
) -> None:
    """The worker goes on; the trace shows the strategy's error and the job's."""
    worker = make(lambda job: 1 / 0, backoff_strategies={"bad": strategy})
    for _ in range(2):
        job = queue.add("n", attempts=5, backoff={"type": "bad"})
        read = ended(queue, job, "failed")
        assert read.attempts_made == 1
        assert read.failed_reason == "division by zero"
        assert text in read.stacktrace[-1]
        assert "ZeroDivisionError" in read.stacktrace[-1]
    assert worker.active_jobs == []


def test_an_unknown_backoff_fails_the_job_and_is_named(queue: Queue, make: Make) -> None:
    make(lambda job: 1 / 0)
    read = ended(queue, queue.add("n", attempts=5, backoff={"type": "elsewhere"}), "failed")
    assert (read.failed_reason, read.attempts_made) == ("division by zero", 1)
    assert "elsewhere" in read.stacktrace[-1]


# -- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "jobs", "kept"),
    [
        pytest.param(None, None, 4, id="all by default"),
        pytest.param(True, None, 0, id="none"),
        pytest.param(2, None, 2, id="a count"),
        pytest.param({"count": 3}, None, 3, id="a count by name"),
        pytest.param(True, False, 4, id="the job's own policy wins"),
        pytest.param(False, 1, 1, id="also the other way"),
    ],
)
@pytest.mark.parametrize("state", ["completed", "failed"])
def test_removal_policies(
    queue: Queue, make: Make, state: str, workers: object, jobs: typing.Any, kept: int
) -> None:
    """The worker's are defaults; the newest are kept, and the keys of the others are gone."""
    name = "remove_on_complete" if state == "completed" else "remove_on_fail"
    told = Told(make(lambda job: None if state == "completed" else 1 / 0, **{name: workers}))
    options = {} if jobs is None else {name: jobs}
    added = [queue.add("n", **options) for _ in range(4)]
    eventually(lambda: len(told.args(state)) == 4)
    assert queue.get_job_counts()[state] == kept
    left = [job.id for job in added if queue.get_job(job.id) is not None]
    assert left == [job.id for job in added[4 - kept :]]


@pytest.mark.slow
def test_a_removal_policy_by_age(queue: Queue, make: Make) -> None:
    """What ended more than half a second before goes when the next one ends."""
    told = Told(make(lambda job: None, remove_on_complete={"age": 0.5}))
    old = queue.add("n")
    told.wait("completed")
    gevent.sleep(1.1)  # ages count in whole seconds on the wire
    new = queue.add("n")
    eventually(lambda: len(told.args("completed")) == 2)
    assert queue.get_job(old.id) is None
    assert queue.get_job(new.id) is not None


# -- native threads ------------------------------------------------------------------------------


def test_a_worker_may_be_steered_from_any_native_thread(queue: Queue, make: Make) -> None:
    """Cancel_job, cancel_all_jobs, pause, resume and concurrency, while its own thread gives
    the hub turns; patched or not."""
    inside: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        inside.append(job.id)
        token.sleep(60)

    worker = make(process)
    told = Told(worker)
    jobs = queue.add_bulk([JobSpec("n") for _ in range(3)])
    eventually(lambda: len(inside) == 1)

    def more() -> None:
        worker.concurrency = 2

    in_native_thread(more)
    eventually(lambda: len(inside) == 2)
    in_native_thread(worker.pause)
    assert in_native_thread(lambda: worker.cancel_job(inside[0], "from a thread")) is True
    assert in_native_thread(lambda: worker.cancel_job("unknown")) is False
    assert in_native_thread(lambda: worker.cancel_all_jobs(hard=True)) == 1
    eventually(lambda: len(told.args("failed")) == 2)
    assert len(inside) == 2
    in_native_thread(worker.resume)
    eventually(lambda: len(inside) == 3)
    assert in_native_thread(worker.cancel_all_jobs) == 1
    eventually(lambda: len(told.args("failed")) == 3)
    assert {job.id for job, _ in told.args("failed")} == {job.id for job in jobs}
