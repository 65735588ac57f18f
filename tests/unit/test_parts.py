"""``make test`` and ``make test-fast`` leave no file out: a new one is in one of their parts."""

from __future__ import annotations

import re
import typing

import pytest

from tests.support import parts
from tests.support.guides import ROOT

ALL: typing.Final = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*/**/test_*.py")
)


def _files(suite: str, *names: str) -> list[str]:
    """What the parts run, by file."""
    words = [word for name in names for word in parts.expanded(parts.SUITES[suite][name])]
    rooms = [word for word in words if word.startswith("tests/")]
    return [file for room in rooms for file in ALL if file == room or file.startswith(f"{room}/")]


@pytest.mark.parametrize(
    ("suite", "names"), [("whole", ("plain", "programs")), ("fast", tuple(parts.SUITES["fast"]))]
)
def test_the_plain_parts_are_the_whole_suite(suite: str, names: tuple[str, ...]) -> None:
    assert sorted(_files(suite, *names)) == ALL
    assert set(_files("whole", "patched")) < set(ALL)


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
