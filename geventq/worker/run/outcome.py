"""The ends that an attempt can have: complete, fail, retry, move, give back (wire-format 9.5-9.8).

Which of them it is, is decided elsewhere (`geventq.worker.run.decide`); here each is made, with
all that its script call needs.  No Redis, no greenlets.
"""

from __future__ import annotations

import json
import traceback
import typing

import gevent

from geventq import backoff
from geventq.checks import Seconds
from geventq.errors import UnrecoverableError
from geventq.large import encode_in_turns

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.worker.run.execution import Execution

__all__ = [
    "Outcome",
    "Strategies",
    "completion",
    "encoded",
    "failure",
    "give_back",
    "lost",
    "move",
    "plain_failure",
    "printable",
    "printable_text",
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

    `kind` is the letter of settle.lua; `value` the result as JSON or the failed reason;
    `attempts_made` counts this one where it counts; `more` is the rare rest of settle.lua's
    ``more``.  `cancellation` is the request that this end answers.
    """

    __slots__ = (
        "attempts_made",
        "cancellation",
        "ended_ms",
        "error",
        "kind",
        "more",
        "result",
        "value",
    )

    def __init__(
        self,
        kind: str,
        ended_ms: int,
        value: str | bytes,
        attempts_made: int,
        more: dict[str, typing.Any] | None = None,
        *,
        result: object = None,
        error: BaseException | None = None,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.kind = kind
        self.ended_ms = ended_ms
        self.value = value
        self.attempts_made = attempts_made
        self.more = more
        self.result = result
        self.error = error
        self.cancellation = cancellation

    @property
    def is_retry(self) -> bool:
        """Whether the job runs again."""
        return self.kind in (RETRY, DELAY)

    def send_again(self, execution: Execution) -> None:
        """The answer to this outcome was lost: with the counters of its take beside it the script
        sees whether the first sending was carried out (cancellation.md 3.6)."""
        self.more = {**(self.more or {}), "atm0": execution.attempts_made, "stc0": execution.stalls}

    def wire_more(self) -> str:
        """`more` as the script reads it; empty for the common case."""
        return json.dumps(self.more, separators=(",", ":")) if self.more else ""


def encoded(result: object) -> str | bytes:
    """A processor's result as it is stored.  Raises `TypeError` or `ValueError` for what is not
    JSON, and for what is too large: Redis would cut the connection at half a gigabyte, each
    time."""
    if result is None:
        return "null"
    value = encode_in_turns("result", result)
    if len(value) > LARGEST:
        raise ValueError(f"result: {len(value)} bytes of JSON, at most {LARGEST} are possible")
    return value


def completion(
    execution: Execution, value: str | bytes, ended_ms: int, result: object = None
) -> Outcome:
    """The job is completed; `value` is its `result` as JSON."""
    keep = execution.policy.keep_completed
    more = {"keep": keep} if keep is not None else None
    return Outcome(COMPLETE, ended_ms, value, execution.attempts_made + 1, more, result=result)


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
    attempts_made = execution.attempts_made + 1
    if text is None:
        text = printable(error)
    delay: float | None = None
    final = final or isinstance(error, UnrecoverableError) or execution.job.discarded
    if not final and attempts_made < policy.attempts and not execution.started_too_often():
        try:
            with gevent.Timeout(STRATEGY_LIMIT if strategies else None):
                delay = backoff.next_delay(
                    execution.job.wire_options, attempts_made, error, execution.job, strategies
                )
        except BaseException as broken:  # noqa: BLE001 (the user's strategy, or thrown at it)
            broken.__context__ = error
            error = broken
    more: dict[str, typing.Any] = {"stack": _stack(execution, error)}
    if delay is None:
        if policy.keep_failed is not None:
            more["keep"] = policy.keep_failed
        if attempts_made >= policy.attempts_given:
            more["exhausted"] = True
        kind = FAIL
    elif delay > 0:
        kind = DELAY
        more["delay"] = delay
    else:
        kind = RETRY
        if policy.lifo:
            more["lifo"] = True
    return Outcome(kind, ended_ms, text, attempts_made, more, error=error)


def plain_failure(execution: Execution, error: Exception, refused: Outcome) -> Outcome:
    """A final failure that any script can read, instead of an outcome that was `refused`: it
    holds nothing that came from elsewhere."""
    more = {"stack": json.dumps([str(error)])}
    made, ended_ms = execution.attempts_made + 1, refused.ended_ms
    return Outcome(FAIL, ended_ms, str(error), made, more, error=error)


def move(
    execution: Execution,
    ended_ms: int,
    delay: float | None,
    error: BaseException | None = None,
) -> Outcome:
    """The job leaves *active* without its attempt being counted: into *delayed* for `delay`
    seconds, or with `None` to the front of *wait*."""
    if delay is None:
        return Outcome(WAIT, ended_ms, "", execution.attempts_made, {"move": True}, error=error)
    more = {"delay": round(delay * 1000), "move": True}
    return Outcome(DELAY, ended_ms, "", execution.attempts_made, more, error=error)


def give_back(execution: Execution, ended_ms: int) -> Outcome:
    """The job goes back to where it came from, as if it had not been taken (7.1)."""
    return Outcome(GIVE_BACK, ended_ms, "", execution.attempts_made, {"move": True})


def lost(ended_ms: int, request: Cancellation) -> Outcome:
    """Nothing is written: another worker may be running the job (3.4)."""
    return Outcome(NOTHING, ended_ms, "", 0, cancellation=request)


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
