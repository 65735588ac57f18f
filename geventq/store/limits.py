"""A time limit around calls to Redis, whatever it is in them that waits.

What is thrown into a call is a time-out of gevent's: an error of our own would be taken there for a
failure of the connection, and the call would go on with another one.  No greenlets run here.
"""

from __future__ import annotations

import contextlib
import typing

import gevent

from geventq.errors import RedisUnavailableError

__all__ = ["within"]


@contextlib.contextmanager
def within(seconds: float, text: str) -> typing.Iterator[None]:
    """Raise `RedisUnavailableError` with `text` if the block takes more than `seconds`."""
    timer = gevent.Timeout.start_new(max(seconds, 0.001))
    try:
        yield
    except gevent.Timeout as expired:
        if expired is not timer:
            raise
        raise RedisUnavailableError(text) from None
    finally:
        timer.close()
