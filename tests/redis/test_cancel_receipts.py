"""5.4: `wait=` is a receipt: how the job ended, or how far stopping it has come."""

from __future__ import annotations

import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import CancellationToken, GeventqError, Job, JobSpec, Queue, Worker
from geventq.worker.stages import Stages
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.waiting import eventually, never


class Gate:
    """A processor whose jobs run until the test lets them go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = gevent.event.Event()

    def process(self, job: Job) -> str:
        self.begun += 1
        self.go.wait()
        if job.name == "fails":
            raise RuntimeError("by itself")
        return "done"


@pytest.fixture
def gate() -> Gate:
    return Gate()


def asked(queue: Queue, *job_ids: str, **options: typing.Any) -> gevent.Greenlet[..., typing.Any]:
    """A caller who waits; when this returns, his request is recorded."""
    caller = gevent.spawn(queue.cancel_jobs, list(job_ids), "enough", **options)
    for job_id in job_ids:
        eventually(lambda job_id=job_id: queue.get_job(job_id).cancellation)
    return caller


@pytest.mark.parametrize(
    ("name", "options", "status"),
    [
        ("ends", {}, "completed"),
        ("ends", {"remove_on_complete": True}, "completed"),
        ("fails", {}, "stopped"),
        ("fails", {"remove_on_fail": True}, "stopped"),
    ],
)
def test_the_end_of_a_running_job_is_told(
    queue: Queue, make: Make, gate: Gate, name: str, options: dict[str, typing.Any], status: str
) -> None:
    make(gate.process)
    job = queue.add(name, **options)
    eventually(lambda: gate.begun)
    caller = asked(queue, job.id, wait=60)
    gate.go.set()
    (result,) = caller.get()
    assert (result.status, result.state) == (status, "active")
    assert result.seconds is not None
    assert 0 < result.seconds < 60


@pytest.mark.parametrize(
    ("options", "stage"),
    [({}, "seen"), ({"kill_after": 60}, "grace"), ({"hard": True}, "thrown")],
)
@pytest.mark.parametrize("retry", [False, True])
def test_the_stage_is_the_runs_last_one_however_late_the_others_are_told(
    queue: Queue,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, typing.Any],
    stage: str,
    retry: bool,
) -> None:
    """5.4: the events of the stages are sent by another greenlet than the outcome."""
    send, held = Stages._send, gevent.event.Event()

    def late(self: Stages, timeout: float | None = None) -> None:
        held.wait()
        send(self, timeout)

    monkeypatch.setattr(Stages, "_send", late)

    def process(job: Job, token: CancellationToken) -> None:
        if options.get("hard"):
            gevent.sleep(60)
        token.sleep(60)

    worker = make(process)
    job = queue.add("n", attempts=2, backoff=60)
    eventually(lambda: worker.active_jobs)
    result = job.cancel("enough", wait=30, retry=retry, **options)
    held.set()
    assert (result.status, result.stage) == ("stopped", stage)
    assert job.get_state() == ("delayed" if retry else "failed")


def test_with_retry_the_end_of_the_run_counts(queue: Queue, make: Make, gate: Gate) -> None:
    """The job itself goes on: it is delayed for its back-off."""
    make(gate.process)
    job = queue.add("fails", attempts=2, backoff=60.0)
    eventually(lambda: gate.begun)
    caller = asked(queue, job.id, wait=60, retry=True)
    gate.go.set()
    (result,) = caller.get()
    assert result.status == "stopped"
    assert job.get_state() == "delayed"


def test_with_retry_the_first_end_counts_where_the_next_run_ends_in_the_same_moment(
    queue: Queue, locks: Locks, redis_client: redis.Redis, prefix: str
) -> None:
    """5.4: all of it comes in one reading of the stream."""
    job = queue.add("n", attempts=3)
    locks.leave_as_a_dead_worker_does(job.id)
    caller = asked(queue, job.id, wait=60, retry=True)
    with redis_client.pipeline() as pipe:
        for told in (
            {"event": "waiting", "prev": "active"},
            {"event": "active", "prev": "waiting"},
            {"event": "completed", "returnvalue": "1"},
        ):
            pipe.xadd(f"{prefix}:q:events", {**told, "jobId": job.id})
        pipe.execute()
    assert caller.get()[0].status == "stopped"


@pytest.mark.slow
def test_with_retry_the_end_of_a_run_that_the_stream_does_not_tell_of_is_seen(
    queue: Queue,
    locks: Locks,
    redis_client: redis.Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5.4: it was trimmed away; the job waits again, one attempt further."""
    monkeypatch.setattr("geventq.store.job_ends._LOOK_EVERY", 0.1)
    job = queue.add("n", attempts=3)
    locks.leave_as_a_dead_worker_does(job.id)
    caller = asked(queue, job.id, wait=60, retry=True)
    redis_client.lmove(f"{prefix}:q:active", f"{prefix}:q:wait", "LEFT", "LEFT")
    redis_client.hset(f"{prefix}:q:{job.id}", "atm", 1)
    assert caller.get()[0].status == "stopped"


