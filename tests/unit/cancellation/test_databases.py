"""`token.cancels` with drivers: the database stops too (cancellation.md 2.11)."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import socket
import time
import typing

import gevent
import gevent.server
import gevent.socket
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pymysql
import pytest
from gevent import monkey
from gevent.socket import wait_read, wait_write

from geventq import CancellationToken
from tests.support.databases import (  # noqa: F401 - two are fixtures
    mariadb_runs,
    mariadb_socket,
    postgresql_dsn,
    postgresql_runs,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.database


def _wait(connection: typing.Any) -> None:
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        if state == psycopg2.extensions.POLL_READ:
            wait_read(connection.fileno())
        else:
            wait_write(connection.fileno())


@pytest.fixture
def green() -> collections.abc.Iterator[None]:
    """psycopg2 waits in the hub."""
    psycopg2.extensions.set_wait_callback(_wait)
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def postgresql(postgresql_dsn: str) -> collections.abc.Iterator[typing.Any]:  # noqa: F811
    connection = psycopg2.connect(postgresql_dsn)
    yield connection
    connection.close()


def _after(seconds: float, token: CancellationToken) -> gevent.Greenlet[..., typing.Any]:
    return gevent.spawn_later(seconds, token.cancel, "enough")


def _when_running(
    runs: collections.abc.Callable[[], object], token: CancellationToken
) -> gevent.Greenlet[..., typing.Any]:
    """Cancels when the database works on the query: an earlier cancel would find nothing."""
    return gevent.spawn(lambda: eventually(runs) and token.cancel("enough"))


def test_a_cancelled_query_ends_in_postgresql(
    green: None,
    postgresql: typing.Any,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: a query of 30 s ends at the cancel with the driver's own error, and the connection
    goes on."""
    token, cursor = CancellationToken(), postgresql.cursor()
    canceller = _when_running(lambda: postgresql_runs(postgresql_dsn, "pg_sleep(30)"), token)
    begun = time.monotonic()
    with pytest.raises(psycopg2.extensions.QueryCanceledError), token.cancels(postgresql):
        cursor.execute("select pg_sleep(30)")
    assert time.monotonic() - begun < 29
    canceller.join()
    postgresql.rollback()
    cursor.execute("select 1")
    assert cursor.fetchone() == (1,)


