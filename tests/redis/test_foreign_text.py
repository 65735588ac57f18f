"""Text of other programs in the fields, settings and lists of a queue: numbers that Lua takes for
numbers and no command does, the names of the queue's own keys as ids, records and messages that no
script can read.  Each is as good as none, and no other job suffers (cancellation.md 3.7)."""

from __future__ import annotations

import json
import logging
import typing

import gevent
import pytest
import redis

from geventq import CancellationToken, Job, JobSpec, Queue, Worker
from tests.conftest import Make
from tests.support.told import ended
from tests.support.waiting import eventually

#: What `tonumber` takes, or `int` refuses to read.
NUMBERS: typing.Final = ["nan", "-nan", "inf", "-inf", "1e400", "-1", "2.5", "0x10", "9" * 5000, ""]
NOTHING: typing.Final = {"retry": False, "kind": "user", "hard": False, "by": None, "v": 1}

every_number = pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:12] or "empty")


def until_cancelled(job: Job, token: CancellationToken) -> str:
    """Ends at once, but for a job of the name ``long``."""
    if job.name == "long":
        token.wait(timeout=60)
        token.raise_if_cancelled()
    return "ran"


def is_heard(queue: Queue, worker: Worker, job: Job) -> None:
    """A cancel reaches the job's run at once: its worker hears the message, and a settling script
    sees the record."""
    eventually(lambda: job.id in [one.id for one in worker.active_jobs])
    result = queue.cancel_job(job.id, "enough", wait=30)
    assert result.status == "stopped"
    assert result.seconds is not None
    assert result.seconds < 5  # renewals tell of it later


@every_number
@pytest.mark.parametrize("options", [{"delay": 0.05}, {"attempts": 2, "backoff": 0.05}, {}])
def test_a_priority_that_is_no_number_holds_up_no_other_job(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    make: Make,
    number: str,
    options: dict[str, typing.Any],
) -> None:
    """They fall due together: the script that failed at the odd one had taken all of them out of
    `delayed`."""
    jobs = queue.add_bulk([JobSpec("n", None, options) for _ in range(5)])
    redis_client.hset(f"{prefix}:q:{jobs[2].id}", "priority", number)
    failed: set[str] = set()

    def process(job: Job) -> str:
        if "attempts" in options and job.id not in failed:
            failed.add(job.id)
            raise ValueError("once")
        return "ran"

    make(process, concurrency=5)
    eventually(lambda: queue.get_job_counts()["completed"] == 5)


@every_number
@pytest.mark.parametrize("field", ["timestamp", "atm", "attemptsMade", "ats", "stc"])
def test_a_running_job_with_an_odd_number_hears_of_a_cancel(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, field: str, number: str
) -> None:
    """4.4, 5.1: worker and script read the number alike, so that the message is for this run."""
    job = queue.add("long")
    redis_client.hset(f"{prefix}:q:{job.id}", field, number)
    is_heard(queue, make(until_cancelled), job)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"


@every_number
@pytest.mark.parametrize("field", ["opts.maxLenEvents", "gqn"])
def test_a_setting_of_the_queue_that_is_no_number_is_as_good_as_none(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, field: str, number: str
) -> None:
    """5: whether jobs run, are moved and are cancelled does not depend on it."""
    redis_client.hset(f"{prefix}:q:meta", field, number)
    errors: list[BaseException] = []
    worker = make(until_cancelled, concurrency=4)
    worker.on("error", errors.append)
    queue.add_bulk([JobSpec("n"), JobSpec("n", None, {"delay": 0.05}), JobSpec("n")])
    eventually(lambda: queue.get_job_counts()["completed"] == 3)
    assert queue.retry_jobs("completed") == 3
    eventually(lambda: queue.get_job_counts()["completed"] == 3)
    for _ in range(2):
        is_heard(queue, worker, queue.add("long"))
    assert errors == []


