"""wire-format 3: the traces that a job's hash keeps: the newest, and not more than a hash should
carry from attempt to attempt."""

from __future__ import annotations

import json
import typing

import pytest
import redis

from geventq import Job, Queue
from tests.conftest import Make
from tests.support.told import Told, ended

KEPT_BYTES: typing.Final = 256 * 1024


def failing(queue: Queue, make: Make, text: typing.Callable[[int], str], **options: int) -> Job:
    """A job whose n-th attempt fails with ``text(n)``, when it has failed for good."""

    def process(job: Job) -> None:
        raise ValueError(text(job.attempts_made + 1))

    told = Told(make(process))
    job = queue.add("n", **options)
    told.wait("failed")
    return ended(queue, job, "failed")


def test_by_default_the_newest_hundred_traces_are_kept(queue: Queue, make: Make) -> None:
    job = failing(queue, make, lambda attempt: f"failure {attempt}", attempts=103)
    assert [trace.rsplit(" ", 1)[1] for trace in job.stacktrace] == [str(n) for n in range(4, 104)]


def test_by_default_they_fit_into_256_kb(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """Whole traces, the newest last; a character may take several bytes."""
    job = failing(queue, make, lambda attempt: "\u20ac" * 10_000 + f" {attempt}", attempts=12)
    stored = redis_client.hget(f"{prefix}:q:{job.id}", "stacktrace")
    assert 200_000 < len(typing.cast(str, stored).encode()) <= KEPT_BYTES
    numbers = [int(trace.rsplit(" ", 1)[1]) for trace in job.stacktrace]
    assert numbers == list(range(12 - len(numbers) + 1, 13))
    assert all(trace.startswith("Traceback") for trace in job.stacktrace)


def test_of_a_single_trace_that_is_too_long_the_end_is_kept(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """It says what went wrong; also where each character becomes six bytes of JSON."""
    job = failing(queue, make, lambda attempt: "\x01" * 500_000 + " the end", attempts=2)
    stored = redis_client.hget(f"{prefix}:q:{job.id}", "stacktrace")
    assert len(typing.cast(str, stored).encode()) <= KEPT_BYTES
    (trace,) = job.stacktrace
    assert trace.endswith(" the end")


@pytest.mark.slow
def test_a_job_that_says_how_many_gets_as_many(queue: Queue, make: Make) -> None:
    text = "x" * 10_000
    job = failing(queue, make, lambda attempt: text, attempts=110, stack_trace_limit=105)
    assert len(job.stacktrace) == 105


def test_a_trace_of_another_program_that_is_no_text_costs_nothing(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.1 of the faults: it was cut through a character; the job fails, is retried, and shows
    both."""

    def process(job: Job) -> None:
        raise ValueError("ours")

    worker = make(process)
    worker.pause()
    told = Told(worker)
    job = queue.add("n", attempts=2)
    redis_client.hset(f"{prefix}:q:{job.id}", "stacktrace", '["theirs \\ud83d", 7]')
    worker.resume()
    told.wait("failed")
    assert told.of(job) == ["retrying", "failed"]
    theirs, seven, *ours = ended(queue, job, "failed").stacktrace
    assert (theirs, seven) == ("theirs \\ud83d", "7")
    assert [trace.rsplit(" ", 1)[1] for trace in ours] == ["ours", "ours"]
    stored = redis_client.hget(f"{prefix}:q:{job.id}", "stacktrace")
    json.loads(typing.cast(str, stored)).__repr__().encode()  # text, all of it
