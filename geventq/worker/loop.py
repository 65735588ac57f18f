"""A greenlet of the worker that does one thing again and again, until it is told to stop."""

from __future__ import annotations

import abc

import gevent
import gevent.event

from geventq.outage import Outage

__all__ = ["Loop"]


class Loop(abc.ABC):
    """Owns the greenlet ``geventq-<name>-<queue>``, its end and its outages; owned, started and
    stopped by the worker."""

    def __init__(self, name: str, what: str, queue: str) -> None:
        self._stop = gevent.event.Event()
        self._outage = Outage(what, queue, self._stop)
        self.greenlet = gevent.Greenlet(self._loop)
        self.greenlet.name = f"geventq-{name}-{queue}"
        self.greenlet.spawn_tree_locals = {}  # it belongs to no job (2.12)

    def start(self) -> None:
        """Start the greenlet.  Does not yield."""
        self.greenlet.start()

    def stop(self) -> None:
        """End the greenlet and join it.  Idempotent.  Yields."""
        self._stop.set()
        self.greenlet.join()

    @abc.abstractmethod
    def _loop(self) -> None:
        """Run until `_stop` is set.  In the greenlet."""
