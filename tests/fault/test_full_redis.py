"""A Redis whose memory is full refuses what adds to it; what frees memory or keeps a promise works
on (cancellation.md 3.1, 3.7).  Such a server refuses the *first* write of a script if that may
need memory, and none that comes after one that it let pass."""

from __future__ import annotations

import collections.abc
import contextlib
import importlib.resources
import pathlib
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    CancellationToken,
    DelayedError,
    Job,
    JobSpec,
    Queue,
    RedisUnavailableError,
    UnrecoverableError,
    WaitingError,
    Worker,
    WorkerGroup,
)
from geventq.store.client import Client
from geventq.store.scripts import load
from tests.support.servers import Server, server_binaries
from tests.support.told import Told, ended
from tests.support.vectors import dump
from tests.support.waiting import eventually

#: Scripts that store what a user sends: they have to be refused.
REFUSED: typing.Final = {"add", "log", "update_data", "update_progress"}
#: Scripts that write nothing.
READING: typing.Final = {
    *("counts", "get_end", "get_jobs", "get_logs", "get_state", "members", "read_events"),
    "unfinished",
}

met: typing.Final[set[str]] = set()  # scripts that were called while the memory was full


class Tight:
    """A server of a test's own, with a queue, whose memory can be made full."""

    def __init__(self, server: Server, raw: redis.Redis) -> None:
        self.server = server
        self.raw = raw
        self.is_full = False
        self.queue = Queue("q", server.url)

    def fill(self) -> None:
        """From now on it is above its limit."""
        self.raw.config_set("maxmemory", 1)
        self.is_full = True

    def relieve(self) -> None:
        self.is_full = False
        self.raw.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def worker(
        self, process: typing.Any, **options: typing.Any
    ) -> collections.abc.Iterator[tuple[Worker, Told]]:
        """A worker that runs, and what it tells."""
        worker = Worker("q", process, self.server.url, **options)
        told = Told(worker)
        with worker:
            yield worker, told


