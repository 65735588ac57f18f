"""Where Redis is: what the user wrote as ``connection=``, understood once.

Owns the parsing of URLs and of ready redis-py clients, and the one way to say an address
without its password.  Opens nothing; `embedded:` is only joined when the first connection is made.
Does not import redis, so that a `Queue` may be made before a program is monkey-patched.
"""

from __future__ import annotations

import os
import re
import sys
import typing
import urllib.parse

if typing.TYPE_CHECKING:
    import redis

    Given = str | redis.Redis | redis.RedisCluster | None
    """What a user may hand in as ``connection=``, as type checkers see it."""

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
# What else a client may ask of its connections, and would not get of ours.
_NOT_KEPT: typing.Final = (
    *("redis_connect_func", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled"),
    *("ssl_ocsp_context", "ssl_ocsp_expected_cert"),
)
# Of a URL's query: settings of redis-py that are ours to choose.
_OURS: typing.Final = frozenset(
    """socket_timeout socket_connect_timeout socket_read_size retry_on_timeout retry_on_error
    max_connections health_check_interval timeout protocol client_name lib_name lib_version
    decode_responses encoding encoding_errors legacy_responses""".split()
)
_LATER: typing.Final = ("redis+sentinel", "redis+cluster")
_KINDS: typing.Final = {"redis": "tcp", "rediss": "tls", "unix": "unix"}
_FALSE: typing.Final = frozenset(("0", "f", "false", "n", "no"))  # as redis-py reads them


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
        redis = sys.modules.get("redis")  # who has a client has imported it
        if redis is not None and isinstance(connection, redis.Redis):
            return cls._of_client(redis, connection.connection_pool)
        if redis is not None and isinstance(connection, redis.RedisCluster):
            raise ValueError("connection: a RedisCluster client is not supported yet")
        raise TypeError(
            "connection: a URL, a redis.Redis client or None is needed, got "
            f"{type(connection).__name__}"
        )

    @classmethod
    def given(cls, connection: object) -> Endpoint | None:
        """What a constructor was given, understood there, so that what cannot be used is refused
        where it stands.  `None` stays: ``$GEVENTQ_REDIS_URL`` is what it says at the first call."""
        found = cls.of(connection)
        return None if connection is None else found

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
            if scheme in _KINDS:
                return cls(_KINDS[scheme], _settings(_KINDS[scheme], url))
        except _BadUrlError as error:
            raise ValueError(f"connection: {error}: {redact(url)}") from None
        except ValueError:  # its text may hold a piece of the password
            pass
        raise ValueError(
            "connection: the URL must be redis://, rediss://, unix:// or embedded: and "
            f"well-formed: {redact(url)}"
        )

    @classmethod
    def _of_client(cls, redis: typing.Any, pool: typing.Any) -> Endpoint:
        if isinstance(pool, redis.sentinel.SentinelConnectionPool):  # has no address of its own
            raise ValueError("connection: a client made by Sentinel is not supported yet")
        kinds = {
            redis.Connection: "tcp",
            redis.SSLConnection: "tls",
            redis.UnixDomainSocketConnection: "unix",
        }
        kind = kinds.get(pool.connection_class)
        if kind is None:
            raise ValueError(
                "connection: a client is needed whose connections are redis-py's own, got one of "
                f"{pool.connection_class.__name__}: geventq makes its own connections, and would "
                "reach another server than that client does"
            )
        settings = pool.connection_kwargs
        for name in _NOT_KEPT:
            if settings.get(name):
                raise ValueError(
                    f"connection: {name} of a client is not supported: geventq makes its own "
                    "connections, and would not heed it"
                )
        return cls(kind, {name: value for name, value in settings.items() if name in _TAKEN})

    def is_same_as(self, other: Endpoint) -> bool:
        """Whether both reach the same database as the same user."""
        mine, others = (self.kind, self._embedded), (other.kind, other._embedded)
        return mine == others and self.settings == other.settings

    def describe(self) -> str:
        """The address for people: host and port, or the socket; never a credential."""
        if self._embedded is not None:
            return self._embedded
        if self.kind == "unix":
            return str(self.settings["path"])
        host = self.settings.get("host", "localhost")
        return f"{host}:{self.settings.get('port', 6379)}"

    @property
    def server(self) -> tuple[object, ...]:
        """What tells one server from others, whoever connects, and to whatever database."""
        if self.kind == "unix":
            return ("unix", self._embedded or self.settings["path"])
        host, port = self.settings.get("host", "localhost"), self.settings.get("port", 6379)
        return ("tcp", host, port)

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


class _BadUrlError(ValueError):
    """Our own words about a URL, which hold nothing of it."""


def _settings(kind: str, url: str) -> dict[str, typing.Any]:
    """The settings in a URL, in the forms that redis-py has for it.  Raises `ValueError`."""
    parts = urllib.parse.urlsplit(url)
    if not url[len(parts.scheme) :].startswith("://"):
        raise _BadUrlError(f"{parts.scheme}:// is needed")
    database = urllib.parse.unquote(parts.path).strip("/")
    if kind != "unix" and not re.fullmatch("[0-9]*", database):
        # redis-py reads ``/abc`` as 0 without a word; a typo must not change the queue.
        raise _BadUrlError("the path must be a database number")
    settings = _of_query(parts.query)
    for name, given in (("username", parts.username), ("password", parts.password)):
        if given:
            settings[name] = urllib.parse.unquote(given)
    if kind == "unix":
        if parts.hostname or not parts.path.strip("/"):
            raise _BadUrlError("unix:// needs the path of a socket, which begins with a slash")
        settings["path"] = urllib.parse.unquote(parts.path)
        return settings
    if parts.hostname:
        host = settings["host"] = urllib.parse.unquote(parts.hostname)
        try:
            host.encode("idna")
        except UnicodeError:
            raise _BadUrlError("the host is no name and no address") from None
    if parts.port is not None:
        settings["port"] = parts.port
    if database:
        settings.setdefault("db", int(database))
    return settings


def _of_query(query: str) -> dict[str, typing.Any]:
    settings: dict[str, typing.Any] = {}
    for name, values in urllib.parse.parse_qs(query).items():
        if name in _OURS:
            continue
        if name not in _TAKEN or name in ("credential_provider", "socket_keepalive_options"):
            raise _BadUrlError("its query has a name that is not known")
        settings[name] = _of_text(name, values[0])
    return settings


def _of_text(name: str, text: str) -> typing.Any:
    if name in ("db", "port", "ssl_min_version"):
        if not re.fullmatch("[0-9]+", text):
            raise _BadUrlError(f"{name} must be a whole number")
        return int(text)
    if name in ("socket_keepalive", "ssl_check_hostname"):
        return text.lower() not in _FALSE
    if name == "ssl_cert_reqs" and text not in ("none", "optional", "required"):
        raise _BadUrlError("ssl_cert_reqs must be none, optional or required")
    if name in ("ssl_include_verify_flags", "ssl_exclude_verify_flags"):
        flags = [flag.strip() for flag in text.strip("[]").split(",")]
        if not all(re.fullmatch("VERIFY_[A-Z0-9_]+", flag) for flag in flags):
            raise _BadUrlError(f"{name} must be names of ssl.VerifyFlags")
        return flags
    return text
