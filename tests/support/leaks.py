"""What a test left behind: greenlets of ours, native threads, file descriptors.

Greenlets of geventq are known by their names, which begin with ``geventq-``.  Threads of gevent's
thread pool (its DNS resolver works there) may stay; they are gevent's.
"""

from __future__ import annotations

import collections.abc
import gc
import os
import signal
import threading
import traceback
import typing
import weakref

import gevent
import gevent.signal
from gevent import monkey

from geventq.store.threads import close_hubs_of_ended_threads
from tests.support.waiting import eventually

__all__ = ["Snapshot", "descriptors", "forget_children", "greenlets", "instances", "native_threads"]

T = typing.TypeVar("T")

_TASKS = "/proc/self/task"
_FDS = "/proc/self/fd"

# Told once: a leak must not fail the tests that come after it.
_told: weakref.WeakSet[gevent.Greenlet[..., object]] = weakref.WeakSet()


def instances(kind: type[T]) -> list[T]:
    """All objects of a class that this process has, those that only a circle keeps too."""
    # Not by `isinstance`, which asks each object for its class: Django's settings answer that
    # with an error where nobody has set them.
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def greenlets(name: str | None = None) -> list[gevent.Greenlet[..., object]]:
    """Those that live and are called `name`, or all of geventq's."""
    return [
        one
        for one in instances(gevent.Greenlet)
        if not one.dead and (one.name.startswith("geventq-") if name is None else one.name == name)
    ]


def _say_greenlet(one: gevent.Greenlet[..., object]) -> str:
    return f"{one.name}:\n" + "".join(traceback.format_stack(one.gr_frame))


def native_threads() -> int:
    """Native threads of this process, as the system counts them: one that was joined, or whose
    work is done, may take a moment more.  So await a number, do not look once."""
    return len(os.listdir(_TASKS)) if os.path.isdir(_TASKS) else threading.active_count()


def _threads() -> int:
    return native_threads() - int(gevent.get_hub().threadpool.size)


def descriptors() -> dict[str, str]:
    """What this process has open now: each descriptor's number and target."""
    found = {}
    for number in os.listdir(_FDS) if os.path.isdir(_FDS) else ():
        try:
            found[number] = os.readlink(f"{_FDS}/{number}")
        except FileNotFoundError:  # the one that listdir itself had open
            continue
    return found


def forget_children() -> None:
    """Let gevent's loop take the ends of child processes no more, which it does for all of them
    from the first one that its `subprocess` has started: a plain `subprocess.Popen` would find
    its child's status lost, and say 0.  In a patched process there are none but gevent's."""
    if not monkey.is_module_patched("subprocess"):
        gevent.signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Snapshot:
    """The state before a test; `check()` fails if the test left more."""

    def __init__(self) -> None:
        # gevent makes its loop's own descriptors at the first use of the thread pool.
        gevent.get_hub().threadpool.apply(int)
        self._threads = _threads()
        self._descriptors = descriptors()

    def check(self, patience: float = 20.0) -> None:
        """Raises `AssertionError` that names what is left, threads and descriptors after
        `patience` seconds.  Yields to the hub."""
        gevent.sleep(0)  # what was told to end gets the turn it needs, no more
        if left := [one for one in greenlets() if one not in _told]:
            _told.update(left)
            raise AssertionError("greenlets left behind:\n" + "\n".join(map(_say_greenlet, left)))
        self._settle(lambda: _threads() <= self._threads, self._say_threads, patience)
        close_hubs_of_ended_threads()  # else whoever meets the next hub does it
        self._settle(lambda: not self._more_descriptors(), self._say_descriptors, patience)

    def _more_descriptors(self) -> dict[str, str]:
        return {
            number: target
            for number, target in descriptors().items()
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
