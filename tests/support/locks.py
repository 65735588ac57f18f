"""The locks of a test's queue, looked at and taken away from outside."""

from __future__ import annotations

import typing

__all__ = ["Locks"]


class Locks:
    """The locks of the test's queue, looked at from outside."""

    def __init__(self, redis_client: typing.Any, prefix: str) -> None:
        self._client = redis_client
        self._base = f"{prefix}:q"

    def left(self, job_id: str) -> float:
        """Seconds that a lock has left on the server; 0 without one."""
        return max(0, self._client.pttl(f"{self._base}:{job_id}:lock")) / 1000

    def shorten(self, job_id: str, seconds: float) -> None:
        """As if so much time had passed; a renewal gives it its whole life again."""
        self._client.pexpire(f"{self._base}:{job_id}:lock", int(seconds * 1000))

    def lose(self, job_id: str) -> None:
        self._client.delete(f"{self._base}:{job_id}:lock")

    def give_away(self, job_id: str) -> None:
        self._client.set(f"{self._base}:{job_id}:lock", "another worker's")

    def leave_as_a_dead_worker_does(self, job_id: str, **fields: str) -> None:
        """In *active*, with an attempt begun and without a lock."""
        self._client.lrem(f"{self._base}:wait", 0, job_id)
        self._client.lpush(f"{self._base}:active", job_id)
        self._client.hset(f"{self._base}:{job_id}", mapping={"ats": 1, "processedOn": 1, **fields})
