"""The life of a job in a worker: taken, admitted, run, decided, settled, told.

Reads from top to bottom.  `JobLife` is told by the lanes what they took and what became of what
they settled, and runs in between; a job that is given up before its end leaves by `giving_up`.
How calls travel is the lanes' business, how a job is stopped the cancellation core's, what an
end means `decide`'s.

Everything runs in the worker's hub: `run` in a runner, all else in the lane that brings the
answer; nothing but the job itself yields.  Numbers alone in comments are sections of
cancellation.md.
"""

from __future__ import annotations

import logging
import sys
import typing
import weakref

from gevent import getcurrent

from geventq import clock, job_log
from geventq.cancellation import labels
from geventq.cancellation.callbacks import Callback
from geventq.errors import GeventqError, JobCancelled, RateLimitError, UnrecoverableError
from geventq.hubs import interrupt_main
from geventq.worker.run import outcome as outcomes
from geventq.worker.run.admission import Admission, Take, Taken
from geventq.worker.run.around import Arounds
from geventq.worker.run.decide import NotEnded, decide, decide_again
from geventq.worker.run.hearing import answer_late
from geventq.worker.run.runners import Runners, untouched
from geventq.worker.run.settle_call import (
    JOB_LOST,
    PENDING_CHILDREN,
    UNREADABLE,
    Code,
    Unheard,
    refusal,
)

if typing.TYPE_CHECKING:
    from geventq.cancellation import Attempt
    from geventq.job import Job, JobStore
    from geventq.worker.listeners import Listeners
    from geventq.worker.processor import Routes
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.giving_up import GivingUp
    from geventq.worker.run.hearing import Hearing
    from geventq.worker.run.outcome import Outcome
    from geventq.worker.run.slots import Slots
    from geventq.worker.settings import WorkerOptions

__all__ = ["IdleWaiter", "JobLife", "LockKeeper", "Settler"]

_MOST_MATES: typing.Final = 1000  # jobs given back that are remembered
_UNSEEN: typing.Final = 2  # references to a job that nobody else has: a variable's, and a call's

log = logging.getLogger("geventq")


class Settler(typing.Protocol):
    """What carries outcomes to Redis and takes jobs: the lanes."""

    def settle(self, execution: Execution, outcome: Outcome) -> None:
        """Send it with the next call; `JobLife.settled` or `refused` follows."""

    def undelivered(self) -> list[Execution]:
        """Those whose outcomes wait, or are in a call."""

    def may_be_more(self) -> None:
        """There may be jobs to take, and slots for them."""


class IdleWaiter(typing.Protocol):
    """What waits for jobs while there are none."""

    def begin(self, due_ms: int) -> None:
        """There is nothing to take now; the next delayed job is due at `due_ms` (0: none)."""

    def hand_on(self) -> None:
        """The worker was woken for a job that it does not take."""


class LockKeeper(typing.Protocol):
    """What renews the locks."""

    def extended(
        self, execution: Execution, sent_at: float, seconds: float, *, surely: bool
    ) -> None:
        """A lock lives `seconds` from `sent_at` (monotonic), for once, or may."""


