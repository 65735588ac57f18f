"""How the workers of a process are, looked at each second: whether they take jobs, and whether
their servers answer.

Owns what is asked of a worker and what is said of all of them together; who wants to know (a
service manager, a health port, a parent process) is told.  Greenlets, only while somebody does:
``geventq-vigil``, which tells, and ``geventq-vigil-ping``, which asks the servers.
"""

from __future__ import annotations

import os
import typing

from geventq import clock, wakeups
from geventq.errors import GeventqError
from geventq.fork.workers import watch
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage

__all__ = ["Condition", "Report", "Vigil", "Watched", "status_line", "sums"]

INTERVAL: typing.Final = 1.0  # seconds between two looks
_EAGER: typing.Final = 0.05  # the same until all are ready for the first time
_PING: typing.Final = 2.0  # seconds in which a server has to answer
_LATE: typing.Final = 0.5

#: What a worker may be, the best last; of several the first one that is found counts.
_STATUSES: typing.Final = ("closed", "closing", "starting", "outage", "stuck", "paused", "ready")

Report = dict[str, typing.Any]
"""What is said of a process: JSON."""


class Condition(typing.NamedTuple):
    """How one worker is.

    `status` is ``starting`` (no call to Redis was answered yet), ``ready`` (jobs are taken),
    ``paused``, ``stuck`` (jobs that swallow every kill hold every slot), ``outage``, ``closing``
    or ``closed``.
    """

    queue: str
    worker: str
    server: str
    status: str
    concurrency: int
    active_jobs: int
    stuck_jobs: int
    ended_jobs: int
    """Since it was started."""


class Watched(typing.Protocol):
    """A worker, or a supervisor of several.  None of these yields but `ping`."""

    def conditions(self) -> list[Condition]:
        """How its workers are, one each."""

    def ping(self, server: str, timeout: float) -> None:
        """Raise `GeventqError` unless `server`, which one of its workers serves, answers."""


class Vigil:
    """Watches over `watched`.  `told` is called with each report, in the greenlet; what it does
    must not take long.  Started and stopped by its owner."""

    def __init__(
        self,
        watched: typing.Sequence[Watched],
        told: typing.Callable[[Report], object] | None = None,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._watched = watched
        self._told = told
        self._interval = interval
        self._silent: dict[str, str] = {}  # servers that do not answer, and what is said of them
        self._stop = wakeups.Event()
        self._wake = wakeups.Event()
        self._was_ready = False
        self._tasks = [
            Guarded(self._ping, "vigil-ping", Outage("asking the servers", None, self._stop))
        ]
        if told is not None:
            self._tasks.append(
                Guarded(self._tell, "vigil", Outage("telling of workers", None, self._stop))
            )

    def start(self) -> None:
        """Start the greenlets.  Does not yield."""
        watch(self)
        self._stop.clear()
        for task in self._tasks:
            task.start()

    def stop(self) -> None:
        """End the greenlets and join them.  Idempotent.  Yields."""
        self._stop.set()
        self._wake.set()
        kill_all(self._tasks)

    def die(self) -> list[typing.Any]:
        """In a forked child: whoever is told, is told by the parent (cancellation.md 7.5)."""
        return [task.greenlet for task in self._tasks if task.greenlet is not None]

    def look(self) -> None:
        """Something has changed: tell of it now.  Does not yield."""
        self._wake.set()

    def report(self) -> Report:
        """How all of them are, now.  Does not yield."""
        conditions = [
            one._replace(status="outage")
            if one.server in self._silent and one.status in ("ready", "paused", "stuck")
            else one
            for watched in self._watched
            for one in watched.conditions()
        ]
        statuses = {one.status for one in conditions}
        if not statuses:
            statuses = {"ready" if self._watched else "starting"}
        status = next(one for one in _STATUSES if one in statuses)
        return {
            "status": status,
            "ready": status == "ready",
            "live": True,
            "pid": os.getpid(),
            **sums(one._asdict() for one in conditions),
            "redis": self._servers(conditions),
            "workers": [one._asdict() for one in conditions],
        }

    def _servers(self, conditions: typing.Iterable[Condition]) -> dict[str, str]:
        """What is said of each server."""
        said = {one.server: "answers" for one in conditions if one.server}
        said |= {one.server: "cannot be used" for one in conditions if one.status == "outage"}
        return said | self._silent

    def _tell(self) -> None:
        assert self._told is not None
        while not self._stop.is_set():
            self._wake.clear()
            report = self.report()
            self._was_ready |= report["ready"]
            self._told(report)
            self._wake.wait(self._interval if self._was_ready else min(_EAGER, self._interval))

    def _ping(self) -> None:
        while not self._stop.is_set():
            began = clock.monotonic()
            servers = {
                one.server: watched
                for watched in self._watched
                for one in watched.conditions()
                if one.status not in ("closed", "closing")
            }
            for server, watched in servers.items():
                self._ask(server, watched)
            for gone in self._silent.keys() - servers.keys():
                del self._silent[gone]
            self._stop.wait(max(0.0, began + INTERVAL - clock.monotonic()))

    def _ask(self, server: str, watched: Watched) -> None:
        began = clock.monotonic()
        try:
            try:
                watched.ping(server, _PING)
            except GeventqError:
                if clock.monotonic() < began + _PING + _LATE:
                    raise
                watched.ping(server, _PING)  # it was not the server that was late, but the hub
        except GeventqError as error:
            is_news = server not in self._silent
            self._silent[server] = str(error)
        else:
            is_news = self._silent.pop(server, None) is not None
        if is_news:
            self.look()


def sums(told: typing.Iterable[Report]) -> dict[str, int]:
    """The counts of all of these together: of workers' conditions, or of processes' reports."""
    sums = dict.fromkeys(("concurrency", "active_jobs", "stuck_jobs", "ended_jobs"), 0)
    for one in told:
        for name in sums:
            sums[name] += one.get(name, 0)
    return sums


def status_line(report: Report) -> str:
    """A report in one line for people."""
    workers = len(report["workers"]) or len(report.get("processes", ()))
    counts = (
        f"{report['active_jobs']} of {report['concurrency']} jobs run, "
        f"{report['ended_jobs']} have ended"
    )
    stuck = f", {report['stuck_jobs']} are stuck" if report["stuck_jobs"] else ""
    return f"{report['status']}: {workers} worker{'s' * (workers != 1)}, {counts}{stuck}"
