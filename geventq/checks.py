"""Checks of what users pass in: one function a kind of value.

Each returns the value in the form the rest of geventq works with, or raises `TypeError` (wrong
kind) or `ValueError` (right kind, wrong value) with the field, the rule and the value in the
message.  Knows nothing of Redis; no greenlets run here.
"""

from __future__ import annotations

import datetime
import math
import re
import typing

__all__ = [
    "MAX_SECONDS",
    "Seconds",
    "check_callable",
    "check_choice",
    "check_duration",
    "check_flag",
    "check_integer",
    "check_iterable",
    "check_job_id",
    "check_keep",
    "check_keys",
    "check_kill",
    "check_known_id",
    "check_list",
    "check_mapping",
    "check_moment",
    "check_name",
    "check_prefix",
    "check_queue_name",
    "check_ratio",
    "check_seconds",
    "check_text",
    "check_worker_name",
    "is_queue_key",
    "milliseconds",
    "seconds_text",
    "show",
]

Seconds = float | int | datetime.timedelta

MAX_SECONDS: typing.Final = 2**53 / 1000
"""The longest time that survives a trip through the doubles of Lua and JavaScript."""

# The suffixes of wire-format section 1: a job with such an id would overwrite its queue.
_RESERVED_IDS: typing.Final = frozenset(
    """wait active prioritized delayed waiting-children completed failed paused stalled
    stalled-check meta id pc marker events limiter repeat metrics de dn delay priority""".split()
)
_PARTS_OF_A_JOB: typing.Final = frozenset(
    "lock logs dependencies processed failed unsuccessful".split()
)
_FEW: typing.Final = 2  # words that are shown as they are written in a program
_INTEGER_TEXT: typing.Final = re.compile(r"-?[0-9]+")
_SURROGATE: typing.Final = re.compile("[\ud800-\udfff]")
_UNFIT_IN_CLIENT_NAME: typing.Final = re.compile(r"[^!-~]")


def show(value: object) -> str:
    """`value` for an error message: its repr, cut to a readable length."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 (theirs; the message is about the value)
        text = f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return text if len(text) <= 100 else text[:97] + "..."


def _wrong_type(field: str, rule: str, value: object) -> TypeError:
    return TypeError(f"{field}: {rule}, got {show(value)} ({type(value).__name__})")


def _wrong_value(field: str, rule: str, value: object) -> ValueError:
    return ValueError(f"{field}: {rule}, got {show(value)}")


def check_seconds(field: str, value: object, *, above_zero: bool = False) -> float:
    """A time in seconds (int, float or timedelta): finite, not negative, not a bool."""
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(field, "seconds as a number or a timedelta are needed", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong_value(field, "a finite number of seconds is needed", value)
    if value < 0:
        raise _wrong_value(field, "seconds must not be negative", value)
    if above_zero and value == 0:
        raise _wrong_value(field, "more than 0 seconds are needed", value)
    if value > MAX_SECONDS:
        raise _wrong_value(field, f"at most {MAX_SECONDS} seconds are possible", value)
    return float(value)


def check_duration(field: str, value: object) -> float:
    """A time in seconds that is more than 0."""
    return check_seconds(field, value, above_zero=True)


def check_moment(field: str, value: object) -> int:
    """Seconds since the epoch, as whole milliseconds: a fraction has no place in a hash."""
    if isinstance(value, datetime.timedelta):
        raise _wrong_type(field, "seconds since the epoch are needed", value)
    return int(check_seconds(field, value) * 1000)


def milliseconds(seconds: float) -> int | float:
    """Seconds as milliseconds for the wire: an int where that is exact to the microsecond."""
    value = round(seconds * 1000, 3)
    whole = int(value)
    return whole if whole == value else value


def seconds_text(seconds: float) -> str:
    """A time for people, to the microsecond: ``0.05``, ``1209600``; never an exponent where a
    number will do."""
    text = f"{seconds:.6f}".rstrip("0").rstrip(".")
    return text if float(text) or not seconds else f"{seconds:g}"


def check_integer(field: str, value: object, low: int, high: int | None = None) -> int:
    """An int (not a bool) of at least `low` and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(field, "a whole number is needed", value)
    limit = 2**53 if high is None else high
    if not low <= value <= limit:
        rule = f"at least {low} is needed" if value < low else f"at most {limit} is possible"
        raise _wrong_value(field, rule, value)
    return int(value)


