"""The workers of one queue and what is asked of them, as Redis sees it (cancellation.md 5.7).

Owns the heartbeats, the messages to single workers and the list of their replies; knows nothing of
what is asked.  No greenlets run here.
"""

from __future__ import annotations

import typing

import gevent

from geventq import clock
from geventq.store.blocking import BlockingConnection
from geventq.store.keys import MemberKeys, QueueKeys, RequestKeys
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.client import Client

__all__ = ["HEARTBEAT", "Member", "Members", "Replies"]

HEARTBEAT: typing.Final = 10.0
"""Seconds between two heartbeats of a worker."""
_STALE: typing.Final = 25_000  # ms: two heartbeats may be lost
_KEPT: typing.Final = 60_000  # ms that replies are there for
_COUNTED: typing.Final = 10_000  # active jobs that are counted by their locks
_SHORTEST: typing.Final = 0.01  # seconds to wait for a reply: 0 would mean for ever
_LATE: typing.Final = 0.25  # seconds that the server may take to say that none came


class Member(typing.NamedTuple):
    """A worker whose heartbeat is fresh."""

    id: str
    active_jobs: int
    """How many jobs it holds; -1: too many are active to count them."""
    told: dict[str, str]


class Members:
    """The workers of one queue.  Every method raises `RedisUnavailableError` or `GeventqError`,
    and yields."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    @property
    def database(self) -> int:
        return self._client.database

    def beat(
        self, worker_id: str, told: dict[str, str | int], secrets: str = "", *, timeout: float
    ) -> int:
        """The worker lives, and believes what is signed with these `secrets` (their keys); the
        server's time in milliseconds."""
        args: list[str | int] = [worker_id, _STALE, secrets]
        for field in told.items():
            args += field
        keys = MemberKeys(self._keys, worker_id)
        now = self._client.script(load("heartbeat"), keys, args, again=True, timeout=timeout)
        return int(now)

    def leave(self, worker_id: str, *, timeout: float) -> None:
        """The worker ends."""
        gone = MemberKeys(self._keys, worker_id).member
        commands = [("ZREM", self._keys.workers, worker_id), ("DEL", gone)]
        self._client.pipeline(commands, timeout=timeout)

    def fresh(self, timeout: float | None = None) -> tuple[int, list[Member]]:
        """The server's time in milliseconds, and who is a member now."""
        base = self._keys.base
        last: bytes | str = ""
        same = 0
        members: dict[bytes, Member] = {}  # one may tell a heartbeat between two calls
        while True:
            args = (base, _STALE, _COUNTED, last, same)
            now, found, last, same = self._client.script(
                load("members"), self._keys, args, again=True, timeout=timeout
            )
            for worker_id, active_jobs, flat in found:
                texts = [one.decode("utf-8", "replace") for one in flat]
                told = dict(zip(texts[::2], texts[1::2], strict=True))
                name = worker_id.decode("utf-8", "replace")
                members[worker_id] = Member(name, active_jobs, told)
            if not last:
                return int(now), list(members.values())

    def publish(self, messages: typing.Mapping[str, bytes], timeout: float) -> set[str]:
        """Publish on each of these channels; those that somebody has heard."""
        commands = [("PUBLISH", channel, data) for channel, data in messages.items()]
        heard = self._client.pipeline(commands, again=True, timeout=timeout)
        return {channel for channel, count in zip(messages, heard, strict=True) if count}

    def reply(self, nonce: str, data: bytes, *, timeout: float) -> None:
        """Answer the request `nonce`."""
        keys = RequestKeys(self._keys, nonce)
        self._client.script(load("reply"), keys, [data, _KEPT], again=True, timeout=timeout)

    def replies(self, nonce: str) -> Replies:
        """Where the answers to `nonce` arrive."""
        return Replies(self._client, RequestKeys(self._keys, nonce).replies)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Replies:
    """The answers to one request, on a connection of its own: a context, used by one greenlet."""

    def __init__(self, client: Client, key: str) -> None:
        self._connection = BlockingConnection(client)
        self._key = key

    def next(self, deadline: float) -> bytes | None:
        """The next one, waited for until `deadline` on the monotonic clock; `None` if none came.
        Raises `RedisUnavailableError` or `GeventqError`.  Yields."""
        wait = max(deadline - clock.monotonic(), _SHORTEST)
        command = ("BLPOP", self._key, f"{wait:.3f}")
        answer: typing.Any = gevent.with_timeout(  # the server may hang
            wait + _LATE, self._connection.call, command, wait, timeout_value=None
        )
        return None if answer is None else typing.cast(bytes, answer[1])

    def __enter__(self) -> Replies:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
