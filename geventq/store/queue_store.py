"""One queue's jobs in Redis: every read and every single-job change, by key and script.

Texts go in encoded, times in milliseconds.  Every method yields to the hub and raises
`RedisUnavailableError` or `GeventqError`.  No greenlets run here.
"""

from __future__ import annotations

import logging
import typing
import weakref

import gevent

from geventq import clock
from geventq.errors import GeventqError, LockLostError, RedisUnavailableError
from geventq.foreign import number_in
from geventq.job import STATES, Job, Life
from geventq.large import in_turns
from geventq.options import StoredOptions
from geventq.record import record_of
from geventq.store.client import Argument, Client
from geventq.store.connection import Answer
from geventq.store.keys import QueueKeys
from geventq.store.limits import is_thrown
from geventq.store.scripts import load
from geventq.store.walking import LISTS, id_pages, unfinished_pages

if typing.TYPE_CHECKING:
    from geventq.cancel_request import CancelResult, Request
    from geventq.cancel_secret import CancelSecret
    from geventq.cancellation import Cancellation
    from geventq.store.clearing import Clearing
    from geventq.store.job_ends import JobEnds

__all__ = ["NewJob", "QueueStore"]

NewJob = tuple[str, bytes, StoredOptions]  # name, data, options

_PAGE: typing.Final = 1000  # hashes or rows read in one round trip: it is counted in bytes, too

log = logging.getLogger("geventq")


class QueueStore:
    """See the module."""

    def __init__(self, client: Client, keys: QueueKeys, secret: CancelSecret | None = None) -> None:
        self._client = client
        self.keys = keys
        self._secret = secret
        self._ends: weakref.WeakKeyDictionary[object, JobEnds] = weakref.WeakKeyDictionary()

    @property
    def queue_name(self) -> str:
        return self.keys.name

    @property
    def home(self) -> tuple[object, ...]:
        """The server, as it is addressed, the database and the keys: equal for one queue."""
        return (*self._client.endpoint.server, self._client.database, self.keys.base)

    @property
    def timeout(self) -> float:
        """Seconds that one call may take."""
        return self._client.timeout

    # -- adding ----------------------------------------------------------------------------

    def add(self, jobs: typing.Sequence[NewJob]) -> list[Job]:
        """Store jobs, all or none, in one call.  One whose id was known comes back as what is
        stored."""
        now_ms = clock.wall_ms()
        args: list[Argument] = []
        for name, data, options in in_turns(jobs):
            args += (options.job_id, name, data, options.text, options.rare)
        again = all(options.job_id for _, _, options in jobs)
        first, last, *answers = self._send_add(now_ms, args, again)
        now, added = b"%d" % now_ms, (first, last) if first else None
        return [
            Job(self, answer.decode(), _fields(new, now), added=added)
            if type(answer) is bytes
            else self._known(*answer)
            for answer, new in in_turns(zip(answers, jobs, strict=True))
        ]

    def _send_add(self, now_ms: int, args: list[Argument], again: bool) -> list[typing.Any]:
        """Sent again only if every job has an id of its own: else a second copy could be stored
        (cancellation.md 3.6).  The script is told, so that it knows its own jobs again."""
        script, keys, began = load("add"), self.keys, clock.monotonic()
        try:
            answers = self._client.script(script, keys, [keys.base, now_ms, "", *args])
        except RedisUnavailableError as first:
            left = self.timeout - (clock.monotonic() - began)
            if not again or left <= 0 or is_thrown(first):
                raise
            sent = [keys.base, now_ms, "1", *args]
            try:
                answers = self._client.script(script, keys, sent, again=True, timeout=left)
            except RedisUnavailableError as error:
                error.may_be_done = error.may_be_done or first.may_be_done
                raise
        return typing.cast(list[typing.Any], answers)

    def _known(self, job_id: bytes, flat: list[bytes]) -> Job:
        pairs = iter(flat)
        return Job(self, _id(job_id), dict(zip(pairs, pairs, strict=True)), was_added=False)

    # -- reading ----------------------------------------------------------------------------

    def read(self, job_id: str) -> Job | None:
        """The job, or `None` if there is none."""
        flat = self._client.execute("HGETALL", self.keys.base + job_id, again=True)
        if not flat:
            return None
        pairs = iter(flat)
        return Job(self, job_id, dict(zip(pairs, pairs, strict=True)))

    def state(self, job_id: str) -> str:
        """Where the job is (wire-format 13)."""
        states = self._client.script(load("get_state"), self.keys, [job_id], again=True)
        return typing.cast(str, states[0].decode())

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        counts = self._client.script(load("counts"), self.keys, [], again=True)
        return dict(zip(STATES, counts, strict=True))

    def page(
        self, states: typing.Sequence[str], start: int, end: int, ascending: bool = False
    ) -> list[Job]:
        """The jobs of each state by position, state after state, the newest first; with
        `ascending` the oldest, which is the next to run or due (wire-format 13).

        Ids without a hash are skipped; a key that holds no hash is told in the log and skipped.
        """
        ranges = [self._range(state, start, end, ascending) for state in states]
        ids: list[str] = []
        for state, found in zip(states, self._client.pipeline(ranges, again=True), strict=True):
            if state in LISTS and ascending:
                found.reverse()  # new ones enter on the left
            ids += [job_id.decode("utf-8", "replace") for job_id in found]
        return self.read_all(ids)

    def _range(self, state: str, start: int, end: int, ascending: bool) -> tuple[Argument, ...]:
        key = getattr(self.keys, STATES[state])
        if state in LISTS:
            first, last = (-end - 1, -start - 1) if ascending else (start, end)
            return ("LRANGE", key, first, last)
        return ("ZRANGE" if ascending else "ZREVRANGE", key, start, end)

    def _jobs_in(self, ids: typing.Sequence[str], hashes: typing.Sequence[Answer]) -> list[Job]:
        jobs = []
        for job_id, flat in zip(ids, hashes, strict=False):  # there may have been room for some
            if isinstance(flat, list) and flat:
                pairs = iter(flat)
                jobs.append(Job(self, job_id, dict(zip(pairs, pairs, strict=True))))
            elif not isinstance(flat, list):
                log.warning(
                    "job %s of queue %s was skipped: %s",
                    job_id,
                    self.queue_name,
                    flat,
                    extra={"queue": self.queue_name, "job": job_id},
                )
        return jobs

    def counts_per_priority(self, priorities: typing.Sequence[int]) -> dict[int, int]:
        """How many jobs wait with each priority; 0 is those without one."""
        commands: list[tuple[Argument, ...]] = []
        for priority in priorities:
            if priority == 0:
                commands.append(("LLEN", self.keys.wait))
            else:
                low, high = priority * 2**32, (priority + 1) * 2**32 - 1
                commands.append(("ZCOUNT", self.keys.prioritized, low, high))
        return dict(zip(priorities, self._client.pipeline(commands, again=True), strict=True))

    def workers(self) -> list[dict[str, str]]:
        """The connections that workers of this queue wait on, as ``CLIENT LIST`` tells them
        (wire-format 11); ``name`` is the worker's name, empty for one without."""
        ours = self.keys.client_name()
        found = []
        for line in (
            self._client.execute("CLIENT", "LIST", again=True)
            .decode("utf-8", "replace")
            .splitlines()
        ):
            client = dict(part.partition("=")[::2] for part in line.split(" "))
            raw = client.get("name", "")
            if raw == ours or raw.startswith(f"{ours}:w:"):
                client["rawname"] = raw
                client["name"] = raw[len(ours) + 3 :]
                found.append(client)
        return found

    def trim_events(self, length: int) -> int:
        """Cut the event stream to about `length` entries, in calls that the server bounds; how
        many went."""
        command = ("XTRIM", self.keys.events, "MAXLEN", "~", length)
        went = 0
        while count := self._client.execute(*command, again=True):
            went += count
        return went

    # -- one job -----------------------------------------------------------------------------

    def _change(
        self, name: str, job_id: str, args: list[Argument], *, again: bool = False
    ) -> typing.Any:
        """Run a script on one job; what it answers, unless that is a refusal, which is raised."""
        code = self._client.script(load(name), self.keys.of_job(job_id), args, again=again)
        _raise_for(code, job_id)
        return code

    def update_progress(self, job_id: str, progress: bytes, lock_token: str) -> None:
        self._change("update_progress", job_id, [job_id, progress, lock_token], again=True)

    def update_data(self, job_id: str, data: bytes, lock_token: str) -> None:
        self._change("update_data", job_id, [data, lock_token], again=True)

    def log(self, job_id: str, row: bytes, keep: int, lock_token: str) -> int:
        return typing.cast(int, self._change("log", job_id, [row, keep, lock_token]))

    def logs(self, job_id: str) -> list[str]:
        """The rows of the job's log, oldest first."""
        script, keys = load("get_logs"), self.keys.of_job(job_id)
        rows: list[bytes] = []
        while some := self._client.script(script, keys, [len(rows), _PAGE], again=True):
            rows += some
        return [row.decode("utf-8", "replace") for row in rows]

    def clear_logs(self, job_id: str, keep: int) -> None:
        self._change("clear_logs", job_id, [keep], again=True)

    def retry(self, job_id: str, state: str, reset_made: bool, reset_started: bool) -> None:
        flags = ["1" if flag else "" for flag in (reset_made, reset_started)]
        self._change("retry_job", job_id, [job_id, state, *flags])

    def remove(self, job_id: str) -> bool:
        return bool(self._change("remove_job", job_id, [job_id, self.keys.base], again=True) == 1)

    def promote(self, job_id: str) -> None:
        self._change("promote", job_id, [job_id])

    def change_delay(self, job_id: str, delay: int | float) -> None:
        self._change("change_delay", job_id, [job_id, clock.wall_ms(), delay])

    def change_priority(self, job_id: str, priority: int, lifo: bool) -> None:
        args: list[Argument] = [job_id, priority, "1" if lifo else ""]
        self._change("change_priority", job_id, args, again=True)

    def wait_until_finished(self, job_id: str, life: Life, timeout: float | None) -> typing.Any:
        """The job's result; raises `GeventqError` with its failed reason, and `gevent.Timeout`,
        which alone ends the wait while Redis cannot be reached."""
        ends = self.ends_of_jobs()
        if timeout == 0:  # its timer would be quicker than the server's answer
            return ends.glance(job_id, life)
        with gevent.Timeout(timeout):
            return ends.wait(job_id, life)

    def ends_of_jobs(self) -> JobEnds:
        """Those who wait for jobs in this hub.  Does not yield."""
        from geventq.store.job_ends import JobEnds

        hub = gevent.get_hub()
        ends = self._ends.get(hub)
        if ends is None or not ends.is_ours:
            ends = self._ends[hub] = JobEnds(self._client, self.keys)
        return ends

    def cancel(
        self, request: Request, job_ids: typing.Sequence[str], *, dry_run: bool = False
    ) -> list[CancelResult]:
        """Cancel jobs, or tell what would happen: see `geventq.store.cancelling`."""
        from geventq.store.cancelling import Cancelling

        asked = Cancelling(self._client, self.keys, self._secret, request, job_ids)
        if dry_run:
            return asked.dry_run()
        if request.wait is None:
            return asked.carry_out()
        from geventq.store.receipts import refuse_own_job

        refuse_own_job(job_ids, self.home)
        return asked.carry_out_and_wait(self.ends_of_jobs(), request.wait)

    def chosen(
        self,
        *,
        name: str | None,
        state: str | None,
        where: typing.Callable[[Job], object] | None,
    ) -> list[str]:
        """The ids of the jobs that all of the filters choose; without a state, of all that have
        not ended, wherever they go meanwhile."""
        pages = (page for _, page in self.id_pages(state))
        if name is None and where is None:
            return list(dict.fromkeys(job_id for page in pages for job_id in page))
        found: dict[str, None] = {}
        for page in pages:
            found |= dict.fromkeys(
                job.id
                for job in self._each(page)
                if (name is None or job.name == name) and (where is None or where(job))
            )
        return list(found)

    def id_pages(self, state: str | None) -> typing.Iterator[tuple[str, list[str]]]:
        """States, and ids of all jobs in them: of one, or of all in which jobs have not ended.
        See `geventq.store.walking`."""
        if state is None:
            return unfinished_pages(self._client, self.keys)
        return ((state, page) for page in id_pages(self._client, self.keys, state))

    def read_all(self, ids: typing.Sequence[str]) -> list[Job]:
        """The jobs that there are of these ids, in order."""
        return list(self._each(ids))

    def _each(self, ids: typing.Sequence[str]) -> typing.Iterator[Job]:
        first = 0
        while first < len(ids):
            page = ids[first : first + _PAGE]
            hashes = self._client.script(load("get_jobs"), self.keys, page, again=True)
            yield from self._jobs_in(page, hashes)
            first += len(hashes)

    def extend_lock(self, job_id: str, lock_token: str, duration: int) -> None:
        code = self._client.script(
            load("extend_lock"),
            self.keys.of_job(job_id),
            [lock_token, duration, job_id],
            again=True,
        )
        if code != 1:
            raise LockLostError(f"job {job_id}: its lock is gone or another's")

    def record_request(
        self,
        job_id: str,
        lock_token: str,
        request: Cancellation,
        attempts_made: int,
        timestamp_ms: int,
        nonces: list[str],
    ) -> None:
        """Record a request with the job that it was made to, as long as `lock_token` locks it
        (cancellation.md 2.10, 4.3)."""
        deferred = "" if request.retry else request.failed_reason()
        args: list[Argument] = [
            lock_token,
            record_of(request, attempts_made, timestamp_ms, nonces),
            deferred,
        ]
        self._client.script(load("record_request"), self.keys.of_job(job_id), args, again=True)

    # -- the queue -----------------------------------------------------------------------------

    def pause(self) -> None:
        self._client.script(load("pause"), self.keys, [], again=True)

    def resume(self) -> None:
        first = "1"
        while self._client.script(load("resume"), self.keys, [first], again=True):
            first = "0"

    def is_paused(self) -> bool:
        return bool(self._client.execute("HEXISTS", self.keys.meta, "paused", again=True))

    def is_maxed(self) -> bool:
        """Whether as many jobs run as the queue allows in all (wire-format 8)."""
        keys = self.keys
        commands = [("HGET", keys.meta, "concurrency"), ("LLEN", keys.active)]
        most, active = self._client.pipeline(commands, again=True)
        limit = number_in((most or b"").decode(errors="replace").strip() or None)
        return limit is not None and active >= limit

    def retry_jobs(self, state: str, until_ms: int) -> int:
        """Run finished jobs again that ended until a moment; how many."""
        return self._move_all("retry_jobs", [self.keys.base, state, until_ms])

    def promote_jobs(self) -> int:
        """Let all delayed jobs run now; how many."""
        return self._move_all("promote_jobs", [])

    def _move_all(self, name: str, args: list[Argument]) -> int:
        """Call a script that moves so many jobs a call until none are left; how many went."""
        moved, there_may_be_more = 0, 1
        while there_may_be_more:
            count, there_may_be_more = self._client.script(load(name), self.keys, args)
            moved += count
        return moved

    def drain(self, delayed: bool) -> None:
        self._clearing().drain(delayed)

    def clean(self, state: str, until_ms: int, limit: int) -> list[str]:
        return self._clearing().clean(state, until_ms, limit)

    def obliterate(self, force: bool) -> None:
        self._clearing().obliterate(force)

    def _clearing(self) -> Clearing:
        from geventq.store.clearing import Clearing

        return Clearing(self._client, self.keys)

    def set_max_events(self, length: int | None) -> None:
        """Say how long the event stream is to be; `None` says the default if nobody has yet
        (wire-format 5)."""
        field = "opts.maxLenEvents"
        if length is None:
            self._client.execute("HSETNX", self.keys.meta, field, 10_000, again=True)
        else:
            self._client.execute("HSET", self.keys.meta, field, length, again=True)

    def let_go(self) -> None:
        """Those who wait for ends of jobs get a `GeventqError`.  Does not yield."""
        waited_for = list(self._ends.values())
        self._ends.clear()
        for ends in waited_for:
            ends.close()

    def close(self) -> None:
        """`let_go`, and close the connections.  A job that somebody has kept stays usable."""
        client, self._client = self._client, self._client.afterwards()
        self.let_go()
        client.close()


def _fields(new: NewJob, now: bytes) -> dict[bytes, bytes]:
    """The hash that the add script has written."""
    name, data, options = new
    return {
        b"name": name.encode(),
        b"data": data,
        b"opts": options.text,
        b"timestamp": now if options.timestamp is None else b"%d" % options.timestamp,
        b"delay": str(options.delay).encode() if options.delay else b"0",
        b"priority": b"%d" % options.priority if options.priority else b"0",
    }


def _id(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _raise_for(code: int, job_id: str) -> None:
    if code == -1:
        raise GeventqError(f"job {job_id} does not exist")
    if code == -3:
        raise GeventqError(f"job {job_id} is not in the state that this needs")
    if code == -6:
        raise LockLostError(f"job {job_id}: this attempt does not own it any more")
