"""Reading a socket in the hub, while a greenlet waits for what is left to it.

What needs no greenlet is dealt with where it arrives: nobody is woken up for it, and no time limit
is set anew.  No greenlets run here.
"""

from __future__ import annotations

import typing

from gevent._waiter import Waiter

__all__ = ["HubReading"]

_RECEIVE: typing.Final = 1 << 14  # bytes a turn of the hub


class HubReading(Waiter):  # type: ignore[type-arg]
    """One wait of one greenlet, on a socket of gevent's without TLS.

    `act` gets the bytes as they come, none at the end of the stream, in the hub: it must not block,
    yield or log.  What it answers ends the wait, unless it is `None`, and so does what it raises.
    A waiter of gevent's: what closes the socket throws into it, and a fork knows whom it wakes.
    """

    __slots__ = ("_act", "_recv", "_sock")

    def __init__(self, sock: typing.Any, act: typing.Callable[[bytes], typing.Any]) -> None:
        super().__init__(sock.hub)
        self._sock = sock
        self._recv = sock._sock.recv
        self._act = act

    def wait(self, limit: float) -> typing.Any:
        """What `act` has answered, `None` after `limit` seconds.  Raises what it raises, and
        `OSError`.  Yields."""
        watcher = self._sock._read_event  # closing the socket ends a wait on this one
        timer = self._sock.hub.loop.timer(limit)
        try:
            timer.start(self.switch, None)
            watcher.start(self._readable)
            return self.get()
        finally:
            watcher.stop()
            timer.stop()
            timer.close()

    def _readable(self) -> None:
        """In the hub."""
        try:
            answer = self._act(self._recv(_RECEIVE))
        except BlockingIOError:
            return
        except BaseException as error:  # a Ctrl-C too: raised where it is waited  # noqa: BLE001
            self.throw(error)
        else:
            if answer is not None:
                self.switch(answer)
