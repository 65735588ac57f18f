"""Real PostgreSQL and MariaDB servers for a test session, each in a temporary directory.

They listen on a unix socket in it and on no port.  As root they run as the system's own user of
that name (Debian's packages make it), since neither server runs as root.  A missing server skips
the test; with ``CI=true`` it fails it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import psycopg2
import pymysql
import pytest

__all__ = ["mariadb_runs", "mariadb_socket", "postgresql_dsn", "postgresql_runs"]


def _as_user(name: str) -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def _directory(owner: str) -> collections.abc.Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gq-db-", dir="/tmp") as path:
        if os.geteuid() == 0:
            shutil.chown(path, owner)
        yield path


def _run(command: list[str], owner: str, cwd: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, **_as_user(owner)
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def _serving(
    command: list[str], owner: str, cwd: str, ready: collections.abc.Callable[[], bool]
) -> collections.abc.Iterator[None]:
    """Runs a server, from when it is `ready`: its socket is there before it takes anybody."""
    with open(os.path.join(cwd, "log"), "wb") as log:
        server = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, **_as_user(owner))
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                with open(os.path.join(cwd, "log"), errors="replace") as said:
                    pytest.fail(f"{command[0]} did not start: {said.read()}")
            time.sleep(0.02)
        yield
    finally:
        server.send_signal(signal.SIGINT if "postgres" in command[0] else signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _missing(what: str, package: str) -> None:
    text = f"no {what} server here (Debian: apt-get install {package})"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def postgresql_dsn() -> collections.abc.Iterator[str]:
    """The DSN of a PostgreSQL server of this session's own."""
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin")) + [
        os.path.dirname(os.path.realpath(found)) for found in [shutil.which("initdb")] if found
    ]
    if not binaries:
        _missing("PostgreSQL", "postgresql")
    home = binaries[-1]
    with _directory("postgres") as path:
        data = os.path.join(path, "data")
        _run(
            [f"{home}/initdb", "-D", data, "-U", "gq", "-A", "trust", "--no-sync"],
            "postgres",
            path,
        )
        command = [f"{home}/postgres", "-D", data, "-k", path, "-h", "", "-F"]
        asked = [f"{home}/pg_isready", "-q", "-h", path]
        with _serving(command, "postgres", path, lambda: subprocess.call(asked) == 0):
            yield f"host={path} user=gq dbname=postgres"


@pytest.fixture(scope="session")
def mariadb_socket() -> collections.abc.Iterator[str]:
    """The unix socket of a MariaDB server of this session's own; user ``root``, no password."""
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        _missing("MariaDB", "mariadb-server")
    with _directory("mysql") as path:
        data, address = os.path.join(path, "data"), os.path.join(path, "socket")
        _run(
            [
                str(install),
                "--no-defaults",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            "mysql",
            path,
        )
        command = [
            str(server),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={address}",
            "--skip-networking",
            f"--pid-file={path}/pid",
        ]
        with _serving(command, "mysql", path, lambda: _takes_connections(address)):
            yield address


def postgresql_runs(dsn: str, text: str) -> int:
    """How many queries with `text` in them PostgreSQL is working on.

    Waits as psycopg2's wait callback says: where there is none, the hub stands still.
    """
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select count(*) from pg_stat_activity where state = 'active'"
                " and position(%s in query) > 0 and pid <> pg_backend_pid()",
                (text,),
            )
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def mariadb_runs(path: str, text: str) -> int:
    """How many queries with `text` in them MariaDB is working on.  Unpatched, it stops the hub."""
    connection = pymysql.connect(unix_socket=path, user="root")
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select count(*) from information_schema.processlist"
                " where id <> connection_id() and locate(%s, info) > 0",
                (text,),
            )
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def _takes_connections(path: str) -> bool:
    """Whether MariaDB greets a client; it aborts a connection that says nothing back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        try:
            client.connect(path)
            return bool(client.recv(1))
        except OSError:
            return False
