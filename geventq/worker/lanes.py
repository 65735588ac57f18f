"""Taking jobs and settling attempts, many in one call.

A few *lanes* (greenlets) make the calls.  A lane that is free sends at once what has ended, and
asks in the same call for as many jobs as there are free slots; while its call is under way the
next batch gathers.  So a single job has no added delay, and a hundred cost one call.

An answer that was lost may stand for a call that was carried out (cancellation.md 3.6): outcomes
are sent again with the counters of their take, and no job is taken before the worker has looked for
those of that call (`geventq.worker.lost_takes`).
"""

from __future__ import annotations

import typing

import gevent
from gevent import get_hub, getcurrent

from geventq import clock, wakeups
from geventq.errors import RedisUnavailableError
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage
from geventq.store.lock_tokens import beginning_for
from geventq.worker.lost_takes import LostTakes
from geventq.worker.run.admission import Take
from geventq.worker.run.settle_call import (
    LATER,
    MORE,
    OURS,
    Code,
    SettleCall,
    Settled,
    SettleReply,
)

if typing.TYPE_CHECKING:
    from geventq.worker.listeners import Tell
    from geventq.worker.run.admission import Taken
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.outcome import Outcome
    from geventq.worker.run.slots import Slots

__all__ = ["Lanes"]

_LANES: typing.Final = 4
_SHARES: typing.Final = 2  # takes that fill all slots
_BATCH: typing.Final = 500  # outcomes and jobs a call
_BYTES: typing.Final = 1 << 20  # of results in a call, but for one that has more by itself


class Jobs(typing.Protocol):
    """Whose jobs are taken and settled: `geventq.worker.run.life`.  None of these yields."""

    def take_begins(self, number: int) -> None:
        """A call is sent that may take jobs; `number` is that of its first lock token."""

    def taken(self, jobs: list[Taken], take: Take) -> None:
        """Jobs are ours."""

    def take_is_over(self, number: int) -> None:
        """Its answer was handled, or it has taken nothing."""

    def skipped(self, job_id: str, why: str) -> None:
        """An id without a readable hash was dropped."""

    def settled(self, execution: Execution, outcome: Outcome) -> None:
        """The outcome is in Redis."""

    def refused(self, execution: Execution, outcome: Outcome, code: Code) -> None:
        """The outcome was refused: the lock was lost, or the job is gone."""

    def hand_on(self) -> None:
        """There may be jobs, and none is asked for: other workers are to look."""

    def dry(self, due_ms: int) -> None:
        """There was less to take than asked for; the next delayed job is due at `due_ms`."""


