"""Which job a log record belongs to: `JobLogFilter`, for users' logging and the worker command's.

Owns one context variable, the only one that a job's context begins with (cancellation.md 2.16).
Knows neither jobs nor greenlets: the job's start sets the label, and `geventq.cancellation.labels`
hands it on to what the job starts.  Nothing of that happens before a filter is made.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import typing

__all__ = ["JobLabel", "JobLogFilter", "begin", "current", "is_used", "labelled", "remember"]


class JobLabel(typing.NamedTuple):
    """What a log record says of the job that it comes from."""

    job: str
    queue: str
    attempt: int
    """1 for the first one."""


_label: typing.Final[contextvars.ContextVar[JobLabel | None]] = contextvars.ContextVar(
    "geventq.job", default=None
)
_of_threads: typing.Final = "_geventq_label"  # an attribute of native threads
_is_used = False


class JobLogFilter(logging.Filter):
    """Gives each log record `job` (the id), `queue` and `attempt` (1 for the first one).

    It belongs on a handler, which then names the job in every line, those of libraries included::

        handler.addFilter(JobLogFilter())
        handler.setFormatter(logging.Formatter("%(levelname)s %(queue)s/%(job)s %(message)s"))

    Records from outside of any job get `outside`, a dash if it is not given; what a record says of
    itself by ``extra=`` is kept.  It knows the job in its own greenlet and in the greenlets,
    threads and thread pool calls that the job starts.  Jobs that began before the first filter was
    made are not named.  `name` is that of `logging.Filter`.  Does not yield.
    """

    def __init__(self, name: str = "", *, outside: object = "-") -> None:
        global _is_used
        super().__init__(name)
        self._outside = outside
        _is_used = True

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; `False` only for a record that `name` keeps out."""
        label = current()
        fields = record.__dict__
        for number, field in enumerate(JobLabel._fields):
            if field not in fields:
                fields[field] = self._outside if label is None else label[number]
        return bool(super().filter(record))


def is_used() -> bool:
    """Whether anybody asks for labels."""
    return _is_used


def current() -> JobLabel | None:
    """The label of the job that the caller runs for."""
    label = _label.get()
    if label is None:
        return getattr(threading.current_thread(), _of_threads, None)
    return label


def begin(job: str, queue: str, attempt: int) -> None:
    """The current context is that of a job, from its start to its end."""
    _label.set(JobLabel(job, queue, attempt))


def remember(thread: threading.Thread, label: JobLabel) -> None:
    """`thread`, a native one that has not begun, runs for that job."""
    setattr(thread, _of_threads, label)


@contextlib.contextmanager
def labelled(label: JobLabel | None) -> typing.Iterator[None]:
    """In this block the caller runs for the job of `label`, if there is one."""
    if label is None:
        yield
        return
    before = _label.set(label)
    try:
        yield
    finally:
        _label.reset(before)
