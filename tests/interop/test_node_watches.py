"""Node's getters, QueueEvents and waitUntilFinished tell the truth about jobs that geventq ran."""

from __future__ import annotations

import typing

import gevent.event
import pytest
import redis

from geventq import CancellationToken, DelayedError, Job
from tests.interop.child import Child
from tests.interop.conftest import NodeQueue, Ran, Sides
from tests.support.waiting import eventually

Message = dict[str, typing.Any]


@pytest.fixture
def watcher(sides: Sides) -> Child:
    """A Node QueueEvents on the queue, from the stream's beginning."""
    return sides.node("events")


@pytest.fixture
def waiter(sides: Sides) -> Child:
    """A Node process that calls waitUntilFinished."""
    return sides.node("wait")


def begin_waiting(waiter: Child, job_id: str) -> None:
    assert waiter.ask({"id": job_id}) == {"waiting": job_id}


def story(watcher: Child, job_id: str, last: str) -> list[Message]:
    """The events of one job, up to the one named `last`."""
    heard = watcher.hear_until(
        lambda message: message["event"] == last and message.get("jobId") == job_id
    )
    assert not [message for message in heard if message["event"] == "error"]
    return [message for message in heard if message.get("jobId") == job_id]


def names(events: list[Message]) -> list[str]:
    return [event["event"] for event in events]


def waits_for_cancellation(job: Job, token: CancellationToken) -> None:
    token.get()
    token.raise_if_cancelled()


def test_a_completed_job(
    sides: Sides, node_queue: NodeQueue, watcher: Child, waiter: Child, echo: Ran
) -> None:
    job = sides.queue().add("n", {"rows": 10})
    begin_waiting(waiter, job.id)
    sides.worker(echo, name="gevent-1")
    assert waiter.hear() == {"id": job.id, "result": {"rows": 10}}
    events = story(watcher, job.id, "completed")
    assert names(events) == ["added", "waiting", "active", "completed"]
    assert events[-1]["returnvalue"] == {"rows": 10}
    assert events[-1]["prev"] == "active"
    assert node_queue.of_job(job.id, "getState") == "completed"
    assert [one["id"] for one in node_queue("getCompleted")] == [job.id]
    counts = node_queue("getJobCounts")
    assert {state: n for state, n in counts.items() if n} == {"completed": 1}
    assert node_queue("getJob", job.id)["processedBy"] == "gevent-1"


def test_a_job_without_a_result(sides: Sides, waiter: Child, watcher: Child) -> None:
    job = sides.queue().add("n")
    begin_waiting(waiter, job.id)
    sides.worker(lambda job: None)
    assert waiter.hear() == {"id": job.id, "result": None}
    assert "returnvalue" in story(watcher, job.id, "completed")[-1]


def test_a_job_that_failed_after_its_retries(
    sides: Sides, node_queue: NodeQueue, watcher: Child, waiter: Child
) -> None:
    def fails(job: Job) -> None:
        raise ValueError(f"attempt {job.attempts_made + 1}")

    job = sides.queue().add("n", attempts=3)
    begin_waiting(waiter, job.id)
    sides.worker(fails)
    assert waiter.hear() == {"id": job.id, "error": "attempt 3"}
    events = story(watcher, job.id, "retries-exhausted")
    runs = ["waiting", "active"] * 3
    assert names(events) == ["added", *runs, "failed", "retries-exhausted"]
    assert events[-2]["failedReason"] == "attempt 3"
    assert events[-1]["attemptsMade"] == "3"
    assert node_queue.of_job(job.id, "getState") == "failed"
    (seen,) = node_queue("getFailed")
    assert (seen["id"], seen["attemptsMade"], seen["failedReason"]) == (job.id, 3, "attempt 3")
    assert ["ValueError: attempt" in trace for trace in seen["stacktrace"]] == [True] * 3


