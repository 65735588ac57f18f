"""7.3: jobs in gunicorn's gevent workers: none is lost, none runs twice at once, and what they
are for, HTTP, is not cut by them.  Real gunicorn, two workers."""

from __future__ import annotations

import collections
import collections.abc
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import threading
import time
import typing
import urllib.error
import urllib.request

import pytest
import redis

from geventq import Queue
from tests.apps.web import jobs as web_jobs
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytest.importorskip("gunicorn")
pytest.importorskip("flask")
pytestmark = [pytest.mark.slow, pytest.mark.unpatched]

CONFIGURATION = """
from geventq.integrations.gunicorn import worker_hooks

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:{port}"
{settings}
post_worker_init, worker_exit = worker_hooks("tests.apps.web.jobs:make_worker")
"""


class Site:
    """The application under one gunicorn."""

    def __init__(self, programs: Programs, url: str, prefix: str) -> None:
        self._programs = programs
        self._url, self._prefix = url, prefix
        self.port = _free_port()
        self.program: Program | None = None

    def start(
        self,
        configuration: str = CONFIGURATION,
        *,
        close: float | None = None,
        lock: float = 30.0,
        kill_after: float = 0.0,
        **settings: object,
    ) -> Program:
        lines = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        self._programs.write(
            "gunicorn.conf.py", configuration.format(port=self.port, settings=lines)
        )
        self.program = self._programs.start(
            *("-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.apps.web.app:app"),
            APP_REDIS=self._url,
            APP_PREFIX=self._prefix,
            APP_CLOSE=json.dumps(close),
            APP_LOCK=str(lock),
            APP_KILL_AFTER=str(kill_after),
        )
        return self.program

    def get(self, path: str, timeout: float = 30.0) -> typing.Any:
        return self.ask("GET", path, timeout=timeout)

    def ask(self, method: str, path: str, data: object = None, timeout: float = 30.0) -> typing.Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if data is None else json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def pids(self) -> set[int]:
        """The worker processes that answer."""
        found = set()
        for _ in range(12):
            try:
                found.add(self.get("/")["pid"])
            except OSError:
                return set()
        return found

    def until_up(self) -> set[int]:
        def up() -> set[int]:
            assert self.program is not None
            assert self.program.is_running, self.program.told()
            found = self.pids()
            return found if len(found) == 2 else set()

        return eventually(up, 40, every=0.05, what="two workers that answer")


class Load:
    """HTTP requests of 0.2 s, eight at a time, while it is open; what became of each.

    Whoever connects as gunicorn closes its socket may stand in its line, not accepted by any
    process: the system resets such a connection.  That is refused, not cut.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(8)
        self.seen: collections.Counter[str] = collections.Counter()
        self._stops_at = float("inf")

    def stops_now(self) -> None:
        self._stops_at = time.monotonic()

    def __enter__(self) -> Load:
        self._running = [self._pool.submit(self._ask) for _ in range(8)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in self._running:
            one.result(60)
        self._pool.shutdown()

    def _ask(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self._site.get("/slow?seconds=0.2")
                self.seen["answered"] += 1
            except urllib.error.URLError as error:
                self._failed(error.reason, began)
            except Exception as error:
                self._failed(error, began)

    def _failed(self, error: object, began: float) -> None:
        late = isinstance(error, ConnectionResetError) and began > self._stops_at - 0.1
        refused = late or isinstance(error, ConnectionRefusedError)
        self.seen["refused" if refused else f"cut: {error!r}"] += 1
        time.sleep(0.02)

    @property
    def cut(self) -> int:
        return sum(n for name, n in self.seen.items() if name.startswith("cut"))


class Ledger:
    """What the jobs' journal tells: who ran when."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        rows = [json.loads(row) for row in client.lrange(f"{prefix}:journal", 0, -1)]
        self.killed_at: dict[int, float] = {}
        self.rows = rows

    def twice_at_once(self) -> list[str]:
        """Jobs that began while another process, which was not killed, was still at them."""
        running: dict[str, dict[str, typing.Any]] = {}
        found = []
        for row in sorted(self.rows, key=lambda row: row["at"]):
            before = running.get(row["job"])
            if row["event"] == "begins":
                if before is not None and row["at"] < self.killed_at.get(before["pid"], 1e18):
                    found.append(row["job"])
                running[row["job"]] = row
            elif before is not None and before["pid"] == row["pid"]:
                del running[row["job"]]
        return found

    @property
    def begun(self) -> int:
        return sum(row["event"] == "begins" for row in self.rows)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def programs(tmp_path: pathlib.Path) -> collections.abc.Iterator[Programs]:
    found = Programs(tmp_path)
    yield found
    found.end()


