"""What dies with a killed job beside its own greenlet (cancellation.md 2.12): the greenlets and
threads of its tree, the pools that it made, the child processes that it started.

`install` hooks the places where such things are made.  Each of them looks for the mark of an
attempt on the current greenlet, and hands what is made to that attempt, which keeps it here.

`adopt` runs in the greenlet that makes the thing, `killer`'s result in the hub; neither blocks.
"""

from __future__ import annotations

import typing
import weakref

import gevent
from gevent import Greenlet

from geventq import job_log
from geventq.cancellation import children, held, labels, pools, throws, tree, whose

__all__ = ["Belongings", "install"]

_MANY: typing.Final = 64  # processes that are kept before those that have ended are let go

_installed = False


class BelongingsOwner(typing.Protocol):
    """Whose all of it is: the attempt."""

    def belongings(self) -> Belongings:
        """Where it is kept."""


def install() -> None:
    """Notice what jobs make from now on; once per process, at the first attempt."""
    global _installed
    if not _installed:
        _installed = True
        Greenlet.add_spawn_callback(_spawned)
        pools.install()
        children.install()


def _spawned(greenlet: Greenlet[..., typing.Any]) -> None:
    owner: BelongingsOwner | None = tree.marked(greenlet)
    if owner is None:
        return
    thread = throws.thread_of(greenlet)
    if thread is not None and not whose.is_jobs_doing(thread):
        pool = next(filter(owner.belongings().has_made, whose.callers_self(thread)), None)
        if pool is None:
            held.starts_for_others()
            tree.unmark(greenlet)  # its later children are not the job's either
            return
        if pools.runs_calls(pool):
            throws.throw_only_inside(greenlet, pools.QueuedCall.__call__.__code__)
    if job_log.is_used():
        labels.inherit(greenlet)
    owner.belongings().adopt(greenlet)


class Belongings:
    """What belongs to one attempt."""

    __slots__ = ("_endings", "_greenlets", "_pending", "_pools", "_processes", "_stopping")

    def __init__(self) -> None:
        #: Weakly: one that has ended must not be kept alive.
        self._greenlets: weakref.WeakSet[Greenlet[..., typing.Any]] = weakref.WeakSet()
        self._pools: weakref.WeakSet[typing.Any] = weakref.WeakSet()
        #: Strongly: most jobs drop theirs while it runs.
        self._processes: list[typing.Any] = []
        self._endings: list[children.EndingProcesses] = []
        self._stopping: list[Greenlet[..., typing.Any]] = []  # pools
        #: Kills that were decided and have not been carried out.
        self._pending = 0

    def adopt(self, greenlet: Greenlet[..., typing.Any]) -> None:
        """A greenlet was spawned in the attempt's tree."""
        self._greenlets.add(greenlet)

    def adopt_pool(self, pool: object) -> None:
        """The job makes a pool."""
        self._pools.add(pool)

    def has_made(self, pool: object) -> bool:
        """Whether the job made that pool."""
        return any(one is pool for one in self._pools)

    def adopt_process(self, process: object) -> None:
        """The job starts a process."""
        processes = self._processes
        if len(processes) > _MANY:
            running = [one for one in processes if not hasattr(one, "pid") or one.poll() is None]
            processes[:] = running
        processes.append(process)

    def greenlets(self) -> list[Greenlet[..., typing.Any]]:
        """The living greenlets of the tree, without the job's own."""
        return list(self._greenlets)

    def killer(self, spared: object) -> typing.Callable[[], None]:
        """What kills, when it is called in the hub, all that belongs to the attempt now, but the
        greenlet `spared`.  What the job makes later, while it cleans up, is not among it."""
        greenlets = [one for one in self._greenlets if one is not spared]
        made, self._pools = list(self._pools), weakref.WeakSet()
        started, self._processes = self._processes, []
        ending = children.EndingProcesses(started)
        waited_for = bool(made or started)
        self._pending += waited_for

        def kill() -> None:
            for greenlet in greenlets:
                throws.throw(greenlet)
            if made:
                self._stopping += pools.stop(made)
            if started:
                ending.ask()
                self._endings.append(ending)
            self._pending -= waited_for

        return kill

    def join(self) -> None:
        """Wait until what was told to end has ended: child processes, and pools for as long as a
        process gets.  Yields."""
        while self._pending:  # the job has ended in the very throw
            gevent.sleep(0)
        while self._endings:
            self._endings[-1].join()
            self._endings.pop()
        gevent.joinall(self._stopping, timeout=children.PATIENCE)
        gevent.killall(self._stopping)
        self._stopping.clear()

    def disown(self) -> None:
        """In a forked child: the processes are the parent's."""
        for ending in self._endings:
            ending.stop()
