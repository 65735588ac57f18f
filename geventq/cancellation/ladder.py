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
from geventq.cancellation import held, tree
from geventq.cancellation.callbacks import LIMIT
from geventq.cancellation.calls import INTERVAL, RETHROWS
from geventq.errors import JobKilled

if typing.TYPE_CHECKING:
    from geventq.cancellation.request import Cancellation

__all__ = ["Ladder", "Victim"]

_log = logging.getLogger("geventq")


class Victim(typing.Protocol):
    """What a ladder kills: the attempt."""

    job_id: str
    greenlet: typing.Any
    """The job's greenlet; stays what it is until the ladder is stopped."""

    def request_in_force(self) -> Cancellation:
        """The request that a kill carries."""

    def shielded_until(self) -> float | None:
        """When the last cap of the open shields runs out; `None` without an open shield."""

    def callbacks_running(self) -> bool:
        """Whether `on_cancel` callbacks hold the throw back."""

    def killer(self) -> typing.Callable[[], None]:
        """What kills, when it is called in the hub, all that belongs to the job now, but its own
        greenlet."""

    def threw(self) -> None:
        """A kill is about to be thrown."""

    def became_stuck(self) -> None:
        """All was thrown, and the job is alive."""


class Ladder:
    """Kills one attempt, in the hub, as soon as it may."""

    __slots__ = (
        "_left",
        "_loop",
        "_next",
        "_over",
        "_timer",
        "_victim",
        "_warned",
        "deadline",
        "throws",
    )

    def __init__(self, victim: Victim, loop: typing.Any, deadline: float) -> None:
        self._victim = victim
        self._loop = loop
        #: The end of the grace, on `clock.monotonic`.  Only ever made earlier.
        self.deadline = deadline
        #: How often it was thrown.  From the first throw on `deadline` means nothing any more.
        self.throws = 0
        #: When to throw again, or to give up; means nothing before the first throw.
        self._next = 0.0
        #: What remained until `_next` as a shield was entered; `None` while the clock runs.
        self._left: float | None = None
        #: The one timer; `None` unless `step` is due at a known time.
        self._timer: typing.Any = None
        self._warned = False  # of a shield that outlasted its cap: once
        self._over = False  # nothing is thrown any more
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
        until = self._victim.shielded_until()
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
        else:
            self._do(now, outlasted=until is not None)

    def _do(self, now: float, *, outlasted: bool) -> None:
        """Throw, or give up; not while the job is inside an import, which counts as a shield."""
        cap = held.held_until(self._victim.greenlet)
        if cap is not None and now < cap:
            if self.throws > RETHROWS:  # what it does after the import is still to be seen
                self._next = now + INTERVAL
            self._arm(held.LOOK)
        elif self.throws > RETHROWS:
            self._give_up()
        else:
            if outlasted or cap is not None:
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
        """A shield was left.  If it was the last one, throw what fell due, here where this is
        the job's greenlet."""
        if self._over:
            return
        if self._victim.shielded_until() is not None:
            self.poke()  # those that are open may have shorter caps
            return
        now = clock.monotonic()
        if self._left is not None:
            self._next, self._left = now + self._left, None
        due = not self.throws and now >= self.deadline and self._callbacks_are_over(now)
        greenlet = self._victim.greenlet
        if due and getcurrent() is greenlet and not held.is_held(greenlet):
            self._count(now)
            self._loop.run_callback(self._victim.killer())
            raise JobKilled(self._victim.request_in_force())
        self.poke()

    def _callbacks_are_over(self, now: float) -> bool:
        return (
            self.throws > 0 or now >= self.deadline + LIMIT or not self._victim.callbacks_running()
        )

    def _count(self, now: float) -> None:
        self.throws += 1
        self._next = now + INTERVAL
        self._arm(INTERVAL)
        self._victim.threw()

    def _throw(self, now: float) -> None:
        greenlet = self._victim.greenlet
        self._count(now)
        kill_the_others = self._victim.killer()
        if not greenlet.dead:
            greenlet.throw(JobKilled(self._victim.request_in_force()))
        kill_the_others()

    def _give_up(self) -> None:
        self.stop()
        self._victim.became_stuck()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            tree.apart(
                _log.warning,
                "a shield outlasted its cap, the job is killed inside it",
                extra={"job": self._victim.job_id},
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
