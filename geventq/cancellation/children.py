"""Child processes that a job started end with it (cancellation.md 2.12).

`install` lets `subprocess.Popen`, and gevent's, and the processes of `multiprocessing` tell which
job's greenlet starts one.  A killed job's are asked to end (SIGTERM), with their own children, and
killed 2 s later.  A process in a session of its own (``start_new_session=True``) is left alone, and
so is one that a detached greenlet started, or a pool that the job did not make.

No greenlets of its own: who throws also asks, in the hub; a timer kills there; and the job's
greenlet waits in `EndingProcesses.join`.
"""

from __future__ import annotations

import functools
import os
import signal
import typing

import gevent
from gevent import monkey
from greenlet import getcurrent

from geventq.cancellation import tree, whose

__all__ = ["EndingProcesses", "ProcessKeeper", "ProcessOwner", "install"]

#: Seconds from SIGTERM to SIGKILL.
PATIENCE: typing.Final = 2.0


class ProcessKeeper(typing.Protocol):
    """What keeps a job's processes."""

    def adopt_process(self, process: typing.Any) -> None:
        """One of the job's greenlets is about to start a process."""

    def has_made(self, pool: object) -> bool:
        """Whether the job made that pool."""


class ProcessOwner(typing.Protocol):
    """Whose child it is: the attempt."""

    def belongings(self) -> ProcessKeeper:
        """Where it is kept."""


def install() -> None:
    """Notice child processes from now on.  Once per process."""
    import multiprocessing.process  # not before a program is monkey-patched

    import gevent.subprocess

    for kind in {monkey.get_original("subprocess", "Popen"), gevent.subprocess.Popen}:
        _watch_making(kind)
    _watch_starting(multiprocessing.process.BaseProcess)


def _watch_making(kind: typing.Any) -> None:
    make = kind.__init__

    @functools.wraps(make)
    def __init__(self: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> None:  # noqa: N807
        owner: ProcessOwner | None = tree.marked(getcurrent())
        if owner is not None and not kwargs.get("start_new_session"):
            owner.belongings().adopt_process(self)  # before it is there: a kill may land between
        make(self, *args, **kwargs)

    kind.__init__ = __init__


def _watch_starting(kind: typing.Any) -> None:
    begin = kind.start

    @functools.wraps(begin)
    def start(self: typing.Any) -> None:
        owner: ProcessOwner | None = tree.marked(getcurrent())
        if owner is not None:
            keeper = owner.belongings()
            # Pools start theirs when a call comes: whose those are is told by who made the pool.
            if whose.is_jobs_doing(self) or any(map(keeper.has_made, whose.callers_self(self))):
                keeper.adopt_process(_Multiprocess(self))
        begin(self)

    kind.start = start


class _Multiprocess:
    """A process of `multiprocessing`, seen as one of `subprocess`."""

    __slots__ = ("_process",)

    def __init__(self, process: typing.Any) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        try:
            return typing.cast(int | None, self._process.pid)
        except ValueError:  # closed, so it has ended
            return None

    def poll(self) -> int | None:
        """`None` while it runs.  Its own `exitcode` may wait in the hub, where this is called."""
        pid = self.pid
        return None if pid is None or _runs_as(pid) else 0


class EndingProcesses:
    """Processes that are told to end with their job."""

    __slots__ = ("_pids", "_processes", "_timer")

    def __init__(self, processes: list[typing.Any]) -> None:
        """Before the job gets its kill: `subprocess.run` for one then kills a shell at once, and
        nobody could tell any more what the shell had started."""
        self._processes = [one for one in processes if _is_to_end(one)]
        #: With all that they have started, each with the time of its start: ids are used again.
        self._pids: list[tuple[int, str]] = []
        for process in self._processes:
            self._pids += _with_descendants(process.pid)
        self._timer: typing.Any = None  # from SIGTERM to SIGKILL

    def ask(self) -> None:
        """Ask them to end.  In the hub, after the job itself got its kill."""
        if self._pids:
            self._send(signal.SIGTERM)
            self._timer = gevent.get_hub().loop.timer(PATIENCE)
            self._timer.start(self._kill)

    def join(self) -> None:
        """Wait until they have ended; a moment longer than the timer takes at most.  Yields."""
        while any(map(_runs, self._processes)) or any(map(_is_alive, self._pids)):
            if self._timer is None:  # killed: only the system can keep it now
                gevent.sleep(0.05)
                break
            gevent.sleep(0.005)
        self.stop()

    def stop(self) -> None:
        """Kill nobody any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _kill(self) -> None:
        """In the hub."""
        self.stop()
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        ours = [one.pid for one in self._processes if _runs(one)]
        for pid, started in self._pids:
            if pid in ours or _is_alive((pid, started)):
                try:
                    os.kill(pid, number)
                except OSError:  # it has ended, or runs as somebody else by now
                    continue


def _runs_as(pid: int) -> bool:
    if os.path.isdir("/proc/self"):
        return _start_time(pid) != ""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _runs(process: typing.Any) -> bool:
    # A Popen that failed, or that is just being made, lacks most attributes.
    return getattr(process, "pid", None) is not None and process.poll() is None


def _is_to_end(process: typing.Any) -> bool:
    try:
        return _runs(process) and os.getsid(process.pid) == os.getsid(0)
    except OSError:
        return False


def _with_descendants(pid: int) -> list[tuple[int, str]]:
    """`pid` and what it has started, as far as the system tells, without new sessions."""
    found, pending = [], [pid]
    session = os.getsid(0)
    while pending:
        one = pending.pop()
        try:
            if os.getsid(one) != session:
                continue
            found.append((one, _start_time(one)))
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as children:
                    pending += map(int, children.read().split())
        except OSError:  # it has ended, or there is no such file system
            continue
    return found


def _is_alive(one: tuple[int, str]) -> bool:
    pid, started = one
    return started != "" and _start_time(pid) == started


def _start_time(pid: int) -> str:
    """Tells a process from a later one with its id; empty if it has ended, and where the system
    does not say."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *others = stat.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else others[18]
