"""What a worker holds and runs, and how many more jobs it would take.

Finds attempts by lock token and by job id, asks them to stop, and counts what is free.  Knows
neither Redis nor listeners; everything runs in the worker's hub and never yields.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.cancellation import request_all

if typing.TYPE_CHECKING:
    from geventq.cancellation import Attempt, Cancellation
    from geventq.worker.run.execution import Execution

__all__ = ["Running", "Slots"]


class Slots:
    """The executions of one worker, and its limits.

    An execution enters `held` when its job is taken, and leaves it when its outcome is in Redis,
    or when its lock is given up.  It enters `running` when it gets a slot, and leaves it when its
    processor has ended.  So one whose outcome is on its way is held only, and one that lost its
    lock, or is stuck, is running only.
    """

    def __init__(self, concurrency: int, *, is_paused: bool) -> None:
        self.concurrency = concurrency  # how many jobs run at once
        self.is_paused = is_paused
        self.is_open = True  # `False` from the beginning of the close on
        self.is_held_back = False  # the listeners are too far behind to hear of more jobs
        #: By lock token.  The lock of each is renewed as long as it is in here.
        self.held: dict[str, Execution] = {}
        self.running = Running()
        self._limited_until = 0.0  # on the monotonic clock; 0 before the first limit

    def free(self) -> int:
        """How many more jobs would run now; 0 or less if none."""
        if not self.is_open or self.is_paused or self.is_held_back:
            return 0
        if self._limited_until and clock.monotonic() < self._limited_until:
            return 0
        return self.running.free(self.concurrency)

    @property
    def are_all_stuck(self) -> bool:
        """Whether stuck runs hold every slot, their replacements too: none becomes free again
        until one of them ends after all."""
        stuck = self.running.stuck
        return stuck == len(self.running) and self.running.free(self.concurrency) <= 0

    @property
    def takes(self) -> bool:
        """Whether the worker takes jobs: it is neither paused nor closing."""
        return self.is_open and not self.is_paused

    def limit(self, seconds: float) -> None:
        """Take nothing for `seconds` from now; a longer limit that is there already stays."""
        self._limited_until = max(self._limited_until, clock.monotonic() + seconds)

    def limited_for(self) -> float:
        """Seconds that the limit still lasts; 0 without one."""
        return max(0.0, self._limited_until - clock.monotonic())

    def disown(self) -> list[typing.Any]:
        """In a forked child: all of them are the parent's (7.5).  Returns their greenlets."""
        self.is_open = False
        greenlets: list[typing.Any] = []
        for execution in {*self.held.values(), *self.running}:
            greenlets += execution.disown()
        self.held.clear()
        self.running.clear()
        return greenlets


class Running:
    """The runs of one worker, in the order in which they were taken.

    Invariant: `stuck` counts those in here that are alive although they were killed.  Each of
    them opens a replacement slot (cancellation.md 2.10).
    """

    def __init__(self) -> None:
        self.stuck = 0
        self.ended = 0  # how many have left
        #: Called by `changed`.  Must not yield.
        self.notice: typing.Callable[[], object] | None = None
        self._by_lock: dict[str, Execution] = {}
        self._by_id: dict[str, Execution] = {}  # the newest run of each job
        self._overtaken = False  # an older run of a job went on: look at all of them

    def __len__(self) -> int:
        return len(self._by_lock)

    def __iter__(self) -> typing.Iterator[Execution]:
        return iter(list(self._by_lock.values()))

    def __contains__(self, lock_token: str) -> bool:
        return lock_token in self._by_lock

    def free(self, concurrency: int) -> int:
        """Free slots out of `concurrency`; at most as many again replace stuck runs."""
        return concurrency + min(self.stuck, concurrency) - len(self._by_lock)

    def add(self, execution: Execution) -> None:
        """Give the job a slot."""
        job_id = execution.job_id
        self._by_lock[execution.lock_token] = execution
        if job_id in self._by_id:
            self._overtaken = True
        self._by_id[job_id] = execution

    def leave(self, execution: Execution) -> None:
        """The processor runs no more: its slot is free.  Nothing happens if it had none."""
        if self._by_id.get(execution.job_id) is execution:
            del self._by_id[execution.job_id]
        if self._by_lock.pop(execution.lock_token, None) is None:
            return
        self.ended += 1
        if execution.attempt.is_stuck:
            self.stuck -= 1
        if not self._by_lock:
            self._overtaken = False
        if self.notice is not None:
            self.notice()

    def changed(self) -> None:
        """A run has left, or has become stuck."""
        if self.notice is not None:
            self.notice()

    def of(self, attempt: Attempt) -> Execution | None:
        """The run that `attempt` belongs to, if it still has its slot."""
        return next((run for run in self._by_lock.values() if run.attempt is attempt), None)

    def find(self, job_id: str) -> list[Execution]:
        """The runs of one job."""
        if self._overtaken:
            return [run for run in self if run.job_id == job_id]
        found = self._by_id.get(job_id)
        return [] if found is None else [found]

    def cancel(
        self,
        job_id: str | None,
        request: Cancellation,
        hard: bool | None,
        kill_after: float | None,
    ) -> int:
        """Ask the runs of one job, or all; how many requests took effect."""
        if job_id is not None and not self._overtaken:
            found = self._by_id.get(job_id)
            if found is None:
                return 0
            return int(found.attempt.request(request, hard=hard, kill_after=kill_after))
        asked = [run.attempt for run in self if job_id is None or run.job_id == job_id]
        return request_all(asked, request, hard=hard, kill_after=kill_after)

    def clear(self) -> None:
        """Forget them all, in a forked child."""
        self._by_lock.clear()
        self._by_id.clear()
