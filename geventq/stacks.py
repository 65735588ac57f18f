"""Where the jobs of a process are: at SIGUSR1 their stacks are printed to standard error, each with
its age and how far its cancellation has come.

The signal is handed to the hub, and a greenlet ``geventq-stacks`` prints.  Where the hub does not
turn, because a job computes, a native thread prints a moment later: that job's stack too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
import typing

import gevent
from gevent import monkey

from geventq.cancellation import tree
from geventq.hubs import get_ident
from geventq.signals import in_main_thread

__all__ = ["JobStacks", "WithJobs", "dump", "printed_on_signal", "shape_lines"]

_MOMENT: typing.Final = 1.0  # seconds that the hub has before a native thread prints
_ONCE: typing.Final = 0.5  # seconds in which several requests are one

_sleep: typing.Final = monkey.get_original("time", "sleep")
_start_thread: typing.Final = monkey.get_original("_thread", "start_new_thread")


class JobStacks(typing.NamedTuple):
    """One job that runs now."""

    queue: str
    job: str
    name: str
    attempt: int
    seconds: float
    """Since it was taken."""
    stage: str | None
    """How far its cancellation has come: ``seen``, ``grace``, ``thrown``, ``stuck``."""
    stacks: dict[str, str]
    """Of its greenlet and of those it started, by their names."""


class WithJobs(typing.Protocol):
    """A worker, or a supervisor of several."""

    def running_jobs(self, current: typing.Any = None) -> list[JobStacks]:
        """Its jobs; `current` is the frame of the greenlet that runs, where that is a job's."""


def _lines(jobs: typing.Sequence[JobStacks]) -> list[str]:
    count = f"{len(jobs)} job{'s' * (len(jobs) != 1)}"
    lines = [f"geventq: {count} in process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}"]
    for job in jobs:
        stage = "not cancelled" if job.stage is None else f"cancellation: {job.stage}"
        lines.append(
            f"queue {job.queue}, job {job.job} ({job.name}), attempt {job.attempt}, "
            f"for {job.seconds:.1f} s, {stage}"
        )
        for name, stack in job.stacks.items():
            lines += [f"  {name}:", *(f"  {line}" for line in stack.splitlines())]
    return lines


_shape: typing.Callable[[typing.Sequence[JobStacks]], list[str]] = _lines


def shape_lines(shape: typing.Callable[[typing.Sequence[JobStacks]], list[str]]) -> None:
    """From now on `shape` makes the lines."""
    global _shape
    _shape = shape


def _print(jobs: list[JobStacks]) -> None:
    """By one write: not through Python's file, in whose midst a signal may have come."""
    text = "\n".join(_shape(jobs)) + "\n"
    data = text.encode(errors="backslashreplace")
    with contextlib.suppress(OSError):  # nobody reads
        while data:
            data = data[os.write(2, data) :]


class _Printer:
    """Prints the jobs of `watched`, in the hub's thread it was made in or beside it."""

    def __init__(self, watched: WithJobs) -> None:
        self._watched = watched
        self._thread = get_ident()
        self._loop: typing.Any = gevent.get_hub().loop
        self._asked = 0
        self._done = 0  # of those asked for
        self._began = float("-inf")

    def ask(self, *_: object) -> None:
        """A signal's handler, or a call in the hub's thread.  Does not yield."""
        now = time.monotonic()
        if now - self._began < _ONCE:
            return
        self._began = now
        self._asked += 1
        here = functools.partial(self._print_here, self._asked)
        self._loop.run_callback(functools.partial(tree.apart, here, name="geventq-stacks"))
        _start_thread(self._print_beside, (self._asked,))

    def _print_here(self, number: int) -> None:
        if self._done < number:
            self._done = number
            _print(self._watched.running_jobs())

    def _print_beside(self, number: int) -> None:
        """In a native thread."""
        _sleep(_MOMENT)
        if self._done < number:
            self._done = number
            frame = sys._current_frames().get(self._thread)
            _print(self._watched.running_jobs(frame))


_printer: _Printer | None = None


def dump() -> None:
    """Print the stacks as if SIGUSR1 had come.  Does not yield."""
    if _printer is not None:
        _printer.ask()


@contextlib.contextmanager
def printed_on_signal(watched: WithJobs) -> typing.Iterator[None]:
    """In this block SIGUSR1 prints the stacks of the jobs of `watched`; not outside the main
    thread, and not in the place of a handler of the program's own."""
    global _printer
    if not in_main_thread() or not _is_free(signal.getsignal(signal.SIGUSR1)):
        yield
        return
    printer = _printer = _Printer(watched)
    before = signal.signal(signal.SIGUSR1, printer.ask)
    pid = os.getpid()
    try:
        yield
    finally:
        _printer = None
        if os.getpid() == pid and signal.getsignal(signal.SIGUSR1) == printer.ask:
            # The system's own would end a process to which the signal comes late.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if before == signal.SIG_DFL else before)


def _is_free(handler: typing.Any) -> bool:
    return handler in (signal.SIG_DFL, signal.SIG_IGN) or hasattr(handler, "may_be_replaced")
