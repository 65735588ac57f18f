"""Time, in one place, so that tests can turn it.

Durations are measured on `monotonic()`, which keeps counting while the machine is suspended
where the system has such a clock (a lock in Redis goes on ageing too: cancellation.md 3.3).
Wall time exists only on the wire, as whole milliseconds.  Both go through the module-level
`source`, which a test replaces with `turned()`.
"""

from __future__ import annotations

import contextlib
import time
import typing

__all__ = ["ServerClock", "Source", "monotonic", "turned", "wall", "wall_ms"]


class Source:
    """The system's clocks.  Subclass it to turn time in a test."""

    _boottime: typing.Final = getattr(time, "CLOCK_BOOTTIME", None)

    def monotonic(self) -> float:
        """Seconds since some fixed moment; a suspended machine's sleep is included."""
        if self._boottime is None:
            return time.monotonic()
        return time.clock_gettime(self._boottime)

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()


source: Source = Source()


def monotonic() -> float:
    """Seconds on the clock for durations."""
    return source.monotonic()


def wall() -> float:
    """Seconds since the epoch, for the wire."""
    return source.wall()


def wall_ms() -> int:
    """Whole milliseconds since the epoch, as BullMQ writes them."""
    return int(source.wall() * 1000)


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
    global source
    before, source = source, replacement
    try:
        yield replacement
    finally:
        source = before
