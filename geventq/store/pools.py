"""The connections of this process: which are idle, and how many its callers may have.

A `Pool` holds the idle connections of one client in one hub; a `Server` knows all connections that
callers have to one server, in whatever hub, and lets callers in up to ``max_connections``.
What a worker needs for itself is in pools that are not counted.  Knows
nothing of calls.  No greenlets run here: the hub's timer closes what stays idle, and only
`Server.admit` yields.
"""

from __future__ import annotations

import os
import typing
import weakref
from collections import deque

import gevent.monkey
from gevent import get_hub

from geventq import clock, wakeups
from geventq.errors import RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.threads import life_of_this_thread

if typing.TYPE_CHECKING:
    from geventq.store.connection import Connection
    from geventq.store.endpoint import Endpoint

__all__ = ["Pool", "Server"]

_IDLE_CHECK: typing.Final = 0.02  # seconds unused after which a connection is looked at before use
_IDLE: typing.Final = 3.0  # seconds unused after which it is closed, at the next look
_LOOK: typing.Final = 1.0  # seconds between two looks

# Stops other native threads, so not a patched lock; nobody holds it while the hub turns.  The
# collector may end a greenlet of ours, and so come here, while this thread holds it.
_new_guard: typing.Final = gevent.monkey.get_original("_thread", "RLock")


class Pool:
    """The idle connections of one client in one hub, the warmest last.

    Other native threads may take from it, and close it.  Without a `server` they are a worker's
    own, of which the warmest one stays.
    """

    def __init__(self, server: Server | None) -> None:
        self.thread = life_of_this_thread()
        self.hub: typing.Any = get_hub()
        self._server = server
        self._idle: deque[Connection] = deque()
        # Not one that keeps the loop alive: a program may end with idle connections.
        self._timer: typing.Any = self.hub.loop.timer(_LOOK, _LOOK, ref=False)
        if server is not None:
            server.add_pool(self)

    def __iter__(self) -> typing.Iterator[Connection]:
        return iter(tuple(self._idle))

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """One that can be used, if there is one.  Only in its own hub."""
        idle = self._idle
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was quicker
                return None
            unused = clock.monotonic() - connection.idle_since
            if unused < _IDLE_CHECK or not connection.is_dead():
                return connection
            self._close(connection)
        return None

    def put(self, connection: Connection) -> None:
        """It is idle from now on, unless somebody waits for one.  Only in its own hub."""
        connection.idle_since = clock.monotonic()
        self._idle.append(connection)
        if not self._timer.active:
            self._timer.start(self._look)
        server = self._server
        if server is not None and server.is_pressed:
            server.serve()

    def lose(self, connection: Connection) -> None:
        """It was closed by a call that did not end normally."""
        if self._server is not None:
            self._server.left(connection)

    def take_coldest(self) -> Connection | None:
        """The one that is idle for longest, from whatever thread."""
        try:
            return self._idle.popleft()
        except IndexError:
            return None

    def take_warmest(self) -> Connection | None:
        """The one that was used last, from whatever thread."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def close(self) -> None:
        """Close them all."""
        while (connection := self.take_coldest()) is not None:
            self._close(connection)

    def disown(self) -> None:
        """In a forked child: they are the parent's."""
        while (connection := self.take_coldest()) is not None:
            connection.close()

    def _close(self, connection: Connection) -> None:
        connection.close()
        self.lose(connection)

    def _look(self) -> None:
        """Close what has been idle for some seconds.  In the hub."""
        unused_since = clock.monotonic() - _IDLE
        keep = 0 if self._server is not None else 1
        while len(self._idle) > keep:
            connection = self.take_coldest()
            if connection is None:
                break
            if connection.idle_since > unused_since:
                self._idle.appendleft(connection)
                return
            self._close(connection)
        self._timer.stop()


