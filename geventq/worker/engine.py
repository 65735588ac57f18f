"""One life of a worker, from its start to the end of its close: what is taken, runs and is settled.

Owns the parts (intake, idle wait, renewer, stalled checker, runners), the executions they act
on, and the order in which parts begin and end.  How calls travel is the intake's business, how a
job is stopped the cancellation core's, what becomes of it `outcome`'s.  Numbers alone in comments
are sections of cancellation.md.
"""

from __future__ import annotations

import contextvars
import logging
import typing
import weakref

import gevent
from gevent import get_hub, getcurrent

from geventq import clock
from geventq.cancellation import Attempt, Cancellation, LockLost
from geventq.cancellation.callbacks import Callback
from geventq.errors import GeventqError, JobCancelled, RateLimitError
from geventq.fork import workers as fork
from geventq.hubs import interrupt_main
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys
from geventq.store.queue_store import QueueStore
from geventq.worker.closing import Closing
from geventq.worker.idle import IdleWait
from geventq.worker.lanes import Lanes
from geventq.worker.renewer import Renewer
from geventq.worker.run import outcome as outcomes
from geventq.worker.run.admission import Admission, Taken
from geventq.worker.run.execution import Execution, Runners, untouched
from geventq.worker.run.settle_call import LOCK_GONE, PENDING_CHILDREN, SettleCall, refusal
from geventq.worker.run.slots import Slots
from geventq.worker.stalled import StalledChecker

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.worker.listeners import Listeners
    from geventq.worker.processor import Processor
    from geventq.worker.settings import WorkerOptions

__all__ = ["Engine"]

log = logging.getLogger("geventq")


class Face(typing.Protocol):
    """The public worker, as far as its engine looks at it."""

    id: str
    name: str | None
    queue_name: str
    options: WorkerOptions

    @property
    def concurrency(self) -> int: ...
    @property
    def is_paused(self) -> bool: ...
    def ended(self, engine: Engine) -> None:
        """The engine has closed: nothing of it is left but its listeners' greenlet."""

    def died(self, engine: Engine) -> None:
        """The process was forked, and this is the child: the engine is the parent's."""


class Engine:
    """Made and started by `Worker.start`; ended by its `closing`.

    Everything here runs in the hub that it was started in.  `held` are the attempts whose locks
    are renewed, by lock token, until their outcome is in Redis; `running` those that are in the
    processor, or about to be: the two differ while an outcome is on its way and when a lock was
    lost.
    """

    def __init__(
        self,
        face: Face,
        keys: QueueKeys,
        endpoint: Endpoint,
        process: Processor,
        listeners: Listeners,
        *,
        with_token: bool,
    ) -> None:
        self.face = face
        self.options = options = face.options
        self.worker_id = face.id
        self.hub: typing.Any = get_hub()
        self.held: dict[str, Execution] = {}
        self.running = Slots()
        self.closing = Closing(self, keys.name)
        self._is_dead = False  # in a forked child
        self._reports: set[typing.Any] = set()  # greenlets that tell of a stuck job
        self._callbacks: weakref.WeakSet[Callback] = weakref.WeakSet()  # that outlived their jobs
        self._limited_until = 0.0
        self._is_dry = False  # told of since the last job
        self._process = process
        self._with_token = with_token
        self._listeners = listeners
        self.tell = listeners.emit
        worker_name = face.name or ""
        self._client = Client(endpoint)
        self._store = QueueStore(self._client, keys)
        self._admission = Admission(self._store, options, with_token=with_token, host=self)
        context = contextvars.copy_context()
        self.runners = Runners(self, keys.name, context, untouched=untouched())
        exchange = SettleCall(
            self._client, keys, lock_duration=options.lock_duration, worker_name=worker_name
        )
        self.intake = Lanes(self, exchange, keys.name, face.id)
        self.idle = IdleWait(
            self, self._client, keys, worker_name=worker_name, drain_delay=options.drain_delay
        )
        assert options.lock_renew_time is not None
        self.renewer = Renewer(
            self,
            self._client,
            keys,
            lock_duration=options.lock_duration,
            renew_time=options.lock_renew_time,
            renews=not options.skip_lock_renewal,
        )
        self.stalled_checker: StalledChecker | None = None
        if not options.skip_stalled_check:
            self.stalled_checker = StalledChecker(
                self,
                self._client,
                keys,
                interval=options.stalled_interval,
                max_stalled=options.max_stalled_count,
            )

    # -- begin and end ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the parts' greenlets.  Does not yield."""
        fork.watch(self)
        self._listeners.start()
        self.intake.start()
        self.idle.start()
        self.renewer.start()
        if self.stalled_checker is not None:
            self.stalled_checker.start()
        self.tell("ready")
        self.want()

    def end_parts(self) -> None:
        """End what still runs when the last outcome is delivered.  Yields."""
        self.runners.end()
        self.idle.stop()
        self.renewer.stop()
        if self.stalled_checker is not None:
            self.stalled_checker.stop()
        gevent.joinall(list(self._reports))
        for callback in list(self._callbacks):
            callback.join()
        self._client.close()

    def end_lanes(self) -> None:
        """Deliver what has ended, and end the lanes.  Yields."""
        self.intake.stop()

    def ended(self, notice: typing.Callable[[object], None]) -> typing.Callable[[], None] | None:
        """The close is over, but for what the listeners still have to hear: `notice` is called
        in the hub when they have, if there is anything.  Answers how to give up on one that hangs
        (`Listeners.stop`).  Does not yield."""
        self.face.ended(self)
        self.tell("closed")
        return self._listeners.stop(notice)

    @property
    def is_open(self) -> bool:
        """Whether it takes jobs, or would if it were not paused."""
        return not (self.closing.begun or self._is_dead)

    def die(self) -> list[typing.Any]:
        """In a forked child (7.5): all of this is the parent's.  Returns all greenlets of ours."""
        self._is_dead = True
        loops = (self.idle, self.renewer, self.stalled_checker)
        greenlets = [
            *self.runners.alive,
            *self.intake.greenlets,
            *(loop.greenlet for loop in loops if loop is not None),
            self._listeners.disown(),
            *self.closing.greenlets,
            *self._reports,
        ]
        for execution in {*self.held.values(), *self.running}:
            greenlets += execution.disown()
        self.runners.ended = True
        self.held.clear()
        self.running.clear()
        self.face.died(self)
        return [greenlet for greenlet in greenlets if greenlet is not None]

    def is_inside(self, greenlet: typing.Any) -> bool:
        """Whether `greenlet` belongs to a job that runs here, or runs listeners: `close` would
        wait for it."""
        if self._listeners.is_inside(greenlet) or greenlet in self.runners.alive:
            return True
        attempt = Attempt.of(greenlet)
        return attempt is not None and not attempt.ended and attempt.observer is self

    # -- taking ------------------------------------------------------------------------------

    @property
    def concurrency(self) -> int:
        """How many jobs run at once."""
        return self.face.concurrency

    def room(self) -> int:
        """Free slots.  A stuck job opens a replacement slot, `concurrency` of them at most."""
        takes = self.is_open and not self.face.is_paused
        if not takes or clock.monotonic() < self._limited_until:
            return 0
        return self.running.free(self.face.concurrency)

    def want(self) -> None:
        """There may be something to take; while a processor's rate limit lasts, later."""
        if not self.is_open:
            return
        limited = self._limited_until - clock.monotonic()
        if limited > 0:
            self.idle.begin_later(limited + 0.001)
        self.intake.want()

    def taken(self, jobs: list[Taken], sent_at: float, *, recovered: bool = False) -> None:
        """Start what was taken; what cannot run is settled without running."""
        known = self.held
        self._is_dry = False
        if recovered:  # a Ctrl-C may have left the handling of an answer half-way
            jobs = [one for one in jobs if one[1] not in known and one[1] not in self.running]
        executions = self._admission.executions(
            jobs, sent_at, self._not_admitted, recovered=recovered
        )
        try:
            for execution in executions:
                known[execution.lock_token] = execution
            if not self.is_open:
                self._give_back(executions)
                return
            ready = [execution for execution in executions if self._may_run(execution)]
            if ready:
                self.runners.dispatch(ready)
        except KeyboardInterrupt:
            self._forget_unstarted(executions)
            raise

    def _forget_unstarted(self, executions: list[Execution]) -> None:
        """A Ctrl-C hit their start; they are asked for again."""
        for execution in executions:
            if not execution.settling and not self.runners.have(execution):
                self.held.pop(execution.lock_token, None)
                self._leave(execution)

    def _not_admitted(self, job_id: str, error: BaseException) -> None:
        failure = GeventqError(f"job {job_id} could not be run: {error!r}")
        failure.__cause__ = error
        self.error(failure)

    def _give_back(self, executions: list[Execution]) -> None:
        """Closing began while they were being taken; the last one goes first, so that the order
        stays."""
        now_ms = clock.wall_ms()
        for execution in reversed(executions):
            self._settle(execution, outcomes.give_back(execution, now_ms))

    def _may_run(self, execution: Execution) -> bool:
        """Give the job a slot, or settle it without one."""
        if execution.unrunnable is not None:
            self._settle(execution, outcomes.unrunnable(execution, clock.wall_ms()))
            return False
        self.running.add(execution)
        return True

    def broken(self, job_id: str, why: str) -> None:
        """An id without a readable hash was dropped."""
        self.error(GeventqError(f"job {job_id} of queue {self.face.queue_name} was skipped: {why}"))

    def dry(self, next_ms: int) -> None:
        """Nothing left to take for now."""
        if not self._is_dry:
            self._is_dry = True
            self.tell("drained")
        self.idle.begin(next_ms)

    # -- running -----------------------------------------------------------------------------

    def run_execution(self, execution: Execution) -> None:
        """Run the processor.  In a runner; between `begin` and `end` a kill may land."""
        attempt = execution.attempt
        result: object = None
        error: BaseException | None = None
        if self._listeners.wants("active"):
            attempt.enter(getcurrent())
            self._listeners.call("active", execution.job)
            if self._is_dead:
                return  # a listener has forked, and this is the child
        if attempt.strongest is not None:  # cancelled before its first turn (2.8)
            attempt.end()
            error = JobCancelled(attempt.strongest)
        else:
            timeout = execution.policy.timeout or self.options.job_timeout
            attempt.begin(getcurrent(), timeout)
            try:
                if self._with_token:
                    result = self._process(execution.job, attempt.token)
                else:
                    result = self._process(execution.job)
            except BaseException as raised:  # noqa: BLE001 (outcome.decide tells them apart)
                attempt.end()
                error = raised
            else:
                attempt.end()
            callbacks = attempt.reap()
            if callbacks:
                self._callbacks.update(callbacks)
        if self._is_dead:
            self._ended_in_child(execution, error)
        else:
            self._ended(execution, result, error)
        del error

    def run_failed(self, execution: Execution, error: BaseException) -> None:
        """The job has no outcome, and would be active, and renewed, for ever: it goes back."""
        if isinstance(error, KeyboardInterrupt):
            interrupt_main(error)
        else:
            self._not_admitted(execution.job_id, error)
        if execution.settling or execution.is_over:
            return
        execution.attempt.end()
        self._leave(execution)
        self._settle(execution, outcomes.give_back(execution, clock.wall_ms()))

    def _ended(self, execution: Execution, result: object, error: BaseException | None) -> None:
        outcome = outcomes.decide(
            execution, result, error, clock.wall_ms(), self.options.backoff_strategies
        )
        if error is not None:
            self._heed(error, outcome)
        self._leave(execution)
        self._settle(execution, outcome)

    def _heed(self, error: BaseException, outcome: outcomes.Outcome) -> None:
        """What a processor raised may concern more than its job."""
        kind = type(error)  # an error may lie about its class, or fail to tell it
        if issubclass(kind, KeyboardInterrupt):
            interrupt_main(typing.cast(KeyboardInterrupt, error))
        elif issubclass(kind, RateLimitError) and outcome.kind == outcomes.WAIT:
            seconds = typing.cast(RateLimitError, error).seconds
            self._limited_until = clock.monotonic() + seconds

    def _ended_in_child(self, execution: Execution, error: BaseException | None) -> None:
        """The processor has forked, and ends in the child too: only the parent's end counts."""
        if isinstance(error, KeyboardInterrupt | SystemExit):
            interrupt_main(error)
        elif error is not None:
            log.error("job %s ended so in a forked child", execution.job_id, exc_info=error)

    def _leave(self, execution: Execution) -> None:
        """The processor runs no more: its slot is free."""
        self.running.leave(execution)
        if not self.running and self.closing.begun:
            self.closing.notice()

    # -- settling ----------------------------------------------------------------------------

    def _settle(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        if execution.lock_token not in self.held:
            # Lost or stuck: listeners were told, and nothing may be written (2.10, 3.4).
            execution.over()
            self.want()
            return
        if outcome.kind == outcomes.NOTHING:
            del self.held[execution.lock_token]
            execution.over()
            self.want()
            return
        execution.settling = True
        if execution.clears_record and outcome.kind != outcomes.GIVE_BACK:  # it was not acted on
            outcome.more = {**(outcome.more or {}), "clear": True}
        self.intake.settle(execution, outcome)

    def settled(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        """The outcome is in Redis: tell it once."""
        self.held.pop(execution.lock_token, None)
        tell, job = self.tell, execution.job
        execution.over()
        if outcome.cancellation is not None:
            tell("cancelled", job, outcome.cancellation)
        if outcome.kind == outcomes.COMPLETE:
            tell("completed", job, outcome.result)
            return
        if outcome.kind == outcomes.FAIL:
            tell("failed", job, outcome.error)
        elif outcome.kind in (outcomes.RETRY, outcomes.DELAY) and outcome.made > execution.made:
            tell("retrying", job, outcome.error)
        self.want()

    def refused(self, execution: Execution, outcome: outcomes.Outcome, code: int) -> None:
        """The outcome was refused: the job has unfinished children, is gone, or is another's."""
        if code in PENDING_CHILDREN and outcome.kind == outcomes.COMPLETE:
            error = GeventqError(f"job {execution.job_id} returned while its children are pending")
            strategies = self.options.backoff_strategies
            failure = outcomes.failure(execution, error, outcome.ended_ms, strategies)
            self.intake.settle(execution, failure)
            return
        self.held.pop(execution.lock_token, None)
        if code in LOCK_GONE:
            self._tell_lost(execution)
        else:
            self.error(GeventqError(refusal(execution.job_id, code)))
        execution.over()

    # -- stopping ----------------------------------------------------------------------------

    def lock_lost(self, execution: Execution) -> None:
        """The lock is not ours any more: stop at once, write nothing (3.2)."""
        self.held.pop(execution.lock_token, None)
        asked = self._loss_of(execution)
        execution.attempt.request(asked, hard=asked.hard, kill_after=None)
        self._tell_lost(execution, asked)

    def _loss_of(self, execution: Execution) -> Cancellation:
        hard = self.options.cancel_mode == "hard"
        reason = LockLost(execution.job_id)
        return Cancellation(reason, "lock_lost", hard=hard, requested_by=self.worker_id)

    def _tell_lost(self, execution: Execution, asked: Cancellation | None = None) -> None:
        if not execution.told:
            execution.told = True
            self.tell("lock_lost", execution.job, asked or self._loss_of(execution))

    def locks_renewed(self) -> None:
        """The renewer had a turn: time to look for takes that were lost."""
        self.intake.recover_late()

    def lock_extended(self, execution: Execution, sent_at: float, seconds: float) -> None:
        """A job that runs here extended its lock."""
        self.renewer.extended(execution, sent_at, seconds)

    def progressed(self, job: Job, value: object) -> None:
        """A job that runs here updated its progress."""
        self.tell("progress", job, value)

    def stalled(self, job_id: str) -> None:
        """The checker brought a job back."""
        self.tell("stalled", job_id)

    def error(self, error: BaseException) -> None:
        """Tell an error that concerns no single job's outcome."""
        self.tell("error", error)

    # -- what the attempts call (in the hub, so no logging and no Redis; not so `stuck`) -------

    def requested(self, attempt: Attempt) -> None:
        """A request took effect: the job itself answers it."""

    def thrown(self, attempt: Attempt) -> None:
        """A kill was thrown."""

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """The ladder's end: stop renewing, open a replacement slot, tell (2.10)."""
        execution = self.running.of(attempt)
        if execution is None:
            return
        report = getcurrent()
        self._reports.add(report)
        try:
            self._give_up_on(execution, stack)
        finally:
            self._reports.discard(report)

    def _give_up_on(self, execution: Execution, stack: str) -> None:
        self.running.stuck += 1
        job = execution.job  # it may be over when Redis has answered
        log.error(
            "job %s of queue %s is stuck: it is alive although it was killed\n%s",
            execution.job_id,
            self.face.queue_name,
            stack,
            extra={"job": execution.job_id, "queue": self.face.queue_name},
        )
        execution.clears_record = True  # if it ends by itself meanwhile
        try:
            if execution.lock_token in self.held:
                self._store.record_stuck(execution)
        except GeventqError as error:
            self.error(error)
        if execution.lock_token not in self.running:
            return  # it has ended after all, and its outcome is on its way, or told
        self.held.pop(execution.lock_token, None)
        self.tell("stuck", job, stack)
        self.closing.notice()
        self.want()
