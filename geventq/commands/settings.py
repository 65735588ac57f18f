"""The settings of the commands: one table for the command line, the environment and the file.

A setting named ``lock_duration`` is ``--lock-duration`` on the command line,
``$GEVENTQ_LOCK_DURATION`` in the environment and ``lock_duration`` in the file; the first of
these that gives it wins.  The tables are made from `WorkerArguments` and `JobOptions`: an option
that comes there is a flag, a variable and a line of the file at once.  Reading a text is this
module's business, the rules of a value are those of `WorkerOptions` and `Queue.add`.  So is what
they say of options that are not supported yet: these can be given, and are not shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import tomllib
import typing

from geventq import job_options
from geventq.checks import show
from geventq.commands.console import UsageError, without_passwords
from geventq.signatures import described
from geventq.worker import settings as worker_options

__all__ = [
    "ADD",
    "LATER_OF_ADD",
    "LATER_OF_WORKER",
    "OF_THE_PROCESS",
    "WORKER",
    "Setting",
    "add_arguments",
    "from_command_line",
    "prefix",
    "read_json",
    "seconds",
    "url",
    "whole",
    "worker_settings",
]

_TRUE: typing.Final = frozenset(("1", "true", "yes", "on"))
_FALSE: typing.Final = frozenset(("0", "false", "no", "off"))


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its `name`, how its text is read, and what ``--help`` says."""

    name: str
    read: typing.Callable[[str], typing.Any]
    help: str
    metavar: str | None = None
    short: str | None = None
    choices: tuple[str, ...] | None = None
    is_secret: bool = False
    """Not for the command line, which every user of the machine can read."""
    is_later: bool = False
    """Not supported yet: whoever gives it is told so by the option's own check."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"GEVENTQ_{self.name.upper()}"


def _text(text: str) -> str:
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError("a whole number is needed") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError("seconds as a number are needed") from None


def _flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise UsageError("true or false is needed")


def whole(source: str, text: str) -> int:
    """A whole number that `source` gives.  Raises `UsageError`."""
    try:
        return _whole(text)
    except UsageError as error:
        raise UsageError(f"{source}: {error}, got {show(text)}") from None


def seconds(source: str, text: str | None) -> float | None:
    """Seconds that `source` gives, if it gives any.  Raises `UsageError`."""
    try:
        return None if text is None else _seconds(text)
    except UsageError as error:
        raise UsageError(f"{source}: {error}, got {show(text)}") from None


def read_json(text: str) -> typing.Any:
    """`text` as JSON.  Raises `UsageError`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"JSON is needed ({error})") from None


def _anything(text: str) -> typing.Any:
    """As a program would give it: what is refused is shown, what is the default is accepted."""
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _strategies(text: str) -> dict[str, str]:
    pairs = [one.partition("=") for one in text.split(",")]
    if not all(name and equals and target for name, equals, target in pairs):
        raise UsageError("NAME=MODULE:FUNCTION[,NAME=MODULE:FUNCTION...] is needed")
    return {name: target for name, _, target in pairs}


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names):
        raise UsageError("MODULE:NAME[,MODULE:NAME...] is needed")
    return names


def _reading(name: str, hint: object) -> dict[str, typing.Any]:
    """How a text becomes what the option takes, and what ``--help`` calls it."""
    if typing.get_origin(hint) is typing.Literal:
        return {"read": _text, "choices": typing.get_args(hint)}
    kinds = typing.get_args(hint) or (hint,)
    if name == "backoff_strategies":
        return {"read": _strategies, "metavar": "NAME=MODULE:FUNCTION[,...]"}
    if name == "around":
        return {"read": _names, "metavar": "MODULE:NAME[,...]"}
    for kind, read, metavar in (
        (job_options.Backoff, read_json, "SECONDS|JSON"),
        (job_options.Keep, read_json, "KEEP"),
        (datetime.timedelta, _seconds, "SECONDS"),
        (bool, _flag, None),
        (int, _whole, "N"),
        (str, _text, None),
    ):
        if kind in kinds:
            return {"read": read, "metavar": metavar}
    raise TypeError(f"{name}: no text can be read as {hint}")


def _settings(
    options: type, defaults: typing.Mapping[str, object], without: typing.Container[str]
) -> typing.Iterator[Setting]:
    hints = typing.get_type_hints(options)
    for name, one in described(options, defaults).items():
        if name not in without:
            text = " ".join(one.text.split()).replace("%", "%%")
            if one.default not in (None, False, {}, ()):
                text += f" Default: {one.default}."
            yield Setting(
                name,
                help=text,
                short=_SHORT.get(name),
                is_secret=name in _SECRETS,
                **_reading(name, hints[name]),
            )


_SHORT: typing.Final = {"concurrency": "-c"}
_SECRETS: typing.Final = frozenset(("cancel_secret",))

