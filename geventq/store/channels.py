"""Channels of Redis, heard on a connection of one's own.

Who listens is one greenlet; any other may close the connection.  A link that is dead without
being closed is found out by asking, and so is a server that is the primary no more: it keeps its
listeners, who would hear nothing of what is published elsewhere.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.store.blocking import BlockingConnection
from geventq.store.client import checked
from geventq.store.connection import unavailable
from geventq.store.scripts import pack

if typing.TYPE_CHECKING:
    from geventq.store.client import Client

__all__ = ["Channels"]

_ANSWER: typing.Final = 5.0  # seconds for one
_SILENCE: typing.Final = 5.0  # seconds after which the server is asked whether it is there

T = typing.TypeVar("T")


class Channels:
    """The subscription to some channels.  What yields raises `RedisUnavailableError` when the
    link is down, and `GeventqError` once it is closed."""

    def __init__(self, client: Client, names: typing.Sequence[str]) -> None:
        self._names = names
        self._connection = BlockingConnection(client)
        self._heard: list[bytes] = []  # while something else was waited for
        self._heard_at = 0.0  # the last word of the server, monotonic
        self._asked_at = 0.0  # when it was asked for one; 0 if it answered since
        self._subscription = b"".join([pack(("SUBSCRIBE", name)) for name in names])
        # Who listens may ask nothing else.  The server reads the whole of it at once, so that
        # nothing is published between leaving and coming back.
        self._question = pack(("UNSUBSCRIBE",)) + pack(("HELLO", "2")) + self._subscription

    def subscribe(self) -> None:
        """Connect if need be, and return when each channel is confirmed: what is published from
        now on is heard.  Raises `GeventqError` for one that this user may not hear; the others
        are heard all the same.  Yields."""
        connection = self._connection.opened()
        # One by one: where a user may not hear one of them, all of a command are refused.
        answers: list[typing.Any] = []
        deadline = clock.monotonic() + _ANSWER
        connection.send(self._subscription, _ANSWER)
        while len(answers) < len(self._names):
            answer = connection.receive(deadline - clock.monotonic())
            if answer is None:
                raise unavailable("SUBSCRIBE was not answered", False)
            push = _push_in(answer)
            if push is not None:
                self._heard.append(push)
            elif not _is_of_question(answer):
                answers.append(answer)
        self._heard_at, self._asked_at = clock.monotonic(), 0.0
        checked(answers)

    def next(self, wait: float) -> bytes | None:
        """What was published next, waited for `wait` seconds; `None` if nothing was.  Yields."""
        return self.next_left(wait, _as_it_is)

    def next_left(self, wait: float, act: typing.Callable[[bytes], T | None]) -> T | None:
        """Have `act` deal with what is published, for `wait` seconds: the first that it answers,
        `None` if it dealt with all.  It is called in the hub where that is possible, and must not
        block, yield or log.  Yields."""
        while self._heard:
            left = act(self._heard.pop(0))
            if left is not None:
                return left
        connection = self._connection.opened()
        now = clock.monotonic()
        if self._asked_at and now - self._asked_at > _ANSWER:
            raise unavailable(f"Redis at {connection.address} does not answer", False)
        if not self._asked_at and now - self._heard_at > _SILENCE:
            self._asked_at = now
            connection.send(self._question, _ANSWER)

        def act_on(answer: typing.Any) -> T | None:
            self._heard_at, self._asked_at = clock.monotonic(), 0.0
            push = _push_in(answer)
            if push is not None:
                return act(push)
            _refuse_replica(answer)
            return None

        left = connection.receive(wait, act_on)
        return typing.cast("T | None", left)

    def renew(self) -> None:
        """Connect anew at the next `subscribe`."""
        self._heard.clear()
        self._connection.renew()

    def close(self) -> None:
        """End, whatever is waited for.  Idempotent.  Does not yield."""
        self._connection.close()


def _as_it_is(push: bytes) -> bytes:
    return push


def _push_in(answer: typing.Any) -> bytes | None:
    """What was published, if the answer tells of that."""
    if isinstance(answer, list) and len(answer) == 3 and answer[0] == b"message":
        push: bytes = answer[2]
        return push
    return None


def _is_of_question(answer: typing.Any) -> bool:
    """Whether it answers what was asked during a silence, not a ``SUBSCRIBE``."""
    return isinstance(answer, list) and answer[:1] != [b"subscribe"]


def _refuse_replica(answer: typing.Any) -> None:
    """Raises `RedisUnavailableError` if it is the answer of a server that is not the primary."""
    if isinstance(answer, list) and b"role" in answer[::2]:
        role = answer[2 * answer[::2].index(b"role") + 1]
        if role != b"master":
            raise unavailable(f"the server is a {role.decode()} now", False)
