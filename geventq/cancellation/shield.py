"""Shields: blocks of a job that a hard kill waits for (cancellation.md 2.9).

A `Guard` belongs to a token (its links share it) and knows which greenlets are inside shields
and until when.  It decides nothing about the ladder: it tells the attempt when the first shield
was entered and the last one left.  Whatever is thrown at the outermost exit is thrown there.

No greenlet of its own; everything here runs in the greenlet that enters or leaves.
"""

from __future__ import annotations

import types
import typing

from greenlet import getcurrent

from geventq import clock
from geventq.checks import Seconds, check_duration

if typing.TYPE_CHECKING:
    from geventq.cancellation.attempt import Attempt

__all__ = ["Guard", "Shield"]


class Guard:
    """The open shields of one job, or of a token without a job."""

    __slots__ = ("_open", "attempt", "doomed")

    def __init__(self, attempt: Attempt | None) -> None:
        self.attempt = attempt
        self._open: list[tuple[typing.Any, float]] = []  # (greenlet, its cap on the clock)
        #: Greenlets whose own kill waits for their outermost exit (a `run`, a helper).
        self.doomed: dict[typing.Any, BaseException] = {}

    def until(self) -> float | None:
        """When the last cap of the open shields runs out; `None` without an open shield."""
        return max((cap for _, cap in self._open), default=None)

    def covers(self, greenlet: typing.Any) -> float | None:
        """Until when `greenlet` is inside a shield of its own, if it is."""
        caps = [cap for inside, cap in self._open if inside is greenlet]
        return max(caps) if caps and max(caps) > clock.monotonic() else None

    def enter(self, seconds: float) -> None:
        first = not self._open
        self._open.append((getcurrent(), clock.monotonic() + seconds))
        if first and self.attempt is not None:
            self.attempt.shield_entered()

    def leave(self) -> None:
        current = getcurrent()
        for index in range(len(self._open) - 1, -1, -1):
            if self._open[index][0] is current:
                del self._open[index]
                break
        if not self._open and self.attempt is not None:
            self.attempt.shield_left()  # may raise JobKilled
        if self.doomed and not any(inside is current for inside, _ in self._open):
            error = self.doomed.pop(current, None)
            if error is not None:
                raise error


class Shield:
    """The context manager that `token.shield()` returns.  It may be entered again, nested."""

    __slots__ = ("_guard", "_max")

    def __init__(self, guard: Guard, max: Seconds) -> None:
        self._guard = guard
        self._max = check_duration("max", max)

    def __enter__(self) -> Shield:
        self._guard.enter(self._max)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._guard.leave()
