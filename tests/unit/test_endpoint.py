"""``connection=``: understood or refused without touching the network, and never with a secret."""

from __future__ import annotations

import pytest
import redis
import redis.sentinel

from geventq import Queue
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


def test_a_bad_url_is_told_at_the_first_call() -> None:
    """Not before: redis is imported for it, and `Queue` is made in programs that fork."""
    with pytest.raises(ValueError, match=r"^connection: "):
        Queue("q", "http://h").count()
