"""2.9-2.11 on a real worker: killing a job, shields, and a job that does not die."""

from __future__ import annotations

import json
import logging
import typing

import gevent
import gevent.event
import pytest

import geventq
from geventq import CancellationToken, Job, JobKilled, Queue
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually


@pytest.fixture
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder's second is 30 ms, so that stuck comes after 120 ms."""
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.03)
    monkeypatch.setattr("geventq.cancellation.calls.INTERVAL", 0.03)
    monkeypatch.setattr("geventq.cancellation.throws.GAP", 0.0)


class Immortal:
    """A processor that survives every kill until `go`; other jobs and later runs return."""

    def __init__(self) -> None:
        self.go = gevent.event.Event()
        self.inside: list[str] = []
        self.kills = 0

    def __call__(self, job: Job) -> str:
        if job.name != "immortal" or job.id in self.inside:
            return "mortal"
        self.inside.append(job.id)
        while not self.go.is_set():
            try:
                self.go.wait()
            except JobKilled:
                self.kills += 1
        return "survived"


def kill(queue: Queue, worker: geventq.Worker, process: Immortal, **options: typing.Any) -> Job:
    job = queue.add("immortal", attempts=2)
    eventually(lambda: job.id in process.inside)
    assert worker.cancel_job(job.id, "die", hard=True, **options)
    return job


@pytest.mark.slow
def test_a_stuck_job_is_told_recorded_and_replaced(
    queue: Queue,
    make: Make,
    short_ladder: None,
    redis_client: typing.Any,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2.10, 4.3: thrown four times, then: an event and a log line with the stack, the request in
    the job's hash, the lock renewed no more, and another job in its place."""
    process = Immortal()
    worker = make(process, lock_duration=2.0, lock_renew_time=0.1, skip_stalled_check=True)
    told = Told(worker)
    job = kill(queue, worker, process, retry=False)
    stuck, stack = told.wait("stuck")
    assert (stuck.id, process.kills) == (job.id, 4)
    assert "in __call__" in stack
    record = next(one for one in caplog.records if "is stuck" in one.getMessage())
    assert stack in record.getMessage()
    stored = json.loads(redis_client.hget(f"{prefix}:q:{job.id}", "gqc"))
    assert (json.loads(stored["reason"]), stored["retry"], stored["atm"]) == ("die", False, 0)
    assert redis_client.hget(f"{prefix}:q:{job.id}", "defa") == "Job cancelled: die"
    another = queue.add("n")
    eventually(lambda: queue.get_job_state(another.id) == "completed")
    eventually(lambda: not redis_client.exists(f"{prefix}:q:{job.id}:lock"))
    assert [one.id for one in worker.active_jobs] == [job.id]
    process.go.set()
    eventually(lambda: not worker.active_jobs)
    assert told.of(job) == ["stuck"]


def test_the_result_of_a_stuck_job_is_refused(queue: Queue, make: Make, short_ladder: None) -> None:
    """2.10: it ends at last, with its lock still there: its result is not stored, and the slots
    are as many as before."""
    process = Immortal()
    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = kill(queue, worker, process)
    told.wait("stuck")
    process.go.set()
    eventually(lambda: not worker.active_jobs)
    after = queue.add("n")
    eventually(lambda: told.of(after) == ["completed"])
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.get_state(), read.return_value, told.of(job)) == ("active", None, ["stuck"])
    assert engine_of(worker).slots.free() == 1


def test_stuck_jobs_that_hold_every_slot_are_told_of_once(
    queue: Queue, make: Make, short_ladder: None, caplog: pytest.LogCaptureFixture
) -> None:
    """2.10: not before the replacements are gone, too; again only after a slot was free."""
    process = Immortal()
    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    first = kill(queue, worker, process)
    eventually(lambda: len(told.args("stuck")) == 1)
    assert told.args("no_slot") == []
    second = kill(queue, worker, process)
    told.wait("no_slot")
    lines = [one for one in caplog.records if "every slot" in one.getMessage()]
    assert [one.levelname for one in lines] == ["ERROR"]
    assert f"jobs {first.id}, {second.id}" in lines[0].getMessage()
    assert worker.is_running
    worker.concurrency = 1  # it is looked at again, and nothing is new
    worker.concurrency = 2
    kill(queue, worker, process)
    eventually(lambda: len(told.args("stuck")) == 3)
    kill(queue, worker, process)
    eventually(lambda: len(told.args("no_slot")) == 2)
    process.go.set()


