"""7.1: what comes in between while a worker closes or pauses."""

from __future__ import annotations

import logging
import threading
import typing

import gevent
import gevent.event
import pytest

from geventq import CancellationToken, Job, JobSpec, Queue, RateLimitError, Worker
from geventq.worker.lanes import _SHARES
from geventq.worker.run import runners
from tests.conftest import Make
from tests.support.calls import takes
from tests.support.proxy import Proxy
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually


def test_jobs_that_are_taken_while_closing_begins_go_back_in_their_order(
    queue: Queue, proxy: Proxy, through: Make, redis_client: typing.Any, prefix: str
) -> None:
    """The take is under way; close() is called; the answer comes: nothing runs, nothing stays
    locked, and the jobs stand where they stood."""
    ran: list[str] = []
    jobs = queue.add_bulk([JobSpec("n") for _ in range(2)])
    traps = [proxy.hold_answer(takes) for _ in range(_SHARES)]  # all takes under way
    worker = through(lambda job: ran.append(job.id), concurrency=8)
    worker.start()
    eventually(lambda: queue.get_job_counts()["active"] == 2)
    eventually(lambda: all(trap.was_reached for trap in traps))
    closing = gevent.spawn(worker.close)
    eventually(lambda: not worker.is_running)
    for trap in traps:
        trap.release()
    closing.get(timeout=20)
    assert ran == []
    assert queue.get_job_counts()["active"] == 0
    next_first = redis_client.lrange(f"{prefix}:q:wait", 0, -1)[::-1]
    assert next_first == [job.id for job in jobs]
    for job in queue.get_waiting():
        assert (job.attempts_made, job.attempts_started) == (0, 0)
        assert not redis_client.exists(f"{prefix}:q:{job.id}:lock")


def last_job(queue: Queue, through: Make) -> tuple[Worker, Job, gevent.event.Event]:
    """A worker with locks of two seconds, and the job in it, which ends when the event is set."""
    go = gevent.event.Event()
    worker = through(lambda job: go.wait(), lock_duration=2.0, skip_stalled_check=True)
    worker.start()
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)  # its first turn
    return worker, job, go


def told_undelivered(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "did not take" in record.msg]


