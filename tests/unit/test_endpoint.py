"""An address is said without its password, however malformed it is."""

from __future__ import annotations

import pytest

from geventq.store.endpoint import Endpoint, redact


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://user:secret@h:1/2", "redis://h:1/2"),
        ("rediss://:secret@[::1]:1/2", "rediss://[::1]:1/2"),
        ("unix:///run/redis?db=1&password=secret", "unix:///run/redis"),
        ("redis://:se/cret@h:1", "<unreadable url>"),
        ("user:secret@h:1", "***@h:1"),
    ],
)
def test_an_address_is_shown_without_its_credentials(url: str, said: str) -> None:
    assert redact(url) == said


@pytest.mark.parametrize(
    "url",
    [
        "http://u:secret@h",
        "u:secret@h:1",
        "redis://:secret/x@h:1",
        "redis://:secret@h:port",
        "redis://:secret@h:1/database",
        "redis+cluster://:secret@h:1",
        "redis://h:1?db=x&password=secret",
    ],
)
def test_a_malformed_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^connection: ") as raised:
        Endpoint.of(url)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None or "secret" not in str(raised.value.__cause__)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_an_endpoint_describes_itself_by_host_and_port(scheme: str) -> None:
    endpoint = Endpoint.of(f"{scheme}://user:secret@h:1/2")
    assert endpoint.describe() == "h:1"
    assert "secret" not in repr(endpoint)
