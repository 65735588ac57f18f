"""What systemd is told of a process with workers, for units with ``Type=notify``: that it takes
jobs, that it lives, how many jobs run, that it closes.

Owns the socket ``$NOTIFY_SOCKET`` names; sd_notify(3) and systemd.service(5) say what is written
to it.  A send never blocks, and one that fails harms nobody: the next one comes a second later.
No greenlets of its own, but those of the `Vigil` that it is told by.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import os
import time
import typing

from geventq.signals import in_main_thread
from geventq.vigil import INTERVAL, Report, Vigil, Watched, status_line

__all__ = ["Herald", "Systemd", "telling"]

log = logging.getLogger("geventq")


class Herald(Watched, typing.Protocol):
    """What can say beforehand that it begins to close."""

    def before_closing(self, call: typing.Callable[[], object] | None) -> None:
        """`call` is called in the hub's thread before anything else happens, and must not yield.
        `None`: nothing is called any more."""


class Systemd:
    """The service manager of this process."""

    def __init__(self, address: str, watchdog: float | None) -> None:
        self._address = address
        self._pid = os.getpid()  # a forked child is another process
        #: Seconds between two signs of life; `None` if it wants none.
        self.watchdog = watchdog
        self._is_ready = False  # it knows
        self._closes = False
        self._last = ""
        self._failure: OSError | None = None  # of the last send
        self._is_told = False  # that sends fail

    @classmethod
    def from_environment(cls) -> Systemd | None:
        """The one that has started this process, if it wants to be told."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            if address:
                log.warning("$NOTIFY_SOCKET: a path or @name is needed, got %r", address)
            return None
        return cls(address, _watchdog())

    @property
    def interval(self) -> float:
        """Seconds between two reports."""
        return INTERVAL if self.watchdog is None else min(INTERVAL, self.watchdog)

    def told(self, report: Report, *, is_alive: bool = True) -> None:
        """Pass on how the workers are; with a sign of life if `is_alive`.  Does not yield."""
        said = []
        is_up = report["status"] in ("ready", "paused")
        if is_up and not self._is_ready and not self._closes:
            said.append("READY=1")
        status = status_line(report)
        if status != self._last:
            said.append(f"STATUS={status}")
        if is_alive and self.watchdog is not None:
            said.append("WATCHDOG=1")
        if said and self._send(*said):
            self._is_ready |= said[0] == "READY=1"
            self._last = status
        if self._failure is not None and not self._is_told:
            self._is_told = True
            log.info("systemd cannot be told at %s: %s", self._address, self._failure)

    def closes(self) -> None:
        """The process begins to close.  Does not yield."""
        if not self._closes:
            self._closes = True
            self._send("STOPPING=1", "STATUS=closing")

    @contextlib.contextmanager
    def reloading(self) -> typing.Iterator[None]:
        """In this block the settings are read anew; not while the process closes."""
        if self._closes:
            yield
            return
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")
        try:
            yield
        finally:
            self._send("READY=1")

    def _send(self, *lines: str) -> bool:
        name = self._address
        if os.getpid() != self._pid:
            return False
        try:
            sock = _socket.socket(  # not gevent's, which could yield
                _socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            )
            try:
                sock.sendto("\n".join(lines).encode(), f"\0{name[1:]}" if name[0] == "@" else name)
            finally:
                sock.close()
        except OSError as error:
            self._failure = error
            return False
        self._failure = None
        return True


def _watchdog() -> float | None:
    """Half of the time after which systemd holds this process for dead, in seconds."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


@contextlib.contextmanager
def telling(herald: Herald) -> typing.Iterator[None]:
    """In this block the service manager is told how `herald` is.  Outside the main thread, and in
    a process that none has started, it does nothing.  Yields at its end."""
    systemd = Systemd.from_environment() if in_main_thread() else None
    if systemd is None:
        yield
        return
    vigil = Vigil([herald], systemd.told, interval=systemd.interval)
    herald.before_closing(systemd.closes)
    vigil.start()
    try:
        yield
    finally:
        herald.before_closing(None)
        vigil.stop()
