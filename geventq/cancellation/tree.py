"""Which greenlets belong to an attempt (cancellation.md 2.12).

A mark in `spawn_tree_locals`, new for each attempt, is inherited by every greenlet that the
attempt's greenlets spawn.  Greenlets that geventq itself spawns carry no mark (`apart`), so that
no job's kill takes them along.

No greenlets of its own; nothing here blocks.
"""

from __future__ import annotations

import contextvars
import typing

from gevent import Greenlet

from geventq.checks import check_callable

__all__ = ["MARK", "apart", "detach", "mark", "marked", "unmark"]

T = typing.TypeVar("T")
P = typing.ParamSpec("P")

#: The key of the attempt in `spawn_tree_locals`.
MARK: typing.Final = "geventq.attempt"


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

    It runs in a copy of the caller's `contextvars` context.  Raises `TypeError` for what cannot be
    called.  Does not yield.
    """
    check_callable("fn", fn)
    name = f"detached-{getattr(fn, '__name__', 'call')}"
    greenlet = Greenlet(fn, *args, **kwargs)
    greenlet.name = name
    greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
    greenlet.gr_context = contextvars.copy_context()
    greenlet.start()
    return greenlet


def unmark(greenlet: typing.Any) -> None:
    """Make a greenlet that is not started yet nobody's."""
    greenlet.spawn_tree_locals = _unmarked(greenlet.spawn_tree_locals)
