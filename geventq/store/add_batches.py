"""`add` calls that meet travel together.

A lone add is sent directly, by its own greenlet.  While calls are under way on this hub, others
gather in batches, which couriers (greenlets ``geventq-add-<queue>``) send, so that a caller that
is killed harms nobody else.  Two couriers share what waits: while the server works on one call,
the callers of the other go on and the next batch gathers.  A courier ends when nothing waits.

Nobody suffers from whom he travels with: jobs with ids of their own, whose call may be sent again
(cancellation.md 3.6), go apart from those without; a call carries a megabyte at most, and a job
that is bigger by itself is sent by its own caller.  Who has waited his time for a courier goes;
what was not sent by then is not sent.
"""

from __future__ import annotations

import typing

import gevent
from gevent.event import AsyncResult

from geventq import wakeups
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.guarded import Guarded
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.store.queue_store import NewJob, QueueStore

__all__ = ["AddBatches"]

_COURIERS: typing.Final = 2
_SMALLEST: typing.Final = 8  # adds that a batch takes before another one is begun
_LARGEST: typing.Final = 1000  # adds in one call
_BIG: typing.Final = 1 << 20  # bytes in one call
_FRAME: typing.Final = 64  # bytes of one job beside its texts, about


class _Batch:
    """Adds that are sent together.  `jobs` has `None` for a caller that has gone before;
    `done` gets their list of jobs, or the error."""

    __slots__ = ("again", "done", "jobs", "sent", "size")

    def __init__(self, again: bool) -> None:
        self.again = again  # each job has an id of its own
        self.jobs: list[NewJob | None] = []
        self.size = 0  # bytes
        self.done: AsyncResult[typing.Any] = AsyncResult()
        self.sent = False

    def fits(self, again: bool, count: int, size: int, share: int) -> bool:
        """Whether `count` jobs with `size` bytes more can travel with these."""
        fits = self.again == again and len(self.jobs) + count <= share
        return fits and self.size + size <= _BIG


class AddBatches:
    """The adds of one queue in one hub of one process.  In a forked child the couriers end: what
    they had sent may have been stored, and the rest is the parent's to send."""

    def __init__(self, store: QueueStore) -> None:
        self._generation = fork.generation
        self._store = store
        self._outstanding = 0  # adds that are not answered yet, sent or not
        self._batches: list[_Batch] = []  # not sent yet; the last one is open
        self._couriers = 0
        self._outage = Outage("adding jobs", store.queue_name, wakeups.Event())

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process."""
        return self._generation == fork.generation

    def add(self, job: NewJob) -> Job:
        """Store one job.  Yields."""
        size = _size(job)
        if size > _BIG or not (self._outstanding or self._couriers):
            self._outstanding += 1
            try:
                return self._store.add([job])[0]
            finally:
                self._outstanding -= 1
        batch = self._batch_for(job, size)
        at = len(batch.jobs)
        batch.jobs.append(job)
        batch.size += size
        self._outstanding += 1
        if self._couriers < _COURIERS:
            self._start_courier()
        answer: typing.Any = None
        try:
            answer = wakeups.wait_for_result(batch.done, self._store.timeout)
        finally:
            if not batch.sent:  # killed, or out of time
                batch.jobs[at] = None
        if answer is None:
            raise _too_late(self._store.timeout, batch.sent)
        if isinstance(answer, BaseException):
            raise _own_copy(answer)
        return typing.cast("Job", answer[at])

    def _batch_for(self, job: NewJob, size: int) -> _Batch:
        """Half of what is outstanding is a call's share, so that two calls overlap."""
        again, share = bool(job[2].job_id), self._share()
        for batch in reversed(self._batches):
            if batch.fits(again, 1, size, share):
                return batch
        self._batches.append(_Batch(again))
        return self._batches[-1]

    def _share(self) -> int:
        return min(max(_SMALLEST, (self._outstanding + 1) // 2), _LARGEST)

    def _start_courier(self) -> None:
        self._couriers += 1
        Guarded(self._carry, f"add-{self._store.queue_name}", self._outage).start()

    def _carry(self) -> None:
        while self._batches:
            if not self.is_ours:
                self._refuse()
                break
            self._send(self._next_batches())
            self._outage.over()
            gevent.sleep(0)  # those who were answered may have the next job ready
        self._couriers -= 1

    def _refuse(self) -> None:
        batches, self._batches = self._batches, []
        for batch in batches:
            batch.done.set(RedisUnavailableError("the process was forked before the job was sent"))

    def _next_batches(self) -> list[_Batch]:
        """The oldest, with others that fit to it."""
        first, *waiting = self._batches
        taken, left, share = [first], [], self._share()
        count, size = len(first.jobs), first.size
        for batch in waiting:
            if batch.fits(first.again, count, size, share):
                taken.append(batch)
                count, size = count + len(batch.jobs), size + batch.size
            else:
                left.append(batch)
        self._batches = left
        return taken

    def _send(self, batches: list[_Batch]) -> None:
        for batch in batches:
            batch.sent = True
        given = [job for batch in batches for job in batch.jobs if job is not None]
        answer: list[Job] | Exception
        try:
            answer = self._store.add(given) if given else []
        except Exception as error:  # noqa: BLE001 (raised in each caller)
            answer = error
        except BaseException:
            self._answer(batches, _unsure())
            raise
        self._answer(batches, answer)

    def _answer(self, batches: list[_Batch], answer: list[Job] | Exception) -> None:
        stored = iter(answer if isinstance(answer, list) else ())
        for batch in batches:
            self._outstanding -= len(batch.jobs)
            if isinstance(answer, Exception):
                batch.done.set(answer)
            else:
                batch.done.set([None if job is None else next(stored) for job in batch.jobs])


def _size(job: NewJob) -> int:
    """The bytes of a job in a call, about."""
    name, data, options = job
    return len(name) + len(data) + len(options.text) + len(options.rare) + _FRAME


def _too_late(seconds: float, was_sent: bool) -> RedisUnavailableError:
    error = RedisUnavailableError(f"Redis did not answer within {seconds:.3g} s")
    error.may_be_done = was_sent
    return error


def _unsure() -> RedisUnavailableError:
    error = RedisUnavailableError("the greenlet that was adding the job has been killed")
    error.may_be_done = True
    return error


def _own_copy(error: BaseException) -> BaseException:
    """An error of each caller's own: one that is raised in many greenlets mixes their traces."""
    if type(error) not in (GeventqError, RedisUnavailableError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error
    if isinstance(copy, RedisUnavailableError) and isinstance(error, RedisUnavailableError):
        copy.may_be_done = error.may_be_done
    return copy
