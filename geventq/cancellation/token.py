"""The cancellation token: what a processor with two parameters gets.

A `gevent.event.AsyncResult` whose value is the `Cancellation`.  The token knows the attempt it
belongs to, if any, and leaves kills to it.  `_extras` holds everything rare (callbacks, links,
shields, helpers) and is made on first use: a token that is only checked stays small.

Greenlets: `on_cancel` callbacks (callbacks.py), `run` (calls.py), and the helpers of `spawn`,
named ``geventq-helper``, which the attempt joins.
"""

from __future__ import annotations

import contextvars
import time
import typing
import weakref

import gevent
from gevent import Greenlet
from gevent._hub_local import get_hub_if_exists
from gevent.event import AsyncResult
from greenlet import getcurrent

from geventq.cancellation import calls, tree
from geventq.cancellation.callbacks import Callback
from geventq.cancellation.pacer import NOWHERE, Pacer, pacer_of
from geventq.cancellation.request import Cancellation
from geventq.cancellation.shield import Guard, Shield
from geventq.checks import Seconds, check_seconds
from geventq.errors import GeventqError, JobCancelled
from geventq.hubs import get_ident, in_thread_of

if typing.TYPE_CHECKING:
    from geventq.cancellation.attempt import Attempt

__all__ = ["CancellationToken"]

T = typing.TypeVar("T")
P = typing.ParamSpec("P")

_set: typing.Final = AsyncResult.set


class _Extras:
    """What few tokens need."""

    __slots__ = ("callbacks", "deadline", "guard", "helpers", "links")

    def __init__(self) -> None:
        self.callbacks: list[Callback] = []
        self.links: weakref.WeakSet[CancellationToken] = weakref.WeakSet()
        self.guard: Guard | None = None
        self.helpers: list[Greenlet[..., typing.Any]] = []
        self.deadline: _Deadline | None = None


if typing.TYPE_CHECKING:
    _Base = AsyncResult[Cancellation]
else:  # gevent's class cannot be subscripted at run time
    _Base = AsyncResult


