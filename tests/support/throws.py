"""Throwing into every greenlet of ours, at each of the places where it waits.

The greenlets are found from what runs, by their names, which begin with ``geventq-``.  Those of
jobs are left alone: what is thrown there is the job's.
"""

from __future__ import annotations

import collections
import pathlib
import types
import typing

import gevent
import greenlet

import geventq
from geventq.cancellation import Attempt

__all__ = ["Thrower", "kind_of"]

_PACKAGE: typing.Final = str(pathlib.Path(geventq.__file__).parent)

#: Of a job, or of users' code that runs beside one.
_NOT_OURS: typing.Final = ("geventq-on-cancel", "geventq-helper")

Place = tuple[str, ...]


def kind_of(one: gevent.Greenlet[..., typing.Any]) -> str:
    """The greenlet's role: its name without the queue's and a number."""
    name = one.name.removeprefix("geventq-").rstrip("0123456789-")
    return name.removesuffix("-q")


class Thrower:
    """Inside the block a greenlet of ours that waits at a place where none has been hit so far
    is thrown `error` at, `times` a place.  `hits` counts them, by role and place; `thrown` those
    that were thrown by now: one that is still to come at the block's end does not."""

    def __init__(self, error: typing.Callable[[], BaseException], times: int = 1) -> None:
        self._error = error
        self._times = times
        self._hub = gevent.get_hub()
        self.hits: collections.Counter[tuple[str, Place]] = collections.Counter()
        self.thrown = 0
        self._is_over = False

    def __enter__(self) -> Thrower:
        greenlet.settrace(self._traced)
        return self

    def __exit__(self, *_: object) -> None:
        greenlet.settrace(None)
        self._is_over = True

    def _traced(self, event: str, switch: tuple[typing.Any, typing.Any]) -> None:
        origin, target = switch
        if target is not self._hub or not isinstance(origin, gevent.Greenlet) or origin.dead:
            return
        if not origin.name.startswith("geventq-") or origin.name.startswith(_NOT_OURS):
            return
        if _is_of_a_job(origin):
            return
        where = (kind_of(origin), _place(origin.gr_frame))
        if where[1] and self.hits[where] < self._times:
            self.hits[where] += 1
            self._hub.loop.run_callback(self._throw, origin)

    def _throw(self, hit: gevent.Greenlet[..., typing.Any]) -> None:
        if not self._is_over and not hit.dead and not _is_of_a_job(hit):
            self.thrown += 1
            hit.throw(self._error())

    def kinds(self) -> set[str]:
        """The roles that were hit."""
        return {kind for kind, _ in self.hits}


def _is_of_a_job(one: gevent.Greenlet[..., typing.Any]) -> bool:
    attempt = Attempt.of(one)
    return attempt is not None and not attempt.ended


def _place(frame: types.FrameType | None) -> Place:
    """The lines of ours that are on the stack, the innermost first."""
    lines = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            lines.append(f"{file.removeprefix(_PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(lines)
