"""Sentry around each job: real SDK, and a transport that keeps what would be sent."""

from __future__ import annotations

import collections.abc
import logging
import typing

import gevent
import gevent.event
import pytest

from geventq import CancellationToken, DelayedError, Job, Queue
from tests.conftest import Make
from tests.support.told import ended
from tests.support.waiting import eventually

sentry_sdk = pytest.importorskip("sentry_sdk")

from sentry_sdk.transport import Transport  # noqa: E402

from geventq.integrations import sentry  # noqa: E402


class Kept(Transport):
    """What would have been sent, by its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[dict[str, typing.Any]] = []
        self.transactions: list[dict[str, typing.Any]] = []

    def capture_envelope(self, envelope: typing.Any) -> None:
        for item in envelope.items:
            if event := item.get_transaction_event():
                self.transactions.append(event)
            elif event := item.get_event():
                self.errors.append(event)

    def of(self, job: Job) -> list[str]:
        """The messages of the errors that name a job."""
        return [
            error["exception"]["values"][-1]["value"]
            for error in self.errors
            if error["contexts"]["geventq"]["job"] == job.id
        ]


@pytest.fixture
def sent() -> collections.abc.Iterator[Kept]:
    kept = Kept()
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=kept,
        traces_sample_rate=1.0,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        enable_backpressure_handling=False,  # a thread that looks every 10 s
    )
    yield kept
    sentry_sdk.get_client().close()
    sentry_sdk.Scope.get_global_scope().set_client(None)


def test_a_failing_job_is_captured_once_with_its_transaction(
    queue: Queue, make: Make, sent: Kept
) -> None:
    def process(job: Job) -> None:
        raise ValueError("own")

    make(process, around=[sentry.around])
    job = queue.add("export")
    ended(queue, job, "failed")
    (error,) = sent.errors
    (transaction,) = sent.transactions
    (raised,) = error["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("ValueError", "own")
    assert raised["mechanism"] == {"type": "geventq", "handled": False}
    assert raised["stacktrace"]["frames"][-1]["function"] == "process"
    assert "job" in raised["stacktrace"]["frames"][-1]["vars"]
    assert error["contexts"]["geventq"] == {
        "job": job.id,
        "name": "export",
        "queue": "q",
        "attempt": 1,
    }
    assert error["tags"] == {"geventq.queue": "q", "geventq.job": "export"}
    assert transaction["transaction"] == error["transaction"] == "export"
    assert transaction["contexts"]["trace"]["op"] == "queue.process"
    assert transaction["contexts"]["trace"]["status"] == "internal_error"
    assert transaction["contexts"]["trace"]["trace_id"] == error["contexts"]["trace"]["trace_id"]


def test_each_attempt_that_fails_is_an_event(queue: Queue, make: Make, sent: Kept) -> None:
    make(lambda job: 1 / 0, around=[sentry.around])
    ended(queue, queue.add("export", attempts=2), "failed")
    assert [error["contexts"]["geventq"]["attempt"] for error in sent.errors] == [1, 2]


def test_a_job_that_succeeds_is_a_transaction_alone(queue: Queue, make: Make, sent: Kept) -> None:
    make(lambda job: None, around=[sentry.around])
    ended(queue, queue.add("export"), "completed")
    assert not sent.errors
    assert [one["contexts"]["trace"]["status"] for one in sent.transactions] == ["ok"]


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancelled_job_is_no_error(queue: Queue, make: Make, sent: Kept, hard: bool) -> None:
    begun = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        begun.set()
        if hard:
            gevent.sleep(60)
        token.sleep(60)

    worker = make(process, around=[sentry.around])
    job = queue.add("export")
    assert begun.wait(20)
    assert worker.cancel_job(job.id, "enough", hard=hard)
    ended(queue, job, "failed")
    assert not sent.errors
    assert [one["contexts"]["trace"]["status"] for one in sent.transactions] == ["cancelled"]


def test_so_is_one_that_answers_with_an_error_of_its_own(
    queue: Queue, make: Make, sent: Kept
) -> None:
    """2.5: as a query does that was stopped by `token.cancels`."""
    begun = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        begun.set()
        token.wait()
        raise RuntimeError("canceling statement due to user request")

    worker = make(process, around=[sentry.around])
    job = queue.add("export")
    assert begun.wait(20)
    assert worker.cancel_job(job.id, "enough")
    ended(queue, job, "failed")
    assert not sent.errors


def test_one_that_ran_out_of_its_time_is_an_error(queue: Queue, make: Make, sent: Kept) -> None:
    make(lambda job: gevent.sleep(60), around=[sentry.around])
    ended(queue, queue.add("export", timeout=0.05), "failed")
    (error,) = sent.errors
    assert error["exception"]["values"][-1]["value"] == "Job timed out after 0.05 s"
    assert [one["contexts"]["trace"]["status"] for one in sent.transactions] == [
        "deadline_exceeded"
    ]


def test_one_that_only_moves_is_no_error(queue: Queue, make: Make, sent: Kept) -> None:
    def process(job: Job) -> None:
        raise DelayedError(60)

    make(process, around=[sentry.around])
    ended(queue, queue.add("export"), "delayed")
    assert not sent.errors
    assert [one["contexts"]["trace"]["status"] for one in sent.transactions] == ["ok"]


def test_twenty_jobs_at_once_never_mix(queue: Queue, make: Make, sent: Kept) -> None:
    """2.16: user, tags and breadcrumbs are those of the job alone."""
    turns = gevent.event.Event()

    def process(job: Job) -> None:
        sentry_sdk.set_user({"id": job.data["user"]})
        sentry_sdk.set_tag(f"only-{job.data['user']}", "yes")
        sentry_sdk.add_breadcrumb(message=f"began {job.data['user']}")
        turns.wait(20)
        gevent.sleep(0)
        raise ValueError(f"of {job.data['user']}")

    worker = make(process, around=[sentry.around], concurrency=20)
    jobs = [queue.add("export", {"user": str(number)}) for number in range(20)]
    eventually(lambda: len(worker.active_jobs) == 20)
    gevent.sleep(0)
    turns.set()
    for job in jobs:
        ended(queue, job, "failed")
    assert len(sent.errors) == 20
    for error in sent.errors:
        user = error["user"]["id"]
        assert error["exception"]["values"][-1]["value"] == f"of {user}"
        assert [tag for tag in error["tags"] if tag.startswith("only-")] == [f"only-{user}"]
        assert [one["message"] for one in error["breadcrumbs"]["values"]] == [f"began {user}"]


def test_what_a_job_logs_is_captured_beside_in_its_own_scope(
    queue: Queue, make: Make, sent: Kept
) -> None:
    """The SDK's own logging integration: an event of its own, that names the job."""

    def process(job: Job) -> None:
        logging.getLogger("shop").error("something odd")

    make(process, around=[sentry.around])
    job = queue.add("export")
    ended(queue, job, "completed")
    (error,) = sent.errors
    assert error["logentry"]["message"] == "something odd"
    assert error["contexts"]["geventq"]["job"] == job.id


def test_without_init_jobs_run_as_ever(queue: Queue, make: Make) -> None:
    make({"good": lambda job: "done", "bad": lambda job: 1 / 0}, around=[sentry.around])
    assert ended(queue, queue.add("good"), "completed").return_value == "done"
    assert ended(queue, queue.add("bad"), "failed").failed_reason == "division by zero"
