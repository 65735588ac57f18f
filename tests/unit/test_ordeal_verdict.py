"""The verdict on an ordeal: each thing that may never happen is seen, and nothing else."""

from __future__ import annotations

import json
import typing

import pytest

from tests.fault.ordeal.growth import growing
from tests.fault.ordeal.record import Line, Record, Records
from tests.fault.ordeal.verdict import judge

A, B = 100, 200  # two workers
PRODUCER: typing.Final = 300


def told(*script: tuple[int, str, typing.Any]) -> list[Line]:
    """Lines a second apart."""
    return [Line(10.0 + second, pid, tag, what) for second, (pid, tag, what) in enumerate(script)]


def added(serial: str = "s1", kind: str = "ticks", job_id: str = "1") -> list[typing.Any]:
    return [(PRODUCER, "adding", [serial, kind]), (PRODUCER, "added", [serial, job_id])]


def ran(pid: int, run: str, *events: str, kind: str = "ticks") -> list[typing.Any]:
    return [
        (pid, "start", [run, "1", "s1", kind]),
        *[(pid, "tick", [run])] * 3,
        (pid, "end", [run, "returned"]),
        *((pid, "told", [run, event, "s1"]) for event in events),
    ]


def stored(state: str = "completed", **fields: object) -> dict[str, dict[str, str]]:
    texts = {name: str(value) for name, value in ({"atm": 1} | fields).items()}
    return {"1": {"data": json.dumps({"serial": "s1"}), "state": state} | texts}


def violations(
    script: list[typing.Any],
    ended: dict[str, dict[str, str]],
    left: dict[str, list[str]] | None = None,
    losses: typing.Sequence[tuple[float, float]] = (),
) -> list[str]:
    verdict = judge(told(*script), ended, left or {}, [(0.0, "phase")], list(losses))
    assert sum(sum(one.values()) for one in verdict.counts.values()) >= len(verdict.violations)
    return [one.split(": ")[1] for one in verdict.violations]


START_A = (A, "start", ["a", "1", "s1", "ticks"])
START_B = (B, "start", ["b", "1", "s1", "ticks"])
TICK_A = (A, "tick", ["a"])


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        pytest.param([*added(), *ran(A, "a", "completed")], stored(), id="a plain run"),
        pytest.param(
            [*added(), START_A, TICK_A, *ran(B, "b", "completed")], stored(stc=1), id="stalled"
        ),
        pytest.param(
            [*added(), START_A, START_B, TICK_A, TICK_A, (B, "told", ["b", "completed", "s1"])],
            stored(stc=1),
            id="two late signs of life",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "cancelled"), *ran(B, "b", "completed")],
            stored(),
            id="given back",
        ),
        pytest.param(
            [(PRODUCER, "adding", ["s1", "quick"]), (PRODUCER, "refused", ["s1", False])],
            {},
            id="refused and not stored",
        ),
        pytest.param(
            [
                *[(PRODUCER, "adding", ["s1", "quick"]), (PRODUCER, "refused", ["s1", True])],
                *ran(A, "a", "completed"),
            ],
            stored(),
            id="perhaps, and stored",
        ),
        pytest.param(
            [
                *added(kind="obeys"),
                *ran(A, "a")[:2],
                (A, "asked", ["a", False]),
                (A, "told", ["a", "cancelled", "s1"]),
                (A, "told", ["a", "failed", "s1"]),
                (PRODUCER, "waited", ["s1", "failed", "Job cancelled"]),
            ],
            stored("failed"),
            id="cancelled for good",
        ),
        pytest.param(
            [*added(kind="later"), (PRODUCER, "cancelled", ["s1", "cancelled"])],
            stored("failed", atm=0),
            id="cancelled from afar before it ran",
        ),
        pytest.param(
            [
                *added(),
                (PRODUCER, "cancelled", ["s1", "requested"]),
                *ran(A, "a", "completed"),
            ],
            stored(),
            id="requested of a run that was about to begin, and that ignored it",
        ),
    ],
)
def test_what_is_in_order(script: list[typing.Any], ended: dict[str, dict[str, str]]) -> None:
    assert violations(script, ended) == []


