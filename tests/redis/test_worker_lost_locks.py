"""3.4, 3.5: an attempt that lost its lock writes nothing, and what becomes of its job."""

from __future__ import annotations

import json
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    CancellationToken,
    Job,
    LockLost,
    LockLostError,
    Queue,
)
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually


def test_an_attempt_whose_lock_was_lost_writes_nothing(
    queue: Queue, make: Make, locks: Locks
) -> None:
    """3.4: the lock went to another, and this worker has not noticed: progress, data, log and
    the result are refused; `lock_lost` is told, never `completed`."""
    inside, go = gevent.event.Event(), gevent.event.Event()
    refused: list[str] = []

    def process(job: Job) -> str:
        inside.set()
        go.wait()
        for write in (
            lambda: job.update_progress(99),
            lambda: job.update_data({"mine": False}),
            lambda: job.log("a row"),
            lambda: job.extend_lock(5),
        ):
            try:
                write()
            except LockLostError as error:
                refused.append(str(error))
        return "mine"

    told = Told(make(process, skip_stalled_check=True))
    job = queue.add("n", {"mine": True})
    inside.wait()
    locks.give_away(job.id)
    go.set()
    lost, said = told.wait("lock_lost")
    assert (lost.id, said.reason) == (job.id, LockLost(job.id))
    eventually(lambda: len(refused) == 4)  # the first refusal has told the worker
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.progress, read.data, read.return_value) == (0, {"mine": True}, None)
    assert (read.attempts_made, read.get_state(), queue.get_job_logs(job.id)) == (0, "active", [])
    assert told.of(job) == ["lock_lost"]


