"""The queue's marker: what who waits for a job waits for (wire-format 7).

A marker wakes one waiter only, so whoever has popped one and does not look puts it back.  One for a
later time is waited for, and his process may be killed or stopped meanwhile: so he puts in a copy,
for a second one who waits.  Knows Redis, and no greenlets; every call yields.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.blocking import BlockingConnection
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["Marker"]

_LONGEST: typing.Final = 10.0  # seconds of one blocking call (wire-format 17.13)
_SHORTEST: typing.Final = 0.002
_LATEST: typing.Final = 2.0**53  # ms
_PUT_BACK: typing.Final = 1.0  # seconds that putting one back may take: a close waits for it
_OF_DELAYED: typing.Final = b"1"  # what it is called for a later time
_COPY: typing.Final = b"2"  # what its copy is called, of which there is no other one


class Marker:
    """The marker of one queue.  Its calls raise `GeventqError`."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    def pop(self, connection: BlockingConnection, seconds: float) -> int | None:
        """Wait `seconds`, 2 ms at least and 10 s at most.  When the job that it tells of is due,
        in ms of the wire (0: now); `None` if none came."""
        wait = max(_SHORTEST, min(seconds, _LONGEST))
        reply = connection.call(("BZPOPMIN", self._keys.marker, f"{wait:.3f}"), wait)
        if reply is None:
            return None
        _, member, score = reply
        # The score is any program's, "inf" and "-inf" as well.
        due_ms = int(min(max(float(score), 0.0), _LATEST))
        if member == _OF_DELAYED and due_ms > clock.wall_ms():
            self._hand_on(_COPY)
        return due_ms

    def put_back(self) -> None:
        """Wake another one, for what waits or for the next delayed job, if there is any."""
        self._hand_on()

    def _hand_on(self, *member: bytes) -> None:
        self._client.script(load("hand_on"), self._keys, member, timeout=_PUT_BACK)
