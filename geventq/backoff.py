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
    if isinstance(backoff, int | float) and not isinstance(backoff, bool):
        return _sane(backoff)  # a producer that did not normalise
    if not isinstance(backoff, dict):
        return 0
    kind = backoff.get("type")
    if kind not in BUILT_IN:
        return _ask_strategy(kind, attempts_made, error, job, strategies or {})
    delay = _sane(backoff.get("delay"))
    if kind == "exponential":
        delay = math.floor(min(2.0 ** min(attempts_made - 1, 60) * delay, _LONGEST) + 0.5)
    jitter = backoff.get("jitter")
    if isinstance(jitter, int | float) and 0 < jitter <= 1:
        delay = math.floor(random() * delay * jitter + delay * (1 - jitter))
    return delay


def _sane(value: object) -> int | float:
    """A stored time; what is none (foreign producers) counts as 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return value if 0 <= value <= _LONGEST else 0


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