def test_a_job_that_succeeded_at_its_second_attempt(
    sides: Sides, node_queue: NodeQueue, watcher: Child
) -> None:
    def fails_once(job: Job) -> str:
        if not job.attempts_made:
            raise ValueError("once")
        return "done"

    job = sides.queue().add("n", attempts=2, backoff=0.05)
    sides.worker(fails_once)
    events = story(watcher, job.id, "completed")
    assert names(events) == [
        *("added", "waiting", "active", "delayed", "waiting", "active", "completed"),
    ]
    seen = node_queue("getJob", job.id)
    assert (seen["attemptsMade"], seen["returnvalue"]) == (2, "done")


def test_a_running_job_and_its_progress_and_logs(
    sides: Sides, node_queue: NodeQueue, watcher: Child
) -> None:
    goes_on = gevent.event.Event()

    def process(job: Job) -> None:
        job.update_progress({"percent": 50})
        job.log("half way")
        goes_on.wait()

    job = sides.queue().add("n")
    sides.worker(process)
    progress = story(watcher, job.id, "progress")[-1]
    assert progress["data"] == {"percent": 50}
    assert node_queue.of_job(job.id, "getState") == "active"
    assert [one["id"] for one in node_queue("getActive")] == [job.id]
    assert node_queue("getJob", job.id)["progress"] == {"percent": 50}
    eventually(lambda: node_queue("getJobLogs", job.id) == {"logs": ["half way"], "count": 1})
    goes_on.set()
    story(watcher, job.id, "completed")


@pytest.mark.parametrize(
    ("reason", "told"),
    [("user asked", "Job cancelled: user asked"), (None, "Job cancelled")],
)
def test_a_cancelled_job(
    sides: Sides,
    node_queue: NodeQueue,
    watcher: Child,
    waiter: Child,
    reason: str | None,
    told: str,
) -> None:
    """2.6: the text of the failure, and an end that retries do not undo."""
    job = sides.queue().add("n", attempts=5)
    begin_waiting(waiter, job.id)
    worker = sides.worker(waits_for_cancellation)
    story(watcher, job.id, "active")
    assert eventually(lambda: worker.cancel_job(job.id, reason, retry=False))
    assert waiter.hear() == {"id": job.id, "error": told}
    events = story(watcher, job.id, "failed")
    assert "completed" not in names(events)
    assert events[-1]["failedReason"] == told
    assert node_queue.of_job(job.id, "getState") == "failed"
    seen = node_queue("getJob", job.id)
    assert (seen["failedReason"], seen["attemptsMade"]) == (told, 1)
    counts = node_queue("getJobCounts")
    assert {state: n for state, n in counts.items() if n} == {"failed": 1}


def test_a_killed_job(sides: Sides, node_queue: NodeQueue, watcher: Child) -> None:
    """2.6: a kill is told like any cancellation."""
    job = sides.queue().add("n")
    worker = sides.worker(lambda job: gevent.event.Event().wait())
    story(watcher, job.id, "active")
    assert eventually(lambda: worker.cancel_job(job.id, "enough", hard=True))
    assert story(watcher, job.id, "failed")[-1]["failedReason"] == "Job cancelled: enough"
    assert node_queue.of_job(job.id, "getState") == "failed"


def test_a_cancelled_job_that_may_be_retried_runs_again(
    sides: Sides, node_queue: NodeQueue, watcher: Child
) -> None:
    """2.6: with `retry=True` the job's own retry rules decide."""

    def process(job: Job, token: CancellationToken) -> str:
        if not job.attempts_made:
            waits_for_cancellation(job, token)
        return "second"

    job = sides.queue().add("n", attempts=2)
    worker = sides.worker(process)
    story(watcher, job.id, "active")
    assert eventually(lambda: worker.cancel_job(job.id, "not now"))
    assert "failed" not in names(story(watcher, job.id, "completed"))
    seen = node_queue("getJob", job.id)
    assert (seen["attemptsMade"], seen["returnvalue"]) == (2, "second")


