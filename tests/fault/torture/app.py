"""The processes of a torture: a worker, and one that adds jobs and cancels them.

    python -m tests.fault.torture.app worker|canceller URL PREFIX FOLDER MODE|PLAN

They write down what they see (`tests.fault.ordeal.record`).
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import json
import logging
import pathlib
import random
import sys
import time
import typing

import gevent
import gevent.event

from geventq import (
    CancellationToken,
    CancelResult,
    GeventqError,
    Job,
    JobSpec,
    Queue,
    QueueEvents,
    RedisUnavailableError,
    Worker,
    publish_cancel,
)
from tests.fault.ordeal import app as ordeal
from tests.fault.ordeal.record import Record

__all__ = ["KINDS", "LOCK", "NOT_YET", "Plan"]

LOCK: typing.Final = 6.0  # seconds; it outlives the usual two without Redis
CONCURRENCY: typing.Final = 8  # few enough that many wait
TICK: typing.Final = 0.05

#: What a job is, how often of a hundred, and the options of its add.
KINDS: typing.Final[dict[str, tuple[int, dict[str, typing.Any]]]] = {
    "quick": (22, {}),
    "later": (14, {"delay": 2.0}),
    "urgent": (5, {"priority": 3}),
    "again": (14, {"attempts": 3, "backoff": 1.0}),
    "fails": (8, {"attempts": 2}),
    "softly": (14, {"attempts": 2}),
    "blocked": (14, {"attempts": 2}),
    "shielded": (9, {"attempts": 2}),
}
NOT_YET: typing.Final = "not yet"
"""What an attempt fails with that is not the last."""
#: Those that run for a while: some of them until they are stopped, and only then.
LONG: typing.Final = ("softly", "blocked", "shielded")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the canceller does: `jobs` are added and half of them cancelled within `seconds`, or
    later where the machine is slow, all by `seed`; Redis is gone for `outage` seconds."""

    seed: int
    jobs: int
    seconds: float
    outage: float = 2.0


