"""Asks for jobs to be cancelled, one at a time: tells when it asked, and when `cancel_job` was
answered, on the clock of all processes."""

from __future__ import annotations

import time

from geventq import Queue
from tests.bench.orders import hear, options, say


def main() -> None:
    given = options()
    with Queue(given["queue"], given["url"], given["prefix"]) as queue:
        queue.cancel_job("none")  # connected, and loaded what a first call loads
        say({"ready": True})
        while True:
            job_id = hear()["job"]
            asked = time.perf_counter_ns()
            queue.cancel_job(job_id, "user")
            say({"asked": asked, "answered": time.perf_counter_ns()})


if __name__ == "__main__":
    main()
