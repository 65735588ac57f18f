"""``geventq worker``: the settings from three sources, the user's module, and what is printed.

The process is monkey-patched before the user's module is imported.  Greenlets: those of the
`Worker`, or of the `Supervisor` of several (``[[workers]]`` tables), and with ``--processes``
those of the lifeline to the parent.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import time
import traceback
import typing

from geventq.commands import settings
from geventq.commands.console import Console, UsageError, safe
from geventq.commands.ending import ending
from geventq.commands.processes import Lifeline, ParentProcess

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.job import Job
    from geventq.supervisor import Supervisor
    from geventq.worker import Worker

__all__ = ["check_reachable", "run"]


class _WorkerPlan(typing.NamedTuple):
    """What one worker is to do; checked as far as that needs no code of the user."""

    place: str
    """Where its table stands, for errors; empty for the one of the command line."""
    processor: str
    queue: str
    name: str | None
    strategies: dict[str, str]
    around: list[str]
    options: dict[str, typing.Any]


class _Plan(typing.NamedTuple):
    """What each worker process is to do."""

    url: str
    prefix: str
    processes: int
    workers: list[_WorkerPlan]
    is_supervised: bool
    """Its workers are those of ``[[workers]]`` tables."""


def run(given: argparse.Namespace) -> int:
    """Run a worker until it is told to close, or the parent of several."""
    plan = _plan(given)
    lifeline = turns = None
    if plan.processes > 1:
        came_back = ParentProcess(plan.processes).run()
        if isinstance(came_back, int):
            return came_back
        lifeline = came_back
        turns = lifeline.turns.fileno()
    console = Console(given.json, claims=True, taking_turns=turns)
    return _work(plan, console, lifeline, quiet=given.quiet)


def _plan(given: argparse.Namespace) -> _Plan:
    from geventq.checks import check_integer, check_prefix

    connection, shared, tables = settings.worker_settings(given)
    processes = check_integer("processes", shared.pop("processes", 1), 1)
    workers = []
    for number, table in enumerate(tables):
        table.pop("processes", None)
        with _told_where(f"--config: {given.config}: workers[{number}]: ") as place:
            workers.append(_worker_plan(place, table))
    return _Plan(
        settings.url(given, connection.get("url")),
        check_prefix(settings.prefix(given, connection.get("prefix"))),
        processes,
        workers or [_worker_plan("", shared)],
        bool(workers),
    )


@contextlib.contextmanager
def _told_where(place: str) -> typing.Iterator[str]:
    """What goes wrong in this block is told with its place."""
    try:
        yield place
    except (UsageError, ValueError, TypeError) as error:
        raise UsageError(f"{place}{error}") from error


def _worker_plan(place: str, options: dict[str, typing.Any]) -> _WorkerPlan:
    from geventq.checks import check_name, check_queue_name, check_worker_name
    from geventq.worker.settings import WorkerOptions  # imports gevent, but starts no hub

    processor, queue = options.pop("processor", None), options.pop("queue", None)
    if not processor or not queue:
        needed = "processor and queue" if place else "worker: MODULE:FUNCTION and -q QUEUE"
        raise UsageError(f"{needed} are needed")
    name, strategies = options.pop("name", None), options.pop("backoff_strategies", {})
    if name is not None:
        check_worker_name(name)
    if not isinstance(strategies, dict):
        raise UsageError(f"backoff_strategies: a table is needed, got {strategies!r}")
    around = options.pop("around", [])
    if not isinstance(around, list):
        raise UsageError(f"around: a list of MODULE:NAME is needed, got {around!r}")
    plan = _WorkerPlan(
        place,
        check_name("processor", processor),
        check_queue_name(queue, "queue"),
        name,
        {one: check_name(f"backoff_strategies.{one}", path) for one, path in strategies.items()},
        [check_name(f"around[{number}]", path) for number, path in enumerate(around)],
        options,
    )
    WorkerOptions(**options)
    return plan


def _work(plan: _Plan, console: Console, lifeline: Lifeline | None, *, quiet: bool) -> int:
    from gevent import monkey

    monkey.patch_all()  # before the user's module is imported
    ending.take_over()
    from geventq import postgresql
    from geventq.commands.logs import log_plainly
    from geventq.supervisor import Supervisor

    log_plainly()
    postgresql.wait_in_hub()
    os.environ["GEVENTQ_REDIS_URL"] = plan.url  # what a Queue in a processor will find
    sys.path.insert(0, os.getcwd())
    makers = [_prepared(one, plan) for one in plan.workers]
    address = check_reachable(plan.url)
    workers = [make() for make in makers]
    for one, worker in zip(plan.workers, workers, strict=True):
        report = _Report(console, worker, with_pid=lifeline is not None)
        report.listen(quiet)
        report.starting(one.processor, address)
    supervisor = Supervisor(workers) if plan.is_supervised else None
    outcome = _Outcome(workers, supervisor)
    if lifeline is not None:
        lifeline.hold(workers, supervisor)
    (supervisor or workers[0]).run()
    if lifeline is not None:
        lifeline.release()
    return outcome.status


def _prepared(one: _WorkerPlan, plan: _Plan) -> typing.Callable[[], Worker]:
    """What makes the worker; its callables are imported before."""
    from geventq.worker import Worker

    with _told_where(one.place):
        process = _imported("process", one.processor)
        more: dict[str, typing.Any] = {
            "backoff_strategies": {
                name: _imported(f"backoff_strategies.{name}", path)
                for name, path in one.strategies.items()
            },
            "around": [
                _imported(f"around[{number}]", path) for number, path in enumerate(one.around)
            ],
        }

    def make() -> Worker:
        with _told_where(one.place):
            return Worker(
                one.queue, process, plan.url, plan.prefix, one.name, **one.options, **more
            )

    return make


class _Outcome:
    """How the command ends: with status 1 if stuck jobs made a worker close, else with 0."""

    def __init__(self, workers: list[Worker], supervisor: Supervisor | None) -> None:
        self.status = 0
        self._supervisor = supervisor
        self._closes = False
        self._open = set(workers)
        for worker in workers:
            worker.on("no_slot", functools.partial(self._stuck, worker))
            worker.on("ready", functools.partial(self._open.add, worker))
            worker.on("closing", self._closing)
            worker.on("closed", functools.partial(self._closed, worker))

    def _stuck(self, worker: Worker) -> None:
        if worker.options.exit_when_stuck and not self._closes:
            self.status = 1
            if self._supervisor is not None:  # the process is to be replaced, with all its workers
                self._supervisor.begin_to_close()

    def _closing(self) -> None:
        if self._supervisor is None or not self._supervisor.is_running:
            self._closes = True
            ending.worker_closes()

    def _closed(self, worker: Worker) -> None:
        self._open.discard(worker)
        if not self._open and (self._supervisor is None or not self._supervisor.is_running):
            ending.begin(self.status)


def check_reachable(url: str) -> str:
    """The address of the server, which answered.  Raises `RedisUnavailableError`."""
    from geventq.store.client import Client, Endpoint

    endpoint = Endpoint.of(url)
    client = Client(endpoint)
    try:
        client.execute("PING")
    finally:
        client.close()
    return endpoint.describe()


def _imported(option: str, path: str) -> typing.Any:
    """What ``module:name`` names.  Whatever goes wrong is told as a wrong command line."""
    from geventq.worker.callables import named

    module = path.partition(":")[0]
    try:
        if module and ":" in path:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(_import_failure(module, error)) from error
    except (Exception, SystemExit) as error:
        raise UsageError(_import_failure(module, error)) from error
    found = named(option, path)
    if isinstance(found, str):
        raise UsageError(f"{option}: {path!r} names a text, not a callable")
    return found


def _import_failure(module: str, error: BaseException) -> str:
    text = f"importing {module!r} failed: {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # its text says where
        return text
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename != __file__
    ]
    # The user's own line says more than one deep in a library.
    here = [frame for frame in frames if frame.filename.startswith(os.getcwd() + os.sep)]
    for frame in (here or frames)[-1:]:
        return f"{text} ({frame.filename}, line {frame.lineno})"
    return text


class _Report:
    """Tells what the worker runs and what it cancels: a line, or a JSON object, an event."""

    def __init__(self, console: Console, worker: Worker, *, with_pid: bool) -> None:
        self._console = console
        self._worker = worker
        self._with_pid = with_pid

    def listen(self, quiet: bool) -> None:
        """Listen to the worker's events; with `quiet` not to those of jobs that go well."""
        on = self._worker.on
        if not quiet:
            on("active", lambda job: self._job("active", job))
            on("completed", lambda job, result: self._job("completed", job, result=result))
        on("failed", lambda job, error: self._job("failed", job, error=_said(error)))
        on("retrying", lambda job, error: self._job("retrying", job, error=_said(error)))
        on("cancelled", lambda job, request: self._cancelled("cancelled", job, request))
        on("lock_lost", lambda job, request: self._cancelled("lock_lost", job, request))
        on("stuck", lambda job, stack: self._job("stuck", job, stack=stack))
        on(
            "stalled",
            lambda job_id: self.say("stalled", f"job {job_id} had lost its worker", id=job_id),
        )
        on("no_slot", lambda: self.say("no_slot", "stuck jobs hold every slot"))
        on("ready", lambda: self.say("ready"))
        on("closing", lambda: self.say("closing"))
        on("closed", lambda: self.say("closed"))

    def starting(self, processor: str, address: str) -> None:
        """The first line: what will run, and for which server."""
        concurrency = self._worker.concurrency
        self.say(
            "starting",
            f"{processor}, concurrency {concurrency}, {address}",
            processor=processor,
            concurrency=concurrency,
            redis=address,
        )

    def _job(self, event: str, job: Job, **detail: typing.Any) -> None:
        shown = next(iter(detail.values()), "")
        if not isinstance(shown, str):
            shown = json.dumps(shown, ensure_ascii=False, default=str)
        if event == "stuck":
            shown = "alive although it was killed; its stack is in the log"
        self.say(event, f"{job.name} {job.id}  {shown}", id=job.id, name=job.name, **detail)

    def _cancelled(self, event: str, job: Job, request: Cancellation) -> None:
        how = "hard" if request.hard else "soft"
        text = f"{job.name} {job.id}  {request}, {how}, {request.kind}"
        self.say(event, text, id=job.id, name=job.name, cancellation=request.to_json())

    def say(self, event: str, text: str = "", **fields: typing.Any) -> None:
        """One event: `text` for people, `fields` for programs."""
        queue, pid, now = self._worker.queue_name, os.getpid(), time.time()
        who = f"[{pid}] " if self._with_pid else ""
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        self._console.line(f"{clock} {who}{safe(queue)}  {event:<9} {safe(text)}".rstrip())
        self._console.data({"event": event, "queue": queue, "pid": pid, "at": now, **fields})


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
