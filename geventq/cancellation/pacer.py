"""Turns for the hub while jobs compute: when a check yields, and in which order they go on.

Each hub has one `Pacer`.  A check reads the clock and compares it with `due`, nothing else.
Past `due` it asks whether the hub's loop has turned meanwhile.  If it has, the job computes on.
If not, the job's greenlet stands in line, and the hub releases one of the line per turn.

Both are needed (cancellation.md 2.4): without the line one job gets all the time, without `due`
a turn lasts as long as there are jobs.  The release is a timer, because `sleep(0)` would not do:
gevent runs fifty callbacks before it looks at its timers.

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

    __slots__ = ("_line", "_loop", "_release", "_turn", "due", "hub")

    def __init__(self, hub: typing.Any) -> None:
        #: From when on a check takes the slow path, on `time.perf_counter`; 0: at once.
        self.due = 0.0
        #: Whose turns it cares for; `None` only for `NOWHERE`.  Never changes.
        self.hub = hub
        self._loop: typing.Any = hub.loop if hub is not None else None
        #: The loop's count of turns at the last look; -1 before the first.
        self._turn = -1
        #: Greenlets that wait in `pause`, in the order in which they go on.
        self._line: collections.deque[typing.Any] = collections.deque()
        #: The timer that releases them; it runs exactly while the line is not empty.
        self._release: typing.Any = None

    def pause(self) -> None:
        """Give the hub a turn if it has had none.  Never yields in the hub nor in a thread
        whose hub this is not."""
        hub, current = get_hub_if_exists(), getcurrent()
        if hub is None or current is hub:
            return
        if hub is not self.hub or hub.loop is not self._loop:
            # A token made elsewhere (at import, in another thread, before a fork) is paced by
            # the hub it is checked in, if that is where greenlets are waiting for a turn.
            if self.hub is None:
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
            released_by = self.hub.switch()
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
    if pacer is None or pacer._loop is not hub.loop:  # the loop is another one after a fork
        pacer = Pacer(hub)
        setattr(hub, _ATTRIBUTE, pacer)
    return pacer
