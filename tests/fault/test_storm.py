"""All of it at once: see `tests.support.storm`.  `make soak` blows for minutes."""

from __future__ import annotations

import collections.abc

import pytest

from tests.support.storm import Storm

pytestmark = pytest.mark.slow


@pytest.fixture
def storm(
    redis_url: str, prefix: str, request: pytest.FixtureRequest
) -> collections.abc.Iterator[Storm]:
    storm = Storm(redis_url, prefix, request.param)
    yield storm
    storm.end()


@pytest.mark.parametrize("storm", [20261124], indirect=True)
def test_a_storm_leaves_every_job_in_one_state(storm: Storm) -> None:
    """1: whoever was told "cancelled" is never wrong, a job is never in two places, nothing is
    lost; no outcome is told twice; nothing is left in the workers or in Redis."""
    storm.blow(3.0)
    for _ in range(30):  # a slow machine has done less in that time
        if storm.counts["asked"] > 10 and storm.counts["lock_lost"] > 2:
            break
        storm.blow(1.0)
    storm.calm()
    assert storm.violations == []
    assert storm.counts["asked"] > 10
    assert storm.counts["lock_lost"] > 2
