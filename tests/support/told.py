"""What a worker told its listeners, and what the queue's event stream says of a job."""

from __future__ import annotations

import typing

from geventq import Cancellation, Job, Queue, Worker
from geventq.worker.engine import Engine
from geventq.worker.listeners import EVENTS
from tests.support.waiting import eventually

__all__ = ["OUTCOMES", "Told", "ended", "engine_of", "listens", "stream_of"]

#: The events that tell of an attempt's end.
OUTCOMES: typing.Final = (*("completed", "failed", "retrying", "cancelled", "lock_lost", "stuck"),)


class Told:
    """Listens to every event of `worker`, from before its start on."""

    def __init__(self, worker: Worker) -> None:
        self.events: list[tuple[str, tuple[typing.Any, ...]]] = []
        for event in sorted(EVENTS - {"active"}):
            worker.on(event, self._listener(event))

    def _listener(self, event: str) -> typing.Callable[..., None]:
        return lambda *args: self.events.append((event, args))

    def of(self, job: Job) -> list[str]:
        """The outcomes that were told of a job, in order."""
        return [event for event, args in self.events if event in OUTCOMES and args[0].id == job.id]

    def args(self, event: str) -> list[tuple[typing.Any, ...]]:
        """What the listeners of `event` were called with."""
        return [args for name, args in self.events if name == event]

    def wait(self, event: str) -> tuple[typing.Any, ...]:
        """Wait for the first `event` and return what its listeners were called with."""
        return eventually(lambda: self.args(event), what=f"the event {event}")[0]

    def cancellation(self) -> Cancellation:
        """The request of the first `cancelled` event."""
        said = self.wait("cancelled")[1]
        assert isinstance(said, Cancellation)
        return said


def ended(queue: Queue, job: Job, state: str) -> Job:
    """Wait until the job is in `state`, and return it as it is then."""
    eventually(lambda: queue.get_job_state(job.id) == state, what=f"job {job.id} is {state}")
    read = queue.get_job(job.id)
    assert read is not None
    return read


def stream_of(redis_client: typing.Any, prefix: str, job: Job) -> list[dict[str, str]]:
    """The fields of the stream's entries about `job`, in order."""
    entries = redis_client.xrange(f"{prefix}:q:events")
    return [fields for _, fields in entries if fields.get("jobId") == job.id]


def engine_of(worker: Worker) -> Engine:
    """The running engine of a worker: what it holds cannot be seen from outside."""
    engine = worker._engine
    assert engine is not None
    return engine


def listens(worker: Worker) -> None:
    """Wait until it hears cancels from afar at once."""
    eventually(lambda: engine_of(worker).subscription.is_up)
