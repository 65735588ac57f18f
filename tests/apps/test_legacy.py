"""Old blocking code in a real worker: each function is killed in the middle, again and again, and
what it shares with the next job is as it was (2.12, 2.14, 2.16)."""

from __future__ import annotations

import collections.abc
import contextlib
import http.server
import pathlib
import random
import re
import socketserver
import threading
import time
import typing
import urllib.parse

import psycopg2
import pymysql
import pytest

from geventq import CancelResult, Queue
from tests.apps.legacy import jobs
from tests.support.databases import (  # noqa: F401 - two are fixtures
    mariadb_runs,
    mariadb_socket,
    postgresql_dsn,
    postgresql_runs,
)
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.unpatched, pytest.mark.database]

ROUNDS: typing.Final = 20
ENOUGH: typing.Final = "Job cancelled: enough"


class _Web(http.server.BaseHTTPRequestHandler):
    """``/echo/X?wait=S`` answers X after S seconds; ``/large`` sends a megabyte, slowly."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(address.query)
        time.sleep(float(query.get("wait", ["0"])[0]))
        large = address.path == "/large"
        body = b"x" * 1000 if large else address.path.rpartition("/")[2].encode()
        with contextlib.suppress(OSError):  # whoever asked was killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) * (1000 if large else 1)))
            self.end_headers()
            self.wfile.write(body)
            for _ in range(999 if large else 0):
                self.wfile.write(body)
                time.sleep(0.0005)

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                time.sleep(0.002)
                self.wfile.write(line)


class _Mails(socketserver.StreamRequestHandler):
    """As much of SMTP as smtplib speaks.  Keeps what was delivered whole."""

    delivered: typing.ClassVar[list[bytes]] = []

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self._say("220 here")
            while line := self.rfile.readline():
                word = line.split()[0].upper() if line.split() else b""
                time.sleep(0.001)
                if word == b"DATA":
                    self._say("354 go on")
                    self._take()
                elif word == b"QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 fine")

    def _take(self) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return  # half a mail is none
            lines.append(line)
        self.delivered.append(b"".join(lines))
        self._say("250 taken")

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100


@contextlib.contextmanager
def _serving(handler: type[socketserver.BaseRequestHandler]) -> collections.abc.Iterator[int]:
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


ACCOUNTS: typing.Final = (
    "drop table if exists accounts",
    "create table accounts (name varchar(10) primary key, amount int)",
    "insert into accounts values ('a', 500), ('b', 500)",
)


def _make_accounts(postgresql: str, mariadb: str) -> None:
    closing = contextlib.closing(psycopg2.connect(postgresql))
    with closing as connection, connection, connection.cursor() as cursor:
        for statement in ACCOUNTS:
            cursor.execute(statement)
    with contextlib.closing(pymysql.connect(unix_socket=mariadb, user="root")) as other:
        with other.cursor() as cursor:
            cursor.execute("create database if not exists legacy")
            cursor.execute("use legacy")
            for statement in ACCOUNTS:
                cursor.execute(statement)
        other.commit()


@pytest.fixture
def worker(
    tmp_path: pathlib.Path,
    redis_url: str,
    prefix: str,
    postgresql_dsn: str,  # noqa: F811
    mariadb_socket: str,  # noqa: F811
) -> collections.abc.Iterator[Program]:
    """`geventq worker` with the old code, as in production."""
    _make_accounts(postgresql_dsn, mariadb_socket)
    programs = Programs(tmp_path, GEVENTQ_REDIS_URL=redis_url, GEVENTQ_PREFIX=prefix)
    with _serving(_Web) as web, _serving(_Echo) as echo, _serving(_Mails) as mails:
        program = programs.geventq(
            *("worker", "tests.apps.legacy.checks:processors", "-q", "q", "-c", "40", "--json"),
            *("--cancel-mode", "hard", "--around", "tests.apps.legacy.checks:stop_report"),
            LEGACY_HTTP=f"http://127.0.0.1:{web}",
            LEGACY_ECHO=str(echo),
            LEGACY_SMTP=str(mails),
            LEGACY_POSTGRESQL=postgresql_dsn,
            LEGACY_MARIADB=mariadb_socket,
            LEGACY_LOG=str(tmp_path / "legacy.log"),
        )
        program.until_event("ready")
        try:
            yield program
        finally:
            programs.end()


def _active(queue: Queue, ids: list[str]) -> bool:
    return queue.get_job_count("active") == len(ids)


def _stopped(results: list[CancelResult], names: dict[str, str]) -> list[str]:
    """Those that were not, and where they sit."""
    return [
        f"{names[one.job_id]}: {one.status} {one.stage} {one.stack}"
        for one in results
        if one.status != "stopped"
    ]


def test_hard_cancels_stop_old_code_in_the_middle_again_and_again(
    worker: Program,
    queue: Queue,
    postgresql_dsn: str,  # noqa: F811
    mariadb_socket: str,  # noqa: F811
) -> None:
    """Twenty times each, all side by side, at moments that differ; after each time the next job in
    the same process finds pools, locks, thread-locals and transactions sane, and nothing that
    they started is left: processes, threads, queries."""
    _Mails.delivered.clear()
    moments, seen = random.Random(17), []
    for turn in range(ROUNDS):
        names = {queue.add(name).id: name for name in jobs.ALL}
        ids = list(names)
        eventually(lambda ids=ids: _active(queue, ids), what=worker.told)
        time.sleep(moments.uniform(0, 0.15))
        moments.shuffle(ids)
        assert _stopped(queue.cancel_jobs(ids, "enough", wait=60), names) == [], turn
        reasons = {job.name: job.failed_reason for job in queue.get_failed(0, len(ids) - 1)}
        assert reasons.pop("report_mysql") in (ENOUGH, "(1317, 'Query execution was interrupted')")
        assert set(reasons.values()) == {ENOUGH}, reasons
        seen.append(queue.add("sane").wait_until_finished(timeout=60))
        eventually(lambda: not postgresql_runs(postgresql_dsn, "legacy report"))
        eventually(lambda: not mariadb_runs(mariadb_socket, "legacy report"))
    # The pools fill in the first rounds, and grow no more.
    for what in ("fds", "threads"):
        early, late = (max(one[what] for one in part) for part in (seen[3:8], seen[-5:]))
        assert late <= early + 3, f"{what}: {[one[what] for one in seen]}"
    assert _Mails.delivered
    assert all(mail.rstrip().endswith(b"..end") or b"sane" in mail for mail in _Mails.delivered)
    assert not re.search("Traceback|LoopExit", worker.err), worker.err
