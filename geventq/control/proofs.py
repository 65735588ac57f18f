"""What of the requests from elsewhere is proven: signed with the secret, new, and not seen before
(cancellation.md 8).

A message can be replayed by whoever hears it: it counts for a minute by the server's clock, and
once here.  A record cannot: it is bound to one run of one job.  Knows neither Redis nor runs; no
greenlets run here, and nothing yields.
"""

from __future__ import annotations

import collections
import typing

from geventq.control.messages import Call, Message, Refused, parse

if typing.TYPE_CHECKING:
    from geventq.cancel_secret import CancelSecret
    from geventq.clock import ServerClock
    from geventq.record import Record

__all__ = ["LIFE", "Proofs"]

LIFE: typing.Final = 60_000
"""Milliseconds that what was asked by a message is carried out, before and after its time."""
_REMEMBERED: typing.Final = 100_000  # nonces; beyond that nothing more is believed for a while


class Proofs:
    """What the holder of `secret` believes; `clock` is that of the server that messages come by."""

    def __init__(self, secret: CancelSecret, clock: ServerClock) -> None:
        self.keys = secret.keys
        self._secret = secret
        self._clock = clock
        # With the moment when each is too old anyway.  Only what was signed gets in here.
        self._nonces: collections.OrderedDict[str, float] = collections.OrderedDict()

    def doubt(self, asked: Message | Call) -> str | None:
        """Why what came by a channel is not to be believed; `None` if it is.  Answers that for
        each nonce once."""
        if asked.signed is None:
            return "unsigned"
        if not self._secret.proves(asked.signed):
            return "signed with another secret, or changed"
        at = asked.at if isinstance(asked, Call) else round(asked.request.requested_at * 1000)
        now = self._clock.now_ms()
        if abs(now - at) > LIFE:
            return "too old"
        while self._nonces and next(iter(self._nonces.values())) < now:
            self._nonces.popitem(last=False)
        nonce = asked.nonce or ""
        if nonce in self._nonces:
            return "replayed"
        if len(self._nonces) >= _REMEMBERED:
            return "one of too many"
        self._nonces[nonce] = at + LIFE
        return None

    def proves(self, message: Message) -> bool:
        """Whether it is signed, however old it is, and however often it has come."""
        return message.signed is not None and self._secret.proves(message.signed)

    def in_record(self, record: Record) -> list[Message]:
        """The requests in it that are signed; whom they mean is for the caller to compare."""
        proven = []
        for text in record.signed:
            if self._secret.proves(text):
                try:
                    told = parse(text)
                except Refused:
                    continue
                if isinstance(told, Message) and told.nonce is not None:
                    proven.append(told)
        return proven
