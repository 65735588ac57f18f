"""What a job's stored options mean for its runs, understood once for equal option texts."""

from __future__ import annotations

import typing

from geventq.codec import decode

__all__ = ["Policies", "RunPolicy"]

Keep = list[float] | None  # [count or -1, age in s or -1, limit]; None keeps all
_DEFAULT_LIMIT: typing.Final = 1000  # of removals by age in one call (wire-format 8.5)
_HUGE: typing.Final = 2**53
_CACHED: typing.Final = 512  # option texts; most queues have a handful


class RunPolicy:
    """The options of one job that its worker acts on (wire-format 4).

    `attempts` is at least 1; `attempts_given` is what was stored (0 where nothing was: wire-format
    17.6); `timeout` is in seconds; `keep_*` say what stays of finished jobs.
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

    def __init__(
        self, opts: dict[str, typing.Any], keep_completed: Keep, keep_failed: Keep
    ) -> None:
        self.attempts_given = int(_number(opts, "attempts", 0))
        self.attempts = max(1, self.attempts_given)
        self.lifo = bool(opts.get("lifo"))
        timeout = _number(opts, "timeout", 0)
        self.timeout = timeout / 1000 if timeout > 0 else None
        limit = opts.get("stackTraceLimit")
        self.stack_limit = None if limit is None else int(_number(opts, "stackTraceLimit", 0))
        self.keep_completed = keep_policy(opts.get("removeOnComplete"), keep_completed)
        self.keep_failed = keep_policy(opts.get("removeOnFail"), keep_failed)


class Policies:
    """Policies by option text, for one worker with its own removal defaults."""

    def __init__(self, remove_on_complete: object, remove_on_fail: object) -> None:
        self._keep_completed = keep_policy(remove_on_complete, None)
        self._keep_failed = keep_policy(remove_on_fail, None)
        self._known: dict[bytes, RunPolicy] = {}

    def of(self, opts: bytes) -> RunPolicy:
        """The policy for a job's stored ``opts``.  Raises `ValueError` naming ``opts``."""
        policy = self._known.get(opts)
        if policy is None:
            try:
                parsed = decode(opts) if opts else {}
                if not isinstance(parsed, dict):
                    raise ValueError("not an object")
                policy = RunPolicy(parsed, self._keep_completed, self._keep_failed)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"opts: cannot be used: {error}: {opts[:200]!r}") from None
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[opts] = policy
        return policy


def keep_policy(option: object, default: Keep) -> Keep:
    """``removeOnComplete`` / ``removeOnFail`` as settle.lua reads it; `default` where unset."""
    if option is None:
        return default
    if option is True:
        return [0, -1, _DEFAULT_LIMIT]
    if option is False:
        return None
    if isinstance(option, (int, float)):
        return [_whole("count", option), -1, _DEFAULT_LIMIT]
    if not isinstance(option, dict):
        raise ValueError(f"a removal policy must be a bool, a number or an object: {option!r}")
    count, age = option.get("count"), option.get("age")
    if count is None and age is None:
        return None
    limit = option.get("limit") or _DEFAULT_LIMIT
    return [
        -1 if count is None else _whole("count", count),
        -1 if age is None else _finite("age", age),
        _whole("limit", limit),
    ]


def _whole(name: str, value: object) -> float:
    """A count that the script can compute with: it stops half-way at any other."""
    number = _finite(name, value)
    if number != int(number):
        raise ValueError(f"{name} of a removal policy must be a whole number: {value!r}")
    return number


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _HUGE:
        raise ValueError(f"{name} of a removal policy must be a number: {value!r}")
    return value


def _number(opts: dict[str, typing.Any], name: str, default: float) -> float:
    value = opts.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number: {value!r}")
    return value
