"""How a run is given up: its lock was lost, or it is stuck.

Nothing is written for it any more, its lock is not renewed, and its listeners are told once.  The
run itself may go on; whatever it ends with is dropped (`geventq.worker.run.life`).

Knows what is held and who is told.  The greenlets ``geventq-stuck-<queue>`` run here, joined by
`stop`; all else is called in others and does not yield.  Numbers alone in comments are sections
of cancellation.md.
"""

from __future__ import annotations

import logging
import typing

from geventq import wakeups
from geventq.cancellation import Attempt, Cancellation, LockLost
from geventq.errors import GeventqError
from geventq.guarded import Guarded
from geventq.outage import Outage
from geventq.worker.run.execution import Heard

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.worker.listeners import Tell
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.slots import Slots

__all__ = ["GivingUp", "RequestRecorder"]

log = logging.getLogger("geventq")


class RequestRecorder(typing.Protocol):
    """What keeps the request of a stuck job for whoever takes it next: the queue's store."""

    @property
    def queue_name(self) -> str: ...

    def record_request(
        self,
        job_id: str,
        lock_token: str,
        request: Cancellation,
        attempts_made: int,
        timestamp_ms: int,
        nonces: list[str],
    ) -> None:
        """Write it into the job's hash, if the lock is still that one (4.3).  Yields; raises
        `GeventqError`."""


class StuckTeller(typing.Protocol):
    """What tells those who wait for a cancellation how far it has come."""

    def stuck(self, execution: Execution, stack: str) -> None:
        """The job is alive although it was killed.  Does not yield."""


class GivingUp:
    """Gives up the runs of one worker.

    `may_be_more` is called where a slot has become free, `no_slot` when stuck jobs hold the last
    one.
    """

    def __init__(
        self,
        slots: Slots,
        recorder: RequestRecorder,
        tell: Tell,
        *,
        worker_id: str,
        is_hard: bool,
        may_be_more: typing.Callable[[], None],
        no_slot: typing.Callable[[], None],
        stages: StuckTeller,
    ) -> None:
        self._stages = stages
        self._slots = slots
        self._recorder = recorder
        self._tell = tell
        self._worker_id = worker_id
        self._is_hard = is_hard
        self._may_be_more = may_be_more
        self._no_slot = no_slot
        self._has_told_no_slot = False  # since the last job became stuck
        self._reports: list[Guarded] = []  # they give up a stuck job each
        self._outage = Outage("giving up a stuck job", recorder.queue_name, wakeups.Event())

    def start(self) -> None:
        """Nothing: what is given up begins elsewhere."""

    def stop(self) -> None:
        """Wait for what is still being told.  Yields."""
        for report in list(self._reports):
            report.join()

    def disown(self) -> list[typing.Any]:
        """In a forked child: the greenlets, which are the parent's."""
        return [report.greenlet for report in self._reports if not report.done.is_set()]

    # -- a lost lock ------------------------------------------------------------------------

    def lock_lost(self, execution: Execution) -> None:
        """The lock is not ours any more: stop the job at once, write nothing (3.2)."""
        self._slots.held.pop(execution.lock_token, None)
        request = self._loss_of(execution)
        execution.attempt.request(request, hard=request.hard, kill_after=None)
        self._tell_lost(execution, request)

    def refused(self, execution: Execution) -> None:
        """The outcome was refused, because the job is not ours any more."""
        self._slots.held.pop(execution.lock_token, None)
        self._tell_lost(execution, self._loss_of(execution))

    def _loss_of(self, execution: Execution) -> Cancellation:
        reason = LockLost(execution.job_id)
        return Cancellation(reason, "lock_lost", hard=self._is_hard, requested_by=self._worker_id)

    def _tell_lost(self, execution: Execution, request: Cancellation) -> None:
        if not execution.told:
            execution.told = True
            self._tell("lock_lost", execution.job, request)

    # -- a stuck job ------------------------------------------------------------------------

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """The ladder's end: open a replacement slot; then, in a greenlet of its own, stop
        renewing, and tell (2.10)."""
        execution = self._slots.running.of(attempt)
        if execution is None:
            return
        self._slots.running.stuck += 1
        if execution.heard is None:
            execution.heard = Heard()  # if it ends by itself meanwhile, it clears the record
        job = execution.job  # it may be over when Redis has answered
        self._stages.stuck(execution, stack)
        queue_name = self._recorder.queue_name
        report = Guarded(
            lambda: self._give_up_stuck(execution, job, stack),
            *(f"stuck-{queue_name}", self._outage),
            tell=lambda error: self._tell("error", error),
        )
        self._reports = [one for one in self._reports if not one.done.is_set()]
        self._reports.append(report)
        report.start()
        log.error(
            "job %s of queue %s is stuck: it is alive although it was killed\n%s",
            execution.job_id,
            queue_name,
            stack,
            extra={"job": execution.job_id, "queue": queue_name},
        )

    def _give_up_stuck(self, execution: Execution, job: Job, stack: str) -> None:
        """Also begun anew, where something was thrown at its greenlet."""
        slots = self._slots
        try:
            self._record(execution)
        except GeventqError as error:
            self._tell("error", error)
        if execution.lock_token not in slots.running:
            return  # it has ended after all, and its outcome is on its way, or told
        slots.held.pop(execution.lock_token, None)
        self._tell("stuck", job, stack)
        slots.running.changed()
        self._may_be_more()
        self._has_told_no_slot = False  # this job had a slot, so there was one again
        self.look_at_slots()

    def look_at_slots(self) -> None:
        """A job is stuck, or there are fewer slots than before: if none is left, this worker will
        run nothing any more, and says so."""
        if self._has_told_no_slot or not self._slots.are_all_stuck:
            return
        self._has_told_no_slot = True
        queue_name = self._recorder.queue_name
        log.error(
            "stuck jobs hold every slot of a worker of queue %s, it takes no more: jobs %s",
            queue_name,
            ", ".join(run.job_id for run in self._slots.running),
            extra={"queue": queue_name},
        )
        self._tell("no_slot")
        self._no_slot()

    def _record(self, execution: Execution) -> None:
        """The next worker ends the job by the request that this run did not follow.  One that
        concerns this worker alone is not recorded: that job runs again (2.10)."""
        request = execution.attempt.strongest
        if (
            request is not None
            and request.kind not in ("shutdown", "lock_lost")
            and execution.lock_token in self._slots.held
        ):
            self._recorder.record_request(
                execution.job_id,
                execution.lock_token,
                request,
                execution.attempts_made,
                execution.job.timestamp_ms,
                sorted(execution.heard.nonces) if execution.heard is not None else [],
            )
