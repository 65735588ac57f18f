"""A geventq producer: one by one, many greenlets, or in bulk; tells how long it took."""

from __future__ import annotations

import time
import typing

import gevent

from geventq import JobSpec, Queue
from tests.bench.orders import cpu, hear, options, say


def payload(i: int) -> dict[str, typing.Any]:
    return {"user": 12345, "action": "resize", "path": f"/img/{i}.png"}


def one(queue: Queue, n: int, given: dict[str, typing.Any]) -> None:
    for i in range(n):
        queue.add("resize", payload(i))


def many(queue: Queue, n: int, given: dict[str, typing.Any]) -> None:
    numbers = iter(range(n))

    def producer() -> None:
        for i in numbers:
            queue.add("resize", payload(i))

    count = given.get("inflight", 100)
    greenlets = [gevent.Greenlet(producer) for _ in range(count)]
    for greenlet in greenlets:
        greenlet.start()
    gevent.joinall(greenlets, raise_error=True)


def bulk(queue: Queue, n: int, given: dict[str, typing.Any]) -> None:
    chunk = given.get("chunk", 1000)
    for first in range(0, n, chunk):
        queue.add_bulk([JobSpec("resize", payload(i)) for i in range(first, min(first + chunk, n))])


def main() -> None:
    given = options()
    queue = Queue(given["queue"], connection=given["url"], prefix=given["prefix"])
    queue.count()  # connected, like the other side
    say({"ready": True})
    hear()
    before, start = cpu(), time.perf_counter()
    {"one": one, "many": many, "bulk": bulk}[given["mode"]](queue, given["n"], given)
    seconds = time.perf_counter() - start
    say({"n": given["n"], "seconds": seconds, "cpu": cpu() - before})
    queue.close()


if __name__ == "__main__":
    main()