def test_fewer_slots_than_stuck_jobs_are_told_of(
    queue: Queue, make: Make, short_ladder: None
) -> None:
    """2.10: the last free slot goes because `concurrency` is lowered."""
    process = Immortal()
    worker = make(process, concurrency=2, skip_stalled_check=True)
    told = Told(worker)
    for number in (1, 2):
        kill(queue, worker, process)
        eventually(lambda number=number: len(told.args("stuck")) == number)  # type: ignore[misc]
    assert told.args("no_slot") == []
    worker.concurrency = 1
    told.wait("no_slot")
    process.go.set()


def test_a_worker_that_stuck_jobs_fill_closes_if_it_was_told_to(
    queue: Queue, make: Make, short_ladder: None
) -> None:
    """2.10: with `exit_when_stuck`, so that somebody replaces the process; it waits for none of
    them."""
    process = Immortal()
    worker = make(process, skip_stalled_check=True, exit_when_stuck=True)
    told = Told(worker)
    running = gevent.spawn(worker.run)
    for _ in range(2):
        kill(queue, worker, process)
    running.get(timeout=20)
    assert not worker.is_running
    names = [event for event, _ in told.events]
    assert names.index("no_slot") < names.index("closing") < names.index("closed")
    process.go.set()


def test_replacement_slots_are_as_many_as_concurrency(
    queue: Queue, make: Make, short_ladder: None
) -> None:
    """2.10: with two slots and three jobs stuck one after the other there are two replacements;
    with four stuck there is no slot left."""
    process = Immortal()
    worker = make(process, concurrency=2, skip_stalled_check=True)
    told = Told(worker)
    for number in range(1, 5):
        kill(queue, worker, process)
        eventually(lambda number=number: len(told.args("stuck")) == number)  # type: ignore[misc]
        assert engine_of(worker).slots.free() == min(2, 4 - number)
    waits = queue.add("n")
    gevent.sleep(0.02)
    assert queue.get_job_state(waits.id) == "waiting"
    process.go.set()
    eventually(lambda: told.of(waits) == ["completed"])
    eventually(lambda: engine_of(worker).slots.free() == 2)


@pytest.mark.parametrize("retry", [True, False])
def test_a_stuck_job_stalls_and_ends_by_its_request_elsewhere(
    queue: Queue, make: Make, locks: Locks, short_ladder: None, retry: bool
) -> None:
    """2.10: another worker brings it back and ends it by the request's `retry`, without running
    it; where a retry is allowed, the job's own attempts decide."""
    process = Immortal()
    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = kill(queue, worker, process, retry=retry)
    told.wait("stuck")
    locks.lose(job.id)  # as time would: nobody renews it (above)
    ran: list[int] = []
    worker.pause()
    elsewhere = Told(make(lambda job: ran.append(job.attempts_made), stalled_interval=0.05))
    expected = ["cancelled", "retrying", "completed"] if retry else ["cancelled", "failed"]
    eventually(lambda: elsewhere.of(job) == expected)
    assert ran == ([1] if retry else [])
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, read.stalled_counter) == ("Job cancelled: die", 1)
    process.go.set()
    eventually(lambda: not worker.active_jobs)
    assert told.of(job) == ["stuck"]


@pytest.mark.slow
def test_close_does_not_wait_for_a_stuck_job(
    queue: Queue, make: Make, short_ladder: None, redis_client: typing.Any, prefix: str
) -> None:
    """2.10, 7.1: the ladder's end is the end of waiting, and closing records no request: that
    job stalls and runs again."""
    process = Immortal()
    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("immortal")
    eventually(lambda: process.inside)
    with gevent.Timeout(20):  # 1 s of grace, and the short ladder
        worker.close(0)
    assert told.of(job) == ["stuck"]
    assert queue.get_job_state(job.id) == "active"
    assert not redis_client.hexists(f"{prefix}:q:{job.id}", "gqc")
    process.go.set()
    gevent.sleep(0)
    assert told.of(job) == ["stuck"]


