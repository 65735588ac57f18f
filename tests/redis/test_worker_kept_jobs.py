"""2.5, 2.6, 3.4: a `Job` outlives its attempt: once settled it is as one read anew, and stays so
when its worker has closed."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    Cancellation,
    DelayedError,
    GeventqError,
    Job,
    JobCancelled,
    LockLostError,
    Queue,
    WaitingError,
    Worker,
)
from tests.conftest import Make
from tests.support.told import Told
from tests.support.waiting import eventually

SHOWN: typing.Final = (
    *("attempts_made", "attempts_started", "return_value", "failed_reason", "stacktrace"),
    *("finished_on", "processed_on", "delay", "progress", "data", "cancellation"),
    *("deferred_failure", "processed_by"),
)


def shown(job: Job) -> dict[str, object]:
    return {name: getattr(job, name) for name in SHOWN}


def raises(error: BaseException) -> collections.abc.Callable[[Job], object]:
    def end(job: Job) -> object:
        raise error

    return end


ENDS: typing.Final = [
    pytest.param(lambda job: {"rows": 3}, "completed", {}, id="completed"),
    pytest.param(lambda job: None, "completed", {}, id="completed with nothing"),
    pytest.param(raises(ValueError("no")), "failed", {}, id="failed"),
    pytest.param(raises(ValueError("no")), "retrying", {"attempts": 2}, id="retried at once"),
    pytest.param(
        raises(ValueError("no")), "retrying", {"attempts": 2, "backoff": 60.0}, id="retried later"
    ),
    pytest.param(
        raises(JobCancelled(Cancellation("itself"))), "cancelled", {"attempts": 2}, id="cancelled"
    ),
    pytest.param(raises(DelayedError(60)), None, {}, id="moved to delayed"),
    pytest.param(raises(WaitingError()), None, {}, id="moved to waiting"),
]


@pytest.mark.parametrize(("end", "event", "options"), ENDS)
def test_once_settled_a_job_is_as_one_read_anew(
    queue: Queue,
    make: Make,
    end: collections.abc.Callable[[Job], object],
    event: str | None,
    options: dict[str, typing.Any],
) -> None:
    """2.6: in the listener that hears of its end, and for a processor's friend who has kept it."""
    kept: list[Job] = []
    heard: list[tuple[dict[str, object], dict[str, object]]] = []

    def process(job: Job) -> object:
        kept.append(job)
        job.update_progress(50)
        queue.pause()  # it stays where its end leads it
        return end(job)

    def listen(job: Job, _: object) -> None:
        read = queue.get_job(job.id)
        assert read is not None
        heard.append((shown(job), shown(read)))

    worker = make(process, name="somebody")
    if event is not None:
        worker.on(event, listen)
    job = queue.add("n", {"x": 1}, **options)
    eventually(lambda: kept and not worker.active_jobs)
    eventually(lambda: queue.get_job_state(job.id) != "active")
    if event is not None:
        ours, redis_s = eventually(lambda: heard)[0]
        assert ours == redis_s
    read = queue.get_job(job.id)
    assert read is not None
    assert shown(kept[0]) == shown(read)
    assert kept[0].log("row") == 1
    assert kept[0].get_state() == queue.get_job_state(job.id)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_job_that_was_given_back_is_as_one_read_anew(
    queue: Queue, make: Make, attempts: int
) -> None:
    """7.1: its attempt is taken back, in the object as in Redis."""
    worker = make(lambda job, token: token.sleep(60))
    queue.add("n", attempts=attempts)
    (job,) = eventually(lambda: worker.active_jobs)
    worker.close(0)
    read = queue.get_job(job.id)
    assert read is not None
    assert shown(job) == shown(read)
    assert job.attempts_started == 0


def test_a_completed_listener_may_log(queue: Queue, make: Make) -> None:
    """2.6 of the faults: with no lock token, because nobody holds the job any more."""
    rows: list[int] = []
    worker = make(lambda job: "done")
    told = Told(worker)
    worker.on("completed", lambda job, result: rows.append(job.log("it is done")))
    job = queue.add("n")
    eventually(lambda: rows == [1])
    assert told.args("error") == []
    assert queue.get_job_logs(job.id) == ["it is done"]


