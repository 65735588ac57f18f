"""The files in conf/ are what they say: readable, whole, and consistent with each other."""

from __future__ import annotations

import pathlib
import re
import tomllib

import pytest

CONF = pathlib.Path(__file__).parents[2] / "conf"


def test_every_option_in_the_example_is_valid_when_its_comment_sign_is_removed() -> None:
    text = (CONF / "geventq.toml").read_text()
    assert tomllib.loads(text) == {"connection": {}, "worker": {}}, "as shipped it changes nothing"
    options = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert set(options["connection"]) == {"url", "prefix"}
    assert {"concurrency", "close_timeout", "lock_duration", "cancel_mode"} <= set(
        options["worker"]
    )


def test_systemd_waits_longer_than_the_worker_needs_to_close() -> None:
    """7.1: `close(t)` returns after t + max(kill_after, 1 s) + 4 s."""
    unit = (CONF / "geventq.service").read_text()
    close_timeout = float(re.search(r"--close-timeout (\d+)", unit)[1])  # type: ignore[index]
    stop = float(re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[1])  # type: ignore[index]
    assert stop > close_timeout + 1 + 4
    assert "KillSignal=SIGTERM" in unit


@pytest.mark.parametrize("name", ["geventq.toml", "geventq.service", "valkey-dev.conf"])
def test_the_files_are_commented(name: str) -> None:
    first = (CONF / name).read_text().splitlines()[0]
    assert first.startswith("# ")
