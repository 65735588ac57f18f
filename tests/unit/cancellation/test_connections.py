"""`token.cancels` with what wraps a driver's connection, and what it refuses (2.11).

Each with the real package and a real server, on which the query is seen to end.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import typing
import uuid

import gevent
import gevent.event
import psycopg2
import psycopg2.extensions
import pymysql
import pytest

from geventq import CancellationToken, postgresql
from tests.support.attempts import Run
from tests.support.databases import (  # noqa: F401 - two are fixtures
    mariadb_runs,
    mariadb_socket,
    postgresql_dsn,
    postgresql_runs,
)
from tests.support.waiting import eventually

psycopg = pytest.importorskip("psycopg")
psycopg_pool = pytest.importorskip("psycopg_pool")
sqlalchemy = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")
django = pytest.importorskip("django")

SLEEP: typing.Final = "select pg_sleep(30) /* {} */"


class Held(typing.Protocol):
    """What a user holds: `handle` goes to `token.cancels`."""

    handle: typing.Any

    def execute(self, query: str) -> typing.Any:
        """The first column of the first row."""

    def rollback(self) -> None: ...


class OfDriver:
    """A connection as DB-API has it."""

    def __init__(self, handle: typing.Any) -> None:
        self.handle = handle
        self.rollback = handle.rollback

    def execute(self, query: str) -> typing.Any:
        with contextlib.closing(self.handle.cursor()) as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]


class OfSqlalchemy:
    """A `Connection`, a `Session` or a `scoped_session`."""

    def __init__(self, handle: typing.Any) -> None:
        self.handle = handle
        self.rollback = handle.rollback

    def execute(self, query: str) -> typing.Any:
        return self.handle.execute(sqlalchemy.text(query)).scalar()


class OfDjango(OfDriver):
    """Django's `connection`, in a transaction as `atomic` makes one."""

    def __init__(self, handle: typing.Any) -> None:
        handle.set_autocommit(False)
        super().__init__(handle)


Opened = typing.ContextManager[Held]
Opener = collections.abc.Callable[[], Opened]


@contextlib.contextmanager
def _psycopg2(dsn: str) -> collections.abc.Iterator[Held]:
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        yield OfDriver(connection)


@contextlib.contextmanager
def _psycopg(dsn: str) -> collections.abc.Iterator[Held]:
    with contextlib.closing(psycopg.connect(dsn)) as connection:
        yield OfDriver(connection)


class Databases:
    """What is made once for a test: pools, engines; `close` ends them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, open=False)
        self.engines = {
            driver: sqlalchemy.create_engine(
                f"postgresql+{driver}://",
                creator=functools.partial(sys.modules[driver].connect, dsn),
                pool_size=1,
                max_overflow=0,
            )
            for driver in ("psycopg2", "psycopg")
        }
        self.factories = {name: orm.sessionmaker(one) for name, one in self.engines.items()}

    def close(self) -> None:
        self.pool.close()
        for engine in self.engines.values():
            engine.dispose()

    @contextlib.contextmanager
    def pooled(self) -> collections.abc.Iterator[Held]:
        self.pool.open()
        with self.pool.connection() as connection:
            yield OfDriver(connection)

    @contextlib.contextmanager
    def raw(self, driver: str) -> collections.abc.Iterator[Held]:
        with contextlib.closing(self.engines[driver].raw_connection()) as connection:
            yield OfDriver(connection)

    @contextlib.contextmanager
    def connection(self, driver: str) -> collections.abc.Iterator[Held]:
        with self.engines[driver].connect() as connection:
            yield OfSqlalchemy(connection)

    @contextlib.contextmanager
    def session(self, driver: str) -> collections.abc.Iterator[Held]:
        with self.factories[driver]() as session:
            yield OfSqlalchemy(session)

    @contextlib.contextmanager
    def scoped(self, driver: str) -> collections.abc.Iterator[Held]:
        session = orm.scoped_session(self.factories[driver])
        try:
            yield OfSqlalchemy(session)
        finally:
            session.remove()

    @contextlib.contextmanager
    def of_django(self, proxy: bool) -> collections.abc.Iterator[Held]:
        """`django.db.connection`, or what it stands for: this greenlet's own, in the place of that
        of another test's database."""
        from django import db
        from django.conf import settings

        if not settings.configured:
            settings.configure(LOGGING_CONFIG=None)
            django.setup()
        host, user, name = (part.partition("=")[2] for part in self.dsn.split())
        engine = "django.db.backends.postgresql"
        own = db.utils.ConnectionHandler(
            {"default": {"ENGINE": engine, "HOST": host, "USER": user, "NAME": name}}
        )
        before = db.connections["default"]
        db.connections["default"] = own["default"]
        try:
            yield OfDjango(db.connection if proxy else db.connections["default"])
        finally:
            own.close_all()
            db.connections["default"] = before


