"""A killed call on a pooled connection does not poison the pool (cancellation.md 2.14).

Each scenario runs in a monkey-patched process of its own (`tests.fault.pools`): a few hundred
jobs are killed in mid-call, at moments spread over the call's length; between the kills others
use the same pool and must get their own answers.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.databases import mariadb_socket, postgresql_dsn  # noqa: F401 - fixtures

pytestmark = [pytest.mark.slow, pytest.mark.unpatched]  # processes of their own


def _play(scenario: str, address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.pools", scenario, address],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "killed 300 in mid-call\n"


def test_redis_py(redis_url: str) -> None:
    """2.14: the user's own redis-py client."""
    _play("redis", redis_url)


def test_our_own_client(redis_url: str) -> None:
    """2.14: geventq's connections: a processor that adds jobs is killed in mid-call."""
    _play("queue", redis_url)


def test_requests() -> None:
    """2.14: a `requests.Session` with kept-alive connections."""
    _play("requests", "")


@pytest.mark.database
def test_psycopg2(postgresql_dsn: str) -> None:  # noqa: F811
    """2.14: a connection pool of psycopg2 with gevent's wait callback."""
    _play("psycopg2", postgresql_dsn)


@pytest.mark.database
def test_pymysql(mariadb_socket: str) -> None:  # noqa: F811
    """2.14: PyMySQL connections behind a pool that closes what failed."""
    _play("pymysql", mariadb_socket)
