"""The worker: takes jobs of one queue and runs them as greenlets, and stops them.

Owns the parts (intake, idle wait, renewer, stalled checker, listeners, runners), the executions,
and the order of start and close.  How calls travel is the intake's business, how a job is
stopped the cancellation core's, what becomes of it `outcome`'s.
"""

from __future__ import annotations

import contextvars
import logging
import platform
import typing
import uuid

import gevent
import gevent.event
from gevent import get_hub, getcurrent

from geventq import clock
from geventq.cancellation import Attempt, Cancellation, LockLost
from geventq.checks import check_integer, check_name, check_prefix, check_queue_name, check_seconds
from geventq.errors import GeventqError, JobCancelled, RateLimitError, UnrecoverableError
from geventq.job import Job
from geventq.postgresql import warn_if_queries_block
from geventq.record import record_attempt
from geventq.worker import outcome as outcomes
from geventq.worker.execution import Execution, Runners
from geventq.worker.listeners import Listeners
from geventq.worker.policy import Policies
from geventq.worker.processor import Processor, load_processor, takes_token
from geventq.worker.settings import WorkerOptions
from geventq.worker.signals import heeded

if typing.TYPE_CHECKING:
    from geventq.store.connection import Client
    from geventq.worker.idle import IdleWait
    from geventq.worker.intake import Intake
    from geventq.worker.renewer import Renewer
    from geventq.worker.stalled import StalledChecker

__all__ = ["Worker"]

_SHUTDOWN_GRACE: typing.Final = 1.0  # seconds between cancel and kill at least, when closing (7.1)

log = logging.getLogger("geventq")


