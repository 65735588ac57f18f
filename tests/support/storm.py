"""A storm over two workers of one queue: random requests, lost locks, broken connections, pauses
and closes, by a seed; then calm, and a look at what is left.

    python -m tests.support.storm --seconds 120 --seed 7

Everything runs in one hub, each worker behind a proxy of its own.  What may never happen is in
`Storm.violations`; the seed and the operations so far make it happen again, mostly.
"""

from __future__ import annotations

import argparse
import collections
import gc
import random
import resource
import sys
import time
import typing

import gevent
import redis

from geventq import CancellationToken, DelayedError, Job, JobSpec, Queue, WaitingError, Worker
from geventq.store.scripts import load
from tests.support.leaks import Snapshot
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually

__all__ = ["Storm"]

FINAL: typing.Final = ("completed", "failed")
PLACES: typing.Final = ("wait", "active", "delayed", "prioritized", "completed", "failed")
#: Seconds between two looks at the clock, and the gap from which on locks (of 1 s) may be gone.
PULSE: typing.Final = 0.05
STOOD_STILL: typing.Final = 0.25


class Run:
    """One run of one job: what was asked of it, and what was told of it."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.worker, self.job = worker, job
        self.inside = True
        self.shielded = False
        self.asked: list[bool] = []  # the `retry` of each request that was answered True
        self.told: list[str] = []

    def __repr__(self) -> str:
        return f"<run of {self.job.id} {self.job.name} asked {self.asked} told {self.told}>"


class Storm:
    """Two workers, their jobs, and what became of them."""

    def __init__(self, url: str, prefix: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.violations: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.runs: dict[int, Run] = {}  # by the identity of the job object
        self.inside: dict[str, list[Run]] = collections.defaultdict(list)
        self.broken: set[str] = set()  # jobs whose lock was taken away, or may have run out
        self.finals: collections.Counter[str] = collections.Counter()
        self.ids: list[str] = []
        self.prefix = prefix
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.queue = Queue("q", url, prefix)
        self.proxies = [Proxy(url), Proxy(url)]
        for proxy in self.proxies:
            proxy.start()
        self.workers = [self._worker(0, "soft"), self._worker(1, "hard")]
        self.closers: list[gevent.Greenlet[..., None]] = []
        self.pulse = gevent.spawn(self._feel_the_pulse)
        self.pulse.name = "storm-pulse"

    def _feel_the_pulse(self) -> None:
        """Where the machine let this process stand still, locks may have run out on the server
        before anybody here could kill their runs: those runs are not judged."""
        while True:
            before = time.monotonic()
            gevent.sleep(PULSE)
            if time.monotonic() - before > PULSE + STOOD_STILL:
                self.counts["stood still"] += 1
                self.broken.update(job_id for job_id, runs in self.inside.items() if runs)

    def _worker(self, number: int, mode: str) -> Worker:
        def process(job: Job, token: CancellationToken) -> object:
            return self._process(worker, job, token)

        worker = Worker(
            "q",
            process,
            self.proxies[number].url,
            self.prefix,
            concurrency=8,
            lock_duration=1.0,
            stalled_interval=0.3,
            max_stalled_count=10_000,
            drain_delay=0.5,
            cancel_mode=mode,
        )
        for event in ("completed", "failed", "retrying", "cancelled", "lock_lost", "stuck"):
            worker.on(event, self._listener(event))
        worker.on("error", lambda error: self.counts.update(["error"]))
        return worker

    # -- what the jobs do ------------------------------------------------------------------

    def _process(self, worker: Worker, job: Job, token: CancellationToken) -> object:
        run = self.runs[id(job)] = Run(worker, job)
        others = self.inside[job.id]
        for other in others:
            if other.worker.options.cancel_mode == "hard" and not (
                other.shielded or job.id in self.broken
            ):
                self.violations.append(f"{job.id} runs although {other} does")
        others.append(run)
        self.counts["runs"] += 1
        try:
            return getattr(self, job.name)(run, job, token)
        finally:
            run.inside = False
            others.remove(run)

    def returns(self, run: Run, job: Job, token: CancellationToken) -> object:
        return job.id

    def obeys(self, run: Run, job: Job, token: CancellationToken) -> object:
        for _ in range(self.random.randrange(6)):
            token.sleep(self.random.random() * 0.05)
        token.raise_if_cancelled()
        return "done"

    def lasts(self, run: Run, job: Job, token: CancellationToken) -> object:
        gevent.sleep(self.random.random() * 2)
        return "done"

    def ignores(self, run: Run, job: Job, token: CancellationToken) -> object:
        gevent.sleep(self.random.random() * 0.1)
        return "done"

    def fails(self, run: Run, job: Job, token: CancellationToken) -> object:
        gevent.sleep(self.random.random() * 0.02)
        raise ValueError(job.id)

    def moves(self, run: Run, job: Job, token: CancellationToken) -> object:
        if self.random.random() < 0.5:
            return "done"
        raise WaitingError if self.random.random() < 0.5 else DelayedError(0.02)

    def shields(self, run: Run, job: Job, token: CancellationToken) -> object:
        with token.shield():
            run.shielded = True
            gevent.sleep(self.random.random() * 0.1)
        run.shielded = False
        token.raise_if_cancelled()
        return "done"

    def spawns(self, run: Run, job: Job, token: CancellationToken) -> object:
        token.spawn(gevent.sleep, 5)
        gevent.spawn(gevent.sleep, 0.2)
        token.on_cancel(gevent.sleep, self.random.random() * 0.05)
        token.run(gevent.sleep, self.random.random() * 0.1)
        token.raise_if_cancelled()
        return "done"

    # -- what is told ----------------------------------------------------------------------

    def _listener(self, event: str) -> typing.Callable[..., None]:
        return lambda job, _: self._hear(event, job)

    def _hear(self, event: str, job: Job) -> None:
        self.counts[event] += 1
        if event in FINAL:
            self.finals[job.id] += 1
            if self.finals[job.id] > 1:
                self.violations.append(f"the end of {job.id} is told again: {event}")
        run = self.runs.get(id(job))
        if run is None or run.job is not job:  # it did not run (2.8)
            return
        run.told.append(event)
        told = [one for one in run.told if one != "stuck"]
        if told not in (
            *(["completed"], ["failed"], ["retrying"], ["lock_lost"], ["cancelled"]),
            *(["cancelled", "failed"], ["cancelled", "retrying"]),
        ):
            self.violations.append(f"told too much: {run}")
        if event == "completed" and run.asked and job.name in ("obeys", "shields", "spawns"):
            self.violations.append(f"completed although it was asked: {run}")
        if event == "retrying" and False in run.asked:
            self.violations.append(f"retried although that was forbidden: {run}")

    # -- what happens to them --------------------------------------------------------------

    def add(self) -> None:
        kinds = ("returns", "obeys", "ignores", "fails", "moves", "shields", "spawns")
        for _ in range(self.random.randrange(1, 20)):
            kind = "lasts" if self.random.random() < 0.01 else self.random.choice(kinds)
            options: dict[str, typing.Any] = {"attempts": self.random.randrange(1, 4)}
            if self.random.random() < 0.2:
                options["delay"] = self.random.random() * 0.1
            if self.random.random() < 0.2:
                options["priority"] = self.random.randrange(1, 4)
            if self.random.random() < 0.3:
                options["backoff"] = {"type": "fixed", "delay": 0.02}
            if self.random.random() < 0.1:
                options["timeout"] = 0.03
            self.ids.append(self.queue.add(kind, **options).id)

    def cancel(self) -> None:
        worker = self.random.choice(self.workers)
        jobs = worker.active_jobs
        if not jobs:
            return
        job = self.random.choice(jobs)
        options: dict[str, typing.Any] = {"retry": self.random.random() < 0.5}
        if self.random.random() < 0.5:
            options["hard"] = self.random.random() < 0.7
        if options.get("hard") and self.random.random() < 0.5:
            options["kill_after"] = self.random.random() * 0.05
        if worker.cancel_job(job.id, "storm", **options):
            self.counts["asked"] += 1
            for run in self.inside[job.id]:
                if run.worker is worker and run.job is job:
                    run.asked.append(options["retry"])

    def cancel_all(self) -> None:
        if self.random.random() < 0.1:
            worker = self.random.choice(self.workers)
            for runs in self.inside.values():
                for run in runs:
                    # True or not for each of them is not told: those that hear it are not judged.
                    if run.worker is worker:
                        self.broken.add(run.job.id)
            worker.cancel_all_jobs("all")

    def break_lock(self) -> None:
        active = self.redis.lrange(f"{self.prefix}:q:active", 0, -1)
        if active:
            job_id = self.random.choice(active)
            self.broken.add(job_id)
            self.counts["broken"] += self.redis.delete(f"{self.prefix}:q:{job_id}:lock")

    def cut(self) -> None:
        self.random.choice(self.proxies).cut()

    def swallow(self) -> None:
        proxy = self.random.choice(self.proxies)
        if not proxy._traps:
            script = load(self.random.choice(("settle", "settle", "settle", "recover", "renew")))
            how = proxy.swallow_next if self.random.random() < 0.7 else proxy.lose_next
            how(script.sha.encode())

    def stall(self) -> None:
        proxy = self.random.choice(self.proxies)
        proxy.stall()
        gevent.spawn_later(self.random.random() ** 3 * 2, proxy.flow)

    def pause(self) -> None:
        worker = self.random.choice(self.workers)
        worker.pause()
        gevent.spawn_later(self.random.random() * 0.1, worker.resume)

    def concurrency(self) -> None:
        self.random.choice(self.workers).concurrency = self.random.randrange(1, 12)

    def close(self) -> None:
        worker = self.random.choice(self.workers)
        if not worker.is_running or len(self.closers) > 4:
            return

        def again() -> None:
            worker.close(self.random.choice((0, 0.05, 0.3)))
            worker.start()

        self.closers.append(gevent.spawn(again))
        self.closers = [one for one in self.closers if not one.ready()]

    def blow(self, seconds: float) -> None:
        """Do something random, again and again."""
        deeds = [self.add] * 12 + [self.cancel] * 12 + [self.cancel_all, self.pause]
        deeds += [self.break_lock] * 3 + [self.cut, self.swallow, self.swallow, self.concurrency]
        rare = [self.close, self.stall]
        for worker in self.workers:
            worker.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            backlog = len(self.ids) - sum(self.finals.values())
            deed = self.random.choice(rare if self.random.random() < 0.03 else deeds)
            if deed != self.add or backlog < 300:
                self.counts[deed.__name__] += 1
                deed()
            gevent.sleep(self.random.random() * 0.01)

    # -- the calm after it -----------------------------------------------------------------

    def calm(self, timeout: float = 90.0) -> None:
        """Let everything end, close, and look at what is left."""
        gevent.joinall(self.closers)
        for proxy in self.proxies:
            proxy.remove_traps()
            proxy.flow()
        for worker in self.workers:
            worker.resume()
            worker.concurrency = 8
            worker.start()
        try:
            eventually(lambda: not self._unfinished(), timeout)
            # Those that lost their lock run on, asked softly, while their jobs end elsewhere.
            eventually(lambda: not any(self._busy(worker) for worker in self.workers), timeout)
        except AssertionError:
            self.violations.append(f"not all ended: {self._unfinished()}")
        for worker in self.workers:
            engine = worker._engine
            if self._busy(worker):
                runs = [self.runs.get(id(run.job)) for run in engine.slots.running]
                self.violations.append(f"kept: {engine.slots.held} {runs}")
            if engine.slots.running.stuck:
                self.violations.append(f"slots of stuck jobs: {engine.slots.running.stuck}")
            worker.close(1)
        self._look()

    @staticmethod
    def _busy(worker: Worker) -> bool:
        engine = worker._engine
        return bool(engine.slots.held or engine.slots.running)

    def _unfinished(self) -> dict[str, list[str]]:
        return {at: ids for at, ids in self._members().items() if ids and at not in FINAL}

    def _members(self) -> dict[str, list[str]]:
        """The ids in each place, all read at one moment: jobs move meanwhile."""
        with self.redis.pipeline(transaction=True) as pipe:
            for place in PLACES:
                key = f"{self.prefix}:q:{place}"
                if place in ("wait", "active"):
                    pipe.lrange(key, 0, -1)
                else:
                    pipe.zrange(key, 0, -1)
            return dict(zip(PLACES, pipe.execute(), strict=True))

    def _look(self) -> None:
        where: dict[str, list[str]] = collections.defaultdict(list)
        for place, ids in self._members().items():
            for job_id in ids:
                where[job_id].append(place)
        for job_id in self.ids:
            if len(where[job_id]) != 1 or where[job_id][0] not in FINAL:
                self.violations.append(f"{job_id} is in {where[job_id]}")
        if locks := list(self.redis.scan_iter(f"{self.prefix}:q:*:lock", count=10_000)):
            self.violations.append(f"locks left: {locks}")
        inside = [run for runs in self.inside.values() for run in runs]
        if inside:
            self.violations.append(f"still inside: {inside}")

    def end(self) -> None:
        for worker in self.workers:
            worker.close(0)
        for proxy in self.proxies:
            proxy.close()
        self.pulse.kill()
        self.queue.close()
        self.redis.close()


def mortal_jobs(url: str, prefix: str, count: int) -> None:
    """Run many jobs that are cancelled, killed, out of time, retried or sound, in lots, and show
    what grows with them."""
    lot = 2_000
    ends: collections.Counter[str] = collections.Counter()
    chance = random.Random(1)

    def process(job: Job, token: CancellationToken) -> object:
        if job.name == "sound":
            return 1
        if job.name == "fails":
            raise ValueError("once")
        token.sleep(30)
        return 2

    kinds = ("sound", "sound", "fails", "soft", "hard", "late")
    options: dict[str, typing.Any] = {name: {"attempts": 2} for name in kinds}
    options["late"]["timeout"] = 0.02
    with Queue("q", url, prefix) as queue:
        worker = Worker(
            *("q", process, url, prefix), concurrency=100, remove_on_complete=True,
            remove_on_fail=True, cancel_mode="soft",
        )  # fmt: skip
        for event in ("completed", "failed", "cancelled", "lock_lost", "stuck", "error"):
            worker.on(event, lambda *args, event=event: ends.update([event]))
        with worker:
            for done in range(0, count, lot):
                for _ in range(lot // 100):
                    names = chance.choices(kinds, k=100)
                    queue.add_bulk(JobSpec(name, options=options[name]) for name in names)
                goal = done + lot
                while ends["completed"] + ends["failed"] < goal:
                    for job in worker.active_jobs:
                        if job.name in ("soft", "hard"):
                            worker.cancel_job(job.id, hard=job.name == "hard")
                    gevent.sleep(0.001)
                gc.collect()
                rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                kept = len(gc.get_objects())
                print(f"{goal:7} jobs: {kept:7} objects, {rss} MB at most, {dict(ends)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--round", type=float, default=10.0, help="seconds of one storm")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=50_000, help="for the look at what grows")
    given = parser.parse_args()
    found = 0
    with Server() as server:
        deadline, seed = time.monotonic() + given.seconds, given.seed
        while time.monotonic() < deadline:
            before = Snapshot()
            storm = Storm(server.url, f"storm{seed}", seed)
            try:
                storm.blow(given.round)
                storm.calm()
            finally:
                storm.end()
            before.check()
            print(f"seed {seed}: {len(storm.ids)} jobs, {dict(storm.counts)}", flush=True)
            for violation in storm.violations:
                print(f"  VIOLATION {violation}", flush=True)
            found += len(storm.violations)
            seed += 1
        mortal_jobs(server.url, "many", given.jobs)
    print(f"{found} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
