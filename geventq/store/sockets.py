"""New connections: on gevent's sockets, so that they work in unpatched processes too.

Owns the sockets' making and their TLS.  What is said first is `geventq.store.greeting`'s, and what
is sent afterwards `geventq.store.connection`'s.  In a forked child the sockets have lost their
connections (`geventq.fork.connections`).  No greenlets run here; connecting yields to the hub.
"""

from __future__ import annotations

import typing

import gevent.socket

from geventq import clock
from geventq.fork import connections as fork
from geventq.store.endpoint import Endpoint
from geventq.store.greeting import greet
from geventq.store.limits import is_thrown
from geventq.store.lookups import Address, addresses

__all__ = ["connect"]

_MOMENT: typing.Final = 1.0  # seconds for one of several addresses, before all had theirs


def connect(
    endpoint: Endpoint, *, name: str | None, path: str | None, limit: float
) -> gevent.socket.socket:
    """A socket on which the server has let us in, with the database selected.

    No step of it waits longer than `limit` seconds.  Raises `OSError`, `ValueError` for settings
    that TLS refuses, and what a provider of credentials raises.
    """
    settings = endpoint.settings
    if endpoint.kind == "unix":
        sock = _to_path(settings["path"] if path is None else path, limit)
    else:
        host = settings.get("host", "localhost")
        sock = _to_host(host, int(settings.get("port", 6379)), limit)
    try:
        if endpoint.kind == "tls":
            from geventq.store.encryption import encrypted  # only where it is used

            sock = encrypted(sock, host, settings)
        greet(sock, settings, name)
    except BaseException:
        sock.close()
        raise
    return sock


def _to_path(path: str, limit: float) -> gevent.socket.socket:
    since = fork.generation
    sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
    fork.watch(sock, since)
    try:
        sock.settimeout(limit)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _to_host(host: str, port: int, limit: float) -> gevent.socket.socket:
    since = fork.generation
    sock = _connected(host, port, limit)
    fork.watch(sock, since)
    try:
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _connected(host: str, port: int, limit: float) -> gevent.socket.socket:
    """A socket to the first address of `host` that takes us.  One that says nothing does not keep
    us from the others: each has a moment, and those that were silent share what is left."""
    deadline = clock.monotonic() + limit
    found = addresses(host, port)
    moment = limit if len(found) == 1 else min(_MOMENT, limit / (len(found) + 1))
    silent: list[Address] = []
    refused: OSError | None = None
    for address in found:
        try:
            return _to_address(address, moment)
        except OSError as error:  # also where this system has no such family
            if is_thrown(error):
                raise
            if isinstance(error, TimeoutError):
                silent.append(address)
            refused = error
    while silent and (left := deadline - clock.monotonic()) > 0:
        try:
            return _to_address(silent[0], left / len(silent))
        except OSError as error:
            if is_thrown(error):
                raise
            del silent[0]
            refused = error
    raise refused or OSError(f"{host} has no address")


def _to_address(found: Address, limit: float) -> gevent.socket.socket:
    family, kind, protocol, _, address = found
    sock = gevent.socket.socket(family, kind, protocol)
    try:
        sock.settimeout(limit)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
