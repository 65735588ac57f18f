"""One round of a torture: its server and processes, what happens to them, and the look at what is
left."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import signal
import time

import gevent
import gevent.event

from tests.fault.ordeal.app import pulse
from tests.fault.ordeal.field import PATIENCE, PREFIX, Process
from tests.fault.ordeal.record import Line, Record, Records
from tests.fault.torture.app import LOCK, Plan
from tests.fault.torture.verdict import FINAL, PLACES, Verdict, judge
from tests.support.servers import Server
from tests.support.waiting import eventually

__all__ = ["play"]

#: The `cancel_mode` of each worker; the last of them is killed.
_MODES = ("soft", "soft", "hard", "hard")
_CUTS = 0.2  # seconds between two cuts of what subscribes


def play(folder: pathlib.Path, plan: Plan) -> Verdict:
    """Play a round, and judge it."""
    # Its data are kept when it is stopped as an administrator stops it.
    server = Server(persistent=True, options=("--appendfsync", "everysec"))
    with server:
        field = _Round(folder, server, plan)
        try:
            field.start()
            field.let_happen()
            field.calm()
            field.close()
            return judge(field.lines(), field.places(), field.hashes(), field.violations())
        finally:
            field.end()


class _Round:
    def __init__(self, folder: pathlib.Path, server: Server, plan: Plan) -> None:
        self._folder = folder
        self._server = server
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._records = Records(folder)
        self._own = Record(folder)
        self._processes: list[Process] = []
        self._violations: list[str] = []
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._answers = gevent.event.Event()  # Redis does
        self._answers.set()

    def start(self) -> None:
        self._greenlets.append(gevent.spawn(pulse, self._own))
        self._workers = [self._worker(mode) for mode in _MODES]
        plan = json.dumps(dataclasses.asdict(self._plan))
        self._canceller = self._start("canceller", plan, patched=False)
        for process in self._processes:
            self._until(process, "ready")

    def _worker(self, mode: str) -> Process:
        # As `geventq worker` runs, and as a program that patches nothing.
        return self._start("worker", mode, patched=len(self._processes) % 2 == 1)

    def _start(self, role: str, more: str, *, patched: bool) -> Process:
        process = Process(
            *(role, self._server.url, self._folder),
            patched=patched,
            app="tests.fault.torture.app",
            more=(more,),
        )
        self._processes.append(process)
        return process

    def _until(self, process: Process, tag: str) -> None:
        def told() -> bool:
            assert process.is_running, process.errors
            return any(line.pid == process.pid and line.tag == tag for line in self.lines())

        eventually(told, PATIENCE, every=0.05, what=f"{tag} of {process.role}")

    # -- what happens ----------------------------------------------------------------------

    def let_happen(self) -> None:
        """Cut, kill and stop, at moments when much is under way, until the canceller is done."""
        self._greenlets.append(gevent.spawn(self._cut_subscriptions))
        seconds = self._plan.seconds
        self._until_added(0.2 + 0.2 * self._chance.random())
        self._kill_one()
        self._until_added(0.6 + 0.2 * self._chance.random())
        self._stop_redis()
        eventually(self._is_done, PATIENCE + 10 * seconds, every=0.1, what=self._say_unanswered)

    def _until_added(self, share: float) -> None:
        def are_added() -> bool:
            assert self._canceller.is_running, self._canceller.errors
            added = sum(line.tag == "added" for line in self.lines())
            return added >= share * self._plan.jobs

        eventually(are_added, PATIENCE + 10 * self._plan.seconds, every=0.05)

    def _cut_subscriptions(self) -> None:
        while True:
            gevent.sleep(_CUTS)
            self._answers.wait()
            with self._server.client() as client:
                client.client_kill_filter(_type="pubsub")
            self._own.write("cut")

    def _kill_one(self) -> None:
        victim = self._workers.pop()
        victim.kill()
        self._own.write("killed", victim.pid)
        self._workers.append(self._worker(_MODES[-1]))

    def _stop_redis(self) -> None:
        """It does not answer, or it is gone and comes again with its data."""
        self._answers.clear()
        if self._chance.random() < 0.5:
            self._own.write("redis-hangs")
            self._server.pause()
            gevent.sleep(self._plan.outage)
            self._server.resume()
        else:
            self._own.write("redis-stops")
            self._server.stop()
            gevent.sleep(self._plan.outage)
            self._server.start()
        self._answers.set()

    def _is_done(self) -> bool:
        assert self._canceller.is_running, self._canceller.errors
        return any(line.tag == "done" for line in self.lines()[-1000:])

    def _say_unanswered(self) -> str:
        answered = {line.what[0] for line in self.lines() if line.tag == "answered"}
        asked = [line.what for line in self.lines() if line.tag == "asked"]
        return f"all answers; missing: {[one for one in asked if one[0] not in answered]}"

    # -- calm ------------------------------------------------------------------------------

    def calm(self) -> None:
        """Wait for the end of all jobs; the cuts go on.  What does not end is judged."""
        deadline = time.monotonic() + PATIENCE + LOCK
        while any(ids for place, ids in self.places().items() if place not in FINAL):
            if time.monotonic() > deadline:
                break
            gevent.sleep(0.1)

    def close(self) -> None:
        """End the workers as a deployment does."""
        for worker in self._workers:
            self._until(worker, "ready")  # the last one may be starting: it heeds no signal yet
            worker.signal(signal.SIGTERM)
        for worker in self._workers:
            if (status := worker.ends()) != 0:
                self._violations.append(f"a worker ended with {status}: {worker.errors[-800:]}")

    def lines(self) -> list[Line]:
        return self._records.lines()

    def violations(self) -> list[str]:
        """What is wrong whatever became of the jobs."""
        dead = [one for process in self._processes for one in process.died_greenlets()]
        complaints = [str(line.what) for line in self.lines() if line.tag == "complaint"]
        return self._violations + dead + complaints

    def places(self) -> dict[str, list[str]]:
        """The ids in each place, all read at one moment; and the locks."""
        with self._server.client() as client:
            with client.pipeline(transaction=True) as pipe:
                for place in PLACES:
                    key = f"{PREFIX}:q:{place}"
                    if place in ("wait", "active"):
                        pipe.lrange(key, 0, -1)
                    else:
                        pipe.zrange(key, 0, -1)
                found = dict(zip(PLACES, pipe.execute(), strict=True))
            locks = client.scan_iter(f"{PREFIX}:q:*:lock", count=10_000)
            return found | {"lock": [str(key).split(":")[-2] for key in locks]}

    def hashes(self) -> dict[str, dict[str, str]]:
        """Every hash of a job."""
        found: dict[str, dict[str, str]] = {}
        with self._server.client() as client:
            keys = [
                *client.scan_iter(f"{PREFIX}:q:j*", count=10_000),
                *client.scan_iter(f"{PREFIX}:q:nobody*", count=10_000),
            ]
            for key in keys:
                name = str(key).split(":", 2)[2]
                if ":" not in name:
                    found[name] = client.hgetall(key)
        return found

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        gevent.killall(self._greenlets)
        self._own.close()
