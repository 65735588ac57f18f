"""2.2 on a real worker: which of several requests wins, and what `True` and `False` promise."""

from __future__ import annotations

import datetime
import functools
import time
import types
import typing

import gevent
import gevent.event
import gevent.queue
import pytest

from geventq import CancellationToken, Job, JobKilled, JobSpec, Queue, Worker
from tests.conftest import Make
from tests.support.told import Told, stream_of
from tests.support.waiting import eventually


class Asked(typing.NamedTuple):
    """One `cancel_job`, and whether it must take effect."""

    took: bool
    reason: str
    options: typing.Mapping[str, typing.Any] = types.MappingProxyType({})


@pytest.mark.parametrize(
    ("requests", "reason", "made"),
    [
        pytest.param(
            [Asked(True, "first"), Asked(False, "second"), Asked(True, "kill", {"hard": True})],
            "first",
            2,
            id="hard is added, the text is the first's",
        ),
        pytest.param(
            [
                Asked(True, "first"),
                Asked(True, "for good", {"retry": False}),
                Asked(False, "again", {"retry": False}),
                Asked(True, "kill", {"hard": True}),
            ],
            "for good",
            1,
            id="a request that forbids the retry is stronger, and gives the text",
        ),
        pytest.param(
            [
                Asked(True, "first", {"kill_after": 60}),
                Asked(False, "longer", {"kill_after": 90}),
                Asked(True, "shorter", {"kill_after": 30}),
                Asked(True, "now", {"kill_after": 0}),
            ],
            "first",
            2,
            id="a shorter grace is stronger, a longer one is not",
        ),
        pytest.param(
            [
                Asked(True, "first", {"kill_after": datetime.timedelta(minutes=1)}),
                Asked(True, "now", {"kill_after": datetime.timedelta()}),
            ],
            "first",
            2,
            id="a grace may be a timedelta",
        ),
    ],
)
def test_a_later_request_adds_what_is_stronger(
    queue: Queue,
    make: Make,
    redis_client: typing.Any,
    prefix: str,
    requests: list[Asked],
    reason: str,
    made: int,
) -> None:
    """2.2: it says `True` only if it added something; text, retry and events follow."""
    runs: gevent.queue.Queue[int] = gevent.queue.Queue()

    def waits(job: Job, token: CancellationToken) -> None:
        runs.put(job.attempts_made)
        gevent.event.Event().wait()

    worker = make(waits)
    told = Told(worker)
    job = queue.add("n", attempts=2)
    for run in range(made):
        assert runs.get(timeout=20) == run
        for asked in requests:
            took = worker.cancel_job(job.id, asked.reason, **asked.options)
            assert took is asked.took, asked
    told.wait("failed")
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.failed_reason, read.attempts_made) == (f"Job cancelled: {reason}", made)
    assert told.cancellation().reason == reason
    (entry, *_) = [e for e in stream_of(redis_client, prefix, job) if e["event"] == "cancelled"]
    assert (entry["reason"], entry["kind"], entry["stage"]) == (reason, "user", "thrown")


def test_the_tokens_value_never_changes(queue: Queue, make: Make) -> None:
    """2.2: what the processor saw first stays what it sees, whatever is added."""
    values: list[typing.Any] = []
    thrown: list[object] = []
    inside = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        inside.set()
        values.append(token.wait())
        try:
            gevent.sleep(60)
        except JobKilled as error:
            values.append(token.get())
            thrown.append(error.cancellation.reason)
            raise

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, "first")
    eventually(lambda: values)
    assert worker.cancel_job(job.id, "for good", retry=False, hard=True)
    told.wait("failed")
    assert values[0] is values[1]
    assert thrown == ["for good"]
    assert (values[0].reason, told.cancellation().reason) == ("first", "for good")