@pytest.fixture
def site(programs: Programs, redis_url: str, prefix: str) -> Site:
    return Site(programs, redis_url, prefix)


@pytest.fixture
def queue(redis_url: str, prefix: str) -> collections.abc.Iterator[Queue]:
    with_prefix = Queue("exports", connection=redis_url, prefix=prefix)
    yield with_prefix
    with_prefix.close()


def fill(
    queue: Queue, count: int, rows: int = 10, pause: float = 0.1, deaf: bool = False
) -> list[str]:
    from geventq import JobSpec

    data = {"rows": rows, "pause": pause, "deaf": deaf}
    return [job.id for job in queue.add_bulk([JobSpec("export", data) for _ in range(count)])]


def until_busy(queue: Queue, count: int) -> None:
    eventually(lambda: len(queue.get_active()) >= count, 40, every=0.02, what=f"{count} active")


def until_done(queue: Queue, count: int) -> None:
    eventually(
        lambda: queue.get_job_counts().get("completed") == count,
        90,
        every=0.05,
        what=lambda: f"{count} completed",
    )


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload_app"])
@pytest.mark.parametrize("end", ["TERM", "HUP", "QUIT"])
def test_a_stop_loses_no_job_and_cuts_no_request(
    site: Site, queue: Queue, redis_client: redis.Redis, prefix: str, end: str, preload: bool
) -> None:
    """TERM and HUP let the jobs that run go on; what is not run by then goes back, and the next
    processes run it.  QUIT gives all back at once, and gunicorn cuts HTTP by itself."""
    ids = fill(queue, 120)
    program = site.start(preload_app=preload, graceful_timeout=20)
    site.until_up()
    with Load(site) as load:
        until_busy(queue, 60)
        eventually(lambda: load.seen["answered"] >= 8, what="requests are answered")
        if end != "HUP":  # a reload keeps the socket
            load.stops_now()
        program.signal(getattr(signal, f"SIG{end}"))
        if end == "HUP":
            until_done(queue, len(ids))
        else:
            assert program.ends(40) == 0, program.told()
    if end != "HUP":
        assert queue.get_active() == [], "nothing is left locked by a process that is gone"
        site.start(preload_app=preload, graceful_timeout=20)
        until_done(queue, len(ids))
    ledger = Ledger(redis_client, prefix)
    assert ledger.twice_at_once() == []
    if end != "QUIT":
        assert load.cut == 0, load.seen
        assert ledger.begun == len(ids), "jobs that could end in time were not begun anew"


def test_a_page_watches_its_export_and_cancels_it_whichever_process_answers(site: Site) -> None:
    """Added, watched by server-sent events and cancelled by HTTP: each request may reach another
    process than the one that runs the job."""
    site.start()
    site.until_up()
    job_id = site.ask("POST", "/exports", {"rows": 1000, "pause": 0.02})["id"]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{site.port}/exports/{job_id}/progress", timeout=30
    ) as stream:
        assert stream.readline() == b"event: progress\n"
        seen = [site.ask("DELETE", f"/exports/{job_id}")["status"] for _ in range(3)]
        told = stream.read().decode()
    assert seen == ["stopped", "finished", "finished"]
    assert "event: failed" in told
    assert "cancelled on the web page" in told
    shown = site.get(f"/exports/{job_id}")
    assert (shown["state"], shown["reason"]) == (
        "failed",
        "Job cancelled: cancelled on the web page",
    )


