"""No moment at which a run belongs to nobody: whatever is thrown, and wherever, every job ends and
a close ends."""

from __future__ import annotations

import contextlib
import typing

import gevent
import pytest

from geventq import Job, JobSpec, Queue
from geventq.worker.run import life, runners
from tests.conftest import Make
from tests.support.interrupts import Interrupter
from tests.support.leaks import greenlets
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

WATCHED: typing.Final = [
    (runners.Runners, "dispatch"),
    (runners, "_switch_into"),
    (life.JobLife, "taken"),
    (life.JobLife, "_decided"),
]


@pytest.mark.parametrize(
    ("owner", "name"), WATCHED, ids=[f"{owner.__name__}.{name}" for owner, name in WATCHED]
)
def test_ctrl_c_at_any_line_leaves_no_run_behind(
    queue: Queue,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    owner: typing.Any,
    name: str,
) -> None:
    """7.2: it hits the handing over of jobs, or of their outcomes, at each line in turn, in
    greenlets that are fresh and in some that are used again.  All jobs complete, and close()
    waits for nobody."""
    interrupter = Interrupter()
    monkeypatch.setattr(owner, name, interrupter.watch(owner, name))
    worker = make(lambda job: None, concurrency=4, lock_renew_time=0.1)
    worker.on("error", lambda error: None)
    number, hits, is_last = 1, 0, False
    while not is_last:
        worker.pause()  # so that no Ctrl-C reaches the add
        jobs = queue.add_bulk([JobSpec("n") for _ in range(2)])
        interrupter.arm(number)
        worker.resume()
        hits += _until_completed(queue, jobs)
        number += interrupter.has_hit
        is_last = interrupter.lines > 0 and not interrupter.has_hit  # fewer lines than `number`
    interrupter.disarm()
    assert hits == number - 1 > 5
    eventually(lambda: not engine_of(worker).slots.held)
    with gevent.Timeout(20):
        worker.close(0)


def _until_completed(queue: Queue, jobs: list[Job]) -> int:
    """Wait for the jobs; how often a Ctrl-C reached this greenlet, the main one, meanwhile."""
    hits = 0
    while True:
        try:
            for job in jobs:
                eventually(lambda job=job: queue.get_job_state(job.id) == "completed")  # type: ignore[misc]
            gevent.idle()  # one that is under way comes here
            return hits
        except KeyboardInterrupt:
            hits += 1


def test_greenlets_that_are_killed_before_their_first_turn_lose_no_job(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.4: a program kills all greenlets there are just when jobs were given theirs: such a one
    runs neither body nor ``finally``, and nobody hears of its end.  The jobs run again."""
    dispatch = runners.Runners.dispatch
    killed: list[gevent.Greenlet[..., None]] = []

    def kills(self: runners.Runners, executions: list[typing.Any]) -> None:
        dispatch(self, executions)
        if not killed:
            killed.extend(self.alive)
            gevent.killall(killed, block=False)

    ran: list[str] = []
    worker = make(lambda job: ran.append(job.id), concurrency=4, lock_renew_time=0.1)
    told = Told(worker)
    worker.pause()
    jobs = queue.add_bulk([JobSpec("n") for _ in range(3)])
    monkeypatch.setattr(runners.Runners, "dispatch", kills)
    worker.resume()
    eventually(lambda: all(told.of(job) == ["completed"] for job in jobs))
    assert killed
    assert sorted(ran) == [job.id for job in jobs]
    assert not engine_of(worker).slots.running


def test_a_kill_of_all_idle_runners_takes_no_job_along(queue: Queue, make: Make) -> None:
    """2.16: what is thrown at a greenlet between two jobs is thrown at neither."""
    ran: list[str] = []
    worker = make(lambda job: ran.append(job.id), concurrency=4)
    told = Told(worker)
    for _ in range(3):
        jobs = queue.add_bulk([JobSpec("n") for _ in range(4)])
        eventually(lambda jobs=jobs: all(told.of(job) == ["completed"] for job in jobs))  # type: ignore[misc]
        idle = greenlets("geventq-run-q")
        assert idle
        with contextlib.suppress(gevent.Timeout):
            gevent.killall(idle, gevent.Timeout, timeout=20)
    assert len(ran) == 12


@pytest.mark.parametrize("timeout", [None, 0])
def test_close_finds_a_run_that_belongs_to_nobody(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """7.1: the greenlet of a job has vanished, in whatever way, and the renewer will not look for
    an hour: a close must not wait for it for ever, and the job goes back."""
    monkeypatch.setattr(runners.Runners, "dispatch", lambda self, executions: None)
    worker = make(lambda job: None, lock_duration=9000.0)
    worker.on("error", lambda error: None)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    with gevent.Timeout(20):
        worker.close(timeout)
    assert queue.get_job_state(job.id) == "waiting"
