"""`add` calls that meet travel together.

A lone add is sent directly, by its own greenlet.  While one is under way on this hub, others
gather and are sent by a courier (greenlet ``geventq-add-<queue>``) in one script call, so that a
caller that is killed harms nobody else.  The courier ends when there is nothing left to send.
"""

from __future__ import annotations

import typing

import gevent
from gevent.event import AsyncResult

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.store.jobs import NewJob, QueueStore

__all__ = ["Gathering"]

_BATCH: typing.Final = 1000  # jobs a call


class Gathering:
    """The adds of one queue in one hub."""

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self._under_way = 0
        self._waiting: list[tuple[NewJob, typing.Any]] = []
        self._courier: gevent.Greenlet[..., None] | None = None

    def add(self, job: NewJob) -> Job:
        """Store one job.  Yields."""
        if not self._under_way and not self._waiting:
            self._under_way += 1
            try:
                return self._store.add([job])[0]
            finally:
                self._under_way -= 1
        answer: typing.Any = AsyncResult()
        self._waiting.append((job, answer))
        if self._courier is None:
            self._courier = gevent.Greenlet(self._carry)
            self._courier.name = f"geventq-add-{self._store.queue_name}"
            self._courier.spawn_tree_locals = {}  # it belongs to no job
            self._courier.start()
        return typing.cast("Job", answer.get())

    def _carry(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                try:
                    jobs = self._store.add([job for job, _ in batch])
                except Exception as error:  # noqa: BLE001 (raised again in each caller)
                    for _, answer in batch:
                        answer.set_exception(error)
                else:
                    for (_, answer), job in zip(batch, jobs, strict=True):
                        answer.set(job)
        finally:
            self._courier = None
