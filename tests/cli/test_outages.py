"""A Redis that refuses, hangs, is full or is not there: each command ends with status 3 within its
time, and names host and port, never the password (cancellation.md 3.7)."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import signal
import socket
import subprocess
import time

import pytest
import redis

from tests.support.programs import Programs
from tests.support.servers import server_binary
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

COMMANDS = {
    "add": ("add", "q", "n"),
    "jobs": ("jobs", "q", "--json"),
    "cancel": ("cancel", "q", "1", "--json"),
    "pause": ("pause", "q"),
    "worker": ("worker", "tasks:process", "-q", "q"),
    "processes": ("worker", "tasks:process", "-q", "q", "--processes", "2"),
    "demo": ("demo",),
}


class Server:
    """A server of the test's own, with a password, on a TCP port."""

    def __init__(self, directory: pathlib.Path, *options: str) -> None:
        self.directory = directory
        self.held: list[redis.Redis] = []
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = int(taken.getsockname()[1])
        self.url = f"redis://:secret@127.0.0.1:{self.port}/0"
        words = f"--port {self.port} --bind 127.0.0.1 --save --requirepass secret".split()
        words.insert(words.index("--save") + 1, "")
        with open(directory / "server.log", "wb") as log:
            self.process = subprocess.Popen(
                [server_binary(), *words, *options], cwd=directory, stdout=log, stderr=log
            )
        eventually(self._answers, timeout=60)

    def _answers(self) -> bool:
        with self.client() as client, contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password="secret")

    def end(self) -> None:
        for client in self.held:
            client.close()
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: pathlib.Path) -> collections.abc.Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.end()


def _hangs(server: Server) -> None:
    server.process.send_signal(signal.SIGSTOP)


def _is_gone(server: Server) -> None:
    server.process.kill()
    server.process.wait()


def _is_a_replica(server: Server) -> None:
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")


def _is_a_replica_that_serves_nothing(server: Server) -> None:
    with server.client() as client:
        client.config_set("replica-serve-stale-data", "no")
    _is_a_replica(server)


def _is_full(server: Server) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1)


def _cannot_save(server: Server) -> None:
    """MISCONF: the last snapshot failed, and it takes no writes since."""
    (server.directory / "dump.rdb").mkdir()  # nothing can be put in its place
    with server.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def _lacks_replicas(server: Server) -> None:
    with server.client() as client:
        client.config_set("min-replicas-to-write", 1)


def _has_no_place(server: Server) -> None:
    with server.client() as client:
        client.config_set("maxclients", 1)
    server.held.append(server.client())
    server.held[-1].ping()


READS = {"jobs", "cancel", "worker", "processes"}  # no job is there, no worker runs yet
OUTAGES = {
    "it hangs": (_hangs, set(COMMANDS)),
    "it is gone": (_is_gone, set(COMMANDS)),
    "READONLY": (_is_a_replica, set(COMMANDS) - READS),
    "MASTERDOWN": (_is_a_replica_that_serves_nothing, {"add", "jobs", "demo"}),
    "OOM": (_is_full, set(COMMANDS) - READS - {"pause"}),  # which is what such a server needs
    "MISCONF": (_cannot_save, set(COMMANDS) - READS),
    "NOREPLICAS": (_lacks_replicas, set(COMMANDS) - READS),
    "max number of clients": (_has_no_place, set(COMMANDS)),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_command_that_meets_an_outage_ends_with_3(
    programs: Programs, server: Server, outage: str
) -> None:
    """3.7: whatever the outage is, within the time of a call (10 s); all commands side by side."""
    begin, names = OUTAGES[outage]
    begin(server)
    begun = time.monotonic()
    started = {
        name: programs.geventq(*COMMANDS[name], "--redis", server.url)
        for name in COMMANDS
        if name in names
    }
    for name, program in started.items():
        assert program.ends(90) == 3, (name, program.told())
        assert f"127.0.0.1:{server.port}" in program.err, name
        assert "secret" not in program.err + program.out
        assert "Traceback" not in program.err
        each = len(program.err.splitlines())
        assert each == 1 or (name == "processes" and each == 2), program.told()
    assert time.monotonic() - begun < 35  # without a deadline over all tries: 30 to 60 s


@pytest.mark.parametrize(
    "url", ["redis://:secret@nowhere.invalid:6379", "unix:///nowhere/s?password=secret"]
)
def test_an_address_that_is_none_is_named(programs: Programs, url: str) -> None:
    """3.7: a name that cannot be resolved, a socket that is not there."""
    for command in COMMANDS.values():
        program = programs.geventq(*command, "--redis", url)
        assert program.ends(60) == 3, program.told()
        assert ("nowhere.invalid:6379" if "invalid" in url else "/nowhere/s") in program.err
        assert "secret" not in program.err


def test_a_command_whose_redis_is_stopped_under_it_ends_within_its_time(
    programs: Programs, server: Server
) -> None:
    """1: the demo, in the midst of its story."""
    program = programs.geventq("demo", "--redis", server.url)
    program.until_out("export     runs")
    server.process.send_signal(signal.SIGSTOP)
    assert program.ends(90) in (1, 3)
    assert "Traceback" not in program.err
    assert "secret" not in program.err


def test_an_outage_of_a_running_worker_is_told_without_a_traceback(
    programs: Programs, server: Server
) -> None:
    """Where in geventq it was met says nothing; other errors keep theirs."""
    text = (programs.directory / "tasks.py").read_text()
    programs.write(
        "tasks.py",
        text + "\nimport logging\ntry:\n    1 / 0\nexcept ZeroDivisionError:"
        "\n    logging.getLogger('mine').exception('by me')\n",
    )
    program = programs.geventq(*COMMANDS["worker"], "--json", "--redis", server.url)
    program.until_event("ready")
    server.process.kill()
    eventually(lambda: f"127.0.0.1:{server.port}" in program.err, timeout=60)
    assert program.err.count("Traceback") == 1
    assert "by me\nTraceback" in program.err
    assert "secret" not in program.err
    program.signal(signal.SIGTERM)
    assert program.ends(60) == 0