@pytest.mark.slow
def test_outcomes_that_redis_does_not_take_are_named_in_the_log(
    queue: Queue, proxy: Proxy, through: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis is gone while the last job ends: close() returns when the locks have lapsed."""
    worker, job, go = last_job(queue, through)
    proxy.refuse()
    go.set()
    with caplog.at_level(logging.ERROR, "geventq"), gevent.Timeout(25):
        worker.close(0)
    proxy.accept()
    assert [text.endswith(f"jobs {job.id}") for text in told_undelivered(caplog)] == [True]


@pytest.mark.slow
def test_a_silent_redis_does_not_hold_up_the_close_either(
    queue: Queue, proxy: Proxy, through: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The last call is under way and never answered: its outcome is named, too."""
    worker, job, go = last_job(queue, through)
    with proxy.stalled():
        go.set()
        with caplog.at_level(logging.ERROR, "geventq"), gevent.Timeout(25):
            worker.close(0)
    assert [text.endswith(f"jobs {job.id}") for text in told_undelivered(caplog)] == [True]


def test_a_paused_worker_leaves_the_wake_up_to_the_others(queue: Queue, make: Make) -> None:
    """The paused one waits first in line for the marker, and would sit on it."""
    ran: list[str] = []
    paused = make(lambda job: ran.append("paused"), drain_delay=60.0)
    eventually(lambda: len(queue.get_workers()) == 1)
    other = make(lambda job: ran.append("other"), drain_delay=60.0)
    eventually(lambda: len(queue.get_workers()) == 2)
    paused.pause()
    for _ in range(3):
        job = queue.add("n")
        eventually(lambda job=job: queue.get_job_state(job.id) == "completed")
    assert ran == ["other"] * 3
    assert other.is_running


def test_a_job_that_is_announced_while_a_take_is_under_way_is_not_overlooked(
    queue: Queue, proxy: Proxy, through: Make, redis_client: typing.Any, prefix: str
) -> None:
    """A take finds nothing; before its answer arrives a job is added, and the idle wait takes its
    marker: the old answer must not send the worker to sleep."""
    worker = through(lambda job: None, drain_delay=60.0)
    worker.start()
    eventually(lambda: any(b"BZPOPMIN" in asked for asked in proxy.requests))
    take, wake = proxy.hold_answer(takes), proxy.hold_answer(b"BZPOPMIN")
    worker.concurrency = 1  # which makes it look
    take.wait()
    job = queue.add("n")
    eventually(lambda: not redis_client.zcard(f"{prefix}:q:marker"))
    wake.release()
    gevent.sleep(0.05)  # for the wake-up to arrive; where that takes longer, less is shown
    take.release()
    eventually(lambda: queue.get_job_state(job.id) == "completed")


@pytest.mark.parametrize("how", ["processor", "helper", "listener", "helper of a listener"])
def test_close_from_inside_begins_and_returns(queue: Queue, make: Make, how: str) -> None:
    """In a processor or a listener, and in what they spawned, waiting would be for ever."""
    returned: list[str] = []

    def close() -> None:
        worker.close()
        returned.append(how)

    def process(job: Job, token: CancellationToken) -> str:
        if how == "processor":
            close()
        elif how == "helper":
            gevent.spawn(close).join()
        return "done"

    worker = make(process)
    if how == "listener":
        worker.on("completed", lambda job, result: close())
    elif how == "helper of a listener":
        worker.on("completed", lambda job, result: gevent.spawn(close).join())
    job = queue.add("n")
    eventually(lambda: returned == [how])
    eventually(lambda: not worker.is_running)
    worker.close()
    assert queue.get_job_state(job.id) == "completed"


@pytest.mark.unpatched
def test_close_and_cancel_from_another_native_thread(queue: Queue, make: Make) -> None:
    """From any native thread, while the worker's own gives its hub turns."""
    worker = make(lambda job, token: token.sleep(60), concurrency=2)
    first, second = queue.add("n"), queue.add("n")
    eventually(lambda: len(worker.active_jobs) == 2)
    seen: list[object] = []

    def from_outside() -> None:
        seen.append(worker.cancel_job(first.id, "from a thread", retry=False))
        worker.concurrency = 3
        worker.close(0)
        seen.append(worker.is_running)

    thread = threading.Thread(target=from_outside)
    thread.start()
    eventually(lambda: not thread.is_alive())
    thread.join()
    assert seen == [True, False]
    assert queue.get_job_state(first.id) == "failed"
    assert queue.get_job_state(second.id) == "waiting"


def test_a_close_that_meets_the_very_first_start_wins(redis_url: str, prefix: str) -> None:
    """The first start of a process gives the hub turns before there is anything to close."""
    runners.untouched.cache_clear()
    worker = Worker("q", lambda job: None, redis_url, prefix)
    starting = gevent.spawn(worker.start)
    gevent.sleep(0)
    assert not starting.ready()
    worker.close()
    starting.get()
    assert not worker.is_running


def test_starts_and_closes_that_meet(queue: Queue, make: Make) -> None:
    """Idempotent from several greenlets: one engine, and a new id after each close."""
    worker = make(lambda job: "ran")
    ids = {worker.id}
    gevent.joinall([gevent.spawn(worker.start) for _ in range(5)], raise_error=True)
    assert worker.id in ids
    for _ in range(3):
        closing = [gevent.spawn(worker.close) for _ in range(3)]
        starting = gevent.spawn(worker.start)
        gevent.joinall([*closing, starting], raise_error=True)
        worker.start()
        ids.add(worker.id)
        job = queue.add("n")
        eventually(lambda job=job: queue.get_job_state(job.id) == "completed")
    assert len(ids) == 4


def test_a_listener_that_hangs_in_one_life_does_not_end_those_of_the_next(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.1: close(0) waits for a listener that hangs; meanwhile the worker is started anew; the
    time of the old listener is over: it is killed, and the new life's events are told."""
    monkeypatch.setattr("geventq.worker.closing._LISTENERS", 0.2)
    inside = gevent.event.Event()
    told: list[str] = []

    def hangs_once(job: Job, result: object) -> None:
        if not inside.is_set():
            inside.set()
            gevent.event.Event().wait()
        told.append(job.id)

    worker = make(lambda job: "done")
    worker.on("completed", hangs_once)
    queue.add("n")
    inside.wait()
    closing = gevent.spawn(worker.close, 0)
    eventually(lambda: not worker.is_running)
    eventually(lambda: worker._engine is None)
    worker.start()
    closing.get(timeout=20)
    job = queue.add("n")
    eventually(lambda: told == [job.id])


def test_close_asks_the_jobs_at_once_when_redis_is_silent(
    queue: Queue, proxy: Proxy, through: Make
) -> None:
    """7.1: close(0) cancels now; what the worker itself has to wait for (here: an answer in the
    idle wait, and to the wake-up that it hands on) comes later."""
    heard: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        token.wait()
        heard.append(job.id)

    worker = through(process, concurrency=2)
    worker.start()
    queue.add("n")
    eventually(lambda: worker.active_jobs)
    eventually(lambda: any(b"BZPOPMIN" in asked for asked in proxy.requests))
    gevent.sleep(0)  # the job's first turn
    with proxy.stalled():
        closing = gevent.spawn(worker.close, 0)
        for _ in range(20):  # turns of the hub, in which nothing can come from Redis
            gevent.sleep(0)
        assert heard
    closing.get(timeout=20)


def test_a_callback_that_outlives_its_job_has_ended_when_the_worker_is_closed(
    queue: Queue, make: Make
) -> None:
    """2.11, 7.4: the job obeys at once, its callback takes a moment, and the worker closes: the
    callback is neither cut nor left behind (tests/support/leaks.py)."""
    ended: list[str] = []

    def cleanup() -> None:
        gevent.sleep(0.2)
        ended.append("cleanup")

    def process(job: Job, token: CancellationToken) -> None:
        token.on_cancel(cleanup)
        linked = token.link()
        linked.on_cancel(cleanup)
        linked.sleep(60)

    worker = make(process)
    queue.add("n", attempts=1)
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)
    worker.close(0)
    assert ended == ["cleanup", "cleanup"]


@pytest.mark.parametrize("is_closed", [False, True], ids=["paused", "closed"])
def test_a_job_that_is_taken_while_the_worker_is_paused_does_not_start(
    queue: Queue, proxy: Proxy, through: Make, is_closed: bool
) -> None:
    """The take is under way when pause() is called; its answer comes after `paused` was told: the
    job goes back as it was, and runs when the worker goes on."""
    ran: list[str] = []
    job = queue.add("n")
    traps = [proxy.hold_answer(takes) for _ in range(_SHARES)]
    worker = through(lambda job: ran.append(job.id), concurrency=8)
    told = Told(worker)
    worker.start()
    eventually(lambda: queue.get_job_counts()["active"] == 1)
    eventually(lambda: all(trap.was_reached for trap in traps))
    worker.pause()
    told.wait("paused")
    closing = gevent.spawn(worker.close) if is_closed else None
    for trap in traps:
        trap.release()
    eventually(lambda: queue.get_job_state(job.id) == "waiting")
    if closing is not None:
        closing.get(timeout=20)
        worker.start()
    assert ran == []
    read = queue.get_job(job.id)
    assert read is not None
    assert read.attempts_started == 0
    worker.resume()
    eventually(lambda: told.of(job) == ["completed"])
    assert ran == [job.id]


@pytest.mark.parametrize("is_paused", [False, True])
def test_close_ends_a_wait_for_the_next_job(queue: Queue, make: Make, is_paused: bool) -> None:
    """`get_next_job` waits for a job, or for the end of a pause, longer than anybody has time."""
    worker = make(lambda job: None, drain_delay=3600.0, autorun=False)
    worker.close()
    if is_paused:
        worker.pause()
    waiting = gevent.spawn(worker.get_next_job, "token")
    gevent.sleep(0.1)
    assert not waiting.ready()
    with gevent.Timeout(20):
        worker.close()
        assert waiting.get() is None


@pytest.mark.unpatched
def test_close_from_another_thread_ends_a_wait_for_the_next_job(queue: Queue, make: Make) -> None:
    worker = make(lambda job: None, drain_delay=3600.0)
    worker.close()
    waiting = gevent.spawn(worker.get_next_job, "token")
    gevent.sleep(0.1)
    thread = threading.Thread(target=worker.close)
    thread.start()
    assert waiting.get(timeout=20) is None
    thread.join()


@pytest.mark.unpatched
def test_active_jobs_may_be_asked_from_a_native_thread(queue: Queue, make: Make) -> None:
    """While jobs come and go; a run that is over by then is left out."""
    worker = make(lambda job: None, concurrency=50)
    failures: list[BaseException] = []
    go_on = True

    def ask() -> None:
        try:
            while go_on:
                for job in worker.active_jobs:
                    assert isinstance(job, Job)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue.add_bulk([JobSpec("n") for _ in range(500)])
    eventually(lambda: queue.get_job_counts()["completed"] == 500)
    go_on = False
    for thread in threads:
        eventually(lambda thread=thread: not thread.is_alive())  # type: ignore[misc]
        thread.join()
    assert failures == []


def test_a_short_rate_limit_does_not_end_a_longer_one(queue: Queue, make: Make) -> None:
    """Two jobs at once: one says 3600 s, then the other says 0.1 s."""
    gates = {3600.0: gevent.event.Event(), 0.1: gevent.event.Event()}
    ran: list[float] = []

    def process(job: Job) -> None:
        ran.append(job.data)
        gates[job.data].wait()
        raise RateLimitError(job.data)

    worker = make(process, concurrency=2)
    for seconds in gates:
        queue.add("n", seconds)
    eventually(lambda: len(ran) == 2)
    for left, gate in enumerate(gates.values()):
        gate.set()
        eventually(lambda left=left: len(worker.active_jobs) == 1 - left)  # type: ignore[misc]
    eventually(lambda: queue.get_job_counts()["waiting"] == 2)
    assert engine_of(worker).slots.limited_for() > 3000
    gevent.sleep(0.3)
    assert len(ran) == 2
