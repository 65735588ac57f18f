"""`token.cancels(connection)`: a cancellation also stops the query in the database
(cancellation.md 2.11).

Knows what users hold: connections of drivers, and what wraps one: SQLAlchemy's connections and
sessions, Django's connection.  A wrapper is asked for the connections that it has when the
cancellation comes, because a session connects when it first needs to.  How a driver's query is
stopped is databases.py's business.

Nothing is imported for it: whoever holds such an object has imported its package.  Runs in the
job's greenlet, and the cancel itself in that of an `on_cancel` callback.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import sys
import typing

from geventq.cancellation import databases

__all__ = ["cancels", "stopper"]

_KNOWN: typing.Final = (
    "token.cancels() takes a connection of psycopg2, psycopg 3, PyMySQL or sqlite3; what wraps "
    "one: SQLAlchemy's Connection, Session, scoped_session and pooled connection, Django's "
    "connection; or a function that stops the query"
)

Stop = typing.Callable[[], object]
"""Stops one query."""
Connect = typing.Callable[[], typing.Any]
"""Makes another connection to the same server, with the same rights."""
Held = collections.abc.Iterator[tuple[typing.Any, Connect | None]]
"""The connections of drivers that a wrapper has; `None` for one that it has not made yet."""


class Handle(typing.Protocol):
    """A registered callback."""

    def undo(self) -> bool:
        """Take it back; `False` if it was started already."""

    def join(self) -> None:
        """Wait until it has ended."""


Register = typing.Callable[[typing.Callable[[], None]], Handle]
"""`CancellationToken.on_cancel`."""


def cancels(register: Register, connection: typing.Any) -> typing.ContextManager[None]:
    """The whole of `CancellationToken.cancels`."""
    stops = _stops_of(connection)
    stops()  # what it has now is known, or refused here
    return _while_registered(register, functools.partial(_stop_all, stops))


def stopper(connection: typing.Any) -> Stop:
    """What stops the query that `connection` begins now, as a cancellation does inside `cancels`:
    also when a kill has made its driver close it.  What is returned yields."""
    stops = _stops_of(connection, closed_too=True)()
    return functools.partial(_stop_all, lambda: stops)


@contextlib.contextmanager
def _while_registered(
    register: Register, cancel: typing.Callable[[], None]
) -> typing.Iterator[None]:
    handle = register(cancel)
    try:
        yield
    finally:
        # A cancel under way must not reach the next query of this connection.
        if not handle.undo():
            handle.join()


def _stop_all(stops: typing.Callable[[], list[Stop]]) -> None:
    for stop in stops():
        stop()


def _stops_of(given: typing.Any, *, closed_too: bool = False) -> typing.Callable[[], list[Stop]]:
    """What tells, when it is called, how the queries are stopped that `given` runs then;
    `closed_too`: also of a connection that has been closed meanwhile."""
    if _is(given, "sqlalchemy.orm", "scoped_session"):
        given = given()  # of whoever asks: in a callback's greenlet it would be another
    elif _is(given, "django.utils.connection", "ConnectionProxy"):
        given = sys.modules["django.db"].connections[given.alias]
    for module, name, connections in _WRAPPERS:
        if _is(given, module, name):
            return _Wrapped(functools.partial(connections, given), closed_too)
    if _driver_of(given) is None and callable(given) and not isinstance(given, type):
        if inspect.iscoroutinefunction(given):
            raise TypeError(f"{_KNOWN}, not a coroutine function, {given!r}: nothing awaits it")
        return lambda: [given]
    stop = _stop(given, None, closed_too)
    return lambda: [stop]


class _Wrapped:
    """What a wrapper's queries are stopped by."""

    def __init__(self, connections: typing.Callable[[], Held], closed_too: bool) -> None:
        self._connections = connections
        self._closed_too = closed_too
        #: By connection; made when one is first seen: MySQLdb's does not tell its number any
        #: more while a query runs.
        self._known: list[tuple[typing.Any, Stop]] = []

    def __call__(self) -> list[Stop]:
        return [self._stop(one, another) for one, another in self._connections() if one is not None]

    def _stop(self, connection: typing.Any, another: Connect | None) -> Stop:
        for one, stop in self._known:
            if one is connection:
                return stop
        stop = _stop(connection, another, self._closed_too)
        self._known.append((connection, stop))
        return stop


def _stop(connection: typing.Any, another: Connect | None, closed_too: bool) -> Stop:
    """What stops the query of a driver's own connection."""
    cancel = _driver_of(connection)
    if closed_too and cancel is databases.cancel_pymysql:
        return databases.pymysql_stopper(connection)
    if cancel is not None:
        return functools.partial(cancel, connection)
    kind = type(connection)
    if not _is(connection, "MySQLdb.connections", "Connection"):
        raise TypeError(f"{_KNOWN}, not {kind.__module__}.{kind.__qualname__}")
    if another is None:
        raise TypeError(
            f"{_KNOWN}; a connection of MySQLdb does not keep its password, which KILL QUERY "
            "over another one needs: give a function that does it"
        )
    return functools.partial(databases.kill_mysql, another, connection.thread_id())


_DRIVERS: typing.Final = (
    ("psycopg2.extensions", "connection", databases.cancel_psycopg2),
    ("psycopg", "Connection", databases.cancel_psycopg),
    ("pymysql.connections", "Connection", databases.cancel_pymysql),
    ("sqlite3", "Connection", databases.interrupt_sqlite),
)


def _driver_of(connection: typing.Any) -> typing.Callable[[typing.Any], None] | None:
    for module, name, cancel in _DRIVERS:
        if _is(connection, module, name):
            return cancel
    return None


def _is(thing: object, module: str, name: str) -> bool:
    """Whether it is an instance of a class of a module that may not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(thing, kind)


# -- what wrappers hold --------------------------------------------------------------------------


def _of_pooled(pooled: typing.Any) -> Held:
    """SQLAlchemy's proxy around a connection of its pool."""
    yield pooled.dbapi_connection, None


def _of_connection(connection: typing.Any) -> Held:
    """SQLAlchemy's."""
    if not connection.closed and not connection.invalidated:
        another = functools.partial(_another, connection.engine.pool)
        yield connection.connection.dbapi_connection, another


def _another(pool: typing.Any) -> typing.Any:
    connection = pool.recreate().connect()  # by the same settings, or the user's `creator`
    connection.detach()  # closed when it is closed, not kept in a pool
    return connection


def _of_session(session: typing.Any) -> Held:
    """SQLAlchemy's: a connection for each engine that its transaction has met."""
    transaction = session.get_transaction()
    if transaction is not None:
        # Nothing public tells them without connecting.  By engine and by connection: twice each.
        connections = {id(entry[0]): entry[0] for entry in transaction._connections.values()}
        for connection in connections.values():
            yield from _of_connection(connection)


def _of_django(wrapper: typing.Any) -> Held:
    """Django's wrapper of the connection that this greenlet, or thread, has with a database."""
    yield (
        wrapper.connection,
        lambda: wrapper.get_new_connection(wrapper.get_connection_params()),
    )


_WRAPPERS: typing.Final = (
    ("sqlalchemy.pool", "PoolProxiedConnection", _of_pooled),
    ("sqlalchemy.engine", "Connection", _of_connection),
    ("sqlalchemy.orm", "Session", _of_session),
    ("django.db.backends.base.base", "BaseDatabaseWrapper", _of_django),
)
