"""``geventq worker --processes N``: a parent, and worker processes forked from it.

The parent starts no gevent, no Redis and no code of the user: it has nothing that a fork could
break, and it can hardly die.  It replaces a child that died, waits longer before each
replacement of a slot that keeps dying, passes on what signals ask for, and answers for all of
them: at the health port, and to systemd.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
import typing

from geventq.commands import terminal
from geventq.commands.children import Child, joined
from geventq.commands.console import say_error
from geventq.commands.ending import ending
from geventq.commands.lifeline import AT_ONCE, CLOSE, RELOAD, STACKS, Lifeline
from geventq.commands.parent_port import ParentPort
from geventq.deaths import Deaths
from geventq.systemd import Systemd
from geventq.vigil import INTERVAL

if typing.TYPE_CHECKING:
    from geventq.health import Place
    from geventq.vigil import Report

__all__ = ["ParentProcess"]

_NO_FORK: typing.Final = 30.0  # seconds before the next try, where the system starts no process

_SAID_AGAIN: typing.Final = 0.5  # seconds until a child that starts is told again to end

_USAGE: typing.Final = 2
_UNREACHABLE: typing.Final = 3
_ENDING: typing.Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: typing.Final = (*_ENDING, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class ParentProcess:
    """Keeps `count` worker processes alive, and answers for them at `health`.

    `reload` reads the settings anew and says whether that went well: then the children do.
    Raises `GeventqError` if the place is taken.
    """

    def __init__(self, count: int, health: Place | None, reload: typing.Callable[[], bool]) -> None:
        self._empty_slots: dict[int, float] = dict.fromkeys(range(count), 0.0)  # -> filled when
        self._children: dict[int, Child] = {}  # by slot
        self._deaths = [Deaths() for _ in range(count)]
        self._reload = reload
        self._asked = 0  # how often to close
        self._status = 0
        self._someone_worked = False
        self._systemd = Systemd.from_environment()
        self._port = None if health is None else ParentPort(health, self._report)
        self._turns = tempfile.TemporaryFile()  # noqa: SIM115 (for the life of the process)

    def run(self) -> int | Lifeline:
        """In the parent: the exit status, when all have ended.  In each child: its lifeline.

        Returns a number of times, once in each process.
        """
        with _Signals() as signals:
            while self._children or (self._empty_slots and not self._asked):
                lifeline = self._fill(signals)
                if lifeline is not None:
                    return lifeline
                self._tell()
                self._turn(signals)
        ending.ignore_signals()
        if self._port is not None:
            self._port.close()
        return self._status

    def _turn(self, signals: _Signals) -> None:
        """Wait until something happens, and do what it needs."""
        reports = [child.reports for child in self._children.values()]
        port = self._port
        reads = [signals.fileno(), *reports, *(port.waits_to_read() if port else ())]
        writes = port.waits_to_write() if port else []
        readable, writable, _ = select.select(reads, writes, [], self._until_next())
        for child in self._children.values():
            if child.reports in readable:
                child.listen()
        for number in signals.came():
            self._heed(number)
        self._reap()
        # Not in one turn: a worker that has just started takes two signals for "at once".
        if self._asked and not (readable or writable):
            for child in self._children.values():
                child.end_unless_ready()
        if port is not None:
            port.turn({*readable, *writable})

    def _until_next(self) -> float | None:
        """Seconds until there is something to do, whatever happens."""
        waits = []
        if self._empty_slots and not self._asked:
            waits.append(max(0.0, min(self._empty_slots.values()) - time.monotonic()))
        if self._asked and not all(child.was_ready for child in self._children.values()):
            waits.append(_SAID_AGAIN)
        if self._systemd is not None:
            waits.append(self._systemd.interval)
        elif self._port is not None:
            waits.append(INTERVAL)
        return min(waits, default=None)

    def _heed(self, number: int) -> None:
        """A signal has come."""
        if number in _ENDING or (number == signal.SIGHUP and terminal.is_gone()):
            self._close()
        elif number == signal.SIGHUP:
            self._read_anew()
        elif number == signal.SIGUSR1:
            self._order_all(STACKS)

    def _read_anew(self) -> None:
        with contextlib.nullcontext() if self._systemd is None else self._systemd.reloading():
            if self._reload():
                self._order_all(RELOAD)

    def _order_all(self, order: bytes) -> None:
        for child in self._children.values():
            child.order(order)

    # -- how they are ----------------------------------------------------------------------

    def _report(self) -> Report:
        lacking = len(self._empty_slots)
        return joined(self._children.values(), lacking=lacking, closes=self._asked > 0)

    def _tell(self) -> None:
        if self._systemd is not None:
            report = self._report()
            self._systemd.told(report, is_alive=report["live"])

    # -- starting --------------------------------------------------------------------------

    def _fill(self, signals: _Signals) -> Lifeline | None:
        if self._asked:
            return None
        now = time.monotonic()
        for slot in [slot for slot, due in self._empty_slots.items() if due <= now]:
            lifeline = self._start(slot, signals)
            if lifeline is not None:
                return lifeline
        return None

    def _start(self, slot: int, signals: _Signals) -> Lifeline | None:
        orders_out, orders_in = os.pipe()
        reports_out, reports_in = os.pipe()
        os.set_blocking(reports_out, False)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = -1
        with _held_back():  # a child must not meet a signal with its parent's handlers
            try:
                pid = os.fork()
            except OSError as error:
                self._empty_slots[slot] = time.monotonic() + _NO_FORK
                say_error(f"no worker process could be started: {error}")
            if pid == 0:
                signals.end()
                ending.leave_on_signals()
        if pid < 0:
            for descriptor in (orders_out, orders_in, reports_out, reports_in):
                os.close(descriptor)
            return None
        if pid:
            os.close(orders_out)
            os.close(reports_in)
            self._children[slot] = Child(pid, orders_in, reports_out)
            del self._empty_slots[slot]
            return None
        os.close(orders_in)
        os.close(reports_out)
        for sibling in self._children.values():
            sibling.forget()  # else it would not see the parent's end while we live
        if self._port is not None:
            self._port.close()
        os.environ.pop("NOTIFY_SOCKET", None)  # the parent speaks for all
        return Lifeline(orders_out, reports_in, self._turns)

    # -- ending ----------------------------------------------------------------------------

    def _close(self) -> None:
        self._asked += 1
        if self._systemd is not None:
            self._systemd.closes()
        for child in self._children.values():
            child.close(CLOSE if self._asked == 1 else AT_ONCE)

    def _reap(self) -> None:
        for slot, child in list(self._children.items()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self._children[slot]
                self._someone_worked = self._someone_worked or child.was_ready
                child.forget()
                self._ended(slot, child, os.waitstatus_to_exitcode(status))

    def _has_worked(self) -> bool:
        """Whether any worker has started, ever."""
        return self._someone_worked or any(child.was_ready for child in self._children.values())

    def _ended(self, slot: int, child: Child, code: int) -> None:
        if self._asked:
            if code and code != self._status:  # else it fails like the one that was told of
                say_error(f"worker process {child.pid} {_how(code)} while closing")
                self._status = self._status or 1
            return
        # Where nobody ever worked another one would only say the same again; later it may be a
        # passing outage, or a file in the midst of a deployment.
        if code in (_USAGE, _UNREACHABLE) and not self._has_worked():
            self._status = code
            self._close()
            return
        pause = self._deaths[slot].died(time.monotonic() - child.born)
        assert pause is not None, "a slot is never given up"
        self._empty_slots[slot] = time.monotonic() + pause
        say_error(f"worker process {child.pid} {_how(code)}; another one starts in {pause:g} s")


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


@contextlib.contextmanager
def _held_back() -> typing.Iterator[None]:
    """Signals that arrive in this block are delivered at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, signal.SIGHUP, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Signals:
    """The parent's signals, read from a pipe in its loop: none is missed between two waits."""

    def __enter__(self) -> _Signals:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        # The pipe first: a signal between the two must not be lost.
        self._wakeup = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in _HEARD}
        return self

    def fileno(self) -> int:
        """What can be read when signals have come."""
        return self._out

    def came(self) -> bytes:
        """The numbers of the signals that came.  Does not block."""
        try:
            return os.read(self._out, 4096)
        except BlockingIOError:
            return b""

    def end(self) -> None:
        """Undo what `__enter__` did.  Idempotent."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}
            os.close(self._out)
            os.close(self._in)

    def __exit__(self, *_: object) -> None:
        self.end()
