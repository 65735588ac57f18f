"""Carrying a request to cancel out: send it, wait for the ends where the caller does, say what
came of it.

The order is what makes it safe: who waits listens before the request is sent (cancellation.md
5.4), and what was done is told even when the rest failed.  No greenlets run here.
"""

from __future__ import annotations

import contextlib
import typing

from geventq import clock
from geventq.cancel_request import CancelResult
from geventq.checks import is_queue_key
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.cancel_calls import CancelCalls
from geventq.store.receipts import Receipt

if typing.TYPE_CHECKING:
    from geventq.cancel_request import Request
    from geventq.cancel_secret import CancelSecret
    from geventq.store.cancel_calls import Answer
    from geventq.store.client import Client
    from geventq.store.job_ends import JobEnds
    from geventq.store.keys import QueueKeys

__all__ = ["Cancelling"]

#: Why the script has left a job as it is, by its status.
_REFUSALS: typing.Final = {
    "left": "is not running and has children, a parent or a live scheduler: "
    "that cannot be cancelled yet",
    "left active": "has children, a parent or a live scheduler: it cannot be taken from its worker "
    "yet, but without force it is asked to stop",
    "secret": "can be taken from its worker only with the cancel_secret of the queue's workers: "
    "give it to the Queue, or as $GEVENTQ_CANCEL_SECRET",
    "broken": "has a key that holds no hash",
}


class Cancelling:
    """One request, and the jobs of one queue that it is made to.

    All ways of carrying it out return the results in the order of the jobs.  They raise
    `RedisUnavailableError` for an outage, and `GeventqError` for jobs that had to be left as they
    are, when the others were carried out; the error's `results` tell what was done, with `None`
    for a job of which that is not known, or that was left.  All yield.
    """

    def __init__(
        self,
        client: Client,
        keys: QueueKeys,
        secret: CancelSecret | None,
        request: Request,
        job_ids: typing.Sequence[str],
    ) -> None:
        self._calls = CancelCalls(client, keys, secret)
        self._queue_name = keys.name
        self._request = request
        self._job_ids = job_ids
        self._results: dict[str, CancelResult | None] = dict.fromkeys(job_ids)
        self._possible = [one for one in self._results if one and not is_queue_key(one)]
        if len(self._possible) < len(self._results):
            for one in self._results.keys() - self._possible:
                self._results[one] = CancelResult(status="not_found", job_id=one, state="unknown")
        self._left: list[str] = []  # why jobs were left as they are
        self._failure: GeventqError | None = None

    def dry_run(self) -> list[CancelResult]:
        """What would happen; nothing is changed."""
        self._send(dry_run=True)
        return self._all()

    def carry_out(self) -> list[CancelResult]:
        """Cancel the jobs."""
        self._send()
        return self._all()

    def carry_out_and_wait(self, ends: JobEnds, wait: float) -> list[CancelResult]:
        """Cancel the jobs, and wait up to `wait` seconds for the ends of those that run."""
        request = self._request
        deadline = clock.monotonic() + wait
        receipts = {one: Receipt(request.nonce, retry=request.retry) for one in self._possible}
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(ends.listening(receipts, at_once=True))
            except GeventqError as error:  # nothing was asked for
                if isinstance(error, RedisUnavailableError):
                    error.may_be_done = False
                self._failure = error
                return self._all()
            self._send()
            try:
                for job_id, result in self._results.items():
                    if result is not None and result.status == "requested":
                        self._results[job_id] = receipts[job_id].result(result, deadline)
            except GeventqError as error:  # the queue was closed: what was asked is asked
                self._failure = self._failure or error
        return self._all()

    def _send(self, *, dry_run: bool = False) -> None:
        try:
            answers = self._calls.send(self._request, self._possible, dry_run=dry_run)
            for job_id, answer in zip(self._possible, answers, strict=True):
                self._note(job_id, answer)
        except GeventqError as error:
            self._failure = error

    def _note(self, job_id: str, answer: Answer) -> None:
        is_running = answer.status == "left" and answer.state == "active"
        why = _REFUSALS.get("left active" if is_running else answer.status)
        if why is not None:
            self._left.append(f"job {job_id} of queue {self._queue_name} {why}")
            return
        status: typing.Any = answer.status
        self._results[job_id] = CancelResult(
            status=status,
            job_id=job_id,
            state=answer.state,
            worker=answer.worker or None,
            stage="sent" if status == "requested" else None,
        )

    def _all(self) -> list[CancelResult]:
        results = [self._results[job_id] for job_id in self._job_ids]
        failure = self._failure
        if failure is None and self._left:
            failure = GeventqError("; ".join(self._left))
        if failure is not None:
            failure.results = results
            raise failure
        return typing.cast("list[CancelResult]", results)
