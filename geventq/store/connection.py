"""One connection to Redis, used by one greenlet at a time.

redis-py connects, authenticates and selects the database, on gevent sockets of our own, so that
it works in unpatched processes too.  From then on requests are packed and replies parsed by
hiredis directly: one redis-py call costs 180-280 us of client CPU, this 3-10 us
(architecture.md, What things cost).  A link whose call did not end normally is closed and never
used again: the next answer on it would be somebody else's (cancellation.md 2.14).  In a forked
child it has lost its connection (`geventq.fork.connections`).
"""

from __future__ import annotations

import _socket
import contextlib
import ssl
import typing
import weakref

import gevent.monkey
import gevent.socket
import gevent.ssl
import hiredis
import redis
from gevent._hub_local import get_hub_if_exists
from redis.backoff import NoBackoff
from redis.retry import Retry

from geventq.errors import RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.endpoint import Endpoint

__all__ = ["Answer", "Connection", "Life", "life_of_this_thread", "lost_answer", "outage"]

Answer = typing.Any

CONNECT_TIMEOUT: typing.Final = 5.0

# Refusals that pass by themselves: outages like a lost connection (cancellation.md 3.7).
_OUTAGES: typing.Final = (
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "BUSY ",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "MISCONF",
    "OOM ",
)
_NEVER: typing.Final = object()


def outage(reply: object) -> bool:
    """Whether an error reply says that the server cannot serve for now."""
    return isinstance(reply, hiredis.HiredisError) and _is_outage(str(reply))


def _is_outage(text: str) -> bool:
    # A script's own error carries the cause behind its name: "... script: <hash>, on @...".
    return text.startswith(_OUTAGES) or "-OOM " in text


class _Sockets:
    """Makes redis-py connect on gevent's sockets."""

    def _connect(self) -> gevent.socket.socket:
        connection = typing.cast(typing.Any, self)
        path = getattr(connection, "path", None)
        since = fork.generation
        if path is not None:
            sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
            fork.watch(sock, since)
            try:
                sock.settimeout(CONNECT_TIMEOUT)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = _connected(connection.host, connection.port)
        fork.watch(sock, since)
        try:
            sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_KEEPALIVE, 1)
            if isinstance(self, redis.SSLConnection):
                return _encrypted(self, sock)
        except BaseException:
            sock.close()
            raise
        return sock


def _connected(host: str, port: int) -> gevent.socket.socket:
    """A socket to `host`.  An address in digits is not looked up: gevent's resolver would start a
    native thread for it, one for each hub, which stays."""
    try:
        family, kind, protocol, _, address = _socket.getaddrinfo(
            host, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST
        )[0]
    except OSError:  # a name
        return gevent.socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
    sock = gevent.socket.socket(family, kind, protocol)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class _TcpConnection(_Sockets, redis.Connection):
    pass


class _UnixConnection(_Sockets, redis.UnixDomainSocketConnection):
    pass


class _TlsConnection(_Sockets, redis.SSLConnection):
    pass


_CLASSES: typing.Final[dict[str, type[typing.Any]]] = {
    "tcp": _TcpConnection,
    "unix": _UnixConnection,
    "tls": _TlsConnection,
}


def _encrypted(options: typing.Any, sock: gevent.socket.socket) -> gevent.socket.socket:
    """Wrap `sock` in TLS by the options that redis-py parsed, on gevent's own context: that of
    `create_default_context` would block the hub in a process that is not patched."""
    context: typing.Any = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not (options.ca_certs or options.ca_path or options.ca_data):
        context.load_default_certs()
    context.check_hostname = options.check_hostname
    context.verify_mode = options.cert_reqs
    for flag in options.ssl_include_verify_flags or ():
        context.verify_flags |= flag
    for flag in options.ssl_exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if options.certfile or options.keyfile:
        context.load_cert_chain(
            options.certfile, options.keyfile, password=options.certificate_password
        )
    if options.ca_certs or options.ca_path or options.ca_data:
        context.load_verify_locations(options.ca_certs, options.ca_path, options.ca_data)
    if options.ssl_min_version is not None:
        context.minimum_version = options.ssl_min_version
    if options.ssl_ciphers:
        context.set_ciphers(options.ssl_ciphers)
    since = fork.generation
    encrypted = context.wrap_socket(
        sock, server_hostname=options.host, do_handshake_on_connect=False
    )
    fork.watch(encrypted, since)
    try:
        encrypted.do_handshake()
    except BaseException:
        encrypted.close()
        raise
    return typing.cast(gevent.socket.socket, encrypted)


