"""The settings of ``geventq worker``: its table, the configuration file, and what comes of all
three sources together.

Owns what may stand in the file, and refuses what nobody would read there.
"""

from __future__ import annotations

import argparse
import typing

from geventq.checks import show
from geventq.commands import settings
from geventq.commands.console import UsageError, without_passwords
from geventq.commands.settings import (
    Setting,
    as_text,
    as_whole,
    from_command_line,
    from_environment,
    table_of,
)
from geventq.worker.settings import DEFAULTS, LATER, WorkerArguments

__all__ = ["OF_THE_PROCESS", "WORKER", "WorkerSettings", "add_arguments", "from_all", "from_file"]

WORKER: typing.Final = (
    Setting("queue", as_text, "The queue.", short="-q"),
    Setting("processes", as_whole, "Worker processes; dead ones are replaced.  Default: 1.", "N"),
    Setting(
        "health_port",
        as_text,
        "Answer GET /live and GET /ready there; 127.0.0.1 if no host is given.",
        "[HOST:]PORT",
    ),
    Setting(
        "log_format",
        as_text,
        "How log lines on standard error look, whatever the user's module configures.  Default: "
        "text, where the user's module configures nothing.",
        choices=("text", "json"),
    ),
    Setting(
        "log_level",
        as_text,
        "What is logged at least.  Default: info.",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting("name", as_text, "A name for this worker."),
    *table_of(WorkerArguments, DEFAULTS, {*LATER, "autorun"}),
)
"""Of the worker command.  It starts its worker itself: there is no ``autorun``."""

_LATER: typing.Final = settings.later(LATER)

OF_THE_PROCESS: typing.Final = ("processes", "health_port", "log_format", "log_level")
"""Those that are not a single worker's."""

_PROCESSOR: typing.Final = Setting("processor", as_text, "")
_CONNECTION: typing.Final = ("url", "prefix")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` what ``worker`` reads."""
    parser.epilog = (
        "An option that is not given here is taken from the environment ($GEVENTQ_CONCURRENCY for "
        "--concurrency), else from the file. SIGTERM or Ctrl-C lets running jobs end; a second one "
        "puts them back into the queue at once. SIGUSR1 prints the stacks of running jobs, SIGHUP "
        "reads the file anew."
    )
    parser.add_argument(
        "processor",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help="what runs a job, or a mapping from job names to that",
    )
    parser.add_argument("--config", metavar="FILE", help="settings, see conf/geventq.toml")
    parser.add_argument("--quiet", action="store_true", help="do not tell of jobs that go well")
    settings.add_arguments(parser, (*WORKER, *_LATER))


class WorkerSettings(typing.NamedTuple):
    """What the worker command is to do."""

    connection: dict[str, typing.Any]
    """The file's ``[connection]``."""
    shared: dict[str, typing.Any]
    """Those of its one worker, or of all, from all sources."""
    workers: list[dict[str, typing.Any]]
    """Those of each of the file's ``[[workers]]``, from all sources."""


def from_file(path: str | None) -> WorkerSettings:
    """The tables of a configuration file.

    Raises `UsageError` for a file that cannot be read, and for what nobody would read in it.
    """
    if path is None:
        return WorkerSettings({}, {}, [])
    import tomllib  # most workers have no file

    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError) as error:  # not there, not TOML, not UTF-8
        raise UsageError(f"--config: {path}: {error}") from None
    known = {
        "connection": _CONNECTION,
        "worker": ("processor", *(setting.name for setting in WORKER)),
    }
    later = {"connection": frozenset[str](), "worker": LATER}
    _refuse_unknown(path, "", tables, (*known, "workers"))
    workers = _workers_in(path, tables)
    for table, names in known.items():
        if not isinstance(tables.setdefault(table, {}), dict):
            raise UsageError(f"--config: {path}: {table}: a table is needed")
        _refuse_unknown(path, f"{table}.", tables[table], names, later[table])
    for name, value in tables["connection"].items():
        if not isinstance(value, str):
            raise UsageError(
                f"--config: {path}: connection.{name}: text is needed, got {show(value)}"
            )
    return WorkerSettings(tables["connection"], tables["worker"], workers)


def _workers_in(path: str, tables: dict[str, typing.Any]) -> list[dict[str, typing.Any]]:
    """The ``[[workers]]``, each with names that are known."""
    workers = tables.get("workers", [])
    if not isinstance(workers, list) or not all(isinstance(one, dict) for one in workers):
        raise UsageError(f"--config: {path}: workers: [[workers]] tables are needed")
    names = ["processor", "prefix", *(one.name for one in WORKER if one.name not in OF_THE_PROCESS)]
    for number, table in enumerate(workers):
        for name in OF_THE_PROCESS:
            if name in table:
                raise UsageError(
                    f"--config: {path}: workers[{number}].{name}: all workers live in each "
                    "process, so it belongs into [worker]"
                )
        _refuse_unknown(path, f"workers[{number}].", table, names, LATER)
    return workers


def _refuse_unknown(
    path: str,
    before: str,
    found: dict[str, typing.Any],
    known: typing.Collection[str],
    later: typing.Collection[str] = (),
) -> None:
    """`later` are refused as well, by whoever says so of them."""
    for name, value in found.items():
        if name not in known and name not in later:
            is_secret = any(part in name.lower() for part in ("pass", "secret"))
            shown = "a secret" if is_secret else without_passwords(show(value))
            raise UsageError(
                f"--config: {path}: {before}{name}: unknown, got {shown}; "
                f"known are {', '.join(sorted(known))}"
            )


def from_all(given: argparse.Namespace) -> WorkerSettings:
    """The settings of the worker command from all three sources.  What the environment or the
    command line gives counts for all of the file's ``[[workers]]``."""
    connection, shared, workers = from_file(given.config)
    table = (*WORKER, *_LATER, _PROCESSOR)
    in_environment, on_line = from_environment(table), from_command_line(given, table)
    if workers:
        for setting, on_line_as in ((_PROCESSOR, "MODULE:FUNCTION"), (WORKER[0], "-q")):
            if setting.name in on_line or setting.name in in_environment:
                source = on_line_as if setting.name in on_line else f"${setting.variable}"
                raise UsageError(
                    f"{source}: makes no sense beside the [[workers]] of {given.config}, which "
                    "name a processor and a queue each"
                )
    over = in_environment | on_line
    return WorkerSettings(connection, shared | over, [shared | one | over for one in workers])
