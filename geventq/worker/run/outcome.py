"""What becomes of an attempt: pure decisions, no Redis, no greenlets.

`decide` looks at what the processor left behind (a result or an exception) and at what was asked
of the attempt, and answers one `Outcome`: complete, fail, retry, move or give back.  The rules
are cancellation.md 2.5, 2.6, 2.15 and 7.1, and wire-format 9.5-9.8.
"""

from __future__ import annotations

import json
import traceback
import typing

import gevent

from geventq import backoff, clock
from geventq.checks import Seconds
from geventq.codec import encode
from geventq.errors import (
    DelayedError,
    JobCancelled,
    RateLimitError,
    UnrecoverableError,
    WaitingError,
)

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.worker.run.execution import Execution

__all__ = [
    "Outcome",
    "completion",
    "decide",
    "failure",
    "give_back",
    "lost",
    "move",
    "printable",
    "printable_text",
    "unrunnable",
]

COMPLETE: typing.Final = "c"
FAIL: typing.Final = "f"
RETRY: typing.Final = "r"
DELAY: typing.Final = "d"
WAIT: typing.Final = "w"
GIVE_BACK: typing.Final = "b"
NOTHING: typing.Final = ""  # the lock was lost: nothing may be written (3.4)

#: Seconds that a back-off strategy may take: nothing can cancel it, and `close` waits for it.
STRATEGY_LIMIT = 10.0
#: Bytes of JSON that a result may have.
LARGEST: typing.Final = 128 * 2**20
_LONGEST: typing.Final = 2**20  # characters of an error's text that are kept, and of its trace

Strategies = typing.Mapping[str, typing.Callable[..., Seconds]]