class Life:
    """Something that a native thread holds to its end: thread ids are used again, this is not."""

    __slots__ = ("__weakref__",)


_of_thread: typing.Final = gevent.monkey.get_original("threading", "local")()


def life_of_this_thread() -> weakref.ref[Life]:
    """A reference that is dead when the native thread that calls has ended."""
    life = getattr(_of_thread, "life", None)
    if life is None:
        life = _of_thread.life = Life()
    return weakref.ref(life)


class Connection:
    """A connected, authenticated socket.

    Not shared: whoever holds it makes one `call` at a time, in the native thread that made it.
    """

    __slots__ = ("_busy", "_reader", "_sock", "_thread", "_timeout", "address", "idle_since")

    def __init__(self, sock: gevent.socket.socket, address: str) -> None:
        self._sock: gevent.socket.socket | None = sock
        self._reader = hiredis.Reader(notEnoughData=_NEVER)
        self._timeout: float | None = CONNECT_TIMEOUT
        self._thread = life_of_this_thread()
        self._busy = False  # a call is under way
        self.address = address
        self.idle_since = 0.0

    @classmethod
    def open(
        cls, endpoint: Endpoint, *, name: str | None = None, path: str | None = None
    ) -> Connection:
        """Connect to `endpoint`; `name` is set with ``CLIENT SETNAME``, `path` is the socket of an
        embedded server.  `Client.open_connection` knows it.  Yields to the hub.

        Raises `RedisUnavailableError` when the server cannot be reached or refuses us.
        """
        settings = dict(endpoint.settings)
        kind = endpoint.kind
        address = endpoint.describe()
        if path is not None:
            settings["path"] = path
        connection = _CLASSES[kind](
            **settings,
            client_name=name,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=CONNECT_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        try:
            connection.connect()
        except (redis.RedisError, OSError, ssl.SSLError) as error:
            raise RedisUnavailableError(
                f"Redis at {address} cannot be used: {_plain(error)}"
            ) from error
        sock, connection._sock = connection._sock, None  # ours from here on
        return cls(sock, address)

    @property
    def closed(self) -> bool:
        return self._sock is None

    def call(self, payload: bytes, count: int, timeout: float | None) -> list[Answer]:
        """Send `payload` (packed commands) and return its `count` replies.  Yields to the hub.

        Error replies stay in the list as `hiredis.ReplyError`.  Raises `RedisUnavailableError`
        with ``may_be_done = True`` when the connection broke or nothing came within `timeout`
        seconds (each wait): the commands may have been carried out.
        """
        self._busy = True  # before the look at the socket: `close` does the two the other way
        sock = self._sock
        if sock is None:
            raise lost_answer(f"the connection to Redis at {self.address} is closed", False)
        reader = self._reader
        whole = False
        try:
            if timeout != self._timeout:
                sock.settimeout(timeout)
                self._timeout = timeout
            sock.sendall(payload)
            replies: list[Answer] = []
            gets, recv, feed = reader.gets, sock.recv, reader.feed
            while True:
                reply = gets()
                if reply is not _NEVER:
                    replies.append(reply)
                    if len(replies) == count:
                        whole = True
                        return replies
                    continue
                data = recv(65536)
                if not data:
                    raise lost_answer(f"Redis at {self.address} closed the connection", True)
                feed(data)
        except (OSError, hiredis.ProtocolError) as error:
            if isinstance(error, RedisUnavailableError):
                raise
            raise lost_answer(f"Redis at {self.address}: {_plain(error)}", True) from error
        finally:
            self._busy = False
            if not whole or self._sock is None:  # also when the greenlet was killed in mid-call
                self._sock = None
                sock.close()

    def is_dead(self) -> bool:
        """Whether the server has hung up on this idle link.  Never yields."""
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


def lost_answer(text: str, sent: bool) -> RedisUnavailableError:
    """An outage; ``may_be_done`` tells whether the request may have been carried out."""
    error = RedisUnavailableError(text)
    error.may_be_done = sent
    return error


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__
