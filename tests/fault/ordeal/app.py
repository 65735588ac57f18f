"""The processes of an ordeal: a worker, and a producer.

    python -m tests.fault.ordeal.app worker|producer URL PREFIX FOLDER

They are told what to do by lines on standard input, and write down what they see (`record`).
"""

from __future__ import annotations

import collections
import collections.abc
import gc
import logging
import os
import pathlib
import random
import sys
import threading
import time
import typing

import gevent
import gevent.fileobject

from geventq import (
    CancellationToken,
    GeventqError,
    Job,
    Queue,
    RedisUnavailableError,
    Worker,
)
from tests.fault.ordeal.record import Record

LOCK: typing.Final = 1.5  # seconds that a lock lives
TICK: typing.Final = 0.05  # seconds between two signs of life of a job
#: What a job is, how often of a hundred, and the options of its add.
KINDS: typing.Final[dict[str, tuple[int, dict[str, typing.Any]]]] = {
    "quick": (32, {}),
    "ticks": (20, {}),
    "obeys": (12, {"attempts": 2}),
    "deaf": (8, {"attempts": 2}),
    "fails": (8, {"attempts": 2, "backoff": 0.1}),
    "later": (8, {"delay": 0.3}),
    "urgent": (4, {"priority": 3}),
    "bulky": (2, {}),
    "lasts": (6, {}),
}
_MOST_WAITING: typing.Final = 60
_PULSE: typing.Final = 0.02


