"""A geventq worker in a process of its own, which takes a job and never ends it."""

from __future__ import annotations

import gevent.event

from geventq import Job, Worker
from tests.bench.orders import options, say


def hold(job: Job) -> None:
    say({"event": "run", "id": job.id})
    gevent.event.Event().wait()


def main() -> None:
    given = options()
    worker = Worker(
        given["queue"],
        hold,
        connection=given["url"],
        prefix=given["prefix"],
        lock_duration=given["lock_duration"],
        stalled_interval=1.0,  # its check holds `stalled-check` that long after its death
    )
    worker.run()


if __name__ == "__main__":
    main()
