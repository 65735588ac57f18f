"""Programs of the command line in a directory of the test's own, on the shared server."""

from __future__ import annotations

import collections.abc
import pathlib
import signal

import pytest

from geventq import cli
from tests.support.programs import Programs

Here = collections.abc.Callable[..., tuple[int, str, str]]

# What the jobs of these tests do, by their names.
TASKS = """
import os
import gevent


def process(job, token):
    return globals()[job.name](job, token)


def quick(job, token):
    return os.getpid()


def polite(job, token):
    "Works for a minute, unless it is cancelled."
    token.sleep(60)


def waits(job, token):
    "Works until the test writes a file; looks at nothing else."
    while not os.path.exists(job.data["until"]):
        gevent.sleep(0.01)
    return os.getpid()


def stubborn(job, token):
    "Looks at nothing, but may be killed."
    gevent.sleep(60)
"""


@pytest.fixture
def programs(
    tmp_path: pathlib.Path, redis_url: str, prefix: str
) -> collections.abc.Iterator[Programs]:
    """`$GEVENTQ_REDIS_URL` and `$GEVENTQ_PREFIX` name the test's part of the shared server, and
    the directory holds `TASKS` as ``tasks.py``."""
    made = Programs(tmp_path, GEVENTQ_REDIS_URL=redis_url, GEVENTQ_PREFIX=prefix)
    made.write("tasks.py", TASKS)
    yield made
    made.end()


@pytest.fixture
def here(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> collections.abc.Iterator[Here]:
    """Runs a command in this process, where a process of its own would prove nothing more."""
    for name in ("GEVENTQ_REDIS_URL", "GEVENTQ_PREFIX"):
        monkeypatch.setenv(name, programs.environment[name])
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return (status, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
