"""One job's run, and the greenlets that runs use one after the other.

An `Execution` belongs to one attempt, from the take until its outcome is settled.  A `Runner` is
a greenlet that runs execution after execution: starting a fresh one costs ten times the rest of a
no-op job (architecture.md, What things cost).  It is used again only where no user can tell
(cancellation.md 2.16): nothing was thrown at it, nothing is linked to it, nobody holds a reference
to it, not a weak one either, and it carries no attributes but its own.
Only the processor runs where a kill can reach; everything else happens before `Attempt.begin`
and after `Attempt.end`.  This module does not know Redis.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import time
import typing
from weakref import getweakrefcount

import gevent

from geventq.cancellation import Attempt
from geventq.errors import GeventqError
from geventq.hubs import interrupt_main

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.worker.run.policy import RunPolicy

__all__ = ["Execution", "Runners", "untouched"]


class Execution:
    """One attempt of one job in this worker.

    `made`, `started` and `stalls` are the job's counters as this attempt found them (`started`
    counts this one).  `renewed_at` is when its lock was last asked for, on the monotonic clock:
    the lock cannot have expired before ``renewed_at + lock_duration``.
    """

    __slots__ = (
        "attempt",
        "clears_record",
        "host",
        "job",
        "job_id",
        "lock_token",
        "made",
        "max_started",
        "policy",
        "renewed_at",
        "settling",
        "stalls",
        "started",
        "told",
        "unrunnable",
    )

    def __init__(
        self,
        job: Job,
        lock_token: str,
        attempt: Attempt,
        policy: RunPolicy,
        counters: tuple[int, int, int],
        renewed_at: float,
        host: typing.Any,
        max_started: int | None,
    ) -> None:
        self.job = job
        self.job_id = job.id
        self.lock_token = lock_token
        self.attempt = attempt
        self.policy = policy
        self.renewed_at = renewed_at
        self.made, self.started, self.stalls = counters
        self.max_started = max_started
        self.host = host  # who is told, and whose options hold
        self.unrunnable: str | None = None  # why the job fails without running
        self.clears_record = False  # the outcome clears a recorded request (4.4)
        self.settling = False  # the processor has ended; the outcome is on its way
        self.told = False  # listeners know the outcome of this attempt

    # -- what the job object asks of its run (`geventq.job.JobOwner`) ------------------------

    def progressed(self, job: Job, value: typing.Any) -> None:
        """`update_progress` was carried out."""
        self.host.progressed(job, value)

    def lock_extended(self, job: Job, sent_at: float, seconds: float) -> None:
        """The lock lives `seconds` from `sent_at`."""
        self.host.lock_extended(self, sent_at, seconds)

    def settle_by_hand(self, job: Job, outcome: str, value: typing.Any) -> None:
        """Refused: the worker settles what it runs."""
        raise _settled_by_worker(job)

    def disown(self) -> list[typing.Any]:
        """In a forked child: the job is the parent's to write to and to stop (7.5).  Returns the
        run's greenlets, which are not ended."""
        self.job.owned_by(_Parent(self.job_id))
        return self.attempt.disown()

    def over(self) -> None:
        """Nobody asks for the job any more.  Breaks the cycle between the two, so that all of a
        run dies with it, without the collector."""
        del self.job

    @property
    def is_over(self) -> bool:
        """Whether `over` was called."""
        return not hasattr(self, "job")

    def started_too_often(self) -> bool:
        """Whether the worker's ``max_started_attempts`` forbids another run."""
        return self.max_started is not None and self.started >= self.max_started


