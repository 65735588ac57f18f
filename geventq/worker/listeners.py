"""The worker's events: listeners run in order, in one greenlet of their own.

A slow listener delays later events, and the taking of jobs once too many events wait: at most
what the listeners hear in about a second, and a few thousand, so that memory is bounded and a
close can hear them out.  What a listener raises is told as an `error` event, and an error that
nobody listens to is logged: none is swallowed.  Does not know Redis or jobs.
"""

from __future__ import annotations

import functools
import logging
import traceback
import typing
from collections import deque

import gevent

from geventq import clock, wakeups
from geventq.cancellation import held
from geventq.checks import check_callable, check_choice
from geventq.errors import RedisUnavailableError
from geventq.guarded import BeginAnew, Guarded, call_listeners, kill_all
from geventq.outage import Outage
from geventq.worker.told import EVENTS

__all__ = ["EVENTS", "Listeners", "Tell"]

#: The key of a worker's listeners in `spawn_tree_locals`: what a listener spawns carries it.
MARK: typing.Final = "geventq.listeners"

_MOST: typing.Final = 4096  # events that wait before they hold the worker back
_FEWEST: typing.Final = 64  # the same, however slow the listeners are
_WORTH: typing.Final = 1.0  # seconds that the listeners may be behind, between those two
_UNKNOWN_PACE: typing.Final = 0.004  # seconds for an event, before any was told
_SMOOTHING: typing.Final = 8  # events that their pace is averaged over, about

Listener = typing.Callable[..., object]
Tell = typing.Callable[..., None]  # `Listeners.emit`: an event and its arguments
HoldBack = typing.Callable[[bool], object]  # whether too many events wait; must not yield
log = logging.getLogger("geventq")


