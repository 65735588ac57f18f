"""The options of a job: what each does, what it may be, and what it is when left out.

`JobOptions` is what one types after `Queue.add`, with the one text on each option: editors show
it, `help(Queue.add)` and ``geventq add --help`` are made from it.  How the values are checked and
stored is `geventq.options`' business.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.checks import Seconds

__all__ = [
    "DEFAULTS",
    "LATER",
    "Backoff",
    "Deduplication",
    "JobOptions",
    "Keep",
    "Parent",
    "Telemetry",
]


class Keep(typing.TypedDict, total=False):
    """Which finished jobs stay: those of the last `age` seconds, `count` of them at most; each job
    that ends removes `limit` others at most."""

    age: Seconds
    count: int
    limit: int


class Backoff(typing.TypedDict, total=False):
    """The pause before the next attempt: `type` is "fixed", "exponential" or the name of one of
    the worker's `backoff_strategies`, `delay` its seconds, and a `jitter` of 0.2 makes each up to
    a fifth shorter."""

    type: typing.Required[str]
    delay: Seconds
    jitter: float


class Deduplication(typing.TypedDict, total=False):
    """Which jobs are the same (`id`), and for how long (`ttl` seconds)."""

    id: typing.Required[str]
    ttl: Seconds
    extend: bool
    replace: bool
    keep_last_if_active: bool
    reschedule: bool


class Parent(typing.TypedDict):
    """The job that waits for this one: its `id`, and its `queue` by name or by ``prefix:name``."""

    id: str
    queue: str


class Telemetry(typing.TypedDict, total=False):
    """The trace that the job belongs to, as whoever runs it reads it."""

    metadata: str
    omit_context: bool


class JobOptions(typing.TypedDict, total=False):
    """The options of `Queue.add`, by name.  `Seconds` are a number or a `datetime.timedelta`;
    `None` is an option left out."""

    job_id: str | None
    """An id of your own: text, not an integer, without ":".  If the queue has a job of that id,
    nothing is added.  Default: none, Redis counts."""
    delay: Seconds | None
    """Seconds until it may run."""
    priority: int | None
    """1 runs before 2, up to 2,097,151; 0, no priority, runs before them all."""
    lifo: bool | None
    """Run it before those that wait already, not after them."""
    attempts: int | None
    """How often it runs at most, while it fails.  0 and 1: once."""
    backoff: Seconds | Backoff | None
    """The pause before the next attempt: seconds, or a dict with a type ("fixed", "exponential",
    or a name that the worker knows), a delay in seconds and a jitter from 0 to 1.  Default: none,
    at once."""
    timeout: Seconds | None
    """Seconds that one attempt may take; then it is cancelled, kind "timeout".  More than 0.
    Default: none, the worker's job_timeout."""
    remove_on_complete: bool | int | Keep | None
    """What stays in Redis when it has completed: true removes it at once, false keeps it, a number
    keeps so many of its kind, and a dict limits their age (seconds), their count, and how many are
    removed per call (limit).  Default: none, as the worker says."""
    remove_on_fail: bool | int | Keep | None
    """What stays when it has failed, likewise.  Default: none, as the worker says."""
    keep_logs: int | None
    """Rows of its log to keep, the newest.  Default: none, all."""
    stack_trace_limit: int | None
    """Stack traces of failed attempts to keep, the newest.  Default: none, 100."""
    size_limit: int | None
    """Refuse data with more bytes of JSON than this.  Default: none, no limit."""
    timestamp: float | None
    """When it was made, in seconds since the epoch.  Default: none, now."""
    telemetry: Telemetry | None
    """The trace that it belongs to: a dict with metadata (text) and omit_context.  Default:
    none."""
    deduplication: Deduplication | None
    """Which jobs are the same, so that only one of them is added.  Not supported yet.  Default:
    none, all are."""
    parent: Parent | None
    """The job that waits for this one.  Not supported yet.  Default: none, no job does."""
    fail_parent_on_failure: bool | None
    """When it fails, its parent fails.  Not supported yet."""
    ignore_dependency_on_failure: bool | None
    """When it fails, its parent goes on without it.  Not supported yet."""
    remove_dependency_on_failure: bool | None
    """When it fails, its parent forgets it.  Not supported yet."""
    continue_parent_on_failure: bool | None
    """When it fails, its parent goes on at once.  Not supported yet."""


DEFAULTS: typing.Final[typing.Mapping[str, object]] = dict.fromkeys(JobOptions.__annotations__) | {
    "delay": 0.0,
    "priority": 0,
    "lifo": False,
    "attempts": 0,
    "fail_parent_on_failure": False,
    "ignore_dependency_on_failure": False,
    "remove_dependency_on_failure": False,
    "continue_parent_on_failure": False,
}
"""What an option is when it is left out."""

LATER: typing.Final = frozenset(
    (
        *("deduplication", "parent", "fail_parent_on_failure", "ignore_dependency_on_failure"),
        *("remove_dependency_on_failure", "continue_parent_on_failure"),
    )
)
"""Options that are known and refused."""