WORKER: typing.Final = (
    Setting("queue", _text, "The queue.", short="-q"),
    Setting("processes", _whole, "Worker processes; dead ones are replaced.  Default: 1.", "N"),
    Setting(
        "health_port",
        _text,
        "Answer GET /live and GET /ready there; 127.0.0.1 if no host is given.",
        "[HOST:]PORT",
    ),
    Setting(
        "log_format",
        _text,
        "How log lines on standard error look, whatever the user's module configures.  Default: "
        "text, where the user's module configures nothing.",
        choices=("text", "json"),
    ),
    Setting(
        "log_level",
        _text,
        "What is logged at least.  Default: info.",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting("name", _text, "A name for this worker."),
    *_settings(
        worker_options.WorkerArguments,
        worker_options.DEFAULTS,
        {*worker_options.LATER, "autorun"},
    ),
)
"""Of the worker command.  It starts its worker itself: there is no ``autorun``."""

OF_THE_PROCESS: typing.Final = ("processes", "health_port", "log_format", "log_level")
"""Those that are not a single worker's."""

ADD: typing.Final = tuple(
    _settings(
        job_options.JobOptions,
        job_options.DEFAULTS,
        {*job_options.LATER, "telemetry", "timestamp"},  # which programs set, nobody by hand
    )
)
"""Of ``geventq add``."""


def _later(names: typing.Iterable[str]) -> tuple[Setting, ...]:
    hidden = argparse.SUPPRESS
    return tuple(Setting(name, _anything, hidden, is_later=True) for name in sorted(names))


LATER_OF_WORKER: typing.Final = _later(worker_options.LATER)
"""What the worker command knows besides, only to say that it is not supported yet."""

LATER_OF_ADD: typing.Final = _later(job_options.LATER)
"""What ``geventq add`` knows besides, likewise."""


def add_arguments(parser: argparse.ArgumentParser, table: typing.Iterable[Setting]) -> None:
    """Give `parser` the options of a table.  What is not given is `None`; the rest is text."""
    for setting in table:
        if setting.is_secret:
            continue
        flags = [setting.flag] if setting.short is None else [setting.short, setting.flag]
        if setting.is_later:  # whether it takes a value or not
            parser.add_argument(*flags, nargs="?", const="true", help=setting.help)
        elif setting.read is _flag:
            parser.add_argument(
                *flags, action=argparse.BooleanOptionalAction, default=None, help=setting.help
            )
        else:
            parser.add_argument(
                *flags, metavar=setting.metavar, choices=setting.choices, help=setting.help
            )


def _read(setting: Setting, source: str, text: typing.Any) -> typing.Any:
    if not isinstance(text, str):  # a flag, which argparse has read
        return text
    try:
        return setting.read(text)
    except UsageError as error:
        raise UsageError(f"{source}: {error}, got {show(text)}") from None


def from_command_line(
    given: argparse.Namespace, table: typing.Iterable[Setting]
) -> dict[str, typing.Any]:
    """What the command line gives of `table`."""
    texts = ((one, getattr(given, one.name, None)) for one in table if not one.is_secret)
    return {
        setting.name: _read(setting, setting.flag, text)
        for setting, text in texts
        if text is not None
    }


def from_environment(table: typing.Iterable[Setting]) -> dict[str, typing.Any]:
    """What the environment gives of `table`; a variable that is empty gives nothing."""
    return {
        setting.name: _read(setting, f"${setting.variable}", text)
        for setting in table
        if (text := os.environ.get(setting.variable))
    }


def url(given: argparse.Namespace, in_file: str | None = None) -> str:
    """Where Redis is: the command line over the environment over the file; last `embedded:`."""
    return given.redis or os.environ.get("GEVENTQ_REDIS_URL") or in_file or "embedded:"


def prefix(given: argparse.Namespace, in_file: str | None = None) -> str:
    """The prefix of all keys, found likewise; last ``bull``."""
    for found in (given.prefix, os.environ.get("GEVENTQ_PREFIX") or None, in_file):
        if found is not None:
            return str(found)
    return "bull"


_PROCESSOR: typing.Final = Setting("processor", _text, "")
_CONNECTION: typing.Final = ("url", "prefix")


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
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError) as error:  # not there, not TOML, not UTF-8
        raise UsageError(f"--config: {path}: {error}") from None
    known = {
        "connection": _CONNECTION,
        "worker": ("processor", *(setting.name for setting in WORKER)),
    }
    later = {"connection": frozenset[str](), "worker": worker_options.LATER}
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
    names = ["processor", *(one.name for one in WORKER if one.name not in OF_THE_PROCESS)]
    for number, table in enumerate(workers):
        for name in OF_THE_PROCESS:
            if name in table:
                raise UsageError(
                    f"--config: {path}: workers[{number}].{name}: all workers live in each "
                    "process, so it belongs into [worker]"
                )
        _refuse_unknown(path, f"workers[{number}].", table, names, worker_options.LATER)
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


def worker_settings(given: argparse.Namespace) -> WorkerSettings:
    """The settings of the worker command from all three sources.  What the environment or the
    command line gives counts for all of the file's ``[[workers]]``."""
    connection, shared, workers = from_file(given.config)
    table = (*WORKER, *LATER_OF_WORKER, _PROCESSOR)
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
