"""psycopg2 in a worker: queries wait in the hub, and a cancelled job's query ends."""

from __future__ import annotations

import collections.abc
import contextlib
import time
import typing

import gevent
import psycopg2
import psycopg2.extensions
import pytest

from geventq import CancellationToken, Job, Queue, postgresql
from tests.conftest import Make
from tests.support.databases import postgresql_dsn, postgresql_runs  # noqa: F401 - a fixture
from tests.support.waiting import at_best, eventually

pytestmark = pytest.mark.database


@pytest.fixture
def green() -> collections.abc.Iterator[None]:
    """Our wait callback, as the worker command sets it."""
    assert postgresql.wait_in_hub()
    yield
    psycopg2.extensions.set_wait_callback(None)


@contextlib.contextmanager
def connected(dsn: str) -> collections.abc.Iterator[typing.Any]:
    connection = psycopg2.connect(dsn)
    try:
        yield connection
    finally:
        connection.close()


def test_a_query_does_not_stop_the_hub(green: None, postgresql_dsn: str) -> None:  # noqa: F811
    """Other greenlets run while PostgreSQL works; connecting waits in the hub too."""

    def turns() -> int:
        had: list[int] = []

        def turn() -> None:
            while True:
                gevent.sleep(0.005)
                had.append(1)

        other = gevent.spawn(turn)
        with connected(postgresql_dsn) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_sleep(0.3), 7")
            assert cursor.fetchone()[1] == 7
        other.kill()
        return len(had)

    at_best(turns, lambda turns: turns > 20)


def test_queries_run_side_by_side(green: None, postgresql_dsn: str) -> None:  # noqa: F811
    def query() -> None:
        with connected(postgresql_dsn) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_sleep(0.3)")

    def five() -> float:
        begun = time.monotonic()
        gevent.joinall([gevent.spawn(query) for _ in range(5)], raise_error=True)
        return time.monotonic() - begun

    at_best(five, lambda seconds: seconds < 1.2)  # one after the other: 1.5 s


def test_errors_of_the_server_arrive(green: None, postgresql_dsn: str) -> None:  # noqa: F811
    with connected(postgresql_dsn) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("select 1/0")
        connection.rollback()
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(postgresql_dsn.replace("/tmp", "/nowhere"))


@pytest.mark.parametrize("kill_after", [0.0, 30.0])
def test_a_hard_cancel_ends_a_query_and_its_job(
    green: None,
    postgresql_dsn: str,  # noqa: F811
    make: Make,
    queue: Queue,
    kill_after: float,
) -> None:
    """2.11: inside `token.cancels` the cancel comes before the throw, so PostgreSQL stops as
    well; the hub turns all the while."""

    def process(job: Job, token: CancellationToken) -> None:
        with connected(postgresql_dsn) as connection, token.cancels(connection):
            connection.cursor().execute(f"select pg_sleep(30) /* {job.id}-{queue.prefix} */")

    worker = make(process)
    job = queue.add("query")
    mark = f"{job.id}-{queue.prefix}"
    eventually(lambda: postgresql_runs(postgresql_dsn, mark))
    assert worker.cancel_job(job.id, "enough", hard=True, kill_after=kill_after, retry=False)
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    eventually(lambda: not postgresql_runs(postgresql_dsn, mark))


def test_a_kill_in_a_query_closes_its_connection_and_ends_the_query(
    green: None,
    postgresql_dsn: str,  # noqa: F811
    make: Make,
    queue: Queue,
) -> None:
    """2.11, 2.14: also without `token.cancels`, in code that has no token: the answer that is
    under way can reach nobody, since psycopg2 has closed the connection, and the server is told."""
    seen: list[typing.Any] = []

    def process(job: Job) -> None:
        connection = psycopg2.connect(postgresql_dsn)
        seen.append(connection)
        connection.cursor().execute(f"select pg_sleep(25) /* {queue.prefix} */")

    worker = make(process)
    job = queue.add("query")
    eventually(lambda: postgresql_runs(postgresql_dsn, queue.prefix))
    assert worker.cancel_job(job.id, "enough", hard=True, retry=False)
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    assert seen[0].closed
    found = queue.get_job(job.id)
    assert found is not None
    assert found.failed_reason == "Job cancelled: enough"
    eventually(lambda: not postgresql_runs(postgresql_dsn, queue.prefix))


def test_somebody_elses_callback_stays(postgresql_dsn: str) -> None:  # noqa: F811
    """A program that has its own (psycogreen's, a pool's) keeps it."""

    def theirs(connection: typing.Any) -> None:
        raise AssertionError("not called here")

    psycopg2.extensions.set_wait_callback(theirs)
    try:
        assert postgresql.wait_in_hub()
        assert psycopg2.extensions.get_wait_callback() is theirs
    finally:
        psycopg2.extensions.set_wait_callback(None)
