"""The settings of the commands: a table each for the command line, the environment and the file.

A setting named ``lock_duration`` is ``--lock-duration`` on the command line,
``$GEVENTQ_LOCK_DURATION`` in the environment and ``lock_duration`` in the file; the first of
these that gives it wins.  The tables are made from `WorkerArguments` and `JobOptions`: an option
that comes there is a flag, a variable and a line of the file at once.  Each stands with its
command.  Reading a text is this module's business, the rules of a value are those of
`WorkerOptions` and `Queue.add`.  So is what they say of options that are not supported yet: these
can be given, and are not shown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import typing

from geventq import job_options
from geventq.checks import show
from geventq.commands.console import UsageError
from geventq.signatures import described

__all__ = [
    "Setting",
    "add_arguments",
    "add_common_arguments",
    "as_text",
    "as_whole",
    "from_command_line",
    "from_environment",
    "given_prefix",
    "later",
    "prefix",
    "read_json",
    "seconds",
    "table_of",
    "url",
    "whole",
]

_TRUE: typing.Final = frozenset(("1", "true", "yes", "on"))
_FALSE: typing.Final = frozenset(("0", "false", "no", "off"))


class Setting(typing.NamedTuple):
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


def as_text(text: str) -> str:
    """How a setting reads a text that is one."""
    return text


def as_whole(text: str) -> int:
    """How a setting reads a whole number.  Raises `UsageError`."""
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
        return as_whole(text)
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
        return {"read": as_text, "choices": typing.get_args(hint)}
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
        (int, as_whole, "N"),
        (str, as_text, None),
    ):
        if kind in kinds:
            return {"read": read, "metavar": metavar}
    raise TypeError(f"{name}: no text can be read as {hint}")


_SHORT: typing.Final = {"concurrency": "-c"}
_SECRETS: typing.Final = frozenset(("cancel_secret",))


def table_of(
    options: type, defaults: typing.Mapping[str, object], without: typing.Container[str]
) -> typing.Iterator[Setting]:
    """The settings that a `TypedDict` of options makes, but for those `without` one."""
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


def later(names: typing.Iterable[str]) -> tuple[Setting, ...]:
    """What a command knows besides, only to say that it is not supported yet."""
    hidden = argparse.SUPPRESS
    return tuple(Setting(name, _anything, hidden, is_later=True) for name in sorted(names))


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Of all commands."""
    parser.add_argument(
        "--redis", metavar="URL", help="where Redis is ($GEVENTQ_REDIS_URL, else embedded:)"
    )
    parser.add_argument("--prefix", help="the first part of every key (bull)")
    parser.add_argument("--json", action="store_true", help="print JSON only")


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
    for found in (given_prefix(given), in_file):
        if found is not None:
            return found
    return "bull"


def given_prefix(given: argparse.Namespace) -> str | None:
    """What the command line or the environment says, over each that stands in a file."""
    for found in (given.prefix, os.environ.get("GEVENTQ_PREFIX") or None):
        if found is not None:
            return str(found)
    return None
