"""SIGHUP: what of the settings changes at once, what does not, and what is said of it."""

from __future__ import annotations

import pathlib

import pytest

from geventq import Worker, cli
from geventq.commands.reload import Settings, apply

TABLES = """
[connection]
url = "redis://:{secret}@example.org/0"

[worker]
log_level = "{level}"
close_timeout = {close}
drain_delay = {drain}

[[workers]]
queue = "a"
processor = "m:f"
concurrency = {a}

[[workers]]
queue = "b"
processor = "m:g"
concurrency = {b}
"""
BEFORE = {"secret": "first", "level": "info", "close": 5, "drain": 5, "a": 1, "b": 2}


class File:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.write()
        self.settings = Settings(cli._parser().parse_args(["worker", "--config", str(path)]))

    def write(self, **changed: object) -> None:
        self.path.write_text(TABLES.format(**BEFORE | changed))


@pytest.fixture
def file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> File:
    monkeypatch.delenv("GEVENTQ_REDIS_URL", raising=False)
    return File(tmp_path / "geventq.toml")


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.removeprefix("geventq: ") for line in capsys.readouterr().err.splitlines()]


def test_each_table_changes_by_itself(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    file.write(b=7)
    (change,) = file.settings.read_anew() or ()
    assert (change.worker, change.name, change.now) == (1, "concurrency", 7)
    assert said(capsys) == ["concurrency of queue b: 2 -> 7"]
    assert [one.options["concurrency"] for one in file.settings.plan.workers] == [1, 7]
    assert file.settings.read_anew() == []
    assert said(capsys) == ["the settings were read anew, and are as before"]


def test_what_cannot_change_is_said_each_time(
    file: File, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write(drain=9, level="error")
    (change,) = file.settings.read_anew() or ()
    assert (change.worker, change.name, change.now) == (None, "log_level", "error")
    later = [
        f"drain_delay of queue {name}: 5.0 -> 9.0, which takes effect at a restart"
        for name in ("a", "b")
    ]
    assert said(capsys) == ["log_level: 'info' -> 'error'", *later]
    assert file.settings.read_anew() == []
    assert said(capsys) == later


def test_a_worker_closes_by_the_new_time(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    workers = [Worker(name, lambda job: None, close_timeout=5) for name in ("a", "b")]
    file.write(close=9, a=4)
    apply(file.settings.read_anew() or (), workers)
    assert [worker.options.close_timeout for worker in workers] == [9.0, 9.0]
    assert [worker.concurrency for worker in workers] == [4, 1]
    assert workers[0].options.lock_renew_time == 15.0
    assert "close_timeout of queue a: 5.0 -> 9.0" in said(capsys)


def test_a_secret_is_not_shown(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    file.write(secret="second")
    assert file.settings.read_anew() == []
    assert said(capsys) == ["url: changed, which takes effect at a restart"]


def test_tables_come_and_go_at_a_restart(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    file.path.write_text(file.path.read_text() + '[[workers]]\nqueue = "c"\nprocessor = "m:h"\n')
    assert file.settings.read_anew() == []
    assert said(capsys) == ["workers: 2 -> 3, which takes effect at a restart"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[worker", "geventq.toml: "),
        ("[worker]\nspeed = 5", "worker.speed: unknown, got 5"),
        ("[[workers]]\nqueue = 'a'", "workers[0]: processor and queue are needed"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing(
    file: File, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    before = file.settings.plan
    file.path.write_text(text)
    assert file.settings.read_anew() is None
    (line,) = said(capsys)
    assert line.startswith("the settings stay as they are: --config: ")
    assert why in line
    file.path.unlink()
    assert file.settings.read_anew() is None
    assert file.settings.plan == before


def test_children_follow_in_silence(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    file.write(a=5)
    assert len(file.settings.read_anew(quietly=True) or ()) == 1
    assert said(capsys) == []
