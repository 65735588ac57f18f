"""A geventq worker with no-op jobs: says ready, starts when told, tells the CPU it used when told.

With the option `sample` it runs under the sampler (`tests.bench.sampler`) and tells that too.
"""

from __future__ import annotations

import contextlib
import importlib
import resource

from geventq import Job, Queue
from tests.bench.orders import cpu, hear, make_worker, options, say
from tests.bench.sampler import Sampler


def process(job: Job) -> None:
    return None


def main() -> None:
    given = options()
    worker = make_worker(given, process, concurrency=given["concurrency"])
    with contextlib.closing(Queue(given["queue"], connection=given["url"])) as queue:
        queue.count()  # what a first call imports is loaded, like on the other side,
    importlib.import_module("geventq.worker.engine")  # and what a first start does
    sampler = Sampler() if given.get("sample") else None
    say({"ready": True})
    hear()
    before = cpu()
    if sampler:
        sampler.start()
    worker.start()
    hear()
    used = cpu() - before
    if sampler:
        sampler.stop()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say({"cpu": used, "rss": rss, "samples": sampler.result() if sampler else None})
    worker.close(timeout=5)


if __name__ == "__main__":
    main()
