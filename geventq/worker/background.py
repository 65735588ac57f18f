"""A greenlet of the worker that does one thing again and again, until it is told to stop.

Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import abc
import typing

from geventq import wakeups
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    import gevent

    from geventq.store.client import Client
    from geventq.worker.listeners import Tell

__all__ = ["Background"]

_PATIENCE: typing.Final = 1.5  # seconds for a last call


class Background(abc.ABC):
    """Owns the greenlet ``geventq-<name>-<queue>``, its end and its outages; owned, started and
    stopped by the worker.

    `client` is what it calls Redis by.  A failure of `_loop` is told once an outage and followed by
    a pause; then it is called again (`geventq.guarded`).
    """

    def __init__(self, name: str, what: str, queue: str, tell: Tell, client: Client) -> None:
        self._tell = tell
        self._stop = wakeups.Event()
        self._outage = Outage(what, queue, self._stop, client)
        self._task = Guarded(self._enter, f"{name}-{queue}", self._outage, tell=self._tell_error)
        self._has_begun = False

    @property
    def greenlet(self) -> gevent.Greenlet[..., None] | None:
        """The one that runs now."""
        return self._task.greenlet

    @property
    def is_cut_off(self) -> bool:
        """Whether the last that it did has failed."""
        return self._outage.is_under_way

    def start(self) -> None:
        """Start the greenlet.  Does not yield."""
        self._task.start()

    def stop(self) -> None:
        """End the greenlet and join it.  A call to Redis that hangs is cut.  Idempotent.
        Yields."""
        self._stop.set()
        if not self._task.join(_PATIENCE):
            kill_all([self._task])

    def disown(self) -> list[typing.Any]:
        """In a forked child: the greenlet, which is the parent's."""
        return [] if self.greenlet is None else [self.greenlet]

    def _tell_error(self, error: BaseException) -> None:
        self._tell("error", error)

    def _enter(self) -> None:
        if self._has_begun:
            self._begin_anew()
        self._has_begun = True
        self._loop()

    @abc.abstractmethod
    def _loop(self) -> None:
        """Run until `_stop` is set.  In the greenlet."""

    def _begin_anew(self) -> None:  # noqa: B027 (for those that wait for something first)
        """`_loop` was left half-way and will be called again.  Does not yield."""
