"""Where a server's host is: look-ups of its name that share nothing with users' calls.

The hub's own pool of threads may be full of look-ups that nobody can cancel, and a worker that
connects anew to renew its locks must not stand behind them (cancellation.md 2.11).  So each look
has a native thread of its own, and those in one hub who look for the same name at about the same
time share one.  No greenlets run here; looking up a name yields to the hub.
"""

from __future__ import annotations

import _socket
import typing

import gevent.monkey
from gevent import get_hub
from gevent.event import AsyncResult

from geventq import clock
from geventq.fork import connections as fork

__all__ = ["Address", "addresses"]

Address = tuple[int, int, int, str, typing.Any]
"""Family, kind, protocol, name, and what a socket of that family connects to."""

_FRESH: typing.Final = 1.0  # seconds for which others join a look that is under way

_start_thread: typing.Final = gevent.monkey.get_original("_thread", "start_new_thread")


class _Look(typing.NamedTuple):
    began: float
    generation: int
    found: AsyncResult[list[Address]]


def addresses(host: str, port: int) -> list[Address]:
    """The addresses of `host`.  Raises `OSError`.  One in digits is not looked up, and does not
    yield."""
    try:
        return _system(host, port, _socket.AI_NUMERICHOST)
    except OSError:  # a name
        pass
    from gevent.resolver.thread import Resolver  # a worker's start waits for it

    hub: typing.Any = get_hub()
    if not isinstance(hub.resolver, Resolver):  # one without threads, which the program has chosen
        return list(hub.resolver.getaddrinfo(host, port, 0, _socket.SOCK_STREAM))
    looks: dict[tuple[str, int], _Look] = hub.__dict__.setdefault("_geventq_looks", {})
    look = looks.get((host, port))
    if look is None or not _may_join(look):
        look = looks[host, port] = _Look(clock.monotonic(), fork.generation, AsyncResult())
        _start_thread(_look_up, (hub, look.found, host, port))
    return typing.cast(list[Address], look.found.get())


def _may_join(look: _Look) -> bool:
    is_ours = look.generation == fork.generation  # else its thread is the parent's
    return is_ours and not look.found.ready() and clock.monotonic() - look.began < _FRESH


def _look_up(hub: typing.Any, found: AsyncResult[list[Address]], host: str, port: int) -> None:
    """In a native thread."""
    answer: list[Address] | None = None
    error: Exception | None = None
    try:
        answer = _system(host, port, 0)
    except Exception as failed:  # noqa: BLE001 (raised where it is waited for)
        error = failed
    loop = hub.loop
    if loop is None:  # its thread has ended
        return
    if error is None:
        loop.run_callback_threadsafe(found.set, answer)
    else:
        loop.run_callback_threadsafe(found.set_exception, error)


def _system(host: str, port: int, flags: int) -> list[Address]:
    return typing.cast(
        list[Address], _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM, 0, flags)
    )