def test_queue_events_of_node_stay_alive_through_our_events(
    sides: Sides, watcher: Child, redis_client: redis.Redis
) -> None:
    """5.5: `cancelled`, `cancel-ignored` and `cancel-requested` end no reader: a later event of
    another job arrives."""
    seen = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> str:
        if job.name == "obeys":
            waits_for_cancellation(job, token)
        if job.name == "ignores":
            seen.set()
            token.get()
        return "done"

    queue = sides.queue()
    worker = sides.worker(process)
    obeys = queue.add("obeys")
    story(watcher, obeys.id, "active")
    assert eventually(lambda: worker.cancel_job(obeys.id, {"why": ["json", 1]}))
    told = story(watcher, obeys.id, "cancelled")[-1]
    assert told["reason"]

    ignores = queue.add("ignores")
    assert seen.wait(10)
    assert worker.cancel_job(ignores.id, "in vain")
    assert "completed" in names(story(watcher, ignores.id, "cancel-ignored")) or story(
        watcher, ignores.id, "completed"
    )

    # Written when a request comes from another process; the form is that of the other two.
    entry = f"{sides.prefix}:{sides.name}:events"
    redis_client.xadd(entry, {"event": "cancel-requested", "jobId": ignores.id, "reason": "afar"})
    story(watcher, ignores.id, "cancel-requested")

    later = queue.add("later")
    assert story(watcher, later.id, "completed")[-1]["returnvalue"] == "done"


@pytest.mark.slow
def test_a_job_whose_lock_was_lost(
    sides: Sides, node_queue: NodeQueue, watcher: Child, redis_client: redis.Redis
) -> None:
    """3.4: the attempt that lost its lock leaves no trace but the stall; the next one counts."""

    def process(job: Job, token: CancellationToken) -> str:
        if job.attempts_started == 1:
            waits_for_cancellation(job, token)
        return "second"

    job = sides.queue().add("n")
    worker = sides.worker(process, lock_duration=1.0, stalled_interval=0.4)
    lost: list[str] = []
    worker.on("lock_lost", lambda job, cancellation: lost.append(job.id))
    story(watcher, job.id, "active")
    redis_client.delete(f"{sides.prefix}:{sides.name}:{job.id}:lock")
    events = story(watcher, job.id, "completed")
    assert lost == [job.id]
    assert names(events) == ["waiting", "stalled", "active", "completed"]
    seen = node_queue("getJob", job.id)
    assert seen["returnvalue"] == "second"
    assert (seen["attemptsMade"], seen["attemptsStarted"], seen["stalledCounter"]) == (1, 2, 1)
    assert not seen["failedReason"]


def test_a_job_that_moved_itself_to_delayed_and_is_promoted_by_node(
    sides: Sides, node_queue: NodeQueue, watcher: Child
) -> None:
    def process(job: Job) -> str:
        if job.attempts_started == 1:
            raise DelayedError(60.0)
        return "second"

    job = sides.queue().add("n")
    sides.worker(process)
    delayed = story(watcher, job.id, "delayed")[-1]
    seen = node_queue("getJob", job.id)
    assert seen["delay"] == 60_000
    assert delayed["delay"] == pytest.approx(seen["processedOn"] + 60_000, abs=5_000)
    assert (seen["attemptsMade"], seen["failedReason"]) == (0, None)
    assert node_queue.of_job(job.id, "getState") == "delayed"
    assert [one["id"] for one in node_queue("getDelayed")] == [job.id]
    node_queue.of_job(job.id, "promote")
    story(watcher, job.id, "completed")
    assert node_queue("getJob", job.id)["attemptsMade"] == 1


def test_a_finished_job_is_retried_and_removed_by_node(
    sides: Sides, node_queue: NodeQueue, watcher: Child
) -> None:
    outcome: list[Exception | str] = [ValueError("not yet"), "now"]

    def process(job: Job) -> str:
        result = outcome.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    job = sides.queue().add("n")
    sides.worker(process)
    story(watcher, job.id, "failed")
    node_queue.of_job(job.id, "retry")
    assert story(watcher, job.id, "completed")[-1]["returnvalue"] == "now"
    node_queue.of_job(job.id, "remove")
    assert sides.queue().get_job(job.id) is None
