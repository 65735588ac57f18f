"""How the label of a job, which log records carry (`geventq.job_log`), reaches what it starts.

Greenlets get it as they are spawned, calls in thread pools while they run; native threads and
gevent's thread pool are only watched once somebody asks for labels.  Nothing here yields.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import typing

from geventq import job_log
from geventq.cancellation import whose

__all__ = ["begin", "inherit"]

T = typing.TypeVar("T")

_are_threads_watched = False


def begin(job: str, queue: str, attempt: int) -> None:
    """The current context is that of a job, from its start to its end."""
    global _are_threads_watched
    if not _are_threads_watched:
        _are_threads_watched = True
        _watch_threads()
    job_log.begin(job, queue, attempt)


def inherit(greenlet: typing.Any) -> None:
    """`greenlet`, which has not begun, runs for the job that the caller runs for.  One that was
    given a context of its own keeps it."""
    label = job_log.current()
    if label is not None and greenlet.gr_context is None:
        greenlet.gr_context = contextvars.Context()
        greenlet.gr_context.run(job_log.begin, *label)


def _watch_threads() -> None:
    """In a patched process threads are greenlets, which `inherit`."""
    import gevent.threadpool  # not before a program is monkey-patched
    from gevent import monkey

    if not monkey.is_module_patched("threading"):
        thread: typing.Any = threading.Thread
        thread.start = _remembering(thread.start)
    pool: typing.Any = gevent.threadpool.ThreadPool
    pool.spawn = _labelling(pool.spawn)


def _remembering(start: typing.Callable[..., None]) -> typing.Callable[..., None]:
    @functools.wraps(start)
    def start_thread(self: typing.Any) -> None:
        label = job_log.current()
        if label is not None and whose.is_jobs_doing(self):
            job_log.remember(self, label)
        start(self)

    return start_thread


def _labelling(spawn: typing.Callable[..., T]) -> typing.Callable[..., T]:
    @functools.wraps(spawn)
    def spawn_labelled(
        self: typing.Any, func: typing.Any, /, *args: typing.Any, **kwargs: typing.Any
    ) -> T:
        label = job_log.current()
        if label is not None and callable(func):
            func = functools.partial(_run_labelled, label, func)
        return spawn(self, func, *args, **kwargs)

    return spawn_labelled


def _run_labelled(
    label: job_log.JobLabel, call: typing.Callable[..., T], *args: typing.Any, **kwargs: typing.Any
) -> T:
    with job_log.labelled(label):
        return call(*args, **kwargs)
