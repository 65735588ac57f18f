"""Time, in one place, so that tests can turn it.

Durations are measured on `monotonic()`, which keeps counting while the machine is suspended
where the system has such a clock (a lock in Redis goes on ageing too: cancellation.md 3.3).
Wall time exists only on the wire, as whole milliseconds.  Both are asked for as attributes of this
module (``clock.monotonic()``), which a test replaces with `turned()`; a call to Redis asks nine
times, so they are the system's functions themselves.
"""

from __future__ import annotations

import contextlib
import functools
import time
import typing

__all__ = ["ServerClock", "Source", "monotonic", "turned", "wall", "wall_ms"]

_Clock = typing.Callable[[], float]

_BOOTTIME: typing.Final = getattr(time, "CLOCK_BOOTTIME", None)
_monotonic: typing.Final[_Clock] = (
    time.monotonic if _BOOTTIME is None else functools.partial(time.clock_gettime, _BOOTTIME)
)

#: Seconds on the clock for durations, since some fixed moment; a suspended machine's sleep is
#: included.
monotonic: _Clock = _monotonic
#: Seconds since the epoch, for the wire.
wall: _Clock = time.time


def wall_ms() -> int:
    """Whole milliseconds since the epoch, as BullMQ writes them."""
    return int(wall() * 1000)


class Source:
    """The system's clocks.  Subclass it to turn time in a test."""

    def monotonic(self) -> float:
        return _monotonic()

    def wall(self) -> float:
        return time.time()


class ServerClock:
    """A server's clock, as it was told last; this machine's, until it was."""

    def __init__(self) -> None:
        self._ahead: float | None = None  # in ms, of our monotonic clock

    def told(self, now_ms: int, asked_at: float) -> None:
        """The server says that it is `now_ms`, to who has asked at `asked_at` (monotonic)."""
        self._ahead = now_ms - asked_at * 1000

    def now_ms(self) -> float:
        """What it shows now, in milliseconds."""
        return wall_ms() if self._ahead is None else monotonic() * 1000 + self._ahead


@contextlib.contextmanager
def turned(replacement: Source) -> typing.Iterator[Source]:
    """Use another source of time inside the block (tests only)."""
    global monotonic, wall
    before = monotonic, wall
    monotonic, wall = replacement.monotonic, replacement.wall
    try:
        yield replacement
    finally:
        monotonic, wall = before
