"""Options as other programs write them, from the hash to what a worker does."""

from __future__ import annotations

import datetime
import typing

import pytest
import redis

from geventq import Job, JobSpec, Queue, Worker
from geventq.codec import DEEPEST
from tests.conftest import Make
from tests.support.waiting import eventually


def foreign(queue: Queue, client: redis.Redis, prefix: str, opts: str) -> Job:
    """A job whose options another producer wrote."""
    job = queue.add("n", job_id="foreign")
    client.hset(f"{prefix}:q:{job.id}", "opts", opts)
    return job


def test_a_job_of_a_node_producer_runs_by_its_numeric_texts(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """3.2: ``attempts: '3'`` are three attempts, as for a Node.js worker."""
    ran: list[int] = []

    def process(job: Job) -> None:
        ran.append(job.attempts_made)
        for number in range(5):
            job.log(str(number))
        raise ValueError("boom")

    opts = '{"attempts":"3","backoff":{"type":"fixed","delay":"1"},"stackTraceLimit":"2","kl":"4"}'
    job = foreign(queue, redis_client, prefix, opts)
    make(process)
    eventually(job.is_failed)
    assert ran == [0, 1, 2]
    read = queue.get_job(job.id)
    assert read is not None
    assert len(read.stacktrace) == 2
    assert queue.get_job_logs(job.id) == ["1", "2", "3", "4"]


def test_unreadable_options_do_not_keep_a_job_from_running(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """3.2: what cannot be read is the default."""
    opts = '{"attempts":"many","backoff":"soon","timeout":[],"removeOnComplete":{"count":"x"}}'
    job = foreign(queue, redis_client, prefix, opts)
    make(lambda job: "ran")
    assert job.wait_until_finished(20) == "ran"
    assert queue.get_job(job.id) is not None


def test_what_was_checked_is_what_is_used(queue: Queue, redis_url: str, prefix: str) -> None:
    """4.3: option dicts that are changed later, and shared ones, do not reach into jobs."""
    policy: dict[str, typing.Any] = {"count": 5}
    backoff: dict[str, typing.Any] = {"type": "fixed", "delay": 1}
    defaults = {"remove_on_complete": policy, "backoff": backoff}
    strategies = {"mine": lambda *_: 0}
    with Queue("q", redis_url, prefix, defaults) as other:
        worker = Worker(
            "q",
            lambda job: None,
            redis_url,
            prefix,
            remove_on_fail=policy,
            backoff_strategies=strategies,
        )
        policy["count"] = "many"
        backoff["delay"] = -5
        strategies["late"] = lambda *_: 0
        first, second = other.add("n"), other.add("n")
    expected = {"count": 5}
    assert first.opts["remove_on_complete"] == second.opts["remove_on_complete"] == expected
    assert first.opts["backoff"] == {"type": "fixed", "delay": 1.0}
    assert worker.options.remove_on_fail == expected
    assert set(worker.options.backoff_strategies) == {"mine"}
    first.opts["remove_on_complete"]["count"] = 0  # the two have one option text
    assert second.opts["remove_on_complete"] == first.opts["remove_on_complete"] == expected


def test_a_generator_may_use_its_dicts_again(queue: Queue) -> None:
    """4.3: each job is as it was when it was handed over."""

    def specs() -> typing.Iterator[JobSpec]:
        data: dict[str, int] = {}
        options: dict[str, typing.Any] = {}
        for number in range(3):
            data["n"] = options["priority"] = number
            yield JobSpec("n", data, options)

    jobs = queue.add_bulk(specs())
    assert [(job.data, job.priority) for job in jobs] == [({"n": n}, n) for n in range(3)]


def test_times_in_removal_policies_may_be_timedeltas(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """4.3: of a worker as of a job; the age is in seconds in Redis."""
    hour = datetime.timedelta(hours=1)
    make(lambda job: None, remove_on_complete={"age": hour}, remove_on_fail={"age": hour})
    job = queue.add("n")
    assert job.wait_until_finished(20) is None
    assert queue.add("n", remove_on_complete={"age": hour}).opts["remove_on_complete"] == {
        "age": 3600
    }


def test_a_job_as_deep_as_add_takes_runs(queue: Queue, make: Make) -> None:
    """3.3: one limit at both ends, for what goes in and for what comes out."""
    deep: typing.Any = 0
    for _ in range(DEEPEST):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        queue.add("n", [deep])
    job = queue.add("n", deep)
    make(lambda job: job.update_progress(job.data) or job.data)
    assert job.wait_until_finished(20) == deep
    read = queue.get_job(job.id)
    assert read is not None
    assert read.data == read.progress == read.return_value == deep
