"""What ``geventq worker`` is to do, from the command line, the environment and the file.

Owns how settings become the plan of each worker, checked as far as that needs no code of the
user.  Starts no hub: the parent of several processes makes the plan as well.
"""

from __future__ import annotations

import argparse
import contextlib
import typing

from geventq.commands import settings, worker_settings
from geventq.commands.console import UsageError

if typing.TYPE_CHECKING:
    from geventq.health import Place

__all__ = ["Plan", "WorkerPlan", "made", "told_where"]


class WorkerPlan(typing.NamedTuple):
    """What one worker is to do."""

    place: str
    """Where its table stands, for errors; empty for the one of the command line."""
    processor: str
    queue: str
    prefix: str | None
    """`None`: that of the plan."""
    name: str | None
    strategies: dict[str, str]
    around: list[str]
    options: dict[str, typing.Any]


class Plan(typing.NamedTuple):
    """What each worker process is to do."""

    url: str
    prefix: str
    processes: int
    health: Place | None
    log_format: str | None
    log_level: str | None
    workers: list[WorkerPlan]
    is_supervised: bool
    """Its workers are those of ``[[workers]]`` tables."""


def made(given: argparse.Namespace) -> Plan:
    """The plan that the settings make now.  Raises `UsageError`, `ValueError` or `TypeError` with
    the place of what is wrong.

    ``given.outermost``, where a program has set it, stands before each worker's own ``around``.
    """
    from geventq.checks import check_integer, check_prefix

    connection, shared, tables = worker_settings.from_all(given)
    of_process = _taken_out(shared)
    outermost = getattr(given, "outermost", [])
    workers = []
    for number, table in enumerate(tables):
        _taken_out(table)
        with told_where(f"--config: {given.config}: workers[{number}]: ") as place:
            workers.append(_worker_plan(place, table, outermost, settings.given_prefix(given)))
    return Plan(
        url=settings.url(given, connection.get("url")),
        prefix=check_prefix(settings.prefix(given, connection.get("prefix"))),
        processes=check_integer("processes", of_process["processes"], 1),
        health=_place(of_process["health_port"]),
        log_format=_chosen("log_format", of_process["log_format"]),
        log_level=_chosen("log_level", of_process["log_level"]),
        workers=workers or [_worker_plan("", shared, outermost, None)],
        is_supervised=bool(workers),
    )


def _place(given: typing.Any) -> Place | None:
    if given is None:
        return None
    from geventq.health import Place  # imports gevent, but starts no hub

    return Place.of(given)


def _taken_out(options: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """What concerns the process and not a worker, which is left with the rest."""
    taken = {name: options.pop(name, None) for name in worker_settings.OF_THE_PROCESS}
    if taken["processes"] is None:
        taken["processes"] = 1
    return taken


def _chosen(name: str, value: typing.Any) -> typing.Any:
    from geventq.checks import show

    choices = next(one.choices or () for one in worker_settings.WORKER if one.name == name)
    if value is None or value in choices:
        return value
    raise UsageError(f"{name}: {' or '.join(map(repr, choices))} is needed, got {show(value)}")


@contextlib.contextmanager
def told_where(place: str) -> typing.Iterator[str]:
    """What goes wrong in this block is told with its place."""
    try:
        yield place
    except (UsageError, ValueError, TypeError) as error:
        raise UsageError(f"{place}{error}") from error


def _worker_plan(
    place: str, options: dict[str, typing.Any], outermost: list[str], prefix_of_all: str | None
) -> WorkerPlan:
    from geventq.checks import check_name, check_prefix, check_queue_name, check_worker_name
    from geventq.worker.settings import WorkerOptions  # imports gevent, but starts no hub

    processor, queue = options.pop("processor", None), options.pop("queue", None)
    if not processor or not queue:
        needed = "processor and queue" if place else "worker: MODULE:FUNCTION and -q QUEUE"
        raise UsageError(f"{needed} are needed")
    name, strategies = options.pop("name", None), options.pop("backoff_strategies", {})
    if name is not None:
        check_worker_name(name)
    prefix = options.pop("prefix", None)
    if prefix is not None:
        check_prefix(prefix)
    if not isinstance(strategies, dict):
        raise UsageError(f"backoff_strategies: a table is needed, got {strategies!r}")
    around = options.pop("around", [])
    if not isinstance(around, list):
        raise UsageError(f"around: a list of MODULE:NAME is needed, got {around!r}")
    around = [*(one for one in outermost if one not in around), *around]
    plan = WorkerPlan(
        place,
        check_name("processor", processor),
        check_queue_name(queue, "queue"),
        None if prefix_of_all is not None else prefix,
        name,
        {one: check_name(f"backoff_strategies.{one}", path) for one, path in strategies.items()},
        [check_name(f"around[{number}]", path) for number, path in enumerate(around)],
        options,
    )
    WorkerOptions(**options)
    return plan
