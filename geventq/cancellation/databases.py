"""`token.cancels(connection)`: a cancellation also stops the query in the database.

Killing a greenlet inside a driver leaves the server working (cancellation.md 2.11).  For
psycopg2 the cancel is libpq's own `PQcancel`, called by ctypes in a native thread, because
`connection.cancel()` keeps the interpreter's lock while the server is silent; for PyMySQL it is
``KILL QUERY`` over a second connection with the first one's settings.

No driver is imported here: whoever holds a connection has imported it.  The cancel itself runs
in the greenlet of an `on_cancel` callback.  It shares nothing with users' calls that may hang:
native threads come from a small pool of its own, as the hub's may be full of name look-ups that
nobody can cancel; and no name is looked up, the second connection goes where the first one went.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import socket
import sys
import typing

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

__all__ = ["cancels"]

_ERROR_SIZE: typing.Final = 256

#: Native threads that cancel, in each hub; they end when they were idle for a second.
_THREADS: typing.Final = 8
_IDLE: typing.Final = 1
#: Seconds in which MySQL's server has to take the second connection.
_PATIENCE: typing.Final = 1.0


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
    return _while_registered(register, _canceller_of(connection))


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


def _canceller_of(connection: typing.Any) -> typing.Callable[[], None]:
    psycopg2 = sys.modules.get("psycopg2.extensions")
    if psycopg2 is not None and isinstance(connection, psycopg2.connection):
        return functools.partial(_cancel_postgresql, connection)
    pymysql = sys.modules.get("pymysql.connections")
    if pymysql is not None and isinstance(connection, pymysql.Connection):
        return functools.partial(_cancel_mysql, connection)
    kind = type(connection)
    raise TypeError(
        "token.cancels() takes a connection of psycopg2 or PyMySQL, "
        f"not {kind.__module__}.{kind.__qualname__}"
    )


def _own_pool() -> ThreadPool:
    """The current hub's threads for cancels; they live and die with it."""
    hub: typing.Any = gevent.get_hub()
    pool: ThreadPool | None = hub.__dict__.get("_geventq_cancels")
    if pool is None:
        pool = ThreadPool(_THREADS, hub, idle_task_timeout=_IDLE)
        hub.__dict__["_geventq_cancels"] = pool
    return pool


def _cancel_postgresql(connection: typing.Any) -> None:
    if connection.closed:
        return
    libpq = _libpq()
    pool = _own_pool()
    if libpq is None:
        pool.apply(connection.cancel)
        return
    # PQgetCancel copies what it needs, at once and without I/O, while the connection is open;
    # only the copy goes to the thread, so that closing the connection meanwhile does no harm.
    request = libpq.PQgetCancel(connection.pgconn_ptr)
    if request:
        pool.apply(_send_cancel, (libpq, request))


def _send_cancel(libpq: typing.Any, request: int) -> None:
    """In a native thread; ctypes gives the interpreter's lock away during the call."""
    said = ctypes.create_string_buffer(_ERROR_SIZE)
    try:
        if not libpq.PQcancel(request, said, _ERROR_SIZE):
            raise RuntimeError(f"PostgreSQL was not told: {said.value.decode(errors='replace')}")
    finally:
        libpq.PQfreeCancel(request)


@functools.cache
def _libpq() -> typing.Any:
    """The very libpq that psycopg2 is linked with, or `None`.

    Another build of it could not read the same connection object.  psycopg2-binary brings its
    own; what the process has mapped tells which one it is.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libpq" in line}
    except OSError:
        return None
    bundled = [path for path in paths if "psycopg2" in path]
    found = bundled or [path for path in paths if "libpq" in path.rpartition("/")[2]]
    if len(found) != 1:
        return None  # none, or several and no telling which
    try:
        libpq = ctypes.CDLL(found[0])
        libpq.PQgetCancel.restype = ctypes.c_void_p
        libpq.PQgetCancel.argtypes = [ctypes.c_void_p]
        libpq.PQcancel.restype = ctypes.c_int
        libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libpq


def _cancel_mysql(connection: typing.Any) -> None:
    if not connection.open:
        return
    thread_id = int(connection.thread_id())
    settings: dict[str, typing.Any] = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.user,
        "password": connection.password,
        "unix_socket": connection.unix_socket,
        "bind_address": connection.bind_address,
        "server_public_key": connection.server_public_key,
        "auth_plugin_map": connection._auth_plugin_map,
        "connect_timeout": _PATIENCE,
        "defer_connect": True,
    }
    # Newer versions ask for TLS by themselves where the server has it: then the second does too.
    if connection.ssl and getattr(connection, "_ssl_required", True):
        settings["ssl"] = connection.ctx
    peer = None if connection.unix_socket else connection._sock.getpeername()
    if monkey.is_module_patched("socket"):
        _kill_query(settings, peer, thread_id)
    else:  # PyMySQL's own sockets would stop the hub
        _own_pool().apply(_kill_query, (settings, peer, thread_id))


def _kill_query(settings: dict[str, typing.Any], peer: typing.Any, thread_id: int) -> None:
    second = sys.modules["pymysql.connections"].Connection(**settings)
    second.connect(None if peer is None else _connected(peer, settings["bind_address"]))
    try:
        with second.cursor() as cursor:
            cursor.execute(f"KILL QUERY {thread_id}")
    finally:
        second.close()


def _connected(peer: tuple[typing.Any, ...], bind_address: str | None) -> socket.socket:
    """A socket to where the first connection went, without a look-up of its name."""
    sock = socket.socket(socket.AF_INET6 if len(peer) == 4 else socket.AF_INET)
    try:
        sock.settimeout(_PATIENCE)
        if bind_address is not None:
            sock.bind((bind_address, 0))
        sock.connect(peer)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock
