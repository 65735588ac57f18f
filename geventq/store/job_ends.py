"""Waiting for the ends of jobs, by their queue's event stream (wire-format 12).

All who wait in one hub share one greenlet (``geventq-ends-<queue>``), which reads the stream
(`geventq.store.event_watch`) while somebody waits; the last one to leave ends it.

No end falls between two looks, and no end of another job with the same id is taken for this
one's: who waits is registered first; then one script looks at the job and tells the stream's
newest entry at that moment.  What had ended by then is seen there; of the stream only what comes
after that entry counts, up to an `added` of the same id: there another job begins.  The first end
is the answer.  As the stream is trimmed, the jobs are looked at again wherever it has a gap, and
every few seconds whatever it says.
"""

from __future__ import annotations

import contextlib
import typing

import gevent
from gevent.event import AsyncResult

from geventq import clock, wakeups
from geventq.codec import decode
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage
from geventq.store.event_reader import EventReader, position
from geventq.store.event_watch import Follower
from geventq.store.limits import is_thrown
from geventq.store.past_ends import REMOVED, End, Fields, Past, end_in, fields_of, past_end, search
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.job import Life
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.store.stream import Entry

__all__ = ["JobEnds", "Waiter"]

_LOOK_EVERY: typing.Final = 5.0  # seconds
_GLANCE: typing.Final = 2.0  # seconds that somebody waits for an answer who has no time
_PAGE: typing.Final = 1000  # jobs that one call looks at


class Waiter:
    """One who waits for a job; `begin` is told from where on the stream counts for it."""

    __slots__ = ("_early", "_since", "answer", "life")

    def __init__(self, life: Life) -> None:
        self.life = life
        self.answer: AsyncResult[End] = AsyncResult()
        self._since: tuple[int, int] | None = None  # `None` until its job was looked at
        self._early: list[tuple[bytes, Fields]] = []  # heard before that

    def begin(self, newest: bytes) -> None:
        """Its job had not ended when `newest` was the newest entry."""
        if self._since is None:
            self._since = position(newest)
            for entry_id, fields in self._early:
                self.hear(entry_id, fields)
            self._early.clear()
            self.heard_all()

    def hear(self, entry_id: bytes, fields: Fields) -> None:
        """The stream tells of a job with its id."""
        if self._since is None:
            self._early.append((entry_id, fields))
        elif position(entry_id) > self._since:
            self.heed(fields)

    def heed(self, fields: Fields) -> None:
        """An event that counts.  Does not yield."""
        is_another = fields.get(b"event") == b"added"  # who waits knows a job added before
        end = REMOVED if is_another else end_in(fields)
        if end is not None:
            self.end(end)

    def heard_all(self) -> None:
        """What the stream has told so far was heard: two entries that were written in one moment
        come together.  Does not yield."""

    def goes_on(self, attempts_made: bytes) -> None:
        """A look has shown that the job has not ended.  Does not yield."""

    def end(self, end: End) -> None:
        """The job has ended; what comes later is no end of this wait."""
        if not self.answer.ready():
            self.answer.set(end)

    def fail(self, error: GeventqError) -> None:
        """No end will be heard of."""
        if not self.answer.ready():
            self.answer.set_exception(error)


