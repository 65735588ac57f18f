"""What holds a throw back beside shields: imports, a condition variable that takes its lock back,
and the start of a library's thread (cancellation.md 2.9, 2.12).

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
    The cap counts from the first look.
    """
    if not (is_inside(greenlet, _is_whole) or _starts_for_others(greenlet)):
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


def _is_whole(code: types.CodeType) -> bool:
    """Whether code has to come to its end: an import, or a condition that takes back a lock which
    does not know who holds it."""
    return code.co_filename == _BOOTSTRAP or (
        code.co_name == "_acquire_restore" and code.co_filename == threading.__file__
    )


def _starts_for_others(greenlet: typing.Any) -> bool:
    return greenlet in _starters and is_inside(
        greenlet,
        lambda code: code.co_name == "start" and code.co_filename == threading.__file__,
    )


def is_inside(greenlet: typing.Any, matches: typing.Callable[[types.CodeType], bool]) -> bool:
    """Whether a frame of `greenlet` runs code that `matches`."""
    frame = sys._getframe() if greenlet is getcurrent() else greenlet.gr_frame
    while frame is not None:
        if matches(frame.f_code):
            return True
        frame = frame.f_back
    return False
