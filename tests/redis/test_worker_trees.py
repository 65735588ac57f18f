"""2.12, 2.13, 2.15 on a real worker: whom a kill takes along, helpers and calls, time limits."""

from __future__ import annotations

import collections.abc
import os
import threading
import typing

import gevent
import gevent.event
import gevent.subprocess
import pytest
from gevent import monkey

import geventq
from geventq import CancellationToken, Job, JobKilled, Queue, Worker
from tests.conftest import Make
from tests.support.told import Told, stream_of
from tests.support.waiting import eventually

native_lock: typing.Final = monkey.get_original("_thread", "allocate_lock")


def sleeper(ended: list[str], name: str) -> None:
    try:
        gevent.sleep(60)
    finally:
        ended.append(name)


def test_a_kill_takes_the_jobs_greenlets_along(queue: Queue, make: Make) -> None:
    """2.12: children and grandchildren, also of a child that has ended; not what was detached,
    nor another job's."""
    ended: list[str] = []
    spared: list[gevent.Greenlet[..., object]] = []
    inside: list[str] = []

    def process(job: Job) -> None:
        gevent.spawn(sleeper, ended, f"{job.name}'s child")
        gevent.spawn(gevent.spawn, sleeper, ended, f"{job.name}'s grandchild").join()
        if job.name == "killed":
            spared.append(geventq.detach(sleeper, ended, "detached"))
        inside.append(job.name)
        sleeper(ended, job.name)

    worker = make(process, concurrency=2)
    told = Told(worker)
    job, other = queue.add("killed"), queue.add("other")
    eventually(lambda: len(inside) == 2)
    assert worker.cancel_job(job.id, hard=True)
    told.wait("failed")
    assert ended[0] == "killed"
    assert sorted(ended) == ["killed", "killed's child", "killed's grandchild"]
    assert worker.cancel_job(other.id, hard=True)
    eventually(lambda: told.of(other))
    assert "detached" not in ended
    gevent.killall(spared)


@pytest.mark.patched
@pytest.mark.parametrize("how", ["kill", "time limit", "timeout of a call"])
def test_a_kill_lets_a_condition_take_its_lock_back(queue: Queue, make: Make, how: str) -> None:
    """2.9: else the `with` of who was killed releases the lock that another job holds by then, and
    that one fails."""
    condition = threading.Condition(threading.Lock())
    waiting, taken, go_on = gevent.event.Event(), gevent.event.Event(), gevent.event.Event()

    def wait(job: Job, token: CancellationToken) -> None:
        def until_told() -> None:
            with condition:
                waiting.set()
                condition.wait()
            gevent.sleep(60)

        if how == "timeout of a call":
            token.run(until_told, timeout=0.3)
        else:
            until_told()

    def hold(job: Job) -> str:
        with condition:
            condition.notify()
            taken.set()
            go_on.wait()
        return "held to the end"

    worker = make({"wait": wait, "hold": hold}, concurrency=2, cancel_mode="hard")
    told = Told(worker)
    waiter = queue.add("wait", timeout=0.3 if how == "time limit" else None)
    waiting.wait()
    holder = queue.add("hold")
    taken.wait()
    if how == "kill":
        assert worker.cancel_job(waiter.id, retry=False)
    gevent.sleep(0.5)  # it is due by now, and held back
    assert told.of(waiter) == []
    go_on.set()
    told.wait("failed")
    eventually(lambda: told.of(holder))
    assert told.of(holder) == ["completed"]
    assert condition.acquire(blocking=False)
    condition.release()


def test_a_worker_that_a_job_started_does_not_die_with_it(
    queue: Queue, make: Make, redis_url: str, prefix: str
) -> None:
    """2.12: geventq's own greenlets belong to no job, whoever made what they serve."""
    inner: list[Worker] = []

    def process(job: Job) -> None:
        other = Worker("inner", lambda job: "done", redis_url, prefix)
        other.start()
        inner.append(other)
        gevent.sleep(60)

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: inner)
    assert worker.cancel_job(job.id, hard=True)
    told.wait("failed")
    with Queue("inner", redis_url, prefix) as others:
        job = others.add("n")
        eventually(lambda: others.get_job_state(job.id) == "completed")
    inner[0].close()


@pytest.mark.parametrize("end", ["returns", "is killed"])
def test_helpers_are_joined_before_the_outcome_is_sent(queue: Queue, make: Make, end: str) -> None:
    """2.13: the helper's cleanup still sees its job active, whichever way the processor ends."""
    states: list[str] = []
    inside = gevent.event.Event()

    def helper(job_id: str) -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.02)
            states.append(queue.get_job_state(job_id))

    def process(job: Job, token: CancellationToken) -> None:
        token.spawn(helper, job.id)
        gevent.sleep(0)
        inside.set()
        if end == "is killed":
            gevent.sleep(60)

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    if end == "is killed":
        assert worker.cancel_job(job.id, hard=True)
    told.wait("completed" if end == "returns" else "failed")
    assert states == ["active"]


def test_a_call_in_run_is_killed_and_joined_first(queue: Queue, make: Make) -> None:
    """2.13: `JobCancelled` is raised when the call has ended, cleanup and all."""
    order: list[str] = []

    def call() -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.02)
            order.append("the call has ended")

    def process(job: Job, token: CancellationToken) -> None:
        try:
            token.run(call)
        finally:
            order.append("raised")

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0.01)
    assert worker.cancel_job(job.id)
    told.wait("failed")
    assert order == ["the call has ended", "raised"]


