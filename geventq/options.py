"""What a job is added with, and what a worker is made with.

Owns the names, rules and units of job options, and their form in the job's hash (wire-format
section 4): seconds here, milliseconds there.  Everything is checked before anything is written.
Must not know Redis; no greenlets run here.
"""

from __future__ import annotations

import copy
import dataclasses
import typing

from geventq.checks import (
    check_flag,
    check_integer,
    check_job_id,
    check_keep,
    check_keys,
    check_mapping,
    check_moment,
    check_name,
    check_ratio,
    check_seconds,
    check_text,
    milliseconds,
    show,
)
from geventq.codec import encode
from geventq.foreign import number_in
from geventq.job_options import JobOptions

__all__ = ["LEFT_OUT", "MAX_PRIORITY", "JobSpec", "StoredOptions", "from_wire", "job_options"]

MAX_PRIORITY: typing.Final = 2**21 - 1  # wire-format 2.3


class _LeftOut:
    """The type of `LEFT_OUT`."""

    def __repr__(self) -> str:
        return "LEFT_OUT"


LEFT_OUT: typing.Final = _LeftOut()
"""No data given: stored as ``{}``, whereas ``None`` is stored as null."""


@dataclasses.dataclass(frozen=True, slots=True)
class JobSpec:
    """One job of `Queue.add_bulk`.

    `data` is any JSON value; left out it is ``{}``.  `options` has the names of `Queue.add`.
    """

    name: str
    data: typing.Any = LEFT_OUT
    options: JobOptions | None = None


class StoredOptions:
    """Options of one job, checked, in the form in which they are stored.

    `text` is the JSON of the hash field ``opts``; the other fields are what the add script
    needs to know besides (times in milliseconds), and `rare` is most of that in one text, empty
    where all of it is as usual.
    """

    __slots__ = ("delay", "job_id", "lifo", "priority", "rare", "size_limit", "text", "timestamp")

    def __init__(self, wire: dict[str, typing.Any]) -> None:
        self.job_id: str = wire.get("jobId", "")
        self.delay: int | float = wire.get("delay", 0)
        self.priority: int = wire.get("priority", 0)
        self.lifo: bool = wire.get("lifo", False)
        self.timestamp: int | None = wire.get("timestamp")
        self.size_limit: int | None = wire.get("sizeLimit")
        self.text = encode("options", wire)
        self.rare = ""
        if self.delay or self.priority or self.lifo or self.timestamp is not None:
            moment = "" if self.timestamp is None else self.timestamp
            self.rare = f"{moment};{self.delay};{self.priority};{'1' if self.lifo else ''}"


_WIRE_NAMES: typing.Final = {
    "attempts": "attempts",
    "backoff": "backoff",
    "continue_parent_on_failure": "cpof",
    "deduplication": "de",
    "delay": "delay",
    "fail_parent_on_failure": "fpof",
    "ignore_dependency_on_failure": "idof",
    "job_id": "jobId",
    "keep_logs": "kl",
    "lifo": "lifo",
    "parent": "parent",
    "priority": "priority",
    "remove_dependency_on_failure": "rdof",
    "remove_on_complete": "removeOnComplete",
    "remove_on_fail": "removeOnFail",
    "size_limit": "sizeLimit",
    "stack_trace_limit": "stackTraceLimit",
    "timeout": "timeout",
    "timestamp": "timestamp",
}
_NUMBERS: typing.Final = frozenset(
    ("attempts", "keep_logs", "priority", "size_limit", "stack_trace_limit")
)
_TELEMETRY: typing.Final = {"metadata": "tm", "omit_context": "omc"}
_NAMES: typing.Final = {wire: name for name, wire in _WIRE_NAMES.items()}


def _time(field: str, value: object) -> int | float:
    return milliseconds(check_seconds(field, value))


def _time_limit(field: str, value: object) -> int | float:
    limit = milliseconds(check_seconds(field, value, above_zero=True))
    return limit or 0.001


def _backoff(field: str, value: object) -> dict[str, typing.Any]:
    if not isinstance(value, dict):
        return {"type": "fixed", "delay": _time(field, value)}
    given = check_mapping(field, value)
    check_keys(field, given, ("type", "delay", "jitter"))
    if "type" not in given:
        raise ValueError(f"{field}['type']: fixed, exponential or a name is needed, got none")
    wire: dict[str, typing.Any] = {"type": check_name(f"{field}['type']", given["type"])}
    if "delay" in given:
        wire["delay"] = _time(f"{field}['delay']", given["delay"])
    elif wire["type"] in ("fixed", "exponential"):
        raise ValueError(f"{field}['delay']: {wire['type']} needs seconds, got none")
    if "jitter" in given:
        wire["jitter"] = check_ratio(f"{field}['jitter']", given["jitter"])
    return wire


def _telemetry(field: str, value: object) -> dict[str, typing.Any]:
    """The trace context that travels with the job; its members are stored side by side."""
    given = check_mapping(field, value)
    check_keys(field, given, _TELEMETRY)
    wire: dict[str, typing.Any] = {}
    if "metadata" in given:
        wire["tm"] = check_text(f"{field}['metadata']", given["metadata"])
    if "omit_context" in given:
        wire["omc"] = check_flag(f"{field}['omit_context']", given["omit_context"])
    return wire


