"""1, 3.6, 3.7, 7.2: processes, a server and links that break, once each; see `tests.fault.ordeal`.

``make soak`` goes on for minutes, with two faults at a time.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.fault.ordeal.faults import FAULTS, one_link_half_open
from tests.fault.ordeal.rounds import Rounds

# In both runs of the suite it would be the same: its processes are of their own, one is patched.
pytestmark = [pytest.mark.slow, pytest.mark.unpatched, pytest.mark.timeout(900)]


#: What is left out takes 10 s, and is nearly the sum of two others.
SHORT = [fault for fault in FAULTS if fault != one_link_half_open]


def test_whatever_breaks_nothing_is_lost_doubled_or_contradicted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, 3.6, 3.7: whoever was told an end is never wrong, no job is in two places, none is lost;
    all of it works again after each fault, without a flood in the log."""
    with Rounds(tmp_path) as rounds:
        rounds.go([(fault,) for fault in SHORT])
        rounds.close()
        with capsys.disabled():
            print(f"\n{rounds.table()}")
    assert rounds.violations == []
    # The faults were felt.
    for what in ("refused", "asked", "cancelled", "lock_lost", "retrying", "waited"):
        assert rounds.seen[what] > 0, (what, rounds.seen)
