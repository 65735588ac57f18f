"""A small proxy in front of Redis that breaks connections the way networks do, on command.

    with Proxy(server_url) as proxy:
        queue = Queue("q", connection=proxy.url)
        lost = proxy.swallow_next(match=b"EVALSHA")    # executed, but nobody hears of it
        ...
        lost.wait()

It listens on 127.0.0.1 and understands where one RESP message ends, so that what is done is done
to exactly one request or one answer.  It runs in the hub of the thread that made it: clients that
block that thread never get an answer.  Greenlets: one that accepts, two per connection.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import urllib.parse

import gevent
import gevent.event
import gevent.server
import gevent.socket

__all__ = ["Match", "Proxy", "Trap"]

# What a trap waits for: bytes anywhere in the request as sent, or a function of them.
Match = bytes | collections.abc.Callable[[bytes], bool]


class Trap:
    """One thing that the proxy will do to one request or its answer."""

    def __init__(self, action: str, match: Match) -> None:
        self.action = action
        self._match = match
        self._reached = gevent.event.Event()
        self._released = gevent.event.Event()
        # The request it was, once reached.
        self.request: bytes | None = None

    @property
    def was_reached(self) -> bool:
        return self._reached.is_set()

    def wait(self, timeout: float = 20.0) -> bytes:
        """Wait until it has happened (for a hold: until the message is held) and return the
        request.  Raises `AssertionError` after `timeout` seconds."""
        assert self._reached.wait(timeout), f"no request for {self.action}({self._match!r})"
        assert self.request is not None
        return self.request

    def release(self) -> None:
        """Let go what a `hold_request` or `hold_answer` holds."""
        self._released.set()

    def wants(self, request: bytes) -> bool:
        return self._match(request) if callable(self._match) else self._match in request

    def take(self, request: bytes) -> None:
        self.request = request

    def hold(self) -> None:
        self._reached.set()
        self._released.wait()

    def done(self) -> None:
        self._reached.set()


class Proxy:
    """Forwards to the server at `target` (``unix://`` or ``redis://``), until told otherwise."""

    def __init__(self, target: str) -> None:
        self.retarget(target)
        self._server: gevent.server.StreamServer | None = None
        self._port = 0
        self._connections: set[_Connection] = set()
        self._traps: list[Trap] = []
        self._flowing = gevent.event.Event()
        self._flowing.set()
        # Seconds by which every answer is late.
        self.delay = 0.0
        # Answers come in parts: so many bytes, and the seconds after each.
        self.trickle: tuple[int, float] | None = None
        # The latest requests, as sent, in the order in which they came.
        self.requests: collections.deque[bytes] = collections.deque(maxlen=10_000)

    def retarget(self, target: str) -> None:
        """Lead new connections to another server; those there are stay, as behind a name or an
        address that a fail-over has moved."""
        parts = urllib.parse.urlsplit(target)
        self.lead_to(target)
        self._login = f"{parts.username or ''}:{parts.password}@" if parts.password else ""
        self._database = parts.path.strip("/") if parts.scheme != "unix" else ""

    # -- life ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The address for the code under test."""
        return f"redis://{self._login}127.0.0.1:{self._port}/{self._database or 0}"

    @property
    def connected(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    def lead_to(self, target: str) -> None:
        """Lead new connections to another server; those that there are stay."""
        parts = urllib.parse.urlsplit(target)
        self._unix = parts.path if parts.scheme == "unix" else None
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)

    def start(self) -> None:
        self.accept()

    def close(self) -> None:
        """Cut everything, listen no more, and return when every greenlet has ended."""
        self._flowing.set()
        for trap in self._traps:
            trap.release()
        self.refuse()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- the whole line --------------------------------------------------------------------

    def cut(self) -> None:
        """Close every connection there is; new ones are accepted."""
        for connection in list(self._connections):
            connection.cut()

    def refuse(self) -> None:
        """Close every connection, and refuse new ones until `accept()`."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        self.cut()
        gevent.joinall([part for one in list(self._connections) for part in one.greenlets])

    def accept(self) -> None:
        """Accept connections (again), on the same port."""
        if self._server is None:
            server = gevent.server.StreamServer(("127.0.0.1", self._port), self._serve)
            server.reuse_addr = 1
            server.start()
            self._server, self._port = server, server.server_port

    def stall(self) -> None:
        """Let nothing through in either direction, with the connections left open."""
        self._flowing.clear()

    def flow(self) -> None:
        """End a `stall`; what was held goes through now."""
        self._flowing.set()

    def half_open(self) -> None:
        """Half-open links: nothing gets through the connections there are, in either direction,
        and nobody closes them; new ones flow."""
        for connection in self._connections:
            connection.flowing.clear()

    def orphan(self) -> None:
        """Half-open links, the other way round: every client's end is closed, and the server goes
        on talking to nobody; new connections flow."""
        for connection in list(self._connections):
            connection.orphan()

    def cut_half_open(self) -> None:
        """Close what is left of half-open links."""
        for connection in list(self._connections):
            if connection.is_half_open:
                connection.cut()

    @contextlib.contextmanager
    def stalled(self) -> collections.abc.Iterator[None]:
        self.stall()
        try:
            yield
        finally:
            self.flow()

    @contextlib.contextmanager
    def refusing(self) -> collections.abc.Iterator[None]:
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    # -- single messages -------------------------------------------------------------------

    def swallow_next(self, match: Match = b"") -> Trap:
        """Forward the next request that matches, drop its answer, and cut that connection: the
        server did it, the client does not know."""
        return self._trap("swallow_next", match)

    def lose_next(self, match: Match = b"") -> Trap:
        """Cut the connection instead of forwarding the next request that matches: the server
        did nothing, the client does not know."""
        return self._trap("lose_next", match)

    def hold_request(self, match: Match = b"") -> Trap:
        """Keep back the next request that matches until `release()`."""
        return self._trap("hold_request", match)

    def hold_answer(self, match: Match = b"") -> Trap:
        """Forward the next request that matches, and keep its answer back until `release()`."""
        return self._trap("hold_answer", match)

    def remove_traps(self) -> None:
        """Let everything pass that no trap has caught yet."""
        self._traps.clear()

    def _trap(self, action: str, match: Match) -> Trap:
        trap = Trap(action, match)
        self._traps.append(trap)
        return trap

    # -- inside ----------------------------------------------------------------------------

    def _sprung_by(self, request: bytes) -> Trap | None:
        for trap in self._traps:
            if trap.wants(request):
                self._traps.remove(trap)
                trap.take(request)
                return trap
        return None

    def _serve(self, client: gevent.socket.socket, address: object) -> None:
        try:
            server = self._connected()
        except OSError:  # the server is down, and so are we for this client
            client.close()
            return
        if self._server is None:  # it was let in just before `refuse`
            client.close()
            server.close()
            return
        connection = _Connection(self, client, server)
        self._connections.add(connection)
        try:
            connection.run()
        finally:
            self._connections.discard(connection)

    def _connected(self) -> gevent.socket.socket:
        if self._unix is None:
            return gevent.socket.create_connection(self._address)
        server = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
        try:
            server.connect(self._unix)
        except OSError:
            server.close()
            raise
        return server


class _Connection:
    """One client and its line to the server."""

    def __init__(
        self, proxy: Proxy, client: gevent.socket.socket, server: gevent.socket.socket
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self.flowing = gevent.event.Event()  # what a half-open link never does again
        self.flowing.set()
        self._is_orphan = False  # the client's end is closed, the server does not know
        # Requests that were forwarded and not answered yet: None, or the trap for the answer.
        self._waiting: collections.deque[Trap | None] = collections.deque()
        self.greenlets = [gevent.Greenlet(self._requests), gevent.Greenlet(self._answers)]
        for greenlet, name in zip(self.greenlets, ("requests", "answers"), strict=True):
            greenlet.name = f"proxy-{name}"

    def run(self) -> None:
        for greenlet in self.greenlets:
            greenlet.start()
        gevent.joinall(self.greenlets)
        self._client.close()
        self._server.close()

    @property
    def is_half_open(self) -> bool:
        return self._is_orphan or not self.flowing.is_set()

    def orphan(self) -> None:
        self._is_orphan = True
        # Only an end that the other side closed already refuses this.
        with contextlib.suppress(OSError):
            self._client.shutdown(gevent.socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in (self._client, self._server):
            # Only an end that the other side closed already refuses this.
            with contextlib.suppress(OSError):
                end.shutdown(gevent.socket.SHUT_RDWR)
        gevent.killall(
            [one for one in self.greenlets if one is not gevent.getcurrent()], block=False
        )

    def _requests(self) -> None:
        for request in _messages(self._client):
            self._proxy.requests.append(request)
            trap = self._proxy._sprung_by(request)
            if trap is not None and trap.action == "lose_next":
                trap.done()
                break
            if trap is not None and trap.action == "hold_request":
                trap.hold()
                trap = None
            self._proxy._flowing.wait()
            self.flowing.wait()
            self._waiting.append(trap)
            if not _send(self._server, request):
                break
        if not self._is_orphan:
            self.cut()

    def _answers(self) -> None:
        for answer in _messages(self._server):
            # A message of a subscription answers nothing.
            trap = self._waiting.popleft() if self._waiting else None
            if trap is not None and trap.action == "swallow_next":
                trap.done()
                break
            if trap is not None:
                trap.hold()
            if self._proxy.delay:
                gevent.sleep(self._proxy.delay)
            self._proxy._flowing.wait()
            self.flowing.wait()
            if not _send(self._client, answer) and not self._is_orphan:
                break
        self.cut()


def _send(end: gevent.socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:  # that end is gone: the connection is over, which is not an error here
        return False
    return True


def _messages(end: gevent.socket.socket) -> collections.abc.Iterator[bytes]:
    """The RESP messages that arrive at `end`, whole, as bytes, until it ends."""
    buffer = bytearray()
    while True:
        start = 0
        while (stop := _end_of_message(buffer, start)) is not None:
            yield bytes(buffer[start:stop])
            start = stop
        del buffer[:start]
        try:
            received = end.recv(65536)
        except OSError:  # reset by the other side, or shut by `cut`
            return
        if not received:
            return
        buffer += received


def _end_of_message(buffer: bytearray, start: int) -> int | None:
    """Where the message that begins at `start` ends, or `None` while it is incomplete."""
    missing = 1  # values still to be read
    position = start
    while missing:
        line = buffer.find(b"\r\n", position)
        if line < 0:
            return None
        kind, length = buffer[position : position + 1], buffer[position + 1 : line]
        position = line + 2
        missing -= 1
        if kind in b"$=!" and int(length) >= 0:
            position += int(length) + 2
            if position > len(buffer):
                return None
        elif kind in b"*~>":
            missing += max(0, int(length))
        elif kind == b"%":
            missing += 2 * int(length)
    return position
