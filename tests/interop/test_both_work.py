"""npm bullmq and geventq work one queue: together, one for the other, and after a crash."""

from __future__ import annotations

import collections
import typing

import gevent
import pytest

from geventq import Job, JobSpec
from tests.interop.child import python
from tests.interop.conftest import NodeQueue, Ran, Sides
from tests.support.waiting import at_best, eventually, never

JOBS: typing.Final = 2_000


@pytest.mark.slow
def test_2000_jobs_of_both_sides_are_each_run_once(sides: Sides, node_queue: NodeQueue) -> None:
    ours: collections.Counter[str] = collections.Counter()
    theirs: collections.Counter[str] = collections.Counter()

    def process(job: Job) -> typing.Any:
        ours[job.id] += 1
        gevent.sleep(0.002)
        return job.data

    node_worker = sides.node_worker(pause_ms=2, quiet=True, concurrency=20)

    def listen() -> None:
        while True:
            theirs[node_worker.hear(timeout=60)["id"]] += 1

    listener = gevent.spawn(listen)
    listener.name = "listener"
    try:
        sides.worker(process, concurrency=20)
        half = JOBS // 2
        queue = sides.queue()
        jobs: list[str] = []

        def each_sides_share() -> tuple[int, int]:
            jobs.extend(one.id for one in queue.add_bulk([JobSpec("echo", i) for i in range(half)]))
            bulk = [{"name": "echo", "data": i} for i in range(half, JOBS)]
            jobs.extend(job["id"] for job in node_queue("addBulk", bulk))
            eventually(lambda: queue.get_job_counts()["completed"] == len(jobs), 100)
            eventually(lambda: sum(ours.values()) + sum(theirs.values()) >= len(jobs))
            return len(ours), len(theirs)

        # Where one side stands still for a moment, the other does it all.
        at_best(each_sides_share, lambda shares: min(shares) > len(jobs) // 20)
    finally:
        listener.kill()
    assert ours + theirs == collections.Counter(dict.fromkeys(jobs, 1))
    counts = queue.get_job_counts()
    assert {state: n for state, n in counts.items() if n} == {"completed": len(jobs)}
    for job in queue.get_completed():
        assert (job.attempts_made, job.stalled_counter) == (1, 0)


def test_geventq_obeys_a_pause_and_a_resume_of_node(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    sides.worker(echo, drain_delay=0.1)
    first = node_queue.add("n", 1)["id"]
    eventually(lambda: echo.ids == [first])
    node_queue("pause")
    assert sides.queue().is_paused()
    second = node_queue.add("n", 2)["id"]
    never(lambda: len(echo.ids) > 1, during=0.5)
    assert node_queue.of_job(second, "getState") == "waiting"
    node_queue("resume")
    eventually(lambda: echo.ids == [first, second])


def test_node_obeys_a_pause_and_a_resume_of_geventq(sides: Sides, node_queue: NodeQueue) -> None:
    queue = sides.queue()
    worker = sides.node_worker(drainDelay=0.1)
    queue.pause()
    assert node_queue("isPaused") is True
    job = queue.add("echo", 2)
    never(lambda: queue.get_job_state(job.id) != "waiting", during=0.5)
    queue.resume()
    assert job.wait_until_finished(timeout=20) == 2
    assert worker.hear()["id"] == job.id


def test_each_side_lists_the_workers_of_the_other(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    queue = sides.queue()
    sides.worker(echo, name="gevent-1")
    sides.node_worker(name="node-1")

    def seen_by_node() -> set[str]:
        return {one["rawname"].rpartition(":w:")[2] for one in node_queue("getWorkers")}

    eventually(lambda: seen_by_node() == {"gevent-1", "node-1"})
    assert node_queue("getWorkersCount") == 2
    eventually(lambda: len(queue.get_workers()) == 2)
    told = repr(queue.get_workers())
    assert "gevent-1" in told
    assert "node-1" in told


@pytest.mark.slow
def test_geventq_recovers_the_job_of_a_node_worker_that_crashed(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    job_id = node_queue.add("hang", {"n": 1})["id"]
    # Its first check holds `stalled-check` for the whole of its own interval.
    crashing = sides.node_worker(lockDuration=1000, stalledInterval=1000)
    assert crashing.hear()["id"] == job_id
    crashing.kill()
    worker = sides.worker(echo, stalled_interval=0.4)
    stalled: list[str] = []
    worker.on("stalled", stalled.append)
    eventually(lambda: echo.ids == [job_id], 30)
    eventually(lambda: node_queue.of_job(job_id, "getState") == "completed")
    seen = node_queue("getJob", job_id)
    assert (seen["stalledCounter"], seen["attemptsMade"], seen["attemptsStarted"]) == (1, 1, 2)
    assert stalled == [job_id]


@pytest.mark.slow
def test_node_recovers_the_job_of_a_geventq_worker_that_crashed(sides: Sides) -> None:
    queue = sides.queue()
    job = queue.add("echo", {"n": 1})
    where = {"url": sides.url, "prefix": sides.prefix, "queue": sides.name}
    with python(
        "tests.interop.holder", **where, lock_duration=1.0, stalled_interval=1.0
    ) as crashing:
        assert crashing.hear()["id"] == job.id
        crashing.kill()
    worker = sides.node_worker(stalledInterval=400)
    assert worker.hear()["id"] == job.id
    assert job.wait_until_finished(timeout=20) == {"n": 1}
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.stalled_counter, read.attempts_made, read.attempts_started) == (1, 1, 2)
