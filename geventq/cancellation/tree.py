"""Which greenlets belong to an attempt, and how one of them is killed (cancellation.md 2.12).

A mark in `spawn_tree_locals`, new for each attempt, is inherited by every greenlet that the
attempt's greenlets spawn.  Greenlets that geventq itself spawns carry no mark (`apart`), so that
no job's kill takes them along.

No greenlets of its own.  `throw` runs in the hub; nothing here blocks.
"""

from __future__ import annotations

import contextvars
import importlib.util
import sys
import threading
import time
import types
import typing
import weakref

import gevent
from gevent import Greenlet
from greenlet import GreenletExit, getcurrent

from geventq import clock

__all__ = [
    "LOOK",
    "MARK",
    "Limit",
    "Owner",
    "apart",
    "detach",
    "held_until",
    "is_held",
    "mark",
    "marked",
    "spare",
    "thread_of",
    "throw",
    "throw_only_inside",
    "was_thrown",
]

T = typing.TypeVar("T")
P = typing.ParamSpec("P")

#: The key of the attempt in `spawn_tree_locals`.
MARK: typing.Final = "geventq.attempt"

#: Seconds between two throws into one helper.
GAP: typing.Final = 0.5

_THROWN: typing.Final = "_geventq_thrown"


class Owner(typing.Protocol):
    """Whose mark it is: the attempt."""

    greenlet: typing.Any
    """The job's own greenlet, while it runs."""


def marked(greenlet: typing.Any) -> typing.Any:
    """The attempt whose mark `greenlet` carries, or `None`."""
    marks = getattr(greenlet, "spawn_tree_locals", None)  # plain greenlets have no such thing
    return marks.get(MARK) if marks else None


def mark(greenlet: typing.Any, attempt: object) -> None:
    """Make a greenlet that is not started yet the attempt's, whoever spawned it."""
    greenlet.spawn_tree_locals = {**(greenlet.spawn_tree_locals or {}), MARK: attempt}


def _unmarked(marks: typing.Mapping[str, typing.Any] | None) -> dict[str, typing.Any]:
    return {key: value for key, value in (marks or {}).items() if key != MARK}


def apart(
    fn: typing.Callable[..., typing.Any],
    *args: typing.Any,
    name: str,
    context: contextvars.Context | None = None,
    **kwargs: typing.Any,
) -> Greenlet[..., typing.Any]:
    """Start a greenlet that no attempt owns.  Does not yield; may be called in the hub."""
    greenlet = Greenlet(fn, *args, **kwargs)
    greenlet.name = name
    greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
    if context is not None:
        greenlet.gr_context = context
    greenlet.start()
    return greenlet


def detach(fn: typing.Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Greenlet[P, T]:
    """Spawn a greenlet that does not die with the job that spawns it.

    It runs in a copy of the caller's `contextvars` context.  Does not yield.
    """
    name = f"detached-{getattr(fn, '__name__', 'call')}"
    greenlet = Greenlet(fn, *args, **kwargs)
    greenlet.name = name
    greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
    greenlet.gr_context = contextvars.copy_context()
    greenlet.start()
    return greenlet


def throw(greenlet: typing.Any) -> None:
    """Throw what ends `greenlet` without a printed traceback.  Only in the hub.

    Not twice within half a second: a killed job that waits in `token.run` ends its call, and
    the tree's kill reaches the same greenlet in the same turn; the second throw would cut the
    cleanup that the first one began.
    """
    if greenlet.ready():
        return
    if is_held(greenlet):
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
    if only is not None and not _is_inside(greenlet, lambda code: code is only):
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


# -- what holds a throw back beside shields (2.9, 2.12) -------------------------------------------

#: Seconds between two looks at what holds a throw back.
LOOK: typing.Final = 0.05
#: Seconds that an import holds a throw back.
CAP: typing.Final = 30.0

_BOOTSTRAP: typing.Final = importlib.util.module_from_spec.__code__.co_filename

#: Since when a greenlet was seen to be held back.
_held_since: typing.Final[weakref.WeakKeyDictionary[typing.Any, float]] = (
    weakref.WeakKeyDictionary()
)
#: Greenlets that are looked at again until nothing holds the throw back.
_looked_at: typing.Final[weakref.WeakSet[typing.Any]] = weakref.WeakSet()
#: Greenlets that have ever started a thread that is none of the job's.
_starts: typing.Final[weakref.WeakSet[typing.Any]] = weakref.WeakSet()


def spare(greenlet: typing.Any) -> None:
    """`greenlet`, which the current one is about to start as a thread, is none of the job's."""
    greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
    _starts.add(getcurrent())


def held_until(greenlet: typing.Any) -> float | None:
    """Until when a throw into `greenlet` is held back at most; `None` if it is not.

    An exception thrown into an import leaves the module half-made for all later jobs, and for
    those that wait for the same module; thrown into the start of a library's thread, it leaves a
    thread that the library does not know.  The cap counts from the first look.
    """
    if _imports(greenlet) or _starts_for_others(greenlet):
        return _held_since.setdefault(greenlet, clock.monotonic()) + CAP
    _held_since.pop(greenlet, None)
    return None


def is_held(greenlet: typing.Any) -> bool:
    """Whether a throw into `greenlet` is held back: by what it does itself, or because whoever
    spawned it, and may wait for it, is inside an import."""
    owner: Owner | None = marked(greenlet)
    while True:
        until = held_until(greenlet)
        if until is not None and clock.monotonic() < until:
            return True
        spawned_by = getattr(greenlet, "spawning_greenlet", None)
        greenlet = spawned_by() if spawned_by else None
        if greenlet is None or owner is None or greenlet is owner.greenlet:
            return False


def _imports(greenlet: typing.Any) -> bool:
    return _is_inside(greenlet, lambda code: code.co_filename == _BOOTSTRAP)


def _starts_for_others(greenlet: typing.Any) -> bool:
    return greenlet in _starts and _is_inside(
        greenlet,
        lambda code: code.co_name == "start" and code.co_filename == threading.__file__,
    )


def _is_inside(greenlet: typing.Any, matches: typing.Callable[[types.CodeType], bool]) -> bool:
    """Whether a frame of `greenlet` runs code that `matches`."""
    frame = sys._getframe() if greenlet is getcurrent() else greenlet.gr_frame
    while frame is not None:
        if matches(frame.f_code):
            return True
        frame = frame.f_back
    return False


def _look_again(greenlet: typing.Any) -> None:
    """Throw as soon as nothing holds it back.  In the hub."""
    if greenlet in _looked_at:
        return
    _looked_at.add(greenlet)
    timer = gevent.get_hub().loop.timer(LOOK)

    def look() -> None:
        timer.close()
        _looked_at.discard(greenlet)
        throw(greenlet)

    timer.start(look)


class Limit:
    """A time limit on the current greenlet: it throws `GreenletExit`, not into an import."""

    __slots__ = ("_greenlet", "_seconds", "_timer", "passed")

    def __init__(self, seconds: float) -> None:
        self.passed = False  # and the throw was made
        self._seconds = seconds
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
        if is_held(self._greenlet):
            self._arm(LOOK)
            return
        self.passed = True
        self._greenlet.throw(GreenletExit())

    def _arm(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._pass)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None


# -- threads ------------------------------------------------------------------------------------

#: Threads of a job's pool: thrown at only inside this code, a call; the rest is the pool's.
_only_inside: typing.Final[weakref.WeakKeyDictionary[typing.Any, types.CodeType]] = (
    weakref.WeakKeyDictionary()
)


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
