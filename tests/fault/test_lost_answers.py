"""3.6: an answer that was lost may stand for a call that was carried out.  Each test lets the
server carry the call out, drops its answer and cuts the connection."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import pytest

from geventq import Job, Queue, RedisUnavailableError, Worker
from geventq.store.scripts import load
from tests.support.proxy import Proxy
from tests.support.told import ended
from tests.support.waiting import eventually


class Seen:
    """What a worker ran and told."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.completed: list[str] = []
        self.lost: list[str] = []

    def process(self, job: Job) -> str:
        self.ran.append(job.id)
        return "done"


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def worker(proxy: Proxy, prefix: str, seen: Seen) -> collections.abc.Iterator[Worker]:
    worker = Worker("q", seen.process, proxy.url, prefix)
    worker.on("completed", lambda job, result: seen.completed.append(job.id))
    worker.on("lock_lost", lambda job, said: seen.lost.append(job.id))
    worker.on("error", lambda error: None)
    yield worker
    worker.close(0)


def settles(kind: bytes) -> collections.abc.Callable[[bytes], bool]:
    """Requests of the settle script that carry an outcome of `kind`, or b"" for a take alone."""
    sha = load("settle").sha.encode()

    def matches(request: bytes) -> bool:
        if sha not in request:
            return False
        outcome = b"\r\nc\r\n" in request
        return outcome if kind else not outcome and b"\r\n-1\r\n" not in request

    return matches


def test_a_finish_whose_answer_was_lost_is_a_success(
    queue: Queue, proxy: Proxy, worker: Worker, seen: Seen
) -> None:
    """Sent again, it finds no lock but a higher `atm`: completed, told once, no lost lock."""
    trap = proxy.swallow_next(settles(b"c"))
    worker.start()
    job = queue.add("n")
    trap.wait()
    eventually(lambda: seen.completed == [job.id])
    read = queue.get_job(job.id)
    assert read is not None
    assert (queue.get_job_state(job.id), read.attempts_made) == ("completed", 1)
    assert (seen.ran, seen.lost) == ([job.id], [])


def test_a_finish_of_a_job_that_is_not_kept_is_a_success_too(
    queue: Queue, proxy: Proxy, worker: Worker, seen: Seen
) -> None:
    """The hash is gone and the removal policy says so: it was ours."""
    trap = proxy.swallow_next(settles(b"c"))
    worker.start()
    job = queue.add("n", remove_on_complete=True)
    trap.wait()
    eventually(lambda: seen.completed == [job.id])
    assert (seen.ran, seen.lost) == ([job.id], [])


def test_a_job_that_was_taken_by_a_lost_answer_runs_at_once(
    queue: Queue, proxy: Proxy, worker: Worker, seen: Seen
) -> None:
    """The worker asks which ids in `active` are locked with lock tokens it had sent."""
    job = queue.add("n")
    trap = proxy.swallow_next(settles(b""))
    worker.start()
    trap.wait()
    read = ended(queue, job, "completed")
    assert (read.attempts_started, seen.ran, seen.lost) == (1, [job.id], [])


def test_a_broken_hash_among_the_jobs_of_a_lost_answer_stops_nobody(
    queue: Queue, proxy: Proxy, worker: Worker, seen: Seen, redis_client: typing.Any, prefix: str
) -> None:
    """The take is carried out, its answer held back; the hash of a job is replaced; then the
    connection breaks."""
    errors: list[BaseException] = []
    worker.on("error", errors.append)
    broken = queue.add("n")
    answer = proxy.hold_answer(settles(b""))
    worker.start()
    answer.wait()
    redis_client.delete(f"{prefix}:q:{broken.id}")
    redis_client.set(f"{prefix}:q:{broken.id}", "no hash")
    proxy.cut()
    answer.release()
    sound = queue.add("n")
    eventually(lambda: queue.get_job_state(sound.id) == "completed")
    eventually(lambda: queue.get_job_state(broken.id) == "unknown")
    assert seen.ran == [sound.id]
    assert "WRONGTYPE" not in str(errors)


def test_a_take_that_the_server_carries_out_late_is_found_by_the_next_renewals(
    queue: Queue, proxy: Proxy, redis_client: typing.Any, prefix: str, seen: Seen
) -> None:
    """The connection breaks before the server reads the take; the worker asks, and nothing is
    locked; only then the server reads it.  The job must not wait for the stalled check: a worker
    that is paused by then gives it back, uncounted, and runs it when it goes on."""
    trap = proxy.lose_next(settles(b""))
    recover = load("recover").sha.encode()
    worker = Worker("q", seen.process, proxy.url, prefix, lock_duration=4.0, lock_renew_time=0.2)
    worker.on("error", lambda error: None)
    worker.start()
    try:
        request = trap.wait()
        eventually(lambda: any(recover in asked for asked in proxy.requests))
        worker.pause()  # so that no other take comes first
        eventually(lambda: not worker._engine.lanes.asked)
        job = queue.add("n")
        with redis_client.client() as late:  # a connection of its own
            late.connection.send_packed_command([request])
            late.connection.read_response()
        eventually(lambda: queue.get_job_state(job.id) == "waiting")
        worker.resume()
        eventually(lambda: queue.get_job_state(job.id) == "completed")
    finally:
        worker.close(0)
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.attempts_started, seen.ran, seen.lost) == (1, [job.id], [])


def test_an_add_that_may_have_been_stored_says_so(proxy: Proxy, queue: Queue, prefix: str) -> None:
    with Queue("q", proxy.url, prefix) as through:
        through.count()
        proxy.swallow_next(load("add").sha.encode())
        with pytest.raises(RedisUnavailableError, match="may have been stored"):
            through.add("n")
        assert queue.get_job_counts()["waiting"] == 1


def test_an_add_with_an_id_of_its_own_is_sent_again(
    proxy: Proxy, queue: Queue, prefix: str
) -> None:
    with Queue("q", proxy.url, prefix) as through:
        through.count()
        proxy.swallow_next(load("add").sha.encode())
        assert through.add("n", job_id="mine").id == "mine"
        assert queue.get_job_counts()["waiting"] == 1


def test_a_worker_lives_through_an_outage(
    queue: Queue, proxy: Proxy, worker: Worker, seen: Seen
) -> None:
    """3.7: it backs off, comes back, and loses nothing."""
    worker.start()
    first = queue.add("n")
    eventually(lambda: seen.completed == [first.id])
    with proxy.refusing():
        proxy.cut()
        second = queue.add("n")
        gevent.sleep(0)
        assert seen.ran == [first.id]
    eventually(lambda: seen.completed == [first.id, second.id])


def test_greenlets_that_add_at_once_each_get_their_own_job(queue: Queue) -> None:
    adds: list[typing.Any] = [gevent.spawn(queue.add, "n", number) for number in range(200)]
    gevent.joinall(adds, raise_error=True)
    stored = {add.value.id: add.value.data for add in adds}
    assert len(stored) == 200
    for job_id in ("1", "100", "200"):
        read = queue.get_job(job_id)
        assert read is not None
        assert read.data == stored[job_id]
