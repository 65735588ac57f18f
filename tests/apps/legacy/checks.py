"""What runs around the old code, and looks whether it is sane: the worker's side of the test.

`processors` are the old functions by job name, unchanged, and ``sane``, a job that uses all they
share.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
import typing

from geventq import CancellationToken, Job
from tests.apps.legacy import jobs
from tests.support.waiting import eventually

__all__ = ["processors", "stop_report"]


def stop_report(job: Job, token: CancellationToken) -> typing.ContextManager[None]:
    """An `around`: PyMySQL's query of a killed report ends in MariaDB, too."""

    def stop() -> None:
        connection = jobs.reports.get(job.id)
        if connection is not None:
            with contextlib.closing(jobs.mysql()) as other, other.cursor() as cursor:
                cursor.execute(f"kill query {connection.thread_id()}")

    return token.cancels(stop)


def sane(job: Job) -> dict[str, int]:
    """Uses what the killed jobs have used; fails where they have left anything."""
    assert not hasattr(jobs.local, "user"), "a thread-local of another job"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "an alarm is set"
    for one in (jobs.lock, jobs.condition):
        assert one.acquire(timeout=5), f"{one} is held by the dead"
        one.release()
    assert jobs.balance == {"in": 500, "out": 500}
    assert jobs.open_readers == 0
    _network(job)
    _databases()
    slept = [jobs.executor.submit(time.sleep, 0.001) for _ in range(6)]
    assert not concurrent.futures.wait(slept, timeout=5).not_done
    done = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True)
    assert done.stdout == "7\n"
    jobs.log.info("sane %s", job.id)
    with open(jobs.LOG_FILE) as file:
        assert f"sane {job.id}\n" in file.read()
    eventually(lambda: not _children(), 5.0, what="none of the killed jobs' processes is left")
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def _network(job: Job) -> None:
    # As many at once as the pool holds: none of its places is lost.
    own = concurrent.futures.ThreadPoolExecutor(jobs.POOL_SIZE)
    urls = [f"{jobs.HTTP}/echo/{job.id}-{n}?wait=0.02" for n in range(jobs.POOL_SIZE * 2)]
    for url, answer in zip(urls, own.map(jobs.session.get, urls, timeout=10), strict=True):
        assert answer.text == url.rpartition("/")[2].partition("?")[0], (url, answer.text)
    own.shutdown()
    with socket.create_connection(("127.0.0.1", jobs.ECHO_PORT), timeout=5) as line:
        line.sendall(b"here\n")
        assert line.makefile("rb").readline() == b"here\n"
    with smtplib.SMTP("127.0.0.1", jobs.SMTP_PORT, timeout=5) as server:
        server.sendmail("a@example.org", "b@example.org", "Subject: sane\r\n\r\n.end")


def _databases() -> None:
    with contextlib.ExitStack() as stack:  # the whole pool at once, each with its own answer
        for n in range(jobs.POOL_SIZE):
            assert jobs.pg_slots.acquire(timeout=5), "a place in the pool is lost"
            stack.callback(jobs.pg_slots.release)
            connection = jobs.pg().getconn()
            stack.callback(jobs.pg().putconn, connection)
            with connection, connection.cursor() as cursor:
                cursor.execute("set local lock_timeout = 5000")
                cursor.execute(f"select {n}, sum(amount) from accounts")
                assert cursor.fetchone() == (n, 1000)
                cursor.execute("update accounts set amount = amount")  # no lock is left
    with contextlib.closing(jobs.mysql()) as other, other.cursor() as cursor:
        cursor.execute("set innodb_lock_wait_timeout = 5")
        cursor.execute("select sum(amount) from accounts")
        assert cursor.fetchone() == (1000,)
        cursor.execute("update accounts set amount = amount + 0")
        other.commit()


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


processors: typing.Final = {**jobs.ALL, "sane": sane}