@pytest.fixture(params=server_binaries(), ids=lambda path: pathlib.Path(path).name)
def tight(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> collections.abc.Iterator[Tight]:
    options = ("--maxmemory-policy", "noeviction")
    run_script = Client.script

    def noted(self: Client, script: typing.Any, *args: typing.Any, **more: typing.Any) -> object:
        reply = run_script(self, script, *args, **more)
        if one.is_full:
            met.add(script.name)
        return reply

    monkeypatch.setattr(Client, "script", noted)
    with Server(options=options, binary=request.param) as server, server.client() as raw:
        one = Tight(server, raw)
        yield one
        one.queue.close()


def fail_once(error: Exception) -> collections.abc.Callable[[Job], str]:
    """A processor whose first run raises."""
    runs: list[Job] = []

    def process(job: Job) -> str:
        runs.append(job)
        if len(runs) == 1:
            raise error
        return "done"

    return process


def test_a_job_that_runs_keeps_its_lock(tight: Tight) -> None:
    """3.1: by renewals in the full Redis; its end is written there, too."""
    runs: list[str] = []
    go = gevent.event.Event()

    def process(job: Job) -> str:
        runs.append(job.id)
        go.wait()
        return "done"

    life = {"lock_duration": 6.0, "lock_renew_time": 0.3, "stalled_interval": 0.2}
    with tight.worker(process, **life) as (_, told):
        job = tight.queue.add("n")
        eventually(lambda: runs)
        tight.fill()
        lock = f"bull:q:{job.id}:lock"
        renewals = 0
        before = tight.raw.pttl(lock)
        while renewals < 5:
            gevent.sleep(0.01)
            now = tight.raw.pttl(lock)
            assert now > 0, "the lock lapsed"
            renewals += now > before
            before = now
        go.set()
        eventually(lambda: told.of(job) == ["completed"])
    assert runs == [job.id]


@pytest.mark.parametrize(
    ("error", "state", "options"),
    [
        (UnrecoverableError("no"), "failed", {}),
        (ValueError("again"), "completed", {"attempts": 2}),
        (ValueError("later"), "completed", {"attempts": 2, "backoff": 0.01}),
        (DelayedError(0.01), "completed", {}),
        (WaitingError(), "completed", {}),
        (ValueError("no"), "failed", {"priority": 3}),
        (ValueError("again"), "completed", {"priority": 3, "attempts": 2}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_job_is_taken_and_ends_in_every_way(
    tight: Tight, error: Exception, state: str, options: dict[str, typing.Any]
) -> None:
    """3.7: also where nobody has written the length of the stream before."""
    job = tight.queue.add("n", **options)
    tight.raw.hdel("bull:q:meta", "opts.maxLenEvents")
    tight.fill()
    with tight.worker(fail_once(error)):
        ended(tight.queue, job, state)


def test_running_jobs_are_given_back(tight: Tight) -> None:
    """7.1."""
    jobs = tight.queue.add_bulk([JobSpec("n"), JobSpec("n", options={"priority": 1})])
    with tight.worker(lambda job: gevent.sleep(60), concurrency=2) as (worker, _):
        eventually(lambda: len(worker.active_jobs) == 2)
        tight.fill()
        worker.close(0)
    assert [job.get_state() for job in jobs] == ["waiting", "prioritized"]


def test_stalled_jobs_come_back(tight: Tight) -> None:
    """3.5."""
    job = tight.queue.add("n")
    tight.raw.rename("bull:q:wait", "bull:q:active")
    tight.fill()
    with tight.worker(lambda job: "done", stalled_interval=0.1) as (_, told):
        eventually(lambda: told.of(job) == ["completed"])
    assert told.args("stalled") == [(job.id,)]


def test_a_request_that_a_stuck_job_did_not_follow_is_recorded(tight: Tight) -> None:
    """2.10."""
    job = tight.queue.add("n", attempts=3)
    tight.raw.rename("bull:q:wait", "bull:q:active")
    tight.raw.set(f"bull:q:{job.id}:lock", "mine")
    tight.fill()
    client = tight.queue._store._client
    keys = tight.queue._store.keys.of_job(job.id)
    assert client.script(load("record_request"), keys, ["mine", "{}", "Job cancelled"]) == 1
    assert tight.raw.hmget(f"bull:q:{job.id}", "gqc", "defa") == ["{}", "Job cancelled"]


def test_the_keeping_of_a_queue_goes_on(tight: Tight) -> None:
    """3.7: by one who connects only now."""
    delayed = [tight.queue.add("n", delay=60) for _ in range(4)]
    waiting = [tight.queue.add("n") for _ in range(4)]
    failed = [tight.queue.add("n") for _ in range(2)]
    for job in failed:
        tight.raw.lrem("bull:q:wait", 0, job.id)
        tight.raw.zadd("bull:q:failed", {job.id: 1})
    waiting[0].log("a row")
    tight.raw.hdel("bull:q:meta", "opts.maxLenEvents")
    tight.fill()
    with Queue("q", tight.server.url) as queue:
        queue.pause()
        assert queue.is_paused()
        queue.resume()
        assert not queue.is_paused()
        jobs = {job.id: queue.get_job(job.id) for job in (*delayed, *waiting, *failed)}
        of = typing.cast("dict[str, Job]", jobs)
        of[delayed[0].id].promote()
        of[delayed[1].id].change_delay(5)
        of[delayed[2].id].remove()
        of[waiting[0].id].change_priority(7)
        of[waiting[1].id].remove()
        of[waiting[0].id].clear_logs()
        of[failed[0].id].retry()
        assert queue.retry_jobs() == 1
        assert queue.promote_jobs() == 2
        assert queue.get_job_logs(waiting[0].id) == []
        assert queue.get_job_counts() == {
            "active": 0,
            "waiting": 7,
            "completed": 0,
            "delayed": 0,
            "failed": 0,
            "prioritized": 1,
            "waiting-children": 0,
        }


def test_jobs_are_deleted(tight: Tight) -> None:
    """wire-format 9.15-9.17: that is what helps such a server."""
    tight.queue.add_bulk([JobSpec("n"), JobSpec("n", options={"delay": 60})])
    for place in ("failed", "completed"):
        job = tight.queue.add("n")
        tight.raw.lrem("bull:q:wait", 0, job.id)
        tight.raw.zadd(f"bull:q:{place}", {job.id: 1})
    tight.raw.hdel("bull:q:meta", "opts.maxLenEvents")
    tight.fill()
    assert len(tight.queue.clean(0, state="failed")) == 1
    assert len(tight.queue.clean(0, state="waiting")) == 1
    tight.queue.drain(delayed=True)
    assert tight.queue.get_job_count() == 1
    tight.queue.obliterate()
    assert tight.raw.keys("*") == []


def test_a_lock_can_be_extended_and_a_wake_up_handed_on(tight: Tight) -> None:
    """3.1."""
    seconds: list[float] = []
    go = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        go.wait()
        job.extend_lock(90)
        seconds.append(tight.raw.pttl(f"bull:q:{job.id}:lock") / 1000)

    with tight.worker(process, lock_renew_time=15) as (worker, told):
        job = tight.queue.add("n")
        eventually(lambda: worker.active_jobs)
        tight.fill()
        go.set()
        eventually(lambda: told.of(job) == ["completed"])
    assert 60 < seconds[0] <= 90
    tight.relieve()
    tight.queue.add("n")
    tight.raw.delete("bull:q:marker")
    tight.fill()
    client, keys = tight.queue._store._client, tight.queue._store.keys
    found, _ = client.script(load("recover"), keys, [keys.base, "other", 30_000, 0])
    assert found == []
    assert client.script(load("hand_on"), keys, []) == 1
    assert tight.raw.exists("bull:q:marker")


def test_jobs_are_cancelled(tight: Tight) -> None:
    """4.3: one that waits and one that runs."""
    with tight.worker(lambda job: gevent.sleep(60)) as (worker, _):
        running, waiting = tight.queue.add_bulk([JobSpec("n")] * 2)
        eventually(lambda: worker.active_jobs)
        tight.fill()
        assert tight.queue.cancel_job(waiting.id)
        assert tight.queue.cancel_job(running.id)
        assert waiting.get_state() == "failed"
        assert tight.raw.hexists(f"bull:q:{running.id}", "gqc")
        tight.relieve()
        worker.close(0)


@pytest.mark.parametrize(
    "store",
    [
        lambda queue, job: queue.add("n"),
        lambda queue, job: queue.add("n", priority=3),
        lambda queue, job: queue.add("n", delay=60, job_id="mine"),
        lambda queue, job: queue.add_bulk([JobSpec("n")] * 3),
        lambda queue, job: job.update_data({"more": 1}),
        lambda queue, job: job.update_progress(5),
        lambda queue, job: job.log("row"),
    ],
)
def test_what_adds_to_memory_is_refused_and_nothing_is_written(
    tight: Tight, store: collections.abc.Callable[[Queue, Job], object]
) -> None:
    """3.7: an outage, as one that ends."""
    job = tight.queue.add("n")
    tight.fill()
    before = dump(tight.raw, "bull:*")
    with pytest.raises(RedisUnavailableError, match="OOM"):
        store(tight.queue, job)
    assert dump(tight.raw, "bull:*") == before
    tight.relieve()
    store(tight.queue, job)


def test_a_group_is_there_and_is_asked(tight: Tight) -> None:
    """5.7: a worker joins and answers in a full Redis: it may be what has to be paused there."""
    tight.fill()
    with tight.worker(str) as (worker, _), WorkerGroup("q", tight.server.url) as group:
        eventually(lambda: [one.id for one in group.members()] == [worker.id])
        assert group.multi_call("pause").replies == {worker.id: True}
        assert worker.is_paused


def test_every_script_that_writes_was_met_above(request: pytest.FixtureRequest) -> None:
    """Who adds a script says here what it does in a full Redis: either it works, and then a test
    above calls it there, or it is refused before it has written anything."""
    asked = request.config.getoption("keyword") or any("::" in one for one in request.config.args)
    here = [one for one in request.session.items if one.path == request.node.path]
    if asked or here[-1] is not request.node:
        pytest.skip("needs all tests of this file, in their order")
    folder = importlib.resources.files("geventq.store") / "lua"
    names = {one.name.removesuffix(".lua") for one in folder.iterdir() if one.name[-4:] == ".lua"}
    assert names - REFUSED - READING <= met
