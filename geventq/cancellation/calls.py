"""Calls in greenlets of their own that end with the job: `token.run`, and ending helpers.

The caller's greenlet waits here, in its own turn; the call runs in a greenlet named
``geventq-run`` (cancellation.md 2.13).  Knows of the token only that it can be waited for, and
of the run's shields what a `CallOwner` shows.
"""

from __future__ import annotations

import contextvars
import math
import typing

import gevent
from gevent import Greenlet
from gevent._waiter import Waiter
from greenlet import GreenletExit

from geventq import clock
from geventq.cancellation import held, throws
from geventq.errors import JobCancelled, JobKilled

if typing.TYPE_CHECKING:
    from geventq.cancellation.request import Cancellation
    from geventq.cancellation.shield import Guard

__all__ = ["INTERVAL", "RETHROWS", "CallOwner", "GuardHolder", "Signal", "put_down", "run"]

#: Seconds between two throws, into a job as into what belongs to it.
INTERVAL: typing.Final = 1.0
#: How often a throw is repeated before what swallows it counts as stuck.
RETHROWS: typing.Final = 3


class Signal(typing.Protocol):
    """What ends a call: the token."""

    def rawlink(self, callback: typing.Callable[[typing.Any], object], /) -> None:
        """Call it, in the hub, when the signal is given."""

    def unlink(self, callback: typing.Callable[[typing.Any], object], /) -> None:
        """Take it back."""

    def get(self, block: bool = ..., timeout: float | None = ...) -> Cancellation:
        """The request."""


class GuardHolder(typing.Protocol):
    """Whose shields hold a throw back: the scope of the run."""

    guard: Guard | None
    """Made when the first shield is, which may be while others wait."""


class CallOwner(GuardHolder, typing.Protocol):
    """Who a call belongs to: the scope of the run."""

    def became_stuck(self, greenlet: typing.Any) -> None:
        """`greenlet` swallows its kill."""


class _Call:
    """A call and what became of it; a failure is kept for the caller, not printed."""

    __slots__ = ("_call", "done", "error", "value")

    def __init__(self, call: typing.Callable[[], typing.Any]) -> None:
        self._call = call
        self.done = False  # it was begun, and has ended
        self.value: typing.Any = None
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the caller's  # noqa: BLE001
            self.error = error
        self.done = True

    @property
    def came_first(self) -> bool:
        """Whether it knows that it ended by itself before the throw that ended its greenlet."""
        return getattr(self._call, "came_first", False)

    def outcome(self) -> typing.Any:
        error = self.error
        if error is not None:
            try:
                raise error
            finally:
                del error  # the traceback would hold this frame
        if not self.done:
            raise GreenletExit  # killed by somebody else before its first turn
        return self.value


def run(
    call: typing.Callable[[], typing.Any],
    timeout: float | None,
    signal: Signal | None,
    owner: CallOwner,
) -> typing.Any:
    """What `call()` returns or raises, in a greenlet of its own that `signal` ends; `None`, from
    inside a shield, lets it go to its end."""
    kept = _Call(call)
    child = Greenlet(kept)
    child.name = "geventq-run"
    child.gr_context = contextvars.copy_context()
    limit = None if timeout is None else gevent.Timeout(timeout)
    child.start()
    try:
        if limit is not None:
            limit.start()
        _wait(child, signal)
    except BaseException as error:
        if error is limit and child.ready():
            return kept.outcome()  # both in one turn: the result wins
        _end(child, owner)
        if error is limit and kept.came_first:
            return kept.outcome()
        raise
    finally:
        if limit is not None:
            limit.close()
    if signal is not None and not child.ready():
        _end(child, owner)
        if throws.was_thrown(child) and not kept.came_first:
            raise JobCancelled(signal.get(timeout=0)) from kept.error
    return kept.outcome()


def _wait(child: typing.Any, signal: Signal | None) -> None:
    """Wait until `child` ends or the signal is given."""
    waiter: typing.Any = Waiter()
    child.rawlink(waiter.switch)
    if signal is not None:
        signal.rawlink(waiter.switch)
    try:
        waiter.get()
    finally:
        child.unlink(waiter.switch)
        if signal is not None:
            signal.unlink(waiter.switch)


def _end(child: typing.Any, owner: CallOwner) -> None:
    """Kill the call and wait for it, whatever is thrown meanwhile: with a hard request the
    job's own kill arrives in the same turn.  It is raised when the call has ended."""
    thrown: BaseException | None = None
    while True:
        try:
            put_down([child], owner, owner.became_stuck)
            break
        except BaseException as error:  # noqa: BLE001 (raised below)
            if thrown is None or isinstance(error, JobKilled):
                thrown = error
    if thrown is not None:
        raise thrown


def put_down(
    greenlets: typing.Sequence[typing.Any],
    owner: GuardHolder,
    stuck: typing.Callable[[typing.Any], None],
) -> None:
    """Kill `greenlets` and return when all have ended.

    A greenlet inside a shield of its own, or inside an import, is killed as it leaves it.  One
    that swallows the throw gets it again every second, three times; then `stuck` is told, once,
    and the wait goes on.  Yields.
    """
    run_callback = gevent.get_hub().loop.run_callback
    thrown = dict.fromkeys(greenlets, 0)
    due = dict.fromkeys(greenlets, 0.0)  # when each is thrown at next
    told = False
    while alive := [greenlet for greenlet in greenlets if not greenlet.ready()]:
        now, wait = clock.monotonic(), math.inf
        for greenlet in alive:
            if _is_held(greenlet, owner.guard):
                due[greenlet] = now
                wait = min(wait, held.LOOK)
                continue
            if now >= due[greenlet]:
                if thrown[greenlet] <= RETHROWS:
                    thrown[greenlet] += 1
                    due[greenlet] = now + INTERVAL
                    run_callback(_throw_unless_held, greenlet, owner)
                else:
                    due[greenlet] = math.inf
                    if not told:
                        told = True
                        stuck(greenlet)
            wait = min(wait, due[greenlet] - now)
        gevent.joinall(alive, timeout=None if wait == math.inf else wait)


def _is_held(greenlet: typing.Any, guard: Guard | None) -> bool:
    """Whether a shield or an import holds its kill back.  Marks it, so that it is thrown as the
    shield is left."""
    if guard is not None and guard.covers(greenlet) is not None:
        guard.doomed.setdefault(greenlet, GreenletExit())
        return True
    return held.is_held(greenlet)


def _throw_unless_held(greenlet: typing.Any, owner: GuardHolder) -> None:
    """In the hub, where it is decided (2.9)."""
    if not _is_held(greenlet, owner.guard):
        throws.throw(greenlet)
