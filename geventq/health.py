"""The health port: ``GET /live`` and ``GET /ready`` by HTTP, for orchestrators and people.

Owns the answers, which `answered` makes of what was read, and `HealthPort`, which gives them in a
process with workers.  How these are is a `Vigil`'s business.  Greenlets: ``geventq-health``, which
accepts, ``geventq-health-answer`` for each request, and those of the vigil.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import json
import typing

import gevent

from geventq import wakeups
from geventq.checks import show
from geventq.errors import GeventqError
from geventq.fork import connections
from geventq.fork.workers import watch
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage
from geventq.vigil import Report, Vigil, Watched

if typing.TYPE_CHECKING:
    import gevent.socket

__all__ = ["LIMIT", "LONGEST", "HealthPort", "Place", "answered", "is_whole", "opened"]

LONGEST: typing.Final = 8192  # bytes of a request that are read
LIMIT: typing.Final = 5.0  # seconds for a request, from its first byte to the last of its answer
MOST: typing.Final = 100  # requests at once
_BACKLOG: typing.Final = 64


class Place(typing.NamedTuple):
    """Where a health port listens."""

    host: str
    port: int

    @classmethod
    def of(cls, value: object) -> Place:
        """``8080``, which is on 127.0.0.1, ``"0.0.0.0:8080"`` or ``"[::1]:8080"``.  Raises
        `ValueError` or `TypeError`."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"health_port: [HOST:]PORT is needed, got {show(value)}")
        host, colon, port = str(value).rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
        if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ValueError(f"health_port: [HOST:]PORT is needed, got {show(value)}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def opened(place: Place, make: typing.Callable[..., typing.Any]) -> typing.Any:
    """A socket, made by `make`, that listens at `place` and never blocks.  Raises `GeventqError`
    with the place if it cannot be had."""
    try:
        # The system's own look-up: gevent's would begin a thread for it.
        found = _socket.getaddrinfo(
            place.host, place.port, type=_socket.SOCK_STREAM, flags=_socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        sock = make(family, kind, protocol)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:
        raise GeventqError(f"health_port: {place}: {error}") from error
    return sock


def is_whole(read: bytes) -> bool:
    """Whether the head of a request has been read, or more than there should be."""
    return b"\r\n\r\n" in read or b"\n\n" in read or len(read) >= LONGEST


def answered(read: bytes, report: typing.Callable[[], Report]) -> bytes:
    """The answer to the request whose head begins with `read`."""
    words = read.partition(b"\n")[0].decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        return _response(400, {"error": "a request of HTTP is needed"}, "GET")
    method, path = words[0], words[1].partition("?")[0]
    if path not in ("/live", "/ready"):
        return _response(404, {"error": "there are /live and /ready"}, method)
    if method not in ("GET", "HEAD"):
        return _response(405, {"error": "GET is needed"}, method)
    said = report()
    is_well = said["ready" if path == "/ready" else "live"]
    return _response(200 if is_well else 503, said, method)


_REASONS: typing.Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed\r\nAllow: GET, HEAD",
    503: "Service Unavailable",
}


def _response(status: int, value: dict[str, typing.Any], method: str) -> bytes:
    body = json.dumps(value).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + body


class HealthPort:
    """Answers ``GET /live`` and ``GET /ready`` for `workers`: each a `Worker` or a `Supervisor`.

    `place` is a port, which then is on 127.0.0.1, or ``"HOST:PORT"``.  ``/live`` is answered with
    200 as long as the hub turns; ``/ready`` with 200 while Redis answers and all workers take jobs,
    else with 503.  The answer is JSON and tells how each worker is, and how many jobs run::

        with HealthPort(8080, worker):
            worker.run()

    so that it is the last to go.  Raises `ValueError` or `TypeError` for what is no place.
    """

    def __init__(self, place: int | str, *workers: Watched) -> None:
        self.place = Place.of(place)
        self._watched: list[Watched] = list(workers)
        self._vigil = Vigil(self._watched)
        self._stop = wakeups.Event()
        self._outage = Outage("answering at the health port", None, self._stop)
        self._socket: gevent.socket.socket | None = None
        self._accepting = Guarded(self._accept, "health", self._outage)
        self._answering: set[Guarded] = set()

    def watch(self, *workers: Watched) -> None:
        """Answer for these as well; before there is one, all are starting."""
        self._watched += workers

    def start(self) -> None:
        """Listen, and return.  Idempotent.  Raises `GeventqError` with the place if another
        program has it.  Does not yield."""
        if self._socket is not None:
            return
        import gevent.socket

        watch(self)
        self._stop.clear()
        self._socket = opened(self.place, gevent.socket.socket)
        connections.watch(self._socket, connections.generation)
        self.place = self.place._replace(port=self._socket.getsockname()[1])
        self._vigil.start()
        self._accepting.start()

    def close(self) -> None:
        """Answer no more.  Idempotent.  Yields."""
        if self._socket is None:
            return
        self._stop.set()
        self._vigil.stop()
        kill_all([self._accepting, *self._answering])
        self._socket.close()
        self._socket = None

    def die(self) -> list[typing.Any]:
        """In a forked child: the port is the parent's (cancellation.md 7.5)."""
        self._socket = None
        tasks = [self._accepting, *self._answering]
        return [task.greenlet for task in tasks if task.greenlet is not None]

    def __enter__(self) -> HealthPort:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        assert self._socket is not None
        while not self._stop.is_set():
            self._answering = {one for one in self._answering if not one.done.is_set()}
            if len(self._answering) >= MOST:
                self._stop.wait(0.1)
                continue
            self._socket.settimeout(None)
            sock, _ = self._socket.accept()
            connections.watch(sock, connections.generation)
            call = functools.partial(self._answer, sock)
            answer = Guarded(call, "health-answer", self._outage)
            self._answering.add(answer)
            answer.start()

    def _answer(self, sock: gevent.socket.socket) -> None:
        """One request; whatever becomes of its connection is the other side's business."""
        with (
            contextlib.closing(sock),
            contextlib.suppress(OSError, gevent.Timeout),
            gevent.Timeout(LIMIT),
        ):
            read = b""
            while not is_whole(read):
                more = sock.recv(LONGEST)
                if not more:
                    return
                read += more
            sock.sendall(answered(read, self._vigil.report))
            sock.shutdown(1)  # SHUT_WR: what was not read must not cut the answer
            while sock.recv(LONGEST):
                pass
