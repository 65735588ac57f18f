"""The client: calls to Redis from any greenlet, on pooled links.

Links are pooled per hub (an unpatched program has one hub a thread) and made anew after a fork.
A call takes a link for itself, so a greenlet that is killed in mid-call costs one connection and
never gives its neighbour a wrong answer.  Nothing is sent twice here unless the caller says
``again=True``: what may be re-sent is decided by kind (cancellation.md 3.6).  No greenlets run
in this module.
"""

from __future__ import annotations

import typing
import weakref
from collections import deque

import gevent
import hiredis
from gevent import get_hub

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store import fork
from geventq.store.endpoint import Endpoint
from geventq.store.link import Link, Reply, lost_answer, outage
from geventq.store.scripts import Script

__all__ = ["CALL_TIMEOUT", "Client", "Endpoint", "Reply", "checked", "pack"]

CALL_TIMEOUT: typing.Final = 10.0
"""Seconds that one call waits for its answer, unless it says otherwise."""

_IDLE_CHECK: typing.Final = 0.5  # seconds unused after which a link is looked at before use
_TRIES: typing.Final = 3  # of a call that may be sent again
_FIRST_PAUSE: typing.Final = 0.05  # seconds; doubles

Argument = str | bytes | int | float
pack: typing.Callable[[tuple[Argument, ...]], bytes] = typing.cast(typing.Any, hiredis.pack_command)


class Client:
    """Calls to one Redis endpoint.

    `name` is the connections' ``CLIENT SETNAME``.  May be used from any greenlet of any native
    thread.  Every method that calls Redis yields to the hub and raises
    `RedisUnavailableError` (outage) or `GeventqError` (refused).
    """

    def __init__(self, endpoint: Endpoint, *, name: str | None = None) -> None:
        self.endpoint = endpoint
        self._name = name
        self._pools: weakref.WeakKeyDictionary[object, deque[Link]] = weakref.WeakKeyDictionary()
        self._generation = fork.generation
        self._closed = False

    def execute(
        self, *command: Argument, again: bool = False, timeout: float | None = CALL_TIMEOUT
    ) -> Reply:
        """Run one command and return its reply (texts as bytes)."""
        return checked(self.call(pack(command), 1, again=again, timeout=timeout))[0]

    def pipeline(
        self,
        commands: typing.Sequence[tuple[Argument, ...]],
        *,
        again: bool = False,
        timeout: float | None = CALL_TIMEOUT,
    ) -> list[Reply]:
        """Run several commands in one round trip; the first error reply is raised."""
        if not commands:
            return []
        payload = b"".join([pack(command) for command in commands])
        return checked(self.call(payload, len(commands), again=again, timeout=timeout))

    def script(
        self,
        script: Script,
        keys: typing.Sequence[str],
        args: typing.Sequence[Argument],
        *,
        again: bool = False,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Reply:
        """Run a script by its hash, loading it first where the server does not know it."""
        payload = script.pack(keys, args)
        reply = self.call(payload, 1, again=again, timeout=timeout)[0]
        if isinstance(reply, hiredis.HiredisError):
            if str(reply).startswith("NOSCRIPT"):  # nothing ran, so it may be sent again
                load = pack(("SCRIPT", "LOAD", script.source))
                reply = self.call(load + payload, 2, again=again, timeout=timeout)[1]
            checked([reply])
        return reply

    def call(
        self, payload: bytes, count: int, *, again: bool = False, timeout: float | None
    ) -> list[Reply]:
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

    def _call_once(self, payload: bytes, count: int, timeout: float | None) -> list[Reply]:
        pool = self._pool()
        link = self._idle_link(pool) or Link.open(self.endpoint, name=self._name)
        replies = link.call(payload, count, timeout)
        if self._closed:
            link.close()
        else:
            link.idle_since = clock.monotonic()
            pool.append(link)
        for reply in replies:
            if outage(reply):
                raise lost_answer(f"Redis at {link.address} refuses for now: {reply}", False)
        return replies

    def _pool(self) -> deque[Link]:
        if self._generation != fork.generation:
            self._forget_parent()
        if self._closed:
            raise GeventqError("this client is closed")
        hub = get_hub()
        pool = self._pools.get(hub)
        if pool is None:
            self._forget_ended_threads()
            pool = self._pools[hub] = deque()
        return pool

    def _forget_ended_threads(self) -> None:
        """The links of a hub refer to it, so it would stay for ever after its thread's end."""
        for hub, pool in list(self._pools.items()):
            if pool and pool[0].abandoned:
                del self._pools[hub]
                while pool:
                    pool.pop().close()

    @staticmethod
    def _idle_link(pool: deque[Link]) -> Link | None:
        while pool:
            link = pool.pop()  # the warmest one
            if clock.monotonic() - link.idle_since < _IDLE_CHECK or not link.is_dead():
                return link
            link.close()
        return None

    def _forget_parent(self) -> None:
        """In a forked child, where the links have lost their connections."""
        self._generation = fork.generation
        for pool in list(self._pools.values()):
            while pool:
                pool.pop().close()
        self._pools = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Close the idle links; those in use close when their call ends.  Idempotent."""
        self._closed = True
        for pool in list(self._pools.values()):
            while pool:
                pool.pop().close()


def checked(replies: list[Reply]) -> list[Reply]:
    """Raise the first error among `replies` as a `GeventqError`, else return them."""
    for reply in replies:
        if isinstance(reply, hiredis.HiredisError):
            raise GeventqError(f"Redis refused: {reply}")
    return replies
