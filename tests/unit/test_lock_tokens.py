"""A lock token says who has the lock, if that worker listens (cancellation.md 5.1)."""

from __future__ import annotations

import pytest

from geventq.store.lock_tokens import beginning_for, number_in, worker_in


@pytest.mark.parametrize("worker_id", ["e87aec13-2625-430f-b73c-255f566d96b9", "a:b", "gq:7:7"])
@pytest.mark.parametrize("number", [1, 12345678901234567890])
def test_what_is_written_is_read(worker_id: str, number: int) -> None:
    """Whatever the worker is called."""
    lock_token = f"{beginning_for(worker_id)}{number}"
    assert (worker_in(lock_token), number_in(lock_token)) == (worker_id, number)


@pytest.mark.parametrize(
    "lock_token", ["", "gq:", "gq::1", "gq:a:", "gq:a:1b", "gq:a:-1", "GQ:a:1"]
)
def test_another_form_names_nobody(lock_token: str) -> None:
    """Node's tokens are ids with a number behind a colon; by hand a job is taken with any text."""
    assert worker_in(lock_token) is None
    assert worker_in("2f6f3a3e-8f3e-4c49-9d8a-5f1f7d6c1a55:3") is None
