"""2.5, 2.6: what becomes of a job that was asked to stop.  A request is made while the processor
waits, then the processor ends by itself."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest

from geventq import (
    CancellationToken,
    DelayedError,
    Job,
    JobCancelled,
    JobKilled,
    Queue,
    RateLimitError,
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
