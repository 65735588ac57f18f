"""The queue: adding jobs and looking at them, from any greenlet of any thread.

Everything is checked before anything is written.  What Redis does is `geventq.store.queue_store`'
business; redis is imported when the first call is made.
"""

from __future__ import annotations

import typing
import weakref

from gevent import get_hub

from geventq import clock
from geventq.cancel_request import DEFAULTS as CANCEL_DEFAULTS
from geventq.cancel_request import CancelOptions, CancelResult, Request
from geventq.cancel_secret import given_secret
from geventq.checks import (
    Seconds,
    check_callable,
    check_choice,
    check_duration,
    check_flag,
    check_integer,
    check_iterable,
    check_known_id,
    check_list,
    check_moment,
    check_name,
    check_prefix,
    check_queue_name,
    check_seconds,
    check_text,
    is_queue_key,
    show,
)
from geventq.errors import RedisUnavailableError
from geventq.job import STATES, Job
from geventq.job_options import DEFAULTS, JobOptions
from geventq.large import encode_in_turns, in_turns
from geventq.options import LEFT_OUT, MAX_PRIORITY, JobSpec, check_default_options, job_options
from geventq.signatures import takes
from geventq.store.endpoint import Endpoint

if typing.TYPE_CHECKING:
    from geventq.store.add_batches import AddBatches
    from geventq.store.endpoint import Given
    from geventq.store.queue_store import NewJob, QueueStore

__all__ = ["Queue"]

A = typing.TypeVar("A")
T = typing.TypeVar("T")

_MOST: typing.Final = 50_000  # jobs in one add_bulk
_LARGEST: typing.Final = 64 * 2**20  # bytes of their data and options
_ONE: typing.Final = "store"


