"""How a worker ends: no new jobs, the running ones end or are cancelled, nothing is left
(cancellation.md 7.1, 7.4).

Owns the end of one engine, the greenlets ``geventq-close-<queue>`` and ``geventq-close-lanes-...``
in which it happens, so that it goes on whoever asked for it is killed, and the deadline, which a
later call may bring nearer.  Knows the engine's parts; the engine does not know this module.
"""

from __future__ import annotations

import logging
import typing

from geventq import clock, wakeups
from geventq.cancellation import Cancellation, request_all
from geventq.guarded import Guarded
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    from geventq.worker.engine import Engine

__all__ = ["Closing"]

_SHUTDOWN_GRACE: typing.Final = 1.0  # seconds between cancel and kill at least (7.1)
_LOOK: typing.Final = 1.0  # seconds without news after which lost runs are looked for
_TRIES: typing.Final = 3  # of a step that fails
_LISTENERS: typing.Final = 2.0  # seconds past the deadline for listeners that hang
_TAKES: typing.Final = 2.0  # the same for a take that hangs, where nothing is to be delivered

log = logging.getLogger("geventq")


class Closing:
    """The end of one engine.  Made with it; nothing happens before `begin`.

    `begins` is called before anything else; `ended` when nothing of the engine is left but what
    its listeners have still to hear.  Neither may yield.
    """

    def __init__(
        self,
        engine: Engine,
        queue_name: str,
        begins: typing.Callable[[], None],
        ended: typing.Callable[[Closing], None],
    ) -> None:
        self.engine = engine
        self._queue = queue_name
        self._begins = begins
        self._ended = ended
        self._deadline: float | None = None  # on the monotonic clock; only ever comes nearer
        self._news = wakeups.Event()  # a job has left, or the deadline has come nearer
        self.done = wakeups.Event()  # waited for from any native thread
        self._reason = ""
        self._is_told = False  # the worker, that its engine has ended
        self._give_up: typing.Callable[[], None] | None = None  # on listeners that still hear
        self._steps = [
            *(self._end_jobs, self._deliver, *engine.steps_to_stop()),
            *(self._hear_out, engine.disconnect),
        ]
        self._tries = _TRIES  # of the first one of them
        self._outage = Outage("closing", queue_name, wakeups.Event())
        self._task = Guarded(self._run, f"close-{queue_name}", self._outage, tell=self._tell_error)
        self._stopper = Guarded(
            engine.lanes.stop, f"close-lanes-{queue_name}", self._outage, tell=self._tell_error
        )

    def disown(self) -> list[typing.Any]:
        """In a forked child: the greenlets, which are the parent's."""
        tasks = (self._task, self._stopper)
        return [task.greenlet for task in tasks if task.greenlet is not None]

    @property
    def begun(self) -> bool:
        """Whether no new jobs are taken any more."""
        return self._task.greenlet is not None

    def begin(self, timeout: float | None, reason: str) -> None:
        """Begin to close, or bring the deadline nearer.  In the hub's thread; does not yield."""
        if timeout is not None:
            deadline = clock.monotonic() + timeout
            if self._deadline is None or deadline < self._deadline:
                self._deadline = deadline
        if not self.begun:
            self._begins()
            self._reason = reason
            self.engine.slots.is_open = False
            self.engine.slots.running.notice = self._news.set
            self.engine.listeners.emit("closing")
            self._task.start()
        self._news.set()

    def join(self) -> None:
        """Wait for the last steps of the greenlet, once `done` is set.  Yields."""
        self._task.join()

    def _tell_error(self, error: BaseException) -> None:
        self.engine.listeners.emit("error", error)

    def _run(self) -> None:
        """One step after the other.  One that was cut is made again; one that fails of itself is
        left in the end, so that a defect keeps nobody from closing."""
        while self._steps:
            try:
                self._steps[0]()
            except Exception:
                self._tries -= 1
                if self._tries:
                    raise
                log.exception("closing the worker of queue %s: a step failed", self._queue)
            self._steps.pop(0)
            self._tries = _TRIES
        self.done.set()

    def _end_jobs(self) -> None:
        self.engine.idle_wait.leave()
        if not self._drained(lambda: self._deadline):
            self._shut_down(self._reason)
        self.engine.life.find_lost()

    def _deliver(self) -> None:
        undelivered = self._deliver_rest()
        if undelivered:
            log.error(
                "worker of queue %s closed with outcomes that Redis did not take: jobs %s",
                self._queue,
                ", ".join(undelivered),
            )

    def _hear_out(self) -> None:
        """Let the listeners hear the last events.  One that hangs is waited for like a job: as
        long as nobody gave a time, else for a while."""
        if not self._is_told:
            self._is_told = True
            self._ended(self)
            self.engine.listeners.emit("closed")
            self._give_up = self.engine.listeners.stop(self._heard_out)
        began = clock.monotonic()
        while (give_up := self._give_up) is not None:
            self._news.clear()
            left = None
            if self._deadline is not None:
                left = max(began, self._deadline) + _LISTENERS - clock.monotonic()
                if left <= 0:
                    give_up()
                    return
            self._news.wait(left)

    def _heard_out(self, _: object) -> None:
        self._give_up = None
        self._news.set()

    def _drained(self, deadline: typing.Callable[[], float | None]) -> bool:
        """Wait until no processor runs, or the deadline (which may come nearer) has passed."""
        while any(not run.attempt.is_stuck for run in self.engine.slots.running):
            self._news.clear()
            until = deadline()
            left = None if until is None else until - clock.monotonic()
            if left is not None and left <= 0:
                return False
            if not self._news.wait(_LOOK if left is None else min(left, _LOOK)):
                self.engine.life.find_lost()
        return True

    def _shut_down(self, reason: str) -> None:
        """Cancel what runs, kill it after the grace, and wait for the ladder's end (7.1)."""
        engine = self.engine
        grace = max(engine.options.kill_after, _SHUTDOWN_GRACE)
        request = Cancellation(reason, "shutdown", hard=True, requested_by=engine.worker_id)
        attempts = [execution.attempt for execution in engine.slots.running]
        request_all(attempts, request, hard=True, kill_after=grace)
        # No deadline of our own: each attempt ends, or its ladder says that it is stuck; only a
        # shield makes that later.
        self._drained(lambda: None)

    def _deliver_rest(self) -> list[str]:
        """Send what is left until Redis answers, or until every lock has lapsed (7.1); the ids
        of the jobs whose outcome nobody took."""
        if self._stopper.done.is_set():
            self._stopper.start()
        began = clock.monotonic()
        while (left := self._gives_up_at(began) - clock.monotonic()) > 0:
            if self._stopper.join(min(left, _LOOK)):
                return []
        undelivered = self.engine.lanes.abandon()
        self._stopper.join()
        return undelivered

    def _gives_up_at(self, began: float) -> float:
        """When a server that does not answer is waited for no longer.  Where there is no outcome,
        only a take is under way, or its answer lost: the stalled check brings back its jobs."""
        lapsed = began + self.engine.options.lock_duration
        if self._deadline is None or self.engine.lanes.undelivered():
            return lapsed
        return min(lapsed, max(began, self._deadline) + _TAKES)
