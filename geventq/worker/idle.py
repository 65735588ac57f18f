"""Waiting for work while there is none: the blocking wait on the marker (wire-format 7, 11).

One greenlet with a connection of its own, which carries the name that `get_workers` looks for.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing

import gevent.event

from geventq import clock
from geventq.errors import GeventqError
from geventq.store.client import pack
from geventq.store.connection import Connection
from geventq.store.scripts import load
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.run.slots import Slots

__all__ = ["IdleWait"]

_LONGEST: typing.Final = 10.0  # seconds of one blocking call (wire-format 17.13)
_GRACE: typing.Final = 5.0  # seconds past its own wait that the server may take (3.6)
_SHORTEST: typing.Final = 0.002


class IdleWait(Background):
    """Waits while there is nothing to take.  Owned, started and joined by the worker.

    `begin` lets it wait (again); `may_be_more` is called when a marker was popped, a delayed job
    is due, or the time is over.  A worker that is full by then, or paused, would leave the job to
    nobody: it puts the marker back for the others.
    """

    def __init__(
        self,
        slots: Slots,
        may_be_more: typing.Callable[[], None],
        tell: Tell,
        client: Client,
        keys: QueueKeys,
        *,
        worker_name: str,
        drain_delay: float,
    ) -> None:
        super().__init__("idle", "waiting for jobs", keys.name, tell)
        self._slots = slots
        self._may_be_more = may_be_more
        self._client = client
        self._keys = keys
        self._name = keys.client_name(f":w:{worker_name}" if worker_name else "")
        self._drain_delay = drain_delay
        self._begin = gevent.event.Event()
        self._due_ms = 0
        self._link: Connection | None = None

    def begin(self, due_ms: int) -> None:
        """There is nothing to take now; the next delayed job is due at `due_ms` (0: none)."""
        self._due_ms = due_ms
        self._begin.set()

    def leave(self) -> None:
        """Wait no more; a wake-up that it may have taken is handed on.  Idempotent.  Does not
        yield."""
        self._stop.set()
        self._begin.set()
        link = self._link
        if link is not None:
            link.close()

    def stop(self) -> None:
        """`leave`, and join the greenlet.  Yields."""
        self.leave()
        super().stop()

    def _begin_anew(self) -> None:
        self._begin.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            link = self._link
            if link is None or link.closed:
                link = self._link = self._client.open_connection(name=self._name)
            self._begin.wait()
            self._begin.clear()
            if not self._stop.is_set() and self._wait(link):
                self._outage.over()
                if self._slots.free() <= 0:
                    self._hand_on()
                self._may_be_more()
        self._hand_on()
        if self._link is not None:
            self._link.close()

    def _wait(self, link: Connection) -> bool:
        """Block until there may be a job, or the time is over; `False` if it was stopped.  A
        marker for a later time is waited for in turn."""
        while rest := self._slots.limited_for():  # meanwhile the markers are for others
            if self._stop.wait(rest):
                return False
        due_ms = self._due_ms
        while not self._stop.is_set():
            seconds = self._drain_delay
            if due_ms:
                seconds = min((due_ms - clock.wall_ms()) / 1000, _LONGEST)
                if seconds <= 0:
                    return True
            seconds = max(_SHORTEST, min(seconds, _LONGEST))
            payload = pack(("BZPOPMIN", self._keys.marker, f"{seconds:.3f}"))
            reply = link.call(payload, 1, seconds + _GRACE)[0]
            if isinstance(reply, Exception):
                raise GeventqError(f"Redis refused: {reply}")
            if reply is None:
                return True
            due_ms = int(float(reply[2]))
            if due_ms <= clock.wall_ms():
                return True
        return False

    def _hand_on(self) -> None:
        try:
            self._client.script(load("hand_on"), self._keys, [], timeout=1.0)
        except GeventqError as error:
            self._tell("error", error)