@pytest.mark.parametrize("retry", [False, True])
def test_a_job_that_stalls_has_not_stopped_for_good(
    queue: Queue, locks: Locks, redis_client: redis.Redis, prefix: str, redis_url: str, retry: bool
) -> None:
    """3.5, 4.4, 5.4: back in wait it is still to be ended, and so is its run; only then the caller
    is answered."""
    job = queue.add("n", attempts=3, backoff=60.0)
    locks.leave_as_a_dead_worker_does(job.id)
    caller = asked(queue, job.id, wait=60, retry=retry)
    redis_client.sadd(f"{prefix}:q:stalled", job.id)
    queue.pause()
    with Worker("q", print, redis_url, prefix, stalled_interval=0.1):
        eventually(lambda: job.get_state() == "waiting")
        never(caller.ready, 0.2)
        queue.resume()
        result = caller.get()[0]
        assert (result.status, result.stage) == ("stopped", "seen")
    assert job.get_state() == ("delayed" if retry else "failed")
    read = queue.get_job(job.id)
    assert read is not None
    assert read.attempts_made == 1


def test_at_the_time_out_it_says_how_far_it_has_come(queue: Queue, make: Make, gate: Gate) -> None:
    worker = make(gate.process)
    job = queue.add("ends")
    eventually(lambda: gate.begun)
    result = queue.cancel_job(job.id, wait=0.2)
    assert (result.status, result.seconds) == ("requested", None)
    assert result.stage is not None
    gate.go.set()
    worker.close()


def test_one_deadline_serves_all_of_them(queue: Queue, make: Make, gate: Gate) -> None:
    make(gate.process, concurrency=20)
    jobs = queue.add_bulk([JobSpec("ends")] * 20)
    eventually(lambda: gate.begun == 20)
    began = gevent.get_hub().loop.now()
    results = queue.cancel_jobs([job.id for job in jobs], wait=0.5)
    assert {one.status for one in results} == {"requested"}
    assert gevent.get_hub().loop.now() - began < 10, "not half a second each"
    gate.go.set()


def test_a_job_that_does_not_run_is_answered_at_once(queue: Queue) -> None:
    job = queue.add("n")
    assert queue.cancel_job(job.id, wait=60).status == "cancelled"
    assert queue.cancel_job(job.id, wait=60).status == "finished"
    assert queue.cancel_job("nope", wait=60).status == "not_found"


def test_a_job_that_waits_for_its_own_end_is_refused(queue: Queue, make: Make) -> None:
    def process(job: Job) -> str:
        with pytest.raises(GeventqError, match=f"job {job.id} .*its own cancellation"):
            queue.cancel_job(job.id, wait=5)
        return "went on"

    make(process)
    job = queue.add("n")
    assert job.wait_until_finished(20) == "went on"


def test_a_close_lets_those_go_who_wait_and_tells_what_was_asked(
    queue: Queue, make: Make, gate: Gate
) -> None:
    make(gate.process)
    waits, runs = queue.add("ends", delay=60), queue.add("ends")
    eventually(lambda: gate.begun)
    caller = gevent.spawn(queue.cancel_jobs, [waits.id, runs.id], wait=60)
    eventually(lambda: queue.get_job(runs.id).cancellation)
    queue.close()
    with pytest.raises(GeventqError, match="closed") as raised:
        caller.get()
    assert [one.status for one in raised.value.results] == ["cancelled", "requested"]
    gate.go.set()


def test_a_caller_who_is_killed_waits_no_longer(queue: Queue, make: Make, gate: Gate) -> None:
    """And nobody reads the events for him; what he has asked for stays asked."""
    make(gate.process)
    job = queue.add("ends")
    eventually(lambda: gate.begun)
    caller = asked(queue, job.id, wait=60)
    caller.kill()
    ends = queue._store.ends_of_jobs()
    assert (ends._waiting, ends._reader) == ({}, None)
    assert queue.cancel_job(job.id, wait=0).status == "requested"
    gate.go.set()


@pytest.mark.parametrize("elsewhere", ["queue", "prefix", "database"])
def test_a_job_waits_for_the_end_of_another_one_with_its_id(
    queue: Queue, make: Make, redis_url: str, prefix: str, elsewhere: str
) -> None:
    """Ids are a queue's own: in another queue, prefix or database it is another job."""
    url = f"{redis_url}?db=1" if elsewhere == "database" else redis_url
    name = "other" if elsewhere == "queue" else "q"
    other = Queue(name, url, f"{prefix}-2" if elsewhere == "prefix" else prefix)

    def process(job: Job) -> list[str]:
        return [other.cancel_job(job.id, wait=5).status, other.cancel_jobs([job.id])[0].status]

    make(process)
    with other:
        other.add("n", job_id="same")
        job = queue.add("n", job_id="same")
        assert job.wait_until_finished(20) == ["cancelled", "finished"]
        other.obliterate()


def test_a_helper_of_a_job_may_not_wait_for_it_either(queue: Queue, make: Make) -> None:
    """Nor a `Queue` that reaches the same one in another way; asking without waiting is free."""

    def process(job: Job) -> str:
        with pytest.raises(GeventqError, match="its own cancellation"):
            gevent.spawn(job.cancel, wait=5).get()
        return queue.cancel_job(job.id, hard=False).status

    make(process)
    assert queue.add("n").wait_until_finished(20) == "requested"


def test_while_callers_wait_nothing_is_polled(
    queue: Queue, make: Make, gate: Gate, redis_client: redis.Redis
) -> None:
    """A hundred of them share one connection and one blocking read."""
    make(gate.process, concurrency=100)
    jobs = queue.add_bulk([JobSpec("ends")] * 100)
    eventually(lambda: gate.begun == 100)
    callers = [gevent.spawn(queue.cancel_job, job.id, wait=60) for job in jobs]
    eventually(lambda: queue.get_job(jobs[-1].id).cancellation)
    blocked = [one for one in redis_client.client_list() if one["cmd"] == "xread"]
    assert len(blocked) <= 1
    gate.go.set()
    assert {caller.get().status for caller in callers} == {"completed"}
