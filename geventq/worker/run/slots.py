"""The attempts that occupy a slot: in the processor, or about to be.

Finds them by lock token and by job id, asks them to stop, and counts what is free.  Knows neither
Redis nor listeners; everything runs in the worker's hub and never yields.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from geventq.cancellation import Attempt, Cancellation
    from geventq.worker.run.execution import Execution

__all__ = ["Slots"]


class Slots:
    """The runs of one worker, in the order in which they were taken.

    `stuck` counts those among them that are alive although they were killed: each opens a
    replacement slot (cancellation.md 2.10).
    """

    def __init__(self) -> None:
        self.stuck = 0
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
        if execution.attempt.is_stuck:
            self.stuck -= 1
        if not self._by_lock:
            self._overtaken = False

    def of(self, attempt: Attempt) -> Execution | None:
        """The run that `attempt` belongs to, if it still has its slot."""
        return next((run for run in self._by_lock.values() if run.attempt is attempt), None)

    def cancel(
        self, job_id: str | None, asked: Cancellation, hard: bool | None, kill_after: float | None
    ) -> int:
        """Ask the runs of one job, or all; how many requests took effect."""
        if job_id is not None and not self._overtaken:
            found = self._by_id.get(job_id)
            if found is None:
                return 0
            return int(found.attempt.request(asked, hard=hard, kill_after=kill_after))
        return sum(
            run.attempt.request(asked, hard=hard, kill_after=kill_after)
            for run in self
            if job_id is None or run.job_id == job_id
        )

    def clear(self) -> None:
        """Forget them all, in a forked child."""
        self._by_lock.clear()
        self._by_id.clear()
