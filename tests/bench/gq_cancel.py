"""Cancel in process: request -> the waiting processor runs; and the floor, which is the same of a
bare `AsyncResult`, right afterwards."""

from __future__ import annotations

import random
import time
import typing

import gevent
from gevent.event import AsyncResult

from geventq import CancellationToken, Job
from tests.bench.orders import make_worker, options, say


class Floor:
    """As many greenlets as there are jobs, each waiting for a result of its own."""

    def __init__(self, waiting: int) -> None:
        self._results: list[typing.Any] = [AsyncResult() for _ in range(waiting)]
        self._asked = 0
        self.microseconds: list[float] = []
        for result in self._results:
            gevent.spawn(self._wait, result)

    def _wait(self, result: typing.Any) -> None:
        result.get()
        self.microseconds.append((time.perf_counter_ns() - self._asked) / 1e3)

    def wake_one(self) -> None:
        """One of them is woken; another begins to wait."""
        result: typing.Any = AsyncResult()
        gevent.spawn(self._wait, result)
        self._results.append(result)
        gevent.sleep(0.002)
        woken = self._results.pop(random.randrange(len(self._results) - 1))
        self._asked = time.perf_counter_ns()
        woken.set()
        gevent.sleep(0)


def main() -> None:
    given = options()
    active, n = given["active"], given["n"]
    waiting: dict[str, None] = {}
    asked: dict[str, int] = {}
    microseconds = []

    def process(job: Job, token: CancellationToken) -> None:
        waiting[job.id] = None
        token.get()
        now = time.perf_counter_ns()
        waiting.pop(job.id, None)
        if job.id in asked:
            microseconds.append((now - asked[job.id]) / 1e3)
        token.raise_if_cancelled()

    worker = make_worker(given, process, concurrency=active)
    worker.start()

    def full() -> None:
        while len(waiting) < active:
            gevent.sleep(0.001)

    full()
    gevent.sleep(0.3)
    for _ in range(n):
        full()
        gevent.sleep(0.002)
        job_id = random.choice(list(waiting))
        asked[job_id] = time.perf_counter_ns()
        worker.cancel_job(job_id, "user")
    gevent.sleep(0.05)  # the last one's turn
    floor = Floor(active)
    gevent.sleep(0.05)
    for _ in range(n):
        floor.wake_one()
    gevent.sleep(0.05)
    say({"microseconds": microseconds, "floor": floor.microseconds})
    worker.close(timeout=0)


if __name__ == "__main__":
    main()
