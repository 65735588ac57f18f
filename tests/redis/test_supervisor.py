"""`Supervisor` over real workers: who lives again, and how all are closed."""

from __future__ import annotations

import os
import signal

import gevent
import gevent.event
import pytest

from geventq import CancelBridge, Queue, Supervisor, Worker
from tests.support.native import in_native_thread
from tests.support.waiting import eventually
from tests.unit.test_supervisor import Child, Group


def test_what_is_thrown_at_a_greenlet_that_waits_for_a_worker_is_not_its_end(
    redis_url: str, prefix: str
) -> None:
    worker = Worker("q", lambda job: None, redis_url, prefix)
    with Supervisor([worker], max_restarts=0) as supervisor:
        before = worker.id
        assert supervisor._term is not None
        for _ in range(3):
            waiting = supervisor._term._lives[0].task.greenlet
            gevent.kill(waiting)
        gevent.sleep(0)
        assert (worker.is_running, worker.id, supervisor.is_running) == (True, before, True)


def test_a_worker_that_was_closed_by_somebody_else_lives_again(redis_url: str, prefix: str) -> None:
    worker = Worker("q", lambda job: None, redis_url, prefix)
    with Supervisor([worker]):
        before = worker.id
        worker.close()
        eventually(lambda: worker.is_running and worker.id != before)
    assert not worker.is_running


def test_groups_start_first_and_end_last(redis_url: str, prefix: str) -> None:
    log: list[str] = []
    workers = [Worker(f"q{n}", lambda job: None, redis_url, prefix) for n in range(2)]
    for worker in workers:
        worker.on("closed", lambda: log.append("worker closed"))
    children = [Group("group", log), workers[0], Child("bridge", log), workers[1]]
    supervisor = Supervisor(children)
    supervisor.start()
    assert all(worker.is_running for worker in workers)
    assert log == ["group starts", "bridge starts"]
    supervisor.close()
    assert log[2:] == ["bridge closes", "worker closed", "worker closed", "group closes"]


def test_workers_close_side_by_side(redis_url: str, prefix: str) -> None:
    """Each is told before the first one has ended."""
    go = gevent.event.Event()
    begun: list[str] = []
    workers = [Worker(f"q{n}", lambda job: go.wait(), redis_url, prefix) for n in range(3)]
    for worker in workers:
        worker.on("closing", lambda: begun.append("closing"))
        worker.on("closing", lambda: len(begun) == 3 and go.set())
    supervisor = Supervisor(workers)
    supervisor.start()
    for worker in workers:
        with Queue(worker.queue_name, redis_url, prefix) as queue:
            queue.add("waits")
    eventually(lambda: all(worker.active_jobs for worker in workers))
    supervisor.close()
    assert begun == ["closing"] * 3


def test_a_later_close_shortens_the_time(redis_url: str, prefix: str) -> None:
    worker = Worker("q", lambda job, token: token.sleep(3600), redis_url, prefix)
    supervisor = Supervisor([worker])
    supervisor.start()
    with Queue("q", redis_url, prefix) as queue:
        queue.add("waits")
        eventually(lambda: worker.active_jobs)
        first = gevent.spawn(supervisor.close)
        eventually(lambda: not worker.is_running)
        supervisor.close(0)
        first.join()
        assert queue.get_job_counts()["waiting"] == 1


def test_it_is_closed_from_any_native_thread(redis_url: str, prefix: str) -> None:
    """Its bridges too, of which each lives in the thread that started it."""
    worker = Worker("q", lambda job: None, redis_url, prefix)
    bridge = CancelBridge(redis_url, f"{prefix}:c", [worker])
    supervisor = Supervisor([worker, bridge])
    supervisor.start()
    assert in_native_thread(lambda: supervisor.close(5)) is None
    assert not (worker.is_running or bridge.is_running or supervisor.is_running)
    bridge.start()
    assert in_native_thread(bridge.close) is None
    assert not bridge.is_running


def test_start_and_close_at_the_same_time_leave_what_was_asked_last(
    redis_url: str, prefix: str
) -> None:
    worker = Worker("q", lambda job: None, redis_url, prefix)
    bridge = CancelBridge(redis_url, f"{prefix}:c", [worker])
    for one in (bridge, Supervisor([worker, bridge])):
        calls = [gevent.spawn(call) for call in (one.start, one.close, one.start)]
        gevent.joinall(calls, raise_error=True)
        assert one.is_running
        one.close()
        assert not (worker.is_running or bridge.is_running)


def test_a_job_may_close_the_supervisor_that_it_runs_under(redis_url: str, prefix: str) -> None:
    worker = Worker("q", lambda job: supervisor.close(), redis_url, prefix)
    supervisor = Supervisor([worker])
    supervisor.start()
    with Queue("q", redis_url, prefix) as queue:
        job = queue.add("closes")
        supervisor.join()
        assert queue.get_job_state(job.id) == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_all_with_their_own_time(
    redis_url: str, prefix: str, number: signal.Signals
) -> None:
    """7.2: `close_timeout` of each worker."""
    worker = Worker(
        "q", lambda job, token: token.sleep(3600), redis_url, prefix, close_timeout=0.05
    )
    supervisor = Supervisor([Child(), worker])
    running = gevent.spawn(supervisor.run)
    with Queue("q", redis_url, prefix) as queue:
        queue.add("waits")
        eventually(lambda: worker.active_jobs)
        os.kill(os.getpid(), number)
        running.get(timeout=60)
        assert queue.get_job_counts()["waiting"] == 1


def test_a_second_signal_means_at_once(redis_url: str, prefix: str) -> None:
    """7.2: no worker waits for its jobs any more."""
    worker = Worker("q", lambda job, token: token.sleep(3600), redis_url, prefix)
    supervisor = Supervisor([worker])
    running = gevent.spawn(supervisor.run)
    with Queue("q", redis_url, prefix) as queue:
        queue.add("waits")
        eventually(lambda: worker.active_jobs)
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(lambda: not worker.is_running)
        assert worker.active_jobs
        os.kill(os.getpid(), signal.SIGTERM)
        running.get(timeout=60)
        assert queue.get_job_counts()["waiting"] == 1
