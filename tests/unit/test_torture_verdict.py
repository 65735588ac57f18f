"""The verdict on a torture: each thing that may never happen is seen, and nothing else."""

from __future__ import annotations

import typing

import pytest

from tests.fault.ordeal.record import Line
from tests.fault.torture.verdict import judge

A, B, CANCELLER = 100, 200, 300
HARD: typing.Final = {"hard": True, "retry": False}
RETRY: typing.Final = {"hard": True, "retry": True}
FORCE: typing.Final = {"force": True, "retry": False}

Script = list[typing.Any]
ADDED = (CANCELLER, "added", ["j1", "softly", False])
ENDLESS = (CANCELLER, "added", ["j1", "softly", True])
ASKED = (CANCELLER, "asked", [1, ["j1"], HARD])
DONE: typing.Final = {"atm": "1", "finishedOn": "1", "returnvalue": "1"}
CANCELLED: typing.Final = {
    "atm": "1", "finishedOn": "1", "failedReason": 'Job cancelled: {"torture": 1}'
}  # fmt: skip


def answered(status: str, how: dict[str, typing.Any] = HARD, job_id: str = "j1") -> Script:
    return [
        (CANCELLER, "asked", [1, [job_id], how]),
        (CANCELLER, "answered", [1, job_id, how, status, "active", None]),
    ]


def start(run: str) -> tuple[int, str, typing.Any]:
    return (A, "start", [run, "j1", "j1", "softly"])


def ticks(run: str, count: int = 3) -> Script:
    return [(A, "tick", [run])] * count


def told(run: str, event: str) -> tuple[int, str, typing.Any]:
    return (A, "told", [run, event, "j1"])


END = (A, "end", ["a", "failed"])
KILLED = (CANCELLER, "killed", A)
RAN: typing.Final = [start("a"), *ticks("a")]


def violations(script: Script, places: dict[str, list[str]], fields: dict[str, str]) -> list[str]:
    lines = [Line(10.0 + second, pid, tag, what) for second, (pid, tag, what) in enumerate(script)]
    return [one.split(":")[0] for one in judge(lines, places, {"j1": fields}).violations]


COMPLETED: typing.Final = ({"completed": ["j1"]}, DONE)
FAILED: typing.Final = ({"failed": ["j1"]}, CANCELLED)
AGAIN: typing.Final = ({"completed": ["j1"]}, DONE | {"atm": "2"})


@pytest.mark.parametrize(
    ("script", "end"),
    [
        pytest.param([ADDED, *RAN, told("a", "completed")], COMPLETED, id="a plain run"),
        pytest.param([*RAN, ADDED], COMPLETED, id="it ran before its add was answered"),
        pytest.param([ADDED, *answered("cancelled")], FAILED, id="cancelled, never ran"),
        pytest.param([ADDED, *RAN, *answered("stopped")], FAILED, id="stopped"),
        pytest.param([ADDED, *answered("requested"), *RAN], FAILED, id="asked at its beginning"),
        pytest.param([ADDED, *RAN, *answered("requested")], COMPLETED, id="it need not obey"),
        pytest.param(
            [ADDED, *RAN, KILLED, *answered("requested"), start("b")],
            ({"failed": ["j1"]}, CANCELLED | {"stc": "1"}),
            id="asked when it was taken again",
        ),
        pytest.param([ADDED, *RAN, *answered("stopped", RETRY), start("b")], AGAIN, id="retried"),
        pytest.param(
            [ADDED, *RAN, *answered("stopped", FORCE), *ticks("a")], FAILED, id="taken away"
        ),
        pytest.param(
            [ADDED, *RAN, start("b"), *ticks("a"), told("a", "lock_lost")],
            ({"completed": ["j1"]}, DONE | {"stc": "1"}),
            id="a lost lock",
        ),
        pytest.param(
            [ADDED, *RAN, *answered("not_found", job_id="nobody")], COMPLETED, id="unknown"
        ),
        pytest.param([ADDED, *RAN, *answered("unknown")], COMPLETED, id="Redis was gone"),
    ],
)
def test_what_may_happen_is_no_violation(
    script: Script, end: tuple[dict[str, list[str]], dict[str, str]]
) -> None:
    """4, 5: what the rules allow."""
    assert violations(script, *end) == []