class _Parent:
    """The owner of a job that the parent of this process runs."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    @property
    def lock_token(self) -> str:
        raise GeventqError(f"job {self._job_id} runs in the process that this one was forked from")

    def progressed(self, job: Job, value: typing.Any) -> None:
        """Never: it needs the lock token."""

    def lock_extended(self, job: Job, sent_at: float, seconds: float) -> None:
        """Never, as well."""

    def settle_by_hand(self, job: Job, outcome: str, value: typing.Any) -> None:
        """Refused, here too."""
        raise _settled_by_worker(job)


def _settled_by_worker(job: Job) -> GeventqError:
    return GeventqError(f"job {job.id} runs in a worker, which settles it itself")


class Host(typing.Protocol):
    """What runs executions: the worker."""

    def run_execution(self, execution: Execution) -> None:
        """Run the processor and hand its outcome on.  Called in a runner."""

    def run_failed(self, execution: Execution, error: BaseException) -> None:
        """`run_execution` was left by an error: a Ctrl-C that hit it after the processor's end,
        or a defect of ours."""


if typing.TYPE_CHECKING:
    _Greenlet = gevent.Greenlet[..., None]
else:  # gevent's class cannot be subscripted at run time
    _Greenlet = gevent.Greenlet


class Runner(_Greenlet):
    """A greenlet that runs executions one after the other."""

    def __init__(self, runners: Runners) -> None:
        super().__init__()
        self.name = runners.runner_name
        self.runners = runners
        self.execution: Execution | None = None
        self.fresh = True

    def _run(self) -> None:
        runners = self.runners
        run, park = runners.host.run_execution, gevent.get_hub().switch
        try:
            while True:
                execution, self.execution = self.execution, None
                if execution is not None:
                    try:
                        run(execution)
                    except BaseException as error:  # noqa: BLE001 (told)
                        runners.host.run_failed(execution, error)
                        return
                    if execution.attempt.was_thrown or self.has_links() or runners.ended:
                        return
                    del execution
                elif not self.fresh:
                    return  # woken by what an earlier job left behind, or told to end
                self.fresh = False
                self.gr_context = None  # what the job's contextvars hold ends with the job
                runners.idle.append(self)
                try:
                    park()
                except KeyboardInterrupt as error:  # it hit the first step of the next job
                    interrupt_main(error)
                except BaseException:  # noqa: BLE001 (thrown late, at an attempt that is over
                    return
        finally:
            runners.alive.discard(self)


class Runners:
    """The idle runners of one worker, and the way to start executions on them.

    Runs in the worker's hub.  `dispatch` never yields; the executions get their first turn in the
    order given, at the hub's next turn.
    """

    def __init__(
        self, host: Host, name: str, context: contextvars.Context, *, untouched: tuple[int, int]
    ) -> None:
        self.host = host
        self.runner_name = f"geventq-run-{name}"
        self.context = context
        self.idle: list[Runner] = []
        self.ended = False
        self.alive: set[Runner] = set()
        self._references, self._attributes = untouched

    def _new(self) -> Runner:
        runner = Runner(self)
        self.alive.add(runner)
        return runner

    def dispatch(self, executions: list[Execution]) -> None:
        """Give each execution a greenlet: a used one where there is one to be trusted."""
        batch = []
        context = self.context
        try:
            for execution in executions:
                runner = self._reusable()
                if runner is None:
                    runner = self._new()
                    runner.gr_context = context.copy()
                    runner.execution = execution
                    runner.start()
                else:
                    runner.gr_context = context.copy()
                    runner.execution = execution
                    batch.append(runner)
        finally:  # a Ctrl-C that comes between takes no greenlet from those that have one
            if batch:
                batch.reverse()
                gevent.get_hub().loop.run_callback(_switch_into, batch)

    def have(self, execution: Execution) -> bool:
        """Whether `execution` has a greenlet, or had."""
        if execution.attempt.greenlet is not None or execution.attempt.ended:
            return True
        return any(runner.execution is execution for runner in self.alive)

    def _reusable(self) -> Runner | None:
        idle = self.idle
        while idle:
            runner = idle.pop()
            if runner.dead:
                continue
            if (
                sys.getrefcount(runner) == self._references
                and not getweakrefcount(runner)
                and not runner.has_links()
                and len(runner.__dict__) == self._attributes
                and runner.name is self.runner_name
            ):
                return runner
            self._end(runner)
        return None

    @staticmethod
    def _end(runner: Runner) -> None:
        gevent.get_hub().loop.run_callback(runner.switch)

    def end(self) -> None:
        """Let the idle runners end; busy ones end with their job."""
        self.ended = True
        idle, self.idle = self.idle, []
        for runner in idle:
            self._end(runner)


class _Nobody:
    def run_execution(self, execution: Execution) -> None:
        raise AssertionError("nothing is dispatched here")

    def run_failed(self, execution: Execution, error: BaseException) -> None:
        raise AssertionError("nothing is dispatched here")


@functools.cache
def untouched() -> tuple[int, int]:
    """How many references an idle runner has that no job has touched, counted as `Runners`
    counts them, and how many attributes.  Measured once per process; the first call yields to
    the hub."""
    runners = Runners(_Nobody(), "measure", contextvars.Context(), untouched=(0, 0))
    runners._new().start()
    while not runners.idle:
        gevent.sleep(0)
    runner = runners.idle.pop()
    counts = sys.getrefcount(runner), len(runner.__dict__)
    runners._end(runner)
    runner.join()
    return counts


_TURN: typing.Final = 0.004  # seconds of first turns after which the hub's loop gets one


def _switch_into(batch: list[Runner]) -> None:
    """Give runners their turns, last one first.  Runs in the hub; a timer between slices keeps
    I/O and timers alive when the jobs compute before their first switch (2.4)."""
    started = time.perf_counter()
    try:
        while batch:
            runner = batch.pop()
            if not runner.dead:
                runner.switch()
            if batch and time.perf_counter() - started > _TURN:
                timer = gevent.get_hub().loop.timer(1e-9)
                timer.start(_next_slice, timer, batch)
                return
    except KeyboardInterrupt:  # it hit the hub, which hands it to the main greenlet
        gevent.get_hub().loop.run_callback(_switch_into, batch)
        raise


def _next_slice(timer: typing.Any, batch: list[Runner]) -> None:
    timer.stop()
    timer.close()
    _switch_into(batch)
