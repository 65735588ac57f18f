"""A take, or the search for one whose answer was lost, meets a close, a job's end, the end of a
lock.  Each test forces the meeting that its docstring tells."""

from __future__ import annotations

import json

import gevent
import gevent.event
import pytest
import redis

from geventq import Job, Queue
from tests.conftest import Make
from tests.support.attempts import survive
from tests.support.calls import recovers, takes
from tests.support.proxy import Proxy
from tests.support.told import Told, ended
from tests.support.waiting import TurnedClock, eventually

pytestmark = pytest.mark.slow


def test_a_request_survives_a_worker_that_closes_while_it_takes_the_job(
    queue: Queue, proxy: Proxy, through: Make, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.4, 7.1: a request with retry=False is recorded; a worker takes the job, and closes before
    the answer comes.  The job goes back as it was, and the next worker ends it, unrun."""
    ran: list[str] = []
    job = queue.add("n", attempts=3)
    record = {"reason": "no more", "kind": "user", "hard": False, "retry": False}
    told = json.dumps({**record, "at": 1000, "by": None, "atm": 0})
    text = "Job cancelled: no more"
    redis_client.hset(f"{prefix}:q:{job.id}", mapping={"gqc": told, "defa": text})
    traps = [proxy.hold_answer(takes) for _ in range(4)]
    first = through(lambda job: ran.append("first"), concurrency=8)
    first.start()
    eventually(lambda: queue.get_job_counts()["active"] == 1)
    eventually(lambda: all(trap.was_reached for trap in traps))
    closing = gevent.spawn(first.close)
    eventually(lambda: not first.is_running)
    for trap in traps:
        trap.release()
    closing.get(timeout=20)
    make(lambda job: ran.append("second"))
    read = ended(queue, job, "failed")
    assert (ran, read.failed_reason) == ([], text)


def test_a_search_that_meets_the_jobs_end_does_not_run_it_again(
    queue: Queue, proxy: Proxy, through: Make
) -> None:
    """3.6: a lost take was found, and is asked for again later; the server sees the job locked;
    the job ends and its outcome is answered; only then the answer to the search comes."""
    ran: list[str] = []
    go = gevent.event.Event()

    def process(job: Job) -> None:
        ran.append(job.id)
        go.wait()

    job = queue.add("n")
    lost = proxy.swallow_next(takes)
    worker = through(process, lock_duration=4.0, lock_renew_time=0.1)
    told = Told(worker)
    worker.start()
    lost.wait()
    eventually(lambda: ran == [job.id])
    search = proxy.hold_answer(recovers)
    gevent.sleep(0.15)  # a round of the renewer: it may ask again, or know better
    go.set()
    eventually(lambda: told.of(job) == ["completed"])
    search.release()
    gevent.sleep(0.15)
    assert ran == [job.id]
    assert told.of(job) == ["completed"]


def test_a_search_does_not_run_a_stuck_job_a_second_time(
    queue: Queue, proxy: Proxy, through: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.10, 3.6: a job whose take was lost and found is stuck; its lock lives on for a while, and
    a later search finds it: it must neither run nor be renewed."""
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.03)
    ran: list[str] = []
    go = gevent.event.Event()

    def process(job: Job) -> None:
        ran.append(job.id)
        survive(go)

    job = queue.add("n")
    lost = proxy.swallow_next(takes)
    worker = through(
        process, concurrency=2, lock_duration=2.0, lock_renew_time=0.1, skip_stalled_check=True
    )
    told = Told(worker)
    worker.start()
    lost.wait()
    eventually(lambda: ran == [job.id])
    assert worker.cancel_job(job.id, hard=True)
    told.wait("stuck")
    eventually(lambda: not redis_exists(queue, f"{queue.prefix}:q:{job.id}:lock"))
    gevent.sleep(0.3)  # rounds of the renewer
    assert ran == [job.id]
    assert queue.get_job_state(job.id) == "active"
    go.set()
    eventually(lambda: not worker.active_jobs)


def redis_exists(queue: Queue, key: str) -> bool:
    with Queue("q", queue._connection, queue.prefix) as other:
        return bool(other._store._client.execute("EXISTS", key))


def test_a_take_whose_answer_comes_after_the_locks_life_is_not_run(
    queue: Queue, proxy: Proxy, through: Make, make: Make, turned_clock: TurnedClock
) -> None:
    """3.3: the answer to a take lies in the socket while the process is suspended; the lock has
    lapsed and another worker runs the job.  Awake, this one must not begin it."""
    ran: list[str] = []
    go = gevent.event.Event()
    job = queue.add("n")
    answer = proxy.hold_answer(takes)
    late = through(lambda job: ran.append("late"), lock_duration=2.0, skip_stalled_check=True)
    late.start()
    answer.wait()
    eventually(lambda: queue.get_job_state(job.id) == "active")
    late_key = f"{queue.prefix}:q:{job.id}:lock"
    with Queue("q", queue._connection, queue.prefix) as other:
        other._store._client.execute("DEL", late_key)  # as time would
    turned_clock.advance(3.0)

    def process(job: Job) -> None:
        ran.append("other")
        go.wait()

    make(process, stalled_interval=0.05)
    eventually(lambda: ran == ["other"])
    answer.release()
    gevent.sleep(0.1)
    go.set()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == ["other"]


def test_a_take_whose_answer_comes_late_but_is_still_locked_runs(
    queue: Queue, proxy: Proxy, through: Make, turned_clock: TurnedClock
) -> None:
    """3.3, 3.6: by our clock the lock may have lapsed; the server knows that it has not."""
    ran: list[str] = []
    job = queue.add("n")
    answer = proxy.hold_answer(takes)
    late = through(lambda job: ran.append("late"), lock_duration=5.0, skip_stalled_check=True)
    late.start()
    answer.wait()
    eventually(lambda: queue.get_job_state(job.id) == "active")
    turned_clock.advance(4.8)
    answer.release()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == ["late"]
