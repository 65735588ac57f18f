"""The health port of a parent process, which has no gevent: it is served in the parent's own loop.

Owns the listening socket and its connections; what is answered is `geventq.health`'s.
"""

from __future__ import annotations

import contextlib
import socket
import time
import typing

from geventq.health import LIMIT, LONGEST, MOST, Place, answered, is_whole, opened

if typing.TYPE_CHECKING:
    from geventq.vigil import Report

__all__ = ["ParentPort"]


class _Request:
    """A connection, its request as far as it was read, and what is left of the answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read = b""
        self.answer = b""
        self.is_answered = False
        self.until = time.monotonic() + LIMIT


class ParentPort:
    """Listens from its making on.  Nothing here blocks."""

    def __init__(self, place: Place, report: typing.Callable[[], Report]) -> None:
        self._listening: socket.socket = opened(place, socket.socket)
        self._report = report
        self._requests: dict[int, _Request] = {}

    def waits_to_read(self) -> list[int]:
        """The descriptors to look at."""
        found = [number for number, one in self._requests.items() if not one.answer]
        return [*found, self._listening.fileno()] if len(self._requests) < MOST else found

    def waits_to_write(self) -> list[int]:
        """The same for writing."""
        return [number for number, one in self._requests.items() if one.answer]

    def turn(self, ready: typing.Container[int]) -> None:
        """Go on with those that are `ready`, and end those that take too long."""
        if self._listening.fileno() in ready:
            with contextlib.suppress(OSError):  # it has left already
                sock, _ = self._listening.accept()
                sock.setblocking(False)
                self._requests[sock.fileno()] = _Request(sock)
        now = time.monotonic()
        for number, one in list(self._requests.items()):
            try:
                goes_on = self._go_on(one) if number in ready else True
            except BlockingIOError:
                goes_on = True
            except OSError:
                goes_on = False
            if not goes_on or now > one.until:
                del self._requests[number]
                one.sock.close()

    def _go_on(self, one: _Request) -> bool:
        """Whether there is more to do."""
        if one.answer:
            one.answer = one.answer[one.sock.send(one.answer) :]
            if not one.answer:
                one.is_answered = True
                one.sock.shutdown(socket.SHUT_WR)  # what was not read must not cut the answer
            return True
        more = one.sock.recv(LONGEST)
        if one.is_answered or not more:
            return bool(more)
        one.read += more
        if is_whole(one.read):
            one.answer = answered(one.read, self._report)
        return True

    def close(self) -> None:
        """Answer no more."""
        self._listening.close()
        for one in self._requests.values():
            one.sock.close()
        self._requests.clear()
