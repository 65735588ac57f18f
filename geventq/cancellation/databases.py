"""How the query that runs on a connection is stopped in its database, driver by driver.

Killing a greenlet inside a driver leaves the server working (cancellation.md 2.11).  PostgreSQL
is told by libpq: psycopg 3's cancel connection is driven here and waits in the hub; for psycopg2,
and where libpq is older than 17, it is libpq's own `PQcancel`, called by ctypes in a native
thread, because the drivers' `cancel()` keeps the interpreter's lock while the server is silent.
MySQL and MariaDB are told by ``KILL QUERY`` over a second connection.

No driver is imported here: whoever holds a connection has imported it.  A cancel runs in the
greenlet of an `on_cancel` callback.  It shares nothing with users' calls that may hang:
native threads come from a small pool of its own, as the hub's may be full of name look-ups that
nobody can cancel; and no name is looked up, PyMySQL's second connection goes where the first one
went.
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

__all__ = [
    "cancel_psycopg",
    "cancel_psycopg2",
    "cancel_psycopg2_soon",
    "cancel_pymysql",
    "interrupt_sqlite",
    "kill_mysql",
    "pymysql_stopper",
]

_ERROR_SIZE: typing.Final = 256

#: Native threads that cancel, in each hub; they end when they were idle for a second.
_THREADS: typing.Final = 8
_IDLE: typing.Final = 1
#: Seconds in which MySQL's server has to take the second connection.
_PATIENCE: typing.Final = 1.0
_NO_SUCH_THREAD: typing.Final = 1094  # MySQL's ER_NO_SUCH_THREAD


def _own_pool() -> ThreadPool:
    """The current hub's threads for cancels; they live and die with it."""
    hub: typing.Any = gevent.get_hub()
    pool: ThreadPool | None = hub.__dict__.get("_geventq_cancels")
    if pool is None:
        pool = ThreadPool(_THREADS, hub, idle_task_timeout=_IDLE)
        hub.__dict__["_geventq_cancels"] = pool
    return pool


def cancel_psycopg2(connection: typing.Any) -> None:
    """Stop what runs on a connection of psycopg2.  Yields."""
    if not connection.closed:
        _cancel_by_libpq(connection.pgconn_ptr, "psycopg2", connection.cancel)


def cancel_psycopg2_soon(connection: typing.Any) -> None:
    """The same where the connection is closed at once, with its query under way: the server would
    work on.  Yields only while many others are being told; not longer than a second."""
    libpq = _libpq("psycopg2")
    request = None if libpq is None else libpq.PQgetCancel(connection.pgconn_ptr)
    if request:
        with gevent.Timeout(_PATIENCE, False):  # type: ignore[arg-type]
            _own_pool().spawn(_send_cancel, libpq, request)


def cancel_psycopg(connection: typing.Any) -> None:
    """Stop what runs on a connection of psycopg 3.  Yields."""
    if connection.closed:
        return
    pgconn = connection.pgconn
    capabilities = getattr(sys.modules["psycopg"], "capabilities", None)  # since 3.2
    if capabilities is not None and capabilities.has_cancel_safe():
        _cancel_by_second_link(pgconn.cancel_conn())
    else:
        _cancel_by_libpq(pgconn.pgconn_ptr, "psycopg_", pgconn.get_cancel().cancel)


def _cancel_by_second_link(link: typing.Any) -> None:
    """`link` is a `PGcancelConn`: it knows the server's address, and never blocks."""
    from gevent.socket import wait_read, wait_write  # imports socket: not before monkey-patching

    status = sys.modules["psycopg"].pq.PollingStatus
    try:
        link.start()
        while (state := link.poll()) != status.OK:
            if state == status.READING:
                wait_read(link.socket)
            elif state == status.WRITING:
                wait_write(link.socket)
            else:
                raise RuntimeError(f"PostgreSQL was not told: {link.get_error_message()}")
    finally:
        link.finish()


def _cancel_by_libpq(pointer: int, driver: str, cancel: typing.Callable[[], typing.Any]) -> None:
    libpq = _libpq(driver)
    pool = _own_pool()
    if libpq is None:
        pool.apply(cancel)
        return
    # PQgetCancel copies what it needs, at once and without I/O, while the connection is open;
    # only the copy goes to the thread, so that closing the connection meanwhile does no harm.
    request = libpq.PQgetCancel(pointer)
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
def _libpq(driver: str) -> typing.Any:
    """The very libpq that the driver is linked with, or `None`.

    Another build of it could not read the same connection object.  The drivers' wheels bring
    their own, in a directory that begins with `driver`; what the process has mapped tells which
    one it is.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libpq" in line}
    except OSError:
        return None
    files = {path for path in paths if "libpq" in path.rpartition("/")[2]}
    bundled = [path for path in files if driver in path]
    found = bundled or [path for path in files if "psycopg" not in path]
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


def cancel_pymysql(connection: typing.Any) -> None:
    """Stop what runs on a connection of PyMySQL.  Yields."""
    if connection.open:
        pymysql_stopper(connection)()


def pymysql_stopper(connection: typing.Any) -> typing.Callable[[], None]:
    """What stops the query that begins now on a connection of PyMySQL: also when the driver has
    closed it, which it does for whatever is thrown into it.  What is returned yields."""
    thread_id = int(connection.thread_id())
    peer = None if connection.unix_socket else connection._sock.getpeername()
    return functools.partial(_tell_mysql, connection, peer, thread_id)


def _tell_mysql(connection: typing.Any, peer: typing.Any, thread_id: int) -> None:
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
    except sys.modules["pymysql"].OperationalError as error:
        if error.args[0] != _NO_SUCH_THREAD:  # else it has ended, and the connection with it
            raise
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


def kill_mysql(connect: typing.Callable[[], typing.Any], thread_id: int) -> None:
    """Stop what runs on MySQL's connection `thread_id`, over another one that `connect` makes.

    For drivers in C, which block whoever calls them: it runs in a native thread.  Yields.
    """
    _own_pool().apply(_kill_over, (connect, thread_id))


def _kill_over(connect: typing.Callable[[], typing.Any], thread_id: int) -> None:
    second = connect()
    try:
        second.cursor().execute(f"KILL QUERY {thread_id}")
    finally:
        second.close()


def interrupt_sqlite(connection: typing.Any) -> None:
    """Stop what runs on a connection of sqlite3, in another native thread.  Does not yield."""
    with contextlib.suppress(sys.modules["sqlite3"].ProgrammingError):  # closed meanwhile
        connection.interrupt()
