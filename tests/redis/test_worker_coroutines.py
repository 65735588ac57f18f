"""asyncio code in jobs (2.13): `token.run_coroutine` on a real worker."""

from __future__ import annotations

import asyncio

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