@pytest.mark.parametrize(
    ("number", "most"),
    [("nan", None), ("inf", None), ("1e400", None), ("9" * 5000, None), ("2.5", 3), ("0x2", 2)],
    ids=lambda value: str(value)[:12],
)
def test_a_limit_of_running_jobs_is_read_as_node_reads_it(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    make: Make,
    number: str,
    most: int | None,
) -> None:
    """8: a fraction stopped each take half-way; what is no number is no limit."""
    redis_client.hset(f"{prefix}:q:meta", "concurrency", number)
    errors: list[BaseException] = []
    worker = make(until_cancelled, concurrency=5)
    worker.on("error", errors.append)
    queue.add_bulk([JobSpec("long")] * 5)
    expected = 5 if most is None else most
    eventually(lambda: len(worker.active_jobs) == expected)
    assert queue.is_maxed() is (most is not None)
    assert queue.get_job_counts()["active"] == expected
    assert errors == []


@pytest.mark.parametrize("place", ["wait", "active", "delayed", "prioritized"])
@pytest.mark.parametrize("job_id", ["meta", "gq:worker:w", "repeat:x", ""])
def test_the_name_of_a_key_of_the_queue_is_no_job_wherever_it_stands(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, place: str, job_id: str
) -> None:
    """1: the queue's settings were taken for a job that has no name, and removed with it.  A job
    without an id is one, and stops nobody."""
    key, base = f"{prefix}:q:{place}", f"{prefix}:q:"
    redis_client.hset(f"{base}meta", mapping={"concurrency": 9, "opts.maxLenEvents": 500})
    fields = {"concurrency": "9", "opts.maxLenEvents": "500"}
    if job_id != "meta":
        fields = {"name": "n", "data": "{}", "opts": '{"removeOnFail":true}', "timestamp": "1"}
        redis_client.hset(f"{base}{job_id}", mapping=fields)
    if place in ("wait", "active"):
        redis_client.rpush(key, job_id)
        redis_client.sadd(f"{base}stalled", job_id)
    else:
        redis_client.zadd(key, {job_id: 4096})
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    errors: list[BaseException] = []
    worker = Worker("q", until_cancelled, queue._connection, prefix, stalled_interval=0.2)
    worker.on("error", errors.append)
    with worker:
        for job in jobs:
            ended(queue, job, "completed")
        if job_id:
            eventually(lambda: errors)
            assert "key of the queue" in str(errors[0])
        else:
            eventually(lambda: queue.get_job_counts()["completed"] == 4)
        is_heard(queue, worker, queue.add("long"))
    if job_id:
        assert fields.items() <= redis_client.hgetall(f"{base}{job_id}").items()
        assert not redis_client.exists(f"{base}{job_id}:lock")
        assert redis_client.hget(f"{base}{job_id}", "processedOn") is None


