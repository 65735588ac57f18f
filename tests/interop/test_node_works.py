"""geventq adds jobs, npm bullmq works them: every option means there what it means here."""

from __future__ import annotations

import typing

import pytest

from geventq import GeventqError, JobSpec, QueueEvents
from tests.interop.child import Child
from tests.interop.conftest import Sides
from tests.support.waiting import eventually

Message = dict[str, typing.Any]


def runs(worker: Child, count: int) -> list[Message]:
    """What the Node worker says of its next `count` runs."""
    found: list[Message] = []
    while len(found) < count:
        message = worker.hear()
        if message["event"] == "run":
            found.append(message)
    return found


def end(worker: Child) -> Message:
    """What it says of the next end."""
    return worker.hear_until(lambda message: message["event"] in ("completed", "failed"))[-1]


def test_a_job_of_geventq_is_worked_and_its_result_read(sides: Sides) -> None:
    queue = sides.queue()
    job = queue.add("echo", {"rows": 10})
    worker = sides.node_worker(name="node-1")
    assert end(worker) == {"event": "completed", "id": job.id, "returnvalue": {"rows": 10}}
    assert job.wait_until_finished(timeout=20) == {"rows": 10}
    read = queue.get_job(job.id)
    assert read is not None
    assert read.return_value == {"rows": 10}
    assert (read.attempts_made, read.processed_by) == (1, "node-1")
    assert queue.get_job_state(job.id) == "completed"
    assert read.processed_on is not None
    assert read.finished_on is not None
    assert read.timestamp <= read.processed_on <= read.finished_on


def test_jobs_added_in_bulk_run_in_their_order(sides: Sides) -> None:
    jobs = sides.queue().add_bulk([JobSpec("echo", {"i": i}) for i in range(50)])
    worker = sides.node_worker()
    assert [run["id"] for run in runs(worker, 50)] == [job.id for job in jobs]


def test_a_delayed_job_does_not_run_before_it_is_due(sides: Sides) -> None:
    queue = sides.queue()
    worker = sides.node_worker()
    job = queue.add("echo", {}, delay=0.4)
    assert queue.get_job_state(job.id) == "delayed"
    (run,) = runs(worker, 1)
    assert run["at"] / 1000 - job.timestamp >= 0.4


def test_priorities_are_kept(sides: Sides) -> None:
    queue = sides.queue()
    for priority in (3, 1, 2, 1):
        queue.add("echo", priority, priority=priority)
    queue.add("echo", 0)
    worker = sides.node_worker()
    assert [run["data"] for run in runs(worker, 5)] == [0, 1, 1, 2, 3]


def test_a_lifo_job_runs_next(sides: Sides) -> None:
    queue = sides.queue()
    for letter, lifo in (("a", False), ("b", False), ("c", True)):
        queue.add("echo", letter, lifo=lifo)
    worker = sides.node_worker()
    assert [run["data"] for run in runs(worker, 3)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    "backoff", [0.15, {"type": "fixed", "delay": 0.15}, {"type": "exponential", "delay": 0.15}]
)
def test_attempts_and_backoff_are_kept(sides: Sides, backoff: typing.Any) -> None:
    queue = sides.queue()
    worker = sides.node_worker()
    job = queue.add("fail", {"message": "no luck"}, attempts=3, backoff=backoff)
    first, second, third = (run["at"] for run in runs(worker, 3))
    assert second - first >= 150
    exponential = isinstance(backoff, dict) and backoff["type"] == "exponential"
    assert third - second >= (300 if exponential else 150)
    with pytest.raises(GeventqError, match="no luck"):
        job.wait_until_finished(timeout=20)
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.attempts_made, read.failed_reason) == (3, "no luck")
    assert len(read.stacktrace) == 3
    assert queue.get_job_state(job.id) == "failed"


def test_a_custom_id_is_one_job_however_often_it_is_added(sides: Sides) -> None:
    queue = sides.queue()
    for rows in (1, 2):
        assert queue.add("echo", {"rows": rows}, job_id="export-17").id == "export-17"
    last = queue.add("echo", "last")
    worker = sides.node_worker()
    assert [(run["id"], run["data"]) for run in runs(worker, 2)] == [
        ("export-17", {"rows": 1}),
        (last.id, "last"),
    ]


def test_removal_policies_are_applied_by_node(sides: Sides) -> None:
    queue = sides.queue()
    gone = queue.add("echo", "gone", remove_on_complete=True)
    failed = queue.add("fail", {"message": "no"}, remove_on_fail=True)
    for i in range(4):
        queue.add("echo", i, remove_on_complete={"age": 3600, "count": 2})
    sides.node_worker()
    eventually(lambda: [job.data for job in queue.get_completed()] == [3, 2])
    assert queue.get_job(gone.id) is None
    assert queue.get_job(failed.id) is None


def test_progress_logs_and_events_of_a_node_worker_are_read(sides: Sides) -> None:
    queue = sides.queue()
    events = QueueEvents(sides.name, connection=sides.url, prefix=sides.prefix, last_event_id="0-0")
    job = queue.add("progress", {"step": 3})
    sides.node_worker()
    seen = []
    for event in events:
        seen.append((event.name, event.job_id))
        if event.name == "completed":
            break
    events.close()
    assert seen == [
        (name, job.id) for name in ("added", "waiting", "active", "progress", "completed")
    ]
    read = queue.get_job(job.id)
    assert read is not None
    assert read.progress == {"step": 3}
    assert list(queue.get_job_logs(job.id)) == ["half way"]
