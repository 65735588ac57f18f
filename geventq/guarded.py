"""The base of every greenlet of ours that is no job's: it never dies silently, and goes on.

Anything can be thrown at a greenlet at any of its switches: Python raises a Ctrl-C in whichever
runs, programs kill all greenlets there are, a `gevent.Timeout` that somebody forgot fires where
he left it.  So a task is not one greenlet: a greenlet that is hit ends, as whoever threw at it
expects (`gevent.killall` returns), and another one begins the task anew.  Only a task that has
returned is over, and one that its owner ends with `kill_all`.

Knows what is thrown and who is told.  What a task does, and how it finds where it was left, is
the task's own business: it must be fit to be called again.
"""

from __future__ import annotations

import logging
import signal
import typing

import gevent

from geventq import wakeups
from geventq.hubs import interrupt_main

if typing.TYPE_CHECKING:
    import types

    from geventq.outage import Outage

__all__ = ["BeginAnew", "Guarded", "call_listeners", "kill_all"]

_TRIES_TO_END: typing.Final = 3  # once its owner has told it to stop

log = logging.getLogger("geventq")


class BeginAnew(BaseException):
    """Raised by a task whose greenlet is not to be trusted any more: another one begins it."""


class Guarded:
    """A task and the greenlet ``geventq-<name>`` that it runs in, started by its owner.

    `task` is called in that greenlet, and called again when something else than its return
    ended it.  A Ctrl-C, and whatever else a signal's handler raised, is handed to the main
    greenlet.  All else is a failure of `outage`, whose first one is also told to `tell`; after an
    `Exception` it pauses.  Once the outage's owner stops, failures are expected.
    `marks` are the greenlet's `spawn_tree_locals`: it belongs to no job (cancellation.md 2.12).
    """

    def __init__(
        self,
        task: typing.Callable[[], None],
        name: str,
        outage: Outage,
        *,
        tell: typing.Callable[[BaseException], object] | None = None,
        marks: dict[str, typing.Any] | None = None,
    ) -> None:
        self._task = task
        self._name = f"geventq-{name}"
        self._outage = outage
        self._tell = tell
        self._marks = marks or {}
        self._is_over = True  # not begun, returned, or ended by its owner
        self._has_failed = False  # the pause is still to be made
        self._tries_to_end = _TRIES_TO_END
        #: The one that runs the task now; another one after each throw.
        self.greenlet: gevent.Greenlet[..., None] | None = None
        #: Set while no greenlet of the task is alive, and none will be.
        self.done = wakeups.Event()
        self.done.set()

    def start(self) -> None:
        """Start the greenlet.  Does not yield."""
        self._is_over = False
        self._tries_to_end = _TRIES_TO_END
        self.done.clear()
        self._begin()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the task is over and its greenlet has ended, `timeout` seconds at most;
        whether it has.  Yields."""
        return bool(self.done.wait(timeout))

    def _begin(self) -> None:
        greenlet = self.greenlet = gevent.Greenlet(self._run)
        greenlet.name = self._name
        greenlet.spawn_tree_locals = self._marks
        greenlet.rawlink(self._ended)  # also of one that was killed before its first turn
        greenlet.start()

    def _ended(self, greenlet: object) -> None:
        """In the hub, whatever ended the greenlet."""
        if self._is_over:
            self.done.set()
        elif greenlet is self.greenlet:
            self._begin()

    def _run(self) -> None:
        try:
            if self._has_failed:
                self._has_failed = False
                self._outage.pause()
            self._task()
            self._is_over = True
        except BeginAnew:
            pass
        except KeyboardInterrupt as error:
            interrupt_main(error)
        except BaseException as error:  # noqa: BLE001 (told)
            self._failed(error)
        finally:
            if self._is_over:  # an outage that it still meets can be over without it
                self._outage.rest()

    def _failed(self, error: BaseException) -> None:
        if self._is_over:
            return
        if _came_by_signal(error):
            interrupt_main(error)
        elif self._outage.is_expected:
            self._failed_to_end(error)
        else:
            self._has_failed = isinstance(error, Exception)  # what is thrown needs no pause
            if self._outage.failed(error) and self._tell is not None:
                self._tell(error)

    def _failed_to_end(self, error: BaseException) -> None:
        """Its owner has told it to stop: what was cut by that may fail, but not for ever."""
        if isinstance(error, Exception):
            self._tries_to_end -= 1
            if not self._tries_to_end:
                self._is_over = True
                log.error("%s cannot end as it should", self._name, exc_info=error)

    def ends_with_its_greenlet(self) -> gevent.Greenlet[..., None] | None:
        """The owner ends it: no other greenlet follows the one that runs now.  Does not yield."""
        self._is_over = True
        return self.greenlet


def call_listeners(
    listeners: typing.Iterable[typing.Callable[..., object]],
    args: tuple[object, ...],
    tell: typing.Callable[[BaseException], object],
) -> bool:
    """Call users' code: whatever one raises goes to `tell`, a Ctrl-C to the main greenlet, and
    the next one is called.

    Answers whether the task that calls them has to `BeginAnew`: what is no `Exception` may have
    been thrown at its greenlet, by somebody who waits for its end.
    """
    was_hit = False
    for listener in listeners:
        try:
            listener(*args)
        except Exception as error:  # noqa: BLE001 (told)
            tell(error)
        except KeyboardInterrupt as error:
            was_hit = True
            interrupt_main(error)
        except BaseException as error:  # noqa: BLE001 (told)
            was_hit = True
            tell(error)
    return was_hit


def kill_all(guarded: typing.Iterable[Guarded], timeout: float | None = None) -> None:
    """End tasks in whatever they do, and join them, for `timeout` seconds at most.  Yields."""
    greenlets = [one.ends_with_its_greenlet() for one in guarded]
    gevent.killall([one for one in greenlets if one is not None], timeout=timeout)


def _came_by_signal(error: BaseException) -> bool:
    """Whether the handler of a signal raised it, ``sys.exit()`` above all: it is the program's,
    and hit this greenlet by chance."""
    codes = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        codes.add(getattr(getattr(handler, "__func__", handler), "__code__", None))
    codes.discard(None)
    return any(frame.f_code in codes for frame in _frames(error))


def _frames(error: BaseException) -> typing.Iterator[types.FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
