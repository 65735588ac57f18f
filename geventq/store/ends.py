"""Waiting for the ends of jobs, by their queue's event stream (wire-format 12).

All who wait in one hub share one connection and one greenlet (``geventq-ends-<queue>``), which
reads the stream; both are there only while somebody waits, and the last one to leave joins it.

No end falls between two looks: who waits is registered first, then the stream's position is
known, then the job itself is looked at.  What had ended before is seen there; what ends later
comes in the stream.  Where the stream says nothing for a while, or was not heard because of an
outage, the jobs are looked at again, for it is trimmed.
"""

from __future__ import annotations

import typing

import gevent
import gevent.event
from gevent.event import AsyncResult

from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.outage import Outage
from geventq.store import fork
from geventq.store.connection import checked, pack
from geventq.store.link import Link
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.connection import Client, Endpoint
    from geventq.store.keys import QueueKeys

__all__ = ["Ends"]

_BLOCK_MS: typing.Final = 5_000
_GRACE: typing.Final = 5.0
_PAGE: typing.Final = 1000

End = tuple[str, bytes]  # completed and the result, failed and the reason, or removed


class Ends:
    """Those who wait for jobs of one queue, in one hub of one process."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._generation = fork.generation
        self._client = client
        self._keys = keys
        self._waiting: dict[str, list[AsyncResult[End]]] = {}
        self._reader: _Reader | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process."""
        return self._generation == fork.generation

    def wait(self, job_id: str) -> typing.Any:
        """The result of the job; raises `GeventqError` with its failed reason, or if it is gone
        and its end is not in the stream any more.  Yields."""
        answer: AsyncResult[End] = AsyncResult()
        self._waiting.setdefault(job_id, []).append(answer)
        try:
            self._read_on()
            end = self._end_of(job_id) or typing.cast(End, answer.get())
        finally:
            others = self._waiting[job_id]
            others.remove(answer)
            if not others:
                del self._waiting[job_id]
            if not self._waiting:
                self._stop_reading()
        return _outcome(job_id, end)

    # -- looking ---------------------------------------------------------------------------

    def _end_of(self, job_id: str) -> End | None:
        """How the job ended; `None` while it has not."""
        keys = self._keys
        names = [keys.job(job_id), keys.completed, keys.failed]
        state, *told = self._client.script(load("get_end"), names, [job_id], again=True)
        if state == b"missing":
            return self._look_back(job_id)
        return None if state == b"open" else (state.decode(), told[0])

    def _look_back(self, job_id: str) -> End:
        """The end of a job that is gone, from the entries that are kept.  The search stops at
        its `added`: an end before that was another job's with the same id."""
        wanted, upper = job_id.encode(), "+"
        while True:
            page = self._client.execute(
                "XREVRANGE", self._keys.events, upper, "-", "COUNT", _PAGE, again=True
            )
            for _, flat in page:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if fields.get(b"jobId") == wanted:
                    end = _end_in(fields)
                    if end is not None and end[0] != "removed":
                        return end
                    if end is not None or fields.get(b"event") == b"added":
                        return ("removed", b"")
            if len(page) < _PAGE:
                return ("removed", b"")
            upper = "(" + page[-1][0].decode()

    # -- listening -------------------------------------------------------------------------

    def _read_on(self) -> None:
        """See to it that the stream is read, from now on or from earlier."""
        if self._reader is not None:
            return
        newest = self._client.execute(
            "XREVRANGE", self._keys.events, "+", "-", "COUNT", 1, again=True
        )
        if self._reader is None:  # nobody else was as quick
            last_id = newest[0][0] if newest else b"0-0"
            self._reader = _Reader(self, self._client.endpoint, self._keys, last_id)

    def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()

    def heard(self, entries: list[list[bytes]], *, surely: bool) -> None:
        """What the stream says; not `surely` if something may have been missed.  In the reader."""
        for flat in entries:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            job_id = fields.get(b"jobId", b"").decode("utf-8", "replace")
            if job_id in self._waiting:
                self._tell(job_id, _end_in(fields))
        if not surely:
            for job_id in list(self._waiting):
                self._tell(job_id, self._end_of(job_id))

    def _tell(self, job_id: str, end: End | None) -> None:
        if end is not None:
            for answer in self._waiting.get(job_id, ()):
                answer.set(end)


class _Reader:
    """The connection and the greenlet that read the stream after `last_id`."""

    def __init__(self, ends: Ends, endpoint: Endpoint, keys: QueueKeys, last_id: bytes) -> None:
        self._ends = ends
        self._endpoint = endpoint
        self._keys = keys
        self._last_id = last_id
        self._link: Link | None = None
        self._left = gevent.event.Event()  # nobody waits any more
        self._greenlet: gevent.Greenlet[..., None] = gevent.Greenlet(self._read_all)
        self._greenlet.name = f"geventq-ends-{keys.name}"
        self._greenlet.spawn_tree_locals = {}  # it belongs to no job
        self._greenlet.start()

    def stop(self) -> None:
        """End the greenlet; closing its connection ends a call that is under way.  Yields."""
        self._left.set()
        if self._link is not None:
            self._link.close()
        self._greenlet.join()

    def _read_all(self) -> None:
        outage = Outage("waiting for ends of jobs", self._keys.name, self._left)
        while not self._left.is_set():
            try:
                entries = self._read()
                self._ends.heard(entries, surely=bool(entries) and not outage.lasts)
            except GeventqError as error:
                if not self._left.is_set():
                    outage.failed(error)
                    outage.pause()
            else:
                outage.over()
        if self._link is not None:
            self._link.close()

    def _read(self) -> list[list[bytes]]:
        if self._link is None or self._link.closed:
            self._link = Link.open(self._endpoint)
            if self._left.is_set():  # `stop` came while it was being opened
                return []
        command = (
            *("XREAD", "BLOCK", _BLOCK_MS, "COUNT", _PAGE),
            *("STREAMS", self._keys.events, self._last_id),
        )
        reply = checked(self._link.call(pack(command), 1, _BLOCK_MS / 1000 + _GRACE))[0]
        if not reply:
            return []
        entries = reply[0][1]
        self._last_id = entries[-1][0]
        return [flat for _, flat in entries if flat is not None]


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
