"""How a loop lives through an outage: log once, back off, report recovery."""

from __future__ import annotations

import logging
import random
import typing

import gevent.event

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError

__all__ = ["Outage"]

_FIRST: typing.Final = 0.05  # seconds
_LONGEST: typing.Final = 2.0

log = logging.getLogger("geventq")


class Outage:
    """The failures of one loop since its last success.

    `failed` is told of every failure and says whether it is the first of this outage; `pause`
    waits, longer each time, until `stop` is set; `over` ends the outage.
    """

    def __init__(self, what: str, queue: str | None, stop: gevent.event.Event) -> None:
        self._what = what if queue is None else f"{what} of queue {queue}"
        self._extra = None if queue is None else {"queue": queue}
        self._stop = stop
        self._since: float | None = None
        self._pause = _FIRST

    @property
    def is_under_way(self) -> bool:
        """Whether the last that is known is a failure."""
        return self._since is not None

    @property
    def is_expected(self) -> bool:
        """Whether its owner stops: what fails now fails because of that."""
        return self._stop.is_set()

    def failed(self, error: BaseException) -> bool:
        """Note a failure; `True` for the first one, which is logged."""
        if self._since is not None:
            return False
        self._since = clock.monotonic()
        log.warning(
            "%s failed, trying again: %s",
            self._what,
            _plain(error),
            extra=self._extra,
        )
        if isinstance(error, RedisUnavailableError):
            error.was_logged = True
        return True

    def pause(self, at_most: float = _LONGEST) -> None:
        """Wait before the next try: 50 ms, doubling up to 2 s, with jitter.  Yields."""
        seconds = min(self._pause, at_most) * random.uniform(0.75, 1.25)
        self._pause = min(self._pause * 2, _LONGEST)
        self._stop.wait(seconds)

    def over(self) -> None:
        """The loop works (again)."""
        since, self._since, self._pause = self._since, None, _FIRST
        if since is not None:
            log.warning(
                "%s works again after %.1f s",
                self._what,
                clock.monotonic() - since,
                extra=self._extra,
            )


def _plain(error: BaseException) -> str:
    """An error of ours as it is; of any other its class too, which may be all it says."""
    if isinstance(error, GeventqError):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")
