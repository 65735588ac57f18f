"""Going through the ids of all jobs in a state, or of all that have not ended, page by page, while
jobs come and go.

Each page begins where the one before it ended, wherever that is by then: its place is known by
the id that comes next, not by counting, so that nothing is passed over when earlier ones leave.
Every function yields to the hub and raises `RedisUnavailableError`; no greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.job import STATES
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["LISTS", "PAGE", "id_pages", "unfinished_pages"]

LISTS: typing.Final = ("active", "waiting")
"""The states whose jobs are in lists; the others have sorted sets."""

PAGE: typing.Final = 10_000
"""Ids in one round trip."""
_AT_ONCE: typing.Final = 3_000  # ids of each place that are looked at in one moment

#: Where jobs are that have not ended, as `unfinished.lua` answers, with the keys' names.
_PLACES: typing.Final = (
    ("waiting", "wait"),
    ("waiting", "paused"),
    ("prioritized", "prioritized"),
    ("delayed", "delayed"),
    ("waiting-children", "waiting_children"),
    ("active", "active"),
)
_LOOKS: typing.Final = 4  # at a long queue in which more and more is found


def id_pages(
    client: Client, keys: QueueKeys, state: str, size: int = PAGE
) -> typing.Iterator[list[str]]:
    """The ids of a state, the newest first, which is the end that jobs are not taken from.

    One that moves meanwhile may come twice.  None that stays is missed, and those that are added
    after the first page are not looked for.
    """
    return _pages(client, getattr(keys, STATES[state]), state in LISTS, size, None)


def unfinished_pages(
    client: Client, keys: QueueKeys, size: int = _AT_ONCE
) -> typing.Iterator[tuple[str, list[str]]]:
    """States, and ids of jobs in them, of all jobs that have not ended; each id comes once, those
    that ran at the first look last.

    One that moves meanwhile is not missed, as it would be if it went from a state that is still to
    be read to one that was read: failed jobs do, whose next attempt waits.  Up to `size` jobs a
    state are looked at in one moment.  A longer queue is gone through again until nothing is found
    that had not been seen.
    """
    seen: set[str] = set()
    for _ in range(_LOOKS):
        looked = client.script(load("unfinished"), keys, [size + 1], again=True)
        known = len(seen)
        for (state, key_name), first in zip(_PLACES, looked, strict=True):
            key = getattr(keys, key_name)
            for page in _pages(client, key, state in LISTS, size, first):
                fresh = [job_id for job_id in page if job_id not in seen]
                seen.update(fresh)
                if fresh:
                    yield state, fresh
        if len(seen) == known or all(len(first) <= size for first in looked):
            return


def _pages(
    client: Client, key: str, is_list: bool, size: int, found: list[bytes] | None
) -> typing.Iterator[list[str]]:
    """The ids in a list or a sorted set; `found` are the first of them and one more, if they were
    looked at already."""
    while True:
        if found is None:
            found = _read(client, key, is_list, 0, size)
        if found[:size]:
            yield [job_id.decode("utf-8", "replace") for job_id in found[:size]]
        if len(found) <= size:
            return
        found = _read(client, key, is_list, _place(client, key, is_list, found[size]), size)


def _read(client: Client, key: str, is_list: bool, first: int, size: int) -> list[bytes]:
    command = ("LRANGE" if is_list else "ZREVRANGE", key, first, first + size)
    return typing.cast("list[bytes]", client.execute(*command, again=True))


def _place(client: Client, key: str, is_list: bool, job_id: bytes) -> int:
    """Where the next page begins; at the beginning again if the job there has left."""
    command = ("LPOS" if is_list else "ZREVRANK", key, job_id)
    place: int | None = client.execute(*command, again=True)
    return place or 0
