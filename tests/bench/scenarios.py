"""What is measured, for both sides alike, and the figures to reach.

Jobs are as a user's who sets nothing: default options, kept when they end, readable by either side.
The jobs of a drain are added by npm bullmq for both.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import random
import time
import typing

from geventq import JobSpec, Queue
from tests.bench.lab import Lab, Side, percentile

__all__ = ["SCENARIOS", "Figure", "Scenario"]

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the result: a metric, and what geventq must reach.

    A bound is either on geventq's own value (`of` is ``"value"``) or on its ratio to npm bullmq's
    (``"ratio"``); `at_least` tells which side of the bound is good.
    """

    metric: str
    unit: str
    gate: float | None = None  # the speed gate
    target: float | None = None  # the ratio to npm's to be reached
    of: typing.Literal["ratio", "value"] = "ratio"
    at_least: bool = True

    def met(self, bound: float | None, value: float) -> bool | None:
        """Whether `value` is on the good side; `None` where nothing is asked."""
        if bound is None:
            return None
        return value >= bound if self.at_least else value <= bound

    def wish(self, bound: float | None) -> str:
        """The bound in words."""
        if bound is None:
            return "-"
        unit = " x" if self.of == "ratio" else f" {self.unit}"
        return f"{'>=' if self.at_least else '<='} {bound:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    run: collections.abc.Callable[[Lab, Side, int], Metrics]
    size: int
    quick: int
    figures: tuple[Figure, ...]
    sides: tuple[Side, ...] = ("npm", "geventq")


def drain(concurrency: int) -> collections.abc.Callable[[Lab, Side, int], Metrics]:
    """From the worker's start to the last job settled in Redis, all jobs waiting before."""

    def run(lab: Lab, side: Side, jobs: int) -> Metrics:
        queue = lab.load(jobs)
        with lab.process(side, "drain", queue=queue, concurrency=concurrency) as worker:
            worker.hear()
            with lab.server_work() as work:
                start = time.perf_counter()
                worker.say({"go": True})
                seconds = lab.until_finished(queue, jobs) - start
                answer = worker.ask({"stop": True})
        left = lab.left(queue)
        if left["completed"] != jobs:
            raise AssertionError(f"{side} drained {left}")
        return {
            "rate": jobs / seconds,
            "server": work[0].cpu / jobs * 1e6,
            "lua": work[0].scripts / jobs * 1e6,
            "calls": work[0].calls / jobs,
            "client": answer["cpu"] / jobs * 1e6,
            "busy": work[0].cpu / seconds,
            "memory": answer["rss"] / 1e6,
        }

    return run


def add(mode: str) -> collections.abc.Callable[[Lab, Side, int], Metrics]:
    """From the first call to the last answer of one producer."""

    def run(lab: Lab, side: Side, jobs: int) -> Metrics:
        lab.client.flushall()
        with lab.process(side, "add", queue="bench", n=jobs, mode=mode) as producer:
            producer.hear()
            with lab.server_work() as work:
                answer = producer.ask({"go": True}, timeout=300)
        left = lab.left("bench")
        if left["wait"] != jobs:
            raise AssertionError(f"{side} added {left}")
        return {
            "rate": jobs / answer["seconds"],
            "server": work[0].cpu / jobs * 1e6,
            "client": answer["cpu"] / jobs * 1e6,
        }

    return run


def pickup(lab: Lab, side: Side, jobs: int) -> Metrics:
    """From the call of `add` to the processor's first line; queue and worker in one process."""
    lab.client.flushall()
    with lab.process(side, "pickup", queue="bench", n=jobs, pause_ms=10) as process:
        found = process.hear(timeout=120)["microseconds"]
    return {"p50": percentile(found, 0.5), "p99": percentile(found, 0.99)}


def cancel(lab: Lab, side: Side, requests: int) -> Metrics:
    """From `cancel_job` to the waiting processor, with 500 jobs active; half of the quick size
    where fewer are asked for."""
    active = min(500, requests)
    queue = lab.load(active + requests + 100)
    given = {"queue": queue, "active": active, "n": requests}
    with lab.process(side, "cancel", **given) as process:
        found = process.hear(timeout=120)["microseconds"]
    if len(found) != requests:
        raise AssertionError(f"{side}: {len(found)} of {requests} processors heard of it")
    return {"p50": percentile(found, 0.5), "p99": percentile(found, 0.99)}


def remote(active: int, *, noops: int = 0) -> collections.abc.Callable[[Lab, Side, int], Metrics]:
    """From the call in another process to the job's token: `cancel_job`, and for npm a message to
    the seed guide's bridge.  `active` jobs wait for it; `noops` others keep the worker busy."""

    def run(lab: Lab, side: Side, requests: int) -> Metrics:
        asked: dict[str, int] = {}
        lab.client.flushall()
        with Queue("bench", lab.url) as queue:
            spare = 0 if noops else requests  # the next one takes the place of a cancelled one
            queue.add_bulk([JobSpec("wait")] * (active + spare))
            queue.cancel_job("none")  # connected, and loaded what a first call loads
            given = {"queue": "bench", "active": active, "concurrency": active + (noops and 100)}
            with lab.process(side, "remote", **given) as process:
                running = process.hear(timeout=120)["ready"]
                ids = {str(n + 1) for n in range(active + spare)}
                coming = iter(sorted(ids.difference(running), key=int))  # by their turns
                for first in range(0, noops, 1000):
                    queue.add_bulk([JobSpec("noop")] * min(1000, noops - first))
                for _ in range(requests):
                    time.sleep(0.01)  # the next one is active
                    job_id = running.pop(random.randrange(len(running)))
                    running += [next(coming)] if spare else []
                    asked[job_id] = time.perf_counter_ns()
                    if side == "npm":
                        lab.publish({"queue": "bench", "jobId": job_id, "reason": "user"})
                    else:
                        queue.cancel_job(job_id, "user")
                time.sleep(0.5)
                told = process.ask({"stop": True})["told"]
        found = [(told[one] - since) / 1e3 for one, since in asked.items() if one in told]
        if len(found) < 0.9 * requests:  # the guide's bridge loses what comes too early
            raise AssertionError(f"{side}: {len(found)} of {requests} jobs heard of it")
        return {"p50": percentile(found, 0.5), "p99": percentile(found, 0.99)}

    return run


