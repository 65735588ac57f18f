"""Calls in greenlets of their own that end with the job: `token.run`, and ending helpers.

The caller's greenlet waits here, in its own turn; the call runs in a greenlet named
``geventq-run`` (cancellation.md 2.13).
"""

from __future__ import annotations

import contextvars
import typing

import gevent
from gevent import Greenlet
from gevent._waiter import Waiter
from greenlet import GreenletExit

from geventq import clock
from geventq.cancellation import tree
from geventq.cancellation.ladder import INTERVAL, RETHROWS
from geventq.errors import JobCancelled, JobKilled

if typing.TYPE_CHECKING:
    from geventq.cancellation.shield import Guard
    from geventq.cancellation.token import CancellationToken

__all__ = ["put_down", "run"]


class _Call:
    """A call and what became of it; a failure is kept for the caller, not printed."""

    __slots__ = ("_args", "_fn", "_kwargs", "done", "error", "value")

    def __init__(
        self,
        fn: typing.Callable[..., typing.Any],
        args: tuple[typing.Any, ...],
        kwargs: dict[str, typing.Any],
    ) -> None:
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self.done = False
        self.value: typing.Any = None
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.value = self._fn(*self._args, **self._kwargs)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the caller's  # noqa: BLE001
            self.error = error
        self.done = True

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
    token: CancellationToken,
    fn: typing.Callable[..., typing.Any],
    args: tuple[typing.Any, ...],
    kwargs: dict[str, typing.Any],
    timeout: float | None,
) -> typing.Any:
    """The whole of `CancellationToken.run`."""
    shielded = token._shielded_here()
    if not shielded and token._cancellation is not None:
        raise JobCancelled(token._cancellation)
    call = _Call(fn, args, kwargs)
    child = Greenlet(call)
    child.name = "geventq-run"
    child.gr_context = contextvars.copy_context()
    limit = None if timeout is None else gevent.Timeout(timeout)
    child.start()
    try:
        if limit is not None:
            limit.start()
        _wait(child, None if shielded else token)
    except BaseException as error:
        if error is limit and child.ready():
            return call.outcome()  # both in one turn: the result wins
        _end(token, child)
        raise
    finally:
        if limit is not None:
            limit.close()
    if not child.ready():
        _end(token, child)
        if tree.was_thrown(child):
            raise JobCancelled(token._request()) from call.error
    return call.outcome()


def _wait(child: typing.Any, token: CancellationToken | None) -> None:
    """Wait until `child` ends or `token` is set."""
    waiter: typing.Any = Waiter()
    child.rawlink(waiter.switch)
    if token is not None:
        token.rawlink(waiter.switch)
    try:
        waiter.get()
    finally:
        child.unlink(waiter.switch)
        if token is not None:
            token.unlink(waiter.switch)


def _end(token: CancellationToken, child: typing.Any) -> None:
    """Kill the call and wait for it, whatever is thrown meanwhile: with a hard request the
    job's own kill arrives in the same turn.  It is raised when the call has ended."""
    thrown: BaseException | None = None
    while True:
        try:
            put_down([child], token._guard_if_any(), token._stuck_call)
            break
        except BaseException as error:  # noqa: BLE001 (raised below)
            if thrown is None or isinstance(error, JobKilled):
                thrown = error
    if thrown is not None:
        raise thrown


def put_down(
    greenlets: typing.Sequence[typing.Any],
    guard: Guard | None,
    stuck: typing.Callable[[typing.Any], None],
) -> None:
    """Kill `greenlets` and return when all have ended.

    A greenlet inside a shield of its own is killed as it leaves it.  One that swallows the
    throw gets it again every second, three times; then `stuck` is told, once, and the wait
    goes on.  Yields.
    """
    hub = gevent.get_hub()
    throws = 0
    while True:
        alive = [greenlet for greenlet in greenlets if not greenlet.ready()]
        if not alive:
            return
        covered = 0.0
        for greenlet in alive:
            until = None if guard is None else guard.covers(greenlet)
            if until is not None and guard is not None:
                guard.doomed.setdefault(greenlet, GreenletExit())
                covered = max(covered, until - clock.monotonic())
            elif throws <= RETHROWS:
                hub.loop.run_callback(_throw_unless_covered, greenlet, guard)
        if covered > 0:
            gevent.joinall(alive, timeout=min(covered, INTERVAL))
            continue
        if throws > RETHROWS:
            stuck(alive[0])
            gevent.joinall(alive)
            return
        throws += 1
        gevent.joinall(alive, timeout=INTERVAL)


def _throw_unless_covered(greenlet: typing.Any, guard: Guard | None) -> None:
    """In the hub, where it is decided (2.9)."""
    if guard is not None and guard.covers(greenlet) is not None:
        guard.doomed.setdefault(greenlet, GreenletExit())
        return
    tree.throw(greenlet)