@pytest.mark.parametrize("outcome", ["fails", "is cancelled", "is given back"])
def test_no_outcome_is_written_without_the_lock(
    queue: Queue, make: Make, locks: Locks, outcome: str
) -> None:
    """3.4: neither is a failure, nor a cancellation, nor a give-back."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        inside.set()
        if outcome == "fails":
            go.wait()
            raise ValueError("mine")
        token.sleep(60)

    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("n", attempts=3)
    inside.wait()
    locks.give_away(job.id)
    go.set()
    if outcome == "is cancelled":
        assert worker.cancel_job(job.id)
    elif outcome == "is given back":
        worker.close(0)
    told.wait("lock_lost")
    assert told.of(job) == ["lock_lost"]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.get_state(), read.failed_reason, read.attempts_started) == ("active", None, 1)


def test_an_attempt_and_its_successor_are_told_apart_in_one_worker(
    queue: Queue, make: Make, locks: Locks
) -> None:
    """1: the first attempt lost its lock and goes on, the job stalls and comes back to the same
    worker: the end of the first neither hides the second nor speaks for it."""
    gates = [gevent.event.Event(), gevent.event.Event()]
    begun: list[int] = []

    def process(job: Job, token: CancellationToken) -> str:
        begun.append(job.attempts_started)
        gates[len(begun) - 1].wait()
        token.raise_if_cancelled()
        return f"attempt {job.attempts_started}"

    worker = make(
        process, concurrency=2, lock_duration=4.0, lock_renew_time=0.1, stalled_interval=0.05
    )
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: begun == [1])
    locks.lose(job.id)
    eventually(lambda: begun == [1, 2])
    told.wait("lock_lost")
    gates[0].set()
    eventually(lambda: len(worker.active_jobs) == 1)
    assert worker.cancel_job(job.id, "the second", retry=False)
    gates[1].set()
    told.wait("failed")
    assert told.of(job) == ["lock_lost", "cancelled", "failed"]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, read.attempts_made) == ("Job cancelled: the second", 1)


@pytest.mark.parametrize("most", [0, 1])
def test_a_stalled_job_runs_again_up_to_max_stalled_count(
    queue: Queue, make: Make, locks: Locks, most: int
) -> None:
    """3.5: it goes back to wait, and is told; once too often, it fails without running."""
    ran: list[str] = []
    job = queue.add("n", attempts=3)
    locks.leave_as_a_dead_worker_does(job.id)
    told = Told(make(lambda job: ran.append(job.id), stalled_interval=0.02, max_stalled_count=most))
    eventually(lambda: told.of(job))
    read = queue.get_job(job.id)
    assert read is not None
    assert told.args("stalled") == [(job.id,)]
    assert (read.stalled_counter, read.attempts_started) == (1, 2)
    if most:
        assert (told.of(job), ran) == (["completed"], [job.id])
    else:
        assert (told.of(job), ran) == (["failed"], [])
        assert read.failed_reason == "job stalled more than allowable limit"


@pytest.mark.parametrize("retry", [True, False])
def test_a_recorded_request_survives_a_stall(
    queue: Queue, make: Make, locks: Locks, retry: bool
) -> None:
    """3.5: the next worker ends the job by the request's `retry`, without running it.  One that
    ended it for good is still shown."""
    ran: list[int] = []
    job = queue.add("n", attempts=2)
    record = {"reason": "hung", "kind": "user", "hard": True, "retry": retry, "at": 1, "atm": 0}
    deferred = {} if retry else {"defa": "Job cancelled: hung"}
    locks.leave_as_a_dead_worker_does(job.id, gqc=json.dumps(record), **deferred)
    told = Told(make(lambda job: ran.append(job.attempts_made), stalled_interval=0.02))
    eventually(lambda: queue.get_job_state(job.id) == ("completed" if retry else "failed"))
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason == "Job cancelled: hung"
    assert read.deferred_failure is None
    assert (read.cancellation and read.cancellation.reason) == (None if retry else "hung")
    assert ran == ([1] if retry else [])
    expected = ["cancelled", "retrying", "completed"] if retry else ["cancelled", "failed"]
    eventually(lambda: told.of(job) == expected)


def _flush(client: redis.Redis, base: str, job_id: str) -> None:
    """As FLUSHALL does to this queue."""
    client.delete(*client.keys(f"{base}*"))


LOSSES: typing.Final[dict[str, typing.Callable[[redis.Redis, str, str], object]]] = {
    "all keys are flushed": _flush,
    "its hash is removed": lambda client, base, job_id: client.delete(base + job_id),
    "the job is removed": lambda client, base, job_id: (
        client.delete(base + job_id, f"{base}{job_id}:lock"),
        client.lrem(f"{base}active", 0, job_id),
    ),
    "it is taken out of active": lambda client, base, job_id: client.lrem(
        f"{base}active", 0, job_id
    ),
    "its key holds something else": lambda client, base, job_id: client.set(base + job_id, "mine"),
}


@pytest.mark.parametrize("notices", ["the renewer", "the outcome"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_job_that_vanishes_during_its_run_is_told_once_as_a_lost_lock(
    queue: Queue,
    make: Make,
    redis_client: redis.Redis,
    prefix: str,
    loss: str,
    fails: bool,
    notices: str,
) -> None:
    """3.4: whoever removed it, and whichever call notices: an attempt that had a listener's
    `active` has an end, and only one."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> str:
        inside.set()
        go.wait()
        if fails:
            raise ValueError("no")
        return "done"

    renew_time = 0.1 if notices == "the renewer" else 10.0
    worker = make(process, skip_stalled_check=True, lock_duration=20.0, lock_renew_time=renew_time)
    told = Told(worker)
    job = queue.add("n", attempts=2)
    inside.wait()
    LOSSES[loss](redis_client, f"{prefix}:q:", job.id)
    if notices == "the renewer":
        gevent.sleep(0.25)  # rounds, in which it may notice; not every loss concerns the lock
    go.set()
    told.wait("lock_lost")
    eventually(lambda: not engine_of(worker).slots.held)
    gevent.sleep(0.02)
    assert told.of(job) == ["lock_lost"]


def test_a_job_that_vanishes_gives_its_slot_free(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.4: of one slot, the next job gets it."""
    inside = gevent.event.Event()
    ran: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        ran.append(job.id)
        inside.set()
        if len(ran) == 1:
            token.wait()

    told = Told(make(process, lock_renew_time=0.1))
    queue.add("n")
    inside.wait()
    _flush(redis_client, f"{prefix}:q:", "")
    told.wait("lock_lost")
    job = queue.add("n", job_id="next")
    eventually(lambda: told.of(job) == ["completed"])
