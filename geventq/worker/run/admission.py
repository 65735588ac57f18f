"""From a taken job's hash to its run: what its fields mean here, and why it may not run.

Decides about what is stored: broken hashes, a deferred failure, a recorded request, too many
starts.  Does not know Redis; runs in whatever greenlet took the job, and never yields.
Numbers alone in comments are sections of cancellation.md.
"""

from __future__ import annotations

import typing

from geventq.cancellation import Attempt
from geventq.job import Job
from geventq.record import UNREADABLE, read_record
from geventq.worker.run.execution import Execution, Heard, Overseer, Take
from geventq.worker.run.policy import Policies

if typing.TYPE_CHECKING:
    from geventq.job import JobStore
    from geventq.worker.processor import Routes
    from geventq.worker.settings import WorkerOptions

__all__ = ["Admission", "Made", "Take", "Taken"]

Taken = tuple[str, str, list[bytes]]
"""A job as a take answers it: its id, its lock token, its hash as before the take, flat."""

Made = typing.TypeVar("Made", bound=Execution)


class Admission:
    """Makes the executions of one worker, each with what runs it.  With `all_tokens` each has a
    token; `overseer` is told what they do."""

    def __init__(
        self,
        store: JobStore,
        options: WorkerOptions,
        *,
        worker_name: str,
        routes: Routes,
        all_tokens: bool,
        overseer: Overseer,
    ) -> None:
        self._store = store
        self._worker_name = worker_name.encode()
        self._route = routes.only
        self._route_of = routes.of
        self._all_tokens = all_tokens
        self._hard = options.cancel_mode == "hard"
        self._kill_after = options.kill_after
        self._max_started = options.max_started_attempts
        self._policies = Policies(
            options.remove_on_complete, options.remove_on_fail, store.queue_name
        )
        self._overseer = overseer

    def execution(
        self,
        taken: Taken,
        kind: type[Made],
        take: Take,
    ) -> Made:
        """The execution of a job that is ours by `take`.

        Its `unrunnable` says why it has to fail without running; a request that was recorded for
        this run is in its attempt, as if it had been made before the first turn (2.8).
        """
        job_id, lock_token, flat = taken
        pairs = iter(flat)
        fields = dict(zip(pairs, pairs, strict=True))
        job = Job(self._store, job_id, fields)
        made, started, stalls = job.counters()
        if take.taken_ms is None:  # what the hash was before it can be told by what a run leaves
            first_run = b"failedReason" not in fields
        else:
            first_run = b"processedOn" not in fields  # or a retry by hand (4.4)
            started += 1
            fields[b"processedOn"] = take.taken_ms  # all as the take has written it
            fields[b"ats"] = b"%d" % started
            if self._worker_name:
                fields[b"pb"] = self._worker_name
        defect = job.defect()
        try:
            policy = self._policies.of(fields.get(b"opts", b""))
        except ValueError as error:
            policy, defect = self._policies.of(b""), defect or str(error)
        route = self._route or self._route_of(job.name)
        attempt = Attempt(
            job_id,
            with_token=route.takes_token or self._all_tokens,
            hard=self._hard,
            kill_after=self._kill_after,
            observer=self._overseer,
            hears=route.takes_token,
        )
        most = self._max_started
        counters = made, started, stalls
        execution = kind(job, lock_token, attempt, policy, counters, take, self._overseer, most)
        execution.route = route
        job.owned_by(execution)
        if b"gqc" in fields:
            _heed_record(execution, fields, first_run)
        if defect is not None or b"defa" in fields:
            execution.unrunnable = defect or job.deferred_failure
        elif most is not None and started > most:
            execution.unrunnable = "job started more than allowable limit"
        return execution

    def executions(
        self,
        jobs: typing.Iterable[Taken],
        take: Take,
        failed: typing.Callable[[str, Exception], None],
    ) -> list[Execution]:
        """The executions of many.  A defect of ours in one job is told with its id and holds up
        nobody else; that job's lock lapses, and the stalled check brings it back."""
        executions = []
        for taken in jobs:
            try:
                executions.append(self.execution(taken, Execution, take))
            except Exception as error:  # noqa: BLE001 (told)
                failed(taken[0], error)
        return executions


def _heed_record(execution: Execution, fields: dict[bytes, bytes], first_run: bool) -> None:
    """A request to cancel is recorded with the job: find out which run it was made to (4.4).

    If to this one, or if it forbids every run until somebody retries by hand, the attempt ends by
    it without running.  Else the record is void.  This run's outcome clears a void record; the
    deferred failure that was written with it is ignored.
    """
    heard = execution.heard = Heard()
    record = read_record(fields[b"gqc"])
    if record is None:
        heard.nonces.add(UNREADABLE)
        return
    heard.nonces.update(record.nonces)
    request = record.request
    is_for_this = record.attempts_made == execution.attempts_made
    if is_for_this or not (request.retry or first_run):
        fields.pop(b"defa", None)
        execution.attempt.precede(request)
    elif fields.get(b"defa") == request.failed_reason().encode():
        del fields[b"defa"]
