"""Which greenlets belong to an attempt, and how they are killed with it (cancellation.md 2.12).

A mark in `spawn_tree_locals`, new for each attempt, is inherited by every greenlet that the
attempt's greenlets spawn; a spawn callback collects them.  Greenlets that geventq itself spawns
carry no mark (`apart`), so that no job's kill takes them along.

`adopt` runs in the greenlet that spawns, `kill_all` in the hub; neither blocks.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.util
import os
import site
import sys
import sysconfig
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
    "apart",
    "detach",
    "importing_until",
    "imports",
    "install",
    "kill_all",
    "mark",
    "marked",
    "throw",
    "was_thrown",
]

T = typing.TypeVar("T")
P = typing.ParamSpec("P")

#: The key of the attempt in `spawn_tree_locals`.
MARK: typing.Final = "geventq.attempt"

#: Seconds between two throws into one helper.
GAP: typing.Final = 0.5

_THROWN: typing.Final = "_geventq_thrown"

_installed = False


def install() -> None:
    """Collect spawned greenlets from now on; once per process, at the first attempt."""
    global _installed
    if not _installed:
        _installed = True
        Greenlet.add_spawn_callback(_adopt)


def marked(greenlet: typing.Any) -> typing.Any:
    """The attempt whose mark `greenlet` carries, or `None`."""
    marks = getattr(greenlet, "spawn_tree_locals", None)  # plain greenlets have no such thing
    return marks.get(MARK) if marks else None


def mark(greenlet: typing.Any, attempt: object) -> None:
    """Make a greenlet that is not started yet the attempt's, whoever spawned it."""
    greenlet.spawn_tree_locals = {**(greenlet.spawn_tree_locals or {}), MARK: attempt}


def _adopt(greenlet: typing.Any) -> None:
    attempt = marked(greenlet)
    if attempt is None:
        return
    thread = _thread_of(greenlet)
    if thread is not None and _serves_the_process(thread):
        # Its later children are not ours either.
        greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
        return
    attempt.adopt(greenlet)


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


def kill_all(family: typing.Iterable[typing.Any], spared: typing.Any) -> None:
    """Throw into every living greenlet of `family` but `spared`.  Only in the hub."""
    for greenlet in list(family):
        if greenlet is not spared:
            throw(greenlet)


def throw(greenlet: typing.Any) -> None:
    """Throw what ends `greenlet` without a printed traceback.  Only in the hub.

    Not twice within half a second: a killed job that waits in `token.run` ends its call, and
    the tree's kill reaches the same greenlet in the same turn; the second throw would cut the
    cleanup that the first one began.
    """
    if greenlet.ready():
        return
    if imports(greenlet):
        _look_again(greenlet)
        return
    now = time.monotonic()
    if now - greenlet.__dict__.get(_THROWN, -GAP) < GAP:
        return
    started = greenlet.gr_frame is not None
    if started and _thread_of(greenlet) is not None:
        # `Thread` swallows a SystemExit out of `run`; anywhere else in its bootstrap it would
        # end the process: such a thread is about to begin or has ended, the next throw asks.
        if not _inside_run(greenlet.gr_frame):
            return
        error: BaseException = SystemExit()
    else:
        error = GreenletExit()
    greenlet.__dict__[_THROWN] = now
    try:
        greenlet.throw(error)
    except BaseException:  # only what gevent itself raises for a greenlet of no use any more  # noqa: BLE001
        gevent.get_hub().handle_error(greenlet, *sys.exc_info())


def was_thrown(greenlet: typing.Any) -> bool:
    """Whether `throw` ever reached this greenlet."""
    return _THROWN in greenlet.__dict__


# -- imports (2.9) ------------------------------------------------------------------------------

#: Seconds between two looks at what holds a throw back.
LOOK: typing.Final = 0.05
#: Seconds that an import holds a throw back.
IMPORT_CAP: typing.Final = 30.0

_BOOTSTRAP: typing.Final = importlib.util.module_from_spec.__code__.co_filename

#: Since when a greenlet was seen inside an import that holds a throw back.
_importing_since: typing.Final[weakref.WeakKeyDictionary[typing.Any, float]] = (
    weakref.WeakKeyDictionary()
)
#: Greenlets that are looked at again until their import is over.
_looked_at: typing.Final[weakref.WeakSet[typing.Any]] = weakref.WeakSet()


def importing_until(greenlet: typing.Any) -> float | None:
    """When the cap of the import runs out that `greenlet` is inside of; `None` outside imports.

    An exception thrown into an import leaves the module half-made for all later jobs, and for
    those that wait for the same module.  The cap counts from the first look.
    """
    frame = sys._getframe() if greenlet is getcurrent() else greenlet.gr_frame
    while frame is not None:
        if frame.f_code.co_filename == _BOOTSTRAP:
            return _importing_since.setdefault(greenlet, clock.monotonic()) + IMPORT_CAP
        frame = frame.f_back
    _importing_since.pop(greenlet, None)
    return None


def imports(greenlet: typing.Any) -> bool:
    """Whether an import holds a throw into `greenlet` back."""
    until = importing_until(greenlet)
    return until is not None and clock.monotonic() < until


def _look_again(greenlet: typing.Any) -> None:
    """Throw when the import is over.  In the hub."""
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
        if imports(self._greenlet):
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


def _thread_of(greenlet: typing.Any) -> threading.Thread | None:
    owner = getattr(getattr(greenlet, "_run", None), "__self__", None)
    return owner if isinstance(owner, threading.Thread) else None


def _inside_run(frame: types.FrameType | None) -> bool:
    inner = None
    while frame is not None:
        if frame.f_code.co_name == "_bootstrap_inner":
            return inner is not None and inner.f_code.co_name == "run"
        inner, frame = frame, frame.f_back
    return False


def _serves_the_process(thread: threading.Thread) -> bool:
    target: typing.Any = getattr(thread, "_target", None)
    if type(thread).run is not threading.Thread.run:
        target = type(thread).run
    return _is_library_file(_file_of(target))


def _file_of(target: typing.Any) -> str | None:
    while isinstance(target, functools.partial):
        target = target.func
    target = getattr(target, "__func__", target)
    code = getattr(target, "__code__", None)
    if code is None and not isinstance(target, type):
        code = getattr(getattr(type(target), "__call__", None), "__code__", None)  # noqa: B004
    return None if code is None else code.co_filename


@functools.lru_cache(maxsize=1024)
def _is_library_file(path: str | None) -> bool:
    if path is None:  # a builtin, an extension: nobody's job code
        return True
    if path.startswith("<frozen"):
        return True
    path = os.path.realpath(path)
    if f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path:
        return True
    return path.startswith(_library_roots())


@functools.cache
def _library_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]}
    roots.update(site.getsitepackages())
    return tuple(os.path.realpath(root) + os.sep for root in roots if root)