def test_jobs_that_do_not_end_in_time_go_back(site: Site, queue: Queue) -> None:
    """The process has ended before gunicorn would kill it, and its jobs wait for the next one."""
    ids = fill(queue, 10, rows=1000)
    program = site.start(graceful_timeout=10)
    site.until_up()
    until_busy(queue, len(ids))
    began = time.monotonic()
    program.signal(signal.SIGTERM)
    assert program.ends(40) == 0, program.told()
    assert time.monotonic() - began < 10, program.err
    assert queue.get_job_counts()["waiting"] == len(ids)
    assert "SIGKILL" not in program.err


def test_of_a_short_graceful_timeout_jobs_get_a_share(site: Site, queue: Queue) -> None:
    """Half of what is left before the reserve of 2 s, here 3 s: time for a job to end."""
    program = site.start(graceful_timeout=8)
    site.until_up()
    ids = fill(queue, 10, rows=15)
    until_busy(queue, len(ids))
    program.signal(signal.SIGTERM)
    assert program.ends(20) == 0, program.told()
    assert queue.get_job_counts()["completed"] == len(ids)


@pytest.mark.parametrize("graceful_timeout", [2, 3, 4])
def test_under_the_shortest_graceful_timeout_jobs_that_do_not_listen_go_back(
    site: Site, queue: Queue, graceful_timeout: int
) -> None:
    """They are killed a second after they were cancelled, and that fits: none has to stall."""
    program = site.start(graceful_timeout=graceful_timeout)
    site.until_up()
    ids = fill(queue, 10, rows=1000, deaf=True)
    until_busy(queue, len(ids))
    program.signal(signal.SIGTERM)
    assert program.ends(20) == 0, program.told()
    assert queue.get_job_counts()["waiting"] == len(ids), program.err
    assert "graceful_timeout" not in program.err


@pytest.mark.parametrize(("graceful_timeout", "kill_after"), [(1, 0.0), (5, 5.0)])
def test_a_graceful_timeout_that_is_too_short_is_told_at_the_start(
    site: Site, graceful_timeout: int, kill_after: float
) -> None:
    program = site.start(graceful_timeout=graceful_timeout, kill_after=kill_after)
    site.until_up()
    needed = max(kill_after, 1.0) + 1.0
    assert (
        f"gunicorn's graceful_timeout of {graceful_timeout} s is too short: running jobs need up "
        f"to {needed:g} s to go back" in program.err
    )


def test_a_workers_own_close_timeout_may_be_shorter(site: Site, queue: Queue) -> None:
    fill(queue, 10, rows=1000)
    program = site.start(graceful_timeout=60, close=0.5)
    site.until_up()
    until_busy(queue, 10)
    program.signal(signal.SIGTERM)
    assert program.ends(30) == 0, program.told()
    assert queue.get_job_counts()["waiting"] == 10


