"""Taking jobs and settling attempts, many in one call.

A few *lanes* (greenlets) make the calls.  A lane that is free sends at once what has ended, and
asks in the same call for as many jobs as there are free slots; while its call is under way the
next batch gathers.  So a single job has no added delay, and a hundred cost one call.

An answer that was lost may stand for a call that was carried out (cancellation.md 3.6): outcomes
are sent again with the counters of their take, and no job is taken before the worker has asked
which ids in *active* are locked with the lock tokens it had sent.
"""

from __future__ import annotations

import typing

import gevent
import gevent.event
from gevent import get_hub, getcurrent

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.outage import Outage
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.connection import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.execution import Execution
    from geventq.worker.outcome import Outcome

__all__ = ["Intake"]

_LANES: typing.Final = 4
_BATCH: typing.Final = 500  # outcomes and jobs a call
_OURS: typing.Final = (0, 1)  # settled now, or by the call whose answer was lost

Settled = tuple["Execution", "Outcome"]


class Host(typing.Protocol):
    """What takes and settles: the worker.  None of these yields."""

    @property
    def concurrency(self) -> int:
        """How many jobs run at once."""

    def room(self) -> int:
        """Free slots, not counting what is asked for already."""

    def taken(self, jobs: list[tuple[str, str, list[bytes]]], sent_at: float) -> None:
        """Jobs that are ours now: id, lock token, hash as before the take."""

    def broken(self, job_id: str, why: str) -> None:
        """An id without a readable hash was dropped."""

    def settled(self, execution: Execution, outcome: Outcome) -> None:
        """The outcome is in Redis."""

    def refused(self, execution: Execution, outcome: Outcome, code: int) -> None:
        """The outcome was refused: the lock was lost, or the job is gone."""

    def dry(self, next_ms: int, limited_ms: int) -> None:
        """There was less to take than asked for."""

    def error(self, error: BaseException) -> None:
        """Tell an error."""