def test_a_killed_job_does_not_wait_for_its_call_in_the_thread_pool(
    queue: Queue, make: Make
) -> None:
    """2.12: a DNS look-up, say: the call runs to its end there, the job ends at once."""
    done: list[str] = []
    inside = gevent.event.Event()
    answer = native_lock()
    answer.acquire()

    def call() -> None:
        answer.acquire()
        done.append("the call")

    def process(job: Job) -> None:
        inside.set()
        gevent.get_hub().threadpool.apply(call)

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, hard=True)
    told.wait("failed")
    assert done == []
    answer.release()
    eventually(lambda: done)


@pytest.mark.parametrize("end", ["fails", "is killed"])
def test_what_the_frames_of_a_failed_job_hold_holds_nobody_else_up(
    queue: Queue, make: Make, end: str
) -> None:
    """2.13: a half-used generator whose `finally` waits, in more jobs than there are calls to
    Redis at once: others are taken and end meanwhile; the outcome is sent when it is released."""
    go, waiting = gevent.event.Event(), []

    def rows(job: Job) -> collections.abc.Iterator[int]:
        try:
            yield 1
        finally:
            waiting.append(job.id)
            go.wait()
            states.append(queue.get_job_state(job.id))

    def process(job: Job) -> str:
        if job.name == "other":
            return "done"
        generator = rows(job)
        next(generator)
        if end == "is killed":
            gevent.sleep(60)
        raise ValueError("bad")

    states: list[str] = []
    worker = make(process, concurrency=12)
    told = Told(worker)
    jobs = [queue.add("holds") for _ in range(10)]
    if end == "is killed":
        eventually(lambda: len(worker.active_jobs) == 10)
        gevent.sleep(0.01)
        assert worker.cancel_all_jobs(hard=True) == 10
    eventually(lambda: len(waiting) == 10)
    others = [queue.add("other") for _ in range(20)]
    eventually(lambda: all(told.of(job) == ["completed"] for job in others))
    assert not any(told.of(job) for job in jobs)
    go.set()
    eventually(lambda: all(told.of(job) for job in jobs))
    assert states == ["active"] * 10
    assert {told.of(job)[-1] for job in jobs} == {"failed"}


def test_a_child_process_ends_before_its_jobs_outcome_is_told(queue: Queue, make: Make) -> None:
    """2.12: nothing of a killed job works on when it is tried again."""
    pids: list[int] = []

    def process(job: Job) -> None:
        child = gevent.subprocess.Popen(["sleep", "60"])
        pids.append(child.pid)
        child.wait()

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: pids)
    assert worker.cancel_job(job.id, hard=True)
    told.wait("failed")
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_jobs_own_limit_wins_over_the_workers(queue: Queue, make: Make) -> None:
    """2.15: a longer one too."""
    told = Told(make(lambda job: gevent.sleep(0.1), concurrency=3, job_timeout=0.05))
    longer, shorter = queue.add("n", timeout=60.0), queue.add("n", timeout=0.02)
    plain = queue.add("n")
    eventually(lambda: all(told.of(job) for job in (longer, shorter, plain)))
    reasons = {job.id: str(error) for job, error in told.args("failed")}
    assert reasons == {
        shorter.id: "Job timed out after 0.02 s",
        plain.id: "Job timed out after 0.05 s",
    }
    assert told.of(longer) == ["completed"]


def test_a_limit_counts_anew_for_each_attempt_from_its_first_turn(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """2.15: three attempts of 60 ms with a limit of 150 ms, the third hangs; kind `timeout`,
    retried by the job's rules; a slow `active` listener is not counted."""

    def process(job: Job) -> None:
        gevent.sleep(0.06)
        if job.attempts_made == 2:
            gevent.sleep(60)
        raise ValueError("again")

    worker = make(process, job_timeout=0.15)
    worker.on("active", lambda job: gevent.sleep(0.12))
    told = Told(worker)
    job = queue.add("n", attempts=3)
    told.wait("failed")
    assert told.of(job) == ["retrying", "retrying", "cancelled", "failed"]
    said = told.cancellation()
    assert (said.kind, said.hard, said.retry) == ("timeout", True, True)
    entry = stream_of(redis_client, prefix, job)[-1]
    assert (entry["event"], entry["kind"], entry["stage"]) == ("cancelled", "timeout", "thrown")


def test_a_limit_kills_in_a_hard_worker(queue: Queue, make: Make) -> None:
    """2.15: also where there is a token, after the worker's grace."""
    heard: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        heard.append(token.wait().kind)  # type: ignore[union-attr]
        gevent.sleep(60)

    told = Told(make(process, cancel_mode="hard", kill_after=0.03))
    job = queue.add("n", timeout=0.02)
    error = told.wait("failed")[1]
    assert (type(error), error.cancellation.hard, heard) == (JobKilled, True, ["timeout"])
    assert told.of(job) == ["cancelled", "failed"]


def test_a_limit_asks_where_there_is_a_token(queue: Queue, make: Make) -> None:
    """2.15: soft in a soft worker: the processor hears it, and its result counts."""

    def process(job: Job, token: CancellationToken) -> str:
        said = token.wait()
        return str(said.kind)

    told = Told(make(process))
    job = queue.add("n", timeout=0.02)
    assert told.wait("completed")[1] == "timeout"
    assert told.of(job) == ["completed"]


def test_what_a_result_that_is_not_json_holds_ends_in_the_jobs_greenlet(
    queue: Queue, make: Make
) -> None:
    """2.13: the processor returns a half-used generator whose `finally` takes its time: it does
    so in the greenlet of the job, not in one that takes and settles jobs for all."""
    ended_in: list[str] = []

    def rows() -> collections.abc.Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended_in.append(gevent.getcurrent().name)

    def process(job: Job) -> object:
        found = rows()
        next(found)
        return found

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    told.wait("failed")
    eventually(lambda: ended_in)
    assert ended_in == ["geventq-run-q"]
    assert told.of(job) == ["failed"]
