"""Requests from other processes, and the runs that they are for (cancellation.md 4.4, 4.6, 5.1).

A request comes as a record, which is the truth, or as a message, which is a hint; both may come
more than once, and each counts once: its nonce is noted with the run.  What is noted here, the
run's outcome says that it was decided with; a request that is not is found by the script that
settles, and the outcome is decided again.

Knows runs and requests, and neither Redis nor how what it is told travels.  Everything is called
in the worker's hub and nothing yields; no greenlets run here.  Numbers alone in comments are
sections of cancellation.md.
"""

from __future__ import annotations

import functools
import typing

from geventq import clock
from geventq.record import read_record
from geventq.worker.run.execution import Heard

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.control.messages import Message
    from geventq.record import Record
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.giving_up import GivingUp
    from geventq.worker.run.slots import Slots

__all__ = ["Delays", "Hearing", "StageTeller", "answer_late"]

_MOST_KEPT: typing.Final = 10_000  # hints, while takes are under way


class StageTeller(typing.Protocol):
    """What tells those who wait how far stopping a job has come: `geventq.worker.stages`."""

    def reached(self, execution: Execution, stage: str) -> None:
        """All requests that are waited for have."""

    def reached_by(self, execution: Execution, nonces: list[str], stage: str) -> None:
        """These requests have."""


class Demand(typing.NamedTuple):
    """What a record or a message asks of a run."""

    request: Cancellation
    hard: bool | None
    kill_after: float | None
    nonces: tuple[str, ...]
    is_waited_for: bool


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


class Hearing:
    """What one worker hears.  `prefix` and `database` are its own; `trusts` says whether a message
    is acted on before its record was read."""

    def __init__(
        self,
        slots: Slots,
        giving_up: GivingUp,
        stages: StageTeller,
        *,
        prefix: str,
        database: int,
        trusts: bool,
        grace: float,
    ) -> None:
        self._slots = slots
        self._giving_up = giving_up
        self._stages = stages
        self._prefix = prefix
        self._database = database
        self._trusts = trusts
        self._grace = grace  # the worker's own `kill_after`
        self._under_way: set[int] = set()  # takes, by their first lock's number
        self._kept: list[tuple[set[int], Message]] = []  # and the takes under way as they came
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
            if record is None or (heard is not None and heard.nonces.issuperset(record.nonces)):
                return
            if _is_void(record, execution):
                execution.heard = heard or Heard()
                execution.heard.nonces.update(record.nonces)
                return
            self._heed(execution, _asked_by(record, self._grace))

    # -- messages ----------------------------------------------------------------------------

    def message(self, message: Message) -> str:
        """Act on a message to this queue; answers what became of it: ``heeded``, ``kept`` until
        a take was answered, ``elsewhere`` (no such job here), ``stale`` (another run), ``plain``
        (one without a record, where those are not trusted)."""
        if message.nonce is None:
            if not self._trusts:
                return "plain"
        elif message.prefix != self._prefix or message.database != self._database:
            return "elsewhere"
        runs = self._slots.running.find(message.job_id)
        outcome = "elsewhere" if not runs else "stale"
        for execution in runs:
            if _is_for(message, execution):
                outcome = "heeded"
                self._hint(execution, message)
        if outcome != "heeded" and self._under_way:
            self._kept.append((set(self._under_way), message))
            del self._kept[:-_MOST_KEPT]
            outcome = "kept"
        return outcome

    def _hint(self, execution: Execution, message: Message) -> None:
        if execution.settling or execution.is_over:
            return  # the script that settles finds the record; a plain one comes too late (2.7)
        if not self._trusts:
            self.to_read.append(execution)
        elif message.is_forced:
            self._giving_up.lock_lost(execution)
        elif message.nonce is None:
            execution.attempt.request(message.request, hard=False, kill_after=None)
        elif execution.heard is None or message.nonce not in execution.heard.nonces:
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

    # -- hints that come before a take's answer (5.3) ------------------------------------------

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
        for under_way, message in self._kept:
            execution = by_id.get(message.job_id)
            is_taken = execution is not None and not under_way.isdisjoint(takes)
            if execution is not None and is_taken and _is_for(message, execution):
                self._hint(execution, message)

    def take_is_over(self, take: int) -> None:
        """Its answer has been handled, or it never comes: hints that were kept for it would stop a
        later run."""
        self._under_way.discard(take)
        if self._kept:
            for under_way, _ in self._kept:
                under_way.discard(take)
            self._kept = [kept for kept in self._kept if kept[0]]

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
        fresh = [nonce for nonce in asked.nonces if nonce not in heard.nonces]
        heard.nonces.update(fresh)
        if not heard.seen_at:
            heard.seen_at = clock.monotonic()
            self.delays.add("seen", clock.wall() - asked.request.requested_at)
        attempt = execution.attempt
        if asked.is_waited_for:
            heard.waiting += fresh
            attempt.on_stage = functools.partial(self._stages.reached, execution)
            self._stages.reached_by(execution, fresh, attempt.stage or "seen")
        if attempt.greenlet is not None:
            attempt.request(asked.request, hard=asked.hard, kill_after=asked.kill_after)
        # One that has not begun ends unrun, as if it had been recorded before the take (2.8).
        attempt.answer(asked.request)


def answer_late(execution: Execution, text: bytes) -> None:
    """The outcome of `execution` was decided without the record `text`: it answers that too."""
    heard = execution.heard = execution.heard or Heard()
    record = read_record(text)
    if record is None or heard.nonces.issuperset(record.nonces):
        heard.nonces.add("*")  # else it would be refused again, for ever
        return
    heard.nonces.update(record.nonces)
    if not _is_void(record, execution):
        execution.attempt.answer(record.request)


def _is_void(record: Record, execution: Execution) -> bool:
    """Whether it is for an earlier run, and nobody has cleared it since (4.4)."""
    is_for_another = record.attempts_made not in (None, execution.attempts_made)
    return is_for_another and record.request.retry


def _asked_by(record: Record, grace: float) -> Demand:
    kill_after = record.kill_after
    if kill_after is not None and record.is_default_grace:
        kill_after = min(kill_after, grace)  # of several requests one left it to the worker
    return Demand(record.request, record.hard, kill_after, record.nonces, record.is_waited_for)


def _is_for(message: Message, execution: Execution) -> bool:
    """Whether a message means this run, and not another one, or another job with the same id."""
    if message.nonce is None:
        return True
    same_run = message.attempts_made == execution.attempts_made
    return same_run and message.timestamp == round(execution.job.timestamp * 1000)
