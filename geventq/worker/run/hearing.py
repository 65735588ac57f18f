"""Requests from other processes, and the runs that they are for (cancellation.md 4.4, 4.6, 5.1).

A request comes as a record, which is the truth, or as a message, which is a hint; both may come
more than once, and each counts once: its nonce is noted with the run.  What is noted here, the
run's outcome says that it was decided with; a request that is not is found by the script that
settles, and the outcome is decided again.

A worker with a secret believes what is signed.  A message that is not is as good as none: the
record is read.  Of a record all that is not signed asks softly (8).

Knows runs and requests, and neither Redis nor how what it is told travels.  Everything is called
in the worker's hub and nothing yields; no greenlets run here.  Numbers alone in comments are
sections of cancellation.md.
"""

from __future__ import annotations

import functools
import logging
import typing

from geventq import clock
from geventq.control.messages import Message, Refused, parse
from geventq.record import UNREADABLE, read_record
from geventq.worker.run.demand import Demand
from geventq.worker.run.execution import Heard

if typing.TYPE_CHECKING:
    from geventq.control.proofs import Proofs
    from geventq.record import Record
    from geventq.worker.run.demand import OwnMode
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.giving_up import GivingUp
    from geventq.worker.run.slots import Slots

__all__ = ["Delays", "Hearing", "Kept", "StageTeller", "answer_late"]

_MOST_KEPT: typing.Final = 10_000  # hints, while takes are under way

log = logging.getLogger("geventq")


class StageTeller(typing.Protocol):
    """What tells those who wait how far stopping a job has come: `geventq.worker.stages`."""

    def reached(self, execution: Execution, stage: str) -> None:
        """All requests that are waited for have."""

    def reached_by(self, execution: Execution, nonces: list[str], stage: str) -> None:
        """These requests have."""

    def refused(self, execution: Execution, nonces: list[str]) -> None:
        """These requests, which are not signed, asked for more than is done."""


class Delays:
    """How long the steps of a remote cancellation took, in seconds: from the request to its being
    seen, from there to the processor's end, from there to the outcome's being in Redis (5.5)."""

    __slots__ = ("counts", "longest", "sums")

    STEPS: typing.Final = ("seen", "stopped", "settled")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(self.STEPS, 0)
        self.sums = dict.fromkeys(self.STEPS, 0.0)
        self.longest = dict.fromkeys(self.STEPS, 0.0)

    def add(self, step: str, seconds: float) -> None:
        """One more; clocks of two machines may differ, so it may be below zero."""
        seconds = max(0.0, seconds)
        self.counts[step] += 1
        self.sums[step] += seconds
        self.longest[step] = max(self.longest[step], seconds)


class Kept:
    """What was asked while takes were under way, for the job that they may bring, or for all
    (`job_id` is `None`): `ask` is called for each, before it begins, and `over` when all of these
    takes were answered."""

    __slots__ = ("_ask", "job_id", "over", "took", "under_way")

    def __init__(
        self,
        job_id: str | None,
        ask: typing.Callable[[Execution], object],
        over: typing.Callable[[], object] | None,
        under_way: set[int],
    ) -> None:
        self.job_id = job_id
        self.over = over
        self.under_way = under_way
        #: How many have answered `ask` by what is true.
        self.took = 0
        self._ask = ask

    def ask(self, execution: Execution) -> None:
        """A take has brought this one."""
        self.took += bool(self._ask(execution))

    def drop(self) -> None:
        """It is not asked any more, and `over` is not called."""
        self.over = None
        self.under_way.clear()


