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

__all__ = ["IdleWait"]

_LONGEST: typing.Final = 10.0  # seconds of one blocking call (wire-format 17.13)
_GRACE: typing.Final = 5.0  # seconds past its own wait that the server may take (3.6)
_SHORTEST: typing.Final = 0.002


class Host(typing.Protocol):
    """Who waits for jobs: the worker's engine."""

    def room(self) -> int:
        """How many jobs it would run now."""

    def want(self) -> None:
        """There may be a job."""

    def error(self, error: BaseException) -> None:
        """Tell an error."""


class IdleWait(Background):
    """Waits while the queue is dry, then tells its host.  Owned, started and joined by the worker.

    `begin` lets it wait (again); the host is told when a marker was popped, a delayed job is due,
    or the time is over.  A host that has no free slot by then, or is paused, would leave the job to
    nobody: the marker is put back for the others.
    """

    _host: Host

    def __init__(
        self,
        host: Host,
        client: Client,
        keys: QueueKeys,
        *,
        worker_name: str,
        drain_delay: float,
    ) -> None:
        super().__init__("idle", "waiting for jobs", keys.name)
        self._host = host
        self._client = client
        self._keys = keys
        self._name = keys.client_name(f":w:{worker_name}" if worker_name else "")
        self._drain_delay = drain_delay
        self._begin = gevent.event.Event()
        self._due_ms = 0
        self._rest = 0.0
        self._link: Connection | None = None

    def begin(self, due_ms: int) -> None:
        """There is nothing to take now; the next delayed job is due at `due_ms` (0: none)."""
        self._due_ms = due_ms
        self._begin.set()

    def begin_later(self, seconds: float) -> None:
        """The host will not run a job for `seconds`: the markers are for others."""
        self._rest = seconds
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
                if self._host.room() <= 0:
                    self._hand_on()
                self._host.want()
        self._hand_on()
        if self._link is not None:
            self._link.close()

    def _wait(self, link: Connection) -> bool:
        """Block until there may be a job, or the time is over; `False` if it was stopped.  A
        marker for a later time is waited for in turn."""
        rest, self._rest = self._rest, 0.0
        if rest:
            return not self._stop.wait(rest)
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
            self._host.error(error)
