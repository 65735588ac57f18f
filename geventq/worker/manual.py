"""Jobs that a program takes and settles itself: `Worker.get_next_job`, ``Job.move_to_...``.

Such a job is locked with the caller's lock token for `lock_duration`; nobody renews, counts,
cancels or gives it back.  Owns a client, made at the first take, and no greenlets.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing
import weakref

import gevent
from gevent import get_hub

from geventq import clock, wakeups
from geventq.cancellation import Attempt
from geventq.errors import (
    GeventqError,
    JobCancelled,
    LockLostError,
    RedisUnavailableError,
    UnrecoverableError,
)
from geventq.store.blocking import BlockingConnection
from geventq.store.client import Client
from geventq.store.limits import is_thrown, within
from geventq.store.queue_store import QueueStore
from geventq.worker.marker import Marker
from geventq.worker.processor import Routes
from geventq.worker.run import outcome as outcomes
from geventq.worker.run.admission import Admission, Take
from geventq.worker.run.decide import decide, decide_again
from geventq.worker.run.execution import Execution
from geventq.worker.run.hearing import answer_late
from geventq.worker.run.settle_call import LOCK_GONE, OURS, Code, SettleCall, Unheard, refusal

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.store.client import Endpoint
    from geventq.store.keys import QueueKeys
    from geventq.worker.settings import WorkerOptions

__all__ = ["ManualJobs"]

_FIRST_PAUSE: typing.Final = 0.05  # seconds between tries in an outage; doubles
_LONGEST_PAUSE: typing.Final = 1.0
_LATE: typing.Final = 0.25  # seconds past its own wait that the server may take
_LAST_LOOK: typing.Final = 1.0  # seconds at least, however little time is left
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


class _News:
    """Waits for markers, for all who want a job in one hub, on one connection: one of them asks,
    and when he is answered all look.  A marker for a later time is waited for in turn.

    A marker wakes one worker only: who may have popped one and leaves without a look, as he is
    killed, owes the others one."""

    def __init__(self, client: Client, marker: Marker) -> None:
        self._marker = marker
        self._connection = BlockingConnection(client)
        self._is_asked = False
        self._come = wakeups.Event()  # another one after each answer
        self._due_ms = 0  # of a marker that was popped before its time (0: of none)
        self._owes_a_look = False  # a marker may have been popped since the last one
        self.waiters = 0

    def wait(self, seconds: float) -> None:
        """Wait until there may be a job, `seconds` at most.  Yields."""
        if self._is_asked:
            self._come.wait(seconds)
            return
        self._is_asked = True
        try:
            if self._due_ms:
                seconds = min(seconds, self._due_ms / 1000 - clock.wall())
            if seconds <= 0:
                self._due_ms, self._owes_a_look = 0, True  # it is looked for now
                return
            with within(seconds + _LATE, "Redis did not answer"):
                popped_ms = self._pop(seconds)
            if popped_ms is not None and popped_ms > clock.wall_ms():
                self._due_ms = min(self._due_ms or popped_ms, popped_ms)
        finally:
            self._is_asked = False
            come, self._come = self._come, wakeups.Event()
            come.set()

    def _pop(self, seconds: float) -> int | None:
        try:
            popped_ms = self._marker.pop(self._connection, seconds)
        except RedisUnavailableError as error:
            self._owes_a_look |= error.may_be_done
            raise
        except BaseException:  # killed, or out of time
            self._owes_a_look = True
            raise
        self._owes_a_look |= popped_ms is not None
        return popped_ms

    def looked(self) -> None:
        """One has looked for a job."""
        self._owes_a_look = False

    def leave(self) -> bool:
        """One waits no more; whether he is the last one, and nobody looks now, or when the job is
        due, for which a marker was popped."""
        self.waiters -= 1
        owes = not self.waiters and (self._owes_a_look or self._due_ms > clock.wall_ms())
        if owes:
            self._due_ms, self._owes_a_look = 0, False
        return owes

    def close(self) -> None:
        """End the wait.  From whatever native thread."""
        self._connection.close()


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
        self._client = Client(endpoint, max_connections=options.max_connections)
        self._marker = Marker(self._client, keys)
        self._tell = tell
        self._exchange = SettleCall(
            self._client, keys, lock_duration=options.lock_duration, worker_name=worker_name
        )
        self._store = store = QueueStore(self._client, keys, options.cancel_secret)
        self.home = store.home
        self._admission = Admission(
            store,
            options,
            worker_name=worker_name,
            routes=Routes(_taken_by_hand),
            all_tokens=False,
            overseer=self,
        )
        self._lost: set[str] = set()  # lock tokens of takes whose answer was lost
        self._due_ms = 0  # of the next delayed job, as the last take was told (0: there is none)
        self._is_closed = False
        self._news_of: weakref.WeakKeyDictionary[object, _News] = weakref.WeakKeyDictionary()
        self._handed_out: weakref.WeakSet[_Held] = weakref.WeakSet()

    def next(self, lock_token: str, deadline: float) -> Job | None:
        """The next job that may run, waited for until `deadline` on the monotonic clock, through
        outages, too; the last one is raised if nothing was heard since."""
        news = self._news()
        news.waiters += 1
        try:
            return self._next(news, lock_token, deadline)
        finally:
            if news.leave() and not self._is_closed:
                self._put_back()

    def _next(self, news: _News, lock_token: str, deadline: float) -> Job | None:
        pause, timeout = _FIRST_PAUSE, None
        while not self._is_closed:
            left = deadline - clock.monotonic()
            try:
                # Who waits for a moment only, or is woken in his last one, needs time for a look.
                job = self.take(lock_token, max(left, _LAST_LOOK) if left > 0 else timeout)
                news.looked()
                if job is not None or left <= 0:
                    return job
                timeout = _LAST_LOOK
                # Also without a marker: one may have been popped that never arrived here.
                due = self._due_ms / 1000 - clock.wall() if self._due_ms > 0 else left
                news.wait(min(left, due))
            except RedisUnavailableError as error:
                left = deadline - clock.monotonic()
                if left <= 0 or is_thrown(error):
                    raise
                gevent.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            except GeventqError:
                if not self._is_closed:
                    raise
        return None

    def take(self, lock_token: str, timeout: float | None = None) -> Job | None:
        """The next job that may run, locked with `lock_token`; `None` if there is none now.

        What may not run (a broken hash, a recorded request, a deferred failure) is settled here
        instead of being handed out.  Raises `RedisUnavailableError`; if it was the answer that
        was lost, the next call with the same lock token finds the job that was taken then.
        """
        while True:
            execution = self._take_again(lock_token, timeout) or self._take(lock_token, timeout)
            if execution is None:
                return None
            unrun = self._unrun(execution)
            if unrun is None:
                self._handed_out.add(execution)
                return execution.job
            self._settle_unrun(execution, unrun)

    def settle(self, execution: Execution, outcome: outcomes.Outcome) -> None:
        """Send one outcome.  Raises `LockLostError` if the job is not its taker's any more, and
        `GeventqError` if it is gone or refused; then nothing was written."""
        code = self._send(execution, outcome)
        while isinstance(code, Unheard):  # asked of it since it was taken (2.5)
            answer_late(execution, code.record)
            outcome = decide_again(execution, outcome, self.options.backoff_strategies)
            code = self._send(execution, outcome)
        if code in OURS:
            return
        text = refusal(execution.job_id, code)
        raise LockLostError(text) if code in LOCK_GONE else GeventqError(text)

    def _send(self, execution: Execution, outcome: outcomes.Outcome) -> Code:
        outcome.note_heard(execution)
        for left in range(_TRIES - 1, -1, -1):
            try:
                return self._exchange.settle([(execution, outcome)]).codes[0]
            except RedisUnavailableError as error:
                if not left or is_thrown(error):
                    raise
                if error.may_be_done:
                    outcome.send_again(execution)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connections; who waits for a job gets none.  Jobs in hand stay locked until
        their locks lapse."""
        self._is_closed = True
        is_waited = False
        for news in list(self._news_of.values()):
            is_waited |= news.waiters > 0
            news.close()
        if is_waited:
            self._put_back()
        self._store.close()

    def _put_back(self) -> None:
        """A marker may have been popped, and nobody looks: others are to (wire-format 7)."""
        try:
            self._marker.put_back()
        except GeventqError as error:
            self._tell("error", error)

    def _news(self) -> _News:
        """Where one waits in this hub."""
        return self._news_of.setdefault(get_hub(), _News(self._client, self._marker))

    def _take(self, lock_token: str, timeout: float | None) -> _Held | None:
        while True:
            sent_at = clock.monotonic()
            try:
                reply = self._exchange.settle((), 1, lock_token, timeout=timeout)
            except BaseException as error:  # also of one who is killed, or out of time
                if not isinstance(error, RedisUnavailableError) or error.may_be_done:
                    self._lost.add(lock_token)
                raise
            for job_id, why in reply.broken:
                self._tell("error", GeventqError(f"job {job_id} was skipped: {why}"))
            if reply.jobs:
                return self._admission.execution(
                    reply.jobs[0], _Held, Take(sent_at, reply.taken_ms, requests=reply.requests)
                )
            if not reply.broken:
                self._due_ms = reply.next_ms
                return None

    def _take_again(self, lock_token: str, timeout: float | None) -> _Held | None:
        """The job that an earlier call took whose answer was lost."""
        if lock_token not in self._lost:
            return None
        sent_at = clock.monotonic()
        jobs = self._exchange.recover(lock_token, timeout=timeout)
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


def _taken_by_hand(job: Job) -> typing.NoReturn:
    """What runs such a job: nothing of ours."""
    raise AssertionError("jobs taken by hand are not run")


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
