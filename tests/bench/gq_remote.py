"""Cancelled from another process: when each job's token was set, on the clock of all processes.

Jobs named ``noop`` end at once.  With `sweep` it tells instead what one look at all records takes.
"""

from __future__ import annotations

import time

import gevent

from geventq import CancellationToken, Job, Worker
from tests.bench.orders import hear, options, say


def main() -> None:
    given = options()
    waiting: set[str] = set()
    told: dict[str, int] = {}

    def process(job: Job, token: CancellationToken) -> None:
        if job.name == "noop":
            return
        waiting.add(job.id)
        token.get()
        told[job.id] = time.perf_counter_ns()
        waiting.discard(job.id)
        token.raise_if_cancelled()

    worker = Worker(
        given["queue"],
        process,
        connection=given["url"],
        prefix=given["prefix"],
        concurrency=given["concurrency"],
        lock_duration=120,
    )
    worker.start()
    while len(waiting) < given["active"] or not worker._engine.subscription.is_up:
        gevent.sleep(0.001)
    say({"ready": sorted(waiting)})
    while True:
        order = hear()
        if order.get("sweep"):
            engine = worker._engine
            engine.hearing.requests_known = -1
            began = time.perf_counter()
            engine.subscription.look_at_all()
            say({"seconds": time.perf_counter() - began})
        else:
            say({"told": told})
            break
    worker.close(timeout=0)


if __name__ == "__main__":
    main()
