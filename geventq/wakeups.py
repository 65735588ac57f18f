"""Waiting in such a way that everybody who waits is woken.

gevent lets whoever waits for a thing that is set already queue behind those whom it is just about
to wake, so that they go first.  If the last of these leaves in the same turn of the loop, because
its time has run out or it was killed, gevent calls the waking off, and whoever had queued sleeps
for ever (seen in 26.9).  Only `wait` queues; `get` and links do not.  Here nobody queues: what is
set is told at once.
"""

from __future__ import annotations

import typing

import gevent.event
from gevent.event import AsyncResult

__all__ = ["Event", "wait_for_result"]

T = typing.TypeVar("T")


class Event(gevent.event.Event):
    """As gevent's."""

    def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Whether it is set, or is set within `timeout` seconds.  Yields, unless it is set."""
        return self.is_set() or super().wait(timeout)


def wait_for_result(result: AsyncResult[T], timeout: float | None = None) -> T | None:
    """The value of `result`, or `None` if there is none within `timeout` seconds, or it has failed.

    For `result.wait`.  Yields, unless the result is there.
    """
    return result.value if result.ready() else AsyncResult.wait(result, timeout)
