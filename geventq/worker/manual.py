"""Jobs that a program takes and settles itself: `Worker.get_next_job`, ``Job.move_to_...``.

Such a job is locked with the caller's lock token for `lock_duration`; nobody renews, counts,
cancels or gives it back.  Owns a client, made at the first take, and no greenlets.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing
import weakref

from geventq import clock
from geventq.cancellation import Attempt
from geventq.errors import (
    GeventqError,
    JobCancelled,
    LockLostError,
    RedisUnavailableError,
    UnrecoverableError,
)
from geventq.store.client import Client, checked, pack
from geventq.store.queue_store import QueueStore
from geventq.worker.run import outcome as outcomes
from geventq.worker.run.admission import Admission, Take
from geventq.worker.run.decide import decide
from geventq.worker.run.execution import Execution
from geventq.worker.run.settle_call import LOCK_GONE, OURS, SettleCall, refusal

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.store.client import Endpoint
    from geventq.store.connection import Connection
    from geventq.store.keys import QueueKeys
    from geventq.worker.settings import WorkerOptions

__all__ = ["ManualJobs"]

_GRACE: typing.Final = 5.0  # seconds past its own wait that the server may take (3.6)
_TRIES: typing.Final = 3  # of an outcome whose answer was lost (3.6)


class _Held(Execution):
    """A job that was taken by hand: it runs wherever its taker likes."""

    __slots__ = ("__weakref__",)

    overseer: ManualJobs

    def lock_extended(
        self, job: Job, sent_at: float, seconds: float, *, surely: bool = True
    ) -> None:
        """Its taker keeps the time."""

    def settle_by_hand(self, job: Job, move: str, value: typing.Any) -> None:
        self.overseer.settle(self, _decided(self, move, value, self.overseer.options))


class ManualJobs:
    """Takes jobs one by one for their callers.  Every method yields to the hub."""

    def __init__(
        self,
        endpoint: Endpoint,
        keys: QueueKeys,
        options: WorkerOptions,
        *,
        worker_name: str,
        tell: typing.Callable[..., None],
    ) -> None:
        self.options = options
        self._client = Client(endpoint)
        self._marker = keys.marker
        self._tell = tell
        self._exchange = SettleCall(
            self._client, keys, lock_duration=options.lock_duration, worker_name=worker_name
        )
        self._store = store = QueueStore(self._client, keys)
        self._admission = Admission(
            store, options, worker_name=worker_name, with_token=False, overseer=self
        )
        self._lost: set[str] = set()  # lock tokens of takes whose answer was lost
        self._waits: set[Connection] = set()  # of those that wait, of whatever native thread
        self._is_closed = False
        self._handed_out: weakref.WeakSet[_Held] = weakref.WeakSet()

    def take(self, lock_token: str) -> Job | None:
        """The next job that may run, locked with `lock_token`; `None` if there is none now.

        What may not run (a broken hash, a recorded request, a deferred failure) is settled here
        instead of being handed out.  Raises `RedisUnavailableError`; if it was the answer that
        was lost, the next call with the same lock token finds the job that was taken then.
        """
        while True:
            execution = self._take_again(lock_token) or self._take(lock_token)
            if execution is None:
                return None
            unrun = self._unrun(execution)
            if unrun is None:
                self._handed_out.add(execution)
                return execution.job
            self._settle_unrun(execution, unrun)

    def wait(self, seconds: float) -> bool:
        """Wait until there may be a job, `seconds` at most; `False` if it was closed meanwhile."""
        connection = self._client.open_connection()
        self._waits.add(connection)
        try:
            if not self._is_closed:
                payload = pack(("BZPOPMIN", self._marker, f"{seconds:.3f}"))
                checked(connection.call(payload, 1, seconds + _GRACE))
        except RedisUnavailableError:
            if not self._is_closed:  # else it was `close` that ended the call
                raise
        finally:
            self._waits.discard(connection)
            connection.close()
        return not self._is_closed

    def settle(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        """Send one outcome.  Raises `LockLostError` if the job is not its taker's any more, and
        `GeventqError` if it is gone or refused; then nothing was written."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                code = self._exchange.settle([(execution, outcome)]).codes[0]
                break
            except RedisUnavailableError as error:
                if not left:
                    raise
                if error.may_be_done:
                    outcome.send_again(execution)
        if code in OURS:
            return
        text = refusal(execution.job_id, code)
        raise LockLostError(text) if code in LOCK_GONE else GeventqError(text)

    def close(self) -> None:
        """Close the connections, and end `wait`.  Jobs in hand stay locked until their locks
        lapse."""
        self._is_closed = True
        for connection in list(self._waits):
            connection.close()
        self._store.close()

    def _take(self, lock_token: str) -> _Held | None:
        while True:
            sent_at = clock.monotonic()
            try:
                reply = self._exchange.settle((), 1, lock_token)
            except RedisUnavailableError as error:
                if error.may_be_done:
                    self._lost.add(lock_token)
                raise
            for job_id, why in reply.broken:
                self._tell("error", GeventqError(f"job {job_id} was skipped: {why}"))
            if reply.jobs:
                return self._admission.execution(
                    reply.jobs[0], _Held, Take(sent_at, reply.taken_ms)
                )
            if not reply.broken:
                return None

    def _take_again(self, lock_token: str) -> _Held | None:
        """The job that an earlier call took whose answer was lost."""
        if lock_token not in self._lost:
            return None
        sent_at = clock.monotonic()
        jobs = self._exchange.recover(lock_token)
        known = {held.job_id for held in self._handed_out if held.lock_token == lock_token}
        missed = [taken for taken in jobs if taken[0] not in known]
        if len(missed) <= 1:
            self._lost.discard(lock_token)
        if not missed:
            return None
        return self._admission.execution(missed[0], _Held, Take(sent_at, None))

    def _unrun(self, execution: Execution) -> outcomes.Outcome | None:
        """The outcome of a job that may not run; `None` for one that may."""
        request = execution.attempt.strongest
        error: BaseException
        if execution.unrunnable is not None:
            error = UnrecoverableError(execution.unrunnable)
        elif request is not None:
            error = JobCancelled(request)
        else:
            return None
        strategies = self.options.backoff_strategies
        return decide(execution, None, error, clock.wall_ms(), strategies)

    def _settle_unrun(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        try:
            self.settle(execution, outcome)
        except RedisUnavailableError:
            raise
        except GeventqError as error:
            self._tell("error", error)

    # -- the `Overseer` of executions that do not run here -------------------------------

    def progressed(self, job: Job, value: object) -> None:
        """A job in hand updated its progress."""
        self._tell("progress", job, value)

    def lock_extended(
        self, execution: Execution, sent_at: float, seconds: float, *, surely: bool
    ) -> None:
        """Its taker keeps the time."""

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """Never."""


def _decided(
    execution: Execution, what: str, value: typing.Any, options: WorkerOptions
) -> outcomes.Outcome:
    """The outcome of one ``move_to_...`` (`geventq.job.JobOwner.settle_by_hand`)."""
    now_ms = clock.wall_ms()
    if what == "completed":
        return outcomes.completion(execution, value, now_ms)
    if what == "failed":
        return outcomes.failure(execution, value, now_ms, options.backoff_strategies)
    return outcomes.move(execution, now_ms, value if what == "delayed" else None)
