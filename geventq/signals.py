"""SIGTERM and SIGINT while workers run (cancellation.md 7.2).

Python's handler hands them to the hub, which wakes for them at once and calls in a greenlet, so
nothing that a listener may do is forbidden there.  What had been installed before is installed
again when the last worker that runs in this process has closed; in a forked child, where the
workers are dead, at once.  One handler takes the other's place: there is no moment at which the
system's own, which ends the process, is the one that counts (with gevent's watchers of signals
there is: libev puts it there as the last watcher stops).

Supervisors and impatient people send a signal twice.  The second one may come when the worker has
closed already, and would kill the program, had what does so been installed again at once: after a
close by a signal it stays away for a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import typing

import gevent

from geventq import clock

__all__ = ["heeded", "in_main_thread"]

_NUMBERS: typing.Final = (signal.SIGTERM, signal.SIGINT)
_MOMENT: typing.Final = 2.0  # seconds after a close by a signal in which another one is the same
_ENDS: typing.Final = (signal.SIG_DFL, signal.default_int_handler, None)  # the program

# What was installed before the first of the running workers came, and what those call.  Only
# touched in the main thread.
_before: dict[int, typing.Any] = {}
_calls: list[typing.Callable[[], None]] = []
_came = False  # a signal, since the first of the running workers came


def _after_fork_in_child() -> None:
    """Whether or not it was forked in the main thread: this is the main thread here."""
    _calls.clear()
    _restore()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _heard(number: int, frame: object) -> None:
    """Python's handler: in the main thread, in whatever greenlet runs, or in the hub."""
    global _came
    _came = True
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
    if not in_main_thread():
        yield signals
        return
    loop: typing.Any = gevent.get_hub().loop

    def caught() -> None:
        signals.came += 1
        loop.run_callback(gevent.spawn, call, signals.came)

    pid = os.getpid()
    _calls.append(caught)
    for number in _NUMBERS if len(_calls) == 1 else ():
        _before[number] = _installed(number)
        signal.signal(number, _heard)
    try:
        yield signals
    finally:
        if os.getpid() == pid:
            _calls.remove(caught)
            if not _calls:
                _restore(for_a_moment=_came)


def in_main_thread() -> bool:
    """Whether this is the main thread, for the system and for the user: in a monkey-patched
    process his threads are greenlets of it, and his greenlets are dummies of threads."""
    thread = threading.current_thread()
    is_his = thread is not threading.main_thread() and not isinstance(
        thread, threading._DummyThread
    )
    return bool(gevent.get_hub().main_hub) and not is_his


class _Late:
    """In the place of a handler that ends the program, for a moment."""

    def __init__(self, before: typing.Any) -> None:
        self.before = before
        self._until = clock.monotonic() + _MOMENT

    def __call__(self, number: int, frame: object) -> None:
        if not self.holds:
            signal.signal(number, self.before)
            os.kill(os.getpid(), number)

    @property
    def holds(self) -> bool:
        """Whether the moment is not over."""
        return clock.monotonic() < self._until


@atexit.register
def _ignore_late_ones() -> None:
    """Python takes its handlers away while it still has modules to clear: the system's may not
    come in their place."""
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        if isinstance(handler, _Late) and handler.holds:
            signal.signal(number, signal.SIG_IGN)


def _installed(number: int) -> typing.Any:
    handler = signal.getsignal(number)
    return handler.before if isinstance(handler, _Late) else handler


def _restore(*, for_a_moment: bool = False) -> None:
    global _came
    _came = False
    for number, handler in _before.items():
        before = signal.SIG_DFL if handler is None else handler  # by C code, out of Python's reach
        ends = any(handler is one for one in _ENDS)
        signal.signal(number, _Late(before) if ends and for_a_moment else before)
    _before.clear()