@pytest.mark.parametrize(
    ("script", "ended", "column"),
    [
        pytest.param([*added(), *ran(A, "a", "completed")], {}, "lost", id="nowhere"),
        pytest.param(
            [*added(), START_A, START_B, *[TICK_A] * 3, (B, "told", ["b", "completed", "s1"])],
            stored(stc=1),
            "doubled",
            id="in two places",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "completed")],
            stored() | {"2": stored()["1"]},
            "doubled",
            id="stored twice",
        ),
        pytest.param(
            [(PRODUCER, "adding", ["s1", "quick"]), (PRODUCER, "refused", ["s1", False])],
            stored(),
            "doubled",
            id="refused and stored",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "completed"), *ran(B, "b")],
            stored(stc=1),
            "too often",
            id="after its end",
        ),
        pytest.param(
            [*added(), *ran(A, "a"), *ran(B, "b", "completed")],
            stored(),
            "too often",
            id="neither stalled nor given back",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "completed", "completed")],
            stored(),
            "too often",
            id="told twice",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "completed")], stored(atm=2), "too often", id="attempts"
        ),
        pytest.param(
            [
                *added(kind="obeys"),
                *ran(A, "a")[:2],
                (A, "asked", ["a", True]),
                (A, "told", ["a", "completed", "s1"]),
            ],
            stored(),
            "contradicted",
            id="asked, told completed",
        ),
        pytest.param(
            [
                *added(kind="obeys"),
                *ran(A, "a")[:2],
                (A, "asked", ["a", False]),
                (A, "told", ["a", "cancelled", "s1"]),
                (A, "told", ["a", "retrying", "s1"]),
            ],
            stored("failed"),
            "contradicted",
            id="asked for good, told retrying",
        ),
        pytest.param(
            [
                *added(),
                *ran(A, "a", "completed"),
                (PRODUCER, "waited", ["s1", "failed", "no such job"]),
            ],
            stored(),
            "contradicted",
            id="a waiter was told otherwise",
        ),
        pytest.param(
            [*added(), *ran(A, "a", "lock_lost")],
            stored(),
            "contradicted",
            id="completed, and told that the lock was lost",
        ),
        pytest.param(
            [*added(), (PRODUCER, "cancelled", ["s1", "cancelled"]), *ran(A, "a", "failed")],
            stored("failed"),
            "contradicted",
            id="cancelled from afar, and ran",
        ),
        pytest.param(
            [
                *added(),
                START_A,
                (PRODUCER, "cancelled", ["s1", "requested"]),
                START_B,
                *ran(A, "c", "failed"),
            ],
            stored("failed", stc=2),
            "contradicted",
            id="requested, and ran again and again",
        ),
    ],
)
def test_what_may_never_happen(
    script: list[typing.Any], ended: dict[str, dict[str, str]], column: str
) -> None:
    assert column in violations(script, ended)


def test_what_is_left_active_or_locked() -> None:
    script = [*added(), *ran(A, "a", "completed")]
    assert violations(script, stored(), {"active": ["1"], "locks": ["x"]}) == ["active"] * 2


def test_lost_data_excuse_what_was_added_before_and_nothing_else() -> None:
    script = [*added(), *added("s2", job_id="2")]  # at 10, 11, 12 and 13
    assert violations(script, {}, losses=[(11.0, 11.5)]) == ["lost"]
    assert violations(script, {}, losses=[(13.0, 13.5)]) == []


def sample(**figures: int) -> dict[str, int]:
    return {"memory": 40_000, "descriptors": 12, "greenlets": 20, "threads": 1} | figures


@pytest.mark.parametrize("name", ["memory", "descriptors", "greenlets", "threads"])
def test_what_grows_is_named(name: str) -> None:
    step = 6_000 if name == "memory" else 4
    growth = [sample(**{name: sample()[name] + step * number}) for number in range(12)]
    (found,) = growing(growth)
    assert found.startswith(name)


def test_what_comes_to_its_size_or_wavers_does_not_grow() -> None:
    sizes = [30_000, 38_000, 41_000, *[42_000, 43_500, 41_500] * 3]
    assert growing([sample(memory=size, greenlets=20 + size % 7) for size in sizes]) == []


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: typing.Any) -> None:
    """A process that is killed leaves whole lines, but one may be read while it is written."""
    record, records = Record(tmp_path), Records(tmp_path)
    record.write("start", ["a"])
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(text + text[:-5])
    assert [line.what for line in records.lines()] == [["a"]]
    file.write_text(text + text)
    assert [line.what for line in records.lines()] == [["a"], ["a"]]
    records.forget()
    record.write("end")
    assert [line.tag for line in records.lines()] == ["end"]
    record.close()
