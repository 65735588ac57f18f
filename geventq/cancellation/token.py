"""The cancellation token: what a processor with two parameters gets.

A `gevent.event.AsyncResult` whose value is the `Cancellation`.  Here is what users see of it,
and nothing else: what it is made of, and what belongs to its run, is in scope.py.

Greenlets: `on_cancel` callbacks (callbacks.py), `run` and `run_coroutine` (calls.py), and the
helpers of `spawn`, named ``geventq-helper``, which the attempt joins.
"""

from __future__ import annotations

import collections.abc
import contextvars
import datetime
import functools
import inspect
import time
import typing

import gevent
from gevent import Greenlet
from gevent.event import AsyncResult

from geventq import wakeups
from geventq.cancellation import calls, scope, tree
from geventq.cancellation.callbacks import Callback
from geventq.cancellation.request import Cancellation
from geventq.cancellation.shield import Shield
from geventq.checks import Seconds, check_seconds, show
from geventq.errors import GeventqError, JobCancelled
from geventq.hubs import in_thread_of

__all__ = ["CancellationToken"]

T = typing.TypeVar("T")
P = typing.ParamSpec("P")


class CancellationToken(scope.TokenState):
    """Tells a job that it shall stop.

    Made by the worker for each run of a processor with two parameters; ``CancellationToken()``
    makes one that belongs to no job, for tests and for programs of your own.  The first request
    wins: the value never changes once set.

    Other native threads may `check`, `cancel`, `link` and register callbacks.  What makes
    greenlets of the job or waits as one of them (`run`, `spawn`, `sleep`, `shield`) raises
    `GeventqError` there.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        request = self._request
        return f"<CancellationToken {'not cancelled' if request is None else str(request)!r}>"

    __str__ = __repr__  # AsyncResult's own tells of its links

    # -- asking ---------------------------------------------------------------------------

    def check(self, _clock: typing.Callable[[], float] = time.perf_counter) -> Cancellation | None:
        """The `Cancellation`, or `None`.

        Yields to the hub when its loop has not turned for some milliseconds, so that a loop of
        checks can be cancelled.  In the hub and in other threads it never yields.
        """
        if _clock() > self._pacer.due:
            self._pacer.pause()
        return self._request

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if the job was cancelled.  Yields as `check()` does."""
        request = self.check()
        if request is not None:
            raise JobCancelled(request)

    @property
    def cancelled(self) -> bool:  # type: ignore[override]
        """Whether a request was made.  Never yields."""
        return self._request is not None

    @property
    def reason(self) -> typing.Any:
        """The reason that was given; `None` before a request.  Never yields."""
        request = self._request
        return None if request is None else request.reason

    # A time may be a timedelta here as everywhere; and the value is never `None`.

    @typing.overload  # type: ignore[override]
    def wait(self, timeout: None = None) -> Cancellation: ...
    @typing.overload
    def wait(self, timeout: Seconds) -> Cancellation | None: ...
    def wait(self, timeout: Seconds | None = None) -> Cancellation | None:
        """The `Cancellation`, once there is one; `None` after `timeout` seconds.  Yields."""
        return wakeups.wait_for_result(self, _seconds(timeout))

    def get(self, block: bool = True, timeout: Seconds | None = None) -> Cancellation:
        """The `Cancellation`, once there is one; `gevent.Timeout` after `timeout` seconds, or at
        once if not `block`.  Yields."""
        return typing.cast(Cancellation, AsyncResult.get(self, block, _seconds(timeout)))

    if typing.TYPE_CHECKING:

        def get_nowait(self) -> Cancellation:
            """As `get(block=False)`."""

        def result(self, timeout: float | None = None) -> Cancellation:
            """As `get(timeout=timeout)`."""

    # -- being asked ----------------------------------------------------------------------

    def cancel(  # type: ignore[override]
        self, reason: typing.Any = None
    ) -> bool:
        """Ask the job to stop; whether this request took effect (the first one wins).

        In a worker with ``cancel_mode="hard"`` the kill follows, as after `worker.cancel_job`.
        A token made by `link` is cancelled alone, without its parent.  May be called from any
        thread.  Raises `TypeError` or `ValueError` for a reason that is not JSON.
        """
        request = Cancellation(reason)
        run = self._run
        if run is not None:
            return run.request(request, hard=None, kill_after=None)
        if scope.has_ended(self):
            return False
        return in_thread_of(scope.hub_of(self), lambda: scope.accept(self, request), gone=False)

    def on_cancel(self, fn: typing.Callable[..., typing.Any], *args: typing.Any) -> Callback:
        """Call ``fn(*args)`` when the job is cancelled, at once if it was.

        It runs in a greenlet of its own, outside the job's, for at most one second; a kill
        waits for it.  What it raises is logged.  The handle's `undo()` takes it back.
        """
        if not callable(fn):
            raise TypeError(f"on_cancel needs a callable, not {show(fn)}")
        register = contextvars.copy_context().run
        return self._at_home(lambda: register(scope.add_callback, self, fn, args))

    def cancels(self, connection: typing.Any) -> typing.ContextManager[None]:
        """Inside the block, a cancellation also stops what `connection` runs in its database.

        Takes a connection of psycopg2, psycopg 3, PyMySQL or sqlite3; what wraps one, which is
        asked for it when the cancellation comes: SQLAlchemy's `Connection`, `Session`,
        `scoped_session` and pooled connection, Django's `connection`; or a function that stops
        the query, which is called as `on_cancel` calls one.  `TypeError` for anything else.

        The query then ends with the driver's own error, and the connection goes on after a
        rollback.  Leaving the block waits for a cancel that is under way, so that it never hits
        the connection's next query.
        """
        from geventq.cancellation import connections  # not before a program is monkey-patched

        return connections.cancels(self.on_cancel, connection)

    def link(self, timeout: Seconds | None = None) -> CancellationToken:
        """A child token: cancelled with this one, or by its own deadline of `timeout` seconds.

        The parent holds it weakly.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)

        def grow() -> CancellationToken:
            child = CancellationToken()
            scope.grow(self, child, timeout)
            return child

        return self._at_home(grow)

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
        scope.need_own_thread(self, "run")
        shielded = scope.shielded_here(self)
        if self._request is not None and not shielded:
            raise JobCancelled(self._request)
        call = functools.partial(fn, *args, **kwargs)
        signal = None if shielded else self
        owner = scope.scope_of(scope.root_of(self))
        return typing.cast(T, calls.run(call, timeout, signal, owner))

    def run_coroutine(
        self,
        coroutine: typing.Coroutine[typing.Any, typing.Any, T],
        timeout: Seconds | None = None,
    ) -> T:
        """What `coroutine` returns or raises, run by asyncio in a native thread with a loop of
        its own.

        Cancellation cancels the task there, and `JobCancelled` is raised; `gevent.Timeout` after
        `timeout` seconds; in both cases the coroutine has ended, whatever it made of its
        `CancelledError`.  A result that arrives in the same turn wins.  Inside a shield it goes
        to its end.  Yields.

        It sees a copy of the caller's `contextvars`, but not its thread-locals.  In a
        monkey-patched process it may do all that asyncio can but start child processes.  Raises
        `TypeError` for anything but a coroutine; one that is not begun is closed.
        """
        if not isinstance(coroutine, collections.abc.Coroutine):
            raise TypeError(
                "run_coroutine needs a coroutine, which calling an `async def` function makes, "
                f"not {show(coroutine)} ({type(coroutine).__name__})"
            )
        try:
            if timeout is not None:
                timeout = check_seconds("timeout", timeout)
            scope.need_own_thread(self, "run_coroutine")
            shielded = scope.shielded_here(self)
            if self._request is not None and not shielded:
                raise JobCancelled(self._request)
            from geventq.cancellation import coroutines  # not before a program is monkey-patched

            signal, owner = None if shielded else self, scope.scope_of(scope.root_of(self))
            return coroutines.run(coroutine, timeout, signal, owner)
        finally:
            if inspect.iscoroutine(coroutine) and (
                inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
            ):
                coroutine.close()  # it was not begun: else Python warns

    def sleep(self, seconds: Seconds) -> None:
        """Sleep; raises `JobCancelled` as soon as the job is cancelled.

        Inside a shield it sleeps to its end.  Yields.
        """
        seconds = check_seconds("seconds", seconds)
        scope.need_own_thread(self, "sleep")
        if scope.shielded_here(self):
            gevent.sleep(seconds)
            return
        request = wakeups.wait_for_result(self, seconds)
        if request is not None:
            raise JobCancelled(request)

    def spawn(
        self, fn: typing.Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Greenlet[P, T]:
        """Spawn a helper greenlet that belongs to the job.

        When the processor has ended it is killed and joined, before the outcome is sent; a kill
        of the job takes it along.  It sees a copy of the caller's `contextvars`, but not its
        thread-locals.  ``sys.exit()`` in it is its failure, a `GeventqError`.  Raises
        `GeventqError` when the job has ended.
        """
        scope.need_own_thread(self, "spawn")
        if scope.has_ended(self):
            raise GeventqError("the job of this token has ended: nothing can be spawned for it")
        helper = Greenlet(_help(fn), *args, **kwargs)
        helper.name = "geventq-helper"
        helper.gr_context = contextvars.copy_context()
        run = scope.run_of(scope.root_of(self))
        if run is not None:
            tree.mark(helper, run)
        scope.remember_helper(self, helper)
        helper.start()
        return helper

    def shield(self, max: Seconds = 30.0) -> Shield:
        """A block that a hard kill waits for, at most `max` seconds from its entry.

        For commits and cleanup.  It nests; the kill is thrown as the outermost block is left.
        `check()` and `cancelled` still tell inside.
        """
        scope.need_own_thread(self, "shield")
        return Shield(scope.guard_of(self), max)

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

    # -- helpers of the above -------------------------------------------------------------------

    def _at_home(self, step: typing.Callable[[], T]) -> T:
        """`step()`, in the thread that the token lives in: this one, if it has none yet."""
        outcome = in_thread_of(scope.hub_of(self), step, gone=None)
        if outcome is None:
            raise GeventqError("the thread of this token's job has ended")
        return outcome


def _seconds(timeout: Seconds | None) -> float | None:
    """For gevent, which takes what it knows as it likes."""
    return timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else timeout


def _help(fn: typing.Callable[P, T]) -> typing.Callable[P, T]:
    """What a helper runs."""

    def help_(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return fn(*args, **kwargs)
        except SystemExit as error:  # out of a greenlet it would end the process (2.6)
            raise GeventqError(f"a helper of the job called sys.exit({error.code!r})") from error

    return help_
