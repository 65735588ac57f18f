"""One run of one job: who asked to stop it, and what was done about it.

The attempt is all that the engine sees of the cancellation core.  It holds no greenlet's life:
the engine runs one attempt after another in one greenlet, and from `end` on nothing that comes
late (a kill, a timer, a callback) has an effect (cancellation.md 2.16).  What is rare (ladder,
tree, time limit) is made when it is needed; without a token and without requests an attempt is
a few attributes.

Everything but `request` and `lock_lost` belongs to the thread of the attempt's hub.  Timers call
back in the hub, where nothing logs, blocks or runs users' code.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
import typing

from gevent import get_hub
from greenlet import getcurrent

from geventq import clock
from geventq.cancellation import calls, tree
from geventq.cancellation.ladder import Ladder
from geventq.cancellation.request import Cancellation
from geventq.cancellation.threads import get_ident, in_thread_of
from geventq.cancellation.token import CancellationToken

__all__ = ["Attempt", "AttemptObserver"]

Stage = typing.Literal["seen", "grace", "thrown", "stuck"]


class AttemptObserver(typing.Protocol):
    """Told what happens to an attempt, in the hub or in a greenlet.  Its methods never block,
    log or raise."""

    def requested(self, attempt: Attempt) -> None:
        """A request took effect, the first or a stronger one."""

    def thrown(self, attempt: Attempt) -> None:
        """`JobKilled` was thrown for the first time (it is just about to be delivered)."""

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """The job is alive although killed; told once."""


class Attempt:
    """One run of one job.

    `hard` and `kill_after` (seconds) are the worker's `cancel_mode` and `kill_after`; a token
    is made only if the processor takes one.
    """

    __slots__ = (
        "_deadline",
        "_family",
        "_hard",
        "_hub",
        "_kill_after",
        "_ladder",
        "_limit",
        "_observer",
        "_stuck",
        "_thrown",
        "_timeout",
        "ended",
        "greenlet",
        "job_id",
        "requested_monotonic",
        "strongest",
        "token",
    )

    def __init__(
        self,
        job_id: str,
        *,
        with_token: bool,
        hard: bool,
        kill_after: float,
        observer: AttemptObserver,
    ) -> None:
        self.job_id = job_id
        #: What text, outcome, retry and events follow (cancellation.md 2.2).
        self.strongest: Cancellation | None = None
        self.requested_monotonic: float | None = None
        self.greenlet: typing.Any = None  # between begin() and end()
        self.ended = False
        self.token = CancellationToken(attempt=self) if with_token else None
        self._hub = get_hub()
        self._hard = hard
        self._kill_after = kill_after
        self._observer = observer
        self._deadline: float | None = None  # when the grace ends; None: asked softly, or not
        self._ladder: Ladder | None = None
        self._family: tree.Family[typing.Any] | None = None
        self._limit: typing.Any = None
        self._timeout = 0.0
        self._thrown = False
        self._stuck = False

    def __repr__(self) -> str:
        return f"<Attempt of job {self.job_id}: {'ended' if self.ended else self.stage or 'quiet'}>"

    # -- the engine's side ----------------------------------------------------------------

    def begin(self, greenlet: typing.Any, timeout: float | None) -> None:
        """The processor is about to run in `greenlet`, the current one.

        Marks its spawn tree and starts the time limit of `timeout` seconds.  Does not yield.
        """
        tree.install()
        self.greenlet = greenlet
        greenlet.spawn_tree_locals = {tree.MARK: self}
        if timeout is not None:
            self._timeout = timeout
            self._limit = self._hub.loop.timer(timeout)
            self._limit.start(self._timed_out)
        if self._deadline is not None:
            self._climb()

    def end(self) -> None:
        """The processor has left: nothing is thrown and no request accepted any more.

        To be called in its greenlet, with no switch in between.  Does not yield.
        """
        self.ended = True
        self.greenlet = None
        if self._limit is not None:
            self._limit.stop()
            self._limit.close()
            self._limit = None
        if self._ladder is not None:
            self._ladder.stop()
        if self.token is not None:
            self.token._seal()

    def reap(self) -> None:
        """Kill the helpers of `token.spawn` and wait for them; after `end`, in its greenlet.

        Yields if there are any.
        """
        token = self.token
        extras = None if token is None else token._extras
        if extras is None or not extras.helpers:
            return
        while extras.helpers:
            helpers, extras.helpers = extras.helpers, []
            calls.put_down(helpers, extras.guard, self.became_stuck)

    def request(
        self, cancellation: Cancellation, *, hard: bool | None, kill_after: float | None
    ) -> bool:
        """Ask the job to stop; whether that had an effect (cancellation.md 2.2).

        `None` means the worker's mode and grace; `kill_after` without `hard` means hard.  From
        another native thread the call waits for the hub's next turn.
        """
        if self._hub.thread_ident != get_ident():
            return in_thread_of(
                self._hub,
                lambda: self.request(cancellation, hard=hard, kill_after=kill_after),
                gone=False,
            )
        if self.ended:
            return False
        lost = cancellation.kind == "lock_lost"
        if hard is None:
            hard = self._hard or cancellation.hard or kill_after is not None
        if not hard and not lost and self.token is None:
            return False  # nobody could hear it
        grace = 0.0 if lost else self._kill_after if kill_after is None else kill_after
        if cancellation.hard != hard:
            cancellation = dataclasses.replace(cancellation, hard=hard)
        return self._take(cancellation, grace)

    def lock_lost(self, cancellation: Cancellation) -> bool:
        """The lock is gone: end the attempt whatever was asked; in hard mode without grace."""
        return self.request(cancellation, hard=None, kill_after=None)

    @property
    def was_lock_lost(self) -> bool:
        """Whether the attempt's lock was lost while it ran."""
        return self.strongest is not None and self.strongest.kind == "lock_lost"

    @property
    def was_thrown(self) -> bool:
        """Whether `JobKilled` was thrown, heard or not."""
        return self._thrown

    @property
    def is_stuck(self) -> bool:
        """Whether the job was alive at the ladder's end."""
        return self._stuck

    @property
    def stage(self) -> Stage | None:
        """How far the strongest request has come; `None` without one."""
        if self._stuck:
            return "stuck"
        if self._thrown:
            return "thrown"
        if self._deadline is not None:
            return "grace"
        return None if self.strongest is None else "seen"

    def stack(self) -> str:
        """The Python stack of the job's greenlet, as `traceback` prints it; "" without one.

        Reads source files: not for the hub.
        """
        return _stack_of(self.greenlet)

    # -- for the rest of the core -----------------------------------------------------------

    def adopt(self, greenlet: typing.Any) -> None:
        """A greenlet of the spawn tree was started."""
        if self.ended:
            return
        if self._family is None:
            self._family = tree.Family()
        self._family.add(greenlet)

    def family(self) -> list[typing.Any]:
        """The living greenlets of the spawn tree."""
        return [] if self._family is None else list(self._family)

    def request_in_force(self) -> Cancellation:
        """What `JobKilled` carries."""
        assert self.strongest is not None
        return self.strongest

    def shielded_until(self) -> float | None:
        """When the open shields' caps run out; `None` without an open shield."""
        token = self.token
        if token is None or token._extras is None or token._extras.guard is None:
            return None
        return token._extras.guard.until()

    def shield_entered(self) -> None:
        if self._ladder is not None:
            self._ladder.entered_shield()

    def shield_left(self) -> None:
        """Raises `JobKilled` if it fell due."""
        if self._ladder is not None:
            self._ladder.left_shield()

    def callbacks_running(self) -> bool:
        return self.token is not None and self.token._callbacks_running()

    def callback_ended(self) -> None:
        if self._ladder is not None and not self.ended:
            self._ladder.poke()

    def threw(self, *, first: bool) -> None:
        """The ladder throws now."""
        self._thrown = True
        if first:
            self._observer.thrown(self)

    def became_stuck(self, greenlet: typing.Any = None) -> None:
        """A kill was swallowed, by the job or by a `greenlet` that it must wait for."""
        if not self._stuck:
            self._stuck = True
            tree.apart(self._report_stuck, greenlet or self.greenlet, name="geventq-stuck")

    # -- inside ---------------------------------------------------------------------------

    def _take(self, cancellation: Cancellation, grace: float) -> bool:
        before = self.strongest
        now = clock.monotonic()
        if before is None:
            merged, stronger = cancellation, True
            self.requested_monotonic = now
        else:
            merged = before.merged(cancellation)
            stronger = merged is not before
        if merged.hard and (cancellation.hard or cancellation.kind == "lock_lost"):
            deadline = now + grace
            earlier = self._deadline is None or deadline < self._deadline
            if earlier and not self._thrown:
                self._deadline = deadline
                stronger = True
        if not stronger:
            return False
        self.strongest = merged
        if before is None and self.token is not None:
            self.token._accept(cancellation)
        self._observer.requested(self)
        if self._deadline is not None and self.greenlet is not None:
            self._climb()
        return True

    def _climb(self) -> None:
        assert self._deadline is not None
        ladder = self._ladder
        if ladder is None:
            self._ladder = Ladder(self, self._hub.loop, self._deadline)
        elif not ladder.throws and self._deadline < ladder.deadline:
            ladder.deadline = self._deadline
            ladder.poke()

    def _timed_out(self) -> None:
        """In the hub: the time limit has passed."""
        said = Cancellation.timed_out(self._timeout)
        self.request(said, hard=self._hard or self.token is None, kill_after=None)

    def _report_stuck(self, greenlet: typing.Any) -> None:
        """In a greenlet, because a stack is read from files."""
        self._observer.stuck(self, _stack_of(greenlet))


def _stack_of(greenlet: typing.Any) -> str:
    if greenlet is None:
        return ""
    frame = sys._getframe(1) if greenlet is getcurrent() else greenlet.gr_frame
    return "" if frame is None else "".join(traceback.format_stack(frame))
