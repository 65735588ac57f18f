"""The options of a worker: what each does, what it may be, and what it is when left out.

`WorkerArguments` is what one types, with the one text on each option: editors show it, and
`help(Worker)`, ``geventq worker --help`` and ``conf/geventq.toml`` are made from it or checked
against it.  `WorkerOptions` is what comes of it: frozen, checked as a whole, seconds as floats;
its rows hold the defaults and the checks.  Every message names the option, the rule and the
value.  Options of later stages are refused rather than ignored.  No greenlets run here.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from geventq.backoff import Strategy
from geventq.cancel_secret import CancelSecret, check_cancel_secret, given_secret
from geventq.cancellation import CancellationToken
from geventq.checks import (
    Seconds,
    check_choice,
    check_duration,
    check_flag,
    check_integer,
    check_keep,
    check_name,
    check_seconds,
    seconds_text,
    show,
)
from geventq.job import Job
from geventq.job_options import Keep
from geventq.worker.callables import takes_token

__all__ = ["DEFAULTS", "LATER", "Limiter", "WorkerArguments", "WorkerOptions"]

SHORTEST_LOCK: typing.Final = 0.1
"""Seconds: a call to a busy server may take as long, and a lock must outlive it."""
SHORTEST_INTERVAL: typing.Final = 0.001
"""Seconds: Redis keeps whole milliseconds."""

Around = (
    typing.Callable[[Job], typing.ContextManager[object]]
    | typing.Callable[[Job, CancellationToken], typing.ContextManager[object]]
)
"""Makes what is entered around a processor, of the job, or of the job and its token."""


class Limiter(typing.TypedDict):
    """At most `max` jobs start in `duration` seconds."""

    max: int
    duration: Seconds


class WorkerArguments(typing.TypedDict, total=False):
    """The options of `Worker`, by name.  `Seconds` are a number or a `datetime.timedelta`."""

    concurrency: int
    """Jobs that run at the same time, each in a greenlet of its own.  More than 0; may be changed
    while the worker runs."""
    node: str | None
    """The machine, as worker groups see it.  Default: none, the host name."""
    close_timeout: Seconds | None
    """Seconds that running jobs get to finish when a signal or a `with` block closes the worker;
    then they are cancelled and go back to their queue.  0: at once.  Default: none, wait for
    ever."""
    lock_duration: Seconds
    """Seconds that a job is owned by this worker without a renewal; then another worker may run
    it.  At least 0.1."""
    lock_renew_time: Seconds | None
    """Seconds between renewals, at most 0.8 * lock_duration.  Default: none, half of
    lock_duration."""
    stalled_interval: Seconds
    """Seconds between two looks for jobs whose worker died.  At least 0.001."""
    max_stalled_count: int
    """How often a job may be found stalled and run again before it fails.  0: never again."""
    max_started_attempts: int | None
    """How often a job may be started at all, however each start ended: against jobs that take
    their process down.  Default: none, no limit."""
    drain_delay: Seconds
    """Seconds that an idle worker waits in one blocking call to Redis before it asks again.  A
    new job ends the wait at once; more than 0."""
    remove_on_complete: bool | int | Keep | None
    """Which completed jobs stay in Redis, where the job itself does not say: true removes each at
    once, false keeps all, a number keeps that many, and a dict limits their age (seconds), their
    count, and how many are removed per call (limit).  Default: none, keep all."""
    remove_on_fail: bool | int | Keep | None
    """Which failed jobs stay, likewise.  Default: none, keep all."""
    backoff_strategies: collections.abc.Mapping[str, Strategy]
    """Back-offs that jobs name, as in {"type": "mine"}: each is called with the number of
    attempts made (1 after the first), the error and the job, and returns the seconds until the
    next attempt, or a negative number to fail the job now.  It has 10 s."""
    job_timeout: Seconds | None
    """Seconds that a job may run; then it is cancelled, kind "timeout".  A job's own timeout
    wins.  Default: none, no limit."""
    cancel_mode: typing.Literal["soft", "hard"]
    """How a request to cancel that does not say it is carried out.  "soft": the token is set, the
    processor decides.  "hard": also kill the job's greenlet, after kill_after."""
    kill_after: Seconds
    """Seconds between asking and killing, in hard mode.  0: the next turn of the hub."""
    autorun: bool
    """Start in the constructor."""
    skip_lock_renewal: bool
    """Renew nothing: a job that runs longer than lock_duration has to call extend_lock()."""
    skip_stalled_check: bool
    """Do not look for stalled jobs: another worker of the queue has to."""
    exit_when_stuck: bool
    """Close when jobs that swallow every kill hold every slot, so that a supervisor can replace
    the process; the worker command ends with status 1 then."""
    max_connections: int
    """Connections to the server that calls of this process may hold, those of its jobs included;
    further calls wait for one within their time.  Of several workers and queues the smallest
    counts; what a worker needs for itself comes on top.  More than 0."""
    limiter: Limiter | None
    """At most `max` jobs start in `duration` seconds, in all workers of the queue together.  Not
    supported yet.  Default: none, no limit."""
    metrics: bool | int
    """Count completed and failed jobs per minute in Redis, for so many minutes (true: two weeks).
    Not supported yet."""
    watchdog: bool
    """Renew locks and reach jobs from a native thread while the hub is blocked.  Not supported
    yet."""
    isolate: bool
    """Run each job in a child process.  Not supported yet."""
    cancel_secret: str | None
    """The secret that hard requests from other processes, and a group's calls that pause or
    cancel, have to be signed with: text of at least 4 characters, or several, one a line, of which
    the first signs and each is believed.  Default: none, that of $GEVENTQ_CANCEL_SECRET; without
    one nothing is signed, and everything believed."""
    hints: typing.Literal["trusted", "recorded-only"]
    """What a message that asks to cancel a job is worth.  "trusted": it is acted on at once; one
    of another program, without a record in Redis, cancels softly.  "recorded-only": the record is
    read first, and a message without one is ignored."""
    telemetry: object
    """What traces jobs.  Not supported yet.  Default: none."""
    around: collections.abc.Sequence[Around]
    """Callables that take the job, and the token if they want it, and return a context manager
    that is entered around the processor, in the job's greenlet, the first one outermost.  They
    see what it raises, cancellations too, and swallow nothing; one that fails on entry fails the
    job.  Leaving has 30 s, in which no kill arrives."""


