"""The greenlets that run executions, one after the other.

Starting a fresh greenlet costs ten times the rest of a no-op job (architecture.md, What things
cost), so a `Runner` is used again, but only where no user can tell (cancellation.md 2.16): nothing
was thrown at it, nothing is linked to it, nobody holds a reference to it, not a weak one either,
and it carries no attributes but its own.

Knows greenlets; what a run is, and what becomes of it, is its owner's business.  The greenlets
``geventq-run-<queue>`` run here.  Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import time
import typing
from collections import deque
from weakref import getweakrefcount

import gevent

from geventq.hubs import interrupt_main

if typing.TYPE_CHECKING:
    from geventq.worker.run.execution import Execution

    _Greenlet = gevent.Greenlet[..., None]
else:  # gevent's class cannot be subscripted at run time
    _Greenlet = gevent.Greenlet

__all__ = ["Runners", "untouched"]

_TURN: typing.Final = 0.004  # seconds of first turns after which the hub's loop gets one
_MEASURED: typing.Final = 3


class Runner(_Greenlet):
    """A greenlet that runs executions one after the other."""

    def __init__(self, runners: Runners) -> None:
        super().__init__()
        self.name = runners.runner_name
        self.runners = runners
        #: What it runs, from the moment it is given to it until it has ended: a run always has
        #: an owner, whatever is thrown and whenever.
        self.execution: Execution | None = None
        self.has_begun = False  # its execution has had its first turn

    def _run(self) -> None:
        runners = self.runners
        run, park = runners.run, gevent.get_hub().switch
        fresh = True
        try:
            while True:
                execution = self.execution
                if execution is not None:
                    self.has_begun = True
                    run(execution)
                    self.execution = None
                    if execution.attempt.was_thrown or self.has_links() or runners.ended:
                        return
                    del execution
                elif not fresh:
                    return  # woken by what an earlier job left behind, or told to end
                fresh = False
                self.gr_context = None  # what the job's contextvars hold ends with the job
                runners.idle.append(self)
                try:
                    park()
                except KeyboardInterrupt as error:  # it hit the first step of the next job
                    interrupt_main(error)
        except BaseException as error:  # noqa: BLE001 (told)
            self._failed(error)
        finally:
            runners.alive.discard(self)

    def _failed(self, error: BaseException) -> None:
        """Something ended this greenlet: its run was left by an error, or was not begun, which
        another greenlet does then.  Or it was thrown late, at an attempt that is over."""
        execution = self.execution
        if execution is None:
            if isinstance(error, KeyboardInterrupt):
                interrupt_main(error)
        elif self.has_begun or self.runners.ended:
            self.runners.failed(execution, error)
        else:
            self.runners.dispatch([execution])


class Runners:
    """The runners of one worker, and the way to start executions on them.

    `run` runs one execution, in a runner; `failed` is told of one that `run` left by an error.
    Everything happens in the worker's hub.  `dispatch` never yields; the executions get their
    first turn in the order given, at the hub's next turn.
    """

    def __init__(
        self,
        run: typing.Callable[[Execution], None],
        failed: typing.Callable[[Execution, BaseException], None],
        name: str,
        *,
        untouched: tuple[int, int],
    ) -> None:
        self.run = run
        self.failed = failed
        self.runner_name = f"geventq-run-{name}"
        #: Those that wait for an execution, the one that waited last at the end.
        self.idle: list[Runner] = []
        #: Used ones that were given an execution, until it has had its first turn.
        self.due: deque[Runner] = deque()
        self.alive: set[Runner] = set()
        self.ended = False
        self._references, self._attributes = untouched

    def start(self) -> None:
        """Nothing: runners begin with the jobs."""

    def dispatch(self, executions: list[Execution]) -> None:
        """Give each execution a greenlet: a used one where there is one to be trusted."""
        try:
            for execution in executions:
                runner = self._reusable()
                if runner is None:
                    runner = self._new()
                    runner.gr_context = contextvars.Context()  # empty (2.16)
                    runner.execution = execution
                    runner.start()
                else:
                    runner.gr_context = contextvars.Context()
                    runner.has_begun = False
                    self.due.append(runner)
                    runner.execution = execution
        finally:  # a Ctrl-C that comes between takes no greenlet from those that have one
            if self.due:
                gevent.get_hub().loop.run_callback(_switch_into, self.due)

    def executions(self) -> set[Execution]:
        """All that have a greenlet which runs them, or will."""
        if self.due:  # whoever was to give them their turn may have been interrupted
            gevent.get_hub().loop.run_callback(_switch_into, self.due)
        # Without those that were interrupted before they began: their last steps never run.
        self.alive = {runner for runner in self.alive if runner.started and not runner.dead}
        return {runner.execution for runner in self.alive if runner.execution is not None}

    def stop(self) -> None:
        """Let the idle runners end; busy ones end with their job.  Idempotent.  Does not yield."""
        self.ended = True
        self.idle.clear()
        for runner in self.alive:
            if runner.execution is None and runner.started:
                self._end(runner)

    def disown(self) -> list[Runner]:
        """In a forked child: they are the parent's.  Returns them, which are not ended."""
        self.ended = True
        return list(self.alive)

    def _new(self) -> Runner:
        runner = Runner(self)
        self.alive.add(runner)
        return runner

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


def _nothing(*_: object) -> None:
    raise AssertionError("nothing is dispatched here")


@functools.cache
def untouched() -> tuple[int, int]:
    """How many references an idle runner has that no job has touched, counted as `Runners`
    counts them, and how many attributes.  Measured once per process; the first call yields to
    the hub."""
    runners = Runners(_nothing, _nothing, "measure", untouched=(0, 0))
    references: list[int] = []
    attributes: list[int] = []
    # The least of a few: a program may keep, or end, one of them, as tools do that watch
    # greenlets.  One reference too many would hold for all jobs to come.
    while len(references) < _MEASURED:
        runners._new().start()
        gevent.sleep(0)
        if runners.idle and not (runner := runners.idle.pop()).dead:
            references.append(sys.getrefcount(runner))
            attributes.append(len(runner.__dict__))
            runners._end(runner)
    gevent.joinall(list(runners.alive))
    return min(references), min(attributes)


def _switch_into(due: deque[Runner]) -> None:
    """Give runners their first turns.  Runs in the hub; a timer between slices keeps I/O and
    timers alive when the jobs compute before their first switch (2.4).

    A runner stays in `due` until it has had its turn: a Ctrl-C that hits the hub anywhere in
    here costs nobody his.
    """
    started = time.perf_counter()
    try:
        while due:
            runner = due[0]
            if not runner.has_begun and not runner.dead:
                runner.switch()
            due.popleft()
            if due and time.perf_counter() - started > _TURN:
                timer = gevent.get_hub().loop.timer(1e-9)
                timer.start(_next_slice, timer, due)
                return
    except KeyboardInterrupt:  # it hit the hub, which hands it to the main greenlet
        gevent.get_hub().loop.run_callback(_switch_into, due)
        raise


def _next_slice(timer: typing.Any, due: deque[Runner]) -> None:
    timer.stop()
    timer.close()
    _switch_into(due)
