"""5.6, 5.1: whatever is published by anybody, the worker hears the next request; each kind is told
once."""

from __future__ import annotations

import json
import logging
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import CancellationToken, Job, Queue, clock
from tests.conftest import Make
from tests.support.told import engine_of, listens
from tests.support.waiting import eventually


class Watched:
    """Jobs that run until they are asked to stop, in a worker whose messages are seen."""

    def __init__(self) -> None:
        self.tokens: dict[str, CancellationToken] = {}
        self.go = gevent.event.Event()

    def process(self, job: Job, token: CancellationToken) -> str:
        self.tokens[job.id] = token
        gevent.wait([token, self.go], count=1)
        token.raise_if_cancelled()
        return "done"


@pytest.fixture
def watched() -> Watched:
    return Watched()


def ours(prefix: str, job: Job, **members: object) -> dict[str, object]:
    """A message as the script publishes it."""
    timestamp = round(job.timestamp * 1000)
    told: dict[str, object] = {"queue": "q", "jobId": job.id, "reason": "by message"}
    told |= {"prefix": prefix, "db": 0, "nonce": "n1", "hard": None, "killAfter": None}
    return told | {"retry": False, "atm": 0, "ts": timestamp, "at": timestamp} | members


GARBAGE: typing.Final = {
    "not JSON": [b"", b"{", b"\xff", b"[" * 20_000],
    "too large": [b"x" * 70_000, b"y" * 10 * 2**20],
    "wrong types": [
        b"[]",
        b"1",
        b'{"queue": 1}',
        b'{"queue": "q"}',
        b'{"queue": "q", "jobId": []}',
    ],
}