def test_a_users_request_is_stronger_than_a_time_limit(queue: Queue, make: Make) -> None:
    """2.2: the limit has passed, and nobody has answered yet; then a user asks."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        token.wait()
        inside.set()
        go.wait()
        token.raise_if_cancelled()

    worker = make(process)
    told = Told(worker)
    job = queue.add("n", timeout=0.02)
    inside.wait()
    assert worker.cancel_job(job.id, "by hand")
    assert not worker.cancel_job(job.id, "by hand")
    go.set()
    told.wait("failed")
    said = told.cancellation()
    assert (said.kind, said.reason) == ("user", "by hand")
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason == "Job cancelled: by hand"


@pytest.mark.parametrize("first", ["user", "shutdown"])
def test_a_users_request_is_stronger_than_closing(queue: Queue, make: Make, first: str) -> None:
    """2.2, 7.1: earlier or later, it stays: the job ends by it and does not go back."""
    inside = gevent.event.Event()
    go = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        inside.set()
        token.wait()
        go.wait()
        token.raise_if_cancelled()

    worker: Worker = make(process, kill_after=60.0)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    ask = functools.partial(worker.cancel_job, job.id, "by hand", retry=False)
    if first == "user":
        assert ask()
    closing = gevent.spawn(worker.close, 0)
    told.wait("closing")
    gevent.sleep(0.01)
    if first == "shutdown":
        assert ask()
    go.set()
    closing.join()
    assert told.of(job) == ["cancelled", "failed"]
    assert told.cancellation().kind == "user"
    assert queue.get_job_state(job.id) == "failed"


@pytest.mark.parametrize(
    ("worker_options", "call_options", "kills"),
    [
        ({}, {}, False),
        ({}, {"hard": True}, True),
        ({}, {"kill_after": 0.05}, True),
        ({"cancel_mode": "hard", "kill_after": 0.05}, {}, True),
        ({"cancel_mode": "hard"}, {"hard": False}, False),
        ({"kill_after": 60.0}, {"hard": True, "kill_after": 0.05}, True),
    ],
)
def test_hard_means_cancel_at_once_and_kill_after_the_grace(
    queue: Queue,
    make: Make,
    worker_options: dict[str, typing.Any],
    call_options: dict[str, typing.Any],
    kills: bool,
) -> None:
    """1, 2.10: `None` is the worker's mode and grace; `kill_after` without `hard` means hard."""
    grace = call_options.get("kill_after", worker_options.get("kill_after", 0.0))
    inside, go = gevent.event.Event(), gevent.event.Event()
    tokens: list[CancellationToken] = []
    killed: list[float] = []

    def process(job: Job, token: CancellationToken) -> str:
        tokens.append(token)
        inside.set()
        try:
            go.wait()
        except JobKilled:
            killed.append(time.perf_counter())
            raise
        return "done"

    worker = make(process, **worker_options)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    asked = time.perf_counter()
    assert worker.cancel_job(job.id, **call_options)
    assert tokens[0].cancelled
    if not kills:
        gevent.sleep(0.02)
        go.set()
    told.wait("failed" if kills else "completed")
    assert len(killed) == kills
    if kills:
        assert killed[0] - asked >= grace - 0.005


def test_what_makes_no_sense_is_refused_before_anything_happens(queue: Queue, make: Make) -> None:
    """With the argument's name; the job goes on."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> bool:
        inside.set()
        go.wait()
        return token.cancelled

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    for error, named, reason, options in [
        (ValueError, "kill_after", "x", {"hard": False, "kill_after": 1}),
        (ValueError, "kill_after", "x", {"kill_after": -1}),
        (TypeError, "hard", "x", {"hard": 1}),
        (TypeError, "retry", "x", {"retry": "no"}),
        (TypeError, "reason", object(), {}),
        (ValueError, "reason", float("nan"), {}),
        (ValueError, "reason: at most 16384 bytes", "x" * 16_383, {}),
    ]:
        with pytest.raises(error, match=named):
            worker.cancel_job(job.id, reason, **options)  # type: ignore[arg-type]
        with pytest.raises(error, match=named):
            worker.cancel_all_jobs(reason, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reason: at most"):
        worker.close(0, "x" * 16_383)
    go.set()
    assert told.wait("completed")[1] is False


def test_cancel_all_jobs_counts_those_where_it_took_effect(queue: Queue, make: Make) -> None:
    """2.2: a job that was asked before is not counted again."""
    go = gevent.event.Event()
    inside: list[str] = []
    worker = make(lambda job, token: inside.append(job.id) or go.wait(), concurrency=3)
    queue.add_bulk([JobSpec("n") for _ in range(3)])
    eventually(lambda: len(inside) == 3)
    assert worker.cancel_job(worker.active_jobs[0].id)
    assert worker.cancel_all_jobs() == 2
    assert worker.cancel_all_jobs() == 0
    go.set()
    eventually(lambda: queue.get_job_counts()["completed"] == 3)
