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
import os
import sys
import traceback
import typing

from geventq.commands.console import Console, UsageError
from geventq.commands.ending import ending
from geventq.commands.logs import errors_as_json, insist, log_lines
from geventq.commands.plan import Plan, WorkerPlan, told_where
from geventq.commands.reload import Settings
from geventq.commands.report import Report

if typing.TYPE_CHECKING:
    from geventq.commands.lifeline import Lifeline
    from geventq.health import HealthPort
    from geventq.supervisor import Supervisor
    from geventq.worker import Worker

__all__ = ["check_reachable", "run"]


def run(given: argparse.Namespace) -> int:
    """Run a worker until it is told to close, or the parent of several."""
    settings = Settings(given)
    plan = settings.plan
    if plan.log_format == "json":
        errors_as_json()
    lifeline = turns = None
    if plan.processes > 1:
        from geventq.commands.processes import ParentProcess

        came_back = ParentProcess(
            plan.processes, plan.health, lambda: settings.read_anew() is not None
        ).run()
        if isinstance(came_back, int):
            return came_back
        lifeline = came_back
        turns = lifeline.turns.fileno()
    console = Console(given.json, claims=True, taking_turns=turns)
    return _work(settings, console, lifeline, quiet=given.quiet)


def _work(settings: Settings, console: Console, lifeline: Lifeline | None, *, quiet: bool) -> int:
    from geventq.commands.patch import patch_all

    patch_all()  # before the user's module is imported
    ending.take_over()
    plan = settings.plan
    log_lines(
        plan.log_format,
        plan.log_level,
        turns=None if lifeline is None else lifeline.turns.fileno(),
    )
    with _health_port(plan, lifeline) as health:
        return _work_on(settings, console, lifeline, health, quiet=quiet)


def _health_port(
    plan: Plan, lifeline: Lifeline | None
) -> contextlib.AbstractContextManager[HealthPort | None]:
    """That of a single process: of several the parent has it."""
    if plan.health is None or lifeline is not None:
        return contextlib.nullcontext()
    from geventq.health import HealthPort

    return HealthPort(str(plan.health))


def _work_on(
    settings: Settings,
    console: Console,
    lifeline: Lifeline | None,
    health: HealthPort | None,
    *,
    quiet: bool,
) -> int:
    """All that has to happen before the health port is closed."""
    from geventq import postgresql
    from geventq.commands.hangups import Hangups

    plan = settings.plan
    postgresql.wait_in_hub()
    os.environ["GEVENTQ_REDIS_URL"] = plan.url  # what a Queue in a processor will find
    sys.path.insert(0, os.getcwd())
    makers = [_prepared(one, plan) for one in plan.workers]
    insist(plan.log_format, plan.log_level)
    address = check_reachable(plan.url)
    workers = [make() for make in makers]
    for one, worker in zip(plan.workers, workers, strict=True):
        report = Report(
            console,
            worker,
            with_pid=lifeline is not None,
            logs=plan.log_format == "json" and not console.only_json,
        )
        report.listen(quiet)
        report.starting(one.processor, address)
    supervisor = _supervised(workers) if plan.is_supervised else None
    outcome = _Outcome(workers, supervisor)
    if lifeline is not None:
        lifeline.hold(workers, supervisor)
    if health is not None:
        health.watch(supervisor or workers[0])
    hangups = Hangups(settings, workers, supervisor, lifeline)
    with hangups:
        (supervisor or workers[0]).run()
    if lifeline is not None:
        lifeline.release()
    return outcome.status


def _supervised(workers: list[Worker]) -> Supervisor:
    from geventq.supervisor import Supervisor

    return Supervisor(workers)


def _prepared(one: WorkerPlan, plan: Plan) -> typing.Callable[[], Worker]:
    """What makes the worker; its callables are imported before."""
    from geventq.worker import Worker

    with told_where(one.place):
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
        with told_where(one.place):
            return Worker(
                one.queue,
                process,
                plan.url,
                plan.prefix if one.prefix is None else one.prefix,
                one.name,
                **one.options,
                **more,
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
