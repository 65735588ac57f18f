"""The options of a worker: frozen, checked as a whole when they are made.

Every message names the option, the rule and the value.  Options of later stages are refused
rather than ignored.
"""

from __future__ import annotations

import dataclasses
import typing

from geventq.checks import (
    Seconds,
    check_duration,
    check_flag,
    check_integer,
    check_keep,
    check_name,
    check_seconds,
    show,
)

__all__ = ["WorkerOptions"]

_LATER: typing.Final[dict[str, object]] = {
    "limiter": None,
    "metrics": False,
    "watchdog": False,
    "isolate": False,
    "cancel_secret": None,
    "hints": "trusted",
    "telemetry": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """All times in seconds."""

    concurrency: int = 1
    node: str | None = None
    close_timeout: float | None = None
    lock_duration: float = 30.0
    lock_renew_time: float | None = None
    stalled_interval: float = 30.0
    max_stalled_count: int = 1
    max_started_attempts: int | None = None
    drain_delay: float = 5.0
    remove_on_complete: object = None
    remove_on_fail: object = None
    backoff_strategies: typing.Mapping[str, typing.Callable[..., Seconds]] = dataclasses.field(
        default_factory=dict
    )
    job_timeout: float | None = None
    cancel_mode: str = "soft"
    kill_after: float = 0.0
    autorun: bool = False
    skip_lock_renewal: bool = False
    skip_stalled_check: bool = False
    limiter: object = None
    metrics: object = False
    watchdog: bool = False
    isolate: bool = False
    cancel_secret: object = None
    hints: str = "trusted"
    telemetry: object = None

    @classmethod
    def made(cls, options: dict[str, typing.Any]) -> WorkerOptions:
        """The options of keyword arguments.  Raises `ValueError` for an unknown one."""
        known = cls.__dataclass_fields__
        for option, value in options.items():
            if option not in known:
                raise ValueError(
                    f"{option}: unknown option with the value {show(value)}; "
                    f"known are {', '.join(known)}"
                )
        return cls(**options)

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_times()
        for name in ("autorun", "skip_lock_renewal", "skip_stalled_check"):
            check_flag(name, getattr(self, name))
        if self.cancel_mode not in ("soft", "hard"):
            raise ValueError(f"cancel_mode: 'soft' or 'hard' is needed, got {self.cancel_mode!r}")
        if self.node is not None:
            check_name("node", self.node)
        for name in ("remove_on_complete", "remove_on_fail"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_keep(name, getattr(self, name)))
        _check_strategies(self.backoff_strategies)
        object.__setattr__(self, "backoff_strategies", dict(self.backoff_strategies))
        for name, default in _LATER.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name}: not supported yet, got {show(getattr(self, name))}")

    def _check_counts(self) -> None:
        check_integer("concurrency", self.concurrency, 1)
        check_integer("max_stalled_count", self.max_stalled_count, 0)
        if self.max_started_attempts is not None:
            check_integer("max_started_attempts", self.max_started_attempts, 1)

    def _check_times(self) -> None:
        for name in ("lock_duration", "stalled_interval", "drain_delay"):
            object.__setattr__(self, name, check_duration(name, getattr(self, name)))
        object.__setattr__(self, "kill_after", check_seconds("kill_after", self.kill_after))
        if self.close_timeout is not None:
            seconds = check_seconds("close_timeout", self.close_timeout)
            object.__setattr__(self, "close_timeout", seconds)
        if self.job_timeout is not None:
            seconds = check_duration("job_timeout", self.job_timeout)
            object.__setattr__(self, "job_timeout", seconds)
        if self.lock_renew_time is None:
            object.__setattr__(self, "lock_renew_time", self.lock_duration / 2)
        else:
            seconds = check_duration("lock_renew_time", self.lock_renew_time)
            if seconds > 0.8 * self.lock_duration:
                raise ValueError(
                    "lock_renew_time: at most 0.8 * lock_duration is needed "
                    f"({0.8 * self.lock_duration:g} s), got {seconds!r}"
                )
            object.__setattr__(self, "lock_renew_time", seconds)


def _check_strategies(strategies: object) -> None:
    if not isinstance(strategies, dict):
        raise TypeError(f"backoff_strategies: a dict is needed, got {show(strategies)}")
    for name, strategy in strategies.items():
        check_name("backoff_strategies", name)
        if not callable(strategy):
            raise TypeError(
                f"backoff_strategies[{name!r}]: a callable is needed, got {show(strategy)}"
            )