class _Waiter:
    """A caller who waits for a connection: an idle one of his pool, or the place for a new one.
    Once served, it is that place, until he has connected."""

    __slots__ = ("__weakref__", "_event", "connection", "is_served", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.connection: Connection | None = None
        self.is_served = False
        self._event = wakeups.Event()

    def serve(self, connection: Connection | None) -> None:
        self.connection, self.is_served = connection, True
        self.pool.hub.loop.run_callback_threadsafe(self._event.set)

    def wait(self, deadline: float) -> bool:
        """Whether he was served before `deadline`.  Yields."""
        if not self.is_served:
            self._event.wait(max(0.0, deadline - clock.monotonic()))
        return self.is_served


_servers: weakref.WeakValueDictionary[tuple[object, ...], Server] = weakref.WeakValueDictionary()


def _after_fork_in_child() -> None:
    """Greenlets that run on there come back to what a thread of the parent may have held."""
    for server in list(_servers.values()):
        server.renew_guard()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Server:
    """The connections that callers in this process have to one server, in all its hubs."""

    def __init__(self) -> None:
        self._guard = _new_guard()
        self._limits: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        # Both are weak: what a Ctrl-C has taken from its caller at a bad moment does not count.
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._opening: weakref.WeakSet[_Waiter] = weakref.WeakSet()  # who has a place
        self._waiting: deque[_Waiter] = deque()  # in their order
        self._limit = 1

    @staticmethod
    def of(endpoint: Endpoint) -> Server:
        """The one that all clients of this server share; a forked child has one of its own."""
        return _servers.setdefault((fork.generation, *endpoint.server), Server())

    @property
    def is_pressed(self) -> bool:
        """Whether somebody waits for a connection, or there are more than there may be."""
        return bool(self._waiting) or len(self._open) > self._limit

    def renew_guard(self) -> None:
        """Nobody holds it any more."""
        self._guard = _new_guard()

    def add_client(self, client: object, limit: int) -> None:
        """`client` is open, and allows `limit` connections: the smallest number holds."""
        with self._guard:
            self._limits[client] = limit
            self.serve()

    def remove_client(self, client: object) -> None:
        """`client` is closed."""
        with self._guard:
            self._limits.pop(client, None)
            self.serve()

    def add_pool(self, pool: Pool) -> None:
        """The idle connections of `pool` count, and may have to make room."""
        with self._guard:
            self._pools.add(pool)

    def admit(self, pool: Pool, deadline: float) -> _Waiter:
        """Wait for a connection: an idle one of `pool`, or the place for a new one, of which
        `opened` or `not_opened` is to be told.

        A caller takes the place of another pool's idle connection, which is closed; else he waits
        for one, each in his turn, until `deadline`.  Raises `RedisUnavailableError`.  Yields.
        """
        waiter = _Waiter(pool)
        with self._guard:
            self._waiting.append(waiter)
            self.serve()
        try:
            if waiter.wait(deadline):
                return waiter
            raise RedisUnavailableError(
                f"no connection to Redis was free in time: all {self._limit} are in use "
                "(max_connections)"
            )
        except BaseException:
            self._withdraw(waiter)
            raise

    def opened(self, place: _Waiter, connection: Connection) -> None:
        """A place is taken."""
        with self._guard:
            self._open.add(connection)
            self._opening.discard(place)

    def not_opened(self, place: _Waiter) -> None:
        """A place is not needed."""
        with self._guard:
            self._opening.discard(place)
            self.serve()

    def left(self, connection: Connection) -> None:
        """A connection was closed."""
        with self._guard:
            self._open.discard(connection)
            self.serve()

    def forsake_idle(self) -> None:
        """Behind the address there is another server by now: close what is idle."""
        for pool in self._all_pools():
            pool.close()

    def forget_ended_threads(self) -> None:
        """Close what is idle in threads that have ended."""
        for pool in self._all_pools():
            if pool.thread() is None:
                pool.close()

    def serve(self) -> None:
        """Give what there is to those who wait, in their order."""
        with self._guard:
            self._limit = min(self._limits.values(), default=1)
            while len(self._open) > self._limit and self._make_room():
                pass  # the limit has become smaller
            while self._waiting:
                waiter = self._waiting.popleft()
                if waiter.pool.thread() is None:
                    continue  # its thread has ended
                connection = waiter.pool.take_warmest()
                if connection is None:
                    if not self._has_room() and not self._make_room():
                        self._waiting.appendleft(waiter)
                        return
                    self._opening.add(waiter)
                waiter.serve(connection)

    def _has_room(self) -> bool:
        return len(self._open) + len(self._opening) < self._limit

    def _make_room(self) -> bool:
        """Close an idle connection, whosever it is."""
        for pool in self._all_pools():
            connection = pool.take_coldest()
            if connection is not None:
                connection.close()
                self._open.discard(connection)
                return True
        return False

    def _withdraw(self, waiter: _Waiter) -> None:
        """A caller waits no more; what he got at the last moment he passes on."""
        with self._guard:
            if not waiter.is_served:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                return
        if waiter.connection is None:
            self.not_opened(waiter)
        else:
            waiter.pool.put(waiter.connection)

    def _all_pools(self) -> list[Pool]:
        with self._guard:
            return list(self._pools)
