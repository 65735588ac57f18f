"""2.5, 2.6: what becomes of a job that was asked to stop.  A request is made while the processor
waits, then the processor ends by itself."""

from __future__ import annotations

import collections.abc
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
    Queue,
    RateLimitError,
    WaitingChildrenError,
    WaitingError,
)
from tests.conftest import Make
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


class Unspeakable(Exception):
    """Whose text, and class, cannot be asked for."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def __class__(self) -> typing.Any:  # type: ignore[override]
        raise RuntimeError("no class")


# Made when they are needed: nobody else can bear to meet the liar.
BAD_ENDS: typing.Final = [
    pytest.param(lambda: object(), id="a result that is not JSON"),
    pytest.param(lambda: {"x": float("nan")}, id="a result with NaN"),
    pytest.param(lambda: "x" * 2000, id="a result that is too large"),
    pytest.param(lambda: Unspeakable(), id="an error that lies about itself"),
    pytest.param(lambda: KeyError("\ud83d"), id="an error with half a character"),
    pytest.param(lambda: SystemExit(0), id="sys.exit"),
    pytest.param(lambda: gevent.Timeout(1), id="a timeout of its own"),
    pytest.param(lambda: gevent.GreenletExit(), id="greenlet exit"),
    pytest.param(
        lambda: JobCancelled(Cancellation("itself", "shutdown")), id="its own cancellation"
    ),
    pytest.param(lambda: DelayedError(0), id="a move"),
    pytest.param(lambda: WaitingChildrenError(), id="a move that there is not yet"),
]


@pytest.mark.parametrize("end", BAD_ENDS)
def test_a_request_that_forbids_a_retry_stays_whatever_else_goes_wrong(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, end: typing.Callable[[], object]
) -> None:
    """2.5, 2.6: who was told True is never wrong: the job does not run again, and its end answers
    the request."""
    monkeypatch.setattr("geventq.worker.run.outcome.LARGEST", 1000)
    asked = ask(end(), retry=False, attempts=5)
    read = asked.ended("failed")
    asked.told.wait("failed")
    assert (asked.held.runs, read.attempts_made) == (1, 1)
    assert asked.told.of(asked.job) == ["cancelled", "failed"]
    assert asked.told.cancellation().reason == "why"


@pytest.mark.parametrize("how", ["the strategy raises", "the outcome cannot be made"])
def test_a_request_stays_where_no_outcome_can_be_made(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """2.6: the user's back-off strategy is broken, or making an outcome meets a defect of ours."""
    strategies = {"broken": lambda *args: 1 / 0}
    if how == "the outcome cannot be made":
        failing = iter([RuntimeError("a defect of ours")])

        def add_event(self: object, *args: object) -> None:
            for error in failing:
                raise error

        monkeypatch.setattr("geventq.worker.run.decide._Ending._add_event", add_event)
    held = Held(ValueError("its own"))
    worker = make(held, backoff_strategies=strategies)
    told = Told(worker)
    job = queue.add("n", attempts=5, backoff={"type": "broken"})
    held.inside.wait()
    assert worker.cancel_job(job.id, "why", retry=how == "the strategy raises")
    held.go.set()
    told.wait("failed")
    assert told.of(job) == ["cancelled", "failed"]
    assert held.runs == 1
    assert queue.get_job_state(job.id) == "failed"


def test_a_job_that_is_cancelled_and_interrupted_does_not_come_back(
    queue: Queue, make: Make
) -> None:
    """2.6, 7.1: Ctrl-C hits a job that somebody has cancelled for good: the main greenlet gets it,
    and the job, which would go back else, ends as it was told."""
    held = Held(KeyboardInterrupt())
    worker = make(held)
    told = Told(worker)
    job = queue.add("n", attempts=5)
    held.inside.wait()
    assert worker.cancel_job(job.id, "why", retry=False)
    with pytest.raises(KeyboardInterrupt):
        held.go.set()
        gevent.sleep(20)
    told.wait("failed")
    assert told.of(job) == ["cancelled", "failed"]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, held.runs) == ("Job cancelled: why", 1)


def test_a_request_stays_where_the_result_is_refused_for_pending_children(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """2.5: a result counts, but this one cannot be stored: then the failure is final."""
    held = Held("done")
    worker = make(held)
    told = Told(worker)
    job = queue.add("n", attempts=5)
    held.inside.wait()
    redis_client.sadd(f"{prefix}:q:{job.id}:dependencies", f"{prefix}:q:child")
    assert worker.cancel_job(job.id, "why", retry=False)
    held.go.set()
    told.wait("failed")
    assert told.of(job) == ["cancelled", "failed"]
    assert held.runs == 1
    assert queue.get_job_state(job.id) == "failed"


def test_a_job_cannot_wait_for_children_yet(queue: Queue, make: Make) -> None:
    """It fails for good, with a text that names the error."""
    held = Held(WaitingChildrenError())
    told = Told(make(held))
    job = queue.add("n", attempts=5)
    held.go.set()
    told.wait("failed")
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.get_state(), held.runs) == ("failed", 1)
    assert (read.failed_reason or "").startswith("WaitingChildrenError: not supported yet")


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


@pytest.mark.parametrize(
    ("move", "state"), [*MOVES, pytest.param(WaitingChildrenError(), "", id="children")]
)
def test_instead_of_a_move_the_job_is_cancelled_where_a_retry_is_forbidden(
    ask: Ask, move: Exception, state: str
) -> None:
    """2.5: a job that may not run again is not moved to where it would; listeners hear of the
    cancellation, as whoever reads the job does."""
    asked = ask(move, retry=False)
    read = asked.ended("failed")
    assert read.failed_reason == "Job cancelled: why"
    asked.told.wait("failed")
    assert asked.told.of(asked.job) == ["cancelled", "failed"]
    ((_, error),) = asked.told.args("failed")
    assert isinstance(error, JobCancelled)
    assert (str(error), error.__cause__) == (read.failed_reason, move)
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


def test_a_job_that_says_of_itself_that_it_is_cancelled(queue: Queue, make: Make) -> None:
    """2.3, 2.6: `token.cancel()` in the job itself, raised at its next check, and again at the
    one after it."""
    raised: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        assert token.cancel("no need")
        for _ in range(2):
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
