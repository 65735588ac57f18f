"""What ties a worker process of ``--processes`` to its parent: orders come by one pipe, reports go
by another.

The orders travel by a pipe, not by signals: a terminal's Ctrl-C and systemd's
``KillMode=control-group`` signal the children too, and twice would mean "at once".  The pipe's
end of file tells a child that its parent is gone, however it died.  The reports, lines of JSON,
tell the parent that the workers have started, how they are, and that the hub turns: it holds a
child that is silent for too long for one whose hub stands still.

Greenlets: ``geventq-parent-orders``, which is guarded, short ones that carry orders out, and those
of the `Vigil`.
"""

from __future__ import annotations

import functools
import json
import os
import typing

if typing.TYPE_CHECKING:
    from geventq.guarded import Guarded
    from geventq.supervisor import Supervisor
    from geventq.vigil import Report, Vigil
    from geventq.worker import Worker

__all__ = ["AT_ONCE", "CLOSE", "RELOAD", "STACKS", "Lifeline", "close_workers"]

CLOSE: typing.Final = b"c"  # with close_timeout
AT_ONCE: typing.Final = b"0"
RELOAD: typing.Final = b"r"  # read the settings anew
STACKS: typing.Final = b"s"  # print the stacks of the jobs


def close_workers(
    worker: Worker, supervisor: Supervisor | None, reason: str, *, at_once: bool = False
) -> None:
    """Close the one worker of a process, for `reason`, or begin to close the supervisor of several:
    each with its `close_timeout`, or `at_once`.  May yield."""
    if supervisor is not None:
        supervisor.begin_to_close(at_once=at_once)
    else:
        worker.close(0.0 if at_once else worker.options.close_timeout, reason)


class Lifeline:
    """A child's ends of its two pipes, and the file that it locks while it writes.

    `on_order` is what `RELOAD` and `STACKS` call.
    """

    def __init__(self, orders: int, reports: int, turns: typing.IO[bytes]) -> None:
        self._orders = orders
        self._reports = reports
        self.turns = turns
        self.on_order: dict[bytes, typing.Callable[[], object]] = {}
        self._heeding: Guarded | None = None
        self._greenlets: list[typing.Any] = []  # of the orders that are carried out
        self._unsent = b""  # of a report: a line is sent whole, whatever its greenlet is hit by
        self._vigil: Vigil | None = None

    def hold(self, workers: list[Worker], supervisor: Supervisor | None) -> None:
        """Close the one worker, or the supervisor of several, when the parent says so or is gone;
        call before they start."""
        unready = set(workers)
        for worker in workers:
            worker.on("ready", functools.partial(self._ready, worker, unready, supervisor))

    def _ready(self, worker: Worker, unready: set[Worker], supervisor: Supervisor | None) -> None:
        if worker not in unready:
            return  # it was started again
        unready.remove(worker)
        if unready:
            return
        from gevent.os import make_nonblocking

        from geventq import wakeups
        from geventq.fork.workers import watch
        from geventq.guarded import Guarded
        from geventq.outage import Outage
        from geventq.vigil import Vigil

        watch(self)
        make_nonblocking(self._reports)
        self._vigil = Vigil([supervisor or worker], self._report)
        self._vigil.start()
        (supervisor or worker).before_closing(self._vigil.look)
        heed = functools.partial(self._heed, worker, supervisor)
        outage = Outage("hearing the parent process", None, wakeups.Event())
        self._heeding = Guarded(heed, "parent-orders", outage)
        self._heeding.start()

    def _report(self, report: Report) -> None:
        from gevent.os import nb_write

        self._unsent += json.dumps(report).encode() + b"\n"
        try:
            while self._unsent:
                self._unsent = self._unsent[nb_write(self._reports, self._unsent) :]
        except BrokenPipeError:  # the parent is gone
            self._unsent = b""

    def _spawn(self, name: str, call: typing.Callable[..., object], *args: object) -> None:
        import gevent

        greenlet = gevent.Greenlet(call, *args)
        greenlet.name = f"geventq-parent-{name}"
        self._greenlets = [one for one in self._greenlets if not one.dead]
        self._greenlets.append(greenlet)
        greenlet.start()

    def _heed(self, worker: Worker, supervisor: Supervisor | None) -> None:
        from gevent.socket import wait_read

        while True:
            wait_read(self._orders)
            order = os.read(self._orders, 1)
            if order in self.on_order:
                self._spawn("order", self.on_order[order])
            else:
                reason = "worker is closing" if order else "the parent process is gone"
                close = functools.partial(close_workers, at_once=order == AT_ONCE)
                self._spawn("close", close, worker, supervisor, reason)
            if order in (AT_ONCE, b""):
                return

    def die(self) -> list[typing.Any]:
        """In a process that a job has forked: the orders are not for it (cancellation.md 7.5)."""
        heeds = None if self._heeding is None else self._heeding.greenlet
        return self._greenlets if heeds is None else [*self._greenlets, heeds]

    def release(self) -> None:
        """After the worker closed.  Yields."""
        import gevent

        from geventq.guarded import kill_all

        if self._vigil is not None:
            self._vigil.stop()
        if self._heeding is not None:
            kill_all([self._heeding])
        gevent.killall(self._greenlets)