def sweep(lab: Lab, side: Side, active: int) -> Metrics:
    """One look at the records of all active jobs."""
    lab.client.flushall()
    with Queue("bench", lab.url) as queue:
        for _ in range(0, active, 1000):
            queue.add_bulk([JobSpec("wait")] * min(1000, active))
        given = {"queue": "bench", "active": active, "concurrency": active}
        with lab.process(side, "remote", **given) as process:
            process.hear(timeout=120)
            with lab.server_work() as work:
                seconds = process.ask({"sweep": True}, timeout=60)["seconds"]
            process.ask({"stop": True})
    return {"ms": seconds * 1e3, "lua": work[0].scripts * 1e3}


def check(lab: Lab, side: Side, calls: int) -> Metrics:
    """One `check()` of a token that is not cancelled, without the yields."""
    return {"ns": importlib.import_module("tests.bench.check").nanoseconds_per_check(calls)}


SCENARIOS: typing.Final = (
    Scenario(
        "drain100",
        "drain no-op jobs, concurrency 100",
        drain(100),
        30_000,
        1_000,
        (
            Figure("rate", "jobs/s", 2.0, 3.0),
            Figure("server", "us/job", 0.55, 0.45, at_least=False),
            Figure("lua", "us/job"),
            Figure("calls", "calls/job"),
            Figure("busy", "cores"),
            Figure("client", "us/job", None, 0.25, at_least=False),
            Figure("memory", "MB"),
        ),
    ),
    Scenario(
        "drain1",
        "drain no-op jobs, concurrency 1",
        drain(1),
        6_000,
        300,
        (
            Figure("rate", "jobs/s", 1.0, 1.0),
            Figure("server", "us/job"),
            Figure("client", "us/job"),
        ),
    ),
    Scenario(
        "bulk",
        "add_bulk, 1,000 a call",
        add("bulk"),
        30_000,
        2_000,
        (
            Figure("rate", "jobs/s", 3.0, 4.0),
            Figure("server", "us/job"),
            Figure("client", "us/job"),
        ),
    ),
    Scenario(
        "many",
        "100 greenlets adding one by one",
        add("many"),
        20_000,
        1_000,
        (
            Figure("rate", "jobs/s", 1.5, 2.0),
            Figure("server", "us/job"),
            Figure("client", "us/job"),
        ),
    ),
    Scenario(
        "one",
        "one greenlet adding one by one",
        add("one"),
        6_000,
        200,
        (
            Figure("rate", "jobs/s", None, 1.0),
            Figure("server", "us/job"),
            Figure("client", "us/job"),
        ),
    ),
    Scenario(
        "pickup",
        "add -> processor starts, idle queue",
        pickup,
        300,
        20,
        (
            Figure("p50", "us", None, 1.0, at_least=False),
            Figure("p99", "us"),
        ),
    ),
    Scenario(
        "cancel",
        "cancel in process, 500 active",
        cancel,
        500,
        50,
        (
            Figure("p50", "us", 60.0, 30.0, of="value", at_least=False),
            Figure("p50", "us", None, 0.5, at_least=False),
            Figure("p99", "us", None, 5_000.0, of="value", at_least=False),
        ),
    ),
    Scenario(
        "remote1",
        "cancel from another process, 1 active",
        remote(1),
        200,
        20,
        (
            Figure("p50", "us", 0.7, 0.7, at_least=False),
            Figure("p99", "us", 1.0, 1.0, at_least=False),
        ),
    ),
    Scenario(
        "remote500",
        "cancel from another process, 500 active",
        remote(500),
        500,
        50,
        (
            Figure("p50", "us", 0.7, 0.7, at_least=False),
            Figure("p99", "us", 1.0, 1.0, at_least=False),
        ),
    ),
    Scenario(
        "remotebusy",
        "the same while no-op jobs saturate the worker",
        remote(200, noops=60_000),
        200,
        20,
        (
            Figure("p50", "us"),
            Figure("p99", "us", 10_000.0, 10_000.0, of="value", at_least=False),
        ),
        sides=("geventq",),
    ),
    Scenario(
        "sweep",
        "one look at the records of 10,000 active jobs",
        sweep,
        10_000,
        500,
        (Figure("ms", "ms"), Figure("lua", "ms")),
        sides=("geventq",),
    ),
    Scenario(
        "check",
        "check(), not cancelled",
        check,
        1_000_000,
        20_000,
        (Figure("ns", "ns", 150.0, 100.0, of="value", at_least=False),),
        sides=("geventq",),
    ),
)
