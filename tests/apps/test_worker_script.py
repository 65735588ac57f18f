"""A worker in production: `worker.py` of twenty lines, ``geventq worker``, and the same with
``--processes``, as a service manager, an orchestrator and an operator see them."""

from __future__ import annotations

import collections.abc
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing

import pytest

from geventq import Queue
from tests.support.programs import ROOT, Program, Programs
from tests.support.servers import Server
from tests.support.waiting import eventually, never

pytestmark = pytest.mark.slow  # all together

APPS: typing.Final = pathlib.Path(__file__).parent
WAYS: typing.Final = ("script", "command", "processes")


class Manager:
    """What stands in for systemd: the socket that `$NOTIFY_SOCKET` names."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self._socket.setblocking(False)
        self.told: list[tuple[float, str]] = []

    def lines(self) -> list[str]:
        """All that was told so far, line by line."""
        with contextlib.suppress(BlockingIOError):
            while True:
                now = time.monotonic()
                self.told += [(now, one) for one in self._socket.recv(4096).decode().split("\n")]
        return [line for _, line in self.told]

    def has(self, line: str) -> bool:
        return line in self.lines()

    def close(self) -> None:
        self._socket.close()


class Production:
    """Starts workers of each kind, with a health port; their Redis may be stopped."""

    def __init__(self, programs: Programs, server: Server) -> None:
        self.programs = programs
        self.server = server
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    def start(self, way: str, *options: str, **environment: str) -> Program:
        if way == "script":
            return self.programs.start("worker.py", HEALTH_PORT=str(self.port), **environment)
        more = ("--processes", "2") if way == "processes" else ()
        return self.programs.geventq(
            *("worker", "worker:process", "-q", "q", "-c", "5", "--health-port", str(self.port)),
            *("--json", *more, *options),
            **environment,
        )

    def ask(self, path: str, method: str = "GET", timeout: float = 10.0) -> tuple[int, typing.Any]:
        """The status, and what the JSON of the answer says; 0 where nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if body else None
        except ConnectionError:
            return 0, None
        finally:
            connection.close()

    def until(self, path: str, status: int) -> typing.Any:
        """Wait until `path` is answered with `status`; what it then says."""
        return eventually(
            lambda: (said := self.ask(path))[0] == status and (said[1] or True),
            timeout=40,
            every=0.02,
            what=f"{path} is {status}",
        )

    def running(self, count: int) -> None:
        """Wait until `count` jobs run."""
        eventually(lambda: (self.ask("/live")[1] or {}).get("active_jobs") == count, timeout=40)


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> collections.abc.Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture
def own_queue(own_server: Server, prefix: str) -> collections.abc.Iterator[Queue]:
    with Queue("q", own_server.url, prefix) as queue:
        yield queue


@pytest.fixture
def production(
    tmp_path: pathlib.Path, own_server: Server, prefix: str
) -> collections.abc.Iterator[Production]:
    programs = Programs(tmp_path, GEVENTQ_REDIS_URL=own_server.url, GEVENTQ_PREFIX=prefix)
    shutil.copy(APPS / "worker.py", tmp_path)
    yield Production(programs, own_server)
    programs.end()


# -- the health port ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_ready_follows_redis_and_live_does_not(
    production: Production, own_queue: Queue, way: str
) -> None:
    """A stopped Redis is no reason to restart the process; a new one is used as it comes."""
    program = production.start(way)
    said = production.until("/ready", 200)
    assert said["status"] == "ready"
    assert said["concurrency"] == (10 if way == "processes" else 5)
    assert {one["queue"] for one in said["workers"]} == {"q"}
    production.server.stop()
    said = production.until("/ready", 503)
    assert said["status"] == "outage"
    assert any(one != "answers" for one in said["redis"].values())
    assert production.ask("/live")[0] == 200
    production.server.start()
    production.until("/ready", 200)
    job = own_queue.add("n", {"sleep": 0})
    assert job.wait_until_finished(20) == "done"
    eventually(lambda: production.ask("/ready")[1]["ended_jobs"] == 1)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert production.ask("/live")[0] == 0


