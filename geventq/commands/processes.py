"""``geventq worker --processes N``: a parent, and worker processes forked from it.

The parent starts no gevent, no Redis and no code of the user: it has nothing that a fork could
break, and it can hardly die.  It replaces a child that died, waits longer before each
replacement of a slot that keeps dying, and passes the wish to close on.

That wish travels by a pipe to each child, not by a signal: a terminal's Ctrl-C and systemd's
``KillMode=control-group`` signal the children too, and twice would mean "at once".  The pipe's
end of file tells a child that its parent is gone, however it died.  A second pipe tells the
parent that the child's worker has started.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import tempfile
import time
import typing

from geventq.commands.console import say_error
from geventq.commands.ending import ending
from geventq.deaths import Deaths

if typing.TYPE_CHECKING:
    from geventq.supervisor import Supervisor
    from geventq.worker import Worker

__all__ = ["Lifeline", "ParentProcess"]

_CLOSE: typing.Final = b"c"  # with close_timeout
_AT_ONCE: typing.Final = b"0"
_NO_FORK: typing.Final = 30.0  # seconds before the next try, where the system starts no process

_USAGE: typing.Final = 2
_UNREACHABLE: typing.Final = 3
_ENDING: typing.Final = (signal.SIGTERM, signal.SIGINT)


class _Child:
    """A worker process as its parent sees it."""

    def __init__(self, pid: int, orders: int, readiness: int) -> None:
        self.pid = pid
        self._orders = orders
        self._readiness = readiness
        self._is_ready = False
        self.born = time.monotonic()

    @property
    def was_ready(self) -> bool:
        """Whether its worker has started, ever."""
        if not self._is_ready:
            with contextlib.suppress(BlockingIOError):
                self._is_ready = bool(os.read(self._readiness, 1))
        return self._is_ready

    def close(self, order: bytes) -> None:
        """Tell it to close.  One that has no worker yet is ended by a signal."""
        with contextlib.suppress(BrokenPipeError):  # it died just now: `_reap` will see it
            os.write(self._orders, order)
        if not self.was_ready:
            os.kill(self.pid, signal.SIGTERM)

    def forget(self) -> None:
        """Close our ends of its pipes."""
        os.close(self._orders)
        os.close(self._readiness)


class Lifeline:
    """A child's ends of its two pipes, and the file that it locks while it writes."""

    def __init__(self, orders: int, readiness: int, turns: typing.IO[bytes]) -> None:
        self._orders = orders
        self._readiness = readiness
        self.turns = turns
        self._greenlets: list[typing.Any] = []

    def hold(self, workers: list[Worker], supervisor: Supervisor | None) -> None:
        """Close the one worker, or the supervisor of several, when the parent says so or is gone;
        call before they start."""
        unready = set(workers)
        for worker in workers:
            worker.on("ready", functools.partial(self._ready, worker, unready, supervisor))

    def _ready(self, worker: Worker, unready: set[Worker], supervisor: Supervisor | None) -> None:
        if worker not in unready:
            return  # it was started again
        unready.remove(worker)
        if unready:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._readiness, b"r")
        self._spawn("orders", self._heed, worker, supervisor)

    def _spawn(self, name: str, call: typing.Callable[..., object], *args: object) -> None:
        import gevent

        greenlet = gevent.Greenlet(call, *args)
        greenlet.name = f"geventq-parent-{name}"
        self._greenlets.append(greenlet)
        greenlet.start()

    def _heed(self, worker: Worker, supervisor: Supervisor | None) -> None:
        from gevent.socket import wait_read

        order = _CLOSE
        while order == _CLOSE:
            wait_read(self._orders)
            order = os.read(self._orders, 1)
            if supervisor is not None:
                supervisor.begin_to_close(at_once=order == _AT_ONCE)
                continue
            timeout = 0.0 if order == _AT_ONCE else worker.options.close_timeout
            reason = "worker is closing" if order else "the parent process is gone"
            self._spawn("close", worker.close, timeout, reason)

    def release(self) -> None:
        """After the worker closed.  Yields."""
        import gevent

        gevent.killall(self._greenlets)


class ParentProcess:
    """Keeps `count` worker processes alive."""

    def __init__(self, count: int) -> None:
        self._empty_slots: dict[int, float] = dict.fromkeys(range(count), 0.0)  # -> filled when
        self._children: dict[int, _Child] = {}  # by slot
        self._deaths = [Deaths() for _ in range(count)]
        self._turns = tempfile.TemporaryFile()  # noqa: SIM115 (for the life of the process)
        self._asked = 0  # how often to close
        self._status = 0
        self._someone_worked = False

    def run(self) -> int | Lifeline:
        """In the parent: the exit status, when all have ended.  In each child: its lifeline.

        Returns a number of times, once in each process.
        """
        with _Signals() as signals:
            while self._children or (self._empty_slots and not self._asked):
                lifeline = self._fill(signals)
                if lifeline is not None:
                    return lifeline
                for number in signals.wait(self._until_next()):
                    if number in _ENDING:
                        self._close()
                self._reap()
        ending.ignore_signals()
        return self._status

    def _until_next(self) -> float | None:
        if self._asked or not self._empty_slots:
            return None
        return max(0.0, min(self._empty_slots.values()) - time.monotonic())

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
        readiness_out, readiness_in = os.pipe()
        os.set_blocking(readiness_out, False)
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
            for descriptor in (orders_out, orders_in, readiness_out, readiness_in):
                os.close(descriptor)
            return None
        if pid:
            os.close(orders_out)
            os.close(readiness_in)
            self._children[slot] = _Child(pid, orders_in, readiness_out)
            del self._empty_slots[slot]
            return None
        os.close(orders_in)
        os.close(readiness_out)
        for sibling in self._children.values():
            sibling.forget()  # else it would not see the parent's end while we live
        return Lifeline(orders_out, readiness_in, self._turns)

    # -- ending ----------------------------------------------------------------------------

    def _close(self) -> None:
        self._asked += 1
        for child in self._children.values():
            child.close(_CLOSE if self._asked == 1 else _AT_ONCE)

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

    def _ended(self, slot: int, child: _Child, code: int) -> None:
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
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
        self._before = {
            number: signal.signal(number, lambda *_: None) for number in (*_ENDING, signal.SIGCHLD)
        }
        return self

    def wait(self, seconds: float | None) -> bytes:
        """The numbers of the signals that came; empty when the time is over."""
        select.select([self._out], [], [], seconds)
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
