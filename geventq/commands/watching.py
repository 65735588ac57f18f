"""What ``geventq top`` shows: the queues of a server, their workers, and the jobs that run.

Reads; draws nothing.  No greenlets run here; every look yields to the hub.
"""

from __future__ import annotations

import dataclasses
import time
import typing

from geventq import clock
from geventq.queue import Queue
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys, literally
from geventq.store.lock_tokens import worker_in
from geventq.store.members import Members

if typing.TYPE_CHECKING:
    from geventq.job import Job

__all__ = ["QueueRow", "RunningJob", "Snapshot", "Watch"]

_SEARCH_EVERY: typing.Final = 10.0  # seconds; it goes through all keys of the server
_AT_ONCE: typing.Final = 1000  # keys that one step of the search looks at
_MOST_JOBS: typing.Final = 200  # running jobs of a queue that are shown, the oldest


@dataclasses.dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue: how many jobs are in each state, and how many workers wait on it."""

    name: str
    paused: bool
    workers: int
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class RunningJob:
    """One job that runs; `seconds` since it was taken, if that is known."""

    queue: str
    id: str
    name: str
    seconds: float | None
    progress: typing.Any
    worker: str | None
    """Its name; of one that has none its node and process, if that is known."""
    cancelling: bool
    """It has been asked to stop."""


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at everything, the queues by name, the jobs by queue and age."""

    queues: list[QueueRow]
    jobs: list[RunningJob]


class Watch:
    """Looks at the queues of `names`, or at all that there are under `prefix`.

    Use it as a context manager.  Every method raises `RedisUnavailableError`.
    """

    def __init__(self, url: str, prefix: str, names: typing.Sequence[str] = ()) -> None:
        self._url = url
        self._prefix = prefix
        self._queues: dict[str, Queue] = {}
        self._places: dict[str, str] = {}  # of workers, by id: node and process
        self._searches = not names
        self._search_at = clock.monotonic()
        self._client = Client(Endpoint.of(url))
        self._open(names)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for queue in self._queues.values():
            queue.close()
        self._client.close()

    def queue(self, name: str) -> Queue:
        """The queue of that name, which was in a snapshot."""
        return self._queues[name]

    def look(self) -> Snapshot:
        """Everything as it is now."""
        if self._searches and clock.monotonic() >= self._search_at:
            self._open(self._found())
            self._search_at = clock.monotonic() + _SEARCH_EVERY
        rows: list[QueueRow] = []
        jobs: list[RunningJob] = []
        for name, queue in sorted(self._queues.items()):
            counts = queue.get_job_counts()
            rows.append(QueueRow(name, queue.is_paused(), len(queue.get_workers()), counts))
            if counts["active"]:
                active = queue.get_active(0, _MOST_JOBS - 1)
                holders = self._holders(name, [one.id for one in active if not one.processed_by])
                jobs += [_running(name, job, holders.get(job.id)) for job in active]
        return Snapshot(rows, jobs)

    def _holders(self, name: str, job_ids: list[str]) -> dict[str, str | None]:
        """Where the jobs run whose workers have no name: a lock tells which worker has it, and its
        heartbeat where that is."""
        if not job_ids:
            return {}
        keys = QueueKeys(self._prefix, name)
        locks = [keys.of_job(job_id).lock for job_id in job_ids]
        ids: dict[str, str] = {}
        for job_id, held in zip(
            job_ids, self._client.execute("MGET", *locks, again=True), strict=True
        ):
            worker_id = worker_in((held or b"").decode("utf-8", "replace"))
            if worker_id is not None:
                ids[job_id] = worker_id
        if not self._places.keys() >= set(ids.values()):
            for one in Members(self._client, keys).fresh()[1]:
                self._places[one.id] = f"{one.told.get('node', '')}:{one.told.get('pid', '')}"
        return {job_id: self._places.get(worker_id) for job_id, worker_id in ids.items()}

    def _open(self, names: typing.Iterable[str]) -> None:
        for name in names:
            if name not in self._queues:
                self._queues[name] = Queue(name, self._url, self._prefix)

    def _found(self) -> set[str]:
        """The names of the queues: each has a key ``<prefix>:<name>:meta``, and no name has a
        colon (wire-format 1)."""
        before, after = f"{self._prefix}:", ":meta"
        words = ("MATCH", f"{literally(before)}*{after}", "COUNT", _AT_ONCE)
        names: set[str] = set()
        cursor = b"0"
        while True:
            cursor, keys = self._client.execute("SCAN", cursor, *words, again=True)
            for key in keys:
                name = key.decode("utf-8", "replace")[len(before) : -len(after)]
                if name and ":" not in name:
                    names.add(name)
            if cursor == b"0":
                return names


def _running(queue: str, job: Job, holder: str | None) -> RunningJob:
    seconds = None if job.processed_on is None else max(0.0, time.time() - job.processed_on)
    return RunningJob(
        *(queue, job.id, job.name, seconds, job.progress, job.processed_by or holder),
        cancelling=job.cancellation is not None,
    )
