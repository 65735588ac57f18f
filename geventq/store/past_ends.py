"""How jobs ended that are not there any more, from the events that are kept (wire-format 6, 12).

One id may have been several jobs, one after the other: each life begins with `added`.  Which one is
asked for is told by where on the stream it was added, if that is known; else it is the newest,
or, where another job has the id by now, the one before that.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.store.event_reader import position

if typing.TYPE_CHECKING:
    from geventq.job import Life
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["REMOVED", "End", "Past", "end_in", "fields_of", "past_end", "search"]

End = tuple[str, bytes]  # completed and the result, failed and the reason, or removed
Fields = dict[bytes, bytes]  # of an entry
REMOVED: typing.Final[End] = ("removed", b"")

_PAGE: typing.Final = 1000  # entries of one call at most
_AT_FIRST: typing.Final = 4  # while nobody knows how large they are
_BYTES: typing.Final = 1 << 20  # of one call, about


class Past(typing.NamedTuple):
    """A job that is gone, and whether another one has its id now."""

    life: Life
    has_successor: bool


class Told(typing.NamedTuple):
    """One event of an id: where it stands, and the end it tells of, `None` for `added`."""

    at: tuple[int, int]
    end: End | None


def search(client: Client, keys: QueueKeys, wanted: dict[str, list[Past]]) -> dict[str, list[Told]]:
    """What the stream tells of each id, oldest first, as far back as its lives in `wanted` need.
    Yields."""
    found: dict[str, list[Told]] = {job_id: [] for job_id in wanted}
    open_ids, upper, count = set(wanted), "+", _AT_FIRST
    while open_ids:
        page = client.execute("XREVRANGE", keys.events, upper, "-", "COUNT", count, again=True)
        size = 0
        for entry_id, flat in page:
            size += sum(map(len, flat))
            fields = fields_of(flat)
            job_id = fields.get(b"jobId", b"").decode("utf-8", "replace")
            if job_id in open_ids:
                end = end_in(fields)
                if end is not None or fields.get(b"event") == b"added":
                    found[job_id].append(Told(position(entry_id), end))
        if len(page) < count:
            break
        fits = _BYTES * count // max(1, size)  # if the next are as large
        count = max(1, min(2 * count, fits, _PAGE))
        oldest = position(page[-1][0])
        open_ids = {
            job_id
            for job_id in open_ids
            if any(_reaches_back(past, found[job_id], oldest) for past in wanted[job_id])
        }
        upper = "(" + page[-1][0].decode()
    for told in found.values():
        told.reverse()
    return found


def _reaches_back(past: Past, found: list[Told], oldest: tuple[int, int]) -> bool:
    """Whether entries before `oldest` may belong to that life."""
    if past.life.added is not None:
        return position(past.life.added[0]) < oldest
    return sum(told.end is None for told in found) <= past.has_successor


def past_end(past: Past, told: typing.Sequence[Told]) -> End:
    """How that life ended: its last end, for a failed job may have been retried by hand.  That it
    was removed afterwards does not count."""
    ends = [one for one in _of_life(past, told) if one != REMOVED]
    return ends[-1] if ends else REMOVED


def _of_life(past: Past, told: typing.Sequence[Told]) -> list[End]:
    """The ends that belong to that life."""
    if past.life.added is not None:
        first, last = map(position, past.life.added)
        mine: list[End] = []
        for one in told:
            if one.end is None and one.at > last:  # another one begins
                break
            if one.end is not None and one.at > first:
                mine.append(one.end)
        return mine
    lives: list[list[End]] = [[]]  # the first one's beginning is not kept
    for one in told:
        if one.end is None:
            lives.append([])
        else:
            lives[-1].append(one.end)
    if past.has_successor:
        lives.pop()
    return lives[-1] if lives else []


def fields_of(flat: list[bytes]) -> Fields:
    """The fields of an entry."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def end_in(fields: Fields) -> End | None:
    """The end that an event tells of, if it does."""
    event = fields.get(b"event")
    if event == b"completed":
        return ("completed", fields.get(b"returnvalue", b"null"))
    if event == b"failed":
        return ("failed", fields.get(b"failedReason", b""))
    return REMOVED if event == b"removed" else None
