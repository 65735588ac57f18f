"""2.11 on a real worker: a cancelled job's query ends in its database, and a database that says
nothing stops nobody else."""

from __future__ import annotations

import collections.abc
import os
import signal
import subprocess
import sys
import typing

import gevent
import gevent.event
import psycopg2
import psycopg2.extensions
import pytest
from gevent.socket import wait_read, wait_write

from geventq import CancellationToken, Job, Queue
from tests.conftest import Make
from tests.support.databases import postgresql_dsn, postgresql_runs  # noqa: F401 - a fixture
from tests.support.told import Told
from tests.support.waiting import eventually

pytestmark = pytest.mark.database


def _wait(connection: typing.Any) -> None:
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        wait = wait_read if state == psycopg2.extensions.POLL_READ else wait_write
        wait(connection.fileno())


@pytest.fixture
def connection(postgresql_dsn: str) -> collections.abc.Iterator[typing.Any]:  # noqa: F811
    psycopg2.extensions.set_wait_callback(_wait)
    connection = psycopg2.connect(postgresql_dsn)
    yield connection
    connection.close()
    psycopg2.extensions.set_wait_callback(None)


class Query:
    """A processor that runs a query of 30 s, inside `token.cancels`."""

    def __init__(self, connection: typing.Any) -> None:
        self.inside = gevent.event.Event()
        self._connection = connection

    def __call__(self, job: Job, token: CancellationToken) -> None:
        with token.cancels(self._connection), self._connection.cursor() as cursor:
            self.inside.set()
            cursor.execute("select pg_sleep(30)")


@pytest.mark.parametrize("retry", [True, False])
def test_the_drivers_own_error_answers_the_request(
    queue: Queue,
    make: Make,
    connection: typing.Any,
    postgresql_dsn: str,  # noqa: F811
    retry: bool,
) -> None:
    """2.11, 2.5: `QueryCanceled` is an ordinary error with a text of its own; the request's
    `retry` decides."""
    query = Query(connection)
    worker = make(query)
    told = Told(worker)
    job = queue.add("n", attempts=2, backoff=60.0)
    query.inside.wait()
    eventually(lambda: postgresql_runs(postgresql_dsn, "pg_sleep(30)"))
    assert worker.cancel_job(job.id, "enough", retry=retry)
    told.wait("retrying" if retry else "failed")
    assert told.of(job) == ["cancelled", "retrying" if retry else "failed"]
    read = queue.get_job(job.id)
    assert read is not None
    assert "canceling statement due to user request" in (read.failed_reason or "")


def test_a_silent_server_does_not_stop_the_hub(
    queue: Queue,
    make: Make,
    connection: typing.Any,
    postgresql_dsn: str,  # noqa: F811
) -> None:
    """2.11: the server's postmaster, which takes cancels, sleeps: other greenlets have their
    turns all the while (psycopg2's own `cancel()` keeps the interpreter for itself), and when it
    wakes up the query ends."""
    home = postgresql_dsn.partition("host=")[2].split()[0]
    with open(os.path.join(home, "data", "postmaster.pid")) as file:
        postmaster = int(file.readline())
    query = Query(connection)
    worker = make(query)
    told = Told(worker)
    job = queue.add("n")
    query.inside.wait()
    eventually(lambda: postgresql_runs(postgresql_dsn, "pg_sleep(30)"))
    os.kill(postmaster, signal.SIGSTOP)
    # Another process wakes it, should this one stand still.
    wake = f"import os, time; time.sleep(15); os.kill({postmaster}, {int(signal.SIGCONT)})"
    waker = subprocess.Popen([sys.executable, "-c", wake])
    try:
        assert worker.cancel_job(job.id, "enough", retry=False)
        for _ in range(50):
            gevent.sleep(0.005)
        assert waker.poll() is None, "the hub stood still"
        assert told.of(job) == [], "the server was not silent: this shows nothing"
    finally:
        waker.kill()
        waker.wait()
        os.kill(postmaster, signal.SIGCONT)
    told.wait("failed")
    assert told.of(job) == ["cancelled", "failed"]
