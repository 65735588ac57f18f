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


def table(queue: str, processor: str, concurrency: int, name: str = "") -> str:
    named = f'name = "{name}"\n' if name else ""
    return (
        f'[[workers]]\nqueue = "{queue}"\nprocessor = "{processor}"\n'
        f"concurrency = {concurrency}\n{named}"
    )


HEAD = """
[connection]
url = "redis://:first@example.org/0"

[worker]
log_level = "info"
close_timeout = 5
drain_delay = 5

"""
A, B, C = ("a", "m:f", 1), ("b", "m:g", 2), ("c", "m:h", 3)
AT_RESTART = ", which takes effect at a restart"


@pytest.mark.parametrize(
    ("tables", "applied", "lines"),
    [
        ([B, A], [], []),
        ([A, B, C], [], ["worker of queue c: new"]),
        ([C, B, A], [], ["worker of queue c: new"]),
        ([B], [], ["worker of queue a: gone"]),
        (
            [("b", "m:g", 9)],
            [(1, 9)],
            ["worker of queue a: gone", "concurrency of queue b: 2 -> 9"],
        ),
        (
            [C, ("b", "m:g", 9), ("a", "m:f", 8)],
            [(0, 8), (1, 9)],
            [
                "concurrency of queue a: 1 -> 8",
                "concurrency of queue b: 2 -> 9",
                "worker of queue c: new",
            ],
        ),
        (
            [("b", "m:g", 2), ("b", "m:other", 7), ("a", "m:f", 4)],
            [(0, 4)],
            ["concurrency of queue a: 1 -> 4", "worker of queue b: new"],
        ),
        (
            [("b", "m:other", 2), A],
            [],
            ["processor of queue b: 'm:g' -> 'm:other'"],
        ),
        (
            [A, C],
            [(1, 3)],
            [
                "queue of queue b: 'b' -> 'c'",
                "processor of queue b: 'm:g' -> 'm:h'",
                "concurrency of queue b: 2 -> 3",
            ],
        ),
    ],
)
def test_tables_are_known_wherever_they_stand(
    file: File,
    capsys: pytest.CaptureFixture[str],
    tables: list[tuple[str, str, int]],
    applied: list[tuple[int, int]],
    lines: list[str],
) -> None:
    """What is new or gone waits for a restart; what changes in the others takes effect."""
    file.path.write_text(HEAD + "".join(table(*one) for one in tables))
    found = file.settings.read_anew() or []
    assert [(change.worker, change.now) for change in found] == applied
    told = [line.removesuffix(AT_RESTART) for line in said(capsys)]
    assert told == (lines or ["the settings were read anew, and are as before"])


def test_tables_of_one_queue_are_known_by_their_prefixes(
    file: File, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEVENTQ_PREFIX", raising=False)
    one, other = (table("q", "m:f", n) + f'prefix = "{name}"\n' for n, name in ((1, "x"), (2, "y")))
    file.path.write_text(HEAD + one + other)
    settings = Settings(cli._parser().parse_args(["worker", "--config", str(file.path)]))
    file.path.write_text(HEAD + other.replace("2", "7") + one)
    (change,) = settings.read_anew() or ()
    assert (change.worker, change.name, change.now) == (1, "concurrency", 7)
    file.path.write_text(HEAD + one + other.replace("2", "7").replace('"y"', '"z"'))
    assert settings.read_anew() == []
    assert said(capsys)[1:] == [f"prefix of queue q: 'y' -> 'z'{AT_RESTART}"]


def test_one_worker_instead_of_tables_is_told(
    file: File, capsys: pytest.CaptureFixture[str]
) -> None:
    file.path.write_text(HEAD + 'queue = "b"\nprocessor = "m:g"\nconcurrency = 9\n')
    (change,) = file.settings.read_anew() or ()
    assert (change.worker, change.now) == (1, 9)
    assert said(capsys) == [
        f"workers: '[[workers]]' -> 'one worker'{AT_RESTART}",
        f"worker of queue a: gone{AT_RESTART}",
        "concurrency of queue b: 2 -> 9",
    ]


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
