"""One connection to Redis, used by one greenlet at a time.

Requests are packed and replies parsed by hiredis directly: one redis-py call costs 180-280 us of
client CPU, this 3-10 us (measured with redis-py 8.1).  A connection whose call did not end normally
is closed and never used again: the next answer on it would be somebody else's (cancellation.md
2.14).  So is one whose server says that it serves no more (`geventq.store.answers`).  No greenlets
run here.
"""

from __future__ import annotations

import contextlib
import typing

import gevent
import gevent.socket
import gevent.ssl
import hiredis
from gevent._hub_local import get_hub_if_exists

from geventq import clock
from geventq.errors import RedisUnavailableError
from geventq.store import sockets
from geventq.store.answers import Meaning, meaning_of
from geventq.store.endpoint import Endpoint
from geventq.store.hub_reading import HubReading
from geventq.store.limits import is_thrown
from geventq.store.threads import life_of_this_thread

__all__ = ["Answer", "Connection", "unavailable"]

Answer = typing.Any
Act = typing.Callable[[Answer], typing.Any]
"""What is done with a reply; what it answers is left of it."""

_NEVER: typing.Final = object()
_RECEIVE: typing.Final = 1 << 16  # bytes asked for at once
_SEND: typing.Final = 1 << 18  # bytes given to the system at once
_TURN: typing.Final = 1 << 20  # bytes received after which the hub gets a turn