Check = typing.Callable[[str, object], object]
T = typing.TypeVar("T")


def _row(default: T, check: Check) -> T:
    """An option with its default; a value other than that goes through `check`, and what comes
    back is kept."""
    return dataclasses.field(default=default, metadata={"check": check})


def _at_least(low: int) -> Check:
    return lambda name, value: check_integer(name, value, low)


def _choice(*known: str) -> Check:
    return lambda name, value: check_choice(name, value, known)


def _at_least_seconds(least: float) -> Check:
    def check(name: str, value: object) -> object:
        seconds = check_duration(name, value)
        if seconds < least:
            raise ValueError(f"{name}: at least {least} seconds are needed, got {show(value)}")
        return seconds

    return check


def _strategies(name: str, value: object) -> dict[str, Strategy]:
    if not isinstance(value, collections.abc.Mapping):
        raise TypeError(f"{name}: a dict is needed, got {show(value)}")
    for one, strategy in value.items():
        check_name(name, one)
        if not callable(strategy):
            raise TypeError(f"{name}[{one!r}]: a callable is needed, got {show(strategy)}")
    return dict(value)


def _around(name: str, value: object) -> tuple[Around, ...]:
    if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
        raise TypeError(f"{name}: a list of callables is needed, got {show(value)}")
    for number, one in enumerate(value):
        if not callable(one):
            raise TypeError(f"{name}[{number}]: a callable is needed, got {show(one)}")
        takes_token(f"{name}[{number}]", one, "; decorate it with @contextlib.contextmanager")
    return tuple(value)