class Processor(ordeal.Processor):
    """What the jobs do.  Those that are `endless` go on until they are stopped."""

    def _ticks(self, run: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            gevent.sleep(TICK)
            self._record.write("tick", [run])

    @staticmethod
    def _seconds(job: Job) -> float:
        return 600.0 if job.data["endless"] else random.random() * 1.5

    def again(self, run: str, job: Job, token: CancellationToken) -> object:
        if job.attempts_made < 2:
            raise ValueError(NOT_YET)
        return job.data["serial"]

    def softly(self, run: str, job: Job, token: CancellationToken) -> object:
        until = time.monotonic() + self._seconds(job)
        while time.monotonic() < until:
            token.sleep(TICK)
            self._record.write("tick", [run])
        return job.data["serial"]

    def blocked(self, run: str, job: Job, token: CancellationToken) -> object:
        self._ticks(run, self._seconds(job))
        return job.data["serial"]

    def shielded(self, run: str, job: Job, token: CancellationToken) -> object:
        until = time.monotonic() + self._seconds(job)
        while time.monotonic() < until:
            with token.shield():
                self._ticks(run, 0.2)
            token.raise_if_cancelled()
        return job.data["serial"]


def work(url: str, prefix: str, record: Record, mode: str) -> None:
    """Run jobs, and tell of them, until a signal closes the worker."""
    process = Processor(record)
    worker = Worker(
        "q", process, url, prefix,
        concurrency=CONCURRENCY, lock_duration=LOCK, stalled_interval=1.0,
        max_stalled_count=10_000, drain_delay=1.0, cancel_mode=typing.cast("typing.Any", mode),
        close_timeout=1.0,
    )  # fmt: skip

    def told(event: str) -> collections.abc.Callable[..., None]:
        return lambda job, *_: record.write("told", [process.name_of(job), event, job.id])

    for event in ("completed", "failed", "retrying", "cancelled", "lock_lost", "stuck"):
        worker.on(event, told(event))
    worker.on("ready", lambda: record.write("ready"))
    gevent.spawn(ordeal.pulse, record)
    worker.run()
    record.write("closed")


class Canceller:
    """Adds jobs, and cancels half of them.  Each request has a number."""

    def __init__(self, url: str, prefix: str, record: Record, plan: Plan) -> None:
        self._url = url
        self._record = record
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._queue = Queue("q", url, prefix)
        self._events = QueueEvents("q", url, prefix)
        self._began: dict[str, gevent.event.Event] = collections.defaultdict(gevent.event.Event)
        self._asked = 0
        self._together: list[str] = []  # to be cancelled with others, in one call

    def run(self) -> None:
        """Add all, cancel half, and say when the last request is answered."""
        self._events.on("active", lambda event: self._began[event.job_id or ""].set())
        self._events.ready.wait()
        gevent.spawn(ordeal.pulse, self._record)
        self._record.write("ready")
        parts = [gevent.spawn(self._ask_for_unknown)]
        size = 20
        pause = self._plan.seconds / 3 / (self._plan.jobs / size)
        for start in range(0, self._plan.jobs, size):
            numbers = range(start, min(start + size, self._plan.jobs))
            jobs = [self._made(f"j{number}") for number in numbers]
            self._add([spec for spec, _ in jobs])
            parts += [gevent.spawn(self._cancel, spec, how) for spec, how in jobs if how]
            parts += [gevent.spawn(self._disturb, spec) for spec, how in jobs if not how]
            gevent.sleep(self._chance.random() * 2 * pause)
        batches = gevent.spawn(self._cancel_together)
        gevent.joinall(parts, raise_error=True)
        self._together.append("")  # the end
        batches.get()
        self._record.write("done")
        gevent.sleep(3600)  # until it is killed: its end is nobody's promise

    def _made(self, job_id: str) -> tuple[JobSpec, dict[str, typing.Any] | None]:
        """A job, and how it is to be cancelled, if at all."""
        chance = self._chance
        kind = chance.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        how = self._way(kind) if chance.random() < 0.5 else None
        endless = how is not None and _will_end(kind, how) and chance.random() < 0.6
        options = KINDS[kind][1] | {"job_id": job_id}
        if kind == "later":
            options["delay"] = chance.random() * self._plan.seconds / 2
        data = {"serial": job_id, "endless": endless}
        return JobSpec(kind, data, typing.cast("typing.Any", options)), how

    def _way(self, kind: str) -> dict[str, typing.Any]:
        """Options of a request, as anybody may choose them."""
        chance = self._chance
        how: dict[str, typing.Any] = {"retry": chance.random() < 0.2}
        if kind == "blocked" or chance.random() < 0.5:
            how["hard"] = chance.random() < 0.8
            if how["hard"] and chance.random() < 0.5:
                how["kill_after"] = chance.random() * 0.5
        if chance.random() < 0.4:
            how["wait"] = chance.random() * 10
        if chance.random() < 0.1:
            how["force"] = True
        if chance.random() < 0.2:
            how |= {"hard": True, "retry": False, "together": True}
        return how

    def _add(self, specs: list[JobSpec]) -> None:
        while True:
            try:
                jobs = self._queue.add_bulk(specs)
            except RedisUnavailableError:
                gevent.sleep(0.1)
                continue
            for job in jobs:
                self._record.write("added", [job.id, job.name, job.data["endless"]])
            return

    # -- cancelling ------------------------------------------------------------------------

    def _cancel(self, spec: JobSpec, how: dict[str, typing.Any]) -> None:
        """At some moment: at any, or soon after it began to run."""
        job_id = spec.data["serial"]
        chance = random.Random(f"{self._plan.seed} {job_id}")
        if spec.name in (*LONG, "again") and chance.random() < 0.7:
            self._began[job_id].wait(self._plan.seconds)
            gevent.sleep(chance.random())  # in its run, or in the back-off behind it
        else:
            gevent.sleep(chance.random() ** 2 * self._plan.seconds * 0.7)
        if how.pop("together", False):
            self._together.append(job_id)
            return
        first = gevent.spawn(self._ask, [job_id], how)
        if chance.random() < 0.2:  # somebody else wants the same, otherwise
            gevent.sleep(chance.random() * 0.2)
            self._ask([job_id], {"hard": chance.random() < 0.5, "retry": chance.random() < 0.3})
        first.get()

    def _cancel_together(self) -> None:
        at_end = False
        while not at_end:
            gevent.sleep(0.5)
            ids, self._together = self._together, []
            at_end = "" in ids
            ids = [job_id for job_id in ids if job_id]
            if ids:
                wait = self._chance.choice((None, 3.0))
                self._ask(ids, {"hard": True, "retry": False, "wait": wait})

    def _ask_for_unknown(self) -> None:
        for number in range(10):
            gevent.sleep(self._plan.seconds / 10)
            self._ask([f"nobody{number}"], {"hard": True, "retry": False})

    def _disturb(self, spec: JobSpec) -> None:
        """What Node.js programs send: it may reach a job or not, and nobody is told."""
        chance = random.Random(f"{self._plan.seed} {spec.data['serial']} disturbed")
        if spec.name in LONG and chance.random() < 0.1:
            self._began[spec.data["serial"]].wait(self._plan.seconds)
            gevent.sleep(chance.random() * 0.3)
            try:
                publish_cancel(self._url, "q", spec.data["serial"], "a hint")
            except RedisUnavailableError:
                self._record.write("hint-refused")
            else:
                self._record.write("hinted", spec.data["serial"])

    def _ask(self, ids: list[str], how: dict[str, typing.Any]) -> None:
        """Ask until it is known what came of it."""
        while ids:
            self._asked += 1
            number = self._asked
            self._record.write("asked", [number, ids, how])
            try:
                results: list[CancelResult | None] = (
                    list(self._queue.cancel_jobs(ids, {"torture": number}, **how))
                    if len(ids) > 1
                    else [self._queue.cancel_job(ids[0], {"torture": number}, **how)]
                )
            except RedisUnavailableError as error:
                results = typing.cast("typing.Any", error.results) or [None] * len(ids)
            except GeventqError as error:
                self._record.write("complaint", f"cancel {ids} {how}: {error!r}")
                return
            unknown = []
            for job_id, result in zip(ids, results, strict=True):
                answer = ["unknown", "", None]
                if result is None:
                    unknown.append(job_id)
                else:
                    answer = [result.status, result.state, result.stage]
                self._record.write("answered", [number, job_id, how, *answer])
            ids = unknown
            gevent.sleep(0.1)


def _will_end(kind: str, how: dict[str, typing.Any]) -> bool:
    """Whether a job of that kind that never ends by itself does after such a request."""
    if kind not in LONG or how["retry"] or how.get("force"):
        return False
    return bool(how.get("hard")) or kind != "blocked"


def main() -> None:
    role, url, prefix, folder, more = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(message)s")
    record = Record(pathlib.Path(folder))
    if role == "worker":
        work(url, prefix, record, more)
    else:
        Canceller(url, prefix, record, Plan(**json.loads(more))).run()


if __name__ == "__main__":
    main()