@pytest.mark.parametrize(
    ("what", "script", "end"),
    [
        ("contradicted", [ADDED, *answered("cancelled"), *RAN], FAILED),
        ("contradicted", [ADDED, *RAN, *answered("cancelled")], COMPLETED),
        ("contradicted", [ADDED, *answered("cancelled", RETRY), *RAN], FAILED),
        ("contradicted", [ADDED, *RAN, *answered("stopped")], COMPLETED),
        ("contradicted", [ADDED, *RAN, *answered("stopped", FORCE)], COMPLETED),
        ("contradicted", [ADDED, *RAN, *answered("stopped"), *ticks("a")], FAILED),
        ("contradicted", [ADDED, *RAN, *answered("stopped", RETRY), *ticks("a")], FAILED),
        (
            "contradicted",
            [ADDED, *answered("requested"), start("a"), start("b")],
            ({"failed": ["j1"]}, CANCELLED | {"atm": "2"}),
        ),
        (
            "contradicted",
            [ADDED, *RAN, *answered("requested"), END, start("b")],
            ({"failed": ["j1"]}, CANCELLED | {"atm": "2"}),
        ),
        (
            "contradicted",
            [ADDED, *RAN, *answered("requested"), KILLED, start("b")],
            ({"failed": ["j1"]}, CANCELLED | {"stc": "1"}),
        ),
        ("contradicted", [ADDED, *RAN, *answered("completed")], FAILED),
        ("contradicted", [ADDED, *answered("finished"), *RAN], COMPLETED),
        ("contradicted", [ADDED, *RAN, *answered("not_found")], COMPLETED),
        ("contradicted", [ADDED, *RAN, *answered("requested", job_id="nobody")], COMPLETED),
        ("contradicted", [ENDLESS, *RAN], COMPLETED),
        ("contradicted", [ADDED, *RAN], FAILED),
        ("contradicted", [ADDED, *RAN, told("a", "failed")], COMPLETED),
        ("twice", [ADDED, *RAN, start("b"), *ticks("a")], AGAIN),
        ("twice", [ADDED, *RAN, start("b")], COMPLETED),
        ("twice", [ADDED, *RAN], ({"completed": ["j1"]}, DONE | {"atm": "3"})),
        ("twice", [ADDED, *RAN, *[told("a", "completed")] * 2], COMPLETED),
        ("misplaced", [ADDED, *RAN], ({}, DONE)),
        ("misplaced", [ADDED, *RAN], ({"active": ["j1"]}, DONE)),
        ("misplaced", [ADDED, *RAN], ({"completed": ["j1"], "wait": ["j1"]}, DONE)),
        ("misplaced", [ADDED, *RAN], ({"completed": ["j1"], "lock": ["j1"]}, DONE)),
        ("misplaced", [ADDED, *RAN], ({"completed": ["j1"], "failed": ["nobody"]}, DONE)),
        ("misplaced", [ADDED, *RAN], ({"completed": ["j1"]}, DONE | {"defa": "no"})),
        ("misplaced", [ADDED, *RAN], ({"completed": ["j1"]}, {"atm": "1"})),
        ("unanswered", [ADDED, *RAN, ASKED], COMPLETED),
        ("unanswered", [ADDED, *RAN, *answered("nonsense")], COMPLETED),
    ],
)
def test_what_may_never_happen_is_seen(
    what: str, script: Script, end: tuple[dict[str, list[str]], dict[str, str]]
) -> None:
    """1, 4.1, 4.4, 5.4: each promise that is broken is named."""
    assert what in violations(script, *end)
