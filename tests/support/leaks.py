"""What a test left behind: greenlets of ours, native threads, file descriptors.

Greenlets of geventq are known by their names, which begin with ``geventq-``.  Threads of gevent's
thread pool (its DNS resolver works there) may stay; they are gevent's.
"""

from __future__ import annotations

import collections.abc
import gc
import os
import threading
import traceback
import weakref

import gevent

from geventq.store.threads import close_hubs_of_ended_threads
from tests.support.waiting import eventually

__all__ = ["Snapshot"]

_TASKS = "/proc/self/task"
_FDS = "/proc/self/fd"

# Told once: a leak must not fail the tests that come after it.
_told: weakref.WeakSet[gevent.Greenlet[..., object]] = weakref.WeakSet()


def _greenlets() -> list[gevent.Greenlet[..., object]]:
    return [
        found
        for found in gc.get_objects()
        if issubclass(type(found), gevent.Greenlet)
        and not found.dead
        and found.name.startswith("geventq-")
        and found not in _told
    ]


def _say_greenlet(one: gevent.Greenlet[..., object]) -> str:
    return f"{one.name}:\n" + "".join(traceback.format_stack(one.gr_frame))


def _threads() -> int:
    pool = gevent.get_hub().threadpool
    running = len(os.listdir(_TASKS)) if os.path.isdir(_TASKS) else threading.active_count()
    return running - int(pool.size)


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir(_FDS) if os.path.isdir(_FDS) else ():
        try:
            found[number] = os.readlink(f"{_FDS}/{number}")
        except FileNotFoundError:  # the one that listdir itself had open
            continue
    return found


class Snapshot:
    """The state before a test; `check()` fails if the test left more."""

    def __init__(self) -> None:
        # gevent makes its loop's own descriptors at the first use of the thread pool.
        gevent.get_hub().threadpool.apply(int)
        self._threads = _threads()
        self._descriptors = _descriptors()

    def check(self, patience: float = 20.0) -> None:
        """Raises `AssertionError` that names what is left, threads and descriptors after
        `patience` seconds.  Yields to the hub."""
        gevent.sleep(0)  # what was told to end gets the turn it needs, no more
        if left := _greenlets():
            _told.update(left)
            raise AssertionError("greenlets left behind:\n" + "\n".join(map(_say_greenlet, left)))
        self._settle(lambda: _threads() <= self._threads, self._say_threads, patience)
        close_hubs_of_ended_threads()  # else whoever meets the next hub does it
        self._settle(lambda: not self._more_descriptors(), self._say_descriptors, patience)

    def _more_descriptors(self) -> dict[str, str]:
        return {
            number: target
            for number, target in _descriptors().items()
            if self._descriptors.get(number) != target
        }

    @staticmethod
    def _settle(
        settled: collections.abc.Callable[[], bool],
        say: collections.abc.Callable[[], str],
        patience: float,
    ) -> None:
        # The system needs a moment to end a thread that was joined, a peer to notice an end.
        if settled():
            return
        try:
            eventually(settled, patience)
        except AssertionError:
            raise AssertionError(say()) from None

    def _say_threads(self) -> str:
        names = ", ".join(thread.name for thread in threading.enumerate())
        return f"native threads left behind: {_threads() - self._threads} (known now: {names})"

    def _say_descriptors(self) -> str:
        return f"file descriptors left open: {self._more_descriptors()}"
