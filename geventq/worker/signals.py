"""SIGTERM and SIGINT while workers run (cancellation.md 7.2).

The signals reach gevent's loop, which wakes for them at once and calls in a greenlet, so nothing
that a handler may do is forbidden there.  What had been installed before is installed again when
the last worker that runs in this process has closed; in a forked child, where the workers are
dead, at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import typing

import gevent

__all__ = ["heeded"]

_NUMBERS: typing.Final = (signal.SIGTERM, signal.SIGINT)

# What was installed before the first of the running workers came, and how many those are.  Only
# touched in the main thread.
_before: dict[int, typing.Any] = {}
_users = 0
_watchers: list[typing.Any] = []


def _after_fork_in_child() -> None:
    """Whether or not it was forked in the main thread: this is the main thread here."""
    global _users
    _users = 0
    while _watchers:
        _watchers.pop().cancel()
    _restore()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Came:
    """How many of the signals came in one block."""

    came = 0


@contextlib.contextmanager
def heeded(call: typing.Callable[[int], object]) -> typing.Iterator[Came]:
    """In this block ``call(n)`` is called at the n-th SIGTERM or SIGINT, in a greenlet.

    Outside the main thread, where the system lets nobody install handlers, it does nothing.
    """
    global _users
    signals = Came()
    if not _in_main_thread():
        yield signals
        return
    if not _users:
        _before.update((number, signal.getsignal(number)) for number in _NUMBERS)
    _users += 1

    def caught() -> None:
        signals.came += 1
        call(signals.came)

    pid = os.getpid()
    watchers = [gevent.signal_handler(number, caught) for number in _NUMBERS]
    _watchers.extend(watchers)
    try:
        yield signals
    finally:
        if os.getpid() == pid:
            for watcher in watchers:
                watcher.cancel()
                _watchers.remove(watcher)
            _leave()


def _in_main_thread() -> bool:
    """Whether this is the main thread, for the system and for the user: in a monkey-patched
    process his threads are greenlets of it, and his greenlets are dummies of threads."""
    thread = threading.current_thread()
    is_his = thread is not threading.main_thread() and not isinstance(
        thread, threading._DummyThread
    )
    return bool(gevent.get_hub().main_hub) and not is_his


def _leave() -> None:
    global _users
    _users -= 1
    if not _users:
        _restore()


def _restore() -> None:
    for number, handler in _before.items():
        if handler is not None:  # None: installed by C code, out of Python's reach
            signal.signal(number, handler)
    _before.clear()
