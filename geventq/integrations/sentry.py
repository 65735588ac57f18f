"""Sentry: a scope and a transaction a job, and one event for each attempt that fails.

Knows the SDK and the job, and nothing of workers.  Everything runs in the job's greenlet; scopes
are `contextvars` variables, and each job starts in an empty context (cancellation.md 2.16).  What
the SDK sends travels in a thread of its own.
"""

from __future__ import annotations

import contextlib
import typing

from geventq.errors import (
    DelayedError,
    JobCancelled,
    RateLimitError,
    WaitingChildrenError,
    WaitingError,
)
from geventq.integrations.extras import needs

with needs("sentry_sdk", "sentry"):
    import sentry_sdk

if typing.TYPE_CHECKING:
    from sentry_sdk.tracing import Span

    from geventq.cancellation import CancellationToken
    from geventq.job import Job

__all__ = ["around"]

_NO_ERRORS: typing.Final = (
    *(DelayedError, RateLimitError, WaitingError, WaitingChildrenError),
    KeyboardInterrupt,
)
"""What only moves the job."""


@contextlib.contextmanager
def around(job: Job, token: CancellationToken) -> typing.Iterator[None]:
    """For ``Worker(around=[sentry.around])``: a scope and a transaction for each job.

    Tags, users and breadcrumbs of one job never show up in another.  The transaction is named
    after the job, its operation is ``queue.process``.  What the job raises is captured once for
    each attempt; a cancelled job is no error, and neither is one that is only moved.  One that
    ran out of its time is.  Needs `sentry_sdk.init` before; without it nothing is sent.
    """
    with sentry_sdk.isolation_scope() as scope, _transaction(job) as transaction:
        scope.set_tag("geventq.queue", job.queue_name)
        scope.set_tag("geventq.job", job.name)
        scope.set_context(
            "geventq",
            {
                "job": job.id,
                "name": job.name,
                "queue": job.queue_name,
                "attempt": job.attempts_made + 1,
            },
        )
        try:
            yield
        except BaseException as error:
            transaction.set_status(_status(error, token))
            if _is_failure(error, token):
                _capture(error)
            raise


@contextlib.contextmanager
def _transaction(job: Job) -> typing.Iterator[Span]:
    transaction = sentry_sdk.start_transaction(
        op="queue.process", name=job.name, source="task", origin="auto.queue.geventq"
    )
    transaction.set_data("messaging.message.id", job.id)
    transaction.set_data("messaging.destination.name", job.queue_name)
    transaction.set_data("messaging.message.retry.count", job.attempts_made)
    transaction.set_status("ok")
    transaction.__enter__()
    try:
        yield transaction
    finally:
        transaction.__exit__(None, None, None)  # with the error it would choose its own status


def _is_failure(error: BaseException, token: CancellationToken) -> bool:
    """Whether the job has failed, and was not asked to stop: an error of its own may be how it
    was stopped, as by `token.cancels` (cancellation.md 2.5)."""
    if isinstance(error, _NO_ERRORS):
        return False
    request = error.cancellation if isinstance(error, JobCancelled) else token.check()
    return request is None or request.kind == "timeout"


def _status(error: BaseException, token: CancellationToken) -> str:
    if isinstance(error, _NO_ERRORS):
        return "ok"
    if not _is_failure(error, token):
        return "cancelled"
    return "deadline_exceeded" if isinstance(error, JobCancelled) else "internal_error"


def _capture(error: BaseException) -> None:
    event, hint = sentry_sdk.utils.event_from_exception(
        error,
        client_options=sentry_sdk.get_client().options,
        mechanism={"type": "geventq", "handled": False},
    )
    sentry_sdk.capture_event(event, hint=hint)
