"""``connection=``: understood or refused without touching the network, and never with a secret."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest
import redis
import redis.sentinel

from geventq import Job, Queue, QueueEvents, QueueEventsProducer, Worker
from geventq.store.endpoint import DEFAULT_URL, Endpoint, redact


@pytest.mark.parametrize(
    ("url", "kind", "address"),
    [
        ("redis://h", "tcp", "h:6379"),
        ("redis://u:sekret@h:1234/5", "tcp", "h:1234"),
        ("redis://:sek%2Fret@[::1]:1234/0", "tcp", "::1:1234"),
        ("redis://h/0?password=sekret&username=u", "tcp", "h:6379"),
        ("rediss://h:1/0?ssl_cert_reqs=none", "tls", "h:1"),
        ("unix:///tmp/socket?db=3", "unix", "/tmp/socket"),
        ("embedded:///some/dir", "unix", "embedded:///some/dir"),
    ],
)
def test_urls_and_what_is_told_of_them(url: str, kind: str, address: str) -> None:
    endpoint = Endpoint.of(url)
    assert (endpoint.kind, endpoint.describe()) == (kind, address)
    assert "sek" not in repr(endpoint) + redact(url)


def test_credentials_and_database_are_taken_from_the_url() -> None:
    settings = Endpoint.of("redis://u:sek%2Fret@h:1/5").settings
    assert settings == {"host": "h", "port": 1, "username": "u", "password": "sek/ret", "db": 5}


def test_none_is_the_variable_and_then_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEVENTQ_REDIS_URL", raising=False)
    assert Endpoint.of(None) == Endpoint.of(DEFAULT_URL)
    monkeypatch.setenv("GEVENTQ_REDIS_URL", "redis://h:7")
    assert Endpoint.of(None).describe() == "h:7"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "u:sekret@h:6379",
        "//u:sekret@h",
        "http://u:sekret@h",
        "redis://user:sekret",  # the host was forgotten
        "redis://:sekr/et@host:6379/0",  # a password that was not quoted
        "redis://:123/sekret@host:6379/0",
        "redis://u:sekret#x@h/0",
        "redis://u:sekret?x@h/0",
        "redis://u:sekret@h:99999/0",
        "redis://u:sekret@[::1/0",
        "redis://u:sekret@h/first",
        "redis://h/0?db=sekret",
        "unix://",
        "redis+sentinel://u:sekret@h:1/master",
        "redis+cluster://u:sekret@h:1",
        "embedded:relative/dir",
        "embedded:///",
        "embedded:///dir?x=y",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^connection: ") as caught:
        Endpoint.of(url)
    assert "sek" not in str(caught.value)
    assert "sek" not in redact(url) or "@" not in url


def test_of_a_ready_client_only_the_settings_are_taken() -> None:
    client = redis.Redis("h", 7, 2, password="sekret", decode_responses=True, socket_timeout=1)
    endpoint = Endpoint.of(client)
    assert (endpoint.kind, endpoint.describe()) == ("tcp", "h:7")
    assert endpoint.settings["password"] == "sekret"
    assert not {"decode_responses", "socket_timeout", "retry"} & endpoint.settings.keys()
    assert Endpoint.of(redis.Redis(unix_socket_path="/s")).describe() == "/s"
    assert Endpoint.of(redis.Redis("h", ssl=True)).kind == "tls"


def test_a_client_without_an_address_of_its_own_is_refused() -> None:
    """It would be read as a client of localhost."""
    client = redis.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("master")
    with pytest.raises(ValueError, match="Sentinel is not supported yet"):
        Endpoint.of(client)


@pytest.mark.parametrize("connection", [5, b"redis://h", object(), ["redis://h"]])
def test_anything_else_is_no_connection(connection: object) -> None:
    with pytest.raises(TypeError, match=r"^connection: "):
        Endpoint.of(connection)


@pytest.mark.parametrize(
    "make",
    [
        lambda connection: Queue("q", connection),
        lambda connection: Worker("q", print_job, connection),
        lambda connection: QueueEvents("q", connection),
        lambda connection: QueueEventsProducer("q", connection),
    ],
)
@pytest.mark.parametrize("connection", ["http://h", "redis://h/first", 5, object()])
def test_a_bad_connection_is_told_where_it_stands(
    make: typing.Callable[[object], object], connection: object
) -> None:
    """Not at the first call, which may be another module's."""
    with pytest.raises((ValueError, TypeError), match=r"^connection: "):
        make(connection)


def print_job(job: Job) -> None:
    print(job.id)


def test_a_queue_is_made_without_importing_redis() -> None:
    """A program may make its queues before it is monkey-patched."""
    program = """
import sys
from geventq import Queue, QueueEvents, Worker
for url in ("redis://u:p@h:1/2", "rediss://h?ssl_cert_reqs=none", "unix:///s", None):
    Queue("q", url), QueueEvents("q", url), Worker("q", lambda job: None, url)
print(*sorted({"redis", "hiredis", "socket", "ssl"} & set(sys.modules)))
"""
    before = "import sys, geventq.queue, geventq.worker.worker\n" + program.splitlines()[-1]
    told = [
        subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()
        for text in (before, program)
    ]
    assert told[1] == told[0]


@pytest.mark.parametrize("base", [redis.Connection, redis.SSLConnection])
def test_a_client_with_a_connection_class_of_its_own_is_refused(base: type) -> None:
    """It would be replaced by a connection to the host it names, without a word."""
    own = type("OwnConnection", (base,), {})
    pool = redis.ConnectionPool(connection_class=own, host="h")
    with pytest.raises(ValueError, match=r"^connection: .*OwnConnection"):
        Queue("q", redis.Redis(connection_pool=pool))


@pytest.mark.parametrize("setting", ["redis_connect_func", "ssl_validate_ocsp"])
def test_a_client_that_asks_more_of_its_connections_is_refused(setting: str) -> None:
    pool = redis.ConnectionPool(host="h", **{setting: print})
    with pytest.raises(ValueError, match=setting):
        Queue("q", redis.Redis(connection_pool=pool))


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://h?pasword=sekret", "query"),
        ("redis://h?db=-1", "db"),
        ("redis://h?db=1.5", "db"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("rediss://h?ssl_include_verify_flags=sekret", "ssl_include_verify_flags"),
        ("rediss://h?ssl_validate_ocsp=true", "query"),
        ("redis://a..b", "host"),
        ("redis:h", "//"),
        ("unix://tmp/socket", "slash"),
    ],
)
def test_what_redis_py_would_tell_at_the_first_call_is_told_at_once(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Queue("q", url)
    assert "sekret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:7/3",
        "redis://u%40x:p%2F%C3%A9@h:7/3?db=4",
        "redis://h?socket_keepalive=no&ssl_ciphers=a%2520b",
        "rediss://h/0?ssl_check_hostname=false&ssl_cert_reqs=none&ssl_min_version=771",
        "unix://u:p@/tmp/a%20b?db=3",
        "redis://[::1]:7",
        "redis://h?socket_timeout=3&max_connections=4",
    ],
)
def test_a_url_means_what_it_means_to_redis_py(url: str) -> None:
    theirs = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    ours = Endpoint.of(url).settings
    assert ours == {name: value for name, value in theirs.items() if name in ours}
    assert set(theirs) - set(ours) <= {"connection_class", "socket_timeout", "max_connections"}
