"""The ladder of a hard request: grace, throw, again every second, stuck (cancellation.md 2.10).

One small machine with one timer, made only when an attempt is to be killed.  `step` runs in the
hub and decides there, at the moment of throwing, whether the throw may happen (2.9): the job may
have ended, entered a shield or have callbacks under way.  It neither logs nor calls users' code:
a warning and the report of a stuck job are handed to greenlets (``geventq-shield-warning``,
``geventq-stuck``).

Invariant: while a shield is open and its cap has not run out, nothing is thrown and the clock
of the rethrows stands still (`_left` holds what remained).  Grace counts from the request and
goes on; a kill that fell due meanwhile is thrown by `left_shield`.
"""

from __future__ import annotations

import logging
import typing

from greenlet import getcurrent

from geventq import clock
from geventq.cancellation import tree
from geventq.cancellation.callbacks import LIMIT
from geventq.errors import JobKilled

if typing.TYPE_CHECKING:
    from geventq.cancellation.attempt import Attempt

__all__ = ["INTERVAL", "RETHROWS", "Ladder"]

#: Seconds between two throws.
INTERVAL: typing.Final = 1.0
#: How often a throw is repeated before the attempt counts as stuck.
RETHROWS: typing.Final = 3

_log = logging.getLogger("geventq")


class Ladder:
    """Kills one attempt, in the hub, as soon as it may."""

    __slots__ = (
        "_attempt",
        "_left",
        "_loop",
        "_next",
        "_over",
        "_timer",
        "_warned",
        "deadline",
        "throws",
    )

    def __init__(self, attempt: Attempt, loop: typing.Any, deadline: float) -> None:
        self._attempt = attempt
        self._loop = loop
        self.deadline = deadline  # the end of the grace, on clock.monotonic
        self.throws = 0
        self._next = 0.0  # when to throw again, or to give up
        self._left: float | None = None
        self._timer: typing.Any = None
        self._warned = False
        self._over = False
        self.poke()

    def poke(self) -> None:
        """Look again at the hub's next turn."""
        self._loop.run_callback(self.step)

    def stop(self) -> None:
        """Throw nothing any more."""
        self._over = True
        self._disarm()

    def step(self) -> None:
        """Do what is due.  In the hub: thrown from anywhere else, a kill would hit whoever asks."""
        if self._over:
            return
        now = clock.monotonic()
        until = self._attempt.shielded_until()
        if until is not None:
            if now < until:
                self._arm(until - now)
                return
            if self._left is not None:  # the cap ran out in a cleanup: the clock goes on, now
                self._left, self._next = None, now
        due = self._next if self.throws else self.deadline
        if now < due:
            self._arm(due - now)
        elif not self._callbacks_are_over(now):
            self._arm(self.deadline + LIMIT - now)
        elif self.throws > RETHROWS:
            self._give_up()
        else:
            if until is not None:
                self._warn()
            self._throw(now)

    def entered_shield(self) -> None:
        """The first shield was entered: the rethrows' clock stops."""
        if self._over:
            return
        now = clock.monotonic()
        if self.throws and self._left is None:
            self._left = max(0.0, self._next - now)
        self.poke()  # a shield may be over at once

    def left_shield(self) -> None:
        """The last shield was left: throw what fell due, here if this is the job's greenlet."""
        if self._over:
            return
        now = clock.monotonic()
        if self._left is not None:
            self._next, self._left = now + self._left, None
        due = not self.throws and now >= self.deadline and self._callbacks_are_over(now)
        if due and getcurrent() is self._attempt.greenlet:
            self._count(now)
            family = self._attempt.family()
            self._loop.run_callback(tree.kill_all, family, self._attempt.greenlet)
            raise JobKilled(self._attempt.request_in_force())
        self.poke()

    def _callbacks_are_over(self, now: float) -> bool:
        return (
            self.throws > 0 or now >= self.deadline + LIMIT or not self._attempt.callbacks_running()
        )

    def _count(self, now: float) -> None:
        self.throws += 1
        self._next = now + INTERVAL
        self._arm(INTERVAL)
        self._attempt.threw(first=self.throws == 1)

    def _throw(self, now: float) -> None:
        attempt = self._attempt
        greenlet = attempt.greenlet
        self._count(now)
        # What the job spawns while it cleans up is not in this list, and not killed now.
        family = attempt.family()
        if not greenlet.dead:
            greenlet.throw(JobKilled(attempt.request_in_force()))
        tree.kill_all(family, greenlet)

    def _give_up(self) -> None:
        self.stop()
        self._attempt.became_stuck()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            tree.apart(
                _log.warning,
                "a shield outlasted its cap, the job is killed inside it",
                extra={"job": self._attempt.job_id},
                name="geventq-shield-warning",
            )

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self._loop.timer(max(seconds, 0.0005))
        self._timer.start(self.step)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