class Queue:
    """A queue: adds jobs to it, and looks at them, from any greenlet of any thread.

    `name` and `prefix` ("bull") are the first parts of its keys.  `connection` is a URL, a
    redis-py client whose settings are taken, or `None`: ``$GEVENTQ_REDIS_URL``, else
    ``redis://127.0.0.1:6379/0``.  `default_job_options` have the names of `add`, and go under
    every job's own; an option that a job gives as `None` takes the default away.

    `timeout` is the seconds that one call to Redis may take, all its tries included (10.0); past
    it the call raises `RedisUnavailableError`.  `max_connections` is how many connections calls
    of this process may hold (50); further calls wait for one within their time, and of several
    queues and workers the smallest number counts.  `max_events` is about how many events the
    queue's stream keeps; `None` leaves what is set there (10,000 where nothing is).
    `cancel_secret` is what requests to cancel are signed with, as its workers' (`None`:
    ``$GEVENTQ_CANCEL_SECRET``, else they are not signed).

    Raises `ValueError` or `TypeError` for a bad argument.  Does not touch the network.
    """

    def __init__(
        self,
        name: str,
        connection: Given = None,
        prefix: str = "bull",
        default_job_options: JobOptions | None = None,
        *,
        timeout: Seconds = 10.0,
        max_connections: int = 50,
        max_events: int | None = None,
        cancel_secret: str | None = None,
    ) -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self.timeout = check_duration("timeout", timeout)
        self.max_connections = check_integer("max_connections", max_connections, 1)
        self._defaults = check_default_options(default_job_options)
        self._max_events = None
        if max_events is not None:
            self._max_events = check_integer("max_events", max_events, 0)
        self._said_max_events = max_events is None
        self._secret = given_secret(cancel_secret)
        self._connection = Endpoint.given(connection)
        # One at most, under `_ONE`: of native threads that come together one sets the default.
        self._opened: dict[str, QueueStore] = {}
        self._gatherings: weakref.WeakKeyDictionary[object, AddBatches] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def _store(self) -> QueueStore:
        store = self._opened.get(_ONE)
        if store is None:
            from geventq.store.client import Client
            from geventq.store.keys import QueueKeys
            from geventq.store.queue_store import QueueStore

            client = Client(
                Endpoint.of(self._connection),
                timeout=self.timeout,
                max_connections=self.max_connections,
            )
            made = QueueStore(client, QueueKeys(self.prefix, self.name), self._secret)
            store = self._opened.setdefault(_ONE, made)
        return store

    def wait_until_ready(self) -> None:
        """Connect, and write what the queue itself keeps in Redis, if it is not there yet.

        Not needed: the first call does the same.  Raises `RedisUnavailableError` if Redis cannot
        be reached.  Yields to the hub.
        """
        self._store.set_max_events(self._max_events)
        self._said_max_events = True

    @takes(JobOptions, DEFAULTS)
    def add(
        self, name: str, data: typing.Any = LEFT_OUT, **options: typing.Unpack[JobOptions]
    ) -> Job:
        """Add one job; `data` is any JSON value, left out it is ``{}``.

        Raises `ValueError`/`TypeError` before anything is written, and `RedisUnavailableError`
        when Redis cannot be reached; its text says so if the job may have been stored all the
        same.  Yields to the hub.
        """
        return self._sent(self._gathering().add, self._checked(name, data, options))

    @takes(JobOptions, DEFAULTS)
    def prepared(
        self, name: str, data: typing.Any = LEFT_OUT, **options: typing.Unpack[JobOptions]
    ) -> typing.Callable[[], Job]:
        """A function that adds the job, which is checked and encoded now: whatever becomes of
        `data` meanwhile, and nothing can be wrong with it later.

        Raises `ValueError`/`TypeError` as `add` does; what is returned raises
        `RedisUnavailableError`, and yields to the hub.
        """
        checked = self._checked(name, data, options)
        return lambda: self._sent(self._gathering().add, checked)

    def add_bulk(self, specs: typing.Iterable[JobSpec]) -> list[Job]:
        """Add up to 50,000 jobs, of 64 MB, in one call, all or none, in their order.  As `add`.

        Because it is all or none, Redis does nothing else meanwhile: some 16 us a job.
        """
        checked: list[NewJob] = []
        size = 0
        for spec in in_turns(check_iterable("specs", specs), 1):
            if not isinstance(spec, JobSpec):
                raise TypeError(f"specs: a JobSpec is needed, got {show(spec)}")
            # At once: whoever makes them one by one may use his dicts again.
            checked.append(self._checked(spec.name, spec.data, spec.options))
            size += len(checked[-1][1]) + len(checked[-1][2].text)
            if len(checked) > _MOST:
                raise ValueError(f"specs: at most {_MOST} jobs a call, got more")
            if size > _LARGEST:
                raise ValueError(f"specs: at most {_LARGEST} bytes a call, got more")
        return self._sent(self._store.add, checked) if checked else []

    def _checked(
        self, name: str, data: typing.Any, given: typing.Mapping[str, object] | None
    ) -> NewJob:
        check_name("name", name)
        options = job_options(given, self._defaults)
        text = b"{}" if data is LEFT_OUT else encode_in_turns("data", data)
        if options.size_limit is not None and len(text) > options.size_limit:
            raise ValueError(
                f"data: at most size_limit={options.size_limit} bytes of JSON, got {len(text)}"
            )
        return name, text, options

    def _gathering(self) -> AddBatches:
        """The adds under way in this hub."""
        hub = get_hub()
        gathering = self._gatherings.get(hub)
        if gathering is None or not gathering.is_ours:
            from geventq.store.add_batches import AddBatches

            gathering = self._gatherings[hub] = AddBatches(self._store)
        return gathering

    def _sent(self, send: typing.Callable[[A], T], jobs: A) -> T:
        if not self._said_max_events:
            self.wait_until_ready()
        try:
            return send(jobs)
        except RedisUnavailableError as error:
            if not error.may_be_done:
                raise
            unsure = RedisUnavailableError(f"{error}; the jobs may have been stored all the same")
            unsure.may_be_done = True
            raise unsure from error

    def get_job(self, job_id: str) -> Job | None:
        """The job as it is now, or `None`.  Yields to the hub."""
        if is_queue_key(check_text("job_id", job_id)):
            return None
        return self._store.read(job_id)

    def get_job_state(self, job_id: str) -> str:
        """Its state, ``"unknown"`` for an unknown id.  Yields to the hub."""
        return self._store.state(check_text("job_id", job_id))

    def get_job_counts(self, *states: str | typing.Iterable[str]) -> dict[str, int]:
        """How many jobs are in each of `states`, by default in each there is.  Yields to the
        hub."""
        wanted = _known_states(states)
        counts = self._store.counts()
        return {state: counts[state] for state in wanted or counts}

    def get_job_logs(self, job_id: str) -> list[str]:
        """The rows of a job's log, oldest first.  Yields to the hub."""
        return self._store.logs(check_text("job_id", job_id))

    def get_job_count(self, *states: str | typing.Iterable[str]) -> int:
        """How many jobs are in `states` together, by default in all.  Yields to the hub."""
        return sum(self.get_job_counts(*states).values())

    def get_jobs(
        self,
        states: str | typing.Iterable[str] | None = None,
        start: int = 0,
        end: int = -1,
        *,
        ascending: bool = False,
    ) -> list[Job]:
        """The jobs at the positions `start` to `end` of one state or several (`None`: of all),
        state after state.

        The newest come first, as with BullMQ; with `ascending` the oldest, or the next to run or
        due.  Yields to the hub.
        """
        wanted = sorted(STATES) if states is None else _known_states((states,))
        for field, position in (("start", start), ("end", end)):
            check_integer(field, position, -(2**53))
        return self._store.page(wanted, start, end, check_flag("ascending", ascending))

    def get_waiting(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait, the next to run first: positions `start` to `end`."""
        return self.get_jobs("waiting", start, end, ascending=True)

    def get_active(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that run, the oldest first: positions `start` to `end`."""
        return self.get_jobs("active", start, end, ascending=True)

    def get_delayed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Delayed jobs, the next due first: positions `start` to `end`."""
        return self.get_jobs("delayed", start, end, ascending=True)

    def get_prioritized(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait with a priority, the next to run first: positions `start` to `end`."""
        return self.get_jobs("prioritized", start, end, ascending=True)

    def get_completed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Completed jobs, the newest first: positions `start` to `end`."""
        return self.get_jobs("completed", start, end)

    def get_failed(self, start: int = 0, end: int = -1) -> list[Job]:
        """Failed jobs, the newest first: positions `start` to `end`."""
        return self.get_jobs("failed", start, end)

    def get_waiting_children(self, start: int = 0, end: int = -1) -> list[Job]:
        """Jobs that wait for their children, the oldest first: positions `start` to `end`."""
        return self.get_jobs("waiting-children", start, end, ascending=True)

    def get_counts_per_priority(self, priorities: typing.Iterable[int]) -> dict[int, int]:
        """How many jobs wait with each priority (0: none).  Yields to the hub."""
        checked = [
            check_integer("priorities", one, 0, MAX_PRIORITY)
            for one in check_list("priorities", priorities)
        ]
        return self._store.counts_per_priority(checked)

    def get_workers(self) -> list[dict[str, str]]:
        """The workers of this queue, in whatever language, as their connections tell.  Yields to
        the hub."""
        return self._store.workers()

    def remove(self, job_id: str) -> bool:
        """Delete a job; `False`, and it stays, if it is running or a scheduler's pending run.

        `True` for one that is not there, as with BullMQ.  Raises `ValueError` for the name of one
        of the queue's own keys.  Yields to the hub.
        """
        return self._store.remove(check_known_id("job_id", job_id))

    @takes(CancelOptions, CANCEL_DEFAULTS)
    def cancel_job(
        self, job_id: str, reason: typing.Any = None, **options: typing.Unpack[CancelOptions]
    ) -> CancelResult:
        """Cancel a job in whatever state it is, wherever it runs; what came of it.

        A job that does not run fails here and now, with the text ``Job cancelled: <reason>``; one
        that runs gets the request recorded, and its worker is told.  `reason` is any JSON value
        of at most 16 KiB.

        Raises `ValueError` or `TypeError` for a bad argument, `RedisUnavailableError`, and
        `GeventqError` for a job that is not running and has children, a parent or a live
        scheduler, and for `force` without the workers' `cancel_secret`; then nothing was done.
        Yields to the hub.
        """
        request = Request(reason, **options)
        return self._store.cancel(request, [check_text("job_id", job_id)])[0]

    @takes(CancelOptions, CANCEL_DEFAULTS)
    def cancel_jobs(
        self,
        job_ids: typing.Iterable[str] | None = None,
        reason: typing.Any = None,
        *,
        name: str | None = None,
        state: str | None = None,
        where: typing.Callable[[Job], object] | None = None,
        dry_run: bool = False,
        **options: typing.Unpack[CancelOptions],
    ) -> list[CancelResult]:
        """`cancel_job` for many: those of `job_ids`, or those that all of the filters choose.

        `name` is the jobs' name, `state` one of those of `get_job_state` (without it every
        unfinished job is looked at), `where` is called with each `Job`.  `dry_run` tells what
        would happen, and changes nothing.  `wait` is one time for all.  Returns one result a
        job, in the order of `job_ids`.

        An outage in its midst raises, and so does a job that has to be left as it is, after the
        others were carried out: the error's `results` tell what was done.  Raises `ValueError`
        for ids together with filters, and for neither.  Yields to the hub.
        """
        request = Request(reason, **options)
        check_flag("dry_run", dry_run)
        ids = self._chosen(job_ids, name, state, where)
        return self._store.cancel(request, ids, dry_run=dry_run)

    def _chosen(
        self,
        job_ids: typing.Iterable[str] | None,
        name: str | None,
        state: str | None,
        where: typing.Callable[[Job], object] | None,
    ) -> list[str]:
        has_filter = not (name is None and state is None and where is None)
        if job_ids is not None:
            if has_filter:
                raise ValueError("job_ids: makes no sense together with name, state or where")
            if isinstance(job_ids, str):
                raise TypeError(f"job_ids: a list of ids is needed, got {show(job_ids)}")
            return [check_text("job_ids", one) for one in check_iterable("job_ids", job_ids)]
        if not has_filter:
            raise ValueError("job_ids: ids, or one of name, state and where, are needed")
        if name is not None:
            check_name("name", name)
        if state is not None:
            check_choice("state", check_text("state", state), STATES)
        if where is not None:
            check_callable("where", where)
        return self._store.chosen(name=name, state=state, where=where)

    def unfinished_ids(self, state: str | None = None) -> typing.Iterator[tuple[str, list[str]]]:
        """States, and ids of jobs in them, page by page: of `state` (one that has ended as well),
        or of all in which jobs have not ended.

        The jobs themselves are not read.  Without `state` none is missed that moves meanwhile, and
        none comes twice.  Raises `ValueError` for an unknown state.  Each page yields to the hub.
        """
        if state is not None:
            check_choice("state", state, STATES)
        yield from self._store.id_pages(state)

    def retry_jobs(
        self, state: typing.Literal["failed", "completed"] = "failed", *, until: float | None = None
    ) -> int:
        """Run all jobs again that have failed (or, with ``state="completed"``, completed) until
        now, or until a moment in seconds since the epoch.

        They go behind those that wait, whatever their priority, as with BullMQ.  Returns how
        many went.  Yields to the hub.
        """
        check_choice("state", state, ("failed", "completed"))
        moment = clock.wall_ms() if until is None else check_moment("until", until)
        return self._store.retry_jobs(state, moment)

    def promote_jobs(self) -> int:
        """Let all delayed jobs run now, whatever their priority, as with BullMQ.  Returns how
        many went.  Yields to the hub."""
        return self._store.promote_jobs()

    def drain(self, delayed: bool = False) -> None:
        """Delete all jobs that wait to run, with or without a priority, and with `delayed` the
        delayed ones; what runs or has ended stays, and so does the planned run of a scheduler.

        There is no event of it, as with BullMQ: a parent in this queue that waited for nothing
        else goes, too.  Who waits for a job's end is told that it is gone.  Yields to the hub.
        """
        self._store.drain(check_flag("delayed", delayed))

    def clean(
        self,
        grace: Seconds,
        limit: int = 1000,
        state: typing.Literal[
            "completed", "failed", "waiting", "prioritized", "delayed", "active"
        ] = "completed",
    ) -> list[str]:
        """Delete jobs of a state that are `grace` seconds old or more, the oldest first, `limit` at
        most (0: all).  Returns the ids of those that went.

        A finished job's age counts from its end, another's from its last run, else from its
        `timestamp`.  Of active ones only those go that no worker holds a lock of; never the
        planned run of a scheduler.  Raises `ValueError` or `TypeError` for a bad argument;
        `RedisUnavailableError`, whose `results` are the ids known to be gone.  Yields to the hub.
        """
        from geventq.store.clearing import CLEANED

        check_choice("state", state, CLEANED)
        until_ms = clock.wall_ms() - int(check_seconds("grace", grace) * 1000)
        return self._store.clean(state, until_ms, check_integer("limit", limit, 0))

    def obliterate(self, force: bool = False) -> None:
        """Delete the queue with its jobs, its events, its schedulers and its settings.

        It is paused meanwhile.  While jobs run it is refused by a `GeventqError`, and stays paused,
        as with BullMQ; with `force` they are deleted too, and what their workers write is refused.
        Jobs that wait for children stay, as with BullMQ.  Of many jobs it takes many calls: after
        an outage call it again.  Yields to the hub.
        """
        self._store.obliterate(check_flag("force", force))

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

    def is_maxed(self) -> bool:
        """Whether as many jobs run as are allowed in all.  Yields to the hub."""
        return self._store.is_maxed()

    def close(self) -> None:
        """Close the connections; a call that comes later opens new ones.  Those who wait for the
        end of a job get a `GeventqError`.  Idempotent.  Yields to the hub."""
        store = self._opened.pop(_ONE, None)
        if store is not None:
            self._gatherings.clear()
            store.close()

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _known_states(given: typing.Iterable[str | typing.Iterable[str]]) -> list[str]:
    """Names of states, and lists of such names, as one list that holds each once."""
    wanted: dict[str, None] = {}
    for one in given:
        for state in [one] if isinstance(one, str) else check_list("states", one):
            wanted[check_choice("state", state, STATES)] = None
    return list(wanted)
