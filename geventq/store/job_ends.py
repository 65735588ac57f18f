"""Waiting for the ends of jobs, by their queue's event stream (wire-format 12).

All who wait in one hub share one connection and one greenlet (``geventq-ends-<queue>``), which
reads the stream; both are there only while somebody waits, and the last one to leave joins it.

No end falls between two looks, and no end of an earlier job with the same id is taken for this
one's: who waits is registered first; then one script looks at the job and tells the stream's
newest entry at that moment.  What had ended by then is seen there; of the stream only what comes
after that entry counts.  Where the stream says nothing for a while, or was not heard because of
an outage, the jobs are looked at again, for it is trimmed.
"""

from __future__ import annotations

import typing

import gevent
import gevent.event
from gevent.event import AsyncResult

from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.fork import connections as fork
from geventq.guarded import Guarded
from geventq.outage import Outage
from geventq.store.scripts import load
from geventq.store.stream import Entry, Stream

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["JobEnds"]

_BLOCK: typing.Final = 5.0  # seconds
_PAGE: typing.Final = 1000  # jobs, or entries, that one call looks at

End = tuple[str, bytes]  # completed and the result, failed and the reason, or removed


class _Waiter:
    """One who waits for a job; `begin` is told from where on the stream counts for it."""

    __slots__ = ("_early", "_since", "answer")

    def __init__(self) -> None:
        self.answer: AsyncResult[End] = AsyncResult()
        self._since: tuple[int, ...] | None = None
        self._early: list[tuple[bytes, End]] = []  # heard while the job is being looked at

    def begin(self, newest: bytes) -> None:
        self._since = _position(newest)
        for entry_id, end in self._early:
            self.hear(entry_id, end)

    def hear(self, entry_id: bytes, end: End) -> None:
        if self._since is None:
            self._early.append((entry_id, end))
        elif _position(entry_id) > self._since:
            self.answer.set(end)


class JobEnds:
    """Those who wait for jobs of one queue, in one hub of one process."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._generation = fork.generation
        self._client = client
        self._keys = keys
        self._waiting: dict[str, list[_Waiter]] = {}
        self._reader: _Reader | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process."""
        return self._generation == fork.generation

    def wait(self, job_id: str, *, only_look: bool = False) -> typing.Any:
        """The result of the job; raises `GeventqError` with its failed reason, or if it is gone
        and its end is not in the stream any more, and with `only_look` `gevent.Timeout` if it has
        not ended.  Yields."""
        waiter = _Waiter()
        self._waiting.setdefault(job_id, []).append(waiter)
        try:
            newest, (end,) = self._look([job_id])
            if end is None:
                if only_look:
                    raise gevent.Timeout(0)
                if self._reader is None:
                    self._reader = _Reader(self, self._client, self._keys, newest)
                waiter.begin(newest)
                end = typing.cast(End, waiter.answer.get())
        finally:
            others = self._waiting[job_id]
            others.remove(waiter)
            if not others:
                del self._waiting[job_id]
            if not self._waiting:
                self._stop_reading()
        return _outcome(job_id, end)

    def close(self) -> None:
        """Let all who wait go, with an error."""
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                waiter.answer.set_exception(GeventqError("the queue was closed"))

    def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()

    # -- looking ---------------------------------------------------------------------------

    def _look(self, job_ids: list[str]) -> tuple[bytes, list[End | None]]:
        """The newest entry, and how each job had ended by then, `None` for one that had not."""
        keys = self._keys
        newest, *states = self._client.script(
            load("get_end"), keys, [keys.base, *job_ids], again=True
        )
        ends: list[End | None] = []
        for job_id, (state, told) in zip(job_ids, states, strict=True):
            if state == b"missing":
                ends.append(self._look_back(job_id))
            else:
                ends.append(None if state == b"open" else (state.decode(), told))
        return newest, ends

    def _look_back(self, job_id: str) -> End:
        """The end of a job that is gone, from the entries that are kept.  The search stops at
        its `added`: an end before that was another job's with the same id."""
        wanted, upper = job_id.encode(), "+"
        while True:
            page = self._client.execute(
                "XREVRANGE", self._keys.events, upper, "-", "COUNT", _PAGE, again=True
            )
            for _, flat in page:
                fields = _fields(flat)
                if fields.get(b"jobId") == wanted:
                    end = _end_in(fields)
                    if end is not None and end[0] != "removed":
                        return end
                    if end is not None or fields.get(b"event") == b"added":
                        return ("removed", b"")
            if len(page) < _PAGE:
                return ("removed", b"")
            upper = "(" + page[-1][0].decode()

    # -- listening, in the reader ------------------------------------------------------------

    def heard(self, entries: list[Entry]) -> None:
        """What the stream says."""
        for entry_id, flat in entries:
            fields = _fields(flat)
            waiters = self._waiting.get(fields.get(b"jobId", b"").decode("utf-8", "replace"))
            end = _end_in(fields) if waiters else None
            if end is not None:
                for waiter in waiters or ():
                    waiter.hear(entry_id, end)

    def look_again(self) -> None:
        """Something may have been missed."""
        waiting = list(self._waiting)
        for first in range(0, len(waiting), _PAGE):
            job_ids = waiting[first : first + _PAGE]
            for job_id, end in zip(job_ids, self._look(job_ids)[1], strict=True):
                for waiter in self._waiting.get(job_id, ()) if end is not None else ():
                    waiter.answer.set(end)


class _Reader:
    """The greenlet that reads the stream after `last_id`."""

    def __init__(self, ends: JobEnds, client: Client, keys: QueueKeys, last_id: bytes) -> None:
        self._ends = ends
        self._last_id = last_id
        self._stream = Stream(client, keys, block=_BLOCK)
        self._left = gevent.event.Event()  # nobody waits any more
        self._missed = False  # the stream was silent, or not heard
        self._outage = Outage("waiting for ends of jobs", keys.name, self._left)
        self._task = Guarded(self._read_all, f"ends-{keys.name}", self._outage)
        self._task.start()

    def stop(self) -> None:
        """End the greenlet and join it.  Yields."""
        self._left.set()
        self._stream.close()
        self._task.join()

    def _read_all(self) -> None:
        while not self._left.is_set():
            missed, self._missed = self._missed, True  # whatever leaves this half-way
            if missed:
                self._ends.look_again()
            entries = self._stream.after(self._last_id)
            if entries:
                self._last_id = entries[-1][0]
                self._ends.heard(entries)
            self._missed = not entries
            self._outage.over()


def _position(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _end_in(fields: dict[bytes, bytes]) -> End | None:
    event = fields.get(b"event")
    if event == b"completed":
        return ("completed", fields.get(b"returnvalue", b"null"))
    if event == b"failed":
        return ("failed", fields.get(b"failedReason", b""))
    return ("removed", b"") if event == b"removed" else None


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
