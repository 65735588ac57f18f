"""SIGTERM and SIGINT while workers run (cancellation.md 7.2).

Python's handler hands them to the hub, which wakes for them at once and calls in a greenlet, so
nothing that a listener may do is forbidden there.  What had been installed before is installed
again when the last worker that runs in this process has closed; in a forked child, where the
workers are dead, at once.  One handler takes the other's place: there is no moment at which the
system's own, which ends the process, is the one that counts (with gevent's watchers of signals
there is: libev puts it there as the last watcher stops).
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

# What was installed before the first of the running workers came, and what those call.  Only
# touched in the main thread.
_before: dict[int, typing.Any] = {}
_calls: list[typing.Callable[[], None]] = []


def _after_fork_in_child() -> None:
    """Whether or not it was forked in the main thread: this is the main thread here."""
    _calls.clear()
    _restore()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _heard(number: int, frame: object) -> None:
    """Python's handler: in the main thread, in whatever greenlet runs, or in the hub."""
    for call in _calls.copy():
        call()


class Came:
    """How many of the signals came in one block."""

    came = 0


@contextlib.contextmanager
def heeded(call: typing.Callable[[int], object]) -> typing.Iterator[Came]:
    """In this block ``call(n)`` is called at the n-th SIGTERM or SIGINT, in a greenlet.

    Outside the main thread, where the system lets nobody install handlers, it does nothing.
    """
    signals = Came()
    if not _in_main_thread():
        yield signals
        return
    loop: typing.Any = gevent.get_hub().loop

    def caught() -> None:
        signals.came += 1
        loop.run_callback(gevent.spawn, call, signals.came)

    pid = os.getpid()
    _calls.append(caught)
    for number in _NUMBERS if len(_calls) == 1 else ():
        _before[number] = signal.getsignal(number)
        signal.signal(number, _heard)
    try:
        yield signals
    finally:
        if os.getpid() == pid:
            _calls.remove(caught)
            if not _calls:
                _restore()


def _in_main_thread() -> bool:
    """Whether this is the main thread, for the system and for the user: in a monkey-patched
    process his threads are greenlets of it, and his greenlets are dummies of threads."""
    thread = threading.current_thread()
    is_his = thread is not threading.main_thread() and not isinstance(
        thread, threading._DummyThread
    )
    return bool(gevent.get_hub().main_hub) and not is_his


def _restore() -> None:
    for number, handler in _before.items():
        # `None`: installed by C code, out of Python's reach.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _before.clear()
