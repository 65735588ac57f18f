"""Reading the event stream of a queue as it grows (wire-format 6, 12).

A `Stream` belongs to one greenlet, which blocks in its calls, on a connection of its own; any
other may close it.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.client import Argument, Client, checked, pack
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.connection import Answer, Connection
    from geventq.store.keys import QueueKeys

__all__ = ["Entry", "Seen", "Stream"]

Entry = tuple[bytes, list[bytes]]  # id, and field, value, field, value...

_GRACE: typing.Final = 5.0  # seconds that an answer may be late
_PAGE: typing.Final = 1000  # entries a call


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
        self._client = client
        self._key = keys.events
        self._block = block
        self._name = name
        self._link: Connection | None = None
        self._closed = False

    def wait(self, last_id: bytes) -> None:
        """Wait for an entry behind `last_id`, for the time that was given at most."""
        self._call(
            (
                *("XREAD", "BLOCK", int(self._block * 1000), "COUNT", 1),
                *("STREAMS", self._key, last_id),
            ),
            self._block + _GRACE,
        )

    def look(self, last_id: str | bytes) -> Seen:
        """The entries behind `last_id` (``"$"``: none), and what there is of the stream."""
        # Its whole text, for there is no other call on this connection that could load it.
        command = ("EVAL", load("read_events").source, 1, self._key, last_id, _PAGE)
        entries, newest, oldest, kept, added = self._call(command, _GRACE)
        told = [(entry_id, flat) for entry_id, flat in entries]
        return Seen(told, newest, oldest, kept, None if added < 0 else added, len(told) == _PAGE)

    def _call(self, command: tuple[Argument, ...], timeout: float) -> Answer:
        if self._link is None or self._link.closed:
            self._link = self._client.open_connection(name=self._name)
        if self._closed:  # perhaps while it was being opened
            self._link.close()
            raise GeventqError("this stream is closed")
        since = fork.generation
        try:
            return checked(self._link.call(pack(command), 1, timeout))[0]
        except RedisUnavailableError:
            if since == fork.generation:
                raise
            return self._call(command, timeout)  # a forked child's own: no outage

    def close(self) -> None:
        """Close the connection, which ends a call that is under way.  Idempotent."""
        self._closed = True
        if self._link is not None:
            self._link.close()