def _later(default: T) -> T:
    """An option that a later stage builds."""

    def check(name: str, value: object) -> object:
        if type(value) is not type(default) or value != default:
            raise ValueError(f"{name}: not supported yet, got {show(value)}")
        return default

    return dataclasses.field(default=default, metadata={"check": check, "later": True})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """`WorkerArguments`, checked: all times in seconds, and nothing in it is the caller's."""

    concurrency: int = _row(1, _at_least(1))
    node: str | None = _row(None, check_name)
    close_timeout: float | None = _row(None, check_seconds)
    lock_duration: float = _row(30.0, _at_least_seconds(SHORTEST_LOCK))
    lock_renew_time: float | None = _row(None, check_duration)  # set, once made
    stalled_interval: float = _row(30.0, _at_least_seconds(SHORTEST_INTERVAL))
    max_stalled_count: int = _row(1, _at_least(0))
    max_started_attempts: int | None = _row(None, _at_least(1))
    drain_delay: float = _row(5.0, check_duration)
    remove_on_complete: object = _row(None, check_keep)
    remove_on_fail: object = _row(None, check_keep)
    backoff_strategies: collections.abc.Mapping[str, Strategy] = dataclasses.field(
        default_factory=dict, metadata={"check": _strategies}
    )
    job_timeout: float | None = _row(None, check_duration)
    cancel_mode: str = _row("soft", _choice("soft", "hard"))
    kill_after: float = _row(0.0, check_seconds)
    autorun: bool = _row(False, check_flag)
    skip_lock_renewal: bool = _row(False, check_flag)
    skip_stalled_check: bool = _row(False, check_flag)
    exit_when_stuck: bool = _row(False, check_flag)
    max_connections: int = _row(50, _at_least(1))
    limiter: object = _later(None)
    metrics: object = _later(False)
    watchdog: bool = _later(False)
    isolate: bool = _later(False)
    cancel_secret: CancelSecret | None = dataclasses.field(  # once made, the environment's too
        default=None, metadata={"check": check_cancel_secret}
    )
    hints: str = _row("trusted", _choice("trusted", "recorded-only"))
    telemetry: object = _later(None)
    around: tuple[Around, ...] = _row((), _around)

    @classmethod
    def made(cls, options: typing.Mapping[str, object]) -> WorkerOptions:
        """The options of keyword arguments.  Raises `ValueError` for an unknown one, and
        `ValueError` or `TypeError` for a bad value."""
        known = cls.__dataclass_fields__
        for option, value in options.items():
            if option not in known:
                shown = "a secret" if "secret" in option else show(value)
                raise ValueError(
                    f"{option}: unknown option with the value {shown}; known are {', '.join(known)}"
                )
        return cls(**typing.cast(dict[str, typing.Any], options))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                checked = field.metadata["check"](field.name, value)
                object.__setattr__(self, field.name, checked)
        if self.cancel_secret is None:
            object.__setattr__(self, "cancel_secret", given_secret(None))
        longest = 0.8 * self.lock_duration
        if self.lock_renew_time is None:
            object.__setattr__(self, "lock_renew_time", self.lock_duration / 2)
        elif self.lock_renew_time > longest:
            raise ValueError(
                "lock_renew_time: at most 0.8 * lock_duration is needed "
                f"({seconds_text(longest)} s), got {self.lock_renew_time!r}"
            )


_ROWS: typing.Final = dataclasses.fields(WorkerOptions)
DEFAULTS: typing.Final[typing.Mapping[str, object]] = {
    row.name: {} if row.default is dataclasses.MISSING else row.default for row in _ROWS
}
LATER: typing.Final = frozenset(row.name for row in _ROWS if "later" in row.metadata)
"""Options that are known and refused."""
