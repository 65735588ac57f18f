"""One job, and what can be done with it; what its hash says is `geventq.job_hash`'s.

Must not know Redis: every effect goes through the `JobStore` that made the job, and what concerns
a running attempt through its `JobOwner`.  No greenlets run here.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.cancel_request import DEFAULTS as CANCEL_DEFAULTS
from geventq.cancel_request import CancelOptions, CancelResult, Request
from geventq.checks import (
    Seconds,
    check_choice,
    check_duration,
    check_flag,
    check_integer,
    check_seconds,
    check_text,
    milliseconds,
    show,
)
from geventq.errors import GeventqError, LockLostError
from geventq.foreign import times_in
from geventq.job_hash import UNREAD, Fields, JobHash
from geventq.large import encode_in_turns
from geventq.options import MAX_PRIORITY
from geventq.signatures import takes

__all__ = ["STATES", "Job", "JobOwner", "JobStore", "Life", "Move"]

STATES: typing.Final = {
    "active": "active",
    "waiting": "wait",
    "completed": "completed",
    "delayed": "delayed",
    "failed": "failed",
    "prioritized": "prioritized",
    "waiting-children": "waiting_children",
}
"""State -> the attribute of `QueueKeys` that holds its jobs, in the order of counts.lua."""

Move = typing.Literal["completed", "failed", "delayed", "waiting"]  # by `Job.move_to_...`


class Life(typing.NamedTuple):
    """What tells a job from another one with the same id, before it or after it."""

    timestamp: bytes | None
    """As its hash says it; never changed."""
    added: tuple[bytes, bytes] | None = None
    """The entries of the event stream between which it was added, if that is known."""


class JobStore(typing.Protocol):
    """What a job needs of the place where it is stored (`geventq.store.queue_store.QueueStore`).

    Texts go in encoded, times in milliseconds.  Every method yields to the hub.
    """

    @property
    def queue_name(self) -> str: ...
    @property
    def home(self) -> object: ...
    def read(self, job_id: str) -> Job | None: ...
    def state(self, job_id: str) -> str: ...
    def update_progress(self, job_id: str, progress: bytes, lock_token: str) -> None: ...
    def update_data(self, job_id: str, data: bytes, lock_token: str) -> None: ...
    def log(self, job_id: str, row: bytes, keep: int, lock_token: str) -> int: ...
    def clear_logs(self, job_id: str, keep: int) -> None: ...
    def retry(self, job_id: str, state: str, reset_made: bool, reset_started: bool) -> None: ...
    def remove(self, job_id: str) -> bool: ...
    def promote(self, job_id: str) -> None: ...
    def change_delay(self, job_id: str, delay: int | float) -> None: ...
    def change_priority(self, job_id: str, priority: int, lifo: bool) -> None: ...
    def extend_lock(self, job_id: str, lock_token: str, duration: int) -> None: ...
    def wait_until_finished(self, job_id: str, life: Life, timeout: float | None) -> typing.Any: ...
    def cancel(self, request: Request, job_ids: typing.Sequence[str]) -> list[CancelResult]: ...


class JobOwner(typing.Protocol):
    """The run of a job in a worker, as far as the job object needs it."""

    @property
    def lock_token(self) -> str:
        """Proves to the scripts that this run still owns the job."""

    def progressed(self, job: Job, value: typing.Any) -> None:
        """`update_progress` was carried out."""

    def lock_extended(
        self, job: Job, sent_at: float, seconds: float, *, surely: bool = True
    ) -> None:
        """`extend_lock` was sent at `sent_at` (monotonic) and carried out, or, unless `surely`,
        may have been."""

    def settle_by_hand(self, job: Job, move: Move, value: typing.Any) -> None:
        """Carry out a ``move_to_...``: `value` is the result (encoded JSON), the error, or the
        seconds of delay.  Raises `GeventqError` for a job that the worker settles itself."""


# What a retry by hand takes away (wire-format 9.18).
_END_FIELDS: typing.Final = (
    *(b"finishedOn", b"processedOn", b"failedReason", b"returnvalue"),
    *(b"stc", b"gqc", b"gqe"),
)


class Job(JobHash):
    """A job as it was when it was read; ask again with `Queue.get_job` for how it is now.

    Times are seconds; `timestamp`, `processed_on` and `finished_on` are seconds since the
    epoch.  `was_added` is `False` where `Queue.add` answered a job whose id was known: it shows
    what is stored, and nothing was added.

    Reading attributes never yields; every method yields to the hub and raises
    `GeventqError` (and writes nothing) when the job is gone or in another state.
    """

    __slots__ = ("__weakref__", "_added", "_discarded", "_owner", "_store", "was_added")

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        fields: Fields,
        *,
        added: tuple[bytes, bytes] | None = None,
        was_added: bool = True,
    ) -> None:
        self.id = job_id
        self._fields = fields
        self._data = UNREAD
        self.was_added = was_added
        self._store = store
        self._added = added  # see `Life.added`
        self._owner: JobOwner | None = None  # the run that may write, while one has it
        self._discarded = False

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name!r} of {self.queue_name!r}>"

    @property
    def queue_name(self) -> str:
        return self._store.queue_name

    @property
    def discarded(self) -> bool:
        """Whether `discard` was called on this object."""
        return self._discarded

    # -- for the worker that runs it -----------------------------------------------------

    def owned_by(self, owner: JobOwner | None) -> None:
        """From now on `owner` answers for this job; with `None` it is as one read by
        `Queue.get_job`."""
        self._owner = owner

    # -- what a processor does with its job ----------------------------------------------

    def update_progress(self, value: typing.Any) -> None:
        """Store `value` (any JSON) as the progress and tell those who listen.

        Raises `LockLostError` when this attempt no longer owns the job.
        """
        text = encode_in_turns("progress", value)
        self._store.update_progress(self.id, text, self._lock_token)
        self.changed({b"progress": text})
        if self._owner is not None:
            self._owner.progressed(self, value)

    def update_data(self, data: typing.Any) -> None:
        """Replace the payload.  Raises `LockLostError` as `update_progress`."""
        text = encode_in_turns("data", data)
        self._store.update_data(self.id, text, self._lock_token)
        self.changed({b"data": text})

    def log(self, row: str) -> int:
        """Append a row to the job's log and return how many are kept (option `keep_logs`).
        Raises `LockLostError` as `update_progress`."""
        encoded = check_text("row", row).encode()
        keep = int(times_in(self.wire_options.get("kl"), 2**53) or 0)
        return self._store.log(self.id, encoded, keep, self._lock_token)

    def clear_logs(self, keep: int = 0) -> None:
        """Delete the log but for its last `keep` rows."""
        check_integer("keep", keep, 0)
        self._store.clear_logs(self.id, keep)

    def discard(self) -> None:
        """If the running attempt fails, fail the job for good.  Does not yield."""
        self._discarded = True

    def extend_lock(self, seconds: Seconds) -> None:
        """Make the lock live `seconds` from now.  Raises `LockLostError` if it is gone or
        another's, `GeventqError` for a job that no worker of this process runs."""
        duration = check_duration("seconds", seconds)
        owner = self._owned("extend_lock")
        sent_at = clock.monotonic()
        try:
            self._store.extend_lock(self.id, owner.lock_token, max(1, int(duration * 1000)))
        except LockLostError:
            raise
        except BaseException:  # the answer was lost, or this greenlet was killed in mid-call
            owner.lock_extended(self, sent_at, duration, surely=False)
            raise
        owner.lock_extended(self, sent_at, duration)

    # -- for jobs that were taken by hand ------------------------------------------------

    def move_to_completed(self, result: typing.Any = None) -> None:
        """Complete a job that was taken with `Worker.get_next_job`."""
        text = encode_in_turns("result", result)
        self._owned("move_to_completed").settle_by_hand(self, "completed", text)

    def move_to_failed(self, error: BaseException | str) -> None:
        """Fail such a job by its retry rules, as if its processor had raised `error`."""
        if isinstance(error, str):
            error = GeventqError(error)
        if not isinstance(error, BaseException):
            raise TypeError(f"error: an exception or text is needed, got {show(error)}")
        self._owned("move_to_failed").settle_by_hand(self, "failed", error)

    def move_to_delayed(self, seconds: Seconds) -> None:
        """Put such a job into *delayed* for `seconds`; the attempt is not counted."""
        delay = check_seconds("seconds", seconds)
        self._owned("move_to_delayed").settle_by_hand(self, "delayed", delay)

    def move_to_wait(self, token: str | None = None) -> None:
        """Put such a job back to the front of *waiting*; the attempt is not counted.  `token`,
        if given, has to be the lock token that it was taken with."""
        owner = self._owned("move_to_wait")
        if token is not None and token != owner.lock_token:
            raise GeventqError(f"job {self.id} was taken with another lock token")
        owner.settle_by_hand(self, "waiting", None)

    @property
    def _lock_token(self) -> str:
        return "" if self._owner is None else self._owner.lock_token

    def _owned(self, method: str) -> JobOwner:
        if self._owner is None:
            raise GeventqError(f"{method}: job {self.id} was not taken by a worker here")
        return self._owner

    # -- what anybody does with a job ----------------------------------------------------

    def get_state(self) -> str:
        """Where the job is now: ``waiting``, ``active``, ``prioritized``, ``delayed``,
        ``waiting-children``, ``completed``, ``failed`` or ``unknown``."""
        return self._store.state(self.id)

    def is_completed(self) -> bool:
        return self.get_state() == "completed"

    def is_failed(self) -> bool:
        return self.get_state() == "failed"

    def is_active(self) -> bool:
        return self.get_state() == "active"

    def is_waiting(self) -> bool:
        return self.get_state() == "waiting"

    def is_delayed(self) -> bool:
        return self.get_state() == "delayed"

    def is_waiting_children(self) -> bool:
        return self.get_state() == "waiting-children"

    def retry(
        self,
        state: typing.Literal["failed", "completed"] = "failed",
        *,
        reset_attempts_made: bool = False,
        reset_attempts_started: bool = False,
    ) -> None:
        """Run a finished job again.  `state` is where it is: ``failed`` or ``completed``."""
        check_choice("state", state, ("failed", "completed"))
        check_flag("reset_attempts_made", reset_attempts_made)
        check_flag("reset_attempts_started", reset_attempts_started)
        self._store.retry(self.id, state, reset_attempts_made, reset_attempts_started)
        gone = [*_END_FIELDS, *[b"atm"] * reset_attempts_made, *[b"ats"] * reset_attempts_started]
        self.changed(dict.fromkeys(gone))

    def remove(self) -> bool:
        """Delete the job.  `False`: it is running (or a scheduler's), and stays."""
        return self._store.remove(self.id)

    @takes(CancelOptions, CANCEL_DEFAULTS)
    def cancel(
        self, reason: typing.Any = None, **options: typing.Unpack[CancelOptions]
    ) -> CancelResult:
        """Cancel the job in whatever state it is, as `Queue.cancel_job`."""
        return self._store.cancel(Request(reason, **options), [self.id])[0]

    def promote(self) -> None:
        """Let a delayed job run now."""
        self._store.promote(self.id)
        self.changed({b"delay": b"0"})

    def change_delay(self, seconds: Seconds) -> None:
        """Let a delayed job run in `seconds` from now."""
        delay = milliseconds(check_seconds("seconds", seconds))
        self._store.change_delay(self.id, delay)
        self.changed({b"delay": str(delay).encode()})

    def change_priority(self, priority: int, lifo: bool = False) -> None:
        """Give the job another priority: 0 is none, then lower runs first.  `lifo` puts it in
        front of its equals."""
        check_integer("priority", priority, 0, MAX_PRIORITY)
        self._store.change_priority(self.id, priority, check_flag("lifo", lifo))
        self.changed({b"priority": str(priority).encode()})

    def wait_until_finished(self, timeout: Seconds | None = None) -> typing.Any:
        """Wait for the job's end and return its result, also of a job that is not kept.

        Raises `GeventqError` with the failed reason, and `gevent.Timeout` after `timeout`
        seconds; 0 is one look at what is there.
        """
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        life = Life(self._fields.get(b"timestamp"), self._added)
        return self._store.wait_until_finished(self.id, life, seconds)
