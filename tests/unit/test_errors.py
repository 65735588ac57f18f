"""Errors can be copied and pickled, as `multiprocessing` and test runners do."""

from __future__ import annotations

import copy
import pickle

import pytest

import geventq

ERRORS = [
    geventq.GeventqError("text"),
    geventq.RedisUnavailableError("text"),
    geventq.LockLostError("text"),
    geventq.UnrecoverableError("text"),
    geventq.DelayedError(1.5),
    geventq.RateLimitError(0.1),
    geventq.WaitingError(),
    geventq.WaitingChildrenError(),
    geventq.JobCancelled(geventq.Cancellation({"why": [1]}, "timeout", retry=False)),
    geventq.JobKilled(geventq.Cancellation(geventq.LockLost("17"), "lock_lost", hard=True)),
]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_copy(error: BaseException, how: object) -> None:
    error.add_note("a note")
    again = how(error)  # type: ignore[operator]
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_outage_keeps_what_it_tells() -> None:
    error = geventq.RedisUnavailableError("text")
    error.may_be_done = True
    assert pickle.loads(pickle.dumps(error)).may_be_done
