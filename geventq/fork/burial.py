"""Greenlets that never get a turn again, in a forked child (cancellation.md 7.5).

In the child the parent's jobs must neither go on nor end: what is thrown at one runs its
``finally`` there, which would roll back, delete or publish what is the parent's.  Nobody can stop
a suspended greenlet, but each turn of one begins with somebody who calls its ``switch`` or
``throw``.  Those who look the method up when they call it find one that does nothing; those who
hold it already are found on the heap, and lose it.

Runs in the child, in whatever greenlet is there, and never yields.
"""

from __future__ import annotations

import collections
import gc
import types
import typing

import gevent.select
from gevent._waiter import Waiter
from greenlet import greenlet

__all__ = ["bury"]

_METHODS: typing.Final = (types.BuiltinMethodType, types.MethodType)

# A greenlet that is collected gets a `GreenletExit`.  (At the interpreter's end greenlet throws
# nothing any more: seen with 3.2 and 3.5.)
_graves: list[typing.Any] = []


def bury(greenlets: typing.Collection[typing.Any]) -> None:
    """Let none of `greenlets` get a turn any more, whatever they wait for.

    Looks once at every object of the heap: 0.2 s for a million.
    """
    if not greenlets:
        return
    found = _Heap()
    buried = {id(one): one for one in greenlets}
    for one in found.greenlets:  # those inside of others, as SQLAlchemy makes them
        if any(id(parent) in buried for parent in _parents(one)):
            buried[id(one)] = one
    _graves.extend(buried.values())
    for one in buried.values():
        one.switch = one.throw = _nothing
        _stop_polling(one.gr_frame)
    _stop_wakers(found, buried)


def _nothing(*_: object) -> None:
    """In the place of ``switch`` and ``throw``."""


def _parents(one: typing.Any) -> typing.Iterator[typing.Any]:
    while (one := one.parent) is not None:
        yield one


def _stop_wakers(found: _Heap, buried: typing.Container[int]) -> None:
    """Stop the loop's watchers and callbacks that would wake a buried greenlet, and take it out
    of every line of those who wait (for an event, a lock, a queue, another greenlet): not only
    that it would be woken, what it waits for would be handed to the dead."""
    waiters = {id(waiter) for waiter in found.waiters if id(waiter.greenlet) in buried}
    wakers = waiters.copy()
    for method in found.methods:
        if id(method.__self__) in buried or id(method.__self__) in waiters:
            wakers.add(id(method))
    for watcher in found.watchers:
        if id(watcher.callback) in wakers:
            watcher.stop()
    for line in found.lines:
        _leave(line, wakers)


class _Heap:
    """All greenlets, the objects that they are woken by, and the lists of such."""

    def __init__(self) -> None:
        self.greenlets: list[typing.Any] = []
        self.methods: list[typing.Any] = []
        self.waiters: list[typing.Any] = []
        self.watchers: list[typing.Any] = []
        self.lines: list[typing.Any] = []
        frozen = gc.get_freeze_count()
        if frozen:  # as is recommended before a fork; what is frozen is not shown
            gc.unfreeze()
        where: dict[type, list[typing.Any] | None] = {}
        for found in gc.get_objects():
            kind = type(found)
            try:
                kept = where[kind]
            except KeyError:
                kept = where[kind] = self._where(kind)
            if kept is not None and (kept is not self.lines or (found and _may_wake(found[0]))):
                kept.append(found)
        if frozen:
            gc.freeze()

    def _where(self, kind: type) -> list[typing.Any] | None:
        if kind in _METHODS:
            return self.methods
        if issubclass(kind, greenlet):
            return self.greenlets
        if issubclass(kind, Waiter):
            return self.waiters
        if kind in (list, collections.deque):
            return self.lines
        return self.watchers if _is_watcher(kind) else None


def _is_watcher(kind: type) -> bool:
    """Whether it is one of the loop's, which differ between gevent's loops."""
    return (
        str(kind.__module__).startswith("gevent.")
        and hasattr(kind, "callback")
        and hasattr(kind, "stop")
    )


def _may_wake(first: object) -> bool:
    """Whether those who wait can be in a list that begins so.  A `Channel` has pairs."""
    return callable(first) or (type(first) is tuple and any(map(callable, first)))


def _leave(line: typing.Any, wakers: set[int]) -> None:
    stay = [
        one
        for one in list(line)
        if id(one) not in wakers
        and not (type(one) is tuple and any(id(part) in wakers for part in one))
    ]
    if len(stay) < len(line):
        line.clear()
        line.extend(stay)


def _stop_polling(frame: types.FrameType | None) -> None:
    """Stop the watchers of ``poll``, whose callbacks are functions of gevent's own: a file that is
    ready would call them at every turn."""
    while frame is not None:
        if frame.f_globals is vars(gevent.select):
            for value in frame.f_locals.values():
                for one in value if isinstance(value, list) else ():
                    if _is_watcher(type(one)):
                        one.stop()
        frame = frame.f_back
