"""Deleting jobs in large numbers: what waits, what is old, the whole queue (wire-format 9.15-9.17).

Owns how many calls that takes: each is bounded, so that nobody else waits for the server however
long a list is.  Every method yields to the hub and raises `RedisUnavailableError` or
`GeventqError`; no greenlets run here.
"""

from __future__ import annotations

import typing

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.keys import literally
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.client import Argument, Client
    from geventq.store.keys import QueueKeys

__all__ = ["CLEANED", "Clearing"]

#: The keys that hold the jobs of each state that can be cleaned; `paused` is a version 5's.
CLEANED: typing.Final[typing.Mapping[str, tuple[str, ...]]] = {
    "completed": ("completed",),
    "failed": ("failed",),
    "waiting": ("wait", "paused"),
    "prioritized": ("prioritized",),
    "delayed": ("delayed",),
    "active": ("active",),
}
_NO_LIMIT: typing.Final = 2**53
_KEYS: typing.Final = 10_000  # keys that one step of a scan looks at: some milliseconds


class Clearing:
    """Of one queue."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    def drain(self, delayed: bool) -> None:
        """Delete what waits.  A call that is sent again finds the rest."""
        place, anchor, flag = b"wait", b"", "1" if delayed else ""
        while place != b"done":
            args: list[Argument] = [self._keys.base, flag, place, anchor]
            place, anchor = self._client.script(load("drain"), self._keys, args, again=True)

    def clean(self, state: str, until_ms: int, limit: int) -> list[str]:
        """Delete jobs of a state that are older than a moment, `limit` at most (0: all); their ids.

        No call is sent again: which jobs a first one took would not be known, and the second one
        could take more than `limit`.  The error's `results` are the ids that are known.
        """
        gone: list[str] = []
        most, is_first = limit or _NO_LIMIT, "1"
        try:
            for place in CLEANED[state]:
                anchor, has_more = b"", 1
                while has_more and len(gone) < most:
                    args: list[Argument] = [self._keys.base, place, until_ms]
                    args += [most - len(gone), anchor, is_first]
                    ids, has_more, anchor = self._client.script(load("clean"), self._keys, args)
                    gone += [job_id.decode("utf-8", "replace") for job_id in ids]
                    is_first = ""
        except GeventqError as error:
            error.results = gone
            if gone and isinstance(error, RedisUnavailableError):
                error.may_be_done = True  # by the calls before it
            raise
        return gone

    def obliterate(self, force: bool) -> None:
        """Delete everything.  Raises `GeventqError` where jobs run, unless forced to."""
        first, code = "1", 1
        while code == 1:
            args = [self._keys.base, "1" if force else "", first]
            code = self._client.script(load("obliterate"), self._keys, args, again=True)
            first = ""
        if code != 0:
            raise GeventqError(
                f"queue {self._keys.name} has running jobs: it is paused now, and was not deleted; "
                "wait for them, or use force=True"
            )
        self._delete_our_own()

    def _delete_our_own(self) -> None:
        """What only geventq keeps: answers that wait to be asked for again, and heartbeats."""
        own = f"{self._keys.base}gq:"
        pattern = literally(own) + "*"
        cursor = b"0"
        while True:
            step = ("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS)
            cursor, found = self._client.execute(*step, again=True)
            if found:
                self._client.execute("UNLINK", *found, again=True)
            if cursor == b"0":
                return
