"""`on_cancel` callbacks: users' code that runs when a cancellation is requested.

Each runs in a greenlet of its own, named ``geventq-on-cancel``, side by side with the others,
for at most `LIMIT` seconds; what it raises is logged there (cancellation.md 2.11).  Callbacks
live in the thread of one hub, whichever thread registers them.
"""

from __future__ import annotations

import contextvars
import logging
import typing
import weakref

import gevent

from geventq.cancellation import throws, tree
from geventq.checks import show
from geventq.hubs import get_ident, in_thread_of, interrupt_main, wait_for

__all__ = ["LIMIT", "Callback", "at_work"]

#: Seconds a callback may take.
LIMIT: typing.Final = 1.0

_log = logging.getLogger("geventq")


#: The greenlets of jobs' callbacks that are under way.  A job's end does not wait for them.
at_work: typing.Final[weakref.WeakSet[gevent.Greenlet[..., typing.Any]]] = weakref.WeakSet()


class Callback:
    """A registered callback: the handle that `on_cancel` returns."""

    __slots__ = (
        "__weakref__",
        "_args",
        "_context",
        "_ended",
        "_fn",
        "_greenlet",
        "_hub",
        "_of_a_job",
        "_undone",
    )

    def __init__(
        self,
        fn: typing.Callable[..., typing.Any],
        args: tuple[typing.Any, ...],
        ended: typing.Callable[[Callback], None],
        *,
        hub: typing.Any,
        of_a_job: bool,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"on_cancel needs a callable, not {show(fn)}")
        self._fn = fn
        self._args = args
        self._ended = ended
        self._hub = hub
        self._of_a_job = of_a_job
        self._context = contextvars.copy_context()
        #: Of the two at most one comes true, and stays: it was started, or it was undone.
        self._greenlet: gevent.Greenlet[..., typing.Any] | None = None
        self._undone = False

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._greenlet is not None and not self._greenlet.ready()

    def undo(self) -> bool:
        """Take the callback back; `False` if it was started already.  Does not yield."""
        return in_thread_of(self._hub, self._undo, gone=True)

    def _undo(self) -> bool:
        if self._greenlet is not None:
            return False
        if not self._undone:
            self._undone = True
            self._ended(self)
        return True

    def join(self) -> None:
        """Wait until a started callback has ended; at most about a second."""
        greenlet = self._greenlet
        if greenlet is None:
            return
        if self._hub.thread_ident == get_ident():
            greenlet.join(LIMIT + 0.5)
        else:
            wait_for(self._hub, greenlet)

    def start(self) -> None:
        """Start the callback's greenlet.  Does not yield; may be called in the hub."""
        if self._greenlet is None and not self._undone:
            self._greenlet = tree.apart(self._run, name="geventq-on-cancel", context=self._context)
            if self._of_a_job:
                at_work.add(self._greenlet)

    def _run(self) -> None:
        limit = throws.Limit(LIMIT)
        try:
            with limit:
                self._fn(*self._args)
        except gevent.GreenletExit:
            if not limit.passed:
                raise
            _log.warning("an on_cancel callback was stopped after %g s: %r", LIMIT, self._fn)
        except KeyboardInterrupt as error:  # it hit this greenlet by chance
            interrupt_main(error)
        except BaseException:  # also SystemExit, which would end the process here  # noqa: BLE001
            _log.exception("an on_cancel callback failed: %r", self._fn)
        finally:
            self._ended(self)
