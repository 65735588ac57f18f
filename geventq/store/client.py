"""The client: calls to Redis from any greenlet, on pooled links.

Links are pooled per hub (an unpatched program has one hub a thread) and made anew after a fork.
A call takes a link for itself, so a greenlet that is killed in mid-call costs one connection and
never gives its neighbour a wrong answer.  Nothing is sent twice here unless the caller says
``again=True``: what may be re-sent is decided by kind (cancellation.md 3.6).  No greenlets run
in this module.
"""

from __future__ import annotations

import typing
from collections import deque

import gevent
import gevent.monkey
import hiredis
from gevent import get_hub

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.connection import Answer, Connection, life_of_this_thread, lost_answer, outage
from geventq.store.endpoint import Endpoint
from geventq.store.scripts import Script, pack

if typing.TYPE_CHECKING:
    from geventq.embedded.membership import Membership
    from geventq.store.keys import Keys

__all__ = ["CALL_TIMEOUT", "Client", "Endpoint", "checked", "pack"]

CALL_TIMEOUT: typing.Final = 10.0
"""Seconds that one call waits for its answer, unless it says otherwise."""

_IDLE_CHECK: typing.Final = 0.5  # seconds unused after which a link is looked at before use
_TRIES: typing.Final = 3  # of a call that may be sent again
_FIRST_PAUSE: typing.Final = 0.05  # seconds; doubles

Argument = str | bytes | int | float
_new_guard: typing.Final = gevent.monkey.get_original("_thread", "allocate_lock")