@pytest.mark.parametrize("way", ["script", "processes"])
def test_a_redis_that_hangs_is_no_redis(production: Production, way: str) -> None:
    """Within a few seconds, though the idle wait would not notice for ten."""
    production.start(way)
    production.until("/ready", 200)
    production.server.pause()
    try:
        production.until("/ready", 503)
    finally:
        production.server.resume()
    production.until("/ready", 200)


@pytest.mark.parametrize("way", WAYS)
def test_while_it_drains_it_lives_but_is_not_ready(
    production: Production, own_queue: Queue, way: str
) -> None:
    """7.3: the health port is the last to go, and says at once that no jobs are taken."""
    program = production.start(way)
    production.until("/ready", 200)
    job = own_queue.add("n", {"sleep": 1.5})
    production.running(1)
    program.signal(signal.SIGTERM)
    said = production.until("/ready", 503)
    assert (said["status"], said["active_jobs"]) == ("closing", 1)
    assert production.ask("/live")[0] == 200
    assert program.ends() == 0
    assert job.is_completed()


def test_a_paused_worker_is_not_ready(production: Production, own_queue: Queue) -> None:
    from geventq import WorkerGroup

    production.start("command")
    production.until("/ready", 200)
    with WorkerGroup("q", production.server.url, own_queue.prefix) as group:
        assert group.multi_call("pause").ok
        assert production.until("/ready", 503)["status"] == "paused"
        assert group.multi_call("resume").ok
        production.until("/ready", 200)


@pytest.mark.parametrize("way", ["script", "command"])
def test_a_hub_that_stands_still_does_not_answer(
    production: Production, own_queue: Queue, way: str
) -> None:
    production.start(way)
    production.until("/ready", 200)
    own_queue.add("computes", {"seconds": 2})

    def is_late() -> bool:
        try:
            production.ask("/live", timeout=0.5)
        except TimeoutError:
            return True
        return False

    eventually(is_late)
    production.until("/live", 200)


