"""2.6-2.8: a processor that raises what ends programs, that was never to run, or that returns what
cannot be used."""

from __future__ import annotations

import collections.abc
import datetime
import typing

import gevent
import gevent.event
import pytest

from geventq import (
    Cancellation,
    CancellationToken,
    DelayedError,
    Job,
    JobCancelled,
    JobKilled,
    LockLost,
    Queue,
    RateLimitError,
    Worker,
)
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.told import Told, ended, stream_of
from tests.support.waiting import eventually


@pytest.mark.parametrize("hard", [False, True])
def test_a_loop_that_logs_exceptions_does_not_eat_a_cancellation(
    queue: Queue, make: Make, hard: bool
) -> None:
    """1: neither `JobCancelled` nor `JobKilled` is an `Exception` or a `GreenletExit`."""
    logged: list[Exception | gevent.GreenletExit] = []
    inside = gevent.event.Event()

    def items(job: Job, token: CancellationToken) -> None:
        while True:
            try:
                inside.set()
                if hard:
                    gevent.sleep(60)
                token.sleep(0.001)
                raise ValueError("a bad item")
            except (Exception, gevent.GreenletExit) as error:
                logged.append(error)

    worker = make(items)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, "enough", hard=hard)
    error = told.wait("failed")[1]
    assert type(error) is (JobKilled if hard else JobCancelled)
    assert error.cancellation.reason == "enough"
    assert all(type(one) is ValueError for one in logged)


@pytest.mark.parametrize(
    ("foreign", "text"),
    [
        (Cancellation("deploy", "shutdown"), "Job cancelled: deploy"),
        (Cancellation(LockLost("7"), "lock_lost"), 'Job cancelled: {"lockLost": "7"}'),
    ],
)
def test_another_jobs_cancellation_is_a_failure_of_this_one(
    queue: Queue,
    make: Make,
    redis_client: typing.Any,
    prefix: str,
    foreign: Cancellation,
    text: str,
) -> None:
    """2.6: a processor waits for a greenlet of another job, whose `JobCancelled` comes out: this
    one was neither shut down nor has it lost its lock, so it fails by its own retry rules."""

    def process(job: Job) -> None:
        raise JobCancelled(foreign)

    told = Told(make(process))
    job = queue.add("n", attempts=2)
    told.wait("failed")
    assert told.of(job) == ["cancelled", "retrying", "cancelled", "failed"]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, read.attempts_made) == (text, 2)
    entry = stream_of(redis_client, prefix, job)[-1]
    assert (entry["event"], entry["kind"], entry["ms"]) == ("cancelled", foreign.kind, "0")


def test_an_escaped_timeout_is_a_failure(queue: Queue, make: Make) -> None:
    """2.6, 2.15: `gevent.Timeout` of the processor's own, although no `Exception`."""

    def process(job: Job) -> None:
        with gevent.Timeout(0.01):
            gevent.sleep(60)

    told = Told(make(process))
    job = queue.add("n")
    told.wait("failed")
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason == "0.01 seconds"


def test_a_keyboard_interrupt_goes_to_the_main_greenlet_and_the_job_back(
    queue: Queue, make: Make
) -> None:
    """2.6: the signal hit while the job's greenlet ran; the job is as if it had not been taken."""
    runs: list[int] = []

    def process(job: Job) -> str:
        runs.append(job.attempts_started)
        if len(runs) == 1:
            raise KeyboardInterrupt
        return "again"

    told = Told(make(process))
    with pytest.raises(KeyboardInterrupt):
        queue.add("n", job_id="n")  # where the job may be taken before the answer is here
        gevent.sleep(5)
    told.wait("completed")
    read = queue.get_job("n")
    assert read is not None
    assert (read.return_value, read.attempts_made, read.attempts_started) == ("again", 1, 1)
    assert told.of(read) == ["completed"]


def test_a_request_after_the_processor_returned_is_refused(
    queue: Queue, proxy: Proxy, prefix: str
) -> None:
    """2.7: the outcome is on its way (held back here): `cancel_job` is `False`, hard or soft."""
    trap = proxy.hold_request(lambda sent: load("settle").sha.encode() in sent and b'"ok"' in sent)
    with Worker("q", lambda job, token: "ok", proxy.url, prefix) as worker:
        job = queue.add("n")
        trap.wait()
        assert not worker.cancel_job(job.id, "late")
        assert not worker.cancel_job(job.id, "late", hard=True)
        assert worker.cancel_all_jobs("late", hard=True) == 0
        trap.release()
        eventually(lambda: queue.get_job_state(job.id) == "completed")


