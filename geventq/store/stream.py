"""Reading the event stream of a queue as it grows (wire-format 6, 12).

A `Stream` belongs to one greenlet, which blocks in its calls, on a connection of its own; any
other may close it.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.store.blocking import BlockingConnection
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.connection import Answer
    from geventq.store.keys import QueueKeys

__all__ = ["Entry", "Seen", "Stream", "look_by"]

Entry = tuple[bytes, list[bytes]]  # id, and field, value, field, value...

_PAGE: typing.Final = 1000  # entries a call, and what fits (fitting.lua)


class Seen(typing.NamedTuple):
    """One look at the stream (read_events.lua): `entries` read, the id of the newest entry there
    ever was, of the `oldest` that is kept (empty if none is), how many are `kept`, how many were
    ever `added` (`None`: this Redis does not tell), and whether there may be more to read."""

    entries: list[Entry]
    newest: bytes
    oldest: bytes
    kept: int
    added: int | None
    is_full: bool


class Stream:
    """Every method but `close` yields to the hub, and raises `GeventqError` once it is closed.

    `block` is how many seconds a read waits for the next entry; `name` is the connection's.
    """

    def __init__(
        self, client: Client, keys: QueueKeys, *, block: float, name: str | None = None
    ) -> None:
        self._key = keys.events
        self._block = block
        self._connection = BlockingConnection(client, name=name)

    def wait(self, last_id: bytes) -> None:
        """Wait for an entry behind `last_id`, for the time that was given at most."""
        answer = self._connection.call(
            (
                *("XREAD", "BLOCK", int(self._block * 1000), "COUNT", 1),
                *("STREAMS", self._key, last_id),
            ),
            self._block,
        )
        if not answer:
            self._leave_replica()

    def look(self, last_id: str | bytes) -> Seen:
        """The entries behind `last_id` (``"$"``: none), and what there is of the stream."""
        # Its whole text, for there is no other call on this connection that could load it.
        command = ("EVAL", load("read_events").source, 1, self._key, last_id, _PAGE)
        return _seen(self._connection.call(command))

    def _leave_replica(self) -> None:
        """A server that was the primary once goes on to answer reads, with whatever it has heard:
        where nothing comes, look whether another is behind the address by now."""
        told = self._connection.call(("HELLO", "2"))
        if dict(zip(told[::2], told[1::2], strict=True)).get(b"role") not in (None, b"master"):
            self._connection.renew()

    def close(self) -> None:
        """Close the connection, which ends a call that is under way.  Idempotent."""
        self._connection.close()


def look_by(client: Client, keys: QueueKeys, last_id: str | bytes) -> Seen:
    """As `Stream.look`, by a short call of the client.  Yields."""
    return _seen(client.script(load("read_events"), keys, [last_id, _PAGE], again=True))


def _seen(answer: Answer) -> Seen:
    entries, newest, oldest, kept, added = answer
    told = [(entry_id, flat) for entry_id, flat in entries]
    is_full = bool(told) and told[-1][0] != newest
    return Seen(told, newest, oldest, kept, None if added < 0 else added, is_full)
