"""Waiting for the end of one job, by its queue's event stream (wire-format 12)."""

from __future__ import annotations

import typing

from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.store.connection import checked, pack
from geventq.store.link import Link

if typing.TYPE_CHECKING:
    from geventq.store.connection import Client
    from geventq.store.jobs import QueueStore

__all__ = ["wait_until_finished"]

_BLOCK_MS: typing.Final = 5_000  # then the job itself is looked at: the stream may be trimmed
_GRACE: typing.Final = 5.0


def wait_until_finished(client: Client, store: QueueStore, job_id: str) -> typing.Any:
    """The result of the job, or `GeventqError` with its failed reason.  Yields to the hub.

    The stream is read from an id taken before the job is looked at, so that no end falls between
    the two; a job that is gone already is looked for in the entries that are kept.
    """
    events = store.keys.events
    link: Link | None = None
    try:
        newest = client.execute("XREVRANGE", events, "+", "-", "COUNT", 1, again=True)
        last_id = newest[0][0] if newest else b"0-0"
        if _settled(store, job_id):
            return _answer(store, job_id)
        if store.read(job_id) is None:
            last_id = b"0-0"
        while True:
            if link is None or link.closed:
                link = Link.open(client.endpoint)
            command = ("XREAD", "BLOCK", _BLOCK_MS, "STREAMS", events, last_id)
            reply = checked(link.call(pack(command), 1, _BLOCK_MS / 1000 + _GRACE))[0]
            for entry_id, flat in reply[0][1] if reply else ():
                last_id = entry_id
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if fields.get(b"jobId") == job_id.encode():
                    if fields[b"event"] == b"completed":
                        return decode(fields[b"returnvalue"])
                    if fields[b"event"] == b"failed":
                        raise GeventqError(fields[b"failedReason"].decode("utf-8", "replace"))
            if not reply and _settled(store, job_id):
                return _answer(store, job_id)
            if not reply and store.read(job_id) is None:
                raise GeventqError(f"job {job_id} does not exist")
    finally:
        if link is not None:
            link.close()


def _settled(store: QueueStore, job_id: str) -> bool:
    return store.state(job_id) in ("completed", "failed")


def _answer(store: QueueStore, job_id: str) -> typing.Any:
    job = store.read(job_id)
    if job is None:
        raise GeventqError(f"job {job_id} was removed")
    if job.finished_on is not None and store.state(job_id) == "failed":
        raise GeventqError(job.failed_reason or "")
    return job.return_value