class Intake:
    """The lanes of one worker; owned, started and joined by it."""

    def __init__(
        self,
        host: Host,
        client: Client,
        keys: QueueKeys,
        *,
        worker_id: str,
        worker_name: str,
        lock_duration: float,
    ) -> None:
        self._host = host
        self._client = client
        self._keys = keys
        self._script_keys = [
            *(keys.wait, keys.active, keys.prioritized, keys.delayed, keys.completed),
            *(keys.failed, keys.stalled, keys.meta, keys.pc, keys.marker, keys.events),
            keys.limiter,
        ]
        self._lock_base = f"{worker_id}:"
        self._next_lock = 1
        self._lock_ms = round(lock_duration * 1000)
        self._worker_name = worker_name
        self._pending: list[Settled] = []
        self._lost_takes: list[tuple[int, int]] = []  # first lock number, how many
        self._parked: list[typing.Any] = []
        self._stopping = False
        self._stop = gevent.event.Event()
        self._script, self._recover_script = load("settle"), load("recover")
        self._outage = Outage("taking and settling jobs", keys.name, self._stop)
        self.asked = 0  # jobs asked for by calls under way
        self.sending = 0  # outcomes in calls under way
        self.hungry = False  # there may be jobs to take
        self.greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Start the lanes."""
        for number in range(_LANES):
            lane = gevent.Greenlet(self._lane)
            lane.name = f"geventq-lane-{self._keys.name}-{number}"
            self.greenlets.append(lane)
            lane.start()

    def stop(self) -> None:
        """Send what has ended, then end the lanes and join them.  Yields."""
        self._stopping = True
        while self._parked:
            self.wake()
        gevent.joinall(self.greenlets)

    def abandon(self) -> list[str]:
        """Give up on what could not be delivered: the ids of the jobs concerned (7.1)."""
        self._stop.set()
        undelivered = [execution.job_id for execution, _ in self._pending]
        self._pending = []
        return undelivered

    @property
    def undelivered(self) -> int:
        """Outcomes that Redis has not confirmed yet."""
        return len(self._pending) + self.sending

    def settle(self, execution: Execution, outcome: Outcome) -> None:
        """Send an outcome with the next call.  Does not yield."""
        self._pending.append((execution, outcome))
        if self._parked:
            self.wake()

    def want(self) -> None:
        """There may be jobs: take them.  Does not yield."""
        self.hungry = True
        self.wake()

    def wake(self) -> None:
        """Let a parked lane look around.  Does not yield."""
        if self._parked:
            get_hub().loop.run_callback(self._parked.pop().switch)

    def _lane(self) -> None:
        park = get_hub().switch
        while True:
            room = self._room() if self.hungry else 0
            if self._pending or room > 0:
                self._guarded_exchange()
            elif self._stopping:
                return
            else:
                self._parked.append(getcurrent())
                park()

    def _room(self) -> int:
        """How many jobs to ask for: a lane's share at most, so that the lanes' calls overlap and
        neither the server nor this process waits for the other's whole batch."""
        if self._stopping:
            return 0
        share = -(-self._host.concurrency // _LANES)
        return min(self._host.room() - self.asked, share, _BATCH)

    def _guarded_exchange(self) -> None:
        """One call, and what follows from its failure.  A defect of our own is told like an
        outage: a lane never dies silently."""
        try:
            if self._lost_takes:
                self._recover()
            self._exchange()
        except Exception as error:  # noqa: BLE001 (told, backed off)
            if self._outage.failed(error):
                self._host.error(error)
            if self._stop.is_set():
                self._stopping = True
                return
            self._outage.pause()
        else:
            self._outage.over()

    def _exchange(self) -> None:
        batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
        room = -1 if self._stopping else max(0, self._room())
        first = self._next_lock
        self._next_lock += max(0, room)
        self.asked += max(0, room)
        self.sending += len(batch)
        sent_at = clock.monotonic()
        try:
            reply = self._client.script(
                self._script, self._script_keys, self._arguments(batch, room, first)
            )
        except BaseException as error:
            lost = isinstance(error, RedisUnavailableError) and error.answer_lost
            if lost and room > 0:
                self._lost_takes.append((first, room))
            if lost:
                for execution, outcome in batch:
                    _send_again(execution, outcome)
            self._pending = batch + self._pending
            raise
        finally:
            self.asked -= max(0, room)
            self.sending -= len(batch)
        self._handle(batch, room, reply, sent_at)

    def _arguments(
        self, batch: list[Settled], room: int, first: int
    ) -> list[str | bytes | int | float]:
        args: list[str | bytes | int | float] = [
            *(self._keys.base, clock.wall_ms(), room, self._lock_base, first),
            *(self._lock_ms, self._worker_name),
        ]
        for execution, outcome in batch:
            args += (
                outcome.kind,
                execution.job_id,
                execution.lock_token,
                outcome.ended_ms,
                outcome.value,
                outcome.made,
                outcome.wire_more() if outcome.more else "",
            )
        return args

    def _handle(
        self, batch: list[Settled], room: int, reply: list[typing.Any], sent_at: float
    ) -> None:
        host = self._host
        codes, jobs, broken, limited_ms, next_ms = reply
        if jobs:
            host.taken([(_text(job), _text(lock), fields) for job, lock, fields in jobs], sent_at)
        for (execution, outcome), code in zip(batch, codes, strict=True):
            if code in _OURS:
                host.settled(execution, outcome)
            else:
                host.refused(execution, outcome, code)
        for job_id, why in broken:
            host.broken(_text(job_id), _text(why))
        if room > 0:
            self.hungry = len(jobs) + len(broken) >= room
            if not self.hungry:
                host.dry(next_ms, limited_ms)

    def _recover(self) -> None:
        """Run the jobs that a lost answer told of."""
        lost, self._lost_takes = self._lost_takes, []
        args: list[str | int] = [self._keys.base, self._lock_base]
        for first, count in lost:
            args += (first, count)
        sent_at = clock.monotonic()
        try:
            jobs = self._client.script(self._recover_script, [self._keys.active], args, again=True)
        except GeventqError:
            self._lost_takes = lost + self._lost_takes
            raise
        if jobs:
            # The locks were taken before this call was sent, at an unknown time: the renewer
            # is to renew them at its next turn, so they count as half used.
            taken = [(_text(job), _text(lock), fields) for job, lock, fields in jobs]
            self._host.taken(taken, sent_at - self._lock_ms / 2000)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _send_again(execution: Execution, outcome: Outcome) -> None:
    outcome.more = {**(outcome.more or {}), "atm0": execution.made, "stc0": execution.stalls}
