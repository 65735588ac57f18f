"""What is measured of cancelling: from one process to another, many at once, and what it costs.

Asking and working are processes of their own.  The benchmark gives them their orders, one request
at a time, and reads their clocks, which are one: Node's ``hrtime`` and Python's ``perf_counter``
both count the machine's monotonic time.
"""

from __future__ import annotations

import collections.abc
import contextlib
import random
import time
import typing

from geventq import JobSpec, Queue
from tests.bench.figures import Figure, Metrics, Scenario, latency
from tests.bench.lab import Lab, Side, percentile
from tests.interop.child import Child

__all__ = ["CANCELLING"]

_BUSY: typing.Final = 100  # slots for the no-op jobs that keep a worker busy
_PAUSE: typing.Final = 0.005  # seconds between two requests

Way = typing.Literal["cancel_job", "publish_cancel", "published", "recorded", "guide"]
_OURS: typing.Final[tuple[Way, ...]] = ("cancel_job", "publish_cancel")


def remote(
    active: int, *, geventq: Way, npm: Way, noops: int = 0
) -> collections.abc.Callable[[Lab, Side, int], Metrics]:
    """From a call in one process to the job in another that hears of it; `active` jobs wait for
    that, and `noops` others for each request keep the worker busy meanwhile."""

    def run(lab: Lab, side: Side, requests: int) -> Metrics:
        lab.client.flushall()
        with contextlib.ExitStack() as stack:
            queue = stack.enter_context(Queue("bench", lab.url))
            spare = 0 if noops else requests  # the next one takes the place of a cancelled one
            _add(queue, "wait", active + spare)
            given = {"queue": "bench", "concurrency": active + (noops and _BUSY)}
            worker = stack.enter_context(lab.process(side, "remote", **given))
            asker = stack.enter_context(_asker(lab, npm if side == "npm" else geventq))
            waiting = _hear(worker, active)
            _add(queue, "noop", noops * requests)
            heard: dict[str, int] = {}
            while len(heard) < requests and (spare or lab.left("bench")["wait"]):
                time.sleep(_PAUSE)
                job_id = waiting.pop(random.randrange(len(waiting)))
                asker.say({"job": job_id})
                told = worker.hear()
                heard[told["told"]] = told["at"]
                if spare:
                    waiting.append(worker.hear()["waits"])
            asked = asker.ask({})
            worker.say({})
        if len(heard) < requests / 2:
            raise AssertionError(f"the no-op jobs were done at {len(heard)} of {requests} requests")
        calls = [(answered - since) / 1e3 for since, answered in asked.values()]
        told_after = [(at - asked[job_id][0]) / 1e3 for job_id, at in heard.items()]
        return latency(told_after) | {"call p99": percentile(calls, 0.99)}

    return run


def _asker(lab: Lab, way: Way) -> Child:
    side: Side = "geventq" if way in _OURS else "npm"
    asker = lab.process(side, "ask", queue="bench", how=way)
    asker.hear()
    return asker


def _hear(worker: Child, active: int) -> list[str]:
    """The ids of the first `active` jobs, when they wait and the worker listens."""
    told = [worker.hear() for _ in range(active + 1)]
    return [message["waits"] for message in told if "waits" in message]


def _add(queue: Queue, name: str, count: int) -> list[str]:
    """The ids of the new jobs."""
    ids: list[str] = []
    for first in range(0, count, 1000):
        ids += [job.id for job in queue.add_bulk([JobSpec(name)] * min(1000, count - first))]
    return ids


def cancel_all(lab: Lab, side: Side, active: int) -> Metrics:
    """From `cancel_all_jobs` to the last of the waiting processors, and to the last outcome in
    Redis."""
    queue = lab.load(active)
    with lab.process(side, "cancel_all", queue=queue, active=active) as process:
        found = process.hear(timeout=120)
        while lab.client.zcard(f"bull:{queue}:failed") < active:
            time.sleep(0.001)
        settled = time.perf_counter_ns()
        process.say({})
    return {
        "seen": (found["seen"] - found["asked"]) / 1e6,
        "settled": (settled - found["asked"]) / 1e6,
    }


def one_by_one(where: str) -> collections.abc.Callable[[Lab, Side, int], Metrics]:
    """`cancel_job` by one greenlet, of jobs that wait, or that a worker runs."""

    def run(lab: Lab, side: Side, jobs: int) -> Metrics:
        lab.client.flushall()
        with contextlib.ExitStack() as stack:
            queue = stack.enter_context(Queue("bench", lab.url))
            ids = _add(queue, "wait", jobs)
            if where == "active":
                given = {"queue": "bench", "concurrency": jobs}
                worker = stack.enter_context(lab.process(side, "remote", **given))
                _hear(worker, jobs)
            queue.cancel_job("none")  # connected, and loaded what a first call loads
            with lab.server_work() as work:
                began = time.perf_counter()
                told = [queue.cancel_job(job_id, "user") for job_id in ids]
                seconds = time.perf_counter() - began
            if where == "active":
                worker.say({})
        if not all(told):
            raise AssertionError(f"{len(ids) - sum(map(bool, told))} jobs were not cancelled")
        return {"rate": jobs / seconds, "server": work[0].cpu / jobs * 1e6}

    return run


