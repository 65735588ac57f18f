"""The events of a worker: each by its name, with what its listeners are called with, and when.

This is the one place that says so: `Worker.on` refuses every other name, and `help(Worker.on)` is
made from it.  How listeners are called is `geventq.worker.listeners`' business.
"""

from __future__ import annotations

import inspect
import typing

from geventq.signatures import texts

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.job import Job

__all__ = ["EVENTS", "Event", "QuietEvent", "WorkerEvents", "tells"]

T = typing.TypeVar("T", bound=typing.Callable[..., typing.Any])

QuietEvent = typing.Literal["ready", "drained", "paused", "resumed", "no_slot", "closing", "closed"]
"""An event whose listeners are called with nothing."""

Event = typing.Literal[
    "active",
    "progress",
    "completed",
    "failed",
    "retrying",
    "cancelled",
    "lock_lost",
    "stuck",
    "stalled",
    "error",
    QuietEvent,
]


class WorkerEvents(typing.Protocol):
    """A listener of the event `name` has the parameters of the method `name`.

    The outcome of an attempt is told once: `completed`; or `failed`, or `retrying` where it will
    run again; with `cancelled` before it where a request ended it (alone, where the job goes back
    to its queue); or `lock_lost`.
    """

    def active(self, job: Job) -> object:
        """The job's processor is about to begin.  Told in the job's greenlet: it waits."""

    def progress(self, job: Job, value: typing.Any) -> object:
        """The processor called ``job.update_progress(value)``."""

    def completed(self, job: Job, result: typing.Any) -> object:
        """The job is completed, with what its processor returned."""

    def failed(self, job: Job, error: BaseException) -> object:
        """The job has failed for good.  `error` is a `JobCancelled` if it was cancelled."""

    def retrying(self, job: Job, error: BaseException) -> object:
        """The attempt has failed, and the job will run again."""

    def cancelled(self, job: Job, cancellation: Cancellation) -> object:
        """A request to cancel ended the attempt; `failed` or `retrying` follows, neither where the
        job goes back to its queue because the worker closes."""

    def lock_lost(self, job: Job, cancellation: Cancellation) -> object:
        """The attempt lost its lock: another worker may run the job, and nothing that this one
        returned was written."""

    def stuck(self, job: Job, stack: str) -> object:
        """The job is alive although it was killed.  Its lock is given up, and its slot replaced;
        `stack` is where it sits."""

    def no_slot(self) -> object:
        """Stuck jobs hold every slot, the replacements too: the worker takes no more jobs."""

    def stalled(self, job_id: str) -> object:
        """The job had lost its worker, and is back in its queue or failed."""

    def error(self, error: BaseException) -> object:
        """Something went wrong that is no job's failure: an outage (told once, whatever of the
        worker meets it), a listener that raised.  Goes to the logger ``geventq`` where nobody
        listens."""

    def ready(self) -> object:
        """The worker takes jobs."""

    def drained(self) -> object:
        """It found no job that could run, and waits for one."""

    def paused(self) -> object:
        """`Worker.pause` was called."""

    def resumed(self) -> object:
        """`Worker.resume` was called."""

    def closing(self) -> object:
        """It takes no more jobs; those that run may end, within the time that `close` was given."""

    def closed(self) -> object:
        """No job runs any more, and every outcome is settled."""


EVENTS: typing.Final = frozenset(typing.get_args(Event))


def tells(on: T) -> T:
    """Decorates what registers listeners: its docstring says which events there are."""
    if on.__doc__ is not None:
        text = texts(WorkerEvents)
        on.__doc__ = f"{inspect.cleandoc(on.__doc__)}\n\nEvents:\n\n" + "\n\n".join(
            f"    {_call(name)}\n        " + "\n        ".join(text.get(name, "").splitlines())
            for name in typing.get_args(Event)
        )
    return on


def _call(name: str) -> str:
    """How a listener is called: ``completed(job: Job, result: Any)``."""
    parameters = list(inspect.signature(getattr(WorkerEvents, name)).parameters.values())[1:]
    shown = (f"{one.name}: {str(one.annotation).removeprefix('typing.')}" for one in parameters)
    return f"{name}({', '.join(shown)})"
