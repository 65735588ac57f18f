"""Cancel in process: request -> the waiting processor runs."""

from __future__ import annotations

import random
import time

import gevent

from geventq import CancellationToken, Job, Worker
from tests.bench.orders import options, say


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

    worker = Worker(
        given["queue"],
        process,
        connection=given["url"],
        prefix=given["prefix"],
        concurrency=active,
    )
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
    say({"microseconds": microseconds})
    worker.close(timeout=0)


if __name__ == "__main__":
    main()
