"""Going through the ids of all jobs in a state, page by page, while jobs come and go.

Each page begins where the one before it ended, wherever that is by then: its place is known by
the id that comes next, not by counting, so that nothing is passed over when earlier ones leave.
Every function yields to the hub and raises `RedisUnavailableError`; no greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.job import STATES

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["LISTS", "PAGE", "id_pages"]

LISTS: typing.Final = ("active", "waiting")
"""The states whose jobs are in lists; the others have sorted sets."""

PAGE: typing.Final = 10_000
"""Ids in one round trip."""


def id_pages(
    client: Client, keys: QueueKeys, state: str, size: int = PAGE
) -> typing.Iterator[list[str]]:
    """The ids of a state, the newest first, which is the end that jobs are not taken from.

    One that moves meanwhile may come twice.  None that stays is missed, and those that are added
    after the first page are not looked for.
    """
    key, next_id = getattr(keys, STATES[state]), b""
    is_list = state in LISTS
    while True:
        first = _place(client, key, is_list, next_id) if next_id else 0
        command = ("LRANGE" if is_list else "ZREVRANGE", key, first, first + size)
        found: list[bytes] = client.execute(*command, again=True)
        if found[:size]:
            yield [job_id.decode("utf-8", "replace") for job_id in found[:size]]
        if len(found) <= size:
            return
        next_id = found[size]


def _place(client: Client, key: str, is_list: bool, job_id: bytes) -> int:
    """Where the next page begins; at the beginning again if the job there has left."""
    command = ("LPOS" if is_list else "ZREVRANK", key, job_id)
    place: int | None = client.execute(*command, again=True)
    return place or 0
