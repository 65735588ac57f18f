"""What becomes of an attempt: the one place that makes an outcome of what the processor left
behind, a result or an error, and of what was asked of the attempt.

The rules are cancellation.md 2.5, 2.6, 2.15 and 7.1.  Pure decisions: no Redis, no greenlets.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.codec import encode
from geventq.errors import (
    DelayedError,
    JobCancelled,
    JobKilled,
    RateLimitError,
    UnrecoverableError,
    WaitingChildrenError,
    WaitingError,
)
from geventq.worker.run.outcome import (
    COMPLETE,
    DELAY,
    WAIT,
    Outcome,
    Strategies,
    completion,
    encoded,
    failure,
    give_back,
    lost,
    move,
)
from geventq.worker.run.traces import printable_text

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.worker.run.execution import Execution

__all__ = ["NotEnded", "decide", "decide_again"]


class NotEnded(Exception):
    """Stands for the error of an attempt that its processor did not end: it was not begun, or
    this worker lost its way with it.  The job goes back, unless somebody wants it to stop."""


def decide(
    execution: Execution,
    result: object,
    error: BaseException | None,
    ended_ms: int,
    strategies: Strategies,
    *,
    is_plain: bool = False,
) -> Outcome:
    """The outcome of an attempt that returned `result` or raised `error`.

    What was asked of it is ``execution.attempt.strongest``.  May call the user's back-off
    strategy, and the methods of what he returned or raised: what those raise becomes a final
    failure whose trace shows both.  `is_plain` for a failure that any script can read, because
    another outcome could not be.  Never raises, and never yields by itself.
    """
    if result is None and error is None and execution.attempt.strongest is None:
        return completion(execution, "null", ended_ms)  # as `_Ending` would: most jobs, kept cheap
    ending = _Ending(execution, ended_ms, strategies, is_plain=is_plain)
    try:
        return ending.returned(result) if error is None else ending.raised(error)
    except BaseException as broken:  # noqa: BLE001 (an attempt without an outcome never ends)
        broken.__context__ = error
        return ending.broken(broken)


def decide_again(execution: Execution, outcome: Outcome, strategies: Strategies) -> Outcome:
    """What becomes of `outcome`, which was not carried out, because the job had a request that
    nobody here knew (2.5); by now it is in ``execution.attempt.strongest``.  As `decide`."""
    request = execution.attempt.strongest
    is_move = outcome.kind in (WAIT, DELAY) and not outcome.value
    if request is None or (is_move and request.retry):
        return outcome
    ending = _Ending(execution, outcome.ended_ms, strategies, is_plain=outcome.is_plain)
    if outcome.kind == COMPLETE:
        ending.ignored(outcome, request)
        return outcome
    error: BaseException = outcome.error or NotEnded("it goes back")
    if is_move:
        error = JobCancelled(request)
    try:
        return ending.raised(error)
    except BaseException as broken:  # noqa: BLE001 (as above)
        broken.__context__ = error
        return ending.broken(broken)


_MOVES: typing.Final = (DelayedError, WaitingError, RateLimitError, WaitingChildrenError)


class _Ending:
    """The end of one attempt, and the request that it answers.

    Every exit that is no success goes through `_failed` or `_stopped`: whatever else goes wrong,
    a request that forbids a retry is never forgotten on the way.
    """

    __slots__ = ("_attempt", "_ended_ms", "_execution", "_is_plain", "_request", "_strategies")

    def __init__(
        self, execution: Execution, ended_ms: int, strategies: Strategies, *, is_plain: bool
    ) -> None:
        self._execution = execution
        self._attempt = execution.attempt
        self._request = execution.attempt.strongest
        self._ended_ms = ended_ms
        self._strategies = strategies
        self._is_plain = is_plain

    def returned(self, result: object) -> Outcome:
        """The processor returned.  A result counts, whatever was asked: cancellation is
        cooperative (2.5); but not after a kill, and not without the lock."""
        request = self._request
        if request is not None and (self._lock_is_lost(request) or self._attempt.was_thrown):
            return self._stopped(request, JobCancelled(request))
        try:
            value = encoded(result)
        except (TypeError, ValueError) as error:  # this text beats losing what the job did
            # Its frames, and their callers', hold the result, which may be anything (2.13).
            error.__context__ = None
            error = error.with_traceback(None)
            return self._failed(error)
        outcome = completion(self._execution, value, self._ended_ms, result)
        if request is not None:
            self.ignored(outcome, request)
        return outcome

    def ignored(self, outcome: Outcome, request: Cancellation) -> None:
        """The result came first."""
        self._add_event(outcome, "cancel-ignored", request)

    def raised(self, error: BaseException) -> Outcome:
        """The processor raised `error`."""
        request = self._request
        if request is not None and (self._lock_is_lost(request) or self._attempt.was_thrown):
            return self._stopped(request, error)
        if isinstance(error, JobCancelled):
            if request is None:
                # Raised by itself, a `link`'s deadline, or another job's: whatever its kind
                # says, this job was neither shut down nor has it lost its lock.
                return self._cancelled(error.cancellation, error)
            return self._stopped(request, error)
        if isinstance(error, KeyboardInterrupt | NotEnded):
            return self._interrupted(error)
        if not isinstance(error, _MOVES):
            return self._failed(error)
        if request is None or request.retry:
            return self._moved(error)
        cancelled = JobCancelled(request)  # as where the request was heard of later
        cancelled.__cause__ = error
        return self._cancelled(request, cancelled)

    def broken(self, error: BaseException) -> Outcome:
        """No outcome could be made, because of what the processor left behind: fail for good."""
        outcome = failure(self._execution, error, self._ended_ms, {}, final=True)
        request = self._request
        if request is not None and request.kind != "shutdown":
            outcome.cancellation = request
        return outcome

    def _stopped(self, request: Cancellation, error: BaseException) -> Outcome:
        """It did what was asked of it, or was made to (2.5, 2.6, 3.4, 7.1)."""
        if self._lock_is_lost(request):
            return lost(self._ended_ms, request)
        if request.kind == "shutdown":
            return self._given_back(request, error)
        return self._cancelled(request, error)

    def _lock_is_lost(self, request: Cancellation) -> bool:
        return self._attempt.was_lock_lost or request.kind == "lock_lost"

    def _interrupted(self, error: BaseException) -> Outcome:
        """It did not come to its end, and goes back (7.1); not if somebody wants the job to
        stop, for he may have been told that it does."""
        request = self._request
        if request is not None and request.kind not in ("shutdown", "timeout"):
            if isinstance(error, NotEnded):
                error = JobCancelled(request)
            return self._cancelled(request, error)
        return self._given_back(request, error)

    def _cancelled(self, request: Cancellation, error: BaseException) -> Outcome:
        """A failure with the text of what was asked (2.6)."""
        self._request = request
        if type(error) in (JobCancelled, JobKilled):
            error = _with(error, request)
        return self._failed(error, text=request.failed_reason())

    def _failed(self, error: BaseException, *, text: str | None = None) -> Outcome:
        """A failure, by the job's own retry rules; it answers the request, if there is one, which
        may forbid a retry."""
        request = self._request
        if request is not None and request.kind == "shutdown" and text is None:
            return self._given_back(request, error)
        outcome = failure(
            self._execution,
            error,
            self._ended_ms,
            self._strategies,
            final=self._is_plain or (request is not None and not request.retry),
            text=text,
            is_plain=self._is_plain,
        )
        if request is not None:
            outcome.cancellation = request
            if not self._is_plain:  # a reason is somebody's text as well
                self._add_event(outcome, "cancelled", request)
        return outcome

    def _given_back(self, request: Cancellation | None, error: BaseException) -> Outcome:
        outcome = give_back(self._execution, self._ended_ms)
        outcome.error = error
        if request is not None:
            outcome.cancellation = request
            self._add_event(outcome, "cancelled", request)
        return outcome

    def _moved(self, error: BaseException) -> Outcome:
        """The outcome of a processor that asks for its job to be moved."""
        if isinstance(error, DelayedError):
            return move(self._execution, self._ended_ms, error.seconds, error)
        if not isinstance(error, WaitingChildrenError):
            return move(self._execution, self._ended_ms, None, error)
        refusal = UnrecoverableError(
            "WaitingChildrenError: not supported yet, a job has no children to wait for"
        )
        refusal.__cause__ = error
        return self._failed(refusal)

    def _add_event(self, outcome: Outcome, name: str, request: Cancellation) -> None:
        """Add the stream's own event about a cancellation (5.5)."""
        attempt = self._attempt
        since = attempt.requested_monotonic  # 0 for a job that says of itself that it is cancelled
        waited = max(0.0, clock.monotonic() - since) if since else 0.0
        reason = request.to_json()["reason"]
        if not isinstance(reason, str):
            reason = encode("reason", reason).decode()
        more = outcome.more = outcome.more or {}
        more["event"] = [
            *("event", name, "jobId", self._execution.job_id, "reason", printable_text(reason)),
            *("kind", request.kind, "stage", attempt.stage or "seen"),
            *("ms", str(round(waited * 1000))),
        ]
        heard = self._execution.heard
        if heard is not None and heard.refused:  # who waits may hear of the end first
            more["event"] += ["refused", " ".join(heard.refused)]


def _with(error: BaseException, request: Cancellation) -> BaseException:
    """What a token raised, who keeps the first request, with the one that decides (2.2)."""
    assert isinstance(error, JobCancelled)
    if error.cancellation == request:
        return error
    told = type(error)(request).with_traceback(error.__traceback__)
    told.__cause__, told.__context__ = error.__cause__, error.__context__
    told.__suppress_context__ = error.__suppress_context__
    return told
