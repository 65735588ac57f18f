"""asyncio code in jobs (2.13): `token.run_coroutine` on a real worker."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

from geventq import CancellationToken, Job, Queue
from tests.conftest import Make
from tests.support.told import Told
from tests.support.waiting import eventually


def test_three_jobs_at_once_of_which_one_ends_one_is_cancelled_and_one_killed(
    queue: Queue, make: Make
) -> None:
    """Each with a loop of its own: none hears of the others."""
    steps: dict[str, list[str]] = {}

    async def work(job: Job) -> str:
        said = steps[job.id] = ["begun"]
        try:
            await asyncio.sleep(0.3 if job.name == "ends" else 60)
        except asyncio.CancelledError:
            said.append("cancelled")
            raise
        return "done"

    def process(job: Job, token: CancellationToken) -> str:
        return token.run_coroutine(work(job), timeout=60)

    worker = make(process, concurrency=3)
    told = Told(worker)
    ends, soft, hard = (queue.add(name) for name in ("ends", "soft", "hard"))
    eventually(lambda: len(steps) == 3)
    assert worker.cancel_job(soft.id, "enough", retry=False)
    assert worker.cancel_job(hard.id, "enough", hard=True, retry=False)
    assert ends.wait_until_finished(timeout=30) == "done"
    eventually(lambda: len(told.args("failed")) == 2)
    assert told.of(soft) == told.of(hard) == ["cancelled", "failed"]
    assert steps == {
        ends.id: ["begun"],
        soft.id: ["begun", "cancelled"],
        hard.id: ["begun", "cancelled"],
    }


def test_a_close_cancels_a_coroutine_and_its_job_goes_back(queue: Queue, make: Make) -> None:
    """7.1."""
    begun: list[str] = []

    async def work() -> None:
        begun.append("begun")
        await asyncio.sleep(60)

    worker = make(lambda job, token: token.run_coroutine(work()))
    job = queue.add("n")
    eventually(lambda: begun)
    worker.close(0)
    assert job.get_state() == "waiting"


def test_nothing_of_a_coroutine_outlives_its_job(queue: Queue, make: Make) -> None:
    """2.16: neither what it returned nor what it had in its context, whatever gevent keeps of the
    hubs of ended threads."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()
    customer: contextvars.ContextVar[Kept] = contextvars.ContextVar("customer")

    class Kept:
        def __init__(self) -> None:
            kept.add(self)

    async def work() -> Kept:
        await asyncio.to_thread(Kept)
        return Kept()

    def process(job: Job, token: CancellationToken) -> None:
        customer.set(Kept())
        token.run_coroutine(work())

    make(process, concurrency=2)
    for job in [queue.add("n") for _ in range(6)]:
        job.wait_until_finished(timeout=30)

    def is_freed() -> bool:
        gc.collect()
        return not kept

    eventually(is_freed)
