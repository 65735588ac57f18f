"""One attempt of one job in this worker, from its take until its outcome is settled.

Owns what the worker knows of the attempt, and what the job object may ask of it.  Does not know
Redis, nor who runs it; no greenlets run here.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.cancellation import Attempt, AttemptObserver
from geventq.errors import GeventqError

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.worker.processor import Route
    from geventq.worker.run.policy import RunPolicy

__all__ = ["Execution", "Heard", "Overseer", "Take"]


class Overseer(AttemptObserver, typing.Protocol):
    """Who is told what a run does while it lasts: the worker, or who takes jobs by hand."""

    def progressed(self, job: Job, value: typing.Any) -> None:
        """The job has updated its progress."""

    def lock_extended(
        self, execution: Execution, sent_at: float, seconds: float, *, surely: bool
    ) -> None:
        """The job has made its lock live `seconds` from `sent_at` (monotonic), or, unless
        `surely`, may have."""


class Heard:
    """The requests to cancel that an attempt was told of from elsewhere."""

    __slots__ = ("nonces", "proven", "record", "refused", "seen_at", "stopped_at", "waiting")

    def __init__(self) -> None:
        #: Of all of them; ``"*"``: what is recorded cannot be read, and is not heeded.
        self.nonces: set[str] = set()
        #: Of those whose signature was found right, by a worker with a secret.
        self.proven: set[str] = set()
        #: Of those that asked for a kill, and were not signed.
        self.refused: list[str] = []
        #: The last one that such a worker has read.
        self.record = b""
        #: Of those whose callers wait: they are told of each stage (5.4).
        self.waiting: list[str] = []
        #: When the first one was seen (monotonic).
        self.seen_at = 0.0
        #: When the processor had ended (monotonic); 0 before.
        self.stopped_at = 0.0


class Take(typing.NamedTuple):
    """The call by which jobs are ours."""

    sent_at: float
    """On the monotonic clock."""
    taken_ms: bytes | None
    """What it has said that the time is, as hashes have it; `None` for one that has found jobs
    after the answer to their take was lost."""
    place: str = ""
    """Sorts calls in the order in which the server has carried them out."""
    requests: int = -1
    """The queue's count of requests to cancel, as it has told it; -1: it has not."""
    numbers: tuple[int, ...] = ()
    """The first lock token's number of the call; of one that has found jobs, those of all calls
    whose answers were lost."""


class Execution:
    """One attempt of one job in this worker."""

    __slots__ = (
        "attempt",
        "attempts_made",
        "attempts_started",
        "heard",
        "job",
        "job_id",
        "lock_token",
        "max_started",
        "outcome",
        "overseer",
        "policy",
        "renewed_at",
        "route",
        "stalls",
        "stamped_at",
        "take",
        "told",
        "unrunnable",
    )

    def __init__(
        self,
        job: Job,
        lock_token: str,
        attempt: Attempt,
        policy: RunPolicy,
        counters: tuple[int, int, int],
        take: Take,
        overseer: Overseer,
        max_started: int | None,
    ) -> None:
        #: There until `over`.  The two refer to each other as long as this one owns the job.
        self.job = job
        self.job_id = job.id
        #: Proves that the job is this attempt's; no other attempt ever has the same.
        self.lock_token = lock_token
        self.attempt = attempt
        self.policy = policy
        self.take = take
        #: When the lock was last asked for with success, on the monotonic clock: it cannot have
        #: expired before ``renewed_at + lock_duration`` (3.3).
        self.renewed_at = take.sent_at
        #: When `renewed_at` was last set.
        self.stamped_at = take.sent_at
        #: The job's counters as this attempt found them; `attempts_started` counts this one.
        #: An outcome that is sent again is recognised by them (3.6), so they never change.
        self.attempts_made, self.attempts_started, self.stalls = counters
        self.max_started = max_started  # the worker's ``max_started_attempts``
        self.overseer = overseer
        #: What runs the job; there once it is admitted.
        self.route: Route
        #: Why the job fails without running; `None` for one that may run.
        self.unrunnable: str | None = None
        #: What was asked of it from elsewhere, made with the first request: something is recorded
        #: with the job, and its outcome clears it (4.4).
        self.heard: Heard | None = None
        #: How the attempt ended, or ends without having begun: an `Outcome`, which is on its way
        #: to Redis until `over`.
        self.outcome: typing.Any = None
        #: Listeners know how this attempt ended: they hear it once.
        self.told = False

    # -- what the job object asks of its run (`geventq.job.JobOwner`) ------------------------

    def progressed(self, job: Job, value: typing.Any) -> None:
        """`update_progress` was carried out."""
        self.overseer.progressed(job, value)

    def lock_extended(
        self, job: Job, sent_at: float, seconds: float, *, surely: bool = True
    ) -> None:
        """The lock lives `seconds` from `sent_at`, or may."""
        self.overseer.lock_extended(self, sent_at, seconds, surely=surely)

    def stamp(self, stamp: float, sent_at: float) -> None:
        """The lock lives as one that was renewed at `stamp`, as the answer says to a call that
        was sent at `sent_at` (both monotonic).

        Where another answer has come since then, nobody knows which of the two calls the server
        carried out last: the earlier stamp holds, which it has surely been told.
        """
        crossed = sent_at <= self.stamped_at
        self.renewed_at = min(stamp, self.renewed_at) if crossed else stamp
        self.stamped_at = clock.monotonic()

    def settle_by_hand(self, job: Job, move: str, value: typing.Any) -> None:
        """Refused: the worker settles what it runs."""
        raise _settled_by_worker(job)

    def disown(self) -> list[typing.Any]:
        """In a forked child: the job is the parent's to write to and to stop (7.5).  Returns the
        run's greenlets, which are not ended."""
        self.job.owned_by(_Parent(self.job_id))
        return self.attempt.disown()

    def over(self) -> None:
        """Nobody asks for the job or the outcome any more.  Breaks the cycles, so that all of a
        run dies with it, without the collector."""
        del self.job
        self.outcome = None
        if self.heard is not None:
            self.attempt.on_stage = None

    @property
    def settling(self) -> bool:
        """Whether its outcome is on its way."""
        return self.outcome is not None

    @property
    def is_over(self) -> bool:
        """Whether `over` was called."""
        return not hasattr(self, "job")

    @property
    def turn(self) -> str:
        """Sorts the jobs of a worker in the order of their takes: by the call, and within one by
        the number in the lock token."""
        number = self.lock_token.rpartition(":")[2]
        return f"{self.take.place}:{number:0>12}"

    def started_too_often(self) -> bool:
        """Whether the worker's ``max_started_attempts`` forbids another run."""
        return self.max_started is not None and self.attempts_started >= self.max_started


class _Parent:
    """The owner of a job that the parent of this process runs."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    @property
    def lock_token(self) -> str:
        raise GeventqError(f"job {self._job_id} runs in the process that this one was forked from")

    def progressed(self, job: Job, value: typing.Any) -> None:
        """Never: it needs the lock token."""

    def lock_extended(
        self, job: Job, sent_at: float, seconds: float, *, surely: bool = True
    ) -> None:
        """Never, as well."""

    def settle_by_hand(self, job: Job, move: str, value: typing.Any) -> None:
        """Refused, here too."""
        raise _settled_by_worker(job)


def _settled_by_worker(job: Job) -> GeventqError:
    return GeventqError(f"job {job.id} runs in a worker, which settles it itself")