def test_after_garbage_it_still_hears(
    queue: Queue,
    make: Make,
    watched: Watched,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """5.6: ignored, counted, and told once a kind; the link stays up."""
    worker = make(watched.process)
    subscription = engine_of(worker).subscription
    eventually(lambda: subscription.is_up)
    job = queue.add("n")
    eventually(lambda: watched.tokens)
    connection = subscription._channels._connection.opened()
    with caplog.at_level(logging.WARNING, "geventq"):
        for channel in ("bullmq:cancel", f"bullmq:cancel:{worker.id}"):
            for messages in GARBAGE.values():
                for message in messages:
                    redis_client.publish(channel, message)
        eventually(
            lambda: (
                subscription.ignored.counts
                == {kind: 2 * len(messages) for kind, messages in GARBAGE.items()}
            )
        )
    told = [one for one in caplog.messages if "was ignored" in one]
    assert len(told) == len(GARBAGE)
    assert max(map(len, told)) < 1000, "no message is repeated in the log"
    assert subscription._channels._connection.opened() is connection
    assert queue.cancel_job(job.id, "after all that", wait=30).status == "stopped"


@pytest.mark.parametrize(
    "members",
    [{"prefix": "other"}, {"db": 7}, {"queue": "other"}, {"atm": 1}, {"ts": 1}],
    ids=lambda members: str(members),
)
def test_what_is_meant_for_another_job_stops_nothing(
    queue: Queue,
    make: Make,
    watched: Watched,
    redis_client: redis.Redis,
    prefix: str,
    members: dict[str, object],
) -> None:
    """5.1: pub/sub crosses databases and prefixes, and ids come again."""
    worker = make(watched.process)
    listens(worker)
    job = queue.add("n")
    eventually(lambda: watched.tokens)
    channel = f"bullmq:cancel:{worker.id}"
    redis_client.publish(channel, json.dumps(ours(prefix, job) | members))
    # Messages keep their order: once this one counts, the other one was read.
    redis_client.publish(channel, json.dumps(ours(prefix, job, nonce="n2") | {"reason": "meant"}))
    token = eventually(lambda: watched.tokens[job.id])
    eventually(lambda: token.cancelled)
    assert token.get().reason == "meant", "the first request that counts is the token's"


def test_a_plain_message_cancels_softly_and_for_this_run(
    queue: Queue, make: Make, watched: Watched, redis_client: redis.Redis
) -> None:
    """5.1: as Node publishes it, whatever else it claims."""
    worker = make(watched.process, concurrency=2)
    listens(worker)
    job = queue.add("n", attempts=2)
    eventually(lambda: watched.tokens)
    token = watched.tokens[job.id]
    plain = {"queue": "q", "jobId": job.id, "reason": ["why"], "hard": True, "retry": False}
    redis_client.publish("bullmq:cancel", json.dumps(plain))
    eventually(lambda: token.cancelled)
    cancellation = token.get()
    assert (cancellation.reason, cancellation.kind) == (["why"], "remote")
    assert (cancellation.hard, cancellation.retry) == (False, True)
    eventually(lambda: watched.tokens[job.id] is not token)  # by its own attempts
    watched.go.set()
    assert job.wait_until_finished(30) == "done"


def test_a_plain_message_asks_a_hard_worker_softly_too(
    queue: Queue, make: Make, watched: Watched, redis_client: redis.Redis
) -> None:
    """5.1: whoever may publish there may be anybody."""
    worker = make(watched.process, cancel_mode="hard")
    listens(worker)
    job = queue.add("n")
    eventually(lambda: watched.tokens)
    (execution,) = engine_of(worker).slots.running
    told: list[str] = []
    execution.attempt.on_stage = told.append
    plain = {"queue": "q", "jobId": job.id, "hard": True}
    redis_client.publish("bullmq:cancel", json.dumps(plain))
    eventually(lambda: watched.tokens[job.id].cancelled)
    assert not watched.tokens[job.id].get().hard
    assert told == [], "no grace begins"


def test_a_request_that_is_heard_late_leaves_the_whole_grace(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.6: it counts from the moment when the worker hears of it, here an hour later."""
    worker = make(lambda job: gevent.sleep(60))
    listens(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    (execution,) = engine_of(worker).slots.running
    late = ours(prefix, job, hard=True, killAfter=600, at=job.timestamp_ms - 3_600_000)
    redis_client.publish(f"bullmq:cancel:{worker.id}", json.dumps(late))
    ladder = eventually(lambda: execution.attempt._ladder)
    assert 500 < ladder.deadline - clock.monotonic() <= 600
    assert worker.cancel_job(job.id, hard=True, kill_after=0)


def test_a_message_that_comes_twice_counts_once(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """5.1: its nonce is noted with the run; a replay shortens no grace and adds nothing."""
    inside = gevent.event.Event()

    def process(job: Job) -> None:
        inside.set()
        gevent.event.Event().wait()

    worker = make(process)
    listens(worker)
    job = queue.add("n")
    inside.wait()
    channel = f"bullmq:cancel:{worker.id}"
    first = ours(prefix, job, hard=True, killAfter=600)
    redis_client.publish(channel, json.dumps(first))
    redis_client.publish(channel, json.dumps(first | {"killAfter": 0}))
    redis_client.publish(channel, json.dumps(first | {"nonce": "n2", "killAfter": 500}))
    engine = engine_of(worker)
    (execution,) = engine.slots.running
    eventually(lambda: execution.heard and execution.heard.nonces == {"n1", "n2"})
    assert execution.attempt.stage == "grace"
    assert engine.hearing.delays.counts == {"seen": 1, "stopped": 0, "settled": 0}
    assert worker.cancel_job(job.id, hard=True, kill_after=0)
    eventually(lambda: engine.hearing.delays.counts["settled"] == 1)


@pytest.mark.slow
def test_a_stuck_job_says_where_it_sits(queue: Queue, make: Make) -> None:
    """5.4, 2.10: who waits gets the stage and the stack."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def swallows(job: Job) -> None:
        inside.set()
        while not go.is_set():
            try:
                go.wait()
            except BaseException:  # noqa: S112 (what this test is about)
                continue

    worker = make(swallows)
    listens(worker)
    job = queue.add("n")
    inside.wait()
    result = queue.cancel_job(job.id, hard=True, wait=6)
    assert (result.status, result.stage) == ("requested", "stuck")
    assert result.stack is not None
    assert "swallows" in result.stack
    go.set()


def test_two_requests_meet_in_one_record(
    queue: Queue, make: Make, watched: Watched, redis_client: redis.Redis, prefix: str
) -> None:
    """2.2, 4.6: the second adds what is stronger, and both are answered by one end."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        inside.set()
        go.wait()
        token.raise_if_cancelled()

    worker = make(process)
    listens(worker)
    job = queue.add("n", attempts=5)
    inside.wait()
    waiters = [
        gevent.spawn(queue.cancel_job, job.id, "this run", retry=True, wait=30),
        gevent.spawn(queue.cancel_job, job.id, "for good", wait=30),
    ]
    (execution,) = engine_of(worker).slots.running
    eventually(lambda: execution.heard and len(execution.heard.nonces) == 2)
    go.set()
    assert {one.get().status for one in waiters} == {"stopped"}
    fields = redis_client.hgetall(f"{prefix}:q:{job.id}")
    assert (fields["failedReason"], fields["atm"]) == ("Job cancelled: for good", "1")
    assert not {"gqc", "defa"} & fields.keys()
