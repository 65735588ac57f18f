"""Reading the event stream of a queue as it grows (wire-format 6, 12).

A `Stream` belongs to one greenlet, which blocks in its calls, on a connection of its own; any
other may close it.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.client import Argument, Client, checked, pack

if typing.TYPE_CHECKING:
    from geventq.store.connection import Answer, Connection
    from geventq.store.keys import QueueKeys

__all__ = ["Entry", "Stream"]

Entry = tuple[bytes, list[bytes]]  # id, and field, value, field, value...

_GRACE: typing.Final = 5.0  # seconds that an answer may be late
_PAGE: typing.Final = 1000  # entries a call


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

    def newest_id(self) -> bytes:
        """The id of the newest entry there is."""
        newest = self._call(("XREVRANGE", self._key, "+", "-", "COUNT", 1), _GRACE)
        return typing.cast(bytes, newest[0][0]) if newest else b"0-0"

    def after(self, last_id: str | bytes) -> list[Entry]:
        """The entries behind `last_id`, waiting for the first; none if none came."""
        reply = self._call(
            (
                *("XREAD", "BLOCK", int(self._block * 1000), "COUNT", _PAGE),
                *("STREAMS", self._key, last_id),
            ),
            self._block + _GRACE,
        )
        return [(entry_id, flat) for entry_id, flat in reply[0][1]] if reply else []

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
