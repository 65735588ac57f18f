"""The queue: adding jobs and looking at them, from any greenlet of any thread.

Everything is checked before anything is written.  What Redis does is `geventq.store.jobs`'
business; redis is imported when the first call is made.
"""

from __future__ import annotations

import typing
import weakref

from gevent import get_hub

from geventq.checks import check_integer, check_name, check_prefix, check_queue_name
from geventq.codec import encode
from geventq.errors import RedisUnavailableError
from geventq.job import Job
from geventq.options import LEFT_OUT, MAX_PRIORITY, JobSpec, check_default_options, job_options

if typing.TYPE_CHECKING:
    from geventq.store.gather import Gathering
    from geventq.store.jobs import NewJob, QueueStore

__all__ = ["Queue"]

T = typing.TypeVar("T")

_MOST: typing.Final = 50_000  # jobs in one add_bulk


class Queue:
    """A queue named `name` under `prefix`; `default_job_options` go under every job's own.

    Raises `ValueError` or `TypeError` for a bad argument.  Does not touch the network.
    """

    def __init__(
        self,
        name: str,
        connection: object = None,
        prefix: str = "bull",
        default_job_options: typing.Mapping[str, typing.Any] | None = None,
    ) -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self._defaults = check_default_options(default_job_options)
        self._connection = connection
        self._opened: QueueStore | None = None
        self._gatherings: weakref.WeakKeyDictionary[object, Gathering] = weakref.WeakKeyDictionary()

    @property
    def _store(self) -> QueueStore:
        if self._opened is None:
            from geventq.store.connection import Client, Endpoint
            from geventq.store.jobs import QueueStore
            from geventq.store.keys import QueueKeys

            client = Client(Endpoint.of(self._connection))
            self._opened = QueueStore(client, QueueKeys(self.prefix, self.name))
        return self._opened

    def add(self, name: str, data: typing.Any = LEFT_OUT, **options: typing.Any) -> Job:
        """Add one job; `data` is any JSON value, left out it is ``{}``.

        Raises `ValueError`/`TypeError` before anything is written, and `RedisUnavailableError`
        when Redis cannot be reached; its text says so if the job may have been stored all the
        same.  Yields to the hub.
        """
        job = self._checked(JobSpec(name, data, options))
        return self._sent(lambda: self._gathering().add(job))

    def add_bulk(self, specs: typing.Iterable[JobSpec]) -> list[Job]:
        """Add up to 50,000 jobs in one call, all or none, in their order.  As `add`."""
        checked = [self._checked(spec) for spec in specs]
        if len(checked) > _MOST:
            raise ValueError(f"specs: at most {_MOST} jobs a call, got {len(checked)}")
        return self._sent(lambda: self._store.add(checked)) if checked else []

    def _checked(self, spec: JobSpec) -> NewJob:
        if not isinstance(spec, JobSpec):
            raise TypeError(f"specs: JobSpec is needed, got {type(spec).__name__}")
        name = check_name("name", spec.name)
        options = job_options(spec.options, self._defaults)
        data = b"{}" if spec.data is LEFT_OUT else encode("data", spec.data)
        if options.size_limit is not None and len(data) > options.size_limit:
            raise ValueError(
                f"data: at most size_limit={options.size_limit} bytes of JSON, got {len(data)}"
            )
        return name, data, options

    def _gathering(self) -> Gathering:
        """The adds under way in this hub."""
        hub = get_hub()
        gathering = self._gatherings.get(hub)
        if gathering is None:
            from geventq.store.gather import Gathering

            gathering = self._gatherings[hub] = Gathering(self._store)
        return gathering

    @staticmethod
    def _sent(send: typing.Callable[[], T]) -> T:
        try:
            return send()
        except RedisUnavailableError as error:
            if not error.answer_lost:
                raise
            unsure = RedisUnavailableError(f"{error}; the jobs may have been stored all the same")
            unsure.answer_lost = True
            raise unsure from error

    def get_job(self, job_id: str) -> Job | None:
        """The job as it is now, or `None`.  Yields to the hub."""
        return self._store.read(job_id)

    def get_job_state(self, job_id: str) -> str:
        """Its state, ``"unknown"`` for an unknown id.  Yields to the hub."""
        return self._store.state(job_id)

    def get_job_counts(self) -> dict[str, int]:
        """How many jobs are in each state.  Yields to the hub."""
        return self._store.counts()

    def get_job_logs(self, job_id: str) -> list[str]:
        """The rows of a job's log, oldest first.  Yields to the hub."""
        return self._store.logs(job_id)

    def get_job_count(self, *states: str) -> int:
        """How many jobs are in `states` together, by default in all.  Yields to the hub."""
        counts = self.get_job_counts()
        return sum(counts[_known_state(state)] for state in states or counts)

    def get_jobs(
        self, states: str | typing.Iterable[str], start: int = 0, end: int = -1
    ) -> list[Job]:
        """The jobs of one state or several, state after state.  Yields to the hub."""
        wanted = [states] if isinstance(states, str) else list(states)
        for state in wanted:
            _known_state(state)
        return [job for state in wanted for job in self._store.page(state, start, end)]

    def get_waiting(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait, the next to run first: positions `start` to `end`."""
        return self._store.page("waiting", start, end)

    def get_active(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that run, the oldest first: positions `start` to `end`."""
        return self._store.page("active", start, end)

    def get_delayed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Delayed jobs, the next due first: positions `start` to `end`."""
        return self._store.page("delayed", start, end)

    def get_prioritized(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait with a priority, the next to run first: positions `start` to `end`."""
        return self._store.page("prioritized", start, end)

    def get_completed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Completed jobs, the newest first: positions `start` to `end`."""
        return self._store.page("completed", start, end)

    def get_failed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Failed jobs, the newest first: positions `start` to `end`."""
        return self._store.page("failed", start, end)

    def get_waiting_children(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait for their children, the oldest first: positions `start` to `end`."""
        return self._store.page("waiting-children", start, end)

    def get_counts_per_priority(self, priorities: typing.Iterable[int]) -> dict[int, int]:
        """How many jobs wait with each priority (0: none).  Yields to the hub."""
        checked = [check_integer("priorities", one, 0, MAX_PRIORITY) for one in priorities]
        return self._store.counts_per_priority(checked)

    def get_workers(self) -> list[dict[str, str]]:
        """The workers of this queue, in whatever language, as their connections tell.  Yields to
        the hub."""
        return self._store.workers()

    def remove(self, job_id: str) -> bool:
        """Delete a job; `False` if it is running.  Yields to the hub."""
        return self._store.remove(job_id)

    def trim_events(self, length: int) -> int:
        """Cut the event stream to about `length` entries.  Yields to the hub."""
        return self._store.trim_events(check_integer("length", length, 0))

    def count(self) -> int:
        """How many jobs wait, in whatever way.  Yields to the hub."""
        counts = self._store.counts()
        states = ("waiting", "delayed", "prioritized", "waiting-children")
        return sum(counts[state] for state in states)

    def pause(self) -> None:
        """Let no worker take jobs of this queue; running ones go on.  Yields to the hub."""
        self._store.pause()

    def resume(self) -> None:
        """Undo `pause`.  Yields to the hub."""
        self._store.resume()

    def is_paused(self) -> bool:
        """Whether the queue is paused.  Yields to the hub."""
        return self._store.is_paused()

    def close(self) -> None:
        """Close the connections.  Idempotent."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
            self._gatherings.clear()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_STATES: typing.Final = (
    *("active", "waiting", "completed", "delayed", "failed", "prioritized"),
    "waiting-children",
)


def _known_state(state: str) -> str:
    if state not in _STATES:
        raise ValueError(f"state: one of {', '.join(_STATES)} is needed, got {state!r}")
    return state