class CancellationToken(_Base):
    """Tells a job that it shall stop.

    Made by the worker for each run of a processor with two parameters; ``CancellationToken()``
    makes one that belongs to no job, for tests and for programs of your own.  The first request
    wins: the value never changes once set.
    """

    __slots__ = ("_attempt", "_cancellation", "_extras", "_pacer", "_parent", "_sealed")

    def __init__(
        self, *, attempt: Attempt | None = None, parent: CancellationToken | None = None
    ) -> None:
        AsyncResult.__init__(self)
        self._cancellation: Cancellation | None = None
        self._attempt = attempt
        self._parent = parent
        self._extras: _Extras | None = None
        self._sealed = False  # the attempt has ended: nothing takes effect any more
        hub = get_hub_if_exists()
        self._pacer: Pacer = NOWHERE if hub is None else pacer_of(hub)

    def __repr__(self) -> str:
        said = self._cancellation
        return f"<CancellationToken {'not cancelled' if said is None else str(said)!r}>"

    __str__ = __repr__  # AsyncResult's own tells of its links

    # -- asking ---------------------------------------------------------------------------

    def check(self, _clock: typing.Callable[[], float] = time.perf_counter) -> Cancellation | None:
        """The `Cancellation`, or `None`.

        Yields to the hub when its loop has not turned for some milliseconds, so that a loop of
        checks can be cancelled.  In the hub and in other threads it never yields.
        """
        if _clock() > self._pacer.due:
            self._pacer.pause()
        return self._cancellation

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if the job was cancelled.  Yields as `check()` does."""
        said = self.check()
        if said is not None:
            raise JobCancelled(said)

    @property
    def cancelled(self) -> bool:  # type: ignore[override]
        """Whether a request was made.  Never yields."""
        return self._cancellation is not None

    @property
    def reason(self) -> typing.Any:
        """The reason that was given; `None` before a request.  Never yields."""
        said = self._cancellation
        return None if said is None else said.reason

    # -- being asked ----------------------------------------------------------------------

    def cancel(  # type: ignore[override]
        self, reason: typing.Any = None
    ) -> bool:
        """Ask the job to stop; whether this request took effect (the first one wins).

        In a worker with ``cancel_mode="hard"`` the kill follows, as after `worker.cancel_job`.
        A token made by `link` is cancelled alone, without its parent.  May be called from any
        thread.  Raises `TypeError` or `ValueError` for a reason that is not JSON.
        """
        said = Cancellation(reason)
        attempt = self._attempt
        if attempt is not None:
            return attempt.request(said, hard=None, kill_after=None)
        if self._sealed:
            return False
        return in_thread_of(self.hub, lambda: self._accept(said), gone=False)

    def on_cancel(self, fn: typing.Callable[..., typing.Any], *args: typing.Any) -> Callback:
        """Call ``fn(*args)`` when the job is cancelled, at once if it was.

        It runs in a greenlet of its own, outside the job's, for at most one second; a kill
        waits for it.  What it raises is logged.  The handle's `undo()` takes it back.
        """
        extras = self._rare()
        root = self._root()
        of_a_job = root._attempt is not None or root._sealed
        callback = Callback(fn, args, self._callback_ended, of_a_job=of_a_job)
        extras.callbacks.append(callback)
        if self._cancellation is not None:
            callback.start()
        return callback

    def cancels(self, connection: typing.Any) -> typing.ContextManager[None]:
        """Inside the block, a cancellation also stops what `connection` runs in its database.

        For connections of psycopg2 and PyMySQL; `TypeError` for any other.  The query then
        ends with the driver's own error.  Leaving the block waits for a cancel that is under
        way, so that it never hits the connection's next query.
        """
        from geventq.cancellation import databases

        return databases.cancels(self, connection)

    def link(self, timeout: Seconds | None = None) -> CancellationToken:
        """A child token: cancelled with this one, or by its own deadline of `timeout` seconds.

        The parent holds it weakly.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        child = CancellationToken(parent=self)
        said = self._cancellation
        if said is not None:
            child._accept(said)
            return child
        self._rare().links.add(child)
        if timeout is not None:
            child._rare().deadline = _Deadline(child, timeout)
        return child

    # -- working --------------------------------------------------------------------------

    def run(
        self,
        fn: typing.Callable[..., T],
        /,
        *args: typing.Any,
        timeout: Seconds | None = None,
        **kwargs: typing.Any,
    ) -> T:
        """``fn(*args, **kwargs)``, in a greenlet of its own that cancellation kills.

        Raises `JobCancelled` when cancelled and `gevent.Timeout` after `timeout` seconds; in
        both cases the call was killed and has ended.  A result that arrives in the same turn
        wins.  Inside a shield the call goes to its end.  Yields.

        The call sees a copy of the caller's `contextvars`, but not its thread-locals: Django's
        connection with its transaction, for one, is another there.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        return typing.cast(T, calls.run(self, fn, args, kwargs, timeout))

    def sleep(self, seconds: Seconds) -> None:
        """Sleep; raises `JobCancelled` as soon as the job is cancelled.

        Inside a shield it sleeps to its end.  Yields.
        """
        seconds = check_seconds("seconds", seconds)
        if self._shielded_here():
            gevent.sleep(seconds)
            return
        self.wait(timeout=seconds)
        said = self._cancellation
        if said is not None:
            raise JobCancelled(said)

    def spawn(
        self, fn: typing.Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Greenlet[P, T]:
        """Spawn a helper greenlet that belongs to the job.

        When the processor has ended it is killed and joined, before the outcome is sent; a kill
        of the job takes it along.  It sees a copy of the caller's `contextvars`, but not its
        thread-locals.  Raises `GeventqError` when the job has ended.
        """
        root = self._root()
        if root._sealed:
            raise GeventqError("the job of this token has ended: nothing can be spawned for it")
        helper = Greenlet(fn, *args, **kwargs)
        helper.name = "geventq-helper"
        helper.gr_context = contextvars.copy_context()
        if root._attempt is not None:
            helper.spawn_tree_locals = {
                **(helper.spawn_tree_locals or {}),
                tree.MARK: root._attempt,
            }
        helpers = root._rare().helpers
        if len(helpers) > 64:
            helpers[:] = [one for one in helpers if not one.ready()]
        helpers.append(helper)
        helper.start()
        return helper

    def shield(self, max: Seconds = 30.0) -> Shield:
        """A block that a hard kill waits for, at most `max` seconds from its entry.

        For commits and cleanup.  It nests; the kill is thrown as the outermost block is left.
        `check()` and `cancelled` still tell inside.
        """
        return Shield(self._root()._guard(), max)

    # -- guards: only a request sets the token (cancellation.md 2.2) --------------------------

    def set(self, value: typing.Any = None) -> typing.NoReturn:
        """Refused: `TypeError`.  `cancel()` sets a token."""
        raise TypeError("a cancellation token is set by cancel(), and its value never changes")

    def set_exception(self, exception: typing.Any, exc_info: typing.Any = None) -> typing.NoReturn:
        """Refused: `TypeError`.  `cancel()` sets a token."""
        self.set()

    def set_result(self, value: typing.Any = None) -> typing.NoReturn:
        """Refused: `TypeError`.  `cancel()` sets a token."""
        self.set()

    def __call__(self, source: typing.Any) -> typing.NoReturn:
        """Refused: `TypeError`.  `cancel()` sets a token."""
        self.set()

    # -- for the core -----------------------------------------------------------------------

    def _accept(self, said: Cancellation) -> bool:
        """Set the token; in its own thread.  Does not yield."""
        if self._cancellation is not None:
            return False
        self._cancellation = said
        _set(self, said)
        extras = self._extras
        if extras is not None:
            if extras.deadline is not None:
                extras.deadline.stop()
            for callback in list(extras.callbacks):
                callback.start()
            for child in list(extras.links):
                child._accept(said)
        return True

    def _request(self) -> Cancellation:
        said = self._cancellation
        assert said is not None
        return said

    def _seal(self) -> None:
        """The attempt has ended.  Breaks the cycle between the two."""
        self._attempt = None
        self._sealed = True
        if self._extras is not None and self._extras.guard is not None:
            self._extras.guard.attempt = None

    def _disown(self) -> list[Greenlet[..., typing.Any]]:
        """In a forked child: stop the clocks; return the helpers."""
        extras = self._extras
        if extras is None:
            return []
        helpers, extras.helpers = extras.helpers, []
        if extras.deadline is not None:
            extras.deadline.stop()
        for child in list(extras.links):
            child._disown()
        return helpers

    def _root(self) -> CancellationToken:
        token = self
        while token._parent is not None:
            token = token._parent
        return token

    def _rare(self) -> _Extras:
        if self._extras is None:
            self._extras = _Extras()
        return self._extras

    def _guard(self) -> Guard:
        extras = self._rare()
        if extras.guard is None:
            extras.guard = Guard(self._attempt)
        return extras.guard

    def _guard_if_any(self) -> Guard | None:
        extras = self._root()._extras
        return None if extras is None else extras.guard

    def _shielded_here(self) -> bool:
        guard = self._guard_if_any()
        return guard is not None and guard.covers(getcurrent()) is not None

    def _callbacks_at_work(self) -> typing.Iterator[Callback]:
        extras = self._extras
        if extras is not None:
            yield from [callback for callback in extras.callbacks if callback.running]
            for child in list(extras.links):
                yield from child._callbacks_at_work()

    def _callback_ended(self, callback: Callback) -> None:
        extras = self._extras
        if extras is not None and callback in extras.callbacks:
            extras.callbacks.remove(callback)
        attempt = self._root()._attempt
        if attempt is not None:
            attempt.callback_ended()

    def _stuck_call(self, greenlet: typing.Any) -> None:
        attempt = self._root()._attempt
        if attempt is not None:
            attempt.became_stuck(greenlet)


class _Deadline:
    """The time limit of a link.  Its timer holds it, it holds the token weakly."""

    __slots__ = ("_hub", "_seconds", "_timer", "_token")

    def __init__(self, token: CancellationToken, seconds: float) -> None:
        hub = gevent.get_hub()
        self._seconds = seconds
        self._hub = hub
        self._token = weakref.ref(token, self._dropped)
        self._timer = hub.loop.timer(seconds)
        self._timer.start(self._passed)

    def _passed(self) -> None:
        """In the hub."""
        self.stop()
        token = self._token()
        if token is not None:
            token._accept(Cancellation.timed_out(self._seconds))

    def _dropped(self, _: object) -> None:
        """Nobody holds the token any more; told wherever the collector runs."""
        if self._hub.thread_ident == get_ident():
            self.stop()
        elif self._hub.loop is not None:
            self._hub.loop.run_callback_threadsafe(self.stop)

    def stop(self) -> None:
        self._timer.stop()
        self._timer.close()
