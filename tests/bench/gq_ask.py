"""Asks for jobs to be cancelled, one at a time; tells in the end when it asked for each, and when
the call returned, on the clock of all processes.  By `Queue.cancel_job`, or with `how` by
`publish_cancel`, which connects anew each time."""

from __future__ import annotations

import time

from geventq import Queue, publish_cancel
from tests.bench.orders import hear, options, say


def main() -> None:
    given = options()
    with Queue(given["queue"], given["url"], given["prefix"]) as queue:
        queue.cancel_job("none")  # connected, and loaded what a first call loads
        say({"ready": True})
        asked = {}
        while job_id := hear().get("job"):
            before = time.perf_counter_ns()
            if given["how"] == "cancel_job":
                queue.cancel_job(job_id, "user")
            else:
                publish_cancel(given["url"], given["queue"], job_id, "user")
            asked[job_id] = before, time.perf_counter_ns()
        say(asked)


if __name__ == "__main__":
    main()
