"""`on_cancel` callbacks: users' code that runs when a cancellation is requested.

Each runs in a greenlet of its own, named ``geventq-on-cancel``, side by side with the others,
for at most `LIMIT` seconds; what it raises is logged there (cancellation.md 2.11).
"""

from __future__ import annotations

import contextvars
import logging
import typing
import weakref

import gevent

from geventq.cancellation import tree

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
        "_of_a_job",
        "_undone",
    )

    def __init__(
        self,
        fn: typing.Callable[..., typing.Any],
        args: tuple[typing.Any, ...],
        ended: typing.Callable[[Callback], None],
        *,
        of_a_job: bool,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"on_cancel needs a callable, not {fn!r}")
        self._fn = fn
        self._args = args
        self._ended = ended
        self._of_a_job = of_a_job
        self._context = contextvars.copy_context()
        self._greenlet: gevent.Greenlet[..., typing.Any] | None = None
        self._undone = False

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._greenlet is not None and not self._greenlet.ready()

    def undo(self) -> bool:
        """Take the callback back; `False` if it was started already.  Does not yield."""
        if self._greenlet is None:
            if not self._undone:
                self._undone = True
                self._ended(self)
            return True
        return False

    def join(self) -> None:
        """Wait until a started callback has ended; at most about a second."""
        if self._greenlet is not None:
            self._greenlet.join(LIMIT + 0.5)

    def start(self) -> None:
        """Start the callback's greenlet.  Does not yield; may be called in the hub."""
        if self._greenlet is None and not self._undone:
            self._greenlet = tree.apart(self._run, name="geventq-on-cancel", context=self._context)
            if self._of_a_job:
                at_work.add(self._greenlet)

    def _run(self) -> None:
        limit = gevent.Timeout(LIMIT)
        try:
            with limit:
                self._fn(*self._args)
        except gevent.Timeout as timeout:
            if timeout is limit:
                _log.warning("an on_cancel callback was stopped after %g s: %r", LIMIT, self._fn)
            else:
                _log.exception("an on_cancel callback failed: %r", self._fn)
        except gevent.GreenletExit:
            raise
        except BaseException:  # also SystemExit, which would end the process here  # noqa: BLE001
            _log.exception("an on_cancel callback failed: %r", self._fn)
        finally:
            self._ended(self)