def _not_yet(field: str, value: object) -> typing.NoReturn:
    raise ValueError(f"{field}: not supported yet, got {show(value)}")


def _flag_not_yet(field: str, value: object) -> bool:
    if check_flag(field, value):
        _not_yet(field, value)
    return False


def _mapping_not_yet(field: str, value: object) -> typing.NoReturn:
    check_mapping(field, value)
    _not_yet(field, value)


_CHECKS: typing.Final[dict[str, typing.Callable[[str, object], typing.Any]]] = {
    "attempts": lambda field, value: check_integer(field, value, 0),
    "backoff": _backoff,
    "continue_parent_on_failure": _flag_not_yet,
    "deduplication": _mapping_not_yet,
    "delay": _time,
    "fail_parent_on_failure": _flag_not_yet,
    "ignore_dependency_on_failure": _flag_not_yet,
    "job_id": check_job_id,
    "keep_logs": lambda field, value: check_integer(field, value, 0),
    "lifo": check_flag,
    "parent": _mapping_not_yet,
    "priority": lambda field, value: check_integer(field, value, 0, MAX_PRIORITY),
    "remove_dependency_on_failure": _flag_not_yet,
    "remove_on_complete": check_keep,
    "remove_on_fail": check_keep,
    "size_limit": lambda field, value: check_integer(field, value, 0),
    "stack_trace_limit": lambda field, value: check_integer(field, value, 0),
    "telemetry": _telemetry,
    "timeout": _time_limit,
    "timestamp": check_moment,
}


def job_options(
    given: typing.Mapping[str, object] | None,
    defaults: typing.Mapping[str, object] | None = None,
) -> StoredOptions:
    """Check the options of one job, over the queue's `defaults`, and put them in stored form.

    An option that is `None` is one left out, also where there is a default for it (as with
    `undefined` in Node.js).  Raises `ValueError` or `TypeError` naming the option, the rule and
    the value.
    """
    merged = dict(defaults or {})
    if given is not None:
        merged.update(check_option_names("options", given))
    if not merged:
        return NO_OPTIONS
    wire: dict[str, typing.Any] = {"attempts": 0}
    for name, value in merged.items():
        if name == "telemetry" and value is not None:
            wire.update(_telemetry(name, value))
        elif value is not None:
            wire[_WIRE_NAMES[name]] = _CHECKS[name](name, value)
    return StoredOptions(wire)


def check_option_names(field: str, options: object) -> typing.Mapping[str, object]:
    """Refuse what is not a dict with names of job options."""
    if not isinstance(options, dict):
        raise TypeError(f"{field}: a dict is needed, got {show(options)}")
    for name in options:
        if name not in _CHECKS:
            raise ValueError(
                f"{show(name)}: unknown option with the value {show(options[name])}; known are "
                f"{', '.join(_CHECKS)}"
            )
    return options


def check_default_options(options: object) -> dict[str, object]:
    """Check a queue's ``default_job_options`` once, when the queue is made."""
    if options is None:
        return {}
    checked = dict(check_option_names("default_job_options", options))
    if checked.get("job_id") is not None:
        raise ValueError(f"job_id: cannot be a default, got {show(checked['job_id'])}")
    job_options(checked)
    # A copy, which nobody changes after the check.
    return {name: copy.deepcopy(value) for name, value in checked.items() if value is not None}


NO_OPTIONS: typing.Final = StoredOptions({"attempts": 0})


def from_wire(wire: typing.Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Stored options as `Queue.add` names them, in seconds; numeric text is a number (see
    `geventq.foreign`).  Names that are not ours, and values of foreign types,
    are handed back as they are, not copied."""
    options: dict[str, typing.Any] = {}
    traced = {name: wire[short] for name, short in _TELEMETRY.items() if short in wire}
    if traced:
        options["telemetry"] = traced
    for wire_name, value in wire.items():
        if wire_name in _TELEMETRY.values():
            continue
        name = _NAMES.get(wire_name, wire_name)
        if name in ("delay", "timeout", "timestamp"):
            value = _seconds(value)
        elif name in _NUMBERS and isinstance(value, str):
            number = number_in(value)
            value = value if number is None else number
        elif name == "backoff":
            value = _backoff_in_seconds(value)
        elif name == "deduplication" and isinstance(value, dict):
            value = _members_in_seconds(value, "ttl")
            if "keepLastIfActive" in value:
                value["keep_last_if_active"] = value.pop("keepLastIfActive")
        options[name] = value
    options.setdefault("attempts", 0)
    return options


def _backoff_in_seconds(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return _members_in_seconds(value, "delay")
    return _seconds(value)  # of a producer that did not normalise


def _members_in_seconds(value: dict[str, typing.Any], name: str) -> dict[str, typing.Any]:
    return {key: _seconds(member) if key == name else member for key, member in value.items()}


def _seconds(value: typing.Any) -> typing.Any:
    number = number_in(value)
    return value if number is None else number / 1000