class Worker:
    """Runs the jobs of one queue.

    `process` is a callable of one parameter (the job) or two (the job and a
    `CancellationToken`), or its name as ``"package.module:function"``.  The options are those of
    `WorkerOptions`, in seconds.  Raises `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        queue_name: str,
        process: Processor | str,
        connection: object = None,
        prefix: str = "bull",
        name: str | None = None,
        **options: typing.Any,
    ) -> None:
        check_queue_name(queue_name)
        check_prefix(prefix)
        if name is not None:
            check_name("name", name)
        self.options = _made(options)
        self.queue_name = queue_name
        self.prefix = prefix
        self.name = name
        self.node = self.options.node or platform.node()
        self.id = str(uuid.uuid4())
        self.held: dict[str, Execution] = {}  # lock token -> not settled yet; locks are renewed
        self._running: dict[str, Execution] = {}  # lock token -> in the processor, or about to be
        self._by_id: dict[str, Execution] = {}  # the newest running attempt of each job
        self._overtaken = False  # an older attempt of a job ran on: look at all of them
        self._process = load_processor(process)
        self._with_token = takes_token(self._process)
        self._connection = connection
        self._concurrency = self.options.concurrency
        self._policies = Policies(self.options.remove_on_complete, self.options.remove_on_fail)
        self._listeners = Listeners(queue_name)
        self._settled = gevent.event.Event()
        self._state = "new"  # -> running -> closing -> closed (-> running)
        self._paused = False
        self._stuck = 0
        self._limited_until = 0.0
        self._hub: typing.Any = None
        self._closing: gevent.Greenlet[..., None] | None = None
        self._closing_began = gevent.event.Event()
        self._close_deadline: float | None = None  # on the monotonic clock
        if self.options.autorun:
            self.start()

    # -- what one may ask --------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether it takes jobs, or would if it were not paused."""
        return self._state == "running"

    @property
    def is_paused(self) -> bool:
        return self._paused

    @property
    def active_jobs(self) -> list[Job]:
        """The jobs that run now."""
        return [execution.job for execution in self._running.values()]

    @property
    def concurrency(self) -> int:
        """How many jobs run at once.  May be set while running: fewer takes effect as jobs end."""
        return self._concurrency

    @concurrency.setter
    def concurrency(self, value: int) -> None:
        self._concurrency = check_integer("concurrency", value, 1)
        self._in_hub(self._want)

    def on(self, event: str, listener: typing.Callable[..., object]) -> typing.Any:
        """Call `listener` at each `event` (api.md, Worker)."""
        return self._listeners.on(event, listener)

    def off(self, event: str, listener: typing.Callable[..., object]) -> bool:
        """Undo one `on`; `False` if there was none."""
        return self._listeners.off(event, listener)

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start taking jobs and return.  Idempotent.  Yields to the hub."""
        if self._state == "running":
            return
        if self._closing is not None:
            self._closing.join()
        warn_if_queries_block()
        self._state = "running"
        if self._closing is not None:
            self.id = str(uuid.uuid4())
            self._closing = None
        self._hub = get_hub()
        self._closing_began.clear()
        try:
            self._make_parts()
        except BaseException:  # an address that cannot be used: nothing was started
            self._state = "new"
            raise
        self._listeners.start()
        self._runners.measure()
        self._intake.start()
        self._idle.start()
        self._renewer.start()
        if self._stalled is not None:
            self._stalled.start()
        self._listeners.emit("ready")
        self._want()

    def _make_parts(self) -> None:
        from geventq.store.connection import Client, Endpoint
        from geventq.store.jobs import QueueStore
        from geventq.store.keys import QueueKeys
        from geventq.worker.idle import IdleWait
        from geventq.worker.intake import Intake
        from geventq.worker.renewer import Renewer
        from geventq.worker.stalled import StalledChecker

        options = self.options
        keys = QueueKeys(self.prefix, self.queue_name)
        self._keys = keys
        self._client: Client = Client(Endpoint.of(self._connection))
        self._store = QueueStore(self._client, keys)
        self._runners = Runners(self, self.queue_name, contextvars.copy_context())
        self._intake: Intake = Intake(
            self,
            self._client,
            keys,
            worker_id=self.id,
            worker_name=self.name or "",
            lock_duration=options.lock_duration,
        )
        self._idle: IdleWait = IdleWait(
            self._client,
            keys,
            worker_name=self.name or "",
            drain_delay=options.drain_delay,
            want=self._want,
            error=self.error,
        )
        assert options.lock_renew_time is not None
        self._renewer: Renewer = Renewer(
            self,
            self._client,
            keys,
            lock_duration=options.lock_duration,
            renew_time=options.lock_renew_time,
            renews=not options.skip_lock_renewal,
        )
        self._stalled: StalledChecker | None = None
        if not options.skip_stalled_check:
            self._stalled = StalledChecker(
                self,
                self._client,
                keys,
                interval=options.stalled_interval,
                max_stalled=options.max_stalled_count,
            )

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(self.options.close_timeout if kind is None else 0)

    def run(self) -> None:
        """Start, and block until closed.  In the main thread the first SIGTERM or SIGINT closes
        with `close_timeout`, a second one with 0 (cancellation.md 7.2).  Yields."""
        with heeded(self._signalled):
            self.start()
            self._wait_closed()

    def _signalled(self, times: int) -> None:
        """A signal, the `times`-th: in a greenlet that gevent spawns for it."""
        timeout = self.options.close_timeout if times == 1 else 0.0
        self._begin_close(timeout, "worker is closing")

    def _wait_closed(self) -> None:
        while self._state == "running":
            self._closing_began.wait()
        if self._closing is not None:
            self._closing.join()

    # -- pause, close ----------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more jobs; those that run go on.  Idempotent.  Does not yield."""
        if not self._paused:
            self._paused = True
            self._listeners.emit("paused")

    def resume(self) -> None:
        """Take jobs again.  Idempotent.  Does not yield."""
        if self._paused:
            self._paused = False
            self._listeners.emit("resumed")
            self._in_hub(self._want)

    def close(self, timeout: float | None = None, reason: str = "worker is closing") -> None:
        """Take no new jobs, wait for the running ones, and end all greenlets and connections.

        After `timeout` seconds (0: at once; `None`: never) the running jobs are cancelled with
        kind ``shutdown`` and go back to where they came from (cancellation.md 7.1).  Idempotent;
        a later call may shorten the time.  Inside a listener or a processor it begins closing
        and returns.  Yields.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        if self._state == "new":
            self._state = "closed"
            return
        current = getcurrent()
        inside = current in self._runners.alive or current is self._listeners.greenlet
        closing = self._in_hub(lambda: self._begin_close(timeout, reason))
        if not inside and closing is not None:
            closing.join()

    def _begin_close(self, timeout: float | None, reason: str) -> gevent.Greenlet[..., None] | None:
        if timeout is not None:
            deadline = clock.monotonic() + timeout
            if self._close_deadline is None or deadline < self._close_deadline:
                self._close_deadline = deadline
        if self._state == "running":
            self._state = "closing"
            self._listeners.emit("closing")
            self._closing = gevent.Greenlet(self._close, reason)
            self._closing.name = f"geventq-close-{self.queue_name}"
            self._closing.spawn_tree_locals = {}
            self._closing.start()
        self._closing_began.set()
        self._settled.set()
        return self._closing

    def _close(self, reason: str) -> None:
        """In a greenlet of its own, so that it goes on whoever asked for it is killed."""
        self._idle.stop()
        if not self._drained(lambda: self._close_deadline):
            self._shut_down(reason)
        undelivered = self._deliver_rest()
        self._runners.end()
        self._renewer.stop()
        if self._stalled is not None:
            self._stalled.stop()
        if undelivered:
            log.error(
                "worker of queue %s closed with outcomes that Redis did not take: jobs %s",
                self.queue_name,
                ", ".join(undelivered),
            )
        self._client.close()
        self._state = "closed"
        self._listeners.emit("closed")
        self._listeners.stop()
        self._close_deadline = None

    def _drained(self, deadline: typing.Callable[[], float | None]) -> bool:
        """Wait until no processor runs, or the deadline (which may come nearer) has passed."""
        while any(not held.attempt.is_stuck for held in self._running.values()):
            self._settled.clear()
            until = deadline()
            left = None if until is None else until - clock.monotonic()
            if left is not None and left <= 0:
                return False
            self._settled.wait(left)
        return True

    def _shut_down(self, reason: str) -> None:
        """Cancel what runs, kill it after the grace, and wait for the ladder's end (7.1)."""
        grace = max(self.options.kill_after, _SHUTDOWN_GRACE)
        asked = Cancellation(reason, "shutdown", hard=True, requested_by=self.id)
        for execution in list(self._running.values()):
            execution.attempt.request(asked, hard=True, kill_after=grace)
        # No deadline of our own: each attempt ends, or its ladder says that it is stuck; only a
        # shield makes that later.
        self._drained(lambda: None)

    def _deliver_rest(self) -> list[str]:
        """Send what is left until Redis answers, or until every lock has lapsed (7.1)."""
        stopper = gevent.Greenlet(self._intake.stop)
        stopper.name = f"geventq-close-intake-{self.queue_name}"
        stopper.start()
        stopper.join(self.options.lock_duration)
        undelivered = [] if stopper.ready() else self._intake.abandon()
        stopper.join()
        return undelivered

    # -- cancel ------------------------------------------------------------------------------

    def cancel_job(
        self,
        job_id: str,
        reason: typing.Any = None,
        *,
        hard: bool | None = None,
        kill_after: float | None = None,
        retry: bool = True,
    ) -> bool:
        """Ask the job to stop, or kill it; whether the request took effect (api.md)."""
        asked = self._request(reason, hard, kill_after, retry)
        return bool(self._in_hub(lambda: self._cancel(job_id, asked, hard, kill_after)))

    def cancel_all_jobs(
        self,
        reason: typing.Any = None,
        *,
        hard: bool | None = None,
        kill_after: float | None = None,
        retry: bool = True,
    ) -> int:
        """`cancel_job` for every job that runs here; how many requests took effect."""
        asked = self._request(reason, hard, kill_after, retry)
        return self._in_hub(lambda: self._cancel(None, asked, hard, kill_after)) or 0

    def _request(
        self, reason: typing.Any, hard: bool | None, kill_after: float | None, retry: bool
    ) -> Cancellation:
        if kill_after is not None:
            check_seconds("kill_after", kill_after)
            if hard is False:
                raise ValueError(f"kill_after: makes no sense with hard=False, got {kill_after!r}")
        for field, value in (("hard", hard), ("retry", retry)):
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{field}: a bool is needed, got {value!r}")
        is_hard = hard if hard is not None else kill_after is not None or self._is_hard
        return Cancellation(reason, "user", hard=is_hard, retry=retry, requested_by=self.id)

    @property
    def _is_hard(self) -> bool:
        return self.options.cancel_mode == "hard"

    def _cancel(
        self, job_id: str | None, asked: Cancellation, hard: bool | None, kill_after: float | None
    ) -> int:
        if hard is None and kill_after is not None:
            hard = True
        if job_id is not None and not self._overtaken:
            found = self._by_id.get(job_id)
            executions = [] if found is None else [found]
        else:
            executions = list(self._running.values())
        return sum(
            execution.attempt.request(asked, hard=hard, kill_after=kill_after)
            for execution in executions
            if job_id is None or execution.job_id == job_id
        )

    def _in_hub(self, step: typing.Callable[[], typing.Any]) -> typing.Any:
        """Run `step` in the worker's thread, from whatever thread this is."""
        from geventq.cancellation.threads import in_thread_of

        if self._hub is None:
            return None
        return in_thread_of(self._hub, step, gone=None)

    # -- what the intake calls ------------------------------------------------------------------

    def room(self) -> int:
        """Free slots.  A stuck job opens a replacement slot, `concurrency` of them at most."""
        if self._paused or self._state != "running" or clock.monotonic() < self._limited_until:
            return 0
        return self._concurrency + min(self._stuck, self._concurrency) - len(self._running)

    def _want(self) -> None:
        """There may be something to take; while a processor's rate limit lasts, later."""
        if self._state != "running":
            return
        limited = self._limited_until - clock.monotonic()
        if limited > 0:
            self._idle.begin(clock.wall_ms() + round(limited * 1000) + 1)
        self._intake.want()

    def taken(self, jobs: list[tuple[str, str, list[bytes]]], sent_at: float) -> None:
        """Start what was taken; what cannot run is settled without running."""
        ready = []
        now_ms = clock.wall_ms()
        for job_id, lock_token, flat in jobs:
            if lock_token in self.held:
                continue  # a lost answer that came to the same job twice
            pairs = iter(flat)
            fields = dict(zip(pairs, pairs, strict=True))
            first_run = b"processedOn" not in fields  # or a retry by hand (4.4)
            fields[b"processedOn"] = b"%d" % now_ms
            execution = self._execution(job_id, lock_token, fields, sent_at, first_run)
            if execution is not None:
                ready.append(execution)
        if ready:
            self._runners.dispatch(ready)

    def _execution(
        self,
        job_id: str,
        lock_token: str,
        fields: dict[bytes, bytes],
        sent_at: float,
        first_run: bool,
    ) -> Execution | None:
        """The execution of a taken job, or `None` if it was settled without running."""
        job = Job.from_hash(self._store, job_id, fields)
        fields[b"ats"] = b"%d" % (job.attempts_started + 1)  # as the take has written it
        defect = job.defect()
        try:
            policy = self._policies.of(fields.get(b"opts", b""))
        except ValueError as error:
            policy, defect = self._policies.of(b""), defect or str(error)
        attempt = Attempt(
            job_id,
            with_token=self._with_token,
            hard=self._is_hard,
            kill_after=self.options.kill_after,
            observer=self,
        )
        execution = Execution(job, lock_token, attempt, policy, sent_at)
        job._owner = execution
        execution.worker = self
        execution.max_started = self.options.max_started_attempts
        self.held[lock_token] = execution
        if b"gqc" in fields:
            self._heed_record(execution, fields, first_run)
        unrunnable = defect or job.deferred_failure
        most = execution.max_started
        if unrunnable is None and most is not None and execution.started > most:
            unrunnable = "job started more than allowable limit"
        if unrunnable is not None:
            self._settle(
                execution,
                outcomes.failure(
                    execution, UnrecoverableError(unrunnable), clock.wall_ms(), {}, final=True
                ),
            )
            return None
        self._running[lock_token] = execution
        self._overtaken = self._overtaken or job_id in self._by_id
        self._by_id[job_id] = execution
        return execution

    @staticmethod
    def _heed_record(execution: Execution, fields: dict[bytes, bytes], first_run: bool) -> None:
        """A request is recorded with the job (4.4).  For this run: it ends by it, unrun.  For an
        earlier one: it is void if it allowed a retry or somebody retried by hand since; then it
        is cleared with this run's outcome, and so is the deferred failure that came with it."""
        execution.clears_record = True
        said = execution.job.cancellation
        if said is None:
            return
        if record_attempt(fields[b"gqc"]) == execution.made or not (said.retry or first_run):
            fields.pop(b"defa", None)
            execution.attempt.precede(said)
        elif fields.get(b"defa") == said.failed_reason().encode():
            del fields[b"defa"]

    def run_execution(self, execution: Execution) -> None:
        """Run the processor.  In a runner; between `begin` and `end` a kill may land."""
        attempt = execution.attempt
        result: object = None
        error: BaseException | None = None
        if self._listeners.wants("active"):
            self._listeners.call("active", execution.job)
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
            attempt.reap()
        self._ended(execution, result, error)
        del error

    def _ended(self, execution: Execution, result: object, error: BaseException | None) -> None:
        ended_ms = clock.wall_ms()
        outcome = outcomes.decide(
            execution, result, error, ended_ms, self.options.backoff_strategies
        )
        if isinstance(error, KeyboardInterrupt):  # it belongs to the main greenlet (2.6)
            self._hub.loop.run_callback(self._hub.parent.throw, error)
        if isinstance(error, RateLimitError) and outcome.kind == outcomes.WAIT:
            self._limited_until = clock.monotonic() + error.seconds
        self._leave(execution)
        self._settle(execution, outcome)

    def _leave(self, execution: Execution) -> None:
        """The processor runs no more: its slot is free."""
        if self._by_id.get(execution.job_id) is execution:
            del self._by_id[execution.job_id]
        if self._running.pop(execution.lock_token, None) is not None and execution.attempt.is_stuck:
            self._stuck -= 1
        if self._state != "running" and not self._running:
            self._settled.set()

    def _settle(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        if execution.lock_token not in self.held:
            # Lost or stuck: listeners were told, and nothing may be written (2.10, 3.4).
            self._want()
            return
        if outcome.kind == outcomes.NOTHING:
            del self.held[execution.lock_token]
            self._want()
            return
        execution.settling = True
        if execution.clears_record:
            outcome.more = {**(outcome.more or {}), "clear": True}
        self._intake.settle(execution, outcome)

    def settled(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        """The outcome is in Redis: tell it once."""
        self.held.pop(execution.lock_token, None)
        self._tell(execution, outcome)

    def _tell(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        emit, job = self._listeners.emit, execution.job
        if outcome.cancellation is not None:
            emit("cancelled", job, outcome.cancellation)
        if outcome.kind == outcomes.COMPLETE:
            emit("completed", job, outcome.result)
        elif outcome.kind == outcomes.FAIL:
            emit("failed", job, outcome.error)
        elif outcome.kind in (outcomes.RETRY, outcomes.DELAY) and outcome.made > execution.made:
            emit("retrying", job, outcome.error)
        if outcome.kind != outcomes.COMPLETE:
            self._want()

    def refused(self, execution: Execution, outcome: outcomes.Outcome, code: int) -> None:
        """The outcome was refused: the job has unfinished children, is gone, or is another's."""
        if code in (-4, -9) and outcome.kind == outcomes.COMPLETE:
            error = GeventqError(f"job {execution.job_id} returned while its children are pending")
            self._intake.settle(
                execution,
                outcomes.failure(
                    execution, error, outcome.ended_ms, self.options.backoff_strategies
                ),
            )
            return
        self.held.pop(execution.lock_token, None)
        if code in (-2, -6):
            self._tell_lost(execution)
        else:
            self.error(
                GeventqError(
                    f"the outcome of job {execution.job_id} was refused: {_CODES.get(code, code)}"
                )
            )

    def broken(self, job_id: str, why: str) -> None:
        """An id without a readable hash was dropped."""
        self.error(GeventqError(f"job {job_id} of queue {self.queue_name} was skipped: {why}"))

    def dry(self, next_ms: int, limited_ms: int) -> None:
        """Nothing left to take for now."""
        self._listeners.emit("drained")
        self._idle.begin(next_ms)

    # -- what the renewer and the checker call ----------------------------------------------------

    def lock_lost(self, execution: Execution) -> None:
        """The lock is not ours any more: stop at once, write nothing (3.2)."""
        self.held.pop(execution.lock_token, None)
        asked = Cancellation(
            LockLost(execution.job_id), "lock_lost", hard=self._is_hard, requested_by=self.id
        )
        execution.attempt.request(asked, hard=None, kill_after=0.0)
        self._tell_lost(execution, asked)

    def _tell_lost(self, execution: Execution, asked: Cancellation | None = None) -> None:
        if not execution.told:
            execution.told = True
            said = asked or Cancellation(LockLost(execution.job_id), "lock_lost")
            self._listeners.emit("lock_lost", execution.job, said)

    def progressed(self, job: Job, value: object) -> None:
        """A job that runs here updated its progress."""
        self._listeners.emit("progress", job, value)

    def stalled(self, job_id: str) -> None:
        """The checker brought a job back."""
        self._listeners.emit("stalled", job_id)

    def error(self, error: BaseException) -> None:
        """Tell an error that concerns no single job's outcome."""
        self._listeners.emit("error", error)

    # -- what the attempts call (in the hub, so no logging and no Redis; not so `stuck`) -------

    def requested(self, attempt: Attempt) -> None:
        """A request took effect: the job itself answers it."""

    def thrown(self, attempt: Attempt) -> None:
        """A kill was thrown."""

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """The ladder's end: stop renewing, open a replacement slot, tell (2.10)."""
        running = self._running.values()
        execution = next((held for held in running if held.attempt is attempt), None)
        if execution is None:
            return
        self._stuck += 1
        log.error(
            "job %s of queue %s is stuck: it is alive although it was killed\n%s",
            execution.job_id,
            self.queue_name,
            stack,
            extra={"job": execution.job_id, "queue": self.queue_name},
        )
        try:
            if execution.lock_token in self.held:
                self._store.record_stuck(execution)
        except GeventqError as error:
            self.error(error)
        self.held.pop(execution.lock_token, None)
        self._listeners.emit("stuck", execution.job, stack)
        self._settled.set()
        self._want()


_CODES: typing.Final = {
    -1: "its hash is gone",
    -3: "it was not active any more",
    -20: "its key holds no hash",
}


def _made(options: dict[str, typing.Any]) -> WorkerOptions:
    known = WorkerOptions.__dataclass_fields__
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"{option}: unknown option with the value {value!r}; known are {', '.join(known)}"
            )
    return WorkerOptions(**options)
