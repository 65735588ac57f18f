"""Pools that a job made stop with it; calls that it queued in threads elsewhere are not begun any
more (cancellation.md 2.12).

`install` lets `ThreadPoolExecutor`, `multiprocessing.pool.ThreadPool` and `ProcessPoolExecutor`
tell which job makes one, and those of threads, gevent's own too, which queues a call.  Whether it
is the job's doing, or that of a library which the job calls, `whose` tells.

Stopping a pool calls users' code (what waits for its futures), so it runs in a greenlet of its
own, ``geventq-pools``, which the job's greenlet joins.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import sys
import typing

from gevent import Greenlet
from greenlet import GreenletExit, getcurrent

from geventq import job_log
from geventq.cancellation import throws, tree, whose

__all__ = ["PoolKeeper", "PoolOwner", "QueuedCall", "install", "stop"]

_log = logging.getLogger("geventq")


class PoolKeeper(typing.Protocol):
    """What keeps a job's pools."""

    def adopt_pool(self, pool: object) -> None:
        """The job is about to make a pool."""


class PoolOwner(typing.Protocol):
    """Whose pool or call it is: the attempt."""

    was_thrown: bool
    """A kill was thrown: nothing of its is begun any more."""

    def belongings(self) -> PoolKeeper:
        """Where a pool is kept."""


class _EndedWithJobError(concurrent.futures.CancelledError, GreenletExit):
    """The outcome of a call that ended with its job.  A `GreenletExit` as well, of which gevent's
    own pool prints no traceback."""


class QueuedCall:
    """A call that a job has queued in a pool."""

    __slots__ = ("_fn", "_label", "_owner")

    def __init__(self, owner: PoolOwner, fn: typing.Callable[..., typing.Any]) -> None:
        self._owner = owner
        self._fn = fn
        self._label = job_log.current()

    def __call__(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if self._owner.was_thrown:
            raise _EndedWithJobError("the job that queued this call was killed")
        try:
            with job_log.labelled(self._label):
                return self._fn(*args, **kwargs)
        except SystemExit as error:
            if throws.was_thrown(getcurrent()):  # the pool ends by itself
                raise _EndedWithJobError("killed with its job") from error
            raise


def install() -> None:
    """Notice pools and their calls from now on.  Once per process."""
    import concurrent.futures.thread  # not before a program is monkey-patched
    import multiprocessing.pool

    import gevent.threadpool

    for kind in (concurrent.futures.thread.ThreadPoolExecutor, multiprocessing.pool.ThreadPool):
        _watch_making(kind)
    _watch_processes()
    for kind, names in (
        (concurrent.futures.thread.ThreadPoolExecutor, ["submit"]),
        (gevent.threadpool.ThreadPoolExecutor, ["submit"]),
        (multiprocessing.pool.ThreadPool, ["apply_async", "_map_async", "imap", "imap_unordered"]),
    ):
        for name in names:
            _watch_calls(kind, name)


def _watch_processes() -> None:
    """`ProcessPoolExecutor` takes 4 ms to import: that is left to who uses it."""
    module = sys.modules.get("concurrent.futures.process")
    if module is not None:
        _watch_making(module.ProcessPoolExecutor)
        return
    package: typing.Any = concurrent.futures
    load = package.__getattr__  # by which the package imports it

    @functools.wraps(load)
    def __getattr__(name: str) -> typing.Any:  # noqa: N807
        found = load(name)
        if name == "ProcessPoolExecutor":
            package.__getattr__ = load
            _watch_making(found)
        return found

    package.__getattr__ = __getattr__


def _watch_making(kind: typing.Any) -> None:
    make = kind.__init__

    @functools.wraps(make)
    def __init__(self: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> None:  # noqa: N807
        owner: PoolOwner | None = tree.marked(getcurrent())
        if owner is not None and whose.is_jobs_doing(self):
            owner.belongings().adopt_pool(self)  # before: it may start threads as it is made
        make(self, *args, **kwargs)

    kind.__init__ = __init__


def _watch_calls(kind: typing.Any, name: str) -> None:
    queue = getattr(kind, name)

    @functools.wraps(queue)
    def queue_call(
        self: typing.Any, fn: typing.Any = None, /, *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Any:
        owner: PoolOwner | None = tree.marked(getcurrent())
        by_name = fn is None and "func" in kwargs
        given = kwargs.pop("func") if by_name else fn
        if owner is not None and callable(given) and whose.is_jobs_doing(self):
            given = QueuedCall(owner, given)
        return queue(self, given, *args, **kwargs)

    setattr(kind, name, queue_call)


def runs_calls(pool: object) -> bool:
    """Whether calls run in the pool's own threads.

    That of a `ProcessPoolExecutor` looks after its processes, and has to die with them: it would
    turn in a loop until it sees them ended, which the hub alone can tell it (seen with 3.11).
    """
    module = sys.modules.get("concurrent.futures.process")
    return module is None or not isinstance(pool, module.ProcessPoolExecutor)


def stop(pools: typing.Iterable[typing.Any]) -> list[Greenlet[..., typing.Any]]:
    """Stop pools that a killed job made, in greenlets of their own, which are the caller's to
    join.  Does not yield; may be called in the hub."""
    return [
        tree.apart(_stop, pool, getattr(pool, "_call_queue", None), name="geventq-pools")
        for pool in pools
    ]


def _stop(pool: typing.Any, to_processes: typing.Any) -> None:
    try:
        if isinstance(pool, concurrent.futures.Executor):
            pool.shutdown(wait=False, cancel_futures=True)
            if to_processes is not None:  # the thread that would do it was killed
                to_processes.close()
        else:
            pool.terminate()
    except Exception:  # of a pool that was never made whole, say  # noqa: BLE001
        _log.exception("a pool of a killed job was not stopped")