class JobLife:
    """Leads the jobs of one worker from their take to their end.

    `settler`, `idle_wait` and `lock_keeper` are set by who makes it: each of them also needs
    what is made from it.
    """

    settler: Settler
    idle_wait: IdleWaiter
    lock_keeper: LockKeeper

    def __init__(
        self,
        routes: Routes,
        store: JobStore,
        options: WorkerOptions,
        slots: Slots,
        listeners: Listeners,
        giving_up: GivingUp,
        hearing: Hearing,
        *,
        worker_name: str,
    ) -> None:
        self.home = store.home  # of the jobs of its attempts
        self._arounds = Arounds(options.around, store.queue_name) if options.around else None
        self._queue_name = store.queue_name
        self._job_timeout = options.job_timeout
        self._strategies = options.backoff_strategies
        self._slots = slots
        self._listeners = listeners
        self._tell = listeners.emit
        self._giving_up = giving_up
        self._hearing = hearing
        self._admission = Admission(
            store,
            options,
            worker_name=worker_name,
            routes=routes,
            all_tokens=self._arounds is not None and self._arounds.take_token,
            overseer=self,
        )
        self.runners = Runners(self.run, self.run_failed, store.queue_name, untouched=untouched())
        self._callbacks: weakref.WeakSet[Callback] = weakref.WeakSet()  # that outlived their jobs
        self._given_back: dict[str, str] = {}  # turns by id, the newest last
        self._is_dry = False  # it was told that there is nothing to take, and no job came since
        self._is_disowned = False  # in a forked child

    def start(self) -> None:
        """Nothing: lives begin with what the lanes take."""

    def stop(self) -> None:
        """Wait for the callbacks that are still at work.  Yields."""
        for callback in list(self._callbacks):
            callback.join()

    def disown(self) -> list[typing.Any]:
        """In a forked child: what runs is the parent's (7.5).  It has no greenlets of its own."""
        self._is_disowned = True
        return []

    # -- taken -----------------------------------------------------------------------------

    def take_begins(self, number: int) -> None:
        """A call is sent that may take jobs."""
        self._hearing.take_begins(number)

    def take_is_over(self, number: int) -> None:
        """Its answer was handled, or it has taken nothing."""
        self._hearing.take_is_over(number)

    def taken(self, jobs: list[Taken], take: Take) -> None:
        """Jobs are ours."""
        slots = self._slots
        self._is_dry = False
        if take.taken_ms is None:  # a throw may have left the handling of the answer half-way
            jobs = [one for one in jobs if one[1] not in slots.held and one[1] not in slots.running]
        executions = self._admission.executions(jobs, take, self._not_admitted)
        self._hearing.taken(executions, take.requests, take.numbers)
        try:
            for execution in executions:
                slots.held[execution.lock_token] = execution
            if slots.takes:
                self.runners.dispatch(self._admitted(executions))
            else:
                self._give_back(executions)
        except BaseException:  # a Ctrl-C above all: they are asked for again
            self._forget_unstarted(executions)
            raise

    def _give_back(self, executions: list[Execution]) -> None:
        """The worker was paused, or begins to close, while they were being taken: none starts
        after that was told."""
        for execution in executions:
            self._settle_unrun(execution, NotEnded("it was not begun"))

    def _forget_unstarted(self, executions: list[Execution]) -> None:
        running = self.runners.executions()
        for execution in executions:
            if not execution.settling and execution not in running:
                self._slots.held.pop(execution.lock_token, None)
                self._slots.running.leave(execution)

    # -- admitted --------------------------------------------------------------------------

    def _admitted(self, executions: list[Execution]) -> list[Execution]:
        """Those that got a slot; what may not run is settled without one."""
        admitted = []
        for execution in executions:
            if execution.unrunnable is None:
                self._slots.running.add(execution)
                admitted.append(execution)
            else:
                self._settle_unrun(execution, UnrecoverableError(execution.unrunnable))
        return admitted

    def _not_admitted(self, job_id: str, error: BaseException) -> None:
        failure = GeventqError(f"job {job_id} could not be run: {error!r}")
        failure.__cause__ = error
        self._tell("error", failure)

    # -- run -------------------------------------------------------------------------------

    def run(self, execution: Execution) -> None:
        """Run the processor, and settle what came of it.  In a runner; a kill can land between
        `begin` and `end`, and nowhere else."""
        attempt = execution.attempt
        if job_log.is_used():
            labels.begin(execution.job_id, self._queue_name, execution.attempts_made + 1)
        result: object = None
        error: BaseException | None = None
        if "active" in self._listeners.by_event:
            attempt.enter(getcurrent())
            self._listeners.call("active", execution.job)
            if self._is_disowned:
                return  # a listener has forked, and this is the child
        if attempt.strongest is not None:  # cancelled before its first turn (2.8)
            attempt.end()
            error = JobCancelled(attempt.strongest)
        else:
            attempt.begin(getcurrent(), execution.policy.timeout or self._job_timeout)
            try:
                route = execution.route
                if self._arounds is not None:
                    result = self._arounds.run(execution)
                elif route.takes_token:
                    result = route.process(execution.job, attempt.token)
                else:
                    result = route.process(execution.job)
            except BaseException as raised:  # noqa: BLE001 (`decide` tells them apart)
                attempt.release(raised)
                attempt.end()
                error = raised
            else:
                attempt.end()
            callbacks = attempt.reap()
            if callbacks:
                self._callbacks.update(callbacks)
        if self._is_disowned:
            self._ended_in_child(execution, error)
        else:
            self._decided(execution, result, error)
        del error

    def progressed(self, job: Job, value: object) -> None:
        """A running job updated its progress.  Yields, while the listeners are far behind."""
        self._tell("progress", job, value)
        self._listeners.keep_up()

    def lock_extended(
        self, execution: Execution, sent_at: float, seconds: float, *, surely: bool
    ) -> None:
        """A running job extended its lock."""
        self.lock_keeper.extended(execution, sent_at, seconds, surely=surely)

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """A running job is alive although it was killed."""
        self._giving_up.stuck(attempt, stack)

    def run_failed(self, execution: Execution, error: BaseException) -> None:
        """`run` was left by an error: a Ctrl-C that hit it after the processor's end, or a defect
        of ours.  The job has no outcome, and would be active, and renewed, for ever: it goes
        back."""
        if isinstance(error, KeyboardInterrupt):
            interrupt_main(error)
        else:
            self._not_admitted(execution.job_id, error)
        if execution.settling or execution.is_over:
            return
        execution.attempt.end()
        self._slots.running.leave(execution)
        self._settle_unrun(execution, NotEnded(error))

    def _ended_in_child(self, execution: Execution, error: BaseException | None) -> None:
        """The processor has forked, and ends in the child too: only the parent's end counts."""
        if isinstance(error, KeyboardInterrupt | SystemExit):
            interrupt_main(error)
        elif error is not None:
            log.error("job %s ended so in a forked child", execution.job_id, exc_info=error)

    # -- decided ---------------------------------------------------------------------------

    def _decided(self, execution: Execution, result: object, error: BaseException | None) -> None:
        outcome = decide(execution, result, error, clock.wall_ms(), self._strategies)
        if error is not None:
            self._heed(error, outcome)
        self._slots.running.leave(execution)
        if execution.heard is not None:
            self._hearing.stopped(execution)
        self._settle(execution, outcome)

    def _heed(self, error: BaseException, outcome: Outcome) -> None:
        """What a processor raised may concern more than its job."""
        kind = type(error)  # an error may lie about its class, or fail to tell it
        if issubclass(kind, KeyboardInterrupt):
            interrupt_main(typing.cast(KeyboardInterrupt, error))
        elif issubclass(kind, RateLimitError) and outcome.kind == outcomes.WAIT:
            self._slots.limit(typing.cast(RateLimitError, error).seconds)
            self.idle_wait.begin(0)

    # -- settled ---------------------------------------------------------------------------

    def _settle_unrun(self, execution: Execution, error: Exception) -> None:
        """Settle what has not run, or not to its end."""
        outcome = decide(execution, None, error, clock.wall_ms(), self._strategies)
        self._settle(execution, outcome)

    def _settle(self, execution: Execution, outcome: Outcome) -> None:
        held = self._slots.held
        if outcome.kind == outcomes.NOTHING:
            held.pop(execution.lock_token, None)
        if execution.lock_token not in held:
            # Lost or stuck: listeners were told, and nothing may be written (2.10, 3.4).
            execution.over()
            self.settler.may_be_more()
            return
        if execution.heard is not None:
            outcome.note_heard(execution)
        if outcome.kind == outcomes.GIVE_BACK:
            self._note_mate(execution, outcome)
        execution.outcome = outcome
        self.settler.settle(execution, outcome)

    def _note_mate(self, execution: Execution, outcome: Outcome) -> None:
        """Jobs that are given back in several calls stand in the order of their takes, too."""
        mates = outcome.mates = self._given_back
        mates.pop(execution.job_id, None)
        mates[execution.job_id] = execution.turn
        if len(mates) > _MOST_MATES:
            del mates[next(iter(mates))]

    # -- told ------------------------------------------------------------------------------

    def settled(self, execution: Execution, outcome: Outcome) -> None:
        """The outcome is in Redis: tell it once."""
        self._slots.held.pop(execution.lock_token, None)
        if execution.heard is not None:
            self._hearing.settled(execution)
        job, event = execution.job, outcome.event
        execution.over()
        is_heard = event in self._listeners.by_event
        if is_heard or outcome.cancellation is not None or sys.getrefcount(job) > _UNSEEN:
            job.owned_by(None)
            job.changed(outcome.fields(execution))  # from now on it is as one read anew
        if outcome.cancellation is not None:
            self._tell("cancelled", job, outcome.cancellation)
        if event is not None and is_heard:
            told = outcome.result if event == "completed" else outcome.error
            self._tell(event, job, told)
        if event != "completed":  # else its lane looks for more by itself
            self.settler.may_be_more()

    def refused(self, execution: Execution, outcome: Outcome, code: Code) -> None:
        """The outcome was refused: it cannot be stored, was decided without a request to cancel,
        or the job is gone, or another's."""
        if isinstance(code, Unheard):
            answer_late(execution, code.record)
            self._settle(execution, decide_again(execution, outcome, self._strategies))
        elif code in PENDING_CHILDREN and outcome.kind == outcomes.COMPLETE:
            error = GeventqError(f"job {execution.job_id} returned while its children are pending")
            self._settle_instead(execution, outcome, error)
        elif code == UNREADABLE and not outcome.is_plain:
            error = GeventqError(refusal(execution.job_id, code))
            self._settle_instead(execution, outcome, error, is_plain=True)
        else:
            if code not in JOB_LOST:
                self._tell("error", GeventqError(refusal(execution.job_id, code)))
            self._giving_up.refused(execution)
            execution.over()

    def _settle_instead(
        self, execution: Execution, outcome: Outcome, error: Exception, *, is_plain: bool = False
    ) -> None:
        """The attempt fails, because its outcome cannot be stored."""
        failure = decide(
            execution, None, error, outcome.ended_ms, self._strategies, is_plain=is_plain
        )
        self._settle(execution, failure)

    # -- belonging to nobody ---------------------------------------------------------------

    def find_lost(self) -> None:
        """Look for runs that have lost their owner, and give them one.

        A run belongs to its runner, its outcome to the lanes.  What is thrown at a greenlet just
        then, a Ctrl-C or a kill of all greenlets there are, can take either away between two
        steps; then the job would be active, and renewed, for ever, and a close would wait for it.
        Called now and then while the worker runs, and while it closes.
        """
        slots = self._slots
        running, on_their_way = self.runners.executions(), set(self.settler.undelivered())
        for execution in {*slots.held.values(), *slots.running}:
            if execution.settling:
                slots.running.leave(execution)
                if execution not in on_their_way and execution.lock_token in slots.held:
                    execution.outcome.send_again(execution)  # it may have been sent
                    self.settler.settle(execution, execution.outcome)
            elif execution not in running:
                self.run_failed(execution, GeventqError("its greenlet has ended before it"))

    # -- what a take tells besides jobs ----------------------------------------------------

    def skipped(self, job_id: str, why: str) -> None:
        """An id without a readable hash was dropped."""
        error = GeventqError(f"job {job_id} of queue {self._queue_name} was skipped: {why}")
        self._tell("error", error)

    def hand_on(self) -> None:
        """There may be jobs, and this worker takes none: another one is to look."""
        self.idle_wait.hand_on()

    def dry(self, due_ms: int) -> None:
        """Nothing is left to take for now; the next delayed job is due at `due_ms` (0: none)."""
        if not self._is_dry:
            self._is_dry = True
            self._tell("drained")
        self.idle_wait.begin(due_ms)
