"""The ends that an attempt can have: complete, fail, retry, move, give back (wire-format 9.5-9.8).

Which of them it is, is decided elsewhere (`geventq.worker.run.decide`); here each is made, with
all that its script call needs.  No Redis, no greenlets.
"""

from __future__ import annotations

import collections
import contextlib
import json
import typing

import gevent

from geventq import backoff
from geventq.cancellation.throws import Limit
from geventq.checks import Seconds
from geventq.errors import UnrecoverableError
from geventq.large import encode_in_turns
from geventq.record import record_of
from geventq.worker.run.traces import kept_traces, printable_text

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.worker.run.execution import Execution

__all__ = [
    "COMPLETE",
    "DELAY",
    "WAIT",
    "Outcome",
    "Strategies",
    "completion",
    "encoded",
    "failure",
    "give_back",
    "lost",
    "move",
    "printable",
]

COMPLETE: typing.Final = "c"
FAIL: typing.Final = "f"
RETRY: typing.Final = "r"
DELAY: typing.Final = "d"
WAIT: typing.Final = "w"
GIVE_BACK: typing.Final = "b"
NOTHING: typing.Final = ""  # the lock was lost: nothing may be written (3.4)
_EVENTS: typing.Final = {
    COMPLETE: "completed",
    FAIL: "failed",
    RETRY: "retrying",
    DELAY: "retrying",
}

#: Seconds that a back-off strategy may take: nothing can cancel it, and `close` waits for it.
STRATEGY_LIMIT = 10.0
#: The same for an error's text, and for its trace, in which it stands again.
TEXT_LIMIT = 5.0
#: The same for a result of a class of the user's own, which may read from elsewhere what it holds.
RESULT_LIMIT = 60.0
#: Of these Python knows by itself what they hold.
_PLAIN: typing.Final = {dict, list, tuple, str, int, float, bool, collections.OrderedDict}
#: Bytes of JSON that a result may have.
LARGEST: typing.Final = 128 * 2**20

Strategies = typing.Mapping[str, typing.Callable[..., Seconds]]