def test_a_cancel_of_all_leaves_the_settings_of_the_queue_alone(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    queue.add_bulk([JobSpec("n")] * 2)
    redis_client.lpush(f"{prefix}:q:wait", "meta")
    before = redis_client.hgetall(f"{prefix}:q:meta")
    queue.cancel_jobs(state="waiting")
    assert redis_client.hgetall(f"{prefix}:q:meta") == before


RECORDS: typing.Final = [
    '"nonces":["\\ud83d"]',
    '"nonces":[NaN]',
    '"nonces":{"a":NaN}',
    '"nonces":[1,"",{}]',
    '"x":NaN',
    '"at":1e400',
    '"at":1' + "0" * 400,
    '"atm":1e400',
    '"atm":1' + "0" * 400,
    '"kill_after":1' + "0" * 400,
    '"by":"\\ud83d"',
]


@pytest.mark.parametrize("member", RECORDS, ids=lambda text: text[:20])
@pytest.mark.parametrize("when", ["before the take", "while it runs"])
def test_a_record_that_another_program_has_broken_lets_its_job_end(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, member: str, when: str
) -> None:
    """4.3, 4.6: no script could read what was sent with the outcome, and the job was never over."""
    job = queue.add("long")
    told = {**NOTHING, "reason": '"r"', "at": 1, "atm": 0, "ts": 0, "nonces": ["n"]}
    record = f"{json.dumps(told)[:-1]},{member}}}"  # of two members the last one counts
    if when == "before the take":
        redis_client.hset(f"{prefix}:q:{job.id}", "gqc", record)
    worker = make(until_cancelled)
    if when == "while it runs":
        eventually(lambda: worker.active_jobs)
        redis_client.hset(f"{prefix}:q:{job.id}", "gqc", record)
    eventually(lambda: worker.active_jobs or queue.get_job_state(job.id) == "failed")
    result = queue.cancel_job(job.id, "enough", wait=30)
    assert result.status in ("stopped", "finished"), result
    assert queue.get_job_state(job.id) == "failed"
    read = queue.get_job(job.id)
    assert read is not None
    assert repr(read.cancellation)


@pytest.mark.parametrize("member", ["signed", "nonces", "x"])
def test_a_record_that_another_program_has_made_long_holds_up_no_server(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, member: str
) -> None:
    """4.2: what the script keeps of it it takes off the end, however much there is; it went through
    all of it for each that it left out."""
    worker = make(until_cancelled)
    job = queue.add("long")
    eventually(lambda: worker.active_jobs)
    told = {**NOTHING, "reason": '"r"', "at": 1, "atm": 0, "ts": 0, "nonces": ["n"]}
    told[member] = [f"n{number}" for number in range(50_000)]
    redis_client.hset(f"{prefix}:q:{job.id}", "gqc", json.dumps(told))
    assert queue.cancel_job(job.id, "enough", wait=5).status in ("stopped", "finished")
    assert ended(queue, job, "failed").id == job.id


@pytest.mark.parametrize("name", ["nonce", "by", "reason", "prefix"])
def test_a_message_with_half_a_character_spoils_no_outcome(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make, name: str
) -> None:
    """5.6: what the outcome says of the requests that it was decided with has to be readable."""
    worker = make(until_cancelled, concurrency=2)
    job = queue.add("long")
    eventually(lambda: worker.active_jobs)
    at = round(job.timestamp * 1000)
    told: dict[str, object] = {"queue": "q", "jobId": job.id, "reason": "r", "prefix": prefix}
    told |= {"db": 0, "nonce": "n1", "hard": None, "atm": 0, "ts": at, "at": at, "retry": False}
    told[name] = "\ud83d"

    def heard() -> int:
        return typing.cast(int, redis_client.publish("bullmq:cancel", json.dumps(told)))

    eventually(heard)
    is_heard(queue, worker, job)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"


def test_a_marker_for_no_moment_keeps_nobody_waiting(
    queue: Queue, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """7: its score is any program's."""
    errors: list[BaseException] = []
    worker = make(until_cancelled)
    worker.on("error", errors.append)
    for score in (float("inf"), float("-inf"), 1e300):
        redis_client.zadd(f"{prefix}:q:marker", {"0": score})
        eventually(lambda: not redis_client.exists(f"{prefix}:q:marker"))
        ended(queue, queue.add("n"), "completed")
    assert errors == []


@pytest.mark.slow
def test_a_key_that_lets_no_job_be_taken_is_told_of_once(
    queue: Queue,
    redis_client: redis.Redis,
    prefix: str,
    make: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a failed take may have taken is looked for: that this works is no end of the outage."""
    caplog.set_level(logging.WARNING, "geventq")
    redis_client.hset(f"{prefix}:q:prioritized", "a", "1")
    redis_client.lpush(f"{prefix}:q:wait", "1")
    errors: list[BaseException] = []
    worker = Worker("q", until_cancelled, queue._connection, prefix)
    worker.on("error", errors.append)
    with worker:
        eventually(lambda: errors)
        lanes = typing.cast(typing.Any, worker)._engine.lanes
        calls = lanes._next_lock
        eventually(lambda: lanes._next_lock >= calls + 6)
        redis_client.delete(f"{prefix}:q:prioritized")
        gevent.sleep(0)
        ended(queue, queue.add("n"), "completed")
    told = [one for one in caplog.messages if "taking and settling" in one]
    assert [one.split("queue q ")[1].split(",")[0].split(" after")[0] for one in told] == [
        "failed",
        "works again",
    ]
