"""Turns for the hub while jobs compute: when a check yields, and in which order they go on.

One `Pacer` per hub.  `due` is the moment from which a check takes the slow path; a check reads
the clock and compares, nothing else.  On the slow path it asks whether the loop has turned
meanwhile; if not, the greenlet stands in line, and the hub releases one of the line per turn
(cancellation.md 2.4: a stamp without the line gives one job all the time, a line without the
stamp makes turns as long as there are jobs).  `sleep(0)` would not do: gevent runs fifty
callbacks before it looks at its timers, so the release is a timer.

No greenlet of its own; the release runs in the hub and only switches.
"""

from __future__ import annotations

import collections
import time
import typing

from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import InvalidSwitchError
from greenlet import getcurrent

__all__ = ["NOWHERE", "Pacer", "pacer_of"]

#: Seconds that jobs may compute after a turn of the loop before a check yields.
SPAN: typing.Final = 0.004
#: Seconds until the next look when the loop turned at an unknown moment of the last `SPAN`.
SECOND_LOOK: typing.Final = 0.002

_ATTRIBUTE: typing.Final = "_geventq_pacer"


class Pacer:
    """Keeps one hub's loop turning while greenlets compute."""

    __slots__ = ("_hub", "_line", "_loop", "_release", "_turn", "due")

    def __init__(self, hub: typing.Any) -> None:
        self.due = 0.0  # on time.perf_counter; 0: look at once
        self._hub = hub
        self._loop: typing.Any = hub.loop if hub is not None else None
        self._turn = -1
        self._line: collections.deque[typing.Any] = collections.deque()
        self._release: typing.Any = None  # runs exactly while the line is not empty

    def pause(self) -> None:
        """Give the hub a turn if it has had none.  Never yields in the hub nor in a thread
        whose hub this is not."""
        hub, current = get_hub_if_exists(), getcurrent()
        if hub is None or current is hub:
            return
        if hub is not self._hub or hub.loop is not self._loop:
            # A token made elsewhere (at import, in another thread, before a fork) is paced by
            # the hub it is checked in, if that is where greenlets are waiting for a turn.
            if self._hub is None:
                pacer_of(hub).pause()
            return
        now = time.perf_counter()
        if now <= self.due:
            return
        # `iteration` counts the loop's turns; the libuv loop has none, and always yields.
        turn = getattr(self._loop, "iteration", self._turn)
        if turn != self._turn and self._turn >= 0:
            self._turn, self.due = turn, now + SECOND_LOOK
            return
        self._stand_in_line(current)

    def _stand_in_line(self, current: typing.Any) -> None:
        line = self._line
        line.append(current)
        if len(line) == 1:
            self._release = self._loop.timer(1e-9, 1e-9)
            self._release.start(self._release_one)
        try:
            released_by = self._hub.switch()
            if released_by is not self:
                raise InvalidSwitchError(f"invalid switch into check(): {released_by!r}")
        except BaseException:  # a kill, a Timeout: leave the line and let it through
            if current in line:
                line.remove(current)
                self._rest()
            raise

    def _release_one(self) -> None:
        """In the hub, once per turn."""
        head = self._line.popleft() if self._line else None
        self._rest()
        self._turn = getattr(self._loop, "iteration", self._turn)
        self.due = time.perf_counter() + SPAN
        if head is not None:
            head.switch(self)

    def _rest(self) -> None:
        if not self._line and self._release is not None:
            self._release.stop()
            self._release.close()
            self._release = None


#: For a token that was made where there was no hub: its first slow look finds one.
NOWHERE: typing.Final = Pacer(None)


def pacer_of(hub: typing.Any) -> Pacer:
    """The pacer of `hub`; it lives and dies with it.  Does not yield."""
    pacer: Pacer | None = hub.__dict__.get(_ATTRIBUTE)
    if pacer is None or pacer._loop is not hub.loop:
        pacer = Pacer(hub)
        setattr(hub, _ATTRIBUTE, pacer)
    return pacer
