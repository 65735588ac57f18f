"""How long a failed job waits before its next attempt.

Pure functions: what is stored in the options goes in, milliseconds come out (wire-format 9.6).
A named strategy is the user's function; whoever calls `next_delay` chooses the greenlet.
"""

from __future__ import annotations

import datetime
import math
import random as _random
import typing

from geventq.checks import Seconds, milliseconds
from geventq.errors import GeventqError
from geventq.foreign import times_in

if typing.TYPE_CHECKING:
    from geventq.job import Job

__all__ = ["BUILT_IN", "Strategy", "next_delay"]

Strategy = typing.Callable[[int, BaseException, typing.Any], Seconds]
"""``fn(attempts_made, error, job) -> seconds``: 1 after the first attempt; negative: fail now."""

BUILT_IN: typing.Final = ("fixed", "exponential")

_LONGEST: typing.Final = 2**53  # milliseconds


def next_delay(
    opts: typing.Mapping[str, typing.Any],
    attempts_made: int,
    error: BaseException,
    job: Job,
    strategies: typing.Mapping[str, Strategy] | None = None,
    random: typing.Callable[[], float] = _random.random,
) -> int | float | None:
    """Milliseconds until the job runs again, 0 for at once, `None` to fail it now.

    `opts` are the stored options, `attempts_made` counts the attempt that just failed, and
    `random` gives a number in [0, 1).  Raises `GeventqError` for a name that no strategy has
    and for an answer that is not a time, and whatever a strategy of the user raises.
    """
    backoff = opts.get("backoff")
    if not isinstance(backoff, dict):
        return _time_in(backoff)  # of a producer that did not normalise
    kind = backoff.get("type")
    if kind not in BUILT_IN:
        return _ask_strategy(kind, attempts_made, error, job, strategies or {})
    delay = _time_in(backoff.get("delay"))
    if kind == "exponential":
        delay = math.floor(min(2.0 ** min(attempts_made - 1, 60) * delay, _LONGEST) + 0.5)
    jitter = times_in(backoff.get("jitter"), 1)
    if jitter:
        delay = math.floor(random() * delay * jitter + delay * (1 - jitter))
    return delay


def unreadable(backoff: object) -> bool:
    """Whether a stored back-off, or a member of it, is not what it should be: it counts as none."""
    if not isinstance(backoff, dict):
        return backoff is not None and times_in(backoff, _LONGEST) is None
    members = [(backoff.get("jitter"), 1)]
    if backoff.get("type") in BUILT_IN:
        members.append((backoff.get("delay"), _LONGEST))
    return any(value is not None and times_in(value, most) is None for value, most in members)


def _time_in(value: object) -> int | float:
    """A stored time; what is none (foreign producers) counts as 0."""
    return times_in(value, _LONGEST) or 0


def _ask_strategy(
    kind: object,
    attempts_made: int,
    error: BaseException,
    job: Job,
    strategies: typing.Mapping[str, Strategy],
) -> int | float | None:
    strategy = strategies.get(kind) if isinstance(kind, str) else None
    if strategy is None:
        raise GeventqError(f"backoff: no strategy is named {kind!r}")
    seconds: typing.Any = strategy(attempts_made, error, job)
    if isinstance(seconds, datetime.timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or math.isnan(seconds):
        raise GeventqError(f"backoff: strategy {kind!r} must return seconds, got {seconds!r}")
    if seconds < 0:
        return None
    if seconds * 1000 > _LONGEST:
        raise GeventqError(f"backoff: strategy {kind!r} returned {seconds!r} seconds, too many")
    return milliseconds(seconds)