def test_without_a_wait_callback_a_query_in_a_thread_is_cancelled(
    postgresql: typing.Any,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: psycopg2 without a wait callback blocks its thread; a query in the hub's thread pool
    is cancelled all the same."""
    token, cursor = CancellationToken(), postgresql.cursor()
    canceller = _when_running(lambda: postgresql_runs(postgresql_dsn, "pg_sleep(30)"), token)
    begun = time.monotonic()
    with pytest.raises(psycopg2.extensions.QueryCanceledError), token.cancels(postgresql):
        gevent.get_hub().threadpool.apply(cursor.execute, ("select pg_sleep(30)",))
    assert time.monotonic() - begun < 29
    canceller.join()


def test_a_cancel_late_does_not_reach_the_next_query(green: None, postgresql: typing.Any) -> None:
    """2.11: leaving the block waits for a cancel under way: of 100 cancels that race with the
    end of their query, none hits the query after the block."""
    cursor = postgresql.cursor()
    for turn in range(100):
        token = CancellationToken()
        canceller = _after(turn * 1e-5, token)
        try:
            with token.cancels(postgresql):
                cursor.execute("select pg_sleep(0.0005)")
        except psycopg2.extensions.QueryCanceledError:
            postgresql.rollback()
        cursor.execute("select pg_sleep(0.001), 7")
        assert cursor.fetchone()[1] == 7
        canceller.join()


def test_a_block_that_was_left_is_not_cancelled(green: None, postgresql: typing.Any) -> None:
    """2.11: after the block the connection is nobody's business."""
    token, cursor = CancellationToken(), postgresql.cursor()
    with token.cancels(postgresql):
        cursor.execute("select 1")
    canceller = _after(0.01, token)
    cursor.execute("select pg_sleep(0.1), 2")
    assert cursor.fetchone()[1] == 2
    canceller.join()


def query(call: typing.Callable[..., object], *args: object) -> None:
    """Run a query of PyMySQL without stopping the hub: unpatched, it needs a thread."""
    if monkey.is_module_patched("socket"):
        call(*args)
    else:
        gevent.get_hub().threadpool.apply(call, args)


def test_a_cancelled_query_ends_in_mariadb(mariadb_socket: str) -> None:  # noqa: F811
    """2.11: PyMySQL's query ends by KILL QUERY over a second connection."""
    connection = pymysql.connect(unix_socket=mariadb_socket, user="root")
    token = CancellationToken()
    try:
        canceller = _when_running(lambda: mariadb_runs(mariadb_socket, "sleep(30)"), token)
        begun = time.monotonic()
        with connection.cursor() as cursor:
            with token.cancels(connection):
                # MariaDB's SLEEP answers 1 when it was interrupted, later ones raise 1317.
                try:
                    query(cursor.execute, "select sleep(30)")
                    assert cursor.fetchone() == (1,)
                except pymysql.err.OperationalError as error:
                    assert error.args[0] == 1317
            assert time.monotonic() - begun < 29
            canceller.join()
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
    finally:
        connection.close()


@pytest.fixture
def full_pool() -> collections.abc.Iterator[None]:
    """The hub's own thread pool is full of calls that nobody can cancel."""
    pool = gevent.get_hub().threadpool
    held = monkey.get_original("_thread", "allocate_lock")()
    held.acquire()

    def look_up() -> None:
        with held:
            pass

    calls = [pool.spawn(look_up) for _ in range(pool.maxsize)]
    try:
        yield
    finally:
        held.release()
        gevent.wait(calls)


def test_hanging_look_ups_do_not_hold_up_a_cancel_in_postgresql(
    green: None,
    full_pool: None,
    postgresql: typing.Any,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: the cancel has threads of its own."""
    token, cursor = CancellationToken(), postgresql.cursor()
    canceller = _when_running(lambda: postgresql_runs(postgresql_dsn, "pg_sleep(30)"), token)
    begun = time.monotonic()
    with pytest.raises(psycopg2.extensions.QueryCanceledError), token.cancels(postgresql):
        cursor.execute("select pg_sleep(30)")
    assert time.monotonic() - begun < 29
    canceller.join()


def test_a_cancel_in_mariadb_looks_no_name_up(
    mariadb_socket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2.11: the second connection goes where the first one went: a name server that is silent
    by now, or the hub's pool full of look-ups, does not hold it up."""

    def relay(client: gevent.socket.socket, _: object) -> None:
        with gevent.socket.socket(socket.AF_UNIX) as server:
            server.connect(mariadb_socket)
            other = gevent.spawn(pump, server, client)
            pump(client, server)
            other.kill()

    def pump(source: gevent.socket.socket, target: gevent.socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def no_names(*arguments: object, **options: object) -> typing.NoReturn:
        raise OSError(f"a name was looked up: {arguments}")

    front = gevent.server.StreamServer(("127.0.0.1", 0), relay)
    front.start()
    connect = functools.partial(
        pymysql.connect, host="localhost", port=front.server_port, user="root"
    )
    if monkey.is_module_patched("socket"):
        connection = connect()
    else:
        connection = gevent.get_hub().threadpool.apply(connect)
    for module in (socket, gevent.socket):
        monkeypatch.setattr(module, "getaddrinfo", no_names)
    token = CancellationToken()
    canceller = _when_running(lambda: mariadb_runs(mariadb_socket, "sleep(30)"), token)
    begun = time.monotonic()
    cursor = connection.cursor()
    with contextlib.suppress(pymysql.err.OperationalError), token.cancels(connection):
        query(cursor.execute, "select sleep(30)")
    assert time.monotonic() - begun < 29
    canceller.join()
    query(connection.close)
    front.stop()
