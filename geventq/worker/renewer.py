"""Keeping the locks of the jobs that this worker holds, and noticing the loss of one.

One greenlet renews all due locks in one call and stamps them *renewed* only after the answer,
with the time it was sent (cancellation.md 3.1).  A lock that the server says is gone or another's
is lost at once (3.2); one that could not be renewed is lost on our own clock before it can have
expired on the server (3.3), also when the hub was blocked so long that this greenlet comes late.
"""

from __future__ import annotations

import typing

from geventq import clock, wakeups
from geventq.errors import GeventqError
from geventq.store.limits import within
from geventq.store.scripts import load
from geventq.worker.background import Background
from geventq.worker.run.settle_call import SAFETY

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.run.execution import Execution

__all__ = ["Renewer"]

_RETRY: typing.Final = 0.5  # seconds between tries while Redis does not answer, at most
_BATCH: typing.Final = 1000  # locks a call


class LockLoser(typing.Protocol):
    """Who stops a run whose lock was lost: `geventq.worker.run.giving_up`."""

    def lock_lost(self, execution: Execution) -> None:
        """The lock of an attempt is not ours any more.  Must not yield."""


class Hears(typing.Protocol):
    """Who is told what is asked of jobs: `geventq.worker.run.hearing`.  Must not yield."""

    def record(self, execution: Execution, text: bytes) -> None:
        """This is recorded with the job."""

    def taken_away(self, execution: Execution, data: bytes) -> None:
        """Its lock was taken away by who wants the run killed: this is his message."""


class Renewer(Background):
    """Renews the locks of what is `held` (by lock token); owned and joined by the worker.

    `hear` is told what is asked of a job, `round_over` is called after each round; neither may
    yield.
    """

    def __init__(
        self,
        held: typing.Mapping[str, Execution],
        loser: LockLoser,
        hear: Hears,
        round_over: typing.Callable[[], None],
        tell: Tell,
        client: Client,
        keys: QueueKeys,
        *,
        lock_duration: float,
        renew_time: float,
        renews: bool,
    ) -> None:
        super().__init__("renewer", "renewing the locks", keys.name, tell, client)
        self._held = held
        self._loser = loser
        self._hear = hear
        self._round_over = round_over
        self._client = client
        self._keys = keys
        self._lock_ms = round(lock_duration * 1000)
        self._life = lock_duration * SAFETY
        self._period = renew_time / 2
        self._renews = renews
        self._script = load("renew")
        self._look = wakeups.Event()

    def stop(self) -> None:
        """End the greenlet and join it.  Idempotent.  Yields."""
        self._stop.set()
        self._look.set()
        super().stop()

    def extended(
        self, execution: Execution, sent_at: float, seconds: float, *, surely: bool
    ) -> None:
        """A lock lives `seconds` from `sent_at`, for once, or, unless `surely`, may: then what is
        shorter holds.  Does not yield."""
        stamp = self._stamp_of(sent_at, seconds)
        if not surely:
            stamp = min(stamp, execution.renewed_at)
        execution.stamp(stamp, sent_at)
        self._look.set()  # it may be lost before the next look

    def _stamp_of(self, sent_at: float, seconds: float) -> float:
        """The stamp for a lock that lives `seconds` from `sent_at`.  All locks are lost one
        `_life` after their stamps (3.3), so a longer one has a stamp that lies ahead."""
        return sent_at + seconds * SAFETY - self._life

    def _begin_anew(self) -> None:
        self._look.set()

    def _loop(self) -> None:
        pause = self._period
        while True:
            self._look.wait(pause)
            self._look.clear()
            if self._stop.is_set():
                return
            self._let_go(clock.monotonic())
            pause = self._period
            due = self._due(clock.monotonic()) if self._renews else []
            if not due:
                self._outage.rest()
            for first in range(0, len(due), _BATCH):
                try:
                    self._renew(due[first : first + _BATCH])
                except GeventqError as error:
                    if self._outage.failed(error):
                        self._tell("error", error)
                    pause = min(self._period, _RETRY)
                    break
                self._outage.over()
            self._round_over()
            pause = self._until_first_loss(pause)

    def _due(self, now: float) -> list[Execution]:
        """Executions whose lock has gone half a renewal time without a new stamp."""
        oldest = now - self._period * 0.95
        return [held for held in self._held.values() if held.renewed_at <= oldest]

    def _renew(self, due: list[Execution]) -> None:
        args: list[str | int] = [self._keys.base, self._lock_ms]
        for execution in due:
            args += (execution.job_id, execution.lock_token)
        # The next loss must be seen in time, whatever this call waits for: an answer, or the
        # connection on which to ask.
        limit = self._until_first_loss(max(1.0, self._period))
        sent = clock.monotonic()
        with within(limit, f"no answer within {limit:.3g} s"):
            answers, asked, taken = self._client.script(self._script, self._keys, args)
        held = self._held
        for execution, life_ms in zip(due, answers, strict=True):
            if life_ms:  # more than the usual where it was extended meanwhile
                execution.stamp(self._stamp_of(sent, life_ms / 1000), sent)
            elif held.get(execution.lock_token) is execution and not execution.settling:
                self._loser.lock_lost(execution)
        for number, record in asked:
            self._hear.record(due[number - 1], record)
        for number, message in taken:
            self._hear.taken_away(due[number - 1], message)

    def _let_go(self, now: float) -> None:
        """Treat as lost what may have expired on the server (3.3).  An attempt that has ended
        keeps its outcome: there the token test of the script decides (3.6)."""
        expired = now - self._life
        for execution in list(self._held.values()):
            if execution.renewed_at <= expired and not execution.settling:
                self._loser.lock_lost(execution)

    def _until_first_loss(self, pause: float) -> float:
        """`pause`, or less if a lock would be lost before."""
        oldest = min(
            (held.renewed_at for held in self._held.values() if not held.settling),
            default=None,
        )
        if oldest is None:
            return pause
        return max(0.001, min(pause, oldest + self._life - clock.monotonic()))
