"""The field of an ordeal: a server, worker processes and a producer, and their links to it.

Each of the three has a link of its own, a proxy in this process's hub, so this process must give
its hub turns.  What is read and set on the server from here goes past it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import typing

import gevent
import redis

from tests.fault.ordeal.app import pulse
from tests.fault.ordeal.record import Line, Record, Records
from tests.support.programs import ROOT
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually

__all__ = ["PATIENCE", "PREFIX", "Field", "Process"]

PREFIX: typing.Final = "ordeal"
FINAL: typing.Final = ("completed", "failed")
PLACES: typing.Final = ("wait", "active", "delayed", "prioritized", "waiting-children", *FINAL)
#: Seconds for what a loaded machine may take long for; where being soon is promised, see `faults`.
PATIENCE: typing.Final = 90.0


class Process:
    """One process of the ordeal, or of another program that takes the same arguments: `app` is
    its module, `more` is what it takes behind them."""

    def __init__(
        self,
        role: str,
        url: str,
        folder: pathlib.Path,
        *,
        patched: bool,
        app: str = "tests.fault.ordeal.app",
        more: tuple[str, ...] = (),
    ) -> None:
        self.role = role
        self._errors = folder / f"{role}-{time.monotonic_ns()}.err"
        start = ["-m", "gevent.monkey", "--module"] if patched else ["-m"]
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, *start, app),
                    *(role, url, PREFIX, str(folder), *more),
                ],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C on the terminal is ours
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_text(errors="replace")

    def told(self) -> int:
        """How many records it has logged."""
        return len(re.findall(r"^\d+ ", self.errors, re.MULTILINE))

    def died_greenlets(self) -> list[str]:
        """What gevent has reported of greenlets that ended with an error."""
        return re.findall(r"^.*> failed with .*$", self.errors, re.MULTILINE)

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        eventually(lambda: not self.is_running, PATIENCE, every=0.01, what=f"end of {self.role}")
        return self._process.wait()

    def kill(self) -> None:
        """kill -9, whatever state it is in."""
        if self.is_running:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a line that it has not read
                self._process.stdin.close()


class Field:
    """A running ordeal.  `steady` is a worker that is never killed, `victim` one that may be."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.records = Records(folder)
        self.violations: list[str] = []
        self.server = self.new_server()
        self.links = {name: Proxy(self.server.url) for name in ("steady", "victim", "producer")}
        self.processes: list[Process] = []
        self._known: set[str] = set()  # complaints that were told
        #: When data were taken away (from, until), on the records' clock.
        self.losses: list[tuple[float, float]] = []

    def start(self) -> None:
        self.server.start()
        for link in self.links.values():
            link.start()
        self._own = Record(self.folder)
        self._pulse = gevent.spawn(pulse, self._own)
        self.steady = self._start("worker", "steady", patched=False)
        self.victim = self._start("worker", "victim", patched=True)
        self.producer = self._start("producer", "producer", patched=False)
        for process in self.processes:
            self._until(process, "ready")

    def _start(self, role: str, link: str, *, patched: bool) -> Process:
        process = Process(role, self.links[link].url, self.folder, patched=patched)
        self.processes.append(process)
        return process

    def _until(self, process: Process, tag: str, since: float = 0.0) -> Line:
        """Wait until a process has written such a line."""

        def told() -> Line | None:
            assert process.is_running, process.errors
            for line in reversed(self.records.lines()):
                if line.pid == process.pid and line.tag == tag and line.at > since:
                    return line
            return None

        found = eventually(told, PATIENCE, every=0.05, what=f"{tag} of {process.role}")
        assert found is not None
        return found

    # -- servers ---------------------------------------------------------------------------

    def new_server(self) -> Server:
        return Server(
            persistent=True,
            options=(
                "--port",
                str(_free_port()),
                "--bind",
                "127.0.0.1",
                "--repl-diskless-sync-delay",
                "0",
            ),
        )

    @contextlib.contextmanager
    def client(self) -> collections.abc.Iterator[redis.Redis]:
        """Past the links; it blocks this process."""
        with self.server.client() as client:
            yield client

    def configure(self, **settings: object) -> None:
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), str(value))

    # -- processes -------------------------------------------------------------------------

    def replace_victim(self) -> None:
        """A new worker in the place of the one that has ended, as a supervisor would start."""
        self.victim = self._start("worker", "victim", patched=True)

    @property
    def workers(self) -> list[Process]:
        return [self.steady, self.victim]

    def until_begun(self, kind: str, process: Process) -> None:
        """Wait until a process has just begun a job of that kind."""
        since = time.monotonic()

        def begun() -> bool:
            return any(
                line.at > since and line.tag == "start" and line.what[3] == kind
                for line in reversed(self.records.lines()[-200:])
                if line.pid == process.pid
            )

        eventually(begun, PATIENCE, every=0.05, what=f"a {kind} job of {process.role}")

    def expect_status_0(self, process: Process) -> None:
        """It was told to close: it ends, with status 0."""
        status = process.ends()
        if status != 0:
            self.violations.append(f"a worker ended with {status}: {process.errors[-800:]}")

    def expect_no_lost_locks(self, since: float) -> None:
        """Nobody was held up: where no process stood still, this one with the links included,
        locks were not lost.  A single one may have been the server's, on a busy machine; those
        that went with the data do not count."""
        gone_until = max((until for _, until in self.losses), default=0.0)
        with_data = {
            line.what[0]
            for line in self.records.lines()
            if line.tag == "start" and line.at < gone_until
        }
        lines = [line for line in self.records.lines() if line.at > since]
        lost = [
            line.what
            for line in lines
            if line.tag == "told" and line.what[1] == "lock_lost" and line.what[0] not in with_data
        ]
        if len(lost) > 1 and not any(line.tag == "stood-still" for line in lines):
            self.violations.append(f"locks were lost: {lost}")

    def complaints(self) -> list[str]:
        """What is wrong already, told once."""
        found, self.violations = self.violations, []
        for process in self.processes:
            for line in process.died_greenlets():
                if line not in self._known:
                    self._known.add(line)
                    found.append(f"{process.role}: {line}")
        for line in self.records.lines():
            if line.tag == "complaint" and line.what not in self._known:
                self._known.add(line.what)
                found.append(line.what)
        return found

    # -- calm --------------------------------------------------------------------------------

    def until_both_work(self, since: float) -> float | None:
        """Wait until each worker has begun jobs that were added after `since`; how long that
        took, or `None` if they do not."""
        waiting = {process.pid for process in self.workers}
        deadline = time.monotonic() + PATIENCE

        def all_began() -> bool:
            lines = [line for line in self.records.lines() if line.at > since]
            new = {line.what[0] for line in lines if line.tag == "added"}
            began = {line.pid for line in lines if line.tag == "start" and line.what[2] in new}
            return waiting <= began

        while not all_began():
            if time.monotonic() > deadline:
                self.violations.append(f"a worker has begun no new job in {PATIENCE} s")
                return None
            assert self.producer.is_running, self.producer.errors
            gevent.sleep(0.1)
        return time.monotonic() - since

    def calm(self) -> None:
        """Let the producer rest, and wait until every job has ended."""
        since = time.monotonic()
        self.producer.tell("pause")
        self._until(self.producer, "paused", since)
        eventually(self._all_ended, PATIENCE, every=0.1, what=self._say_unfinished)

    def _all_ended(self) -> bool:
        """Nothing is left to do, at two looks: an add may have been under way."""
        if any(self._members(place) for place in PLACES if place not in FINAL):
            return False
        gevent.sleep(1.0)
        return not any(self._members(place) for place in PLACES if place not in FINAL)

    def _say_unfinished(self) -> str:
        left = {place: self._members(place)[:10] for place in PLACES if place not in FINAL}
        errors = "\n".join(f"{one.role}: {one.errors[-2000:]}" for one in self.processes)
        return f"the end of all jobs; left: {left}\n{errors}"

    def go_on(self) -> None:
        self.producer.tell("go")

    def sample(self, process: Process) -> dict[str, int]:
        """What a process holds now."""
        since = time.monotonic()
        process.tell("sample")
        found: dict[str, int] = self._until(process, "sample", since).what
        return found

    def _members(self, place: str) -> list[str]:
        key = f"{PREFIX}:q:{place}"
        with self.client() as client:
            if place in ("wait", "active"):
                return client.lrange(key, 0, -1)
            return client.zrange(key, 0, -1)

    def stored(self) -> dict[str, dict[str, str]]:
        """The jobs that have ended: their hashes, with their `state`."""
        found: dict[str, dict[str, str]] = {}
        with self.client() as client:
            for state in FINAL:
                for job_id in self._members(state):
                    fields = client.hgetall(f"{PREFIX}:q:{job_id}")
                    found[job_id] = fields | {"state": state}
        return found

    def left(self) -> dict[str, list[str]]:
        """What must be gone when all is calm."""
        with self.client() as client:
            locks = list(client.scan_iter(f"{PREFIX}:q:*:lock", count=1000))
        return {"locks": locks, "active": self._members("active")}

    def forget(self) -> None:
        """Drop what is over, from Redis and from the records: the next round begins anew."""
        with self.client() as client:
            for state in FINAL:
                ids = self._members(state)
                for start in range(0, len(ids), 500):
                    client.unlink(*(f"{PREFIX}:q:{one}" for one in ids[start : start + 500]))
                client.delete(f"{PREFIX}:q:{state}")
        self.records.forget()
        self.losses.clear()

    def close(self) -> None:
        """End the workers as a deployment does."""
        for process in self.workers:
            process.signal(signal.SIGTERM)
        for process in self.workers:
            self.expect_status_0(process)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        self._pulse.kill()
        self._own.close()
        for link in self.links.values():
            link.close()
        self.server.remove()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
