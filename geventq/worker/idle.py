"""Waiting for work while there is none: the blocking wait on the marker (wire-format 7, 11).

One greenlet with a connection of its own, which carries the name that `get_workers` looks for.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing

from geventq import clock, wakeups
from geventq.errors import GeventqError
from geventq.store.blocking import BlockingConnection
from geventq.worker.background import Background
from geventq.worker.marker import Marker

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.run.slots import Slots

__all__ = ["IdleWait"]


class MayBeMore(typing.Protocol):
    """Who takes jobs: the lanes."""

    def __call__(self, *, woken: bool = False) -> None:
        """There may be jobs; `woken` by a marker, so that no other worker looks."""


class IdleWait(Background):
    """Waits while there is nothing to take.  Owned, started and joined by the worker.

    `begin` lets it wait (again); `may_be_more` is called when a marker was popped, a delayed job
    is due, or the time is over.

    A marker in Redis wakes one worker only.  So whoever has popped one owes the queue a look, and
    where none comes of it (the worker is paused, full or closing, the connection was cut) he puts
    a marker back.  What it was for is not remembered but read from the lists, delayed included: a
    marker may have been popped that never arrived here.
    """

    def __init__(
        self,
        slots: Slots,
        may_be_more: MayBeMore,
        tell: Tell,
        client: Client,
        keys: QueueKeys,
        *,
        worker_name: str,
        drain_delay: float,
    ) -> None:
        super().__init__("idle", "waiting for jobs", keys.name, tell, client)
        self._slots = slots
        self._may_be_more = may_be_more
        self._marker = Marker(client, keys)
        name = keys.client_name(f":w:{worker_name}" if worker_name else "")
        self._connection = BlockingConnection(client, name=name)
        self._drain_delay = drain_delay
        self._news = wakeups.Event()  # one of the next three, or the end
        self._is_dry = False  # there is nothing to take: wait
        self._owes = False  # a marker is to be put back
        self._missed = False  # a call was cut that may have popped a marker
        self._has_asked = False  # for a marker, ever: it may have one that never arrived here
        self._due_ms = 0  # when the next delayed job is due (0: there is none)

    def begin(self, due_ms: int) -> None:
        """There is nothing to take now; the next delayed job is due at `due_ms` (0: none)."""
        self._due_ms = due_ms
        self._is_dry = True
        self._news.set()

    def hand_on(self) -> None:
        """The worker was woken and takes nothing: another one is to be woken.  Does not yield."""
        self._owes = True
        self._news.set()

    def leave(self) -> None:
        """Wait no more; a wake-up that it may have taken is handed on.  Idempotent.  Does not
        yield."""
        self._stop.set()
        self._news.set()
        self._connection.close()

    def stop(self) -> None:
        """`leave`, and join the greenlet.  Yields."""
        self.leave()
        super().stop()

    def _begin_anew(self) -> None:
        self._missed = True

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._connection.opened()  # `get_workers` shows it while jobs run, too
            self._news.wait(self._pause())
            self._news.clear()
            if not self._stop.is_set():
                self._turn()
        self._end()

    def _pause(self) -> float | None:
        """Seconds until there is something to do without news; `None` for never."""
        if self._owes:
            return 0.0
        return self._slots.limited_for() if self._missed or self._is_dry else None

    def _turn(self) -> None:
        if self._owes:
            self._put_back()
        elif self._slots.limited_for():
            return  # meanwhile the markers are for others
        elif self._missed:
            self._pop(0.0)
            self._missed = False
            self._wake()
        elif self._is_dry:
            self._is_dry = False
            if self._wait():
                self._wake()

    def _wake(self) -> None:
        self._owes = self._slots.free() <= 0
        self._may_be_more(woken=True)

    def _wait(self) -> bool:
        """Block until there may be a job, or the time is over; `False` if it was stopped.  A
        marker for a later time is waited for in turn."""
        due_ms = self._due_ms
        while not self._stop.is_set():
            seconds = self._drain_delay
            if due_ms:
                seconds = (due_ms - clock.wall_ms()) / 1000
                if seconds <= 0:
                    return True
            popped_ms = self._pop(seconds)
            if popped_ms is None or popped_ms <= clock.wall_ms():
                return True
            due_ms = min(due_ms or popped_ms, popped_ms)
        return False

    def _pop(self, seconds: float) -> int | None:
        """The time of the first marker, waited for; `None` if there is none.  Only its answer
        says that an outage is over: a server may let everybody in and refuse every call."""
        try:
            self._connection.opened()
            self._has_asked = True
            due_ms = self._marker.pop(self._connection, seconds)
        except GeventqError:
            self._connection.renew()  # nobody else uses it, so a new one costs little
            raise
        self._outage.over()
        return due_ms

    def _put_back(self) -> None:
        self._marker.put_back()
        self._owes = False

    def _end(self) -> None:
        if self._has_asked or self._owes:
            try:
                self._put_back()
            except GeventqError as error:
                was_told = self._outage.is_under_way
                if not was_told and self._outage.failed(error):
                    self._tell("error", error)
        self._connection.close()
