"""A worker process as its parent sees it: orders, reports, and what all of them together say.

No gevent, no Redis and no code of the user: the parent has nothing that a fork could break.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import typing

from geventq.vigil import Report, sums

__all__ = ["Child", "joined"]

_BLOCKED: typing.Final = 5.0  # seconds without a report after which a child's hub stands still
_MOST: typing.Final = 1 << 20  # bytes that are read at once


class Child:
    """One worker process."""

    def __init__(self, pid: int, orders: int, reports: int) -> None:
        self.pid = pid
        self.reports = reports
        self.born = time.monotonic()
        self._orders = orders
        self._read = b""
        self._report: Report | None = None  # the last one
        self._heard_at = 0.0

    @property
    def was_ready(self) -> bool:
        """Whether its workers have started, ever."""
        self.listen()
        return self._report is not None

    @property
    def is_blocked(self) -> bool:
        """Whether its hub has not turned for some time."""
        return self._report is not None and time.monotonic() - self._heard_at > _BLOCKED

    def listen(self) -> None:
        """Read what it reports.  Does not block."""
        with contextlib.suppress(BlockingIOError):
            self._read += os.read(self.reports, _MOST)
        *lines, self._read = self._read.split(b"\n")
        if lines:
            self._report = json.loads(lines[-1])
            self._heard_at = time.monotonic()

    def order(self, order: bytes) -> None:
        """Tell it something; one that died just now hears nothing."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, order)

    def close(self, order: bytes) -> None:
        """Tell it to close.  One that has no worker yet is ended by a signal."""
        self.order(order)
        self.end_unless_ready()

    def end_unless_ready(self) -> None:
        """End it by a signal if it has no worker yet.

        To be said again until it has ended: a signal that comes in the moment in which gevent's
        loop begins to wait is noticed only when that wakes again, and nothing else may wake it.
        """
        if not self.was_ready:
            os.kill(self.pid, signal.SIGTERM)

    def said(self) -> Report:
        """Its last report."""
        starting: Report = {"status": "starting", "workers": [], "redis": {}}
        report = dict(self._report or starting, pid=self.pid)
        return report | {"status": "blocked"} if self.is_blocked else report

    def forget(self) -> None:
        """Close our ends of its pipes."""
        os.close(self._orders)
        os.close(self.reports)


def joined(children: typing.Iterable[Child], *, lacking: int, closes: bool) -> Report:
    """One report on all `children`; `lacking` ones are to be started."""
    reports = [child.said() for child in children]
    statuses = [one["status"] for one in reports] + ["starting"] * lacking
    bad = [status for status in statuses if status != "ready"]
    status = "closing" if closes else bad[0] if bad else "ready"
    redis: dict[str, str] = {}
    for one in reports:
        silent = {server: said for server, said in one["redis"].items() if said != "answers"}
        redis = one["redis"] | redis | silent
    return {
        "status": status,
        "ready": status == "ready",
        "live": "blocked" not in statuses,
        "pid": os.getpid(),
        **sums(reports),
        "redis": redis,
        "processes": [{"pid": one["pid"], "status": one["status"]} for one in reports],
        "workers": [worker | {"pid": one["pid"]} for one in reports for worker in one["workers"]],
    }