def test_a_killed_worker_loses_no_job(
    site: Site, queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """-9: the stalled check of the others brings its jobs back when their locks have lapsed."""
    ids = fill(queue, 60)
    site.start(lock=2.0)
    pids = site.until_up()
    until_busy(queue, 60)
    victim = pids.pop()
    killed_at = time.time()
    os.kill(victim, signal.SIGKILL)
    until_done(queue, len(ids))
    ledger = Ledger(redis_client, prefix)
    ledger.killed_at[victim] = killed_at
    assert ledger.twice_at_once() == []


def test_recycling_processes_by_max_requests_loses_nothing(
    site: Site, queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    ids = fill(queue, 200)
    site.start(max_requests=20, graceful_timeout=20)
    first = site.until_up()
    with Load(site) as load:
        until_done(queue, len(ids))
    ledger = Ledger(redis_client, prefix)
    assert ledger.twice_at_once() == []
    assert load.cut == 0, load.seen
    assert {row["pid"] for row in ledger.rows} - first, "new processes have worked, too"


def test_gunicorns_own_timeout_brings_the_jobs_back(
    site: Site, queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """A request that blocks its process is ended by gunicorn; the jobs of that process run
    elsewhere, and those of the other one never notice."""
    site.start(timeout=3, lock=2.0)
    site.until_up()
    ids = fill(queue, 40, rows=20)
    until_busy(queue, 40)
    with pytest.raises(OSError):
        site.get("/stuck", timeout=60)
    until_done(queue, len(ids))


def test_a_job_that_exceeds_gunicorns_timeout_fails_by_a_sentence(site: Site, queue: Queue) -> None:
    """It does not go back, to end one process after the other; those beside it do."""
    site.start(timeout=3)
    site.until_up()
    ids = fill(queue, 20, rows=40)
    until_busy(queue, 20)
    computing = queue.add("compute")
    eventually(computing.is_failed, 40, every=0.05, what="the computing job is ended")
    read = queue.get_job(computing.id)
    assert read is not None and read.failed_reason == (
        "it held up its web process for longer than gunicorn's timeout of 3 s"
    )
    until_done(queue, len(ids))


def test_draining_is_not_taken_for_a_hang(site: Site, queue: Queue) -> None:
    """While jobs end, the process tells its master that it lives, longer than `timeout`."""
    fill(queue, 10, rows=60, pause=0.1)
    program = site.start(timeout=2, graceful_timeout=30)
    site.until_up()
    until_busy(queue, 10)
    program.signal(signal.SIGTERM)
    assert program.ends(60) == 0, program.told()
    assert queue.get_job_counts()["completed"] == 10, program.told()
    assert "WORKER TIMEOUT" not in program.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("gevent", "gthread"), 'worker_class = "gevent"'),
        (("post_worker_init, worker_exit", "post_fork, worker_exit"), "write post_worker_init"),
        (("post_worker_init, worker_exit", "when_ready, worker_exit"), "called in the master"),
        (("post_worker_init, worker_exit", "post_worker_init, _"), "has no worker_exit"),
        (("jobs:make_worker", "jobs:nothing"), "a Worker or a list of Workers is needed"),
        (("jobs:make_worker", "jobs:no_such"), "has no 'no_such'"),
        (("web.jobs", "web.no_jobs"), "No module named 'tests.apps.web.no_jobs'"),
        (("web.jobs", "web.no_jobs"), "in the factory tests.apps.web.no_jobs:make_worker of"),
        (("jobs:make_worker", "jobs:exits"), "jobs:exits: it has raised SystemExit: APP_LICENCE"),
    ],
    ids=[
        *("class", "post_fork", "when_ready", "no end", "no worker", "no function", "no module"),
        *("no module, whose", "exits"),
    ],
)
def test_a_mistake_ends_gunicorn_at_its_start_with_a_sentence(
    site: Site, change: tuple[str, str], says: str
) -> None:
    old, new = change
    wrong = CONFIGURATION.replace(
        f'"{old}"' if old == "gevent" else old, f'"{new}"' if old == "gevent" else new
    )
    if new.startswith("post_fork"):
        wrong = (
            wrong.replace(
                "post_fork, worker_exit = worker_hooks(",
                "hook, worker_exit = worker_hooks(",
            )
            + "\n\ndef post_fork(server, worker):\n    hook(worker)\n"
        )
    program = site.start(wrong)
    assert program.ends(40) != 0
    assert says in program.err, program.err


def test_an_end_without_a_start_is_told(site: Site) -> None:
    program = site.start(CONFIGURATION.replace("post_worker_init, worker_exit", "_, worker_exit"))
    site.until_up()
    program.signal(signal.SIGTERM)
    assert program.ends(40) == 0, program.told()
    assert "has no post_worker_init, so that no jobs ran in this process" in program.err


def test_a_malformed_factory_is_refused_where_it_is_written() -> None:
    from geventq.integrations.gunicorn import worker_hooks

    with pytest.raises(ValueError, match=r"factory: 'package.module:function' is needed, got 'x'"):
        worker_hooks("x")
    with pytest.raises(TypeError, match="factory"):
        worker_hooks(typing.cast(typing.Any, 3))


def test_the_module_of_jobs_is_a_module_of_the_user() -> None:
    assert web_jobs.make_worker().queue_name == "exports"