def check_ratio(field: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(field, "a number from 0 to 1 is needed", value)
    if not 0 <= value <= 1:  # also refuses NaN
        raise _wrong_value(field, "a number from 0 to 1 is needed", value)
    return value


def check_flag(field: str, value: object) -> bool:
    """A bool, and nothing that merely looks like one."""
    if not isinstance(value, bool):
        raise _wrong_type(field, "True or False is needed", value)
    return value


def check_kill(hard: bool | None, kill_after: Seconds | None) -> tuple[bool | None, float | None]:
    """How a request kills: whether it does, or `None` for who is asked to decide, and the seconds
    of its grace, if it gives any, which alone means that it does."""
    if hard is not None:
        check_flag("hard", hard)
    if kill_after is None:
        return hard, None
    grace = check_seconds("kill_after", kill_after)
    if hard is False:
        raise ValueError(f"kill_after: makes no sense with hard=False, got {grace!r}")
    return True, grace


def check_text(field: str, value: object) -> str:
    """Text that can be encoded in UTF-8."""
    if not isinstance(value, str):
        raise _wrong_type(field, "text is needed", value)
    if not value.isascii() and _SURROGATE.search(value):
        raise _wrong_value(field, "must not hold a lone surrogate", value)
    return value


def check_name(field: str, value: object) -> str:
    """Text that is not empty and can be encoded in UTF-8."""
    text = check_text(field, value)
    if not text:
        raise _wrong_value(field, "must not be empty", value)
    return text


def check_choice(field: str, value: object, choices: typing.Iterable[str]) -> str:
    """One of some words."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        words = list(map(repr, known)) if len(known) <= _FEW else known
        rule = " or ".join(words) if len(known) <= _FEW else f"one of {', '.join(words)}"
        raise _wrong_value(field, f"{rule} is needed", value)
    return value


def check_callable(field: str, value: object) -> typing.Callable[..., typing.Any]:
    """Something that can be called."""
    if not callable(value):
        raise _wrong_type(field, "a callable is needed", value)
    return value


def check_queue_name(value: object, field: str = "queue name") -> str:
    """The name of a queue: text without ``:`` (wire-format section 1)."""
    name = check_name(field, value)
    if ":" in name:
        raise _wrong_value(field, "must not contain ':'", value)
    return name


def check_prefix(value: object) -> str:
    """The prefix of all keys: printable ASCII without spaces, because names of connections
    begin with it (wire-format section 11)."""
    return _part_of_client_name("prefix", value)


def check_worker_name(value: object) -> str:
    """The name of a worker, with which the name of its connection ends."""
    return _part_of_client_name("name", value)


def _part_of_client_name(field: str, value: object) -> str:
    """Text that Redis takes in ``CLIENT SETNAME``."""
    text = check_name(field, value)
    if _UNFIT_IN_CLIENT_NAME.search(text):
        raise _wrong_value(field, "must be printable ASCII without spaces", value)
    return text


def check_job_id(field: str, value: object) -> str:
    """A custom id: not one that the queue gives itself, and not the name of one of its keys."""
    job_id = check_name(field, value)
    if ":" in job_id:
        raise _wrong_value(field, "must not contain ':'", value)
    if _INTEGER_TEXT.fullmatch(job_id) and str(int(job_id[:400])) == job_id:
        raise _wrong_value(field, "must not be an integer, those ids are given by Redis", value)
    if job_id in _RESERVED_IDS:
        raise _wrong_value(field, "is reserved for a key of the queue", value)
    return job_id


def is_queue_key(job_id: str) -> bool:
    """Whether what the queue stores under that name is something else than a job."""
    first, colon, rest = job_id.partition(":")
    if first == "repeat":
        return ":" not in rest  # `repeat:id:ms` is a scheduler's job
    if first == "gq":
        return bool(colon)
    return first in _RESERVED_IDS or (bool(colon) and rest.rpartition(":")[2] in _PARTS_OF_A_JOB)


def check_known_id(field: str, value: object) -> str:
    """The id of a job that may be there: one that Redis, a scheduler or another program gave it,
    but no key of the queue."""
    job_id = check_name(field, value)
    if is_queue_key(job_id):
        raise _wrong_value(field, "is reserved for a key of the queue", value)
    return job_id


def check_list(field: str, value: typing.Iterable[typing.Any]) -> list[typing.Any]:
    """Something to iterate, once."""
    return list(check_iterable(field, value))


def check_iterable(field: str, value: typing.Iterable[typing.Any]) -> typing.Iterator[typing.Any]:
    """Something to iterate that is no text, nor bytes."""
    try:
        if isinstance(value, str | bytes | bytearray | memoryview):
            raise TypeError
        return iter(value)
    except TypeError:
        raise _wrong_type(field, "a list is needed", value) from None


def check_mapping(field: str, value: object) -> dict[str, typing.Any]:
    """A dict with text keys; returned as a new dict without the members that are `None`."""
    if not isinstance(value, dict):
        raise _wrong_type(field, "a dict is needed", value)
    for key in value:
        if not isinstance(key, str):
            raise _wrong_type(field, "the keys must be text", key)
    return {key: member for key, member in value.items() if member is not None}


def check_keys(field: str, value: typing.Mapping[str, object], known: typing.Iterable[str]) -> None:
    """Refuse keys that nobody would read."""
    unknown = sorted(set(value) - set(known))
    if unknown:
        rule = f"unknown option; known are {', '.join(sorted(known))}"
        inner = f"{field}[{unknown[0]!r}]" if field else unknown[0]
        raise _wrong_value(inner, rule, value[unknown[0]])


def check_keep(field: str, value: object) -> bool | int | dict[str, int | float]:
    """A removal policy: a bool, a count, or ``{"age": seconds, "count": n, "limit": n}``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return check_integer(field, value, 0)
    if not isinstance(value, dict):
        raise _wrong_type(field, "a bool, a count or a dict is needed", value)
    given = check_mapping(field, value)
    check_keys(field, given, ("age", "count", "limit"))
    policy: dict[str, int | float] = {}
    if "age" in given:
        age = check_seconds(f"{field}['age']", given["age"])
        policy["age"] = int(age) if age.is_integer() else age
    if "count" in given:
        policy["count"] = check_integer(f"{field}['count']", given["count"], 0)
    if "limit" in given:
        policy["limit"] = check_integer(f"{field}['limit']", given["limit"], 1)
    return policy
