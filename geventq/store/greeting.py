"""What is said first on a new connection: who we are, our name, and which database we mean.

Owns the commands and what the server's answers to them mean.  All of them travel together, so that
a connection costs one round trip, or none where nothing is to be said.  Not redis-py's own
greeting: importing it takes longer than everything else that a worker imports of others (it brings
asyncio; 0.1 s of CPU with redis-py 8.1).  No greenlets run here; it yields to the hub.
"""

from __future__ import annotations

import typing

import hiredis

from geventq.store.scripts import pack

if typing.TYPE_CHECKING:
    import gevent.socket

__all__ = ["greet"]

_NEVER: typing.Final = object()
_RECEIVE: typing.Final = 4096  # bytes asked for at once


def greet(
    sock: gevent.socket.socket, settings: typing.Mapping[str, typing.Any], name: str | None
) -> None:
    """Log in, set the connection's `name` and select the database, by the `settings` of an
    `Endpoint`.  Raises `ConnectionError` with what the server refuses, `OSError`, and what a
    provider of credentials raises."""
    commands = _commands(settings, name)
    if not commands:
        return
    sock.sendall(b"".join(map(pack, commands)))
    reader = hiredis.Reader(notEnoughData=_NEVER)
    for _ in commands:
        while (answer := reader.gets()) is _NEVER:
            data = sock.recv(_RECEIVE)
            if not data:
                raise ConnectionError("the server closed the connection")
            reader.feed(data)
        if isinstance(answer, hiredis.HiredisError):
            raise ConnectionError(str(answer))  # the first: the others follow from it


def _commands(
    settings: typing.Mapping[str, typing.Any], name: str | None
) -> list[tuple[str | bytes | int | float, ...]]:
    commands: list[tuple[str | bytes | int | float, ...]] = []
    if credentials := _credentials(settings):
        commands.append(("AUTH", *credentials))
    if name:
        commands.append(("CLIENT", "SETNAME", name))
    if database := settings.get("db"):
        commands.append(("SELECT", database))
    return commands


def _credentials(settings: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    """A password, or a user's name and password; a provider of a ready client is asked anew for
    each connection."""
    if (provider := settings.get("credential_provider")) is not None:
        return tuple(provider.get_credentials())
    username, password = settings.get("username"), settings.get("password")
    if username:
        return (username, password or "")
    return (password,) if password else ()
