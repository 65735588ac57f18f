"""A wake-up meets a worker that cannot use it."""

from __future__ import annotations

import pytest

from geventq import Job, Queue
from tests.conftest import Make
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def test_a_worker_without_a_free_slot_leaves_the_wake_up_to_the_others(
    queue: Queue, make: Make
) -> None:
    """wire-format 11: the first waits first in line for the marker; a processor's rate limit says
    that it takes nothing for a while."""
    from geventq import RateLimitError

    ran: list[str] = []

    def limited(job: Job) -> None:
        ran.append("limited")
        raise RateLimitError(30.0)

    first = make(limited, drain_delay=60.0)
    job = queue.add("n")
    eventually(lambda: ran == ["limited"])
    eventually(lambda: queue.get_job_state(job.id) == "waiting")
    second = make(lambda job: ran.append("second"), drain_delay=60.0)
    eventually(lambda: len(queue.get_workers()) == 2)
    for _ in range(3):
        job = queue.add("n")
        eventually(lambda job=job: queue.get_job_state(job.id) == "completed")
    assert first.is_running
    assert second.is_running
