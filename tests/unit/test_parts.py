"""``make test`` and ``make test-fast`` leave no folder out: a new one is in one of their parts."""

from __future__ import annotations

import re

import pytest

from tests.support import parts
from tests.support.guides import ROOT


def _folders(suite: str, *names: str) -> list[str]:
    found = parts.SUITES[suite]
    return [word for name in names for word in found[name] if word.startswith("tests/")]


@pytest.mark.parametrize(
    ("suite", "names"), [("whole", ("plain", "programs")), ("fast", ("redis", "others"))]
)
def test_the_plain_parts_are_the_whole_suite(suite: str, names: tuple[str, ...]) -> None:
    there = {str(path.relative_to(ROOT).parent) for path in (ROOT / "tests").glob("*/**/test_*.py")}
    run = _folders(suite, *names)
    assert len(run) == len(set(run))
    assert {"/".join(path.split("/")[:2]) for path in there} == set(run)
    assert all(path.startswith(tuple(run)) for path in _folders("whole", "patched"))


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((0, 1), 1), ((0, 5), 0), ((5, 5), 1), ((1, 5), 1), ((0, -9), 1)],
    ids=str,
)
def test_one_part_that_fails_fails_all(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    statuses: tuple[int, ...],
    status: int,
) -> None:
    """And where nothing was chosen in any of them, nothing was tested."""
    text = "import os, sys; print('.. [ 50%]'); print('held', sys.argv[1:], flush=True); "
    ends = [f"os.kill(os.getpid(), {-one})" if one < 0 else f"sys.exit({one})" for one in statuses]
    programs = {f"part{number}": ("-c", text + end) for number, end in enumerate(ends)}
    monkeypatch.setitem(parts.SUITES, "whole", programs)
    assert parts.main("whole", ["-k", "x"]) == status
    out = capfd.readouterr().out
    assert len(re.findall(r"^part\d +\.\. \[ 50%\]$", out, re.M)) == len(statuses)
    in_full = len(re.findall(r"^held \['-k', 'x'\]$", out, re.M))
    assert in_full == sum(one not in (0, 5) for one in statuses)
    assert len(re.findall(r"^part\d +held \['-k', 'x'\]$", out, re.M)) == len(statuses)