class Processor:
    """What the jobs do; each run of one has a name."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._runs = 0
        self._latest: collections.deque[tuple[Job, str]] = collections.deque(maxlen=200)

    def __call__(self, job: Job, token: CancellationToken) -> object:
        self._runs += 1
        run = f"{os.getpid()}-{self._runs}"
        self._latest.appendleft((job, run))
        self._record.write("start", [run, job.id, job.data["serial"], job.name])
        how = "killed"
        try:
            result = getattr(self, job.name)(run, job, token)
            how = "returned"
            return result
        except Exception:
            how = "failed"
            raise
        finally:
            self._record.write("end", [run, how])

    def name_of(self, job: Job) -> str | None:
        """The name of the run that has this very object; `None` if it did not run."""
        return next((run for one, run in self._latest if one is job), None)

    def _ticks(self, run: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            gevent.sleep(TICK)
            self._record.write("tick", [run])

    def quick(self, run: str, job: Job, token: CancellationToken) -> object:
        return job.data["serial"]

    later = urgent = quick

    def ticks(self, run: str, job: Job, token: CancellationToken) -> object:
        self._ticks(run, random.random() * 1.2)
        return job.data["serial"]

    def obeys(self, run: str, job: Job, token: CancellationToken) -> object:
        for _ in range(30):
            token.sleep(TICK)
            self._record.write("tick", [run])
        return job.data["serial"]

    def deaf(self, run: str, job: Job, token: CancellationToken) -> object:
        self._ticks(run, 1.5)
        return job.data["serial"]

    def lasts(self, run: str, job: Job, token: CancellationToken) -> object:
        self._ticks(run, 3 * LOCK)
        return job.data["serial"]

    def fails(self, run: str, job: Job, token: CancellationToken) -> object:
        raise ValueError("as it should")

    def bulky(self, run: str, job: Job, token: CancellationToken) -> object:
        return "r" * len(job.data["ballast"])


def work(url: str, prefix: str, record: Record) -> None:
    """Run jobs, cancel some of them, and tell of both, until a signal closes the worker."""
    process = Processor(record)
    worker = Worker(
        *("q", process, url, prefix), concurrency=12, lock_duration=LOCK, stalled_interval=0.7,
        max_stalled_count=10_000, drain_delay=1.0, cancel_mode="hard", close_timeout=0.5,
    )  # fmt: skip

    def told(event: str) -> collections.abc.Callable[..., None]:
        return lambda job, *_: record.write(
            "told", [process.name_of(job), event, job.data["serial"]]
        )

    for event in ("completed", "failed", "retrying", "cancelled", "lock_lost", "stuck"):
        worker.on(event, told(event))

    def cancel() -> None:
        while True:
            gevent.sleep(0.05)
            jobs = [job for job in worker.active_jobs if job.name in ("obeys", "deaf")]
            if jobs and random.random() < 0.3:
                job, retry = random.choice(jobs), random.random() < 0.3
                run = process.name_of(job)
                hard = job.name == "deaf" or random.random() < 0.3
                if worker.cancel_job(job.id, "ordeal", hard=hard, retry=retry):
                    record.write("asked", [run, retry])

    def answer(command: str) -> None:
        if command == "sample":
            sample(record)

    gevent.spawn(cancel)
    gevent.spawn(pulse, record)
    gevent.spawn(obey, answer)
    worker.on("ready", lambda: record.write("ready"))
    worker.run()
    record.write("closed")


class Producer:
    """Adds jobs, each with a serial number, and waits for some of them."""

    def __init__(self, url: str, prefix: str, record: Record) -> None:
        self._record = record
        self._queue = Queue("q", url, prefix)
        self._serial = 0
        self._go = gevent.event.Event()
        self._go.set()
        self._pauses = 0

    def run(self) -> None:
        """Add for ever."""
        adders = [gevent.spawn(self._add_one_by_one) for _ in range(4)]
        gevent.spawn(pulse, self._record)
        gevent.spawn(obey, self._obey)
        self._record.write("ready")
        gevent.joinall(adders, raise_error=True)

    def _obey(self, command: str) -> None:
        if command == "pause":
            self._go.clear()
            self._record.write("paused")
        elif command == "go":
            self._go.set()
        elif command == "sample":
            sample(self._record)

    def _add_one_by_one(self) -> None:
        kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
        while True:
            self._go.wait()
            if self._is_full():
                gevent.sleep(0.1)
            else:
                self._add(random.choice(kinds))
            gevent.sleep(0.02 + random.random() * 0.05)

    def _is_full(self) -> bool:
        try:
            return self._queue.count() > _MOST_WAITING
        except RedisUnavailableError:
            return False  # adding tells how long that lasts

    def _add(self, kind: str) -> None:
        self._serial += 1
        serial = f"s{self._serial}"
        options = dict(KINDS[kind][1])
        data = {"serial": serial}
        if kind == "bulky":
            data["ballast"] = "b" * random.randrange(100_000)
        named = random.random() < 0.7
        if named:  # may be sent again and again, and is stored once
            options["job_id"] = f"{serial}-named"
        while True:
            self._record.write("adding", [serial, kind])
            try:
                job = self._queue.add(kind, data, **options)
            except RedisUnavailableError as error:
                self._record.write("refused", [serial, error.may_be_done])
                if not named:
                    return
                gevent.sleep(0.2)
            except GeventqError as error:  # no outage: it is not to happen
                self._record.write("complaint", f"add of {serial}: {error!r}")
                return
            else:
                self._record.write("added", [serial, job.id])
                if self._serial % 8 == 0:
                    gevent.spawn(self._wait, job, serial)
                if self._serial % 9 == 0:
                    gevent.spawn_later(random.random() * 0.5, self._cancel, job.id, serial)
                return

    def _cancel(self, job_id: str, serial: str) -> None:
        """From afar, whatever state it is in."""
        try:
            result = self._queue.cancel_job(job_id, "from afar", retry=False)
        except RedisUnavailableError:
            return  # it may be cancelled or not: nobody was told
        except GeventqError as error:
            self._record.write("complaint", f"cancel of {serial}: {error!r}")
        else:
            self._record.write("cancelled", [serial, result.status])

    def _wait(self, job: Job, serial: str) -> None:
        try:
            result = job.wait_until_finished(timeout=300)
        except gevent.Timeout:
            self._record.write("waited", [serial, "timeout"])
        except GeventqError as error:
            self._record.write("waited", [serial, "failed", str(error)])
        else:
            self._record.write("waited", [serial, "completed", len(str(result))])


# -- both ----------------------------------------------------------------------------------------


def obey(answer: collections.abc.Callable[[str], None]) -> None:
    """Follow what standard input says."""
    for line in gevent.fileobject.FileObjectPosix(sys.stdin.fileno(), "r", close=False):
        answer(line.strip())


def pulse(record: Record) -> None:
    """Write down when this process stood still: nothing can be asked of it in that time."""
    while True:
        before = time.monotonic()
        gevent.sleep(_PULSE)
        if (gone := time.monotonic() - before - _PULSE) > 0.3:
            record.write("stood-still", gone)


def sample(record: Record) -> None:
    """Write down what may grow."""
    gc.collect()
    kept = [one for one in gc.get_objects() if issubclass(type(one), gevent.Greenlet)]
    record.write(
        "sample",
        {
            "memory": resident_kb(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "greenlets": len(kept),
            "threads": threading.active_count(),
        },
    )


def resident_kb() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS here")


def main() -> None:
    role, url, prefix, folder = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(message)s")
    record = Record(pathlib.Path(folder))
    if role == "worker":
        work(url, prefix, record)
    else:
        Producer(url, prefix, record).run()


if __name__ == "__main__":
    main()