class Outcome:
    """One attempt's end, as it is written to Redis and told to listeners.

    `kind` is the letter of settle.lua; `value` the result as JSON or the failed reason; `made`
    the attempts made after this end; `more` the rare rest of settle.lua's ``more``.
    """

    __slots__ = ("cancellation", "ended_ms", "error", "kind", "made", "more", "result", "value")

    def __init__(
        self,
        kind: str,
        ended_ms: int,
        value: str | bytes,
        made: int,
        more: dict[str, typing.Any] | None = None,
        *,
        result: object = None,
        error: BaseException | None = None,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.kind = kind
        self.ended_ms = ended_ms
        self.value = value
        self.made = made
        self.more = more
        self.result = result
        self.error = error
        self.cancellation = cancellation

    def send_again(self, execution: Execution) -> None:
        """The answer to this outcome was lost: with the counters of its take beside it the script
        sees whether the first sending was carried out (cancellation.md 3.6)."""
        self.more = {**(self.more or {}), "atm0": execution.made, "stc0": execution.stalls}

    def wire_more(self) -> str:
        """`more` as the script reads it; empty for the common case."""
        return json.dumps(self.more, separators=(",", ":")) if self.more else ""


def decide(
    execution: Execution,
    result: object,
    error: BaseException | None,
    ended_ms: int,
    strategies: Strategies,
) -> Outcome:
    """The outcome of an attempt that returned `result` or raised `error`.

    May call the user's back-off strategy, and the methods of what he returned or raised: what
    those raise becomes a final failure whose trace shows both.  Never raises, and never yields
    by itself.
    """
    try:
        if error is None and execution.attempt.strongest is None:  # most jobs: kept cheap
            return _complete(execution, result, ended_ms, strategies)
        return _Ending(execution, result, error, ended_ms, strategies).outcome()
    except BaseException as broken:  # noqa: BLE001 (an attempt without an outcome never ends)
        broken.__context__ = error
        return failure(execution, broken, ended_ms, strategies, final=True)


class _Ending:
    """The end of an attempt that raised an error, or that somebody had asked to stop."""

    __slots__ = ("ended_ms", "error", "execution", "result", "strategies")

    def __init__(
        self,
        execution: Execution,
        result: object,
        error: BaseException | None,
        ended_ms: int,
        strategies: Strategies,
    ) -> None:
        self.execution = execution
        self.result = result
        self.error = error
        self.ended_ms = ended_ms
        self.strategies = strategies

    def outcome(self) -> Outcome:
        asked, error = self.execution.attempt.strongest, self.error
        if asked is not None:
            return self._asked(asked)
        assert error is not None  # `decide` completes what has neither
        if isinstance(error, JobCancelled):
            # Raised by itself, a `link`'s deadline, or another job's: whatever its kind says,
            # this job was neither shut down nor has it lost its lock.
            return self._cancelled(error.cancellation)
        if isinstance(error, KeyboardInterrupt):
            return give_back(self.execution, self.ended_ms)
        moved = _asked_move(self.execution, error, self.ended_ms)
        return moved or failure(self.execution, error, self.ended_ms, self.strategies)

    def _asked(self, asked: Cancellation) -> Outcome:
        """Somebody asked the attempt to stop: what it did then decides (2.5)."""
        execution, error = self.execution, self.error
        attempt = execution.attempt
        if attempt.was_lock_lost or asked.kind == "lock_lost":
            return lost(self.ended_ms, asked)
        if isinstance(error, JobCancelled) or attempt.was_thrown:
            if asked.kind == "shutdown":
                return give_back(execution, self.ended_ms, asked)
            return self._cancelled(asked)
        if error is None:
            return self._ignored(asked)
        if isinstance(error, KeyboardInterrupt):
            return give_back(execution, self.ended_ms, asked)
        moved = _asked_move(execution, error, self.ended_ms)
        if moved is not None:
            return moved if asked.retry else self._cancelled(asked)
        if asked.kind == "shutdown":
            return give_back(execution, self.ended_ms, asked)
        return self._failed(error, asked)

    def _ignored(self, asked: Cancellation) -> Outcome:
        """A result counts, whatever was asked: cancellation is cooperative (2.5)."""
        outcome = _complete(self.execution, self.result, self.ended_ms, self.strategies)
        if outcome.kind == COMPLETE:
            _told(self.execution, outcome, "cancel-ignored", asked)
        return outcome

    def _cancelled(self, asked: Cancellation) -> Outcome:
        """A failure with the text of what was asked (2.6)."""
        error = self.error if self.error is not None else JobCancelled(asked)
        return self._failed(error, asked, text=asked.failed_reason())

    def _failed(
        self, error: BaseException, asked: Cancellation, *, text: str | None = None
    ) -> Outcome:
        """A failure that answers a request: retried if that and the job allow it (2.6)."""
        execution = self.execution
        outcome = failure(
            execution, error, self.ended_ms, self.strategies, final=not asked.retry, text=text
        )
        outcome.cancellation = asked
        _told(execution, outcome, "cancelled", asked)
        return outcome


def _complete(
    execution: Execution, result: object, ended_ms: int, strategies: Strategies
) -> Outcome:
    if result is None:
        value: str | bytes = "null"
    else:
        try:
            value = encode("result", result)
        except (TypeError, ValueError) as error:
            # Failing the job with this text beats losing what it did (issue, Bad input).
            return failure(execution, error, ended_ms, strategies)
        if len(value) > LARGEST:  # Redis would cut the connection at half a gigabyte, each time
            said = f"result: {len(value)} bytes of JSON, at most {LARGEST} are possible"
            return failure(execution, ValueError(said), ended_ms, strategies)
    return completion(execution, value, ended_ms, result)


def completion(
    execution: Execution, value: str | bytes, ended_ms: int, result: object = None
) -> Outcome:
    """The job is completed; `value` is its `result` as JSON."""
    keep = execution.policy.keep_completed
    more = {"keep": keep} if keep is not None else None
    return Outcome(COMPLETE, ended_ms, value, execution.made + 1, more, result=result)


def failure(
    execution: Execution,
    error: BaseException,
    ended_ms: int,
    strategies: Strategies,
    *,
    final: bool = False,
    text: str | None = None,
) -> Outcome:
    """A failed attempt, by the job's own retry rules unless it is `final`."""
    policy = execution.policy
    made = execution.made + 1
    if text is None:
        text = printable(error)
    delay: float | None = None
    final = final or isinstance(error, UnrecoverableError) or execution.job.discarded
    if not final and made < policy.attempts and not execution.started_too_often():
        try:
            with gevent.Timeout(STRATEGY_LIMIT if strategies else None):
                delay = backoff.next_delay(
                    execution.job.wire_options, made, error, execution.job, strategies
                )
        except BaseException as broken:  # noqa: BLE001 (the user's strategy, or thrown at it)
            broken.__context__ = error
            error = broken
    more: dict[str, typing.Any] = {"stack": _stack(execution, error)}
    if delay is None:
        if policy.keep_failed is not None:
            more["keep"] = policy.keep_failed
        if made >= policy.attempts_given:
            more["exhausted"] = True
        kind = FAIL
    elif delay > 0:
        kind = DELAY
        more["delay"] = delay
    else:
        kind = RETRY
        if policy.lifo:
            more["lifo"] = True
    return Outcome(kind, ended_ms, text, made, more, error=error)


def unrunnable(execution: Execution, ended_ms: int) -> Outcome:
    """The job fails for good without running, for the reason that its admission found."""
    return failure(execution, UnrecoverableError(execution.unrunnable), ended_ms, {})


def _asked_move(execution: Execution, error: BaseException, ended_ms: int) -> Outcome | None:
    """The outcome of a processor that asks for its job to be moved; `None` for other errors.
    `WaitingChildrenError` comes with flows: until then a job has no children to wait for."""
    if isinstance(error, DelayedError):
        return move(execution, ended_ms, error.seconds, error)
    if isinstance(error, (WaitingError, RateLimitError)):
        return move(execution, ended_ms, None, error)
    return None


def move(
    execution: Execution,
    ended_ms: int,
    delay: float | None,
    error: BaseException | None = None,
) -> Outcome:
    """The job leaves *active* without its attempt being counted: into *delayed* for `delay`
    seconds, or with `None` to the front of *wait*."""
    if delay is None:
        return Outcome(WAIT, ended_ms, "", execution.made, {"move": True}, error=error)
    more = {"delay": round(delay * 1000), "move": True}
    return Outcome(DELAY, ended_ms, "", execution.made, more, error=error)


def give_back(execution: Execution, ended_ms: int, asked: Cancellation | None = None) -> Outcome:
    """The job goes back to where it came from, as if it had not been taken (7.1)."""
    outcome = Outcome(GIVE_BACK, ended_ms, "", execution.made, {"move": True}, cancellation=asked)
    if asked is not None:
        _told(execution, outcome, "cancelled", asked)
    return outcome


def lost(ended_ms: int, asked: Cancellation) -> Outcome:
    """Nothing is written: another worker may be running the job (3.4)."""
    return Outcome(NOTHING, ended_ms, "", 0, cancellation=asked)


def _told(execution: Execution, outcome: Outcome, name: str, asked: Cancellation) -> None:
    """Add the stream's own event about a cancellation (5.5)."""
    attempt = execution.attempt
    since = attempt.requested_monotonic  # 0 for a job that says of itself that it is cancelled
    waited = max(0.0, clock.monotonic() - since) if since else 0.0
    reason = asked.to_json()["reason"]
    if not isinstance(reason, str):
        reason = encode("reason", reason).decode()
    more = outcome.more = outcome.more or {}
    more["event"] = [
        *("event", name, "jobId", execution.job_id, "reason", printable_text(reason)),
        *("kind", asked.kind, "stage", attempt.stage or "seen", "ms", str(round(waited * 1000))),
    ]


def _stack(execution: Execution, error: BaseException) -> str:
    """All traces so far as JSON, the newest last, cut to the job's limit (wire-format 3)."""
    limit = execution.policy.stack_limit
    if limit == 0:
        return "[]"
    try:
        trace = "".join(traceback.format_exception(error)).rstrip("\n")
    except BaseException as broken:  # noqa: BLE001 (a user's attributes; groups nested too deeply)
        trace = f"{type(error).__name__} (its trace failed: {type(broken).__name__})"
    traces = [*execution.job.stacktrace, printable_text(trace)]
    if limit is not None:
        traces = traces[-limit:]
    return json.dumps(traces, ensure_ascii=False, separators=(",", ":"))


def printable(error: BaseException) -> str:
    """The failed reason: ``str(error)``, or the class name where that is empty or fails."""
    try:
        text = str(error)
    except BaseException as broken:  # noqa: BLE001 (a user's __str__)
        text = f"{type(error).__name__} (its text failed: {type(broken).__name__})"
    return printable_text(text) or type(error).__name__


def printable_text(text: str) -> str:
    """`text` as it can be sent: lone surrogates are shown as escapes, the end of a text that is
    senselessly long is cut off."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()
