"""How one greenlet is ended that is not the job's own (cancellation.md 2.12).

Each kind gets what ends it without a printed traceback, and not while an import holds the throw
back.  No greenlets of its own; everything but `throw_only_inside` runs in the hub, in which it
only throws and arms timers.
"""

from __future__ import annotations

import sys
import threading
import time
import types
import typing
import weakref

import gevent
from greenlet import GreenletExit, getcurrent

from geventq.cancellation import held

__all__ = ["Limit", "thread_of", "throw", "throw_only_inside", "was_thrown"]

#: Seconds between two throws into one helper.
GAP: typing.Final = 0.5

_THROWN: typing.Final = "_geventq_thrown"

#: Greenlets that are looked at again until nothing holds the throw back.
_looked_at: typing.Final[weakref.WeakSet[typing.Any]] = weakref.WeakSet()
#: Threads of a job's pool: thrown at only inside this code, a call; the rest is the pool's.
_only_inside: typing.Final[weakref.WeakKeyDictionary[typing.Any, types.CodeType]] = (
    weakref.WeakKeyDictionary()
)


def throw(greenlet: typing.Any) -> None:
    """Throw what ends `greenlet` without a printed traceback.  Only in the hub.

    Not twice within half a second: a killed job that waits in `token.run` ends its call, and
    the tree's kill reaches the same greenlet in the same turn; the second throw would cut the
    cleanup that the first one began.
    """
    if greenlet.ready():
        return
    if held.is_held(greenlet):
        _look_again(greenlet)
        return
    now = time.monotonic()
    if now - greenlet.__dict__.get(_THROWN, -GAP) < GAP:
        return
    error = _what_ends(greenlet)
    if error is None:
        return
    greenlet.__dict__[_THROWN] = now
    try:
        greenlet.throw(error)
    except BaseException:  # only what gevent itself raises for a greenlet of no use any more  # noqa: BLE001
        gevent.get_hub().handle_error(greenlet, *sys.exc_info())


def _what_ends(greenlet: typing.Any) -> BaseException | None:
    """What ends `greenlet` without a printed traceback; `None` if nothing should, now."""
    thread = thread_of(greenlet)
    if thread is None:
        return GreenletExit()
    if greenlet.gr_frame is None:  # it never gets a turn, in which it would leave the limbo
        _limbo().pop(thread, None)
        return GreenletExit()
    only = _only_inside.get(greenlet)
    if only is not None and not held.is_inside(greenlet, lambda code: code is only):
        return None
    if _runs_its_target(greenlet.gr_frame):
        return SystemExit()
    # `Thread` swallows a SystemExit out of `run`; anywhere else in its bootstrap it would end the
    # process: such a thread is about to begin or has ended.
    _look_again(greenlet)
    return None


def was_thrown(greenlet: typing.Any) -> bool:
    """Whether `throw` ever reached this greenlet."""
    return _THROWN in greenlet.__dict__


def _look_again(greenlet: typing.Any) -> None:
    """Throw as soon as nothing holds it back.  In the hub."""
    if greenlet in _looked_at:
        return
    _looked_at.add(greenlet)
    timer = gevent.get_hub().loop.timer(held.LOOK)

    def look() -> None:
        timer.close()
        _looked_at.discard(greenlet)
        throw(greenlet)

    timer.start(look)


def throw_only_inside(greenlet: typing.Any, code: types.CodeType) -> None:
    """Let `throw` pass `greenlet` by, except while it is inside of `code`."""
    _only_inside[greenlet] = code


def thread_of(greenlet: typing.Any) -> threading.Thread | None:
    """The patched thread that `greenlet` runs, if it does."""
    owner = getattr(getattr(greenlet, "_run", None), "__self__", None)
    return owner if isinstance(owner, threading.Thread) else None


def _limbo() -> typing.MutableMapping[threading.Thread, object]:
    """Threads that were started and have had no turn."""
    limbo: typing.MutableMapping[threading.Thread, object] = vars(threading)["_limbo"]
    return limbo


def _runs_its_target(frame: types.FrameType | None) -> bool:
    """Whether a thread's greenlet is inside of `Thread.run`, or what stands in for it."""
    inner = None
    while frame is not None:
        if frame.f_code.co_name == "_bootstrap_inner":
            return inner is not None and (
                inner.f_code.co_name == "run" or inner.f_code.co_filename != threading.__file__
            )
        inner, frame = frame, frame.f_back
    return False


class Limit:
    """A time limit on the current greenlet: throws `error` there, but not into an import; with
    `again` once more each time that so many seconds have passed, for what swallows it."""

    __slots__ = ("_again", "_error", "_greenlet", "_seconds", "_timer", "passed")

    def __init__(
        self, seconds: float, error: BaseException | None = None, *, again: bool = False
    ) -> None:
        """`error` is a new `GreenletExit` unless given."""
        self._again = again
        self.passed = False  # and the throw was made
        self._seconds = seconds
        self._error = error
        self._greenlet: typing.Any = getcurrent()
        self._timer: typing.Any = None

    def __enter__(self) -> Limit:
        self._arm(self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._disarm()

    def _pass(self) -> None:
        """In the hub."""
        self._disarm()
        if held.is_held(self._greenlet):
            self._arm(held.LOOK)
            return
        self.passed = True
        if self._again:
            self._arm(self._seconds)
        self._greenlet.throw(GreenletExit() if self._error is None else self._error)

    def _arm(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._pass)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
