"""How the process of ``geventq worker`` ends: by a signal at any time, and soon after it closed.

From the first line of `main` until its worker runs there is nothing to close, so SIGTERM and
SIGINT end the process where it stands, with status 0: an exception might hit anything, a user's
``except`` or the hub.  While a worker runs the signals are its own.  From then on they are
ignored, by the system: Python takes its own handlers away while it still has work to do.

Once the worker has told `closed`, the process has 2 s (cancellation.md 7.2), however long what
its jobs have left would last: threads and calls of executors get a part of it, then the exit
functions run (Sentry sends its last events there), and then it ends.  Native threads see to that
where the main thread cannot, because something holds its hub.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import typing

from geventq.commands import terminal
from geventq.commands.console import say_error

__all__ = ["Ending", "ending"]

_NUMBERS: typing.Final = (signal.SIGTERM, signal.SIGINT)

# Seconds after `closed`.
_THREADS: typing.Final = 0.8  # until then threads that are no daemons may end
_STEP_IN: typing.Final = 1.0  # if the main thread has not begun with the exit functions, another
_OVERDUE: typing.Final = 1.3  # an exit function that still waits makes room for the next one
_NEXT: typing.Final = 0.15  # and so does the next
_CUT: typing.Final = 1.8


class _Overdue(BaseException):
    """Thrown into an exit function that waits for too long."""


class Ending:
    """What becomes of the process; used as `ending`."""

    def __init__(self) -> None:
        self._status = 0
        self._has_worker = False  # the signals were, or are, a worker's
        self._is_ours = False
        self._began: float | None = None  # when the 2 s have, on the monotonic clock
        self._at_exit = threading.Lock()  # never released: the exit functions run once

    # -- signals ---------------------------------------------------------------------------

    def leave_on_signals(self) -> None:
        """From now on SIGTERM and SIGINT end the process with status 0, and so does SIGHUP where
        the terminal has gone; SIGUSR1 has nothing to print yet."""
        for number in _NUMBERS:
            signal.signal(number, self._leave)
        signal.signal(signal.SIGHUP, self._hung_up)
        signal.signal(signal.SIGUSR1, _unheard)

    def _hung_up(self, number: int, frame: object) -> None:
        if terminal.is_gone():
            self._leave(number, frame)

    def _leave(self, number: int, frame: object) -> None:
        if not self._has_worker:
            _flush()
            os._exit(0)

    def worker_closes(self) -> None:
        """A worker has heard of a signal, or closes by itself: another one ends nothing."""
        self._has_worker = True

    def ignore_signals(self) -> None:
        """Nothing can be closed any more."""
        self._has_worker = True
        for number in (*_NUMBERS, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    # -- the end ---------------------------------------------------------------------------

    @property
    def is_ours(self) -> bool:
        """Whether `end` is to end this process: a user's code runs in it."""
        return self._is_ours

    def take_over(self) -> None:
        """A user's code will run in this process, and may leave anything behind."""
        self._is_ours = True

    def begin(self, status: int) -> None:
        """The worker has closed: from here on the process has 2 s.  Idempotent."""
        self._status = status
        if self._began is not None:
            return
        self._began = time.monotonic()
        from gevent import monkey

        start = monkey.get_original("_thread", "start_new_thread")
        sleep = monkey.get_original("time", "sleep")

        def cut() -> None:
            sleep(_CUT)
            os._exit(self._status)

        def step_in() -> None:
            sleep(_STEP_IN)
            if self._at_exit.acquire(blocking=False):
                self._run_exit_functions()

        start(cut, ())
        start(step_in, ())

    def end(self, status: int) -> typing.NoReturn:
        """End the process with `status`, within 2 s of `begin`.  In the main greenlet; yields."""
        import gevent

        self.ignore_signals()
        self.begin(status)
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(self._left(_THREADS)):
            threading._shutdown()  # type: ignore[attr-defined]  # as Python, but not for ever
        if not self._at_exit.acquire(blocking=False):
            gevent.sleep(_CUT)  # another thread is at it, and may need this hub
        hub: typing.Any = gevent.get_hub()
        timer = hub.loop.timer(self._left(_OVERDUE), _NEXT)
        timer.start(gevent.getcurrent().throw, _Overdue)
        sys.unraisablehook = _tell_overdue
        self._run_exit_functions()

    def _left(self, seconds: float) -> float:
        """Until so many seconds after `begin`."""
        assert self._began is not None
        return max(0.01, self._began + seconds - time.monotonic())

    def _run_exit_functions(self) -> typing.NoReturn:
        _forget_processes()
        atexit._run_exitfuncs()
        _flush()
        os._exit(self._status)


def _unheard(number: int, frame: object) -> None:
    """Not the system's own ignoring, which the programs that a job starts would inherit."""


_unheard.may_be_replaced = True  # type: ignore[attr-defined]  # by who has something to print


def _forget_processes() -> None:
    """What `multiprocessing` has started and counts no daemon lives on by itself: its own exit
    function, the first one, would wait for it, in a way that holds the hub and all others up."""
    if "multiprocessing.process" in sys.modules:
        import multiprocessing.process as started

        children = started._children  # type: ignore[attr-defined]
        children.difference_update([child for child in children if not child.daemon])


def _flush() -> None:
    """Write what was printed, if that can be done here: a signal may come in the midst of it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            stream.flush()


def _tell_overdue(error: sys.UnraisableHookArgs) -> None:
    if isinstance(error.exc_value, _Overdue):
        say_error(f"the exit function {error.object!r} takes too long: the next one is called")
    else:
        sys.__unraisablehook__(error)


#: The end of this process: signals and exit functions are the process's.
ending: typing.Final = Ending()
