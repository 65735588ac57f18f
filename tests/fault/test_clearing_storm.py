"""Whole queues are drained, cleaned and obliterated while jobs are added, run, retried and
cancelled: no job is left in no list, and no worker fails by it (wire-format 9.15-9.17)."""

from __future__ import annotations

import random

import gevent
import pytest
import redis

from geventq import CancellationToken, Job, JobSpec, Queue
from geventq.wakeups import Event
from tests.conftest import Make
from tests.support.told import Told
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

STATES = ("waiting", "prioritized", "delayed", "active", "failed", "completed")


@pytest.mark.parametrize("seed", [1, 2])
def test_clearing_meets_everything_else(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, seed: int
) -> None:
    chance = random.Random(seed)
    stop = Event()

    def process(job: Job, token: CancellationToken) -> None:
        token.sleep(chance.random() * 0.02)
        if chance.random() < 0.3:
            raise RuntimeError("by itself")

    def adds() -> None:
        kinds = ({}, {"delay": 0.03}, {"priority": 3}, {"remove_on_complete": True})
        while not stop.wait(0.01):
            options = [{"attempts": 2, **chance.choice(kinds)} for _ in range(30)]
            queue.add_bulk([JobSpec("n", None, one) for one in options])

    def cancels() -> None:
        while not stop.wait(0.02):
            force, retry = chance.random() < 0.3, chance.random() < 0.5
            queue.cancel_jobs(state=chance.choice(STATES[:4]), force=force, retry=retry)

    def clears() -> None:
        while not stop.wait(0.03):
            chance.choice(
                [
                    lambda: queue.drain(chance.random() < 0.5),
                    lambda: queue.clean(0, 0, chance.choice(STATES)),  # type: ignore[arg-type]
                    queue.retry_jobs,
                    queue.promote_jobs,
                    lambda: queue.obliterate(force=True),
                ]
            )()

    told = Told(make(process, concurrency=20))
    greenlets = [gevent.spawn(one) for one in (adds, cancels, clears)]
    gevent.sleep(2)  # in which much happens
    stop.set()
    gevent.joinall(greenlets, raise_error=True)
    queue.resume()
    eventually(lambda: queue.get_job_count(*STATES[:4]) == 0, 60)
    assert told.args("completed")
    assert told.args("error") == []
    ended = {job.id for job in queue.get_jobs(["completed", "failed"])}
    hashes = redis_client.scan_iter(f"{prefix}:q:[0-9]*", count=10_000)
    assert {key.split(":")[2] for key in hashes} == ended
