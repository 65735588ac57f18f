"""Bringing back jobs whose worker died: a periodic check that all workers share
(wire-format 9.9, cancellation.md 3.5).  One greenlet, owned and joined by the worker.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.store.scripts import load
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell

__all__ = ["StalledChecker"]


class StalledChecker(Background):
    """Checks at start and then every `interval` seconds."""

    def __init__(
        self, tell: Tell, client: Client, keys: QueueKeys, *, interval: float, max_stalled: int
    ) -> None:
        super().__init__("stalled", "the stalled check", keys.name, tell, client)
        self._client = client
        self._keys = keys
        self._interval = interval
        self._max_stalled = max_stalled
        self._script = load("stalled")

    def _loop(self) -> None:
        while not self._stop.is_set():
            for job_id in self.check():  # a failure is lived through by `Background`
                self._tell("stalled", job_id)
            self._outage.over()
            self._stop.wait(self._interval)

    def check(self) -> typing.Iterator[str]:
        """Check once, in several calls where many jobs are active; yields the ids that went back
        to wait."""
        interval_ms = round(self._interval * 1000)
        stage, left = "begin", 0
        while stage != "done" and not self._stop.is_set():
            args: list[str | int] = [
                *(self._keys.base, clock.wall_ms(), interval_ms, self._max_stalled),
                *(stage, left),
            ]
            recovered, answer, left = self._client.script(self._script, self._keys, args)
            stage = answer.decode()
            yield from (job_id.decode("utf-8", "replace") for job_id in recovered)