def test_a_kill_before_the_first_turn_runs_nothing(queue: Queue, make: Make) -> None:
    """2.8: neither the body nor a `finally`; the outcome is as for any cancelled job."""
    ran: list[str] = []
    worker = make(lambda job: ran.append(job.id))
    told = Told(worker)
    worker.on("active", lambda job: worker.cancel_job(job.id, "never mind", hard=True))
    job = queue.add("n", attempts=2)
    told.wait("failed")
    assert ran == []
    assert told.of(job) == ["cancelled", "retrying", "cancelled", "failed"]


def killed_late() -> None:
    gevent.spawn_later(0.02, gevent.getcurrent().kill)  # type: ignore[attr-defined]


def a_timeout_left_running() -> None:
    gevent.Timeout(0.02).start()


@pytest.mark.parametrize("leave", [killed_late, a_timeout_left_running])
def test_what_hits_the_greenlet_after_the_processor_changes_nothing(
    queue: Queue, make: Make, leave: collections.abc.Callable[[], None]
) -> None:
    """2.7: only user code can be killed.  A user's own late kill lands while the engine waits
    for a helper's cleanup: the result is stored and the slot is free."""
    cleaned: list[str] = []

    def cleans_up() -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.06)
            cleaned.append("up")

    def process(job: Job, token: CancellationToken) -> str:
        token.spawn(cleans_up)
        gevent.sleep(0)
        leave()
        return "done"

    worker = make(process)
    told = Told(worker)
    for _ in range(2):
        job = queue.add("n")
        eventually(lambda job=job: told.of(job) == ["completed"])  # type: ignore[misc]
    assert cleaned == ["up", "up"]
    assert worker.active_jobs == []


class Lazy(dict[str, object]):
    """A result whose reading fails, as a lazy query's can."""

    def items(self) -> typing.NoReturn:  # type: ignore[override]
        raise LookupError("the session is closed")


class Wordless(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit("no words")


def raise_it(error: BaseException) -> typing.NoReturn:
    raise error


def late(seconds: object) -> DelayedError:
    error = DelayedError(1)
    error.seconds = typing.cast(float, seconds)
    return error


@pytest.mark.parametrize(
    ("process", "text"),
    [
        pytest.param(lambda job: Lazy(a=1), "the session is closed", id="result"),
        pytest.param(lambda job: {"a": [float("nan")]}, "not JSON", id="NaN"),
        pytest.param(lambda job: raise_it(Wordless()), "Wordless", id="text"),
        pytest.param(lambda job: raise_it(DelayedError("soon")), "seconds", id="delay as text"),  # type: ignore[arg-type]
        pytest.param(lambda job: raise_it(DelayedError(-1)), "seconds", id="delay below 0"),
        pytest.param(
            lambda job: raise_it(RateLimitError(float("inf"))), "seconds", id="endless limit"
        ),
        pytest.param(lambda job: raise_it(late("soon")), "TypeError", id="delay changed later"),
    ],
)
def test_what_cannot_be_used_fails_its_job_and_nothing_else(
    queue: Queue, make: Make, process: typing.Any, text: str
) -> None:
    """Bad input from a processor: told in the job; the slot is free and the lock is gone."""
    worker = make(process)
    told = Told(worker)
    for _ in range(2):
        job = queue.add("n", attempts=1)
        eventually(lambda job=job: told.of(job) == ["failed"])  # type: ignore[misc]
        read = queue.get_job(job.id)
        assert read is not None
        assert text in (read.failed_reason or "") + read.stacktrace[-1]
    assert worker.active_jobs == []


def test_a_move_takes_a_timedelta(queue: Queue, make: Make) -> None:
    """All times are seconds or a `timedelta`."""
    make(lambda job: raise_it(DelayedError(datetime.timedelta(minutes=1))))
    job = queue.add("n")
    read = ended(queue, job, "delayed")
    assert read.delay == 60.0