class JobEnds:
    """Those who wait for jobs of one queue, in one hub of one process."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._generation = fork.generation
        self._client = client
        self._keys = keys
        self._waiting: dict[str, list[Waiter]] = {}
        self._reader: _Reader | None = None
        self._is_closed = False

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process."""
        return self._generation == fork.generation

    def glance(self, job_id: str, life: Life) -> typing.Any:
        """As `wait`; `gevent.Timeout` if the job has not ended, or Redis does not tell at once.
        Yields."""
        waiter = Waiter(life)
        with contextlib.suppress(RedisUnavailableError):
            gevent.with_timeout(_GLANCE, self._look, {job_id: [waiter]}, timeout_value=None)
        if not waiter.answer.ready():
            raise gevent.Timeout(0)
        return _outcome(job_id, typing.cast(End, waiter.answer.get()))

    def wait(self, job_id: str, life: Life) -> typing.Any:
        """The result of the job; raises `GeventqError` with its failed reason, or if it is gone
        and its end is not in the stream any more, or once this is closed.  An outage is lived
        through, by the reader.  Yields."""
        waiter = Waiter(life)
        with self.listening({job_id: waiter}):
            end = typing.cast(End, waiter.answer.get())
        return _outcome(job_id, end)

    @contextlib.contextmanager
    def listening(
        self, waiters: typing.Mapping[str, Waiter], *, at_once: bool = False
    ) -> typing.Iterator[None]:
        """In this block each waiter hears of its job, from before the block on.  An outage is
        lived through, by the reader; with `at_once` one that is met on entering is raised.
        Entering and leaving yield."""
        for job_id, waiter in waiters.items():
            self._waiting.setdefault(job_id, []).append(waiter)
        try:
            newest: bytes | None = None
            try:
                newest = self._look_at([(one, [waiter]) for one, waiter in waiters.items()])
            except RedisUnavailableError as error:
                if at_once or self._is_closed or is_thrown(error):
                    raise
            is_needed = not all(waiter.answer.ready() for waiter in waiters.values())
            if self._reader is None and is_needed:
                self._reader = _Reader(self, self._client, self._keys, newest)
            yield
        finally:
            for job_id, waiter in waiters.items():
                others = self._waiting[job_id]
                others.remove(waiter)
                if not others:
                    del self._waiting[job_id]
            if not self._waiting:
                self._stop_reading()

    def close(self) -> None:
        """Let all who wait go, with an error.  Does not yield."""
        self._is_closed = True
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                waiter.fail(GeventqError("the queue was closed"))

    def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()

    # -- looking ---------------------------------------------------------------------------

    def _look_at(self, waiting: list[tuple[str, list[Waiter]]]) -> bytes | None:
        """`_look` at any number of jobs.  Returns the newest entry before the first look."""
        newest: bytes | None = None
        while waiting:
            seen, later = self._look(dict(waiting[:_PAGE]))
            newest = newest or seen
            waiting = later + waiting[_PAGE:]
        return newest

    def _look(
        self, waiting: dict[str, list[Waiter]]
    ) -> tuple[bytes, list[tuple[str, list[Waiter]]]]:
        """Answer those whose jobs have ended, and tell the others from where on the stream counts.
        Returns the newest entry at that moment, and those for whom there was no room."""
        newest, *states = self._client.script(
            load("get_end"), self._keys, [self._keys.base, *waiting], again=True
        )
        gone: dict[str, list[tuple[Waiter, Past]]] = {}
        later: list[tuple[str, list[Waiter]]] = []
        for (job_id, waiters), (state, told, timestamp) in zip(
            waiting.items(), states, strict=True
        ):
            if state == b"later":
                later.append((job_id, waiters))
                continue
            for waiter in waiters:
                is_another = timestamp and waiter.life.timestamp not in (None, timestamp)
                if state == b"missing" or is_another:
                    past = Past(waiter.life, bool(is_another))
                    gone.setdefault(job_id, []).append((waiter, past))
                elif state == b"open":
                    waiter.begin(newest)
                    waiter.goes_on(told)
                else:
                    waiter.end((state.decode(), told))
        if gone:
            self._look_back(gone)
        return newest, later

    def _look_back(self, gone: dict[str, list[tuple[Waiter, Past]]]) -> None:
        wanted = {job_id: [past for _, past in some] for job_id, some in gone.items()}
        found = search(self._client, self._keys, wanted)
        for job_id, some in gone.items():
            for waiter, past in some:
                waiter.end(past_end(past, found[job_id]))

    # -- listening, in the reader ------------------------------------------------------------

    def heard(self, entries: list[Entry]) -> None:
        """What the stream says.  Does not yield."""
        told: set[Waiter] = set()
        for entry_id, flat in entries:
            fields = fields_of(flat)
            waiters = self._waiting.get(fields.get(b"jobId", b"").decode("utf-8", "replace"))
            for waiter in waiters or ():
                waiter.hear(entry_id, fields)
                told.add(waiter)
        for waiter in told:
            waiter.heard_all()

    def look_again(self) -> None:
        """Something may have been missed.  Yields."""
        self._look_at([(job_id, list(waiters)) for job_id, waiters in self._waiting.items()])


class _Reader:
    """The greenlet that reads the stream behind the entry `after`, which those who wait know."""

    def __init__(self, ends: JobEnds, client: Client, keys: QueueKeys, after: bytes | None) -> None:
        self._ends = ends
        self._follower = Follower(client, keys)
        self._events = EventReader(self._follower, after)
        self._left = wakeups.Event()  # nobody waits any more
        self._look_at = 0.0 if after is None else clock.monotonic() + _LOOK_EVERY
        self._outage = Outage("waiting for ends of jobs", keys.name, self._left, client)
        self._task = Guarded(self._read_all, f"ends-{keys.name}", self._outage)
        self._task.start()

    def stop(self) -> None:
        """End the greenlet in whatever it does, and join it.  Yields."""
        self._left.set()
        self._follower.close()
        kill_all([self._task])

    def _read_all(self) -> None:
        while not self._left.is_set():
            self._events.begin()  # before the look: what comes in between is heard
            if clock.monotonic() >= self._look_at:
                self._look()
            look_at, self._look_at = self._look_at, 0.0  # whatever leaves this half-way
            batch = self._events.read()
            if batch.gap is not None:  # before what follows it, which may be about other jobs
                self._look()
                look_at = self._look_at
            self._ends.heard(batch.entries)
            self._look_at = look_at
            self._outage.over()

    def _look(self) -> None:
        self._ends.look_again()
        self._look_at = clock.monotonic() + _LOOK_EVERY


def _outcome(job_id: str, end: End) -> typing.Any:
    how, told = end
    if how == "failed":
        raise GeventqError(told.decode("utf-8", "replace"))
    if how == "removed":
        raise GeventqError(f"job {job_id} does not exist, and how it ended is not known any more")
    try:
        return decode(told)
    except ValueError:  # another program's; `Job.return_value` says None as well
        return None
