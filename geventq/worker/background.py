"""A greenlet of the worker that does one thing again and again, until it is told to stop.

Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import abc
import typing

import gevent
import gevent.event

from geventq.hubs import interrupt_main
from geventq.outage import Outage

__all__ = ["Background"]


class Host(typing.Protocol):
    """Who is told: the worker's engine."""

    def error(self, error: BaseException) -> None:
        """Tell an error."""


class Background(abc.ABC):
    """Owns the greenlet ``geventq-<name>-<queue>``, its end and its outages; owned, started and
    stopped by the worker."""

    _host: typing.Any  # a `Host`, or what a subclass needs beyond it

    def __init__(self, name: str, what: str, queue: str) -> None:
        self._stop = gevent.event.Event()
        self._outage = Outage(what, queue, self._stop)
        self.greenlet = gevent.Greenlet(self._run)
        self.greenlet.name = f"geventq-{name}-{queue}"
        self.greenlet.spawn_tree_locals = {}  # it belongs to no job (2.12)

    def start(self) -> None:
        """Start the greenlet.  Does not yield."""
        self.greenlet.start()

    def stop(self) -> None:
        """End the greenlet and join it.  Idempotent.  Yields."""
        self._stop.set()
        self.greenlet.join()

    def _run(self) -> None:
        """`_loop`, which never ends for another reason than `stop`: whatever it fails with is
        told once an outage, and tried again after a pause, and a Ctrl-C that hits this greenlet
        is handed on."""
        while True:
            try:
                self._loop()
                return
            except KeyboardInterrupt as error:
                interrupt_main(error)
            except Exception as error:  # noqa: BLE001 (told)
                if self._outage.failed(error):
                    self._host.error(error)
                self._outage.pause()
            self._begin_anew()

    @abc.abstractmethod
    def _loop(self) -> None:
        """Run until `_stop` is set.  In the greenlet."""

    def _begin_anew(self) -> None:  # noqa: B027 (for those that wait for something first)
        """`_loop` was left half-way and will be called again.  Does not yield."""