class _Pool(deque[Connection]):
    """The idle links of one hub.  Other native threads may close it meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = life_of_this_thread()

    def take(self) -> Connection | None:
        """One that can be used, if there is one."""
        while link := self._next():
            if clock.monotonic() - link.idle_since < _IDLE_CHECK or not link.is_dead():
                return link
            link.close()
        return None

    def close(self) -> None:
        """Close them all."""
        while link := self._next():
            link.close()

    def _next(self) -> Connection | None:
        try:
            return self.pop()  # the warmest one
        except IndexError:
            return None


class Client:
    """Calls to one Redis endpoint.

    `name` is the connections' ``CLIENT SETNAME``.  May be used from any greenlet of any native
    thread.  Every method that calls Redis yields to the hub and raises
    `RedisUnavailableError` (outage) or `GeventqError` (refused).  Of an embedded server the
    process is a member from the first call to `close`.
    """

    def __init__(self, endpoint: Endpoint, *, name: str | None = None) -> None:
        self.endpoint = endpoint
        self._name = name
        self._pools: dict[object, _Pool] = {}  # by hub
        self._membership: Membership | None = None
        # Stops other native threads, so not a patched lock; nobody holds it while the hub turns.
        self._guard = _new_guard()
        self._generation = fork.generation
        self._closed = False
        self._keeps = True  # connections stay open between calls

    def execute(
        self, *command: Argument, again: bool = False, timeout: float | None = CALL_TIMEOUT
    ) -> Answer:
        """Run one command and return its reply (texts as bytes)."""
        return checked(self.call(pack(command), 1, again=again, timeout=timeout))[0]

    def pipeline(
        self,
        commands: typing.Sequence[tuple[Argument, ...]],
        *,
        again: bool = False,
        timeout: float | None = CALL_TIMEOUT,
    ) -> list[Answer]:
        """Run several commands in one round trip; the first error reply is raised."""
        if not commands:
            return []
        payload = b"".join([pack(command) for command in commands])
        return checked(self.call(payload, len(commands), again=again, timeout=timeout))

    def script(
        self,
        script: Script,
        keys: Keys,
        args: typing.Sequence[Argument],
        *,
        again: bool = False,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Answer:
        """Run a script by its hash, loading it first where the server does not know it."""
        payload = script.pack(keys, args)
        reply = self.call(payload, 1, again=again, timeout=timeout)[0]
        if isinstance(reply, hiredis.HiredisError):
            if str(reply).startswith("NOSCRIPT"):  # nothing ran, so it may be sent again
                load = pack(("SCRIPT", "LOAD", script.source))
                replies = self.call(load + payload, 2, again=again, timeout=timeout)
                return checked(replies)[1]
            checked([reply])
        return reply

    def call(
        self, payload: bytes, count: int, *, again: bool = False, timeout: float | None
    ) -> list[Answer]:
        """Send packed commands and return their replies, errors in their places; an outage
        among them is raised.  With `again` it is sent up to three times."""
        pause = _FIRST_PAUSE
        for left in range(_TRIES - 1 if again else 0, -1, -1):
            try:
                return self._call_once(payload, count, timeout)
            except RedisUnavailableError:
                if not left or self._closed:
                    raise
                gevent.sleep(pause)
                pause *= 2
        raise AssertionError("unreachable")

    def open_connection(self, *, name: str | None = None) -> Connection:
        """A link outside the pool, for calls that block.  Whoever asks for it closes it."""
        self._check_process()
        name = name or self._name
        if self.endpoint.embedded is None:
            return Connection.open(self.endpoint, name=name)
        return Connection.open(self.endpoint, name=name, path=self._join(self.endpoint.embedded))

    def _join(self, url: str) -> str:
        """The socket of the embedded server, which is started again if it has died."""
        from geventq.embedded import membership as embedded  # only where it is used

        since = fork.generation
        joined = embedded.join(url)
        if since != fork.generation:  # what was to be sent is for the parent to send
            joined.close()
            raise lost_answer("the process was forked before it had a connection to Redis", False)
        with self._guard:
            if self._membership is None and not self._closed:
                self._membership = joined
                return joined.socket_path
        joined.close()  # one is enough
        self._refuse_if_closed()
        return joined.socket_path

    def _call_once(self, payload: bytes, count: int, timeout: float | None) -> list[Answer]:
        pool = self._pool()
        link = pool.take() or self.open_connection()
        replies = link.call(payload, count, timeout)
        link.idle_since = clock.monotonic()
        pool.append(link)
        if self._closed or not self._keeps:  # closed meanwhile, or never to be
            pool.close()
        for reply in replies:
            if outage(reply):
                raise lost_answer(f"Redis at {link.address} refuses for now: {reply}", False)
        return replies

    def _pool(self) -> _Pool:
        self._check_process()
        self._refuse_if_closed()
        hub = get_hub()
        pool = self._pools.get(hub)
        if pool is None:
            self._forget_ended_threads()
            pool = self._pools[hub] = _Pool()
        return pool

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise GeventqError("this client is closed")

    def _forget_ended_threads(self) -> None:
        """The links of a hub refer to it, so it would stay for ever after its thread's end."""
        for hub, pool in self._pools.copy().items():  # a copy: other threads come meanwhile
            if pool.thread() is None:
                self._pools.pop(hub, None)
                pool.close()

    def _check_process(self) -> None:
        """In a forked child, begin anew: the links have lost their connections there, and the
        membership is closed."""
        if self._generation == fork.generation:
            return
        self._generation = fork.generation
        # A program that forks with the plain `os.fork` need not know that gevent is at work: its
        # resolver's threads are the parent's, and looking up a host would wait for them for ever.
        gevent.reinit()
        self._guard = _new_guard()  # a thread of the parent may have held it
        self._membership = None
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def afterwards(self) -> Client:
        """A client for calls that come after this one's close: nobody will close it, so each call
        has a connection of its own."""
        client = Client(self.endpoint, name=self._name)
        client._keeps = False
        return client

    def close(self) -> None:
        """Close the idle links; those in use close when their call ends.  Idempotent."""
        self._check_process()
        with self._guard:
            self._closed = True
            membership, self._membership = self._membership, None
        for pool in self._pools.copy().values():
            pool.close()
        if membership is not None:
            membership.close()


def checked(replies: list[Answer]) -> list[Answer]:
    """Raise the first error among `replies` as a `GeventqError`, else return them."""
    for reply in replies:
        if isinstance(reply, hiredis.HiredisError):
            raise GeventqError(f"Redis refused: {reply}")
    return replies
