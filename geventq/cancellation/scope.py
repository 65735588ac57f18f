"""What belongs to one run beside its processor: callbacks, links, helpers, shields.

`TokenState` is the inside of a token: its value and the few fields that every token has;
`token.py` adds what users see.  A `Scope` holds what few tokens need, and is made on first use: a
token that is only checked stays small.  Tokens made by `link` form a tree under the token of the
run; shields and helpers belong to the whole tree, and so to its root.  Trees are walked, never
descended: a job may link a link, thousands of times.

A token lives in the thread of one hub.  Everything here runs in that thread, in the greenlet that
asks or in the hub; nothing here yields.
"""

from __future__ import annotations

import typing
import weakref

import gevent
from gevent import Greenlet
from gevent._hub_local import get_hub_if_exists
from gevent.event import AsyncResult
from greenlet import getcurrent

from geventq.cancellation.callbacks import Callback
from geventq.cancellation.pacer import NOWHERE, Pacer, pacer_of
from geventq.cancellation.request import Cancellation
from geventq.cancellation.shield import Guard, Shielded
from geventq.errors import GeventqError
from geventq.hubs import get_ident

__all__ = [
    "Run",
    "Scope",
    "TokenState",
    "accept",
    "add_callback",
    "callbacks_at_work",
    "disown",
    "grow",
    "guard_of",
    "has_ended",
    "hub_of",
    "is_grown",
    "need_own_thread",
    "remember_helper",
    "root_of",
    "run_of",
    "scope_of",
    "seal",
    "shielded_here",
    "shielded_until",
    "take_helpers",
]

_set: typing.Final = AsyncResult.set


class Run(Shielded, typing.Protocol):
    """The attempt, as its token and what belongs to it see it."""

    def request(
        self, request: Cancellation, *, hard: bool | None, kill_after: float | None
    ) -> bool:
        """Ask the job to stop; from any thread."""

    def callback_ended(self) -> None:
        """An `on_cancel` callback has ended: it holds no throw back any more."""

    def became_stuck(self, greenlet: typing.Any) -> None:
        """`greenlet` swallows its kill."""


if typing.TYPE_CHECKING:
    _Base = AsyncResult[Cancellation]
else:  # gevent's class cannot be subscripted at run time
    _Base = AsyncResult


class TokenState(_Base):
    """The inside of a token."""

    __slots__ = ("_ended", "_pacer", "_parent", "_request", "_root", "_run", "_scope")

    def __init__(self, run: Run | None = None) -> None:
        AsyncResult.__init__(self)
        #: The request; never changes once set, and is then the value of the result, too.
        self._request: Cancellation | None = None
        #: Whom the token asks; `None` in a link, without a job, and once the attempt has ended.
        self._run = run
        self._ended = False  # the attempt has: nothing takes effect any more.  Only in the root.
        #: The links above, up to the token of the run.  They hold this one weakly; it holds them.
        self._parent: TokenState | None = None
        self._root: TokenState | None = None  # `None` in the root itself: no cycle
        self._scope: Scope | None = None
        hub = get_hub_if_exists()
        self._pacer: Pacer = NOWHERE if hub is None else pacer_of(hub)


class Scope:
    """What few tokens need."""

    __slots__ = ("_token", "at_work", "callbacks", "deadline", "guard", "helpers", "hub", "links")

    def __init__(self, token: TokenState) -> None:
        self._token = weakref.ref(token)
        #: Where the token lives, if it was made before there was a hub.
        self.hub: typing.Any = gevent.get_hub()
        #: Registered and not ended, neither by themselves nor by `undo`.
        self.callbacks: list[Callback] = []
        #: The time limit of a link.
        self.deadline: Deadline | None = None
        self.links: weakref.WeakSet[TokenState] = weakref.WeakSet()
        # Of the whole tree; only in its root:
        #: Callbacks that were started and have not ended.
        self.at_work: set[Callback] = set()
        self.guard: Guard | None = None
        self.helpers: list[Greenlet[..., typing.Any]] = []

    def became_stuck(self, greenlet: typing.Any) -> None:
        """A call or a helper swallows its kill."""
        token = self._token()
        run = None if token is None else token._run
        if run is not None:
            run.became_stuck(greenlet)

    def callback_ended(self, callback: Callback) -> None:
        """For the root's scope: a callback of the tree has ended."""
        self.at_work.discard(callback)
        token = self._token()
        run = None if token is None else token._run
        if run is not None:
            run.callback_ended()


class Deadline:
    """The time limit of a link.  Its timer holds it, it holds the token weakly."""

    __slots__ = ("_hub", "_seconds", "_timer", "_token")

    def __init__(self, token: TokenState, seconds: float) -> None:
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
            accept(token, Cancellation.timed_out(self._seconds))

    def _dropped(self, _: object) -> None:
        """Nobody holds the token any more; told wherever the collector runs."""
        if self._hub.thread_ident == get_ident():
            self.stop()
        elif self._hub.loop is not None:
            self._hub.loop.run_callback_threadsafe(self.stop)

    def stop(self) -> None:
        """Let the limit pass unheard.  In the hub's thread."""
        self._timer.stop()
        self._timer.close()


# -- where a token stands -----------------------------------------------------------------------


def root_of(token: TokenState) -> TokenState:
    """The token of the run, or the one that was made without a job."""
    return token._root or token


