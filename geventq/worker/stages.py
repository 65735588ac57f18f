"""Telling those who wait for a cancellation how far it has come (cancellation.md 5.4).

A caller who waits reads the queue's events; each stage that his request reaches is one.  Stages
are reached in the hub, where nothing may touch Redis: one greenlet, owned and joined by the
worker, sends them, many in one round trip.
"""

from __future__ import annotations

import typing

from geventq import wakeups
from geventq.errors import GeventqError
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.store.client import Argument, Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.run.execution import Execution

__all__ = ["Stages"]

_MOST: typing.Final = 1000  # events that wait to be sent, and in one round trip
_STACK: typing.Final = 16 * 1024  # characters of a stack, the last ones


class Stages(Background):
    """Sends the stages of requests that somebody waits for."""

    def __init__(self, tell: Tell, client: Client, keys: QueueKeys, *, worker_id: str) -> None:
        super().__init__("stages", "telling the stages of cancellations", keys.name, tell, client)
        self._client = client
        self._keys = keys
        self._worker_id = worker_id
        self._news = wakeups.Event()
        self._waiting: list[tuple[Argument, ...]] = []

    def reached(self, execution: Execution, stage: str) -> None:
        """A job's cancellation has come to `stage`.  Does not yield."""
        if execution.heard is not None:
            self._add(execution, execution.heard.waiting, stage)

    def reached_by(self, execution: Execution, nonces: list[str], stage: str) -> None:
        """The requests `nonces` have.  Does not yield."""
        self._add(execution, nonces, stage)

    def refused(self, execution: Execution, nonces: list[str]) -> None:
        """The requests `nonces`, which are not signed, were carried out softly.  Told whether
        somebody waits or not (8).  Does not yield."""
        self._add(execution, nonces, "refused", event="cancel-refused")

    def stuck(self, execution: Execution, stack: str) -> None:
        """The job is alive although it was killed.  Does not yield."""
        if execution.heard is not None:
            shown = stack[-_STACK:].encode("utf-8", "backslashreplace")
            self._add(execution, execution.heard.waiting, "stuck", "stack", shown)

    def _add(
        self,
        execution: Execution,
        nonces: list[str],
        stage: str,
        *more: str | bytes,
        event: str = "cancel-stage",
    ) -> None:
        for nonce in nonces:
            told = ("event", event, "jobId", execution.job_id, "nonce", nonce)
            command = ("XADD", self._keys.events, "*", *told, "stage", stage)
            self._waiting.append((*command, "worker", self._worker_id, *more))
        if nonces:
            del self._waiting[:-_MOST]  # in a long outage; the end of the job is told in any case
            self._news.set()

    def stop(self) -> None:
        """Send what waits, once, and join the greenlet.  Idempotent.  Yields."""
        self._stop.set()
        self._news.set()
        super().stop()

    def _begin_anew(self) -> None:
        self._news.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._news.wait()
            self._news.clear()
            if self._waiting and not self._stop.is_set():
                self._send()
                self._outage.over()
        if self._waiting:
            try:
                self._send(timeout=2.0)
            except GeventqError as error:
                self._tell("error", error)

    def _send(self, timeout: float | None = None) -> None:
        """Twice is better than never: who waits keeps the last one."""
        sent = self._waiting[:_MOST]
        self._client.pipeline(sent, again=True, timeout=timeout)
        known = set(map(id, sent))
        self._waiting = [one for one in self._waiting if id(one) not in known]