class Outcome:
    """One attempt's end, as it is written to Redis and told to listeners.

    `kind` is the letter of settle.lua; `value` the result as JSON or the failed reason;
    `attempts_made` counts this one where it counts; `more` is the rare rest of settle.lua's
    ``more``.  `cancellation` is the request that this end answers.  What `is_plain` holds nothing
    that came from elsewhere.
    """

    __slots__ = (
        "attempts_made",
        "cancellation",
        "ended_ms",
        "error",
        "event",
        "is_plain",
        "kind",
        "mates",
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
        #: The worker's event that tells of this end; `None` where the attempt does not count.
        self.event = _EVENTS.get(kind) if value else None
        self.ended_ms = ended_ms
        self.value = value
        self.attempts_made = attempts_made
        self.more = more
        self.result = result
        self.error = error
        self.cancellation = cancellation
        self.is_plain = False
        #: Of a job that is given back: those that were given back before, so that they stand in
        #: the order of their takes (7.1): ids and turns, which others add to.
        self.mates: typing.Mapping[str, str] | None = None

    def fields(self, execution: Execution) -> dict[bytes, bytes | None]:
        """What this end has written into the job's hash, as the script has done it."""
        more, fields = self.more or {}, dict[bytes, bytes | None]()
        value = self.value if isinstance(self.value, bytes) else self.value.encode()
        if self.kind == COMPLETE:
            fields[b"returnvalue"] = value
        elif value:
            fields[b"failedReason"], fields[b"stacktrace"] = value, more["stack"].encode()
        if value:
            fields[b"atm"] = b"%d" % self.attempts_made
        if self.kind in (COMPLETE, FAIL):
            fields[b"finishedOn"] = b"%d" % self.ended_ms
        if self.kind == DELAY:
            fields[b"delay"] = str(more["delay"]).encode()
        if self.kind == GIVE_BACK:
            started = execution.attempts_started - 1
            fields[b"ats"] = b"%d" % started if started > 0 else None
        if self.kind == FAIL or more.get("clear"):
            fields[b"defa"] = None
        if more.get("clear"):
            fields[b"gqc"] = None
        if more.get("shown") and self.cancellation is not None and self.cancellation.kind != "user":
            # As far as it is shown: which run of which job it was for, nobody asks any more.
            fields[b"gqe"] = record_of(self.cancellation, 0, 0, more["heard"])
        return fields

    def note_heard(self, execution: Execution) -> None:
        """Say which requests from elsewhere it was decided with, and that it clears their record
        (cancellation.md 4.4); not one that gives the job back: that was not acted on."""
        if execution.heard is None:
            return
        self.more = {**(self.more or {}), "heard": sorted(execution.heard.nonces)}
        if self.kind != GIVE_BACK:
            self.more["clear"] = True
        if self.kind == FAIL and self.cancellation is not None and not self.cancellation.retry:
            self.more["shown"] = True

    @property
    def is_sent_again(self) -> bool:
        """Whether a first sending of it may have been carried out."""
        return self.more is not None and "atm0" in self.more

    def send_again(self, execution: Execution) -> None:
        """The answer to this outcome was lost: with the counters of its take beside it the script
        sees whether the first sending was carried out (cancellation.md 3.6)."""
        self.more = {**(self.more or {}), "atm0": execution.attempts_made, "stc0": execution.stalls}


def encoded(result: object) -> str | bytes:
    """A processor's result as it is stored.  Raises `TypeError` or `ValueError` for what is not
    JSON, and for what is too large: Redis would cut the connection at half a gigabyte, each
    time."""
    if result is None:
        return "null"
    if type(result) in _PLAIN:
        value = encode_in_turns("result", result)
    else:
        try:
            with _limit(RESULT_LIMIT) as limit:
                value = encode_in_turns("result", result)
        except gevent.Timeout:
            if not limit.passed:
                raise
            text = f"result: it took more than {RESULT_LIMIT:g} s to write it"
            raise ValueError(text) from None
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


def _limit(seconds: float) -> Limit:
    """On the user's code after his processor; not thrown into its imports (2.9)."""
    return Limit(seconds, gevent.Timeout(seconds), again=True)


def failure(
    execution: Execution,
    error: BaseException,
    ended_ms: int,
    strategies: Strategies,
    *,
    final: bool = False,
    text: str | None = None,
    is_plain: bool = False,
) -> Outcome:
    """A failed attempt, by the job's own retry rules unless it is `final`; `is_plain` without the
    traces of earlier attempts, for any script to read."""
    policy = execution.policy
    attempts_made = execution.attempts_made + 1
    if text is None:
        text = printable(error)
    delay: float | None = None
    final = final or isinstance(error, UnrecoverableError) or execution.job.discarded
    if not final and attempts_made < policy.attempts and not execution.started_too_often():
        try:
            with _limit(STRATEGY_LIMIT) if strategies else contextlib.nullcontext():
                delay = backoff.next_delay(
                    execution.job.wire_options, attempts_made, error, execution.job, strategies
                )
        except BaseException as broken:  # noqa: BLE001 (the user's strategy, or thrown at it)
            broken.__context__ = error
            error = broken
    stack = json.dumps([text])
    if not is_plain:
        with _limit(TEXT_LIMIT):
            stack = kept_traces(execution.job.stacktrace, error, policy.stack_limit)
    more: dict[str, typing.Any] = {"stack": stack}
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
    outcome = Outcome(kind, ended_ms, text, attempts_made, more, error=error)
    outcome.is_plain = is_plain
    return outcome


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
    more = {"move": True, "turn": execution.turn}
    return Outcome(GIVE_BACK, ended_ms, "", execution.attempts_made, more)


def lost(ended_ms: int, request: Cancellation) -> Outcome:
    """Nothing is written: another worker may be running the job (3.4)."""
    return Outcome(NOTHING, ended_ms, "", 0, cancellation=request)


def printable(error: BaseException) -> str:
    """The failed reason: ``str(error)``, or the class name where that is empty, fails or hangs."""
    try:
        with _limit(TEXT_LIMIT):
            text = str(error)
    except BaseException as broken:  # noqa: BLE001 (a user's __str__)
        text = f"{type(error).__name__} (its text failed: {type(broken).__name__})"
    return printable_text(text) or type(error).__name__