def many(lab: Lab, side: Side, jobs: int) -> Metrics:
    """`cancel_jobs` of waiting jobs, by their ids."""
    lab.client.flushall()
    with Queue("bench", lab.url) as queue:
        ids = _add(queue, "wait", jobs)
        with lab.server_work() as work, lab.longest_call() as longest:
            began = time.perf_counter()
            told = queue.cancel_jobs(ids, "user")
            seconds = time.perf_counter() - began
    if not all(told):
        raise AssertionError(f"{jobs - sum(map(bool, told))} jobs were not cancelled")
    return {"ms": seconds * 1e3, "lua": work[0].scripts * 1e3, "longest": longest[0]}


def sweep(lab: Lab, side: Side, active: int) -> Metrics:
    """One look at the records of all active jobs."""
    lab.client.flushall()
    with Queue("bench", lab.url) as queue:
        _add(queue, "wait", active)
        with lab.process(side, "remote", queue="bench", concurrency=active) as worker:
            _hear(worker, active)
            with lab.server_work() as work:
                seconds = worker.ask({"sweep": True}, timeout=60)["seconds"]
            worker.say({})
    return {"ms": seconds * 1e3, "lua": work[0].scripts * 1e3}


_LATENCY: typing.Final = (
    Figure("p50", "us", 0.7, 0.7, at_least=False),
    Figure("p99", "us", 1.0, 1.0, at_least=False),
)
_CALL: typing.Final = Figure("call p99", "us", 50_000, of="value", at_least=False)

CANCELLING: typing.Final = (
    Scenario(
        "bridge1",
        "cancel_job, and the guide's cancelJob as it is written there, 1 active",
        remote(1, geventq="cancel_job", npm="guide"),
        200,
        20,
        (*_LATENCY, _CALL),
    ),
    Scenario(
        "bridge500",
        "cancel_job, and the guide's cancelJob as it is written there, 500 active",
        remote(500, geventq="cancel_job", npm="guide"),
        500,
        50,
        (*_LATENCY, _CALL),
    ),
    Scenario(
        "remote1",
        "cancel_job and a bare PUBLISH on a link that is kept, 1 active",
        remote(1, geventq="cancel_job", npm="published"),
        200,
        20,
        (*_LATENCY, _CALL),
    ),
    Scenario(
        "remote500",
        "cancel_job and a bare PUBLISH on a link that is kept, 500 active",
        remote(500, geventq="cancel_job", npm="published"),
        500,
        50,
        (*_LATENCY, _CALL),
    ),
    Scenario(
        "guide500",
        "the guide's message, on a new connection as the guide has it, 500 active",
        remote(500, geventq="publish_cancel", npm="guide"),
        500,
        50,
        _LATENCY,
    ),
    Scenario(
        "publish500",
        "the guide's message, from one Node program to both, 500 active",
        remote(500, geventq="published", npm="published"),
        500,
        50,
        (
            *_LATENCY,
            Figure("p99", "us", None, 2_000, of="value", at_least=False),
        ),
    ),
    Scenario(
        "record500",
        "cancel_job, and a Node program that looks, records and publishes, 500 active",
        remote(500, geventq="cancel_job", npm="recorded"),
        500,
        50,
        _LATENCY,
    ),
    Scenario(
        "remotebusy",
        "cancel_job while no-op jobs saturate the worker",
        remote(200, geventq="cancel_job", npm="published", noops=1500),
        200,
        20,
        (
            Figure("p50", "us"),
            Figure("p99", "us", 10_000.0, 10_000.0, of="value", at_least=False),
            _CALL,
        ),
        sides=("geventq",),
    ),
    Scenario(
        "cancelall",
        "cancel all in process, 500 active",
        cancel_all,
        500,
        50,
        (
            Figure("seen", "ms", None, 5.0, of="value", at_least=False),
            Figure("settled", "ms", None, 60.0, of="value", at_least=False),
        ),
    ),
    Scenario(
        "waiting",
        "cancel_job, one after the other, of waiting jobs",
        one_by_one("waiting"),
        3_000,
        200,
        (Figure("rate", "jobs/s"), Figure("server", "us/job")),
        sides=("geventq",),
    ),
    Scenario(
        "active",
        "cancel_job, one after the other, of active jobs",
        one_by_one("active"),
        3_000,
        200,
        (Figure("rate", "jobs/s"), Figure("server", "us/job")),
        sides=("geventq",),
    ),
    Scenario(
        "canceljobs",
        "cancel_jobs over 10,000 waiting jobs",
        many,
        10_000,
        500,
        (
            Figure("ms", "ms"),
            Figure("lua", "ms", 1_000.0, 1_000.0, of="value", at_least=False),
            Figure("longest", "ms", 50.0, 50.0, of="value", at_least=False),
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
)
