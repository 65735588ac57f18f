"""A connection for one greenlet that blocks in its calls: an idle wait, a reader of events.

It is outside the pools, and made when it is needed, and anew after an outage.  Owned by the
greenlet that calls; any other may close it, of whatever native thread.  No greenlets run here.
"""

from __future__ import annotations

import typing

from gevent import get_hub, getcurrent

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.client import checked
from geventq.store.connection import Answer, Connection
from geventq.store.scripts import pack

if typing.TYPE_CHECKING:
    from geventq.store.client import Argument, Client

__all__ = ["BlockingConnection"]

_GRACE: typing.Final = 5.0  # seconds past its own wait that an answer may take, at most (3.6)


class _ClosedWhileOpeningError(BaseException):
    """Thrown into the greenlet that is connecting."""


class BlockingConnection:
    """`name` is the connection's ``CLIENT SETNAME``."""

    def __init__(self, client: Client, *, name: str | None = None) -> None:
        self._client = client
        self._name = name
        self._connection: Connection | None = None
        self._opener: tuple[typing.Any, typing.Any] | None = None  # the hub and the greenlet
        self._is_closed = False
        self._grace = min(_GRACE, client.timeout)

    def call(self, command: tuple[Argument, ...], wait: float = 0.0) -> Answer:
        """The reply to `command`, for which the server may take `wait` seconds.  Yields.

        Raises `GeventqError` once it is closed, `RedisUnavailableError` in an outage.
        """
        connection = self.opened()
        since = fork.generation
        try:
            return checked(connection.call(pack(command), 1, wait + self._grace))[0]
        except RedisUnavailableError:
            self._refuse_if_closed()
            if since == fork.generation:
                raise
            return self.call(command, wait)  # a forked child's own: no outage

    def opened(self) -> Connection:
        """The connection as it is, made if there is none.  Yields then."""
        connection = self._connection
        if connection is None or connection.closed:
            self._refuse_if_closed()
            self._opener = (get_hub(), getcurrent())
            try:
                connection = self._client.open_connection(name=self._name, limit=self._grace)
            except _ClosedWhileOpeningError:
                self._refuse_if_closed()
                raise
            finally:
                self._opener = None
            self._connection = connection
        if self._is_closed:  # perhaps at the last moment
            connection.close()
        self._refuse_if_closed()
        return connection

    def renew(self) -> None:
        """Let the next call connect anew."""
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        """Close the connection, which ends a call that is under way, also one that still connects.
        Idempotent.  Does not yield."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()
        opener = self._opener
        if opener is not None:
            opener[0].loop.run_callback_threadsafe(self._end_opening)

    def _end_opening(self) -> None:
        """In the hub of the greenlet that is connecting, if it still is."""
        if self._opener is not None:
            self._opener[1].throw(_ClosedWhileOpeningError())

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise GeventqError("this connection is closed")