def run_of(token: TokenState) -> Run | None:
    """Whom this very token asks: `None` for a link and without a job."""
    return token._run


def has_ended(token: TokenState) -> bool:
    """Whether the token's job has ended."""
    return root_of(token)._ended


def hub_of(token: TokenState) -> typing.Any:
    """The hub whose thread the token lives in; `None` if nobody has used it in any."""
    return token._pacer.hub or (token._scope and token._scope.hub) or token.hub


def need_own_thread(token: TokenState, what: str) -> None:
    """Raise `GeventqError` in a thread in which the job's greenlets do not run."""
    hub = hub_of(token)
    if hub is not None and hub.thread_ident != get_ident():
        raise GeventqError(f"token.{what}() works only in the thread that the token's job runs in")


def is_grown(token: TokenState) -> bool:
    """Whether the token has a scope: most have none."""
    return token._scope is not None


def scope_of(token: TokenState) -> Scope:
    """The token's scope, made now if it has none."""
    scope = token._scope
    if scope is None:
        scope = token._scope = Scope(token)
    return scope


# -- the request --------------------------------------------------------------------------------


def accept(token: TokenState, request: Cancellation) -> bool:
    """Set the token and all links under it; whether it was not set before (2.2)."""
    if token._request is not None:
        return False
    token._request = request
    _set(token, request)
    if token._scope is not None:
        _spread(token, token._scope, request)
    return True


def _spread(token: TokenState, scope: Scope, request: Cancellation) -> None:
    """What follows from a token's being set."""
    pending = [(token, scope)]
    while pending:
        one, its = pending.pop()
        if its.deadline is not None:
            its.deadline.stop()
        for callback in list(its.callbacks):
            _start(one, callback)
        for link in list(its.links):
            if link._request is None:
                link._request = request
                _set(link, request)
                if link._scope is not None:
                    pending.append((link, link._scope))


def seal(token: TokenState) -> None:
    """The attempt has ended.  Breaks the cycle between the two."""
    token._run = None
    token._ended = True
    if token._scope is not None and token._scope.guard is not None:
        token._scope.guard.shielded = None


def grow(parent: TokenState, child: TokenState, timeout: float | None) -> None:
    """Make `child`, which is new, a link of `parent` with a limit of `timeout` seconds."""
    child._parent, child._root = parent, root_of(parent)
    if parent._request is not None:
        accept(child, parent._request)
        return
    scope_of(parent).links.add(child)
    if timeout is not None:
        scope_of(child).deadline = Deadline(child, timeout)


def disown(token: TokenState) -> list[Greenlet[..., typing.Any]]:
    """In a forked child: stop the clocks of the tree; return the helpers."""
    helpers = take_helpers(token)
    pending = [token]
    while pending:
        scope = pending.pop()._scope
        if scope is not None:
            if scope.deadline is not None:
                scope.deadline.stop()
            pending.extend(scope.links)
    return helpers


# -- callbacks ----------------------------------------------------------------------------------


def add_callback(
    token: TokenState, fn: typing.Callable[..., typing.Any], args: tuple[typing.Any, ...]
) -> Callback:
    """Register a callback, and start it if the token is cancelled."""
    scope, root = scope_of(token), root_of(token)
    whole = scope_of(root)

    def ended(callback: Callback) -> None:
        if callback in scope.callbacks:
            scope.callbacks.remove(callback)
        whole.callback_ended(callback)

    of_a_job = root._run is not None or root._ended
    callback = Callback(fn, args, ended, hub=hub_of(token), of_a_job=of_a_job)
    scope.callbacks.append(callback)
    if token._request is not None:
        _start(token, callback)
    return callback


def _start(token: TokenState, callback: Callback) -> None:
    callback.start()
    if callback.running:
        scope_of(root_of(token)).at_work.add(callback)


def callbacks_at_work(token: TokenState) -> list[Callback]:
    """The callbacks of the whole tree that were started and have not ended; `token` is its root."""
    scope = token._scope
    return [] if scope is None else [callback for callback in scope.at_work if callback.running]


# -- shields and helpers ------------------------------------------------------------------------


def guard_of(token: TokenState) -> Guard:
    """The guard of the whole tree, made now if there is none."""
    root = root_of(token)
    scope = scope_of(root)
    if scope.guard is None:
        scope.guard = Guard(root._run)
    return scope.guard


def shielded_until(token: TokenState) -> float | None:
    """When the last cap of the open shields runs out; `None` without an open shield."""
    scope = root_of(token)._scope
    return None if scope is None or scope.guard is None else scope.guard.until()


def shielded_here(token: TokenState) -> bool:
    """Whether the current greenlet is inside a shield of its own."""
    scope = root_of(token)._scope
    guard = None if scope is None else scope.guard
    return guard is not None and guard.covers(getcurrent()) is not None


def remember_helper(token: TokenState, helper: Greenlet[..., typing.Any]) -> None:
    """The job's end will kill and join `helper`."""
    helpers = scope_of(root_of(token)).helpers
    if len(helpers) > 64:
        helpers[:] = [one for one in helpers if not one.ready()]
    helpers.append(helper)


def take_helpers(token: TokenState) -> list[Greenlet[..., typing.Any]]:
    """The helpers of the tree, which are the caller's to end now; `token` is its root."""
    scope = token._scope
    if scope is None:
        return []
    helpers, scope.helpers = scope.helpers, []
    return helpers