class Yields(logging.Handler):
    """A log handler that waits for its turn, as one whose lock a parked greenlet holds."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        in_hub = gevent.getcurrent() is gevent.get_hub()
        self.said.append((record.getMessage().partition("\n")[0], in_hub))
        gevent.sleep(0)


def test_nothing_is_logged_in_the_hub(queue: Queue, make: Make, short_ladder: None) -> None:
    """2.9: there a handler that must wait would raise. A shield outlasts its cap, a callback fails,
    a job gets stuck, a listener fails: each is logged by a greenlet."""
    process = Immortal()
    inside = gevent.event.Event()

    def shielded(job: Job, token: CancellationToken) -> None:
        token.on_cancel(lambda: 1 / 0)
        with token.shield(max=0.02):
            inside.set()
            gevent.sleep(60)

    handler = Yields()
    logger = logging.getLogger("geventq")
    logger.addHandler(handler)
    try:
        worker = make(shielded)
        job = queue.add("n")
        inside.wait()
        assert worker.cancel_job(job.id, hard=True)
        eventually(lambda: queue.get_job_state(job.id) == "failed")
        worker.close()
        immortals = make(process, skip_stalled_check=True)
        immortals.on("stuck", lambda job, stack: 1 / 0)
        kill(queue, immortals, process)
        eventually(lambda: any("division by zero" in text for text, _ in handler.said))
    finally:
        logger.removeHandler(handler)
        process.go.set()
    assert not any(in_hub for _, in_hub in handler.said)
    texts = " / ".join(text for text, _ in handler.said)
    for part in ("outlasted its cap", "on_cancel callback failed", "is stuck"):
        assert part in texts


def test_a_soft_cancel_is_told_inside_a_shield_and_nothing_raises(queue: Queue, make: Make) -> None:
    """2.9: `check`, `cancelled`, `reason` tell; `run` and `sleep` go to their end."""
    inside, go = gevent.event.Event(), gevent.event.Event()
    seen: list[object] = []

    def commit(job: Job, token: CancellationToken) -> str:
        with token.shield():
            inside.set()
            go.wait()
            seen.extend([token.cancelled, token.reason, token.check() is not None])
            token.sleep(0.01)
            seen.append(token.run(lambda: "ran"))
        return "committed"

    worker = make(commit)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, "soft")
    go.set()
    told.wait("completed")
    assert seen == [True, "soft", True, "ran"]


@pytest.mark.parametrize("kind", ["helper", "call"])
def test_a_helper_or_call_that_does_not_die_makes_its_job_stuck(
    queue: Queue, make: Make, short_ladder: None, kind: str
) -> None:
    """2.13: as in 2.10: told with the stack of what does not die, another job in its place, and
    the outcome refused; closing does not wait."""
    go, inside = gevent.event.Event(), gevent.event.Event()

    def survives() -> None:
        inside.set()
        while not go.is_set():
            try:
                go.wait()
            except gevent.GreenletExit:
                continue

    def process(job: Job, token: CancellationToken) -> str:
        if job.name == "other":
            return "other"
        if kind == "helper":
            token.spawn(survives)
            gevent.sleep(0)
        else:
            token.run(survives)
        return "done"

    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    if kind == "call":
        assert worker.cancel_job(job.id)
    stuck, stack = told.wait("stuck")
    assert stuck.id == job.id
    assert "in survives" in stack
    other = queue.add("other")
    eventually(lambda: told.of(other) == ["completed"])
    with gevent.Timeout(20):
        worker.close(0)
    assert queue.get_job_state(job.id) == "active"
    go.set()
    gevent.sleep(0.01)
    assert told.of(job) == ["stuck"]