class Listeners:
    """Registered listeners and the events that wait for them.

    `emit` never yields and never calls a listener by itself; it may be called in the hub.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        #: The listeners of each event that has any.
        self.by_event: dict[str, list[Listener]] = {}
        self._waiting: deque[tuple[str, tuple[object, ...]]] = deque()
        self._wake = wakeups.Event()
        self._ended = False
        self._pace = _UNKNOWN_PACE  # seconds that an event takes, of late
        self._most = int(_WORTH / _UNKNOWN_PACE)  # events that may wait, by that pace
        self._hold_back: HoldBack = _nobody
        self._caught_up = wakeups.Event()  # else the worker is held back
        self._caught_up.set()
        self._says_so = True  # that it is held back, once from each start on
        self._task: Guarded | None = None
        self._abandoned: Guarded | None = None  # its listener hangs

    def on(self, event: str, listener: Listener) -> Listener:
        """Register `listener` for `event`.  Raises `ValueError` for an unknown event and
        `TypeError` for what cannot be called."""
        check_choice("event", event, sorted(EVENTS))
        check_callable("listener", listener)
        self.by_event.setdefault(event, []).append(listener)
        return listener

    def off(self, event: str, listener: Listener) -> bool:
        """Remove one registration; `False` if there was none.  Raises as `on`."""
        check_choice("event", event, sorted(EVENTS))
        listeners = self.by_event.get(event, [])
        try:
            listeners.remove(listener)
        except ValueError:
            return False
        if not listeners:
            del self.by_event[event]
        return True

    def emit(self, event: str, *args: object) -> None:
        """Queue an event for its listeners."""
        if event in self.by_event or event == "error":
            self._waiting.append((event, args))
            self._wake.set()
            if len(self._waiting) > self._most:
                self._fall_behind()

    def keep_up(self) -> None:
        """Wait while too many events wait, a second at most.  For what tells many of them and may
        yield."""
        if not self.is_inside(gevent.getcurrent()):  # it would wait for itself
            self._caught_up.wait(_WORTH)

    def _fall_behind(self) -> None:
        if self._caught_up.is_set():
            self._caught_up.clear()
            self._hold_back(True)
        if self._says_so and gevent.getcurrent() is not gevent.get_hub():  # which must not log
            self._says_so = False
            log.warning(
                "%d events wait for the listeners of worker %s: it takes no more jobs than they "
                "can hear of",
                *(len(self._waiting), self._name),
                extra={"worker": self._name},
            )

    def _keep_pace(self, took: float) -> None:
        """An event has been told in `took` seconds."""
        self._pace += (took - self._pace) / _SMOOTHING
        self._most = int(min(_MOST, max(_FEWEST, _WORTH / max(self._pace, 1e-6))))
        if not self._caught_up.is_set() and len(self._waiting) <= self._most // 2:
            self._caught_up.set()
            self._hold_back(False)

    def tell(self, event: str, *args: object) -> None:
        """`emit`, or `call` while no greenlet runs that would hear it.  May yield then."""
        if self._task is None or self._task.done.is_set():
            self.call(event, *args)
        else:
            self.emit(event, *args)

    def start(self, hold_back: HoldBack) -> None:
        """Start the greenlet that calls listeners.  `hold_back` is told when too many events wait,
        and when they do not any more."""
        self._ended = False
        self._hold_back = hold_back
        self._says_so = True
        self._caught_up.set()
        outage = Outage("telling the events", self._name, wakeups.Event())
        self._task = task = Guarded(
            lambda: self._loop(task), f"listeners-{self._name}", outage, marks={MARK: self}
        )
        task.start()

    def is_inside(self, greenlet: typing.Any) -> bool:
        """Whether `greenlet` runs listeners, or was spawned by one."""
        marks = getattr(greenlet, "spawn_tree_locals", None)
        return marks is not None and marks.get(MARK) is self

    def stop(self, notice: typing.Callable[[object], None]) -> typing.Callable[[], None] | None:
        """Call the listeners of the events that still wait, then end and call `notice` in the
        hub.  Answers how to give up on one that hangs, or `None` where there is nothing to wait
        for.  Does not yield."""
        self._ended = True
        self._wake.set()
        task = self._task
        if task is None or task.done.is_set():
            return None
        task.done.rawlink(notice)
        return lambda: self._abandon(task)

    def _abandon(self, task: Guarded) -> None:
        """A listener hangs while its worker closes: kill it, and drop the events behind it; if
        the worker has been started anew, its next greenlet tells them.  Yields for a second at
        most, longer only for an import, which would leave a half-made module (cancellation.md
        2.9)."""
        while not task.done.is_set() and held.is_held(task.greenlet):
            task.done.wait(held.LOOK)
        if task.done.is_set():
            return
        dropped = len(self._waiting) if self._task is task else 0
        log.error(
            "a listener of worker %s hangs and is killed, %d events behind it are dropped\n%s",
            self._name,
            dropped,
            "".join(traceback.format_stack(task.greenlet.gr_frame if task.greenlet else None)),
            extra={"worker": self._name},
        )
        self._abandoned = task
        kill_all([task], timeout=1.0)

    def disown(self) -> list[typing.Any]:
        """In a forked child: forget what the parent's listeners wait for.  Returns their greenlet,
        which is not ended."""
        task, self._task = self._task, None
        self._waiting.clear()
        self._wake = wakeups.Event()  # the next hub may be another thread's
        self._caught_up = wakeups.Event()
        self._caught_up.set()
        greenlet = None if task is None else task.ends_with_its_greenlet()
        return [] if greenlet is None else [greenlet]

    def _loop(self, task: Guarded) -> None:
        # Else a listener of `closed` has started the worker anew, or one has forked.
        while self._task is task:
            if self._abandoned is task:
                self._waiting.clear()
            if self._waiting:
                self._call_next()
            elif self._ended:
                return
            else:
                self._wake.clear()
                self._wake.wait()

    def _call_next(self) -> None:
        # Not in the loop, whose variables would keep the last job while there is no next one.
        event, args = self._waiting.popleft()
        began = clock.monotonic()
        was_hit = self.call(event, *args)
        self._keep_pace(clock.monotonic() - began)
        if was_hit:
            raise BeginAnew

    def call(self, event: str, *args: object) -> bool:
        """Call the listeners of `event` now, in the current greenlet; whether anything was
        raised that may have been thrown at it (`call_listeners`)."""
        listeners = self.by_event.get(event)
        if not listeners:
            if event == "error" and not _was_logged(args[0]):
                self._log(args[0])
            return False
        return call_listeners(list(listeners), args, functools.partial(self._failed, event))

    def _failed(self, event: str, error: BaseException) -> None:
        abandoned = self._abandoned
        if abandoned is not None and abandoned.greenlet is gevent.getcurrent():
            return
        if event == "error":  # the listener of errors fails: the log is what is left
            self._log(error)
        else:
            self.emit("error", error)

    def _log(self, error: object) -> None:
        shown = error if isinstance(error, BaseException) else None
        log.error("worker %s: %s", self._name, error, exc_info=shown, extra={"worker": self._name})


def _was_logged(error: object) -> bool:
    """Whether it is an outage that its part has told of: once is enough."""
    return isinstance(error, RedisUnavailableError) and error.was_logged


def _nobody(_: bool) -> None:
    """Before the first start."""
