"""Writing a large value as JSON, or going through many things, while everybody else has his turns.

A value of 20 MB takes a second.  It is written part by part, in the greenlet that asks for it;
when the hub has had no turn for some milliseconds it gets one before the next part, and those who
write at the same time stand in one line.  Small values, nearly all, are written at once.
"""

from __future__ import annotations

import typing

from gevent import get_hub

from geventq.cancellation.pacer import pacer_of
from geventq.codec import encode, encode_in_parts, is_large

__all__ = ["encode_in_turns", "in_turns"]

T = typing.TypeVar("T")

_FEW: typing.Final = 64  # things of some microseconds each


def encode_in_turns(field: str, value: object) -> bytes:
    """`codec.encode`, yielding where that takes long.  Containers are written as they are when
    their turn comes: who changes a large value meanwhile gets a mixture."""
    if not is_large(value):
        return encode(field, value)
    pacer = pacer_of(get_hub())
    parts = []
    pacer.pause()
    for part in encode_in_parts(field, value):
        parts.append(part)
        pacer.pause()
    return b"".join(parts)


def in_turns(things: typing.Iterable[T], few: int = _FEW) -> typing.Iterator[T]:
    """Each of `things`.  Where what is done with them takes long, the hub gets turns in between:
    after each `few` it is asked whether it has had none."""
    for number, thing in enumerate(things, 1):
        yield thing
        if not number % few:
            pacer_of(get_hub()).pause()