def test_the_parent_finds_out_that_a_childs_hub_stands_still(
    production: Production, own_queue: Queue, manager: Manager
) -> None:
    """It answers itself, with 503, and gives systemd no sign of life."""
    production.start("processes", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
    production.until("/ready", 200)
    own_queue.add("computes", {"seconds": 8})
    said = production.until("/live", 503)
    assert said["status"] == "blocked"
    assert sorted(one["status"] for one in said["processes"]) == ["blocked", "ready"]
    assert production.ask("/ready")[0] == 503
    manager.lines()
    told = len(manager.told)
    never(lambda: "WATCHDOG=1" in manager.lines()[told:], 0.6)
    production.until("/live", 200)
    production.until("/ready", 200)


@pytest.mark.parametrize("way", ["script", "processes"])
def test_other_requests_are_refused_and_harm_nobody(production: Production, way: str) -> None:
    production.start(way)
    production.until("/ready", 200)
    assert production.ask("/")[0] == 404
    assert production.ask("/live/")[0] == 404
    assert production.ask("/live?verbose=1")[0] == 200
    for method in ("POST", "PUT", "DELETE"):
        assert production.ask("/live", method)[0] == 405
    assert production.ask("/live", "HEAD") == (200, None)
    silent = [socket.create_connection(("127.0.0.1", production.port)) for _ in range(20)]
    for request in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01" + b"x" * 9000, b"GET /live"):
        with socket.create_connection(("127.0.0.1", production.port)) as wild:
            wild.sendall(request)
            wild.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                answer = wild.recv(100)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert production.ask("/live")[0] == 200
    for one in silent:
        one.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_port_in_use_is_told_with_its_place(
    production: Production, own_queue: Queue, way: str
) -> None:
    """Status 1: it may be free a moment later, as after a restart.  No job was taken."""
    job = own_queue.add("n", {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", production.port))
        taken.listen()
        program = production.start(way)
        assert program.ends() == 1
    assert f"health_port: 127.0.0.1:{production.port}: [Errno 98] Address already" in program.err
    assert program.out == ""
    assert way == "script" or "Traceback" not in program.err
    assert job.is_waiting()


@pytest.mark.parametrize("place", ["many", "70000", "a:b", ":80", "-1", ""])
def test_what_is_no_place_is_usage(production: Production, place: str) -> None:
    program = production.programs.geventq(
        *("worker", "worker:process", "-q", "q", f"--health-port={place}")
    )
    assert program.ends() == 2
    assert f"health_port: [HOST:]PORT is needed, got {place!r}" in program.err
    assert "Traceback" not in program.err


def test_the_file_may_name_the_port(production: Production) -> None:
    production.programs.write("w.toml", f"[worker]\nhealth_port = {production.port}\n")
    production.programs.geventq("worker", "worker:process", "-q", "q", "--config", "w.toml")
    production.until("/ready", 200)


# -- systemd -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "abstract"),
    [("script", False), ("command", True), ("processes", False)],
)
def test_systemd_hears_of_readiness_life_counts_and_the_end(
    production: Production, own_queue: Queue, tmp_path: pathlib.Path, way: str, abstract: bool
) -> None:
    address = f"@geventq-test-{os.getpid()}-{way}" if abstract else str(tmp_path / "notify")
    manager = Manager(address)
    program = production.start(way, NOTIFY_SOCKET=address, WATCHDOG_USEC="400000")
    eventually(lambda: manager.has("READY=1"), timeout=40)
    assert production.ask("/ready")[0] == 200
    own_queue.add("n", {"sleep": 2})
    jobs = "2 workers, 1 of 10" if way == "processes" else "1 worker, 1 of 5"
    eventually(lambda: manager.has(f"STATUS=ready: {jobs} jobs run, 0 have ended"))
    program.signal(signal.SIGTERM)
    eventually(lambda: manager.has("STOPPING=1"))
    assert program.ends() == 0
    lines = manager.lines()
    assert lines.count("READY=1") == lines.count("STOPPING=1") == 1
    signs = [at for at, line in manager.told if line == "WATCHDOG=1"]
    assert len(signs) > 5
    assert "WATCHDOG=1" in lines[lines.index("STOPPING=1") :], "it lives while it drains"
    manager.close()


@pytest.mark.parametrize("way", ["script", "command"])
def test_it_is_ready_when_jobs_are_taken_and_not_before(
    production: Production, manager: Manager, way: str
) -> None:
    """A script whose Redis is not there yet goes on; the command ends, and is started again."""
    production.server.stop()
    program = production.start(way, NOTIFY_SOCKET=manager.address)
    if way == "command":
        assert program.ends() == 3
        assert not manager.has("READY=1")
        return
    production.until("/ready", 503)
    never(lambda: manager.has("READY=1"), 0.5)
    production.server.start()
    eventually(lambda: manager.has("READY=1"), timeout=40)


def test_the_end_is_told_before_anything_else(
    production: Production, own_queue: Queue, manager: Manager
) -> None:
    """7.3: before the first listener hears of it, also where the worker closes by itself."""
    production.programs.write(
        "closes.py",
        """
from worker import *
worker = Worker("q", process, prefix=os.environ["GEVENTQ_PREFIX"])
worker.on("closing", lambda: print("closing", flush=True))
worker.on("active", lambda job: worker.close(5))
worker.run()
""",
    )
    program = production.programs.start("closes.py", NOTIFY_SOCKET=manager.address)
    eventually(lambda: manager.has("READY=1"), timeout=40)
    assert "closing" not in program.out
    own_queue.add("n")
    program.until_out("closing")
    assert manager.has("STOPPING=1")
    assert program.ends() == 0


def test_a_program_that_is_not_patched_tells_the_same(
    production: Production, own_queue: Queue, manager: Manager
) -> None:
    """And prints the stacks of its jobs."""
    production.programs.write(
        "unpatched.py",
        """
import os, gevent
from geventq import Supervisor, Worker
def process(job): gevent.sleep(30)
Supervisor([Worker("q", process, prefix=os.environ["GEVENTQ_PREFIX"], close_timeout=0)]).run()
""",
    )
    program = production.programs.start("unpatched.py", NOTIFY_SOCKET=manager.address)
    eventually(lambda: manager.has("READY=1"), timeout=40)
    job = own_queue.add("n")
    eventually(lambda: manager.has("STATUS=ready: 1 worker, 1 of 1 jobs run, 0 have ended"))
    program.signal(signal.SIGUSR1)
    eventually(lambda: "def process(job): gevent.sleep(30)" in program.err, what=program.told)
    assert f"queue q, job {job.id} (n), attempt 1" in program.err
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert manager.lines().count("STOPPING=1") == 1


@pytest.mark.parametrize("address", ["gone", "full", "/nowhere/at/all", "relative", "@"])
def test_a_socket_that_nobody_reads_harms_nobody(
    production: Production, own_queue: Queue, tmp_path: pathlib.Path, address: str
) -> None:
    if address in ("gone", "full"):
        manager = Manager(str(tmp_path / "notify"))
        address = manager.address
        if address == "gone":
            manager.close()
    else:
        manager = None
    program = production.start("script", NOTIFY_SOCKET=address, WATCHDOG_USEC="2000")
    production.until("/ready", 200)  # with a sign of life each millisecond nobody reads them
    assert own_queue.add("n").wait_until_finished(20) == "done"
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    if manager is not None:
        manager.close()


@pytest.mark.parametrize("way", ["script", "command"])
def test_a_hub_that_stands_still_gives_no_sign_of_life(
    production: Production, own_queue: Queue, manager: Manager, way: str
) -> None:
    program = production.start(way, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000")
    eventually(lambda: manager.has("READY=1"), timeout=40)
    own_queue.add("computes", {"seconds": 2})
    eventually(lambda: "works on computes" in program.err)
    told = len(manager.lines())
    never(lambda: "WATCHDOG=1" in manager.lines()[told:], 1.0)
    eventually(lambda: "WATCHDOG=1" in manager.lines()[told:])


def test_a_watchdog_that_is_another_process_is_left_alone(
    production: Production, manager: Manager
) -> None:
    production.start(
        "script", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="10000", WATCHDOG_PID="1"
    )
    eventually(lambda: manager.has("READY=1"), timeout=40)
    never(lambda: manager.has("WATCHDOG=1"), 0.1)


# -- SIGUSR1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_sigusr1_prints_the_stacks_of_all_jobs(
    production: Production, own_queue: Queue, way: str
) -> None:
    program = production.start(way)
    production.until("/ready", 200)
    jobs = [own_queue.add("sleeper", {"sleep": 30}) for _ in range(8 if way == "processes" else 3)]
    production.running(len(jobs))
    own_queue.cancel_job(jobs[0].id, hard=True, kill_after=25)
    program.signal(signal.SIGUSR1)

    def told() -> list[str]:
        return [line for line in program.err.splitlines() if line.startswith("queue q, job ")]

    eventually(lambda: len(told()) == len(jobs), what=program.told)
    for job in jobs[1:]:
        assert any(
            line.startswith(f"queue q, job {job.id} (sleeper), attempt 1, for ")
            and line.endswith(" s, not cancelled")
            for line in told()
        )
    assert program.err.count('time.sleep(float(job.data.get("sleep", 0)))') == len(jobs)


def test_it_prints_how_far_a_cancellation_has_come(
    production: Production, own_queue: Queue
) -> None:
    program = production.start("command")
    production.until("/ready", 200)
    job = own_queue.add("sleeper", {"sleep": 30})
    production.running(1)
    assert own_queue.cancel_job(job.id, hard=True, kill_after=25).status == "requested"

    def told() -> bool:
        program.signal(signal.SIGUSR1)
        return "cancellation: grace" in program.err

    eventually(told, every=0.6)


@pytest.mark.parametrize("way", ["script", "processes"])
def test_it_prints_where_a_job_computes_too(
    production: Production, own_queue: Queue, way: str
) -> None:
    """The hub does not turn: a native thread prints, a second later."""
    program = production.start(way)
    production.until("/ready", 200)
    own_queue.add("computes", {"seconds": 4})
    eventually(lambda: "works on computes" in program.err)
    program.signal(signal.SIGUSR1)
    if way == "processes":  # orders come by the hub: the child itself can be asked
        eventually(lambda: "0 jobs in process" in program.err)
        blocked = next(one["pid"] for one in program.events("active"))
        os.kill(blocked, signal.SIGUSR1)
    eventually(lambda: "while time.monotonic() < until:" in program.err, what=program.told)
    assert "(computes), attempt 1" in program.err


def test_stacks_are_lines_of_json_where_logs_are(production: Production, own_queue: Queue) -> None:
    program = production.start("command", "--log-format", "json")
    production.until("/ready", 200)
    job = own_queue.add("sleeper", {"sleep": 30})
    production.running(1)
    program.signal(signal.SIGUSR1)
    eventually(lambda: "stacks" in program.err)
    said = [json.loads(line) for line in program.err.splitlines()]
    (line,) = [one for one in said if "stacks" in one]
    assert (line["job"], line["queue"], line["attempt"]) == (job.id, "q", 1)
    assert "time.sleep" in next(iter(line["stacks"].values()))


def test_a_programs_own_handler_of_sigusr1_stays(production: Production) -> None:
    production.programs.write(
        "own.py",
        """
import signal
from worker import *
signal.signal(signal.SIGUSR1, lambda *_: print("mine", flush=True))
worker = Worker("q", process, prefix=os.environ["GEVENTQ_PREFIX"])
worker.on("ready", lambda: print("ready", flush=True))
worker.run()
""",
    )
    program = production.programs.start("own.py")
    program.until_out("ready")
    program.signal(signal.SIGUSR1)
    program.until_out("mine")
    program.signal(signal.SIGTERM)
    assert program.ends() == 0


# -- SIGHUP ------------------------------------------------------------------------------------

SETTINGS: typing.Final = "[worker]\nconcurrency = {concurrency}\nlock_duration = {lock}\n"


@pytest.mark.parametrize("more", [[], ["--processes", "2"]], ids=["one", "processes"])
def test_sighup_reads_the_settings_anew(
    production: Production, own_queue: Queue, manager: Manager, more: list[str]
) -> None:
    """What can be changed is; what cannot is said, line by line; a broken file changes nothing."""
    write = production.programs.write
    write("w.toml", SETTINGS.format(concurrency=1, lock=20))
    program = production.programs.geventq(
        *("worker", "worker:process", "-q", "q", "--config", "w.toml", *more),
        *("--health-port", str(production.port)),
        NOTIFY_SOCKET=manager.address,
    )
    production.until("/ready", 200)
    count = 2 if more else 1

    def concurrency() -> int:
        return int(production.ask("/ready")[1]["concurrency"])

    assert concurrency() == count
    write("w.toml", SETTINGS.format(concurrency=3, lock=40))
    program.signal(signal.SIGHUP)
    eventually(lambda: concurrency() == 3 * count, timeout=40)
    assert program.err.splitlines()[-2:] == [
        "geventq: concurrency of queue q: 1 -> 3",
        "geventq: lock_duration of queue q: 20.0 -> 40.0, which takes effect at a restart",
    ]
    eventually(lambda: manager.has("RELOADING=1"))
    eventually(lambda: manager.lines().count("READY=1") == 2)
    write("w.toml", "[worker]\nconcurrency = 0\n")
    program.signal(signal.SIGHUP)
    eventually(lambda: "the settings stay as they are: concurrency: at least 1" in program.err)
    write("w.toml", "[worker")
    program.signal(signal.SIGHUP)
    eventually(lambda: "the settings stay as they are: --config: w.toml: " in program.err)
    assert concurrency() == 3 * count
    jobs = [own_queue.add("n", {"sleep": 0.2}) for _ in range(3)]
    for job in jobs:
        assert job.wait_until_finished(20) == "done"
    if more:  # one that is started later has the settings in force
        os.kill(production.ask("/ready")[1]["processes"][0]["pid"], signal.SIGKILL)
        eventually(lambda: "another one starts" in program.err)
        production.until("/ready", 200)
        assert concurrency() == 6
    program.signal(signal.SIGTERM)
    assert program.ends() == 0


def test_the_log_level_can_be_changed(production: Production, own_queue: Queue) -> None:
    production.programs.write("chatty.py", "import logging\ndef f(job): logging.info('heard')\n")
    production.programs.write("w.toml", "[worker]\nlog_level = 'error'\n")
    program = production.programs.geventq(
        *("worker", "chatty:f", "-q", "q", "--config", "w.toml", "--json")
    )
    program.until_event("ready")
    own_queue.add("n").wait_until_finished(20)
    assert "heard" not in program.err
    production.programs.write("w.toml", "")
    program.signal(signal.SIGHUP)
    eventually(lambda: "log_level: 'error' -> the default" in program.err)
    own_queue.add("n").wait_until_finished(20)
    eventually(lambda: "heard" in program.err)


@pytest.mark.parametrize("more", [[], ["--processes", "2"]], ids=["one", "processes"])
def test_a_terminal_that_hangs_up_closes_the_worker(
    production: Production, more: list[str]
) -> None:
    """There SIGHUP means what it says: nobody would find the worker again."""
    primary, secondary = os.openpty()
    command = [sys.executable, "-m", "geventq", "worker", "worker:process", "-q", "q", *more]
    alone = ["env", "--default-signal=HUP", "setsid", "--ctty", "--wait"]  # not as under nohup
    process = subprocess.Popen(
        [*alone, *command, "--health-port", str(production.port)],
        cwd=production.programs.directory,
        env=production.programs.environment,
        stdin=secondary,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(secondary)
    try:
        production.until("/ready", 200)
        os.close(primary)
        eventually(lambda: production.ask("/live")[0] == 0, timeout=40)
        process.wait(20)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_before_the_worker_runs_they_end_nothing(
    production: Production, own_queue: Queue, number: signal.Signals
) -> None:
    production.programs.write(
        "slow.py",
        "import time\nprint('importing', flush=True)\ntime.sleep(0.5)\nfrom worker import *",
    )
    program = production.programs.geventq("worker", "slow:process", "-q", "q")
    program.until_out("importing")
    program.signal(number)
    program.until_out("ready")
    assert own_queue.add("n").wait_until_finished(20) == "done"


# -- containers -------------------------------------------------------------------------------


def _can_unshare() -> bool:
    tried = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True)
    return tried.returncode == 0


class Container:
    """A program as process 1 of a name space of its own."""

    def __init__(self, production: Production, *command: str, **environment: str) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (closed with it)
        self._outer = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *command],
            cwd=production.programs.directory,
            env=production.programs.environment | environment,
            stdout=self._out,
            stderr=self._out,
        )

    def stop(self) -> int:
        """As ``docker stop``: the exit status."""
        pid = self._outer.pid
        inner = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        os.kill(int(inner), signal.SIGTERM)
        return self._outer.wait(30)

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.kill()
        self._outer.wait()
        self._out.close()


