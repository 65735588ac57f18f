"""Cancel all in process: when it was asked, and when the last waiting processor ran."""

from __future__ import annotations

import time

import gevent

from geventq import CancellationToken, Job
from tests.bench.orders import hear, make_worker, options, say


def main() -> None:
    given = options()
    active, waiting, last = given["active"], 0, 0

    def process(job: Job, token: CancellationToken) -> None:
        nonlocal waiting, last
        waiting += 1
        token.get()
        last = time.perf_counter_ns()
        waiting -= 1
        token.raise_if_cancelled()

    worker = make_worker(given, process, concurrency=active)
    worker.start()
    while waiting < active:
        gevent.sleep(0.001)
    gevent.sleep(0.3)
    asked = time.perf_counter_ns()
    worker.cancel_all_jobs("user")
    while waiting:
        gevent.sleep(0.001)
    say({"asked": asked, "seen": last})
    hear()
    worker.close(timeout=0)


if __name__ == "__main__":
    main()
