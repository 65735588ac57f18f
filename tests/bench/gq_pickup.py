"""add -> processor starts, on an idle queue, in one process."""

from __future__ import annotations

import time

import gevent
import gevent.event

from geventq import Job, Queue
from tests.bench.orders import make_worker, options, say


def main() -> None:
    given = options()
    queue = Queue(given["queue"], given["url"], given["prefix"])
    queue.count()  # connected, like the other side
    started = gevent.event.Event()
    start = 0
    microseconds = []

    def process(job: Job) -> None:
        microseconds.append((time.perf_counter_ns() - start) / 1e3)
        started.set()

    with make_worker(given, process):
        for i in range(given["n"]):
            gevent.sleep(given["pause_ms"] / 1e3)
            started.clear()
            start = time.perf_counter_ns()
            queue.add("resize", {"i": i})
            started.wait(10)
    queue.close()
    say({"microseconds": microseconds})


if __name__ == "__main__":
    main()
