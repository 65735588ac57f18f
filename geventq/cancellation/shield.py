"""Shields: blocks of a job that a hard kill waits for (cancellation.md 2.9).

A `Guard` belongs to one run, or to a token without a job.  It knows the open shields, each with
the greenlet that entered it and its own cap.  It knows nothing of the ladder: it tells a
`Shielded` when the first shield was entered and when one was left.  Whatever is thrown as a
shield is left is thrown there.

No greenlet of its own; everything here runs in the greenlet that enters or leaves.
"""

from __future__ import annotations

import types
import typing

from greenlet import getcurrent

from geventq import clock
from geventq.cancellation import held
from geventq.checks import Seconds, check_duration

__all__ = ["Guard", "Shield", "Shielded"]


class Shielded(typing.Protocol):
    """Whose kill the shields hold back: the attempt."""

    def shield_entered(self) -> None:
        """The first shield was entered."""

    def shield_left(self) -> None:
        """A shield was left, others may be open.  May raise `JobKilled`."""


class _Open:
    """A shield that was entered and not left."""

    __slots__ = ("cap", "greenlet")

    def __init__(self, seconds: float) -> None:
        self.greenlet: typing.Any = getcurrent()
        self.cap = clock.monotonic() + seconds  # counted from its own entry


class Guard:
    """The open shields of one job, or of a token without a job."""

    __slots__ = ("_open", "doomed", "shielded")

    def __init__(self, shielded: Shielded | None) -> None:
        #: Who is told; `None` for a token without a job, and once the attempt has ended.
        self.shielded = shielded
        #: In the order of entry.  An entry is left as the object it is, not as the latest of its
        #: greenlet: the one that goes on holding keeps its own cap.
        self._open: list[_Open] = []
        #: Greenlets whose own kill waits for their outermost exit (a `run`, a helper).
        self.doomed: dict[typing.Any, BaseException] = {}

    def until(self) -> float | None:
        """When the last cap of the open shields runs out; `None` without an open shield."""
        return max((entry.cap for entry in self._open), default=None)

    def covers(self, greenlet: typing.Any) -> float | None:
        """Until when `greenlet` is inside a shield of its own, if it is."""
        caps = [entry.cap for entry in self._open if entry.greenlet is greenlet]
        return max(caps) if caps and max(caps) > clock.monotonic() else None

    def enter(self, seconds: float) -> _Open:
        """Open a shield for the current greenlet; what it returns is given to `leave`."""
        entry = _Open(seconds)
        self._open.append(entry)
        if len(self._open) == 1 and self.shielded is not None:
            self.shielded.shield_entered()
        return entry

    def leave(self, entry: _Open) -> None:
        """Close it.  May raise what fell due meanwhile."""
        self._open.remove(entry)
        if self.shielded is not None:
            self.shielded.shield_left()
        current = getcurrent()
        if current in self.doomed and self.covers(current) is None and not held.is_held(current):
            raise self.doomed.pop(current)


class Shield:
    """The context manager that `token.shield()` returns.  It may be entered again, nested."""

    __slots__ = ("_entries", "_guard", "_max")

    def __init__(self, guard: Guard, max: Seconds) -> None:
        self._guard = guard
        self._max = check_duration("max", max)
        self._entries: list[_Open] = []  # innermost last

    def __enter__(self) -> Shield:
        self._entries.append(self._guard.enter(self._max))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        current = getcurrent()
        mine = [entry for entry in self._entries if entry.greenlet is current]
        entry = mine[-1] if mine else self._entries[-1]  # a generator may be left elsewhere
        self._entries.remove(entry)
        self._guard.leave(entry)
