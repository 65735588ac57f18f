"""3.6, 3.7: a Redis that hangs (SIGSTOP): connections stay open, nothing is answered.  Each call
ends at its own time, and so does each wait and each close."""

from __future__ import annotations

import collections.abc
import contextlib
import logging
import subprocess
import sys
import time
import typing

import gevent
import pytest

from geventq import Job, JobSpec, Queue, QueueEvents, RedisUnavailableError, Worker, WorkerGroup
from geventq.store.client import CALL_TIMEOUT
from geventq.store.queue_store import QueueStore
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import at_best, eventually

TIMEOUT = 0.5  # seconds, of the calls here
LATE = 3.0  # seconds that a busy machine may need beyond: far less than what was waited before


@contextlib.contextmanager
def hanging(server: Server) -> collections.abc.Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def seconds(call: collections.abc.Callable[[], object], error: type[BaseException]) -> float:
    began = time.perf_counter()
    with pytest.raises(error):
        call()
    return time.perf_counter() - began


CALLS: dict[str, collections.abc.Callable[[Queue], object]] = {
    "add": lambda queue: queue.add("n"),
    "add with an id": lambda queue: queue.add("n", job_id="mine"),
    "add_bulk": lambda queue: queue.add_bulk([JobSpec("n")] * 3),
    "add a big one": lambda queue: queue.add("n", "x" * 3_000_000),
    "get_job": lambda queue: queue.get_job("1"),
    "get_jobs": lambda queue: queue.get_jobs(),
    "get_job_counts": lambda queue: queue.get_job_counts(),
    "pause": lambda queue: queue.pause(),
    "retry_jobs": lambda queue: queue.retry_jobs(),
    "remove": lambda queue: queue.remove("1"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("used", [True, False], ids=["used", "new"])
def test_each_call_has_one_deadline_for_all_its_tries(
    own_server: Server, call: collections.abc.Callable[[Queue], object], used: bool
) -> None:
    """3.7: also one that still has to connect."""

    def measured() -> float:
        with Queue("q", own_server.url, timeout=TIMEOUT) as queue:
            if used:
                queue.count()
            with hanging(own_server):
                return seconds(lambda: call(queue), RedisUnavailableError)

    assert at_best(measured, lambda taken: taken < TIMEOUT + LATE) >= TIMEOUT * 0.9


OWN: dict[str, collections.abc.Callable[[Queue, Job, str], object]] = {
    "add": lambda queue, _, __: queue.add("n", job_id="mine"),
    "add_bulk": lambda queue, _, __: queue.add_bulk([JobSpec("n")] * 3),
    "get_job": lambda queue, _, __: queue.get_job("1"),
    "cancel_job": lambda queue, job, _: queue.cancel_job(job.id, force=True),
    "log": lambda _, job, __: job.log("line"),
    "the next event": lambda _, __, url: next(iter(QueueEvents("q", url))),
    "the end of a job": lambda _, job, __: job.wait_until_finished(),
    "the workers": lambda _, __, url: WorkerGroup("q", url).members(),
    "a job by hand": lambda _, __, url: Worker("q", print, url).get_next_job("mine"),
}


@pytest.mark.parametrize("used", [True, False], ids=["used", "new"])
@pytest.mark.parametrize("kind", [TimeoutError, ConnectionError, RedisUnavailableError, ValueError])
@pytest.mark.parametrize("call", OWN.values(), ids=OWN)
def test_a_time_limit_of_the_callers_own_ends_a_call_by_his_own_error(
    own_server: Server,
    call: collections.abc.Callable[[Queue, Job, str], object],
    kind: type[Exception],
    used: bool,
) -> None:
    """3.7: also one of a class that a link fails with: nothing is sent again after it."""
    url = f"{own_server.url}?db=1"  # so that a connection begins with a question
    with Queue("q", url) as queue:
        job = queue.add("n")
        if not used:
            queue._store._client._pool().close()
        error = kind("too slow for me")
        with (
            hanging(own_server),
            gevent.Timeout(30),
            pytest.raises(kind) as raised,
            gevent.Timeout(0.2, error),
        ):
            call(queue, job, url)
        assert raised.value is error


@pytest.mark.slow
def test_adds_that_meet_each_have_their_own_deadline(own_server: Server) -> None:
    """3.7: also who waits for a courier that hangs."""
    with Queue("q", own_server.url, timeout=TIMEOUT) as queue:
        queue.add("first")
        with hanging(own_server):
            adding = []
            for _ in range(40):
                adding.append(gevent.spawn(seconds, lambda: queue.add("n"), RedisUnavailableError))
                gevent.sleep(TIMEOUT / 20)
            gevent.joinall(adding, raise_error=True)
        assert max(one.value for one in adding) < TIMEOUT + LATE
        eventually(lambda: not queue._gathering()._couriers)


def test_an_add_that_was_not_sent_in_time_is_not_sent_later(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.6: its caller was told that nothing was done."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        queue.add("first")
        held = [proxy.hold_request(b"EVALSHA") for _ in range(3)]  # a lone add and two couriers
        sent = []
        for trap in held:
            sent.append(gevent.spawn(queue.add, "sent"))
            trap.wait()
        monkeypatch.setattr(QueueStore, "timeout", property(lambda store: 0.2))
        with pytest.raises(RedisUnavailableError) as caught:
            queue.add("not sent")
        assert not caught.value.may_be_done
        for trap in held:
            trap.release()
        gevent.joinall(sent, timeout=20, raise_error=True)
        eventually(lambda: not queue._gathering()._couriers)
        assert sorted(job.name for job in queue.get_jobs()) == ["first", "sent", "sent", "sent"]


def test_a_bad_end_of_one_try_is_not_forgotten_by_the_next(redis_url: str, prefix: str) -> None:
    """3.6: the first try's answer is lost, the second cannot connect: it may have been done."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix, timeout=5.0) as queue:
        queue.add("first")
        held = proxy.hold_answer(b"EVALSHA")
        adding = gevent.spawn(queue.add, "n", job_id="mine")
        held.wait()
        proxy.refuse()
        held.release()
        with pytest.raises(RedisUnavailableError) as caught:
            adding.get(timeout=30)
        assert caught.value.may_be_done
        proxy.accept()
        assert queue.count() == 2


def test_time_counts_only_while_no_byte_moves(redis_url: str, prefix: str) -> None:
    """3.7: a slow line that moves is not cut."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix, timeout=1.0) as queue:
        job = queue.add("n", "x" * 3_000_000)
        proxy.trickle = (100_000, 0.1)  # 3 s in all
        read = queue.get_job(job.id)
        assert read is not None
        assert len(read.data) == 3_000_000


@pytest.mark.parametrize("wait", [0.3, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_wait_for_an_end_takes_its_own_time(own_server: Server, wait: float) -> None:
    """3.7: an outage does not end it, and whatever its reader is in is cut at its end."""
    with Queue("q", own_server.url) as queue:
        job = queue.add("n")
        with gevent.Timeout(30):
            other = gevent.spawn(job.wait_until_finished, 0.2)  # a reader, then none
            other.join()
        with hanging(own_server):
            taken = seconds(lambda: job.wait_until_finished(wait), gevent.Timeout)
        assert wait * 0.9 <= taken < wait + LATE


@pytest.mark.slow
def test_a_wait_that_had_begun_before_takes_its_own_time(own_server: Server) -> None:
    """3.7: its reader is blocked in a call."""
    with Queue("q", own_server.url) as queue:
        job = queue.add("n")
        waiting = gevent.spawn(seconds, lambda: job.wait_until_finished(1.5), gevent.Timeout)
        gevent.sleep(0.3)
        with hanging(own_server):
            assert waiting.get(timeout=20) < 1.5 + LATE


@pytest.mark.slow
def test_a_cancel_that_waits_has_one_deadline_until_it_is_stored(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """5.4: who waits listens before the request is sent; where he cannot, nothing was sent."""
    with Queue("q", own_server.url, timeout=LATE) as queue:
        job = queue.add("n")
        began = time.perf_counter()
        with (
            hanging(own_server),
            caplog.at_level(logging.WARNING, "geventq"),
            pytest.raises(RedisUnavailableError) as caught,
        ):
            queue.cancel_job(job.id, wait=60)
        assert time.perf_counter() - began < LATE * 2
        assert (caught.value.may_be_done, caught.value.results) == (False, [None])
        assert not caplog.records
        assert queue.get_job_state(job.id) == "waiting"
        assert queue.cancel_job(job.id, wait=60).status == "cancelled"


def test_closing_does_not_wait_for_a_call_that_hangs(own_server: Server) -> None:
    """3.7: of a queue, its events, and a worker (whose locks lapse first: 7.1)."""
    queue = Queue("q", own_server.url)
    events = QueueEvents("q", own_server.url)
    events.on("completed", lambda event: None)
    worker = Worker("q", lambda job: gevent.sleep(60), own_server.url, lock_duration=1.0)
    worker.on("error", lambda error: None)
    worker.start()
    queue.add("n")
    eventually(lambda: worker.active_jobs)
    assert events.ready.wait(20)
    with hanging(own_server):
        for close, allowed in (
            (events.close, 0.0),
            (lambda: worker.close(0), 1.0 + 1.0 + 4.0),
            (queue.close, 0.0),
        ):
            began = time.perf_counter()
            typing.cast(typing.Any, close)()
            assert time.perf_counter() - began < allowed + LATE


@pytest.mark.slow
def test_a_worker_without_work_closes_at_once(own_server: Server) -> None:
    """3.7, 7.1: there is nothing to deliver; what its parts are in is cut."""

    def closing() -> float:
        worker = Worker("q", lambda job: None, own_server.url)
        worker.on("error", lambda error: None)
        worker.start()
        gevent.sleep(0.2)
        with hanging(own_server):
            gevent.sleep(0.2)
            began = time.perf_counter()
            worker.close(0)
            return time.perf_counter() - began

    at_best(closing, lambda taken: taken < 5.0)


@pytest.mark.slow
def test_a_worker_that_was_started_while_redis_hangs_closes_in_its_own_time(
    own_server: Server,
) -> None:
    """3.7, 7.1: the answer to its first take never comes, and there is nothing to deliver."""

    def closing() -> float:
        worker = Worker("q", lambda job: None, own_server.url)
        worker.on("error", lambda error: None)
        with hanging(own_server):
            worker.start()
            gevent.sleep(0.2)
            began = time.perf_counter()
            worker.close(0)
            return time.perf_counter() - began

    at_best(closing, lambda taken: taken < 1.0 + 4.0 + LATE)


def test_a_job_taken_by_hand_is_waited_for_in_its_own_time(own_server: Server) -> None:
    """An outage does not end the wait of `get_next_job`, and does not prolong it."""
    worker = Worker("q", lambda job: None, own_server.url, drain_delay=5.0)
    try:
        assert worker.get_next_job("mine", block=False) is None
        with Queue("q", own_server.url) as queue:
            own_server.pause()
            gevent.spawn_later(0.5, own_server.resume)
            gevent.spawn_later(0.7, queue.add, "n")
            job = worker.get_next_job("mine")
            assert isinstance(job, Job)
            job.move_to_completed(None)
    finally:
        own_server.resume()
        worker.close()


def test_the_usual_time_is_ten_seconds() -> None:
    with Queue("q") as queue:
        assert queue.timeout == CALL_TIMEOUT == 10.0


@pytest.mark.slow
def test_the_command_line_says_that_redis_cannot_be_reached(own_server: Server) -> None:
    """Status 3 for every outage: one that refuses, too."""
    command = [sys.executable, "-m", "geventq", "add", "q", "n", "--redis", own_server.url]
    with own_server.client() as client:
        for begin, end in (
            (("replicaof", "127.0.0.1", "1"), ("replicaof", "NO", "ONE")),
            (("config", "set", "maxmemory", "1"), ("config", "set", "maxmemory", "0")),
            (("config", "set", "maxclients", "1"), ("config", "set", "maxclients", "1000")),
        ):
            client.execute_command(*begin)
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            client.execute_command(*end)
            assert (done.returncode, done.stdout) == (3, ""), done.stderr
            assert "Traceback" not in done.stderr
