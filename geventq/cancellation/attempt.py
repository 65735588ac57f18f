"""One attempt: one run of one job, and what was asked of it.

The attempt, not a greenlet, is what is cancelled (cancellation.md 2.16): the engine may run many
in one greenlet.  It keeps the strongest request, hands it to the token, and lets a `Ladder` kill
the job where a request is hard.  Everything rare is made on first use.

Invariant: between `end()` and ever after nothing is thrown and `request()` is `False`; from
`leaving()` on, where there is anything to leave, nothing but what ends a leaving that hangs.
`request` runs in the hub's thread; nothing here yields but `reap`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import traceback
import typing

import gevent

from geventq import clock
from geventq.cancellation import calls, frames, scope, tree
from geventq.cancellation.belongings import Belongings, install
from geventq.cancellation.callbacks import Callback
from geventq.cancellation.ladder import Ladder
from geventq.cancellation.request import Cancellation
from geventq.cancellation.token import CancellationToken
from geventq.hubs import get_ident, in_thread_of, interrupt_main

__all__ = ["Attempt", "AttemptObserver", "request_all"]


_log: typing.Final = logging.getLogger("geventq")


_TRIES: typing.Final = 100  # of a step of the attempt's end, each cut by something thrown

LEAVING: typing.Final = 30.0
"""Seconds in which what was entered around a processor has to be left (2.17)."""


class AttemptObserver(typing.Protocol):
    """Who is told."""

    @property
    def home(self) -> object:
        """Where the job is stored: equal for jobs of one queue, and for no others."""

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """The job is alive although it was killed; `stack` is where it sits.  Called once, in a
        greenlet named ``geventq-stuck``: it may block and log."""


class Attempt:
    """See the module.  `hard` and `kill_after` (seconds) are the worker's defaults."""

    __slots__ = (
        "__weakref__",
        "_belongings",
        "_hard",
        "_hears",
        "_hub",
        "_kill_after",
        "_ladder",
        "_leave_by",
        "_limit",
        "ended",
        "greenlet",
        "is_stuck",
        "job_id",
        "observer",
        "on_stage",
        "requested_monotonic",
        "strongest",
        "token",
        "was_lock_lost",
        "was_thrown",
    )

    def __init__(
        self,
        job_id: str,
        *,
        with_token: bool,
        hard: bool,
        kill_after: float,
        observer: AttemptObserver,
        hears: bool = True,
    ) -> None:
        self.job_id = job_id
        self.observer = observer
        #: All requests, merged; it decides the outcome.  The token keeps the first.
        self.strongest: Cancellation | None = None
        self.requested_monotonic = 0.0  # when the first request was made; 0.0 before
        #: Where users' code runs for this attempt: set by `enter`, `None` again after `end`.
        self.greenlet: typing.Any = None
        self.ended = False
        #: From the first throw on; then whatever comes out of the job counts as cancelled (2.5).
        self.was_thrown = False
        self.was_lock_lost = False  # whatever else was asked, nothing may be written
        self.is_stuck = False  # told to the observer; never taken back
        #: Called with each stage that is reached, in the hub or in the job's greenlet: it must
        #: not yield.  `None` while nobody wants to know.
        self.on_stage: typing.Callable[[str], object] | None = None
        self._hard = hard
        self._kill_after = kill_after
        self._hub = gevent.get_hub()
        #: Made by the first hard request; from then on the one thing that throws.
        self._ladder: Ladder | None = None
        #: The timer of the job's time limit while its processor runs, then of `_leave_by`.
        self._limit: typing.Any = None
        #: When `LEAVING` is over (monotonic); `None` until the processor has ended, and where
        #: nothing was entered around it.
        self._leave_by: float | None = None
        self._belongings: Belongings | None = None  # made with the first of them
        self.token = CancellationToken(self) if with_token else None
        #: Whether the processor has the token: else nobody could hear a soft request.
        self._hears = with_token and hears

    @staticmethod
    def of(greenlet: typing.Any) -> Attempt | None:
        """The attempt that `greenlet` belongs to: its own, or that of whoever spawned it."""
        attempt: Attempt | None = tree.marked(greenlet)
        return attempt

    # -- the run ----------------------------------------------------------------------------

    def enter(self, greenlet: typing.Any) -> None:
        """Users' code is about to run in `greenlet` for this attempt: a kill reaches it."""
        install()
        self.greenlet = greenlet
        greenlet.spawn_tree_locals = {tree.MARK: self}

    def begin(self, greenlet: typing.Any, timeout: float | None) -> None:
        """The processor is about to run in `greenlet`; it may do so for `timeout` seconds."""
        self.enter(greenlet)
        if timeout is not None:
            self._limit = self._hub.loop.timer(timeout)
            self._limit.start(self._time_is_up, timeout)

    def leaving(self) -> typing.ContextManager[object]:
        """The processor has ended, and in this block what was entered around it is left (2.17).

        From here on requests are `False`, and nothing is thrown: a kill that was asked for is
        over as well.  Only a leaving that takes longer than `LEAVING` seconds is killed, as one
        whose time is up.
        """
        if self.ended:
            return contextlib.nullcontext()  # in a forked child
        self._leave_by = clock.monotonic() + LEAVING
        if self._limit is not None:
            self._stop_limit()
        if self._ladder is not None:
            self._ladder.stop()
        self._limit = self._hub.loop.timer(LEAVING)
        self._limit.start(self._leaves_too_long)
        # In a shield a token's `run` and `sleep` go to their end.
        return contextlib.nullcontext() if self.token is None else self.token.shield(LEAVING)

    def _leaves_too_long(self) -> None:
        """In the hub."""
        self._stop_limit()
        if self.strongest is None:
            self._keep(Cancellation.timed_out(LEAVING, hard=True))
        self._ladder = Ladder(self, self._hub.loop, clock.monotonic())

    def end(self) -> None:
        """The processor has left.  Nothing is thrown any more."""
        self.ended = True
        if self._limit is not None:
            self._stop_limit()
        if self._ladder is not None:
            self._ladder.stop()
        greenlet, self.greenlet = self.greenlet, None  # it may run the next attempt (2.16)
        if greenlet is not None:
            greenlet.spawn_tree_locals = {}
        if self.token is not None:
            scope.seal(self.token)

    def release(self, error: BaseException) -> None:
        """Let go what the frames of `error` hold, which is what the processor raised; before
        `end`, so that requests, kills and the time limit reach what happens meanwhile (2.13).
        May yield."""
        self._insist(lambda: frames.release(error))

    def reap(self) -> typing.Collection[Callback]:
        """Kill and join the helpers of `token.spawn` (2.13), and join the child processes that a
        kill has told to end.  Returns the `on_cancel` callbacks that are still at work.  May
        yield."""
        belongings = self._belongings
        if self.was_thrown and belongings is not None:
            self._insist(belongings.join)
        token = self.token
        if token is None or not scope.is_grown(token):
            return ()
        self.end_helpers()
        return scope.callbacks_at_work(token)

    def end_helpers(self) -> None:
        """Kill and join the helpers of `token.spawn` (2.13).  May yield."""
        token = self.token
        helpers = [] if token is None else scope.take_helpers(token)
        if token is not None and helpers:
            owner = scope.scope_of(token)
            self._insist(lambda: calls.put_down(helpers, owner, self.became_stuck))

    @staticmethod
    def _insist(step: typing.Callable[[], None]) -> None:
        """Carry out a step of the attempt's end.  What hits this greenlet meanwhile (a kill, a
        `gevent.Timeout` that the processor left running) comes for what has ended, and is
        dropped (2.7); a step that fails each time has a defect, which is raised."""
        for left in reversed(range(_TRIES)):
            try:
                step()
            except KeyboardInterrupt as error:
                interrupt_main(error)
            except BaseException:
                if not left:
                    raise
            else:
                return

    def disown(self) -> list[typing.Any]:
        """In a forked child, where the run is the parent's: nothing can be asked of it any more
        (7.5).  Returns its greenlets, which are not ended.  Does not yield."""
        greenlets: list[typing.Any] = []
        if self._belongings is not None:
            self._belongings.disown()
            greenlets += self._belongings.greenlets()
        if self.greenlet is not None:
            greenlets.append(self.greenlet)
        if self.token is not None:
            greenlets += scope.disown(self.token)
        self.end()
        return greenlets

    def _stop_limit(self) -> None:
        self._limit.stop()
        self._limit.close()
        self._limit = None

    def _time_is_up(self, seconds: float) -> None:
        """In the hub.  Where nobody could hear a soft request, the limit kills (2.15)."""
        self._stop_limit()
        hard = self._hard or not self._hears
        self.request(Cancellation.timed_out(seconds, hard=hard), hard=hard, kill_after=None)

    # -- requests ------------------------------------------------------------------------------

    def request(
        self, request: Cancellation, *, hard: bool | None, kill_after: float | None
    ) -> bool:
        """Ask the job to stop; whether this request took effect (2.2).

        `hard` `None` means the worker's mode, `kill_after` `None` its grace in seconds;
        `kill_after` without `hard` means hard.  May be called from any native thread.
        """
        if self._hub.thread_ident != get_ident():
            return in_thread_of(
                self._hub,
                lambda: self.request(request, hard=hard, kill_after=kill_after),
                gone=False,
            )
        is_hard = (self._hard or kill_after is not None) if hard is None else hard
        greenlet = self.greenlet
        if self.ended or self._leave_by is not None or (greenlet is not None and greenlet.dead):
            return False
        if request.kind == "lock_lost":
            self.was_lock_lost = True
            kill_after = 0.0
        elif not self._hears and not is_hard:
            return False  # a processor without a token cannot be asked softly
        if request.hard != is_hard:
            request = dataclasses.replace(request, hard=is_hard)
        took = self._keep(request)
        assert self.strongest is not None
        if is_hard or (self.was_lock_lost and self.strongest.hard):
            took = self._hasten(self._kill_after if kill_after is None else kill_after) or took
        return took

    def _keep(self, request: Cancellation) -> bool:
        """Add what is stronger in `request` than in those before; whether there was anything."""
        before = self.strongest
        if before is not None:
            self.strongest = before.merged(request)
            return self.strongest is not before
        self.strongest = request
        self.requested_monotonic = clock.monotonic()
        if self.token is not None:
            scope.accept(self.token, request)
        return True

    def precede(self, request: Cancellation) -> None:
        """A request that was recorded before this run began: it will not run (2.8)."""
        self.answer(request)

    def answer(self, request: Cancellation) -> None:
        """The outcome answers `request` as well, which did not reach the processor: it takes no
        token and was asked softly, or has ended (2.5)."""
        before = self.strongest
        if before is not None:
            self.strongest = before.merged(request)
            return
        self.strongest = request
        self.requested_monotonic = clock.monotonic()

    def _hasten(self, grace: float) -> bool:
        """Kill after `grace` seconds, or earlier if that was asked before."""
        if self.greenlet is None:
            return False  # it will not run (2.8)
        deadline = clock.monotonic() + grace
        ladder = self._ladder
        if ladder is None:
            self._ladder = Ladder(self, self._hub.loop, deadline)
            self._reached("grace")
            return True
        if ladder.throws or deadline >= ladder.deadline:
            return False
        ladder.deadline = deadline
        ladder.poke()
        return True

    @property
    def stage(self) -> str | None:
        """How far stopping it has come: ``seen``, ``grace``, ``thrown`` or ``stuck``."""
        if self.strongest is None:
            return None
        if self.is_stuck:
            return "stuck"
        if self.was_thrown:
            return "thrown"
        return "seen" if self._ladder is None else "grace"

    def stack(self) -> str:
        """Where the job's greenlet sits, as `traceback` prints it."""
        return _stack_of(self.greenlet)

    def stacks(self, current: typing.Any = None) -> dict[str, str]:
        """Where the job's greenlet and those it started sit, by their names.  `current` is the
        frame of the greenlet that runs now, for a caller in another thread.  Does not yield."""
        greenlets = [] if self.greenlet is None else [self.greenlet]
        if self._belongings is not None:
            greenlets += (one for one in self._belongings.greenlets() if one is not self.greenlet)
        found: dict[str, str] = {}
        for greenlet in greenlets:
            if greenlet.dead or not greenlet.started:
                continue
            frame = greenlet.gr_frame or current  # the running one has none of its own
            if frame is not None:
                name = f"{greenlet.name}" if not found else f"{greenlet.name} ({len(found)})"
                found[name] = "".join(traceback.format_stack(frame))
        return found

    # -- for the ladder, the shields, the callbacks and the tree ------------------------------

    def request_in_force(self) -> Cancellation:
        """The request that a kill carries."""
        assert self.strongest is not None
        return self.strongest

    def shielded_until(self) -> float | None:
        """When the last cap of the open shields runs out; `None` without one."""
        until = None if self.token is None else scope.shielded_until(self.token)
        return until if self._leave_by is None else max(self._leave_by, until or 0.0)

    def shield_entered(self) -> None:
        """The first shield was entered."""
        if self._ladder is not None:
            self._ladder.entered_shield()

    def shield_left(self) -> None:
        """A shield was left, others may be open.  May raise `JobKilled`."""
        if self._ladder is not None:
            self._ladder.left_shield()

    def callbacks_running(self) -> bool:
        """Whether `on_cancel` callbacks hold the throw back."""
        return self.token is not None and bool(scope.callbacks_at_work(self.token))

    def callback_ended(self) -> None:
        """One of them has ended."""
        if self._ladder is not None:
            self._ladder.poke()

    def belongings(self) -> Belongings:
        """What dies with the job beside its own greenlet."""
        if self._belongings is None:
            self._belongings = Belongings()
        return self._belongings

    def killer(self) -> typing.Callable[[], None]:
        """What kills all that belongs to the job now, but its own greenlet."""
        return self.belongings().killer(self.greenlet)

    def threw(self) -> None:
        """The ladder throws."""
        if not self.was_thrown:
            self.was_thrown = True
            self._reached("thrown")

    def _reached(self, stage: str) -> None:
        if self.on_stage is not None:
            self.on_stage(stage)

    def became_stuck(self, greenlet: typing.Any = None) -> None:
        """The ladder's end, or a call of `token.run` or a helper that swallows its kill.

        Told once, in a greenlet: printing a stack reads source files, which the hub must not
        do (2.9).
        """
        where = self.greenlet if greenlet is None else greenlet
        tree.apart(self._report_stuck, where, name="geventq-stuck")

    def _report_stuck(self, greenlet: typing.Any) -> None:
        shown = _stack_of(greenlet)
        if shown and not self.is_stuck:  # else it has ended in this very turn
            self.is_stuck = True
            self.observer.stuck(self, shown)


def request_all(
    attempts: typing.Iterable[Attempt],
    request: Cancellation,
    *,
    hard: bool | None,
    kill_after: float | None,
) -> int:
    """Ask many jobs to stop; how many requests took effect.  The failure of one spares no other:
    it is logged, by a greenlet named ``geventq-not-asked``.  Does not yield."""
    took = 0
    for attempt in list(attempts):
        try:
            took += attempt.request(request, hard=hard, kill_after=kill_after)
        except Exception as error:  # noqa: BLE001 (told)
            tree.apart(
                _log.error,
                "job %s could not be asked to stop",
                attempt.job_id,
                exc_info=error,
                extra={"job": attempt.job_id},
                name="geventq-not-asked",
            )
    return took


def _stack_of(greenlet: typing.Any) -> str:
    frame = None if greenlet is None else greenlet.gr_frame
    return "" if frame is None else "".join(traceback.format_stack(frame))
