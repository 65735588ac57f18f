"""2.5-2.8: what becomes of a job that was asked to stop, and of one that raises what ends
programs.  A request is made while the processor waits, then the processor ends by itself."""

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
    WaitingError,
    Worker,
)
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.told import Told, stream_of
from tests.support.waiting import eventually


class Held:
    """A processor that waits for `go`, then returns `end` or raises it; later runs return
    ``"again"``."""

    def __init__(self, end: object) -> None:
        self.inside = gevent.event.Event()
        self.go = gevent.event.Event()
        self.runs = 0
        self._end = end

    def __call__(self, job: Job, token: CancellationToken) -> object:
        self.runs += 1
        if self.runs > 1:
            return "again"
        self.inside.set()
        self.go.wait()
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end


class Asked:
    """A job on a worker of its own that was asked to stop and then ended with `end`."""

    def __init__(
        self, queue: Queue, make: Make, end: object, *, retry: bool, attempts: int = 2
    ) -> None:
        self._queue = queue
        self.held = Held(end)
        self.worker = make(self.held)
        self.told = Told(self.worker)
        job = queue.add("n", attempts=attempts)
        self.held.inside.wait()
        assert self.worker.cancel_job(job.id, "why", retry=retry)
        self.held.go.set()
        self.job = job

    def ended(self, state: str) -> Job:
        eventually(lambda: self._queue.get_job_state(self.job.id) == state)
        read = self._queue.get_job(self.job.id)
        assert read is not None
        return read


Ask = collections.abc.Callable[..., Asked]


@pytest.fixture
def ask(queue: Queue, make: Make) -> Ask:
    return lambda end, **options: Asked(queue, make, end, **options)


@pytest.mark.parametrize("retry", [True, False])
def test_a_result_counts(ask: Ask, redis_client: typing.Any, prefix: str, retry: bool) -> None:
    """2.5: the event stream tells that the request was ignored, with its kind and stage."""
    asked = ask("done", retry=retry)
    read = asked.ended("completed")
    assert (read.return_value, read.attempts_made) == ("done", 1)
    asked.told.wait("completed")
    assert asked.told.of(asked.job) == ["completed"]
    (ignored,) = [
        fields
        for fields in stream_of(redis_client, prefix, asked.job)
        if fields["event"] == "cancel-ignored"
    ]
    assert int(ignored.pop("ms")) >= 0
    assert ignored == {
        "event": "cancel-ignored",
        "jobId": asked.job.id,
        "reason": "why",
        "kind": "user",
        "stage": "seen",
    }


def test_an_error_of_its_own_is_retried_where_the_request_allows(
    ask: Ask, redis_client: typing.Any, prefix: str
) -> None:
    """2.5: it keeps its text, but answers the request."""
    asked = ask(ValueError("the query was cancelled"), retry=True)
    read = asked.ended("completed")
    assert (read.return_value, read.attempts_made) == ("again", 2)
    assert read.failed_reason == "the query was cancelled"
    asked.told.wait("completed")
    assert asked.told.of(asked.job) == ["cancelled", "retrying", "completed"]
    stream = [fields["event"] for fields in stream_of(redis_client, prefix, asked.job)]
    assert "cancelled" in stream


def test_an_error_of_its_own_is_final_where_the_request_forbids_a_retry(
    ask: Ask, redis_client: typing.Any, prefix: str
) -> None:
    """2.5: `retry=False` is final whatever attempts are left."""
    asked = ask(ValueError("the query was cancelled"), retry=False, attempts=5)
    read = asked.ended("failed")
    assert (read.failed_reason, read.attempts_made) == ("the query was cancelled", 1)
    asked.told.wait("failed")
    assert asked.told.of(asked.job) == ["cancelled", "failed"]
    events = stream_of(redis_client, prefix, asked.job)
    assert [fields["event"] for fields in events][-2:] == ["failed", "cancelled"]
    assert events[-1]["reason"] == "why"
    assert "retries-exhausted" not in [fields["event"] for fields in events]