needs_unshare = pytest.mark.skipif(
    not shutil.which("unshare") or not _can_unshare(), reason="needs unshare(1) and its rights"
)


@needs_unshare
@pytest.mark.parametrize("more", [[], ["--processes", "2"]], ids=["one", "processes"])
def test_as_the_first_process_of_a_container_it_heeds_sigterm(
    production: Production, own_queue: Queue, more: list[str]
) -> None:
    """The kernel drops signals for process 1 that have no handler: ``docker stop`` would wait
    for its whole grace, and kill."""
    command = [sys.executable, "-m", "geventq", "worker", "worker:process", "-q", "q", *more]
    with Container(production, *command, GEVENTQ_HEALTH_PORT=str(production.port)) as container:
        assert production.until("/ready", 200)["pid"] == 1
        job = own_queue.add("n", {"sleep": 1})
        production.running(1)
        assert container.stop() == 0
        assert job.is_completed()


@needs_unshare
def test_the_image_of_conf_runs_is_healthy_and_stops(
    production: Production, own_queue: Queue
) -> None:
    """What `conf/Dockerfile` starts, with what it sets, and its own check of health."""
    text = (ROOT / "conf" / "Dockerfile").read_text().replace("\\\n", "")
    text = text.replace("8080", str(production.port)).replace("myapp.tasks:", "worker:")
    entry, command, check = (
        json.loads(re.search(rf"^{name} .*?(\[.*\])$", text, re.M)[1])  # type: ignore[index]
        for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")
    )
    variables = re.search(r"^ENV (.*)$", text, re.M)[1].split()  # type: ignore[index]
    environment = dict(one.split("=", 1) for one in variables)
    assert (entry[0], check[0], command[1:]) == ("geventq", "python", ["-q", "exports"])
    started = [sys.executable, "-m", *entry, command[0], "-q", "q"]
    with Container(production, *started, **environment) as container:
        production.until("/ready", 200)
        checked = subprocess.run([sys.executable, *check[1:]], timeout=60, capture_output=True)
        assert checked.returncode == 0
        assert own_queue.add("n").wait_until_finished(20) == "done"
        assert container.stop() == 0
    gone = subprocess.run([sys.executable, *check[1:]], timeout=60, capture_output=True)
    assert gone.returncode == 1
