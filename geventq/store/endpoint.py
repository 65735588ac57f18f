"""Where Redis is: what the user wrote as ``connection=``, understood once.

Owns the parsing of URLs and of ready redis-py clients, and the one way to say an address
without its password.  Opens nothing; `embedded:` is only joined when the first link is made.
"""

from __future__ import annotations

import os
import typing
import urllib.parse

import redis

__all__ = ["DEFAULT_URL", "Endpoint", "redact"]

DEFAULT_URL: typing.Final = "redis://127.0.0.1:6379/0"

# What of a ready client's settings decides where and as whom it connects.  Everything else
# (pool, retry, decode_responses, time-outs) is ours to choose.
_TAKEN: typing.Final = frozenset(
    """host port path db username password credential_provider socket_keepalive
    socket_keepalive_options ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_path
    ssl_ca_data ssl_check_hostname ssl_password ssl_min_version ssl_ciphers
    ssl_include_verify_flags ssl_exclude_verify_flags""".split()
)
_LATER: typing.Final = ("redis+sentinel", "redis+cluster")


def redact(url: str) -> str:
    """`url` without its password and without anything that may hold one: its query, and all of a
    URL that can be read in two ways (``redis://:12/34@host``: where does the password end?)."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "<unreadable url>"
    if "@" in parts.path + parts.query + parts.fragment:
        return "<unreadable url>"
    if ":" in host:
        host = f"[{host}]"
    return urllib.parse.urlunsplit((parts.scheme, host + port, parts.path, "", ""))


class Endpoint:
    """One Redis server and database, and the credentials for it.

    `kind` is ``tcp``, ``tls`` or ``unix``; `settings` are keyword arguments of the matching
    redis-py connection class.  Two endpoints that are equal share a pool.
    """

    __slots__ = ("_embedded", "kind", "settings")

    def __init__(
        self, kind: str, settings: dict[str, typing.Any], embedded: str | None = None
    ) -> None:
        self.kind = kind
        self.settings = settings
        self._embedded = embedded

    @classmethod
    def of(cls, connection: object = None) -> Endpoint:
        """Understand ``connection=``: a URL, a redis-py client, an `Endpoint`, or `None` for
        ``$GEVENTQ_REDIS_URL`` and then ``redis://127.0.0.1:6379/0``.

        Raises `ValueError` for a URL that cannot be used and `TypeError` for anything else.
        Does not touch the network.
        """
        if isinstance(connection, Endpoint):
            return connection
        if connection is None:
            connection = os.environ.get("GEVENTQ_REDIS_URL") or DEFAULT_URL
        if isinstance(connection, str):
            return cls._of_url(connection)
        pool = getattr(connection, "connection_pool", None)
        kwargs = getattr(pool, "connection_kwargs", None)
        if isinstance(connection, redis.Redis) and isinstance(kwargs, dict):
            return cls._of_client(typing.cast("redis.ConnectionPool", pool), kwargs)
        if isinstance(connection, redis.RedisCluster):
            raise ValueError("connection: a RedisCluster client is not supported yet")
        raise TypeError(
            "connection: a URL, a redis.Redis client or None is needed, got "
            f"{type(connection).__name__}"
        )

    @classmethod
    def _of_url(cls, url: str) -> Endpoint:
        scheme = url.split(":", 1)[0].lower()
        if scheme == "embedded":
            from geventq.embedded.directory import directory_of  # only where it is used

            directory_of(url)
            return cls("unix", {}, embedded=url)
        if scheme in _LATER:
            raise ValueError(f"connection: {scheme}:// is not supported yet: {redact(url)}")
        try:
            _check_shape(url)
            settings = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
        except _BadUrlError as error:
            raise ValueError(f"connection: {error}: {redact(url)}") from None
        except ValueError:  # its text may hold a piece of the password
            raise ValueError(
                "connection: the URL must be redis://, rediss://, unix:// or embedded: and "
                f"well-formed: {redact(url)}"
            ) from None
        kind = {"unix": "unix", "rediss": "tls"}.get(scheme, "tcp")
        settings.pop("connection_class", None)
        if kind == "unix" and not settings.get("path"):
            raise ValueError(f"connection: unix:// needs the path of a socket: {redact(url)}")
        return cls(kind, _only_taken(settings))

    @classmethod
    def _of_client(cls, pool: redis.ConnectionPool, kwargs: dict[str, typing.Any]) -> Endpoint:
        if isinstance(pool, redis.sentinel.SentinelConnectionPool):  # has no address of its own
            raise ValueError("connection: a client made by Sentinel is not supported yet")
        connection_class = pool.connection_class
        if issubclass(connection_class, redis.UnixDomainSocketConnection):
            kind = "unix"
        elif issubclass(connection_class, redis.SSLConnection):
            kind = "tls"
        else:
            kind = "tcp"
        return cls(kind, _only_taken(kwargs))

    def describe(self) -> str:
        """The address for people: host and port, or the socket; never a credential."""
        if self._embedded is not None:
            return self._embedded
        if self.kind == "unix":
            return str(self.settings["path"])
        host = self.settings.get("host", "localhost")
        return f"{host}:{self.settings.get('port', 6379)}"

    @property
    def embedded(self) -> str | None:
        """The ``embedded:`` URL, or `None`."""
        return self._embedded

    def _identity(self) -> tuple[object, ...]:
        return (
            self.kind,
            self._embedded,
            tuple(sorted((name, repr(value)) for name, value in self.settings.items())),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Endpoint) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"<Endpoint {self.kind} {self.describe()}>"


def _only_taken(settings: dict[str, typing.Any]) -> dict[str, typing.Any]:
    return {name: value for name, value in settings.items() if name in _TAKEN}


class _BadUrlError(ValueError):
    """Our own words about a URL, which hold nothing of it."""


def _check_shape(url: str) -> None:
    """redis-py reads ``/abc`` as database 0 without a word; a typo must not change the queue."""
    parts = urllib.parse.urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and database and not database.isdecimal():
        raise _BadUrlError("the path must be a database number")