MOVES: typing.Final = [
    pytest.param(DelayedError(60), "delayed", id="delayed"),
    pytest.param(RateLimitError(60), "waiting", id="rate limit"),
    pytest.param(WaitingError(), "completed", id="waiting, and run again"),
]


@pytest.mark.parametrize(("move", "state"), MOVES)
def test_a_move_is_done_where_the_request_allows_a_retry(
    ask: Ask, move: Exception, state: str
) -> None:
    """2.5: the move is made as if nobody had asked; the attempt is not counted."""
    asked = ask(move, retry=True)
    read = asked.ended(state)
    assert read.failed_reason is None
    assert read.attempts_made == (1 if state == "completed" else 0)
    assert "cancelled" not in asked.told.of(asked.job)


@pytest.mark.parametrize(("move", "state"), MOVES)
def test_instead_of_a_move_the_job_is_cancelled_where_a_retry_is_forbidden(
    ask: Ask, move: Exception, state: str
) -> None:
    """2.5: a job that may not run again is not moved to where it would."""
    asked = ask(move, retry=False)
    read = asked.ended("failed")
    assert read.failed_reason == "Job cancelled: why"
    asked.told.wait("failed")
    assert asked.told.of(asked.job) == ["cancelled", "failed"]
    assert asked.held.runs == 1


@pytest.mark.parametrize("end", ["done", ValueError("own"), DelayedError(60)], ids=repr)
def test_after_a_throw_whatever_comes_out_counts_as_cancelled(
    queue: Queue, make: Make, end: object
) -> None:
    """2.5: the kill is caught, and the processor returns, fails or moves as if nothing were."""
    inside = gevent.event.Event()

    def swallows(job: Job) -> object:
        inside.set()
        try:
            gevent.sleep(60)
        except JobKilled:
            if isinstance(end, BaseException):
                raise end from None
        return end

    worker = make(swallows)
    told = Told(worker)
    job = queue.add("n", attempts=1)
    inside.wait()
    assert worker.cancel_job(job.id, "why", hard=True)
    told.wait("failed")
    assert told.of(job) == ["cancelled", "failed"]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, read.return_value) == ("Job cancelled: why", None)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (None, "Job cancelled"),
        ("", "Job cancelled"),
        ("by user 7", "Job cancelled: by user 7"),
        ({"user": 7, "näme": "é"}, 'Job cancelled: {"user": 7, "näme": "é"}'),
        (0, "Job cancelled: 0"),
    ],
)
def test_the_failed_reason_tells_the_reason(
    queue: Queue, make: Make, reason: object, text: str
) -> None:
    """2.6: text as it is, other values as JSON, nothing for none."""
    worker = make(lambda job, token: token.sleep(60))
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: worker.cancel_job(job.id, reason))
    told.wait("failed")
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason == text
    assert told.cancellation().reason == reason


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


def test_a_job_that_says_of_itself_that_it_is_cancelled(queue: Queue, make: Make) -> None:
    """2.6: `token.cancel()` in the job itself, raised at its next check, which raises again."""
    raised: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        assert token.cancel("no need")
        for _ in range(2):  # 2.3: level-triggered
            try:
                token.raise_if_cancelled()
            except JobCancelled as error:
                raised.append(str(error))
        token.raise_if_cancelled()

    told = Told(make(process))
    job = queue.add("n", attempts=1)
    told.wait("failed")
    assert raised == ["Job cancelled: no need"] * 2
    assert told.of(job) == ["cancelled", "failed"]


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
    held = Held(KeyboardInterrupt())
    worker = make(held)
    told = Told(worker)
    job = queue.add("n")
    held.inside.wait()
    held.go.set()
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(5)
    told.wait("completed")
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.return_value, read.attempts_made, read.attempts_started) == ("again", 1, 1)
    assert told.of(job) == ["completed"]


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
    """api: all times are seconds or a `timedelta`."""
    make(lambda job: raise_it(DelayedError(datetime.timedelta(minutes=1))))
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "delayed")
    read = queue.get_job(job.id)
    assert read is not None
    assert read.delay == 60.0