class Hearing:
    """What one worker hears.  `queue`, `prefix` and `database` are its own; `trusts` says whether a
    message is acted on before its record was read, `proofs` what is believed (`None`: all)."""

    def __init__(
        self,
        slots: Slots,
        giving_up: GivingUp,
        stages: StageTeller,
        proofs: Proofs | None,
        *,
        queue: str,
        prefix: str,
        database: int,
        trusts: bool,
        own_mode: OwnMode,
    ) -> None:
        self._slots = slots
        self._giving_up = giving_up
        self._stages = stages
        self._proofs = proofs
        self._queue = queue
        self._prefix = prefix
        self._database = database
        self._trusts = trusts
        self._own_mode = own_mode
        self._has_told_refusal = False
        self._under_way: set[int] = set()  # takes, by their first lock's number
        self._kept: list[Kept] = []
        self.delays = Delays()
        #: Runs whose records are to be read soon; whoever reads them clears it.
        self.to_read: list[Execution] = []
        #: The count of requests at the last look at all records (`sweep.lua`); -1 before.
        self.requests_known = -1

    # -- records -----------------------------------------------------------------------------

    def record(self, execution: Execution, text: bytes) -> None:
        """What is recorded with a job that runs here.  Of one whose outcome is on its way the
        script that settles finds it (2.5)."""
        if not execution.settling and not execution.is_over:
            heard, record = execution.heard, read_record(text)
            if record is None or (heard is not None and self._is_known(heard, record, text)):
                return
            if record.is_void(execution.attempts_made):
                execution.heard = heard or Heard()
                execution.heard.nonces.update(record.nonces)
                return
            asked = self._own_mode.asked_by(record)
            if self._proofs is None:
                self._heed(execution, asked)
            else:
                self._heed_proven(execution, record, asked, self._proofs.in_record(record))
                assert execution.heard is not None
                execution.heard.record = text

    def _is_known(self, heard: Heard, record: Record, text: bytes) -> bool:
        """Whether the record says nothing new."""
        if self._proofs is not None and record.signed:
            return heard.record == text
        return heard.nonces.issuperset(record.nonces)

    def _heed_proven(
        self, execution: Execution, record: Record, asked: Demand, signed: list[Message]
    ) -> None:
        """Heed a record of which only what is `signed` may be hard (8)."""
        signed = [one for one in signed if self._is_of(one, execution)]
        believed = self._own_mode.believed(asked, signed)
        heard = execution.heard = execution.heard or Heard()
        heard.proven.update(one.nonce for one in signed if one.nonce is not None)
        refused: list[str] = []
        if self._own_mode.strength(believed) < self._own_mode.strength(asked):
            known = heard.proven | heard.nonces
            refused = [nonce for nonce in asked.nonces if nonce not in known]
        heard.nonces.update(refused)  # who is refused is told of no other stage
        heard.refused += refused
        self._heed(execution, believed)
        if refused:
            self._stages.refused(execution, refused)
            self._tell_refusal(execution, record)

    def _is_of(self, message: Message, execution: Execution) -> bool:
        """Whether it was signed for this run: it could stand in the hash of any other job."""
        where = (message.queue, message.prefix, message.database, message.job_id)
        here = (self._queue, self._prefix, self._database, execution.job_id)
        return where == here and _is_for(message, execution)

    def taken_away(self, execution: Execution, data: bytes) -> None:
        """The lock of a run was taken away by who wants it killed (4.5); what he has left for this
        worker is his message, which it may not have heard.  It does not grow old: it is bound to
        the run, as a record is."""
        try:
            told = parse(data)
        except Refused:
            return
        if not (isinstance(told, Message) and told.is_forced and self._is_of(told, execution)):
            return
        if self._proofs is None or self._proofs.proves(told):
            self._kill(execution, told)

    def _kill(self, execution: Execution, message: Message) -> None:
        if message.hard:  # the run is over in Redis, and is to end here, too
            execution.attempt.request(message.request, hard=True, kill_after=message.kill_after)

    def _tell_refusal(self, execution: Execution, record: Record) -> None:
        if not self._has_told_refusal:
            self._has_told_refusal = True
            log.warning(
                "a hard request to cancel job %s of queue %s is %s: the job was asked softly, as "
                "each will be by one like it",
                execution.job_id,
                self._queue,
                "not signed with this worker's cancel_secret" if record.signed else "not signed",
                extra={"job": execution.job_id, "queue": self._queue},
            )

    # -- messages ----------------------------------------------------------------------------

    def message(self, message: Message) -> str:
        """Act on a message to this queue; answers what became of it: ``heeded``, ``kept`` until
        a take was answered, ``elsewhere`` (no such job here), ``stale`` (another run), ``plain``
        (one without a record, where those are not trusted), or why its signature does not count,
        so that the record decides."""
        if message.nonce is None:
            if not self._trusts:
                return "plain"
        elif message.prefix != self._prefix or message.database != self._database:
            return "elsewhere"
        found = self._slots.running.find(message.job_id)
        runs = [execution for execution in found if _is_for(message, execution)]
        if not runs and not self._under_way:
            return "stale" if found else "elsewhere"
        outcome = "heeded" if runs else "kept"
        if self._proofs is not None and message.nonce is not None:
            doubt = self._proofs.doubt(message)
            if doubt is not None and message.signed is not None:
                outcome = doubt
            message = message._replace(signed=None, is_believed=doubt is None)
        for execution in runs:
            self._hint(execution, message)
        if not runs:
            self.keep(message.job_id, functools.partial(self._hint_if_meant, message))
        return outcome

    def _hint_if_meant(self, message: Message, execution: Execution) -> None:
        if _is_for(message, execution):
            self._hint(execution, message)

    def _hint(self, execution: Execution, message: Message) -> None:
        if execution.settling or execution.is_over:
            return  # the script that settles finds the record; a plain one comes too late (2.7)
        if not (self._trusts and message.is_believed):
            self.to_read.append(execution)
        elif message.is_forced:
            self._giving_up.lock_lost(execution)
            self._kill(execution, message)
        elif message.nonce is None:
            execution.attempt.request(message.request, hard=False, kill_after=None)
        elif self._is_news(message.nonce, execution):
            self._heed(
                execution,
                Demand(
                    message.request,
                    message.hard,
                    message.kill_after,
                    (message.nonce,),
                    message.is_waited_for,
                ),
            )

    def _is_news(self, nonce: str, execution: Execution) -> bool:
        """Whether a message that is believed says something new; notes that it did."""
        if self._proofs is None:
            return execution.heard is None or nonce not in execution.heard.nonces
        heard = execution.heard = execution.heard or Heard()
        is_new = nonce not in heard.proven
        heard.proven.add(nonce)
        return is_new

    # -- what comes before a take's answer (5.3) -----------------------------------------------

    def keep(
        self,
        job_id: str | None,
        ask: typing.Callable[[Execution], object],
        over: typing.Callable[[], object] | None = None,
    ) -> Kept | None:
        """Keep what was asked for the jobs that takes under way may bring; `None` if there are
        none."""
        if not self._under_way:
            return None
        kept = Kept(job_id, ask, over, set(self._under_way))
        self._kept.append(kept)
        del self._kept[:-_MOST_KEPT]
        return kept

    def take_begins(self, take: int) -> None:
        """A call is sent that may take jobs: a hint for one of them can come before its answer."""
        self._under_way.add(take)

    def taken(
        self, executions: list[Execution], requests: int, takes: typing.Collection[int]
    ) -> None:
        """The calls `takes` have taken jobs; their answer tells the count of `requests`."""
        if requests < self.requests_known:
            # Somebody has asked since then, and the look at all records came before the answer.
            self.to_read += executions
        if not self._kept:
            return
        by_id = {execution.job_id: execution for execution in executions}
        for kept in self._kept:
            if kept.under_way.isdisjoint(takes):
                continue
            if kept.job_id is None:
                for execution in executions:
                    kept.ask(execution)
            elif kept.job_id in by_id:
                kept.ask(by_id[kept.job_id])

    def take_is_over(self, take: int) -> None:
        """Its answer has been handled, or it never comes: what was kept for it would stop a later
        run."""
        self._under_way.discard(take)
        if self._kept:
            for kept in self._kept:
                kept.under_way.discard(take)
            over = [kept.over for kept in self._kept if not kept.under_way]
            self._kept = [kept for kept in self._kept if kept.under_way]
            for tell in over:
                if tell is not None:
                    tell()

    # -- what becomes of them --------------------------------------------------------------------

    def stopped(self, execution: Execution) -> None:
        """The processor of a job that has `heard` something has ended."""
        heard = execution.heard
        if heard is not None and heard.seen_at and not heard.stopped_at:
            heard.stopped_at = clock.monotonic()
            self.delays.add("stopped", heard.stopped_at - heard.seen_at)

    def settled(self, execution: Execution) -> None:
        """And its outcome is in Redis."""
        heard = execution.heard
        if heard is not None and heard.stopped_at:
            self.delays.add("settled", clock.monotonic() - heard.stopped_at)

    def _heed(self, execution: Execution, asked: Demand) -> None:
        heard = execution.heard = execution.heard or Heard()
        attempt = execution.attempt
        if asked.is_waited_for:
            fresh = [nonce for nonce in asked.nonces if nonce not in heard.nonces]
            heard.waiting += fresh
            attempt.on_stage = functools.partial(self._stages.reached, execution)
            self._stages.reached_by(execution, fresh, attempt.stage or "seen")
        # One that has not begun ends unrun, as if it had been recorded before the take (2.8).
        if attempt.greenlet is None or not attempt.request(
            asked.request, hard=asked.hard, kill_after=asked.kill_after
        ):
            attempt.answer(asked.request)
        # Noted when it is done: one that a Ctrl-C has cut is heeded as it is told again.
        heard.nonces.update(asked.nonces)
        if not heard.seen_at:
            heard.seen_at = clock.monotonic()
            self.delays.add("seen", clock.wall() - asked.request.requested_at)


def answer_late(execution: Execution, text: bytes) -> None:
    """The outcome of `execution` was decided without the record `text`: it answers that too."""
    heard = execution.heard = execution.heard or Heard()
    record = read_record(text)
    if record is None or heard.nonces.issuperset(record.nonces):
        heard.nonces.add(UNREADABLE)  # else it would be refused again, for ever
        return
    heard.nonces.update(record.nonces)
    if not record.is_void(execution.attempts_made):
        execution.attempt.answer(record.request)


def _is_for(message: Message, execution: Execution) -> bool:
    """Whether a message means this run, and not another one, or another job with the same id."""
    if message.nonce is None:
        return True
    same_run = message.attempts_made == execution.attempts_made
    return same_run and message.timestamp == execution.job.timestamp_ms
