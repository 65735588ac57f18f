"""SIGHUP: the settings are read anew; what can change while the workers run does, and what cannot
is said.

Owns the plan in force and what is said of its changes, a line each.  The parent of several
processes says them, its children follow in silence.  No greenlets run here.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing

from geventq.checks import show
from geventq.commands import plan as plans
from geventq.commands.console import UsageError, say_error, without_passwords

if typing.TYPE_CHECKING:
    from geventq.commands.plan import Plan, WorkerPlan
    from geventq.worker import Worker

__all__ = ["Change", "Settings", "apply"]

_AT_ONCE: typing.Final = frozenset(("concurrency", "close_timeout", "exit_when_stuck", "log_level"))
_OF_THE_PROCESS: typing.Final = (
    *("url", "prefix", "processes", "health", "log_format", "log_level"),
)
_NAMES: typing.Final = {"health": "health_port"}
_SECRET: typing.Final = frozenset(("url", "cancel_secret"))


class Change(typing.NamedTuple):
    """One setting that is another now."""

    where: str
    """What it concerns, for people."""
    name: str
    before: object
    now: object
    worker: int | None = None
    """Which of the plan's workers; `None`: the process."""
    is_whole: bool = False
    """It is the worker itself that is new or gone, and no setting of one."""

    def __str__(self) -> str:
        if self.is_whole:
            how = "new" if self.before is None else "gone"
            return f"{self.name}{self.where}: {how}, which takes effect at a restart"
        values = f"{_said(self.before)} -> {_said(self.now)}"
        said = "changed" if self.name in _SECRET else values
        later = "" if self.name in _AT_ONCE else ", which takes effect at a restart"
        return f"{self.name}{self.where}: {said}{later}"


def _said(value: object) -> str:
    return "the default" if value is None else without_passwords(show(value))


class Settings:
    """The settings of one worker command, and the plan that they made."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self.plan = plans.made(given)

    def read_anew(self, *, quietly: bool = False) -> list[Change] | None:
        """The changes that take effect now, or `None` where the settings cannot be used: then
        nothing changes.  What there is to say is said unless `quietly`."""
        try:
            new = plans.made(self._given)
        except (UsageError, ValueError, TypeError) as error:
            say_error(f"the settings stay as they are: {error}")
            return None
        changes = list(_changes(self.plan, new))
        if not quietly:
            for change in changes:
                say_error(str(change), "info" if change.name in _AT_ONCE else "warning")
            if not changes:
                say_error("the settings were read anew, and are as before", "info")
        applied = [change for change in changes if change.name in _AT_ONCE]
        for change in applied:
            self.plan = _with(self.plan, change)
        return applied


def apply(changes: typing.Iterable[Change], workers: typing.Sequence[Worker]) -> None:
    """Let `changes` take effect on `workers`, those of the plan."""
    from geventq.commands.logs import set_level

    for change in changes:
        if change.worker is None:
            set_level(typing.cast("str | None", change.now))
        elif change.name == "concurrency":
            workers[change.worker].concurrency = typing.cast(int, change.now)
        else:  # which is asked for when it matters
            worker, changed = workers[change.worker], {change.name: change.now}
            worker.options = dataclasses.replace(worker.options, **changed)  # type: ignore[arg-type]


def _changes(old: Plan, new: Plan) -> typing.Iterator[Change]:
    for name in _OF_THE_PROCESS:
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            yield Change("", _NAMES.get(name, name), before, now)
    if old.is_supervised != new.is_supervised:
        said = {True: "[[workers]]", False: "one worker"}
        yield Change("", "workers", said[old.is_supervised], said[new.is_supervised])
    for index, other_index in _pairs(old.workers, new.workers):
        if index is None or other_index is None:
            plan = old.workers[index] if index is not None else new.workers[other_index or 0]
            before, now = (None, plan) if index is None else (plan, None)
            yield Change(f" of queue {plan.queue}", "worker", before, now, index, is_whole=True)
            continue
        one, other = old.workers[index], new.workers[other_index]
        where = f" of queue {one.queue}"
        for name, before in _settings_of(one).items():
            now = _settings_of(other)[name]
            if before != now:
                yield Change(where, name, before, now, index)


#: By what a worker is known again, wherever its table stands now; what says the most comes first.
_MARKS: typing.Final[tuple[typing.Callable[[WorkerPlan], object], ...]] = (
    lambda worker: (worker.queue, worker.prefix, worker.name, worker.processor),
    lambda worker: (worker.queue, worker.prefix, worker.name),
    lambda worker: (worker.queue, worker.prefix, worker.processor),
    lambda worker: (worker.queue, worker.prefix),
    lambda worker: worker.queue,
)


def _pairs(
    old: typing.Sequence[WorkerPlan], new: typing.Sequence[WorkerPlan]
) -> list[tuple[int | None, int | None]]:
    """Which worker is which now, by their places; `None` with one that is gone, or new.  A table
    that stands where one has gone is that one, with another queue."""
    gone, come = dict(enumerate(old)), dict(enumerate(new))
    pairs: list[tuple[int | None, int | None]] = []

    def pair(index: int, other: int) -> None:
        pairs.append((index, other))
        del gone[index], come[other]

    for mark in _MARKS:
        for index, one in list(gone.items()):
            same = [other for other, two in come.items() if mark(two) == mark(one)]
            if same:
                pair(index, same[0])
    if len(old) == len(new):
        for index in gone.keys() & come.keys():
            pair(index, index)
    pairs += [(index, None) for index in gone]
    pairs.sort(key=lambda one: typing.cast(int, one[0]))
    return pairs + [(None, other) for other in come]


def _settings_of(worker: WorkerPlan) -> dict[str, object]:
    """All settings of one worker, defaults included."""
    from geventq.worker.settings import WorkerOptions

    options = WorkerOptions(**worker.options)
    return {
        "queue": worker.queue,
        "prefix": worker.prefix,
        "processor": worker.processor,
        "name": worker.name,
        **{name: getattr(options, name) for name in WorkerOptions.__dataclass_fields__},
        "lock_renew_time": worker.options.get("lock_renew_time"),  # else it follows another one
        "backoff_strategies": worker.strategies,
        "around": worker.around,
    }


def _with(plan: Plan, change: Change) -> Plan:
    if change.worker is None:
        return plan._replace(log_level=typing.cast("str | None", change.now))
    workers = list(plan.workers)
    worker = workers[change.worker]
    options = worker.options | {change.name: change.now}
    workers[change.worker] = worker._replace(options=options)
    return plan._replace(workers=workers)
