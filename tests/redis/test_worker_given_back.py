"""7.1: jobs that a closing worker gives back stand where they stood, in the order in which they
were taken, however many calls it takes to give them back."""

from __future__ import annotations

import collections.abc
import random

import gevent
import pytest

from geventq import CancellationToken, Job, Queue
from geventq.worker import lanes
from tests.conftest import Make
from tests.support.waiting import eventually


def first_come(queue: Queue, count: int) -> list[str]:
    """The ids in the order in which the next worker would run them."""
    return [job.id for job in queue.get_jobs(["waiting", "prioritized"], 0, count, ascending=True)]


PRIORITIES: list[object] = [
    pytest.param(lambda n: 0, id="waiting"),
    pytest.param(lambda n: 7, id="prioritized"),
]


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("most", [500, 3], ids=["in one call", "in many calls"])
def test_jobs_come_back_in_the_order_in_which_they_were_taken(
    queue: Queue,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    priority: collections.abc.Callable[[int], int],
    most: int,
) -> None:
    """They end in any order, each with a cleanup of its own; others wait behind them."""
    monkeypatch.setattr(lanes, "_BATCH", most)
    cleanups = [number / 100 for number in range(12)]
    random.Random(4).shuffle(cleanups)
    ids = [f"job-{number * 37 % 100:02}" for number in range(16)]  # as text, in another order

    def process(job: Job, token: CancellationToken) -> None:
        token.wait()
        gevent.sleep(cleanups[job.data])
        token.raise_if_cancelled()

    for number, job_id in enumerate(ids):
        queue.add("n", number, job_id=job_id, priority=priority(number))
    worker = make(process, concurrency=12)
    eventually(lambda: len(worker.active_jobs) == 12)
    worker.close(0)
    queue.add("n", 0, job_id="late", priority=priority(0))
    assert first_come(queue, 20) == [*ids, "late"]


def test_two_closes_keep_the_order(queue: Queue, make: Make) -> None:
    """The next worker takes them again, and gives them back again."""
    ids = [f"job-{number * 37 % 100:02}" for number in range(9)]
    for job_id in ids:
        queue.add("n", job_id=job_id, priority=2)
    for _ in range(3):
        worker = make(lambda job, token: token.sleep(60), concurrency=4)
        eventually(lambda worker=worker: len(worker.active_jobs) == 4)  # type: ignore[misc]
        worker.close(0)
        assert first_come(queue, 20) == ids
