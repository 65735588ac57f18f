"""Time limits around calls to Redis: ours, whatever it is in them that waits, and those of callers.

A caller may have any error thrown into a call, ``gevent.Timeout(1, TimeoutError("slow"))``: that
one is his to see, and not a failure of the link, after which the call would go on with another one.
No greenlets run here.
"""

from __future__ import annotations

import contextlib
import errno
import typing

import gevent

from geventq.errors import RedisUnavailableError

__all__ = ["is_thrown", "within"]

_GEVENTS: typing.Final = frozenset(
    ("timed out", *(f"The {what} operation timed out" for what in ("read", "write", "handshake")))
)
"""What gevent's sockets say of their own time limits, which they throw as well."""


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


def is_thrown(error: BaseException) -> bool:
    """Whether somebody has thrown `error` into this greenlet, where it waited for a link: what a
    link fails with is raised by what was called, or is gevent's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or "_greenlet_primitives" not in trace.tb_frame.f_code.co_filename:
        return False  # it was not in the hub's hands
    if type(error) is TimeoutError:
        return error.args[:1] not in {(said,) for said in _GEVENTS}
    return not (isinstance(error, OSError) and error.errno == errno.EBADF)  # closed by others
