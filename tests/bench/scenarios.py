"""What is measured, for both sides alike, and the figures to reach.

Jobs are as a user's who sets nothing: default options, kept when they end, readable by either side.
The jobs of a drain are added by npm bullmq for both.
"""

from __future__ import annotations

import collections.abc
import importlib
import time
import typing

from tests.bench.cancelling import CANCELLING
from tests.bench.figures import Figure, Metrics, Scenario, latency
from tests.bench.lab import Lab, Side, percentile
from tests.bench.startup import STARTUP
from tests.bench.web import WEB

__all__ = ["SCENARIOS"]


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
    return latency(found)


def cancel(lab: Lab, side: Side, requests: int) -> Metrics:
    """From `cancel_job` to the waiting processor, with 500 jobs active; half of the quick size
    where fewer are asked for.  `floors` is that in bare wake-ups of the same process."""
    active = min(500, requests)
    queue = lab.load(active + requests + 100)
    given = {"queue": queue, "active": active, "n": requests}
    with lab.process(side, "cancel", **given) as process:
        told = process.hear(timeout=120)
    found, floor = told["microseconds"], told.get("floor")
    if len(found) != requests:
        raise AssertionError(f"{side}: {len(found)} of {requests} processors heard of it")
    metrics = latency(found)
    if floor:
        metrics["floors"] = metrics["p50"] / percentile(floor, 0.5)
    return metrics


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
            Figure("p50", "us", 60.0, of="value", at_least=False),
            Figure("p50", "us", None, 1.0, at_least=False),
            Figure("floors", "x", None, 1.15, of="value", at_least=False),
            Figure("p99", "us", None, 5_000.0, of="value", at_least=False),
        ),
    ),
    *CANCELLING,
    Scenario(
        "check",
        "check(), not cancelled",
        check,
        1_000_000,
        20_000,
        (Figure("ns", "ns", 150.0, 100.0, of="value", at_least=False),),
        sides=("geventq",),
    ),
    STARTUP,
    WEB,
)
