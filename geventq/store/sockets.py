"""How redis-py connects: on gevent sockets, so that it works in unpatched processes too.

Owns the sockets' making, their TLS, and the settings that redis-py needs for its greeting.  What
is sent afterwards is `geventq.store.connection`'s.  In a forked child the sockets have lost their
connections (`geventq.fork.connections`).  No greenlets run here; connecting yields to the hub.
"""

from __future__ import annotations

import ssl
import typing

import gevent.socket
import gevent.ssl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from geventq.fork import connections as fork
from geventq.store.endpoint import Endpoint
from geventq.store.lookups import addresses

__all__ = ["connect"]


def connect(
    endpoint: Endpoint, *, name: str | None, path: str | None, limit: float
) -> gevent.socket.socket:
    """A socket on which the server has let us in, with the database selected.

    No step of it waits longer than `limit` seconds.  Raises what redis-py raises, and `OSError`.
    """
    settings = dict(endpoint.settings)
    if path is not None:
        settings["path"] = path
    made = _CLASSES[endpoint.kind](
        **settings,
        client_name=name,
        protocol=2,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=limit,
        socket_connect_timeout=limit,
    )
    try:
        made.connect()
    except BaseException:
        sock = made.given_away()
        if sock is not None:
            sock.close()
        raise
    return typing.cast(gevent.socket.socket, made.given_away())


class _Sockets:
    """Makes redis-py connect on gevent's sockets."""

    _sock: typing.Any

    def given_away(self) -> gevent.socket.socket | None:
        """The socket, which is ours from here on."""
        sock: gevent.socket.socket | None = self._sock
        self._sock = None
        return sock

    def _connect(self) -> gevent.socket.socket:
        settings = typing.cast(typing.Any, self)
        limit = settings.socket_connect_timeout
        path = getattr(settings, "path", None)
        since = fork.generation
        if path is not None:
            sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
            fork.watch(sock, since)
            try:
                sock.settimeout(limit)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = _connected(settings.host, settings.port, limit)
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


def _connected(host: str, port: int, limit: float) -> gevent.socket.socket:
    """A socket to the first address of `host` that takes us."""
    refused: OSError | None = None
    for family, kind, protocol, _, address in addresses(host, port):
        try:
            sock = gevent.socket.socket(family, kind, protocol)
        except OSError as error:  # this system has no such family
            refused = error
            continue
        try:
            sock.settimeout(limit)
            sock.connect(address)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            refused = error
        else:
            return sock
    raise refused or OSError(f"{host} has no address")


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
        context.verify_flags |= _flag(flag)
    for flag in options.ssl_exclude_verify_flags or ():
        context.verify_flags &= ~_flag(flag)
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


def _flag(flag: str | int) -> int:
    """A flag of ``ssl.VerifyFlags``, by its name from a URL or as a client has it."""
    return ssl.VerifyFlags[flag] if isinstance(flag, str) else flag
