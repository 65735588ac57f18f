"""What holds a throw back beside shields: imports, a condition variable that hands something on or
takes its lock back, and the start of a library's thread (cancellation.md 2.9, 2.12).

Looks at the frames of greenlets that wait.  No greenlets of its own; called in the hub, or in the
greenlet that is asked about.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
import typing
import weakref

from greenlet import getcurrent

from geventq import clock
from geventq.cancellation import tree

__all__ = ["LOOK", "GreenletOwner", "held_until", "is_held", "is_inside", "starts_for_others"]

#: Seconds between two looks at what holds a throw back.
LOOK: typing.Final = 0.05
#: Seconds that it does so at most.
CAP: typing.Final = 30.0
#: Seconds after which a look has nothing to do with the one before: that was another import.
_APART: typing.Final = 5.0


class GreenletOwner(typing.Protocol):
    """Whose greenlets they are: the attempt."""

    greenlet: typing.Any
    """The job's own greenlet, while it runs."""


_BOOTSTRAP: typing.Final = importlib.util.module_from_spec.__code__.co_filename
#: In `threading`.  A condition over a plain lock yields in `notify`, where it asks whether it is
#: owned; so the lock may be taken when a semaphore wants to release.
_WHOLE: typing.Final = frozenset(
    (
        *("Condition._acquire_restore", "_RLock._acquire_restore"),
        *("Condition.notify", "Semaphore.release", "BoundedSemaphore.release"),
    )
)

#: When a greenlet was seen to be held back: first and last, in looks that follow each other.
_seen: typing.Final[weakref.WeakKeyDictionary[typing.Any, tuple[float, float]]] = (
    weakref.WeakKeyDictionary()
)
#: Greenlets that have ever started a thread that is none of the job's.
_starters: typing.Final[weakref.WeakSet[typing.Any]] = weakref.WeakSet()


def starts_for_others() -> None:
    """The current greenlet is about to start a thread that is none of the job's."""
    _starters.add(getcurrent())


def held_until(greenlet: typing.Any) -> float | None:
    """Until when a throw into `greenlet` is held back at most; `None` if it is not.

    An exception thrown into an import leaves the module half-made for all later jobs, and for
    those that wait for the same module; thrown into the start of a library's thread, it leaves a
    thread that the library does not know.  Thrown where ``Condition.wait`` takes its lock back, it
    lets the `with` around it release a lock that somebody else holds by then, who fails by that.
    Thrown at who was notified and has not had his turn, or has just to notify another one, it
    leaves a third one waiting for what is free by now.  The cap counts from the first look.
    """
    if not (any(map(_is_whole, _frames(greenlet))) or _starts_for_others(greenlet)):
        _seen.pop(greenlet, None)
        return None
    now = clock.monotonic()
    first, last = _seen.get(greenlet, (now, now))
    if now - last > _APART:
        first = now
    _seen[greenlet] = first, now
    return first + CAP


def is_held(greenlet: typing.Any) -> bool:
    """Whether a throw into `greenlet` is held back: by what it does itself, or because whoever
    spawned it, and may wait for it, is inside an import."""
    owner: GreenletOwner | None = tree.marked(greenlet)
    while True:
        until = held_until(greenlet)
        if until is not None and clock.monotonic() < until:
            return True
        spawned_by = getattr(greenlet, "spawning_greenlet", None)
        greenlet = spawned_by() if spawned_by else None
        if greenlet is None or owner is None or greenlet is owner.greenlet:
            return False


def _is_whole(frame: types.FrameType) -> bool:
    """Whether what it runs has to come to its end: an import, a condition that takes back a lock
    which does not know who holds it, or what gives something to those who wait."""
    code = frame.f_code
    if code.co_filename == _BOOTSTRAP:
        return True
    if code.co_filename != threading.__file__:
        return False
    name = code.co_qualname
    return name in _WHOLE or (name == "Condition.wait" and _may_have_got_something(frame))


def _may_have_got_something(frame: types.FrameType) -> bool:
    """Whether who waits for a condition was notified, which nobody passes on, or may still be,
    although he was thrown at: until he has the lock back he stays in the condition's list, and
    somebody else, who may be about to notify, holds it."""
    names = frame.f_locals
    waiter = names.get("waiter")
    if waiter is None:  # he does not wait yet
        return False
    condition = vars(names["self"])
    return waiter not in condition["_waiters"] or _is_taken(condition["_lock"])


def _is_taken(lock: typing.Any) -> bool:
    """Of an `RLock` what is inside tells.  Does not yield, as a try to acquire it may."""
    tell = getattr(getattr(lock, "_block", lock), "locked", None)
    return bool(tell()) if callable(tell) else False


def _starts_for_others(greenlet: typing.Any) -> bool:
    return greenlet in _starters and is_inside(
        greenlet,
        lambda code: code.co_name == "start" and code.co_filename == threading.__file__,
    )


def is_inside(greenlet: typing.Any, matches: typing.Callable[[types.CodeType], bool]) -> bool:
    """Whether a frame of `greenlet` runs code that `matches`."""
    return any(matches(frame.f_code) for frame in _frames(greenlet))


def _frames(greenlet: typing.Any) -> typing.Iterator[types.FrameType]:
    """The innermost first."""
    frame = sys._getframe() if greenlet is getcurrent() else greenlet.gr_frame
    while frame is not None:
        yield frame
        frame = frame.f_back
