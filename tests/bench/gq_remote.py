"""A worker that is asked from elsewhere: tells which job waits, and when its token was set, on the
clock of all processes.

Jobs named ``noop`` end at once.  When told to `sweep` it tells what one look at all records takes.
"""

from __future__ import annotations

import time

import gevent

from geventq import CancellationToken, Job
from tests.bench.orders import hear, make_worker, options, say


def process(job: Job, token: CancellationToken) -> None:
    if job.name == "noop":
        return
    say({"waits": job.id})
    token.get()
    at = time.perf_counter_ns()
    say({"told": job.id, "at": at})
    token.raise_if_cancelled()


def main() -> None:
    given = options()
    worker = make_worker(given, process, concurrency=given["concurrency"], lock_duration=120)
    worker.start()
    engine = worker._engine
    while not engine.subscription.is_up:
        gevent.sleep(0.001)
    say({"listens": True})
    while hear().get("sweep"):
        engine.hearing.requests_known = -1
        began = time.perf_counter()
        engine.subscription.look_at_all()
        say({"seconds": time.perf_counter() - began})
    worker.close(timeout=0)


if __name__ == "__main__":
    main()
