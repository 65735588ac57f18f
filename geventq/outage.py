"""How a loop lives through an outage: log once, back off, report recovery.

An outage of Redis is met by a dozen loops of a process at once; it is one outage, and told once.
"""

from __future__ import annotations

import logging
import math
import os
import random
import typing
import weakref

import gevent.monkey

from geventq import clock, wakeups
from geventq.errors import GeventqError, RedisUnavailableError

__all__ = ["Outage"]

_FIRST: typing.Final = 0.05  # seconds
_LONGEST: typing.Final = 2.0
_LATE: typing.Final = 30.0  # seconds after an outage in which a loop may find that it was cut off

_WORKS: typing.Final = "%s works again after %.1f s"

log = logging.getLogger("geventq")
_new_guard: typing.Final = gevent.monkey.get_original("_thread", "allocate_lock")


class Served(typing.Protocol):
    """Whoever calls a server, for all the loops of one owner: a `Client`."""

    @property
    def address(self) -> str:
        """Where the server is, for people."""


class Outage:
    """The failures of one loop since its last success.

    `failed` is told of every failure and says whether it is the first of this outage; `pause`
    waits, longer each time, until `stop` is set; `over` ends the outage.  `client` is what the loop
    calls Redis by: while that server cannot be used, all loops of the process that meet it share
    one outage, of which the log tells the beginning and the end once; and of the loops that share a
    client, as those of a worker do, only the first hears that it is news.
    """

    def __init__(
        self, what: str, queue: str | None, stop: wakeups.Event, client: Served | None = None
    ) -> None:
        self._what = what if queue is None else f"{what} of queue {queue}"
        self._extra = None if queue is None else {"queue": queue}
        self._stop = stop
        self._client = client
        self._since: float | None = None
        self._level = logging.WARNING  # of what it tells: that of a shared outage is a detail
        self._shared: _ServerOutage | None = None
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
        is_first = is_news = self._since is None
        is_shared = self._client is not None and isinstance(error, RedisUnavailableError)
        if self._client is not None and is_shared:
            self._shared = self._shared or _ServerOutage.of(self._client.address)
            is_news = self._shared.met(self, self._client, f"{self._what}: {_plain(error)}")
        if is_first:
            self._since = clock.monotonic()
            self._level = logging.DEBUG if is_shared else logging.WARNING
            text = "%s failed, trying again: %s"
            log.log(self._level, text, self._what, _plain(error), extra=self._extra)
        if isinstance(error, RedisUnavailableError):
            error.was_logged = True
        return is_news

    def pause(self, at_most: float = _LONGEST) -> None:
        """Wait before the next try: 50 ms, doubling up to 2 s, with jitter.  Yields."""
        seconds = min(self._pause, at_most) * random.uniform(0.75, 1.25)
        self._pause = min(self._pause * 2, _LONGEST)
        self._stop.wait(seconds)

    def over(self) -> None:
        """The loop works (again)."""
        since, self._since, self._pause = self._since, None, _FIRST
        if since is not None:
            lasted = clock.monotonic() - since
            log.log(self._level, _WORKS, self._what, lasted, extra=self._extra)
            self.rest(works=True)

    def rest(self, *, works: bool = False) -> None:
        """The loop has nothing to do for now: an outage of its server can be over without it."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.left(self, works)


class _ServerOutage:
    """One server, and the loops of this process that cannot use it now, in whatever threads."""

    _known: typing.ClassVar[dict[tuple[int, str], _ServerOutage]] = {}

    def __init__(self, server: str) -> None:
        self._server = server
        self._since: float | None = None  # of an outage that was told
        self._ended = -math.inf
        self._works = False  # for one of those that had met it
        self._met_late: weakref.WeakSet[Outage] = weakref.WeakSet()
        self._met_by: weakref.WeakSet[Outage] = weakref.WeakSet()
        self._heard_by: weakref.WeakSet[Served] = weakref.WeakSet()  # for whom it is no news
        self._guard = _new_guard()  # nobody holds it while the hub turns

    @classmethod
    def of(cls, server: str) -> _ServerOutage:
        """That of this process: a forked child tells anew."""
        return cls._known.setdefault((os.getpid(), server), cls(server))

    def met(self, outage: Outage, client: Served, how: str) -> bool:
        """A loop has failed by it; whether that is news for those who share its client."""
        with self._guard:
            begins = self._begins(outage)
            is_news = self._since is not None and client not in self._heard_by
            if is_news:
                self._heard_by.add(client)
        if begins:
            log.warning("Redis at %s failed, trying again: %s", self._server, how)
        return is_news

    def _begins(self, outage: Outage) -> bool:
        if self._since is not None and self._is_shared():
            self._met_by.add(outage)
            return False
        now = clock.monotonic()
        if outage not in self._met_late and now < self._ended + _LATE:
            self._met_late.add(outage)  # its connection is of before, it seems; else it fails again
            return False
        self._met_by |= self._met_late
        self._met_by.add(outage)
        self._met_late.clear()
        self._heard_by.clear()
        self._since, self._works = now, False
        return True

    def left(self, outage: Outage, works: bool) -> None:
        """A loop can use it again, or does not try any more."""
        with self._guard:
            lasted = self._ends(outage, works)
        if lasted is not None:
            log.warning(_WORKS, f"Redis at {self._server}", lasted)

    def _ends(self, outage: Outage, works: bool) -> float | None:
        """How long it lasted, if it is over and that is known."""
        self._works |= works and outage in self._met_by
        self._met_by.discard(outage)
        self._met_late.discard(outage)
        if self._since is None or self._is_shared():
            return None
        since, self._since, self._ended = self._since, None, clock.monotonic()
        return self._ended - since if self._works else None

    def _is_shared(self) -> bool:
        """Whether a loop that is not about to end still meets it."""
        return any(not one.is_expected for one in self._met_by)


def _plain(error: BaseException) -> str:
    """An error of ours as it is; of any other its class too, which may be all it says."""
    if isinstance(error, GeventqError):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")
