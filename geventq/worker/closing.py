"""How a worker ends: no new jobs, the running ones end or are cancelled, nothing is left
(cancellation.md 7.1, 7.4).

Owns the greenlet ``geventq-close-<queue>``, so that closing goes on whoever asked for it is
killed, and the deadline, which a later call may bring nearer.
"""

from __future__ import annotations

import logging
import typing

import gevent
import gevent.event

from geventq import clock
from geventq.cancellation import Cancellation

if typing.TYPE_CHECKING:
    from geventq.worker.engine import Engine

__all__ = ["Closing"]

_SHUTDOWN_GRACE: typing.Final = 1.0  # seconds between cancel and kill at least (7.1)
_LISTENERS: typing.Final = 2.0  # seconds past the deadline for listeners that hang

log = logging.getLogger("geventq")


class Closing:
    """The end of one engine.  Made with it; nothing happens before `begin`."""

    def __init__(self, engine: Engine, queue_name: str) -> None:
        self._engine = engine
        self._queue = queue_name
        self._deadline: float | None = None  # on the monotonic clock
        self._news = gevent.event.Event()  # a job has left, or the deadline has come nearer
        self.done = gevent.event.Event()  # waited for from any native thread
        self.greenlet: gevent.Greenlet[..., None] | None = None
        self.stopper: gevent.Greenlet[..., None] | None = None  # ends the intake

    @property
    def begun(self) -> bool:
        """Whether no new jobs are taken any more."""
        return self.greenlet is not None

    def begin(self, timeout: float | None, reason: str) -> None:
        """Begin to close, or bring the deadline nearer.  In the hub's thread; does not yield."""
        if timeout is not None:
            deadline = clock.monotonic() + timeout
            if self._deadline is None or deadline < self._deadline:
                self._deadline = deadline
        if self.greenlet is None:
            self._engine.tell("closing")
            self.greenlet = gevent.Greenlet(self._run, reason)
            self.greenlet.name = f"geventq-close-{self._queue}"
            self.greenlet.spawn_tree_locals = {}  # nobody's job dies with it, whoever began it
            self.greenlet.start()
        self._news.set()

    def notice(self) -> None:
        """A job has ended, or is stuck.  Does not yield."""
        self._news.set()

    def _run(self, reason: str) -> None:
        engine = self._engine
        try:
            engine.idle.leave()
            if not self._drained(lambda: self._deadline):
                self._shut_down(reason)
            undelivered = self._deliver_rest()
            if undelivered:
                log.error(
                    "worker of queue %s closed with outcomes that Redis did not take: jobs %s",
                    self._queue,
                    ", ".join(undelivered),
                )
            engine.end_parts()
        finally:
            self._hear_out()
            self.done.set()

    def _hear_out(self) -> None:
        """Let the listeners hear the last events.  One that hangs is waited for like a job: as
        long as nobody gave a time, else for a while."""
        heard = gevent.event.Event()

        def notice(_: object) -> None:
            heard.set()
            self._news.set()

        give_up = self._engine.ended(notice)
        began = clock.monotonic()
        while give_up is not None and not heard.is_set():
            self._news.clear()
            left = None
            if self._deadline is not None:
                left = max(began, self._deadline) + _LISTENERS - clock.monotonic()
                if left <= 0:
                    give_up()
                    return
            self._news.wait(left)

    def _drained(self, deadline: typing.Callable[[], float | None]) -> bool:
        """Wait until no processor runs, or the deadline (which may come nearer) has passed."""
        while any(not run.attempt.is_stuck for run in self._engine.running):
            self._news.clear()
            until = deadline()
            left = None if until is None else until - clock.monotonic()
            if left is not None and left <= 0:
                return False
            self._news.wait(left)
        return True

    def _shut_down(self, reason: str) -> None:
        """Cancel what runs, kill it after the grace, and wait for the ladder's end (7.1)."""
        engine = self._engine
        grace = max(engine.options.kill_after, _SHUTDOWN_GRACE)
        asked = Cancellation(reason, "shutdown", hard=True, requested_by=engine.worker_id)
        for execution in engine.running:
            execution.attempt.request(asked, hard=True, kill_after=grace)
        # No deadline of our own: each attempt ends, or its ladder says that it is stuck; only a
        # shield makes that later.
        self._drained(lambda: None)

    def _deliver_rest(self) -> list[str]:
        """Send what is left until Redis answers, or until every lock has lapsed (7.1); the ids
        of the jobs whose outcome nobody took."""
        intake = self._engine.intake
        self.stopper = stopper = gevent.Greenlet(intake.stop)
        stopper.name = f"geventq-close-intake-{self._queue}"
        stopper.start()
        stopper.join(self._engine.options.lock_duration)
        if stopper.ready():
            return []
        undelivered = intake.abandon()
        stopper.join()
        return undelivered