@pytest.fixture(autouse=True)
def green() -> collections.abc.Iterator[None]:
    """psycopg2 waits in the hub."""
    assert postgresql.wait_in_hub()
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def databases(postgresql_dsn: str) -> collections.abc.Iterator[Databases]:  # noqa: F811
    made = Databases(postgresql_dsn)
    yield made
    made.close()


@pytest.fixture(params=["new", "older than 17"])
def libpq(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What psycopg 3 is built on; the older one has no cancel connections."""
    if request.param != "new":
        monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)


#: psycopg 3 waits in the hub only where `select` is patched.
OPENERS: typing.Final[dict[str, typing.Any]] = {
    "psycopg2": lambda made: _psycopg2(made.dsn),
    "SQLAlchemy, pooled": lambda made: made.raw("psycopg2"),
    "SQLAlchemy, Connection": lambda made: made.connection("psycopg2"),
    "SQLAlchemy, Session": lambda made: made.session("psycopg2"),
    "SQLAlchemy, scoped_session": lambda made: made.scoped("psycopg2"),
}
PATCHED: typing.Final[dict[str, typing.Any]] = {
    "psycopg": lambda made: _psycopg(made.dsn),
    "psycopg_pool": lambda made: made.pooled(),
    "SQLAlchemy on psycopg, pooled": lambda made: made.raw("psycopg"),
    "SQLAlchemy on psycopg, Session": lambda made: made.session("psycopg"),
    "Django, connection": lambda made: made.of_django(True),
    "Django, connections[...]": lambda made: made.of_django(False),
}


@pytest.fixture(
    params=[*OPENERS, *(pytest.param(name, marks=pytest.mark.patched) for name in PATCHED)]
)
def opened(request: pytest.FixtureRequest, databases: Databases) -> Opener:
    """Opens what the user holds, anew or out of its pool."""
    return functools.partial((OPENERS | PATCHED)[request.param], databases)


def _cancel_once(runs: collections.abc.Callable[[], object], token: CancellationToken) -> None:
    """Cancel when the server works on the query."""
    gevent.spawn(lambda: eventually(runs) and token.cancel())


@pytest.mark.database
def test_a_soft_cancel_ends_the_query_and_the_connection_goes_on(
    opened: Opener,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: the query of 30 s ends at the server; after a rollback the same connection, also one
    that was opened after `cancels` began, answers the next query."""
    token, mark = CancellationToken(), uuid.uuid4().hex
    _cancel_once(lambda: postgresql_runs(postgresql_dsn, mark), token)
    with opened() as held:
        with pytest.raises(Exception, match="due to user request"), token.cancels(held.handle):
            held.execute(SLEEP.format(mark))
        assert not postgresql_runs(postgresql_dsn, mark)
        held.rollback()
        assert held.execute("select 7") == 7


@pytest.mark.database
def test_a_kill_ends_the_query_and_the_next_user_is_served(
    opened: Opener,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11, 2.14: the same under a hard cancel; whoever opens next, out of the same pool, gets
    his own answer."""
    mark = uuid.uuid4().hex

    def process(token: CancellationToken) -> None:
        with opened() as held, token.cancels(held.handle):
            held.execute(SLEEP.format(mark))

    run = Run(process).start()
    eventually(lambda: postgresql_runs(postgresql_dsn, mark))
    assert run.ask(hard=True)
    run.join()
    assert run.attempt.was_thrown or "due to user request" in str(run.error)
    eventually(lambda: not postgresql_runs(postgresql_dsn, mark))
    with opened() as held:
        assert held.execute("select 7") == 7


@pytest.mark.database
@pytest.mark.unpatched
@pytest.mark.usefixtures("libpq")
def test_psycopg_in_a_native_thread_is_cancelled(
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: unpatched, psycopg 3 blocks its thread; a query in a thread of its own is cancelled
    all the same, also with a libpq that has no cancel connections."""
    token, mark = CancellationToken(), uuid.uuid4().hex
    _cancel_once(lambda: postgresql_runs(postgresql_dsn, mark), token)
    with _psycopg(postgresql_dsn) as held:
        with pytest.raises(psycopg.errors.QueryCanceled), token.cancels(held.handle):
            gevent.get_hub().threadpool.apply(held.execute, (SLEEP.format(mark),))
        held.rollback()
        assert held.execute("select 7") == 7


@pytest.mark.database
@pytest.mark.patched
@pytest.mark.usefixtures("libpq")
def test_a_silent_server_does_not_stop_the_hub(
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: psycopg 3's own `cancel()` keeps the interpreter for itself while the postmaster
    sleeps, which takes cancels; ours gives other greenlets their turns all the while."""
    token, mark = CancellationToken(), uuid.uuid4().hex
    home = postgresql_dsn.partition("host=")[2].split()[0]
    with open(os.path.join(home, "data", "postmaster.pid")) as file:
        postmaster = int(file.readline())

    def query(held: Held) -> None:
        with contextlib.suppress(psycopg.errors.QueryCanceled), token.cancels(held.handle):
            held.execute(SLEEP.format(mark))

    with _psycopg(postgresql_dsn) as held:
        job = gevent.spawn(query, held)
        eventually(lambda: postgresql_runs(postgresql_dsn, mark))
        os.kill(postmaster, signal.SIGSTOP)
        wake = f"import os, time; time.sleep(15); os.kill({postmaster}, {int(signal.SIGCONT)})"
        waker = subprocess.Popen([sys.executable, "-c", wake])  # should this process stand still
        try:
            token.cancel()
            for _ in range(50):
                gevent.sleep(0.005)
            assert waker.poll() is None, "the hub stood still"
            assert not job.ready(), "the server was not silent: this shows nothing"
        finally:
            waker.kill()
            waker.wait()
            os.kill(postmaster, signal.SIGCONT)
        job.get(timeout=20)


@pytest.mark.database
def test_a_session_over_two_engines_is_stopped_on_both(
    databases: Databases,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: a session may have a connection for each of its engines; whichever works is told."""
    token, mark = CancellationToken(), uuid.uuid4().hex
    engine = databases.engines["psycopg2"]
    other = sqlalchemy.create_engine(
        "postgresql+psycopg2://", creator=functools.partial(psycopg2.connect, postgresql_dsn)
    )
    _cancel_once(lambda: postgresql_runs(postgresql_dsn, mark), token)
    with orm.Session() as session, token.cancels(session):
        session.execute(sqlalchemy.text("select 1"), bind_arguments={"bind": engine})
        with pytest.raises(sqlalchemy.exc.OperationalError, match="due to user request"):
            session.execute(sqlalchemy.text(SLEEP.format(mark)), bind_arguments={"bind": other})
    other.dispose()


@pytest.mark.database
@pytest.mark.parametrize("name", [*OPENERS, "psycopg"])
def test_what_has_no_query_or_no_connection_is_left_alone(
    databases: Databases, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """2.11: cancelled before the first query, or with the connection closed: nothing to stop, no
    error either."""
    token = CancellationToken()
    with (OPENERS | PATCHED)[name](databases) as held, token.cancels(held.handle):
        if hasattr(held.handle, "close"):
            held.handle.close()
        token.cancel()
    assert caplog.records == []


@pytest.mark.database
@pytest.mark.patched
@pytest.mark.parametrize("hard", [False, True])
def test_a_query_of_sqlalchemy_on_pymysql_ends_in_mariadb(
    mariadb_socket: str,  # noqa: F811
    hard: bool,
) -> None:
    """2.11: softly, and killed; the next user of the pool is served."""
    mark = uuid.uuid4().hex
    engine = sqlalchemy.create_engine(
        "mysql+pymysql://",
        creator=functools.partial(pymysql.connect, unix_socket=mariadb_socket, user="root"),
        pool_size=1,
        max_overflow=0,
    )

    def process(token: CancellationToken) -> None:
        with engine.connect() as connection, token.cancels(connection):
            connection.exec_driver_sql(
                f"select sum(a.seq * b.seq) /* {mark} */ "
                "from test_mark.seq_1_to_1000000 a, test_mark.seq_1_to_1000000 b"
            )

    with engine.begin() as connection:
        connection.exec_driver_sql("create database if not exists test_mark")
    run = Run(process).start()
    eventually(lambda: mariadb_runs(mariadb_socket, mark))
    assert run.ask(hard=hard)
    run.join()
    assert run.attempt.was_thrown or "interrupted" in str(run.error)
    eventually(lambda: not mariadb_runs(mariadb_socket, mark))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select 7").scalar() == 7
    engine.dispose()


@pytest.mark.database
@pytest.mark.parametrize("how", ["SQLAlchemy", "Django"])
def test_mysqlclient_in_a_native_thread_is_cancelled_through_what_wraps_it(
    how: str,
    mariadb_socket: str,  # noqa: F811
) -> None:
    """2.11: a C driver stops the hub, and is cancelled where its query runs in a native thread.
    What wraps its connection can make the second one, that KILL QUERY needs."""
    mysqldb = pytest.importorskip("MySQLdb", exc_type=ImportError)
    token, mark = CancellationToken(), uuid.uuid4().hex
    query = f"select sleep(30) /* {mark} */"
    settings = {"unix_socket": mariadb_socket, "user": "root"}

    def run(call: typing.Callable[[str], object]) -> None:
        with contextlib.suppress(Exception):  # MariaDB's SLEEP answers 1, or raises
            call(query)

    with contextlib.ExitStack() as stack:
        if how == "SQLAlchemy":
            engine = sqlalchemy.create_engine(
                "mysql+mysqldb://", creator=functools.partial(mysqldb.connect, **settings)
            )
            stack.callback(engine.dispose)
            handle = stack.enter_context(engine.connect())
            call = handle.exec_driver_sql
        else:
            from django.db.backends.mysql.base import DatabaseWrapper

            handle = DatabaseWrapper(
                {
                    "NAME": "",
                    "USER": "root",
                    "PASSWORD": "",
                    "HOST": mariadb_socket,
                    "PORT": "",
                    "OPTIONS": {},
                    "TIME_ZONE": None,
                    "CONN_MAX_AGE": 0,
                    "CONN_HEALTH_CHECKS": False,
                    "AUTOCOMMIT": True,
                    "ATOMIC_REQUESTS": False,
                }
            )
            handle.connection = handle.get_new_connection(handle.get_connection_params())
            stack.callback(handle.connection.close)
            call = handle.connection.query
        _cancel_once(lambda: mariadb_runs(mariadb_socket, mark), token)
        with token.cancels(handle):
            gevent.get_hub().threadpool.apply(run, (call,))
        assert token.cancelled, "the query went to its end"
        eventually(lambda: not mariadb_runs(mariadb_socket, mark))


@pytest.mark.database
def test_mysqlclients_own_connection_is_refused_with_what_to_do(
    mariadb_socket: str,  # noqa: F811
) -> None:
    mysqldb = pytest.importorskip("MySQLdb", exc_type=ImportError)
    connection = mysqldb.connect(unix_socket=mariadb_socket, user="root")
    with pytest.raises(TypeError, match="does not keep its password"):
        CancellationToken().cancels(connection)
    connection.close()


def test_a_query_of_sqlite_in_a_native_thread_is_cancelled() -> None:
    """2.11: as Django's tests have it."""
    token = CancellationToken()
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    begun = gevent.event.Event()
    notify = gevent.get_hub().loop.run_callback_threadsafe
    connection.create_function("begun", 0, lambda: bool(notify(begun.set)))
    endless = (
        "with recursive n(i) as (select begun() union all select 1 from n) select max(i) from n"
    )
    gevent.spawn(lambda: begun.wait() and token.cancel())
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), token.cancels(connection):
        gevent.get_hub().threadpool.apply(connection.execute, (endless,))
    connection.close()
    with CancellationToken().cancels(connection):
        pass


def test_a_function_is_called_as_the_cancel() -> None:
    """Whatever has a `cancel()` of its own."""
    called: list[str] = []
    token = CancellationToken()
    with token.cancels(lambda: called.append("cancelled")):
        token.cancel()
        eventually(lambda: called)
    with CancellationToken().cancels(functools.partial(called.append, "no")):
        pass
    assert called == ["cancelled"]


async def _async_cancel() -> None: ...


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (object(), r"not builtins\.object"),
        (None, r"not builtins\.NoneType"),
        ("postgresql://", r"not builtins\.str"),
        (psycopg2.extensions.connection, r"not builtins\.type"),
        (sqlalchemy.create_engine("sqlite://"), r"not sqlalchemy\.engine\.base\.Engine"),
        (_async_cancel, r"not a coroutine function"),
    ],
    ids=["object", "None", "text", "class", "engine", "coroutine function"],
)
def test_anything_else_is_refused_and_what_is_known_is_named(given: object, named: str) -> None:
    """2.11: at the call, before the query."""
    token = CancellationToken()
    with pytest.raises(TypeError, match=named) as raised:
        token.cancels(given)
    for known in ("psycopg2", "psycopg 3", "PyMySQL", "SQLAlchemy", "Django", "function"):
        assert known in str(raised.value)


def test_subclasses_of_a_drivers_connection_are_known() -> None:
    """As libraries make them, to trace queries."""

    class Traced(pymysql.Connection):  # type: ignore[type-arg]
        pass

    token = CancellationToken()
    with token.cancels(Traced(defer_connect=True)):
        token.cancel()


def test_no_package_is_imported_for_it() -> None:
    """A program without a database does not pay for those of others."""
    program = """
import sys
from geventq import CancellationToken
token = CancellationToken()
with token.cancels(token.cancel):
    pass
try:
    token.cancels(object())
except TypeError:
    print(*sorted({"psycopg2", "psycopg", "pymysql", "sqlite3", "sqlalchemy", "django", "MySQLdb"}
                  & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