def test_a_job_whose_lock_was_lost_stays_refused(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.4: another worker may be running it: what the zombie writes is refused, for ever."""
    go = gevent.event.Event()
    kept: list[Job] = []

    def process(job: Job) -> None:
        kept.append(job)
        go.wait()

    worker = make(process, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: kept)
    redis_client.set(f"{prefix}:q:{job.id}:lock", "another worker's")
    go.set()
    told.wait("lock_lost")
    with pytest.raises(LockLostError):
        kept[0].log("from a zombie")
    with pytest.raises(LockLostError):
        kept[0].update_progress(1)


ACTS: typing.Final = [
    pytest.param("completed", None, lambda job: job.remove(), id="remove"),
    pytest.param("completed", None, lambda job: (job.log("1"), job.log("2")), id="log twice"),
    pytest.param("failed", None, lambda job: job.retry(), id="retry"),
    pytest.param("cancelled", 0.0, lambda job: job.get_state(), id="get_state"),
    pytest.param("completed", 5.0, lambda job: job.wait_until_finished(20), id="wait"),
]


@pytest.mark.parametrize(("event", "timeout", "act"), ACTS)
def test_what_a_closing_worker_tells_can_be_acted_upon(
    queue: Queue,
    make: Make,
    event: str,
    timeout: float | None,
    act: collections.abc.Callable[[Job], object],
) -> None:
    """2.5 of the faults: the jobs end while the worker closes; its connections stay until the
    last listener has heard."""
    go = gevent.event.Event()
    done: list[str] = []

    def process(job: Job, token: typing.Any) -> str:
        if event == "cancelled":
            token.sleep(60)
        go.wait()
        if event == "failed":
            raise ValueError("no")
        return "done"

    def listen(job: Job, _: object) -> None:
        gevent.sleep(0.01)  # others end meanwhile
        act(job)
        done.append(job.id)

    worker = make(process, concurrency=5)
    told = Told(worker)
    worker.on(event, listen)
    ids = {queue.add("n").id for _ in range(5)}
    eventually(lambda: len(worker.active_jobs) == 5)
    closing = gevent.spawn(worker.close, timeout)
    eventually(lambda: not worker.is_running)
    go.set()
    closing.get(timeout=20)
    assert set(done) == ids
    assert told.args("error") == []


def test_a_kept_job_is_usable_after_its_worker_has_closed(queue: Queue, make: Make) -> None:
    """2.5 of the faults: as one read by `Queue.get_job`."""
    kept: list[Job] = []
    worker = make(lambda job: 7)
    worker.on("completed", lambda job, result: kept.append(job))
    queue.add("n")
    (job,) = eventually(lambda: kept)
    worker.close()
    assert job.get_state() == "completed"
    assert job.log("later") == 1
    assert job.wait_until_finished(20) == 7
    job.retry("completed")
    assert job.get_state() == "waiting"


def test_who_waits_for_a_job_of_a_worker_that_closes_is_let_go(queue: Queue, make: Make) -> None:
    """2.5 of the faults: the job goes back, and nobody may ever run it."""
    worker = make(lambda job, token: token.sleep(60))
    queue.add("n")
    (job,) = eventually(lambda: worker.active_jobs)
    waiting = gevent.spawn(_waited, job)
    gevent.sleep(0.05)
    worker.close(0)
    waiting.join(20)
    assert waiting.ready()
    assert isinstance(waiting.value, GeventqError)


def _waited(job: Job) -> object:
    try:
        return job.wait_until_finished()
    except GeventqError as error:
        return error


def test_a_listener_that_waits_for_a_job_holds_up_no_close(queue: Queue, make: Make) -> None:
    """2.5 of the faults: it waits for a job of its own worker, which goes back."""
    heard: list[object] = []
    workers: list[Worker] = []

    def process(job: Job, token: typing.Any) -> None:
        if job.name == "long":
            token.sleep(60)

    def listen(job: Job, result: object) -> None:
        (other,) = workers[0].active_jobs
        heard.append("begun")
        heard.append(_waited(other))

    workers.append(make(process, concurrency=2))
    workers[0].on("completed", listen)
    queue.add("long")
    eventually(lambda: len(workers[0].active_jobs) == 1)
    queue.add("short")
    eventually(lambda: heard)
    gevent.sleep(0.05)
    with gevent.Timeout(20):
        workers[0].close(0)
    assert isinstance(heard[1], GeventqError)
