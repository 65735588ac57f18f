"""1, 4, 5: jobs in every state are cancelled from afar in every way while what carries the requests
breaks; see `tests.fault.torture`.

``make soak`` plays rounds of 2,000 jobs, for minutes.
"""

from __future__ import annotations

import pathlib
import random

import pytest

from geventq.cancel_secret import VARIABLE
from tests.fault.torture.app import Plan
from tests.fault.torture.round import play

# In both runs of the suite it would be the same: its processes are of their own, two are patched.
pytestmark = [pytest.mark.slow, pytest.mark.unpatched, pytest.mark.timeout(600)]


def test_signed_requests_lose_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8: all processes have the secret, and it is as if nothing were signed."""
    monkeypatch.setenv(VARIABLE, "seven horses in a row")
    verdict = play(tmp_path, Plan(seed=random.randrange(1_000_000), jobs=200, seconds=4.0))
    assert verdict.violations == []
    for what in ("answers: stopped", "asked: forced", "asked: hard", "happened: killed"):
        assert verdict.counts[what] > 0, (what, verdict.counts)
    assert verdict.counts["stages: refused"] == 0


def test_who_was_told_that_a_job_is_cancelled_or_stopped_is_never_wrong(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, 4.1, 4.4, 4.5, 5.2, 5.4: no such job completes or runs on, none runs twice at once, each
    ends in one place, and each request in one of the outcomes that there are."""
    plan = Plan(seed=random.randrange(1_000_000), jobs=500, seconds=8.0)
    verdict = play(tmp_path, plan)
    with capsys.disabled():
        print(f"\n{plan}\n{verdict.table()}")
    assert verdict.violations == []
    # What it is about has happened.
    for what in (
        *("was: waiting", "was: delayed", "was: in back-off"),
        *("was: running softly", "was: running blocked", "was: running shielded"),
        *("answers: cancelled", "answers: requested", "answers: stopped", "answers: finished"),
        *("asked: forced", "asked: hard", "asked: soft", "asked: with retry"),
        *("happened: cut", "happened: killed"),
    ):
        assert verdict.counts[what] > 0, (what, verdict.counts)
