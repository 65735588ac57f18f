"""What a job's stored options mean for its runs, understood once for equal option texts.

Foreign producers are read as Node.js reads them (`geventq.foreign`); what cannot be read is the
default, and each option is told of once.
"""

from __future__ import annotations

import logging
import math
import typing

from geventq.backoff import unreadable
from geventq.checks import show
from geventq.codec import decode
from geventq.foreign import number_in, times_in

__all__ = ["Policies", "RunPolicy"]

Keep = list[float] | None  # [count or -1, age in s or -1, limit]; None keeps all
Unread = typing.Callable[[str, object], None]  # is told of an option that cannot be read
_DEFAULT_LIMIT: typing.Final = 1000  # of removals by age in one call (wire-format 8.5)
_HUGE: typing.Final = 2**53
_CACHED: typing.Final = 512  # option texts; most queues have a handful

log = logging.getLogger("geventq")


class _Defaults(typing.NamedTuple):
    """The worker's own removal policies."""

    completed: Keep
    failed: Keep


class RunPolicy:
    """The options of one job that its worker acts on (wire-format 4).

    `attempts` is at least 1, and may be a fraction or infinite, as in Node.js; `attempts_given` is
    what was stored (0 where nothing was: wire-format 17.6); `timeout` is in seconds; `keep_*` say
    what stays of finished jobs.
    """

    __slots__ = (
        "attempts",
        "attempts_given",
        "keep_completed",
        "keep_failed",
        "lifo",
        "stack_limit",
        "timeout",
    )

    def __init__(self, opts: dict[str, typing.Any], defaults: _Defaults, unread: Unread) -> None:
        given = _read(opts, "attempts", math.inf, unread)
        self.attempts_given = 0 if given is None else given
        self.attempts = max(1, self.attempts_given)
        self.lifo = bool(opts.get("lifo"))
        timeout = _read(opts, "timeout", _HUGE, unread)
        self.timeout = timeout / 1000 if timeout else None
        limit = _read(opts, "stackTraceLimit", _HUGE, unread)
        self.stack_limit = None if limit is None else int(limit)
        if unreadable(opts.get("backoff")):
            unread("backoff", opts["backoff"])
        completed, failed = defaults
        self.keep_completed = _keep(opts, "removeOnComplete", completed, unread)
        self.keep_failed = _keep(opts, "removeOnFail", failed, unread)


class Policies:
    """Policies by option text, for one worker with its own removal defaults (as `check_keep`
    answers them)."""

    def __init__(self, remove_on_complete: object, remove_on_fail: object, queue: str = "") -> None:
        self._queue = queue
        self._warned: set[str] = set()  # options that somebody was told of
        own = {"completed": remove_on_complete, "failed": remove_on_fail}
        keeps = [_keep(own, name, None, self._unread) for name in _Defaults._fields]
        self._defaults = _Defaults(*keeps)
        self._known: dict[bytes, RunPolicy] = {}

    def of(self, opts: bytes) -> RunPolicy:
        """The policy for a job's stored ``opts``.  Raises `ValueError` naming ``opts`` for what
        is no JSON object."""
        policy = self._known.get(opts)
        if policy is None:
            try:
                parsed = decode(opts) if opts else {}
                if not isinstance(parsed, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise ValueError(f"opts: cannot be used: {error}: {opts[:200]!r}") from None
            policy = RunPolicy(parsed, self._defaults, self._unread)
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[opts] = policy
        return policy

    def _unread(self, option: str, value: object) -> None:
        if option in self._warned:
            return
        self._warned.add(option)
        log.warning(
            "the option %s of a job of queue %s cannot be read, its default is used: %s",
            option,
            self._queue,
            show(value),
            extra={"queue": self._queue},
        )


def _read(
    opts: dict[str, typing.Any], name: str, most: float, unread: Unread, low: float = 0
) -> float | None:
    """An option that is a number from `low` to `most`; `None` for one left out or unreadable."""
    value = opts.get(name)
    if value is None:
        return None
    number = number_in(value)
    if number is None or not low <= number <= most:
        unread(name, value)
        return None
    return number


def _keep(opts: dict[str, typing.Any], name: str, default: Keep, unread: Unread) -> Keep:
    """``removeOnComplete`` / ``removeOnFail`` as settle.lua reads it; `default` where unset."""
    option = opts.get(name)
    if option is None:
        return default
    if option is True:
        return [0, -1, _DEFAULT_LIMIT]
    if option is False or option == {}:
        return None
    if isinstance(option, dict):
        return _keep_members(option, name, default, unread)
    # The empty text is 0 in JavaScript: too little to delete anything for.
    count = None if isinstance(option, str) and not option.strip() else _count_in(option)
    if count is None:
        unread(name, option)
        return default
    return [count, -1, _DEFAULT_LIMIT]


def _keep_members(option: dict[str, typing.Any], name: str, default: Keep, unread: Unread) -> Keep:
    """The object form; `default` if nothing of it can be read."""
    read: dict[str, float] = {}
    for member, reader in (("count", _count_in), ("age", _age_in), ("limit", _limit_in)):
        value = option.get(member)
        if value is None:
            continue
        number = reader(value)
        if number is None:
            unread(f"{name}.{member}", value)
        else:
            read[member] = number
    if "count" not in read and "age" not in read:
        asked = option.get("count") is not None or option.get("age") is not None
        return default if asked else None
    return [read.get("count", -1), read.get("age", -1), read.get("limit") or _DEFAULT_LIMIT]


def _count_in(value: object) -> float | None:
    """A count that the script can compute with: it stops half-way at a fraction."""
    number = number_in(value)
    return number if number is not None and abs(number) <= _HUGE and number % 1 == 0 else None


def _limit_in(value: object) -> float | None:
    limit = _count_in(value)
    return limit if limit is None or limit > 0 else None


def _age_in(value: object) -> float | None:
    return times_in(value, _HUGE)