class Lanes:
    """The lanes of one worker; owned, started and joined by it.

    `jobs` is set by who makes it, before the start: it needs the lanes itself.
    """

    jobs: Jobs

    def __init__(
        self, calls: SettleCall, slots: Slots, tell: Tell, queue_name: str, worker_id: str
    ) -> None:
        self._calls = calls
        self._slots = slots
        self._tell = tell
        self._lock_base = beginning_for(worker_id)
        self._next_lock = 1
        self._pending: list[Settled] = []
        self._in_calls: list[list[Settled]] = []  # what the calls under way carry
        self._lost_takes = LostTakes(calls, self._lock_base)
        self._parked: list[typing.Any] = []  # greenlets that wait for `wake`
        self._woken: list[typing.Any] = []  # they were, and have not had their turn
        self._stopping = False
        self._stop = wakeups.Event()
        self._life = calls.lock_life
        self._outage = Outage("taking and settling jobs", queue_name, self._stop, calls.client)
        self.has_answer = False  # the server has answered, ever
        self.asked = 0  # jobs asked for by calls under way
        self.hungry = False  # there may be jobs to take
        self._owes_a_look = False  # no other worker knows that there may be
        self._most = _BATCH  # outcomes in a call: fewer after one that failed
        self._wanted = 0  # calls of `may_be_more`: a take sent before the last one proves nothing
        self._lanes = [
            Guarded(
                self._take_turns, f"lane-{queue_name}-{number}", self._outage, tell=self._tell_error
            )
            for number in range(_LANES)
        ]

    def start(self) -> None:
        """Start the lanes."""
        for lane in self._lanes:
            lane.start()

    @property
    def greenlets(self) -> list[gevent.Greenlet[..., None]]:
        """Those that the lanes run in now."""
        return [lane.greenlet for lane in self._lanes if lane.greenlet is not None]

    @property
    def is_cut_off(self) -> bool:
        """Whether the last call has failed."""
        return self._outage.is_under_way

    def stop(self) -> None:
        """Send what has ended, then end the lanes and join them.  Yields."""
        self._stopping = True
        while self._parked:
            self.wake()
        for lane in self._lanes:
            lane.join()

    def abandon(self) -> list[str]:
        """Give up on what could not be delivered: the ids of the jobs concerned (7.1).  Yields."""
        self._stop.set()
        kill_all(self._lanes)  # in mid-call, too: its batch is pending again then
        return [execution.job_id for execution, _ in self._pending]

    def disown(self) -> list[typing.Any]:
        """In a forked child: the greenlets, which are the parent's."""
        return [*self.greenlets]

    def _tell_error(self, error: BaseException) -> None:
        self._tell("error", error)

    def settle(self, execution: Execution, outcome: Outcome) -> None:
        """Send an outcome with the next call.  Does not yield."""
        self._pending.append((execution, outcome))
        if self._parked:
            self.wake()

    def undelivered(self) -> list[Execution]:
        """Those whose outcomes wait, or are in a call."""
        return [execution for batch in (self._pending, *self._in_calls) for execution, _ in batch]

    def may_be_more(self, *, woken: bool = False) -> None:
        """There may be jobs: take them.  `woken` by a marker, so that no other worker looks.
        Does not yield."""
        self._wanted += 1
        self.hungry = True
        self._owes_a_look |= woken
        self.wake()

    def wake(self) -> None:
        """Let a parked lane look around.  Does not yield."""
        if self._parked:
            lane = self._parked.pop()
            self._woken.append(lane)
            get_hub().loop.run_callback(self._give_turn, lane)

    def _give_turn(self, lane: typing.Any) -> None:
        """In the hub.  What was thrown at the lane meanwhile has taken it elsewhere."""
        if lane in self._woken:
            lane.switch()

    def _take_turns(self) -> None:
        """The task of each lane (`geventq.guarded`): begun anew, it sees by itself what to do."""
        while True:
            asks = self.hungry
            if has_looked := bool(self._lost_takes):
                asks = True
                self._lost_takes.look(self.jobs, self._sent_again)
            room = self._free_slots() if asks or self._pending else 0
            if self._pending or room > 0:
                self._make_call(room)
                self._outage.over()
            elif has_looked:  # else the call tells: what lets us look may refuse to let us take
                self._outage.over()
            elif self._stopping:
                return
            else:
                if self._owes_a_look and not self.asked and self._slots.free() <= 0:
                    self._owes_a_look = False
                    self.jobs.hand_on()
                self._park()

    def _park(self) -> None:
        lane = getcurrent()
        self._parked.append(lane)
        try:
            get_hub().switch()
        finally:
            for line in (self._parked, self._woken):
                if lane in line:
                    line.remove(lane)

    def _free_slots(self) -> int:
        """How many jobs to ask for: half of all at most, so that two calls overlap, and neither
        the server nor this process waits for the other.  More jobs in each cost both less.  0 or
        less: none."""
        if self._stopping:
            return 0
        share = -(-self._slots.concurrency // _SHARES)
        return min(self._slots.free() - self.asked, share, _BATCH)

    def _fitting(self) -> int:
        """How many of the outcomes that wait go with one call.  Counted in bytes, too: a call of
        a gigabyte would keep locks, hub and server waiting."""
        count = size = 0
        for _, outcome in self._pending[: self._most]:
            size += len(outcome.value)
            if size > _BYTES and count:
                break
            count += 1
        return count

    def _make_call(self, room: int) -> None:
        count = self._fitting()
        batch, self._pending = self._pending[:count], self._pending[count:]
        self._in_calls.append(batch)
        try:
            self._call_with(batch, max(0, room))
        finally:
            self._in_calls.remove(batch)

    def _call_with(self, batch: list[Settled], room: int) -> None:
        first = self._next_lock
        self._next_lock += room
        self.asked += room
        sent_at, wanted = clock.monotonic(), self._wanted
        if room > 0:
            self.jobs.take_begins(first)
        try:
            asked = -1 if self._stopping else room
            reply = self._calls.settle(batch, asked, self._lock_base, first)
        except BaseException as error:
            lost = _may_be_done(error)
            if lost and room > 0:
                self._lost_takes.add(sent_at, first, room)
            elif room > 0:
                self.jobs.take_is_over(first)
            if lost:
                _mark_sent(batch)
            self._take_back(batch, unsent=not lost and isinstance(error, RedisUnavailableError))
            raise
        finally:
            self.asked -= room
        self._most = min(2 * self._most, _BATCH)
        self.has_answer = True
        if reply.jobs and clock.monotonic() > sent_at + self._life:
            # Others may run them by now (3.3): whoever looks again sees what is still ours.
            self._lost_takes.add(sent_at, first, room)
            reply.jobs.clear()
            self._wanted += 1  # so that this answer does not tell of a dry queue
        try:
            self._handle(batch, reply, sent_at, first)
        except BaseException:  # asked again, the server tells what was left half-way
            if room > 0:
                self._lost_takes.add(sent_at, first, room)
            unsettled = [one for one in batch if not one[0].is_over]
            _mark_sent(unsettled)
            self._pending = unsettled + self._pending
            raise
        if room > 0:
            if first not in self._lost_takes:
                self.jobs.take_is_over(first)
            self._note_supply(reply, room, wanted)

    def _take_back(self, batch: list[Settled], *, unsent: bool) -> None:
        """A call has failed.  If it was for one of its outcomes, that one must hold up no others:
        smaller calls find it, and it goes behind them."""
        if not unsent and batch:
            self._most = max(1, len(batch) // 2)
            if len(batch) == 1:
                self._pending = self._pending + batch
                return
        self._pending = batch + self._pending

    def _note_supply(self, reply: SettleReply, room: int, wanted: int) -> None:
        """Whether to ask again.  An answer with too few jobs means that no more were there when the
        server made it.  Jobs that were announced since the call was sent may have come later, and
        the idle wait has popped their marker: then ask again."""
        if wanted == self._wanted:
            self._owes_a_look = False
        if len(reply.jobs) + len(reply.broken) >= room or reply.next_ms == MORE:
            self.hungry = True
        elif wanted == self._wanted:
            self.hungry = False
            self.jobs.dry(reply.next_ms)

    def _handle(
        self, batch: list[Settled], reply: SettleReply, sent_at: float, number: int
    ) -> None:
        life = self.jobs
        if reply.jobs:
            life.taken(
                reply.jobs,
                Take(sent_at, reply.taken_ms, reply.place, reply.requests, (number,)),
            )
        for (execution, outcome), code in zip(batch, reply.codes, strict=True):
            try:
                if code in OURS:
                    life.settled(execution, outcome)
                elif code != LATER:
                    life.refused(execution, outcome, code)
            except Exception as error:  # noqa: BLE001 (a defect met by one spares the others)
                self._tell_error(error)
        for job_id, why in reply.broken:
            life.skipped(job_id, why)
        if self._lost_takes.ask_for_those_behind():
            self.wake()
        if LATER in reply.codes:
            codes = zip(batch, reply.codes, strict=True)
            self._pending += [settled for settled, code in codes if code == LATER]

    # -- takes whose answer was lost -------------------------------------------------------

    def _sent_again(self) -> set[str]:
        """The ids of the jobs whose outcomes are on their way for a second time."""
        return {
            execution.job_id
            for batch in (self._pending, *self._in_calls)
            for execution, outcome in batch
            if outcome.is_sent_again
        }

    def recover_late(self) -> None:
        """Ask again for what was lost within the last minute.  Does not yield."""
        if self._lost_takes.ask_again():
            self.wake()


def _mark_sent(batch: list[Settled]) -> None:
    """These outcomes may be in Redis already: the script is to look, when it gets them again."""
    for execution, outcome in batch:
        outcome.send_again(execution)


def _may_be_done(error: BaseException) -> bool:
    """Whether a call that ended with `error` may have been carried out, in part at least: only a
    connection that was never made, and a server that refuses to serve, say that it was not.  A
    script that fails half-way keeps what it has written (3.7)."""
    return not isinstance(error, RedisUnavailableError) or error.may_be_done
