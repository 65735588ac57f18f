"""npm bullmq adds jobs, geventq works them: every option means here what it means there."""

from __future__ import annotations

import itertools
import typing

import pytest

from geventq import Job
from tests.interop.conftest import NodeQueue, Ran, Sides
from tests.support.waiting import eventually


def finished(queue: NodeQueue, count: int, state: str = "completed") -> None:
    eventually(lambda: queue("getJobCounts", state)[state] == count)


def test_a_job_added_by_node_is_worked_and_node_reads_its_result(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    added = node_queue.add("export", {"rows": 10})
    sides.worker(echo)
    finished(node_queue, 1)
    (job,) = echo.jobs
    assert (job.id, job.name, job.data) == (added["id"], "export", {"rows": 10})
    seen = node_queue("getJob", added["id"])
    assert seen["returnvalue"] == {"rows": 10}
    assert seen["attemptsMade"] == 1
    assert seen["timestamp"] <= seen["processedOn"] <= seen["finishedOn"]


def test_jobs_added_in_bulk_by_node_run_in_their_order(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    node_queue("addBulk", [{"name": "n", "data": {"i": i}} for i in range(50)])
    sides.worker(echo)
    finished(node_queue, 50)
    assert [job.data["i"] for job in echo.jobs] == list(range(50))


def test_a_delayed_job_of_node_does_not_run_before_it_is_due(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    sides.worker(echo)
    job_id = node_queue.add("later", {}, delay=400)["id"]
    assert node_queue.of_job(job_id, "getState") == "delayed"
    finished(node_queue, 1)
    seen = node_queue("getJob", job_id)
    assert seen["processedOn"] - seen["timestamp"] >= 400


def test_priorities_of_node_are_kept(sides: Sides, node_queue: NodeQueue, echo: Ran) -> None:
    for priority in (3, 1, 2, 1):
        node_queue.add("n", priority, priority=priority)
    node_queue.add("n", 0)
    sides.worker(echo)
    finished(node_queue, 5)
    assert [job.data for job in echo.jobs] == [0, 1, 1, 2, 3]


def test_a_lifo_job_of_node_runs_next(sides: Sides, node_queue: NodeQueue, echo: Ran) -> None:
    for name, lifo in (("a", False), ("b", False), ("c", True)):
        node_queue.add(name, {}, lifo=lifo)
    sides.worker(echo)
    finished(node_queue, 3)
    assert [job.name for job in echo.jobs] == ["c", "a", "b"]


@pytest.mark.parametrize(
    "backoff", [{"type": "fixed", "delay": 150}, {"type": "exponential", "delay": 150}]
)
def test_attempts_and_backoff_of_node_are_kept(
    sides: Sides, node_queue: NodeQueue, backoff: dict[str, typing.Any]
) -> None:
    started: list[float] = []

    def fails(job: Job) -> None:
        assert job.processed_on is not None
        started.append(job.processed_on)
        raise RuntimeError(f"run {len(started)}")

    sides.worker(fails)
    job_id = node_queue.add("n", {}, attempts=3, backoff=backoff)["id"]
    finished(node_queue, 1, "failed")
    first, second = (later - sooner for sooner, later in itertools.pairwise(started))
    assert first >= 0.15
    assert second >= (0.3 if backoff["type"] == "exponential" else 0.15)
    seen = node_queue("getJob", job_id)
    assert (seen["attemptsMade"], seen["failedReason"]) == (3, "run 3")


def test_numeric_texts_of_a_node_producer_count_as_numbers(
    sides: Sides, node_queue: NodeQueue
) -> None:
    """3.2: as they do for Node's own worker."""
    runs: list[int] = []

    def fails(job: Job) -> None:
        runs.append(job.opts["attempts"] - job.attempts_made)
        raise RuntimeError("no")

    backoff = {"type": "fixed", "delay": "1"}
    options = {"attempts": "3", "backoff": backoff, "removeOnFail": {"count": "5"}}
    job_id = node_queue.add("n", {}, **options)["id"]
    sides.worker(fails)
    eventually(lambda: node_queue("getJobState", job_id) == "failed")
    assert runs == [3, 2, 1]


def test_a_custom_id_of_node_is_one_job_however_often_it_is_added(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    for rows in (1, 2):
        node_queue.add("n", {"rows": rows}, jobId="export-17")
    sides.worker(echo)
    finished(node_queue, 1)
    assert [(job.id, job.data) for job in echo.jobs] == [("export-17", {"rows": 1})]


def test_removal_policies_of_node_are_applied(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    gone = node_queue.add("n", "gone", removeOnComplete=True)["id"]
    for i in range(4):
        node_queue.add("n", i, removeOnComplete=2)
    sides.worker(echo)
    eventually(lambda: len(echo.jobs) == 5)
    finished(node_queue, 2)
    assert node_queue("getJob", gone) is None
    assert [job["data"] for job in node_queue("getCompleted")] == [3, 2]


def test_a_failed_job_of_node_is_removed_where_it_says_so(
    sides: Sides, node_queue: NodeQueue
) -> None:
    def fails(job: Job) -> None:
        raise RuntimeError("no")

    worker = sides.worker(fails)
    failed: list[str] = []
    worker.on("failed", lambda job, error: failed.append(job.id))
    job_id = node_queue.add("n", {}, removeOnFail=True)["id"]
    eventually(lambda: failed == [job_id])
    assert node_queue("getJob", job_id) is None
