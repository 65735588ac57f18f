"""One connection for all in a hub who follow the events of one queue.

However many they are, one of them at a time waits for all, in his own greenlet: the leader.  When
something has come he looks for everybody who waits, and leads no more.  Who is still busy with
what came before waits for nothing, and holds up nobody: he looks by himself, by a short call, until
he has caught up.  No greenlets run here.
"""

from __future__ import annotations

import contextlib
import typing
import weakref

from gevent import get_hub
from gevent.event import AsyncResult

from geventq.errors import GeventqError
from geventq.fork import connections as fork
from geventq.store.event_reader import position
from geventq.store.stream import Seen, Stream, look_by

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys

__all__ = ["Follower"]

#: Seconds that the leader waits at most; then everybody looks.
LONGEST_WAIT = 5.0


class Follower:
    """One who follows the events of a queue, by `client` where he has to look by himself.  Every
    method but `close` yields to the hub, and raises `GeventqError` once it is closed."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys
        self.is_closed = False
        self._watch: _Watch | None = None

    def next(self, last_id: bytes) -> Seen:
        """What there is behind `last_id`, after waiting for it for some seconds."""
        while True:
            watch = self._joined()
            if watch.knows_more_than(last_id):
                seen = watch.look(self, last_id)
            else:
                seen = watch.wait(self, last_id)
            if seen is not None:
                return seen

    def look(self, last_id: str | bytes) -> Seen:
        """What there is behind `last_id` (``"$"``: nothing) now."""
        while True:
            seen = self._joined().look(self, last_id)
            if seen is not None:
                return seen

    def _joined(self) -> _Watch:
        if self.is_closed:
            raise GeventqError("this reader of events is closed")
        if self._watch is None or not self._watch.is_ours:
            self._watch = _watch_of(self.client, self.keys)
            self._watch.followers.add(self)
        return self._watch

    def close(self) -> None:
        """Leave, which ends a call that is under way.  Idempotent; from whatever native thread."""
        self.is_closed = True
        if self._watch is not None:
            self._watch.leave(self)


class _Watch:
    """The connection, and who waits for what comes on it."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._generation = fork.generation
        self._endpoint = client.endpoint
        self._keys = keys
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()  # some are just dropped
        self._waiting: dict[Follower, tuple[bytes, AsyncResult[Seen | None]]] = {}
        self._leader: Follower | None = None  # whoever makes a call on the stream
        self._stream: Stream | None = None
        self._host: Follower | None = None  # by whose client the stream connects
        self._newest = b"0-0"  # that somebody has seen

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process."""
        return self._generation == fork.generation

    def is_of(self, client: Client, keys: QueueKeys) -> bool:
        """Whether the events of that queue are watched here."""
        same = self._endpoint.is_same_as(client.endpoint)
        return self.is_ours and same and self._keys.events == keys.events

    def knows_more_than(self, last_id: bytes) -> bool:
        """Whether there is something behind `last_id` already."""
        return position(self._newest) > position(last_id)

    def look(self, follower: Follower, last_id: str | bytes) -> Seen | None:
        """By the stream's own connection if nobody uses it: one who is alone needs no other.
        `None` if that was closed meanwhile."""
        seen: Seen | None = None
        if self._leader is None:
            with self._led_by(follower) as stream:
                seen = stream.look(last_id)
        else:
            seen = look_by(follower.client, follower.keys, last_id)
        if seen is not None:
            self._newest = seen.newest
        return seen

    def wait(self, follower: Follower, last_id: bytes) -> Seen | None:
        """What comes behind `last_id`; `None` if the leader has gone without an answer."""
        answer: AsyncResult[Seen | None] = AsyncResult()
        self._waiting[follower] = (last_id, answer)
        try:
            if self._leader is None:
                self._lead(follower)
            return answer.get()
        finally:
            self._waiting.pop(follower, None)

    def _lead(self, follower: Follower) -> None:
        with self._led_by(follower) as stream:
            stream.wait(min((last_id for last_id, _ in self._waiting.values()), key=position))
            seen: dict[bytes, Seen] = {}
            for last_id, answer in list(self._waiting.values()):
                if last_id not in seen:
                    seen[last_id] = stream.look(last_id)
                    self._newest = seen[last_id].newest
                answer.set(seen[last_id])

    @contextlib.contextmanager
    def _led_by(self, follower: Follower) -> typing.Iterator[Stream]:
        """The stream, for calls of `follower`; then another one may lead."""
        self._leader = follower
        stream = self._stream
        if stream is None:
            self._host = follower
            name = follower.keys.client_name(":qe")
            stream = Stream(follower.client, follower.keys, block=LONGEST_WAIT, name=name)
            self._stream = stream
        try:
            yield stream
        except GeventqError:
            if follower.is_closed or self._stream is stream:
                raise
            # Its host has left in mid-call: another connection is made.
        finally:
            self._leader = None
            for _, answer in list(self._waiting.values()):
                if not answer.ready():
                    answer.set(None)

    def leave(self, follower: Follower) -> None:
        """`follower` follows no more; if he leads, or is the host, another one connects."""
        self.followers.discard(follower)
        _, answer = self._waiting.get(follower, (b"", None))
        if follower in (self._leader, self._host) or not self.followers:
            stream, self._stream, self._host = self._stream, None, None
            if stream is not None:
                stream.close()
        if answer is not None and not answer.ready():
            answer.set(None)


_watches: weakref.WeakKeyDictionary[object, weakref.WeakSet[_Watch]] = weakref.WeakKeyDictionary()


def _watch_of(client: Client, keys: QueueKeys) -> _Watch:
    """The one that is shared in this hub."""
    watches = _watches.setdefault(get_hub(), weakref.WeakSet())
    for watch in watches:
        if watch.is_of(client, keys):
            return watch
    watch = _Watch(client, keys)
    watches.add(watch)
    return watch