class Connection:
    """A connected, authenticated socket.

    Not shared: whoever holds it makes one `call` at a time, in the native thread that made it.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_limit",
        "_reader",
        "_sock",
        "_thread",
        "address",
        "idle_since",
        "is_forsaken",
    )

    def __init__(self, sock: gevent.socket.socket, address: str) -> None:
        self._sock: gevent.socket.socket | None = sock
        self._reader = hiredis.Reader(notEnoughData=_NEVER)
        self._limit = -1.0  # seconds, as set on the socket
        self._thread = life_of_this_thread()
        self._busy = False  # a call is under way
        self.address = address
        self.idle_since = 0.0
        #: Its server answered that it serves no more; behind its address another one may.
        self.is_forsaken = False

    @classmethod
    def open(
        cls,
        endpoint: Endpoint,
        *,
        limit: float,
        name: str | None = None,
        path: str | None = None,
    ) -> Connection:
        """Connect to `endpoint` within `limit` seconds; `name` is set with ``CLIENT SETNAME``,
        `path` is the socket of an embedded server.  `Client.open_connection` knows it.  Yields.

        Raises `RedisUnavailableError` when the server cannot be reached or refuses us.
        """
        address = endpoint.describe()
        try:
            sock = sockets.connect(endpoint, name=name, path=path, limit=limit)
        except Exception as error:  # of the system, TLS, or who gives the credentials
            if is_thrown(error):
                raise
            text = f"Redis at {address} cannot be used: {_plain(error)}"
            raise RedisUnavailableError(text) from error
        return cls(sock, address)

    def __del__(self) -> None:
        """Nobody has it any more: a Ctrl-C took it from its caller at a bad moment."""
        self.close()

    @property
    def closed(self) -> bool:
        return self._sock is None

    def call(self, payload: bytes, count: int, limit: float) -> list[Answer]:
        """Send `payload` (packed commands) and return its `count` replies.  Yields to the hub.

        Replies that refuse stay in the list as `hiredis.ReplyError`.  Raises
        `RedisUnavailableError`: for a reply that tells of an outage, and when the connection broke
        or no byte moved for `limit` seconds, with ``may_be_done = True`` where `payload` was sent:
        of a command that it has not read to its end a server does nothing.
        """
        self._busy = True  # before the look at the socket: `close` does the two the other way
        sock = self._sock
        if sock is None:
            raise self._is_closed()
        whole = False
        may_be_done = count > 1  # some of several commands
        try:
            self._set_limit(sock, limit)
            try:
                if len(payload) > _SEND:
                    _send_in_turns(sock, payload)
                elif (sent := sock.send(payload)) < len(payload):
                    sock.sendall(payload[sent:])
            except OSError as error:
                if not is_thrown(error):
                    self._hear_last_words(sock)
                raise
            may_be_done = True
            answers, outage = self._receive(sock, count)
            whole = not self.is_forsaken
            if outage is not None:
                raise self._refusal(outage)
            return answers
        except (OSError, hiredis.ProtocolError) as error:
            if isinstance(error, RedisUnavailableError) or is_thrown(error):
                raise
            raise self._broken(error, may_be_done) from error
        finally:
            self._busy = False
            if not whole or self._sock is None:  # also when the greenlet was killed in mid-call
                self._sock = None
                sock.close()

    # -- where answers come by themselves ------------------------------------------------

    def send(self, payload: bytes, limit: float) -> None:
        """Send packed commands whose replies `receive` brings.  Yields and raises as `call`."""
        with self._in_use() as sock:
            self._set_limit(sock, limit)
            sock.sendall(payload)

    def receive(self, limit: float, act: Act | None = None) -> typing.Any:
        """The next reply, to whatever it is one; `None` if none came for `limit` seconds, and
        nothing is lost by that.  Yields and raises as `call`.

        `act`, if given, gets each reply first, in the hub where that is possible: it must not
        block, yield or log.  What it answers is returned, unless it is `None`: then that reply is
        dealt with.  What it raises is raised.
        """
        act = act or _as_it_is
        with self._in_use() as sock:
            answer = self._acted(act)
            if answer is not None:
                return answer
            if isinstance(sock, gevent.ssl.SSLSocket):
                return self._receive_encrypted(sock, limit, act)
            return HubReading(sock, lambda data: self._fed(data, act)).wait(max(limit, 0.001))

    def _receive_encrypted(self, sock: gevent.socket.socket, limit: float, act: Act) -> typing.Any:
        """The same where the socket does not show what can be read."""
        deadline = clock.monotonic() + limit
        answer = None
        while answer is None and (left := deadline - clock.monotonic()) > 0:
            self._set_limit(sock, left)
            try:
                answer = self._fed(sock.recv(_RECEIVE), act)
            except TimeoutError:
                return None
        return answer

    def _fed(self, data: bytes, act: Act) -> typing.Any:
        if not data:
            raise unavailable(f"Redis at {self.address} closed the connection", True)
        self._reader.feed(data)
        return self._acted(act)

    def _acted(self, act: Act) -> typing.Any:
        """What `act` leaves of the replies that are there."""
        gets = self._reader.gets
        while (reply := gets()) is not _NEVER:
            if isinstance(reply, hiredis.HiredisError):
                outage = self._judged(reply, None)
                if outage is not None:
                    raise self._refusal(outage)
            answer = act(reply)
            if answer is not None:
                return answer
        return None

    @contextlib.contextmanager
    def _in_use(self) -> typing.Iterator[gevent.socket.socket]:
        """The socket, which is closed if it fails in the block, or has been closed meanwhile."""
        self._busy = True  # as in `call`
        sock = self._sock
        if sock is None:
            raise self._is_closed()
        try:
            yield sock
        except (OSError, hiredis.ProtocolError) as error:
            self._sock = None
            if isinstance(error, RedisUnavailableError):
                raise
            raise self._broken(error) from error
        finally:
            self._busy = False
            if self._sock is None:
                sock.close()

    def _is_closed(self) -> RedisUnavailableError:
        return unavailable(f"the connection to Redis at {self.address} is closed", False)

    def _broken(self, error: Exception, may_be_done: bool = True) -> RedisUnavailableError:
        return unavailable(f"Redis at {self.address}: {_plain(error)}", may_be_done)

    def _set_limit(self, sock: gevent.socket.socket, limit: float) -> None:
        if limit != self._limit:
            sock.settimeout(max(limit, 0.001))  # 0 would mean not to wait for the system
            self._limit = limit

    # -- the parts of a call ---------------------------------------------------------------

    def _receive(
        self, sock: typing.Any, count: int
    ) -> tuple[list[Answer], hiredis.HiredisError | None]:
        """The answers, and the first that tells of an outage."""
        reader = self._reader
        answers: list[Answer] = []
        outage: hiredis.HiredisError | None = None
        gets, recv, feed = reader.gets, sock.recv, reader.feed
        received = 0
        # What was just asked is not there yet: to look for it first would cost more than to wait.
        # Below TLS nothing may come any more of what has been read already.
        waits = not isinstance(sock, gevent.ssl.SSLSocket)
        while True:
            answer = gets()
            if answer is not _NEVER:
                if isinstance(answer, hiredis.HiredisError):
                    outage = self._judged(answer, outage)
                answers.append(answer)
                if len(answers) == count:
                    break
                continue
            if waits:
                waits = False
                sock._wait(sock._read_event)
            data = recv(_RECEIVE)
            if not data:
                if self.is_forsaken:
                    break
                raise unavailable(f"Redis at {self.address} closed the connection", True)
            feed(data)
            if len(data) == _RECEIVE:
                received += _RECEIVE
                if received >= _TURN:
                    received = 0
                    gevent.sleep(0)
        return answers, outage

    def _judged(
        self, answer: hiredis.HiredisError, outage: hiredis.HiredisError | None
    ) -> hiredis.HiredisError | None:
        """The first outage among the answers; notes one that may pass only elsewhere."""
        meaning = meaning_of(answer)
        if meaning is Meaning.REFUSED:
            return outage
        if meaning is Meaning.ELSEWHERE:
            self.is_forsaken = True
        return answer if outage is None else outage

    def _hear_last_words(self, sock: gevent.socket.socket) -> None:
        """A server that is full says so, and hangs up before it reads: nothing was done.  Raises
        `RedisUnavailableError` then."""
        if isinstance(sock, gevent.ssl.SSLSocket):
            return
        raw: typing.Any = getattr(sock, "_sock", sock)
        try:
            self._reader.feed(raw.recv(_RECEIVE, gevent.socket.MSG_DONTWAIT))
        except OSError:  # nothing was said
            return
        answer = self._reader.gets()
        if isinstance(answer, hiredis.HiredisError) and self._judged(answer, None) is not None:
            raise self._refusal(answer)

    def _refusal(self, outage: hiredis.HiredisError) -> RedisUnavailableError:
        return unavailable(f"Redis at {self.address} refuses for now: {outage}", False)

    def is_dead(self) -> bool:
        """Whether the server has hung up on this idle connection.  Never yields."""
        sock = self._sock
        if sock is None:
            return True
        raw: typing.Any = getattr(sock, "_sock", sock)
        try:  # below TLS too: what comes there unasked is the end
            raw.recv(1, gevent.socket.MSG_PEEK | gevent.socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True  # end of file, or bytes that nobody asked for

    def close(self) -> None:
        """Close the socket, from whatever thread; a call under way ends.  Idempotent, never
        raises, never yields."""
        sock: typing.Any = self._sock
        self._sock = None
        if sock is None:
            return
        if sock.hub is get_hub_if_exists():
            sock.close()
        elif self._busy and self._thread() is not None:
            # Another thread's loop watches it, and must not be touched.  The end wakes the call,
            # which closes the socket.
            with contextlib.suppress(OSError):
                sock._sock.shutdown(gevent.socket.SHUT_RDWR)
        else:
            sock._sock.close()


def _as_it_is(reply: Answer) -> Answer:
    return reply


def _send_in_turns(sock: gevent.socket.socket, payload: bytes) -> None:
    """Each part has its own time, and the hub gets turns in between."""
    rest = memoryview(payload)
    while rest:
        rest = rest[sock.send(rest[:_SEND]) :]
        gevent.sleep(0)


def unavailable(text: str, may_be_done: bool) -> RedisUnavailableError:
    """An outage; `may_be_done` tells whether the call may have been carried out."""
    error = RedisUnavailableError(text)
    error.may_be_done = may_be_done
    return error


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__
