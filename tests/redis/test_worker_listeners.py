"""A worker's events: in order, each attempt's outcome once, and no listener harms the engine."""

from __future__ import annotations

import logging
import typing

import gevent
import gevent.event
import pytest

from geventq import (
    CancellationToken,
    Job,
    JobCancelled,
    JobSpec,
    Queue,
    UnrecoverableError,
    Worker,
)
from tests.conftest import Make
from tests.support.servers import Server
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually


def test_the_life_of_a_worker_is_told_in_order(queue: Queue, redis_url: str, prefix: str) -> None:
    worker = Worker("q", lambda job: job.update_progress(50), redis_url, prefix)
    told = Told(worker)
    worker.start()
    queue.add("n")
    told.wait("completed")
    told.wait("drained")
    worker.pause()
    worker.pause()
    worker.resume()
    worker.resume()
    worker.close()
    worker.close()
    lives = [event for event, _ in told.events if event != "drained"]
    assert lives == [
        *("ready", "progress", "completed", "paused", "resumed", "closing", "closed"),
    ]


def test_each_outcome_is_told_once(queue: Queue, make: Make) -> None:
    """`failed` for final failures, `retrying` for the others; the job and what it was."""

    def process(job: Job) -> str:
        if job.name == "good":
            return "fine"
        raise (UnrecoverableError if job.name == "final" else ValueError)(job.name)

    told = Told(make(process, concurrency=3))
    good = queue.add("good")
    final = queue.add("final", attempts=3)
    bad = queue.add("bad", attempts=3)
    eventually(lambda: len(told.of(bad)) == 3)
    assert told.of(good) == ["completed"]
    assert told.of(final) == ["failed"]
    assert told.of(bad) == ["retrying", "retrying", "failed"]
    assert [(job.id, result) for job, result in told.args("completed")] == [(good.id, "fine")]
    assert [str(error) for job, error in told.args("failed") if job.id == bad.id] == ["bad"]


def test_active_is_told_in_the_jobs_greenlet_just_before_the_processor(
    queue: Queue, make: Make
) -> None:
    greenlets: list[tuple[str, object]] = []

    def note(where: str) -> None:
        greenlets.append((where, gevent.getcurrent()))

    worker = make(lambda job: note("processor"))
    worker.on("active", lambda job: note("listener"))
    told = Told(worker)
    queue.add("n")
    told.wait("completed")
    (first, inside), (second, outside) = greenlets
    assert (first, second) == ("listener", "processor")
    assert inside is outside


def test_a_slow_listener_delays_later_events_never_the_engine(queue: Queue, make: Make) -> None:
    """Ten jobs end while the first one's listener sits; then the events come in order."""
    go = gevent.event.Event()
    heard: list[int] = []

    def listen(job: Job, result: int) -> None:
        go.wait()
        heard.append(result)

    worker = make(lambda job: job.data)
    worker.on("completed", listen)
    for number in range(10):
        queue.add("n", number)
    eventually(lambda: queue.get_job_counts()["completed"] == 10)
    assert heard == []
    go.set()
    eventually(lambda: len(heard) == 10)
    assert heard == list(range(10))


def raise_timeout(*_: object) -> None:
    with gevent.Timeout(0.001):
        gevent.sleep(5)


def raise_exit(*_: object) -> None:
    raise SystemExit(3)


def raise_value_error(*_: object) -> None:
    raise ValueError("a listener's own")


RAISING = pytest.mark.parametrize(
    ("raising", "kind"),
    [
        (raise_value_error, ValueError),
        (raise_exit, SystemExit),
        (raise_timeout, gevent.Timeout),
    ],
)


def test_a_worker_takes_no_more_jobs_than_its_listeners_can_hear_of(
    queue: Queue, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """One listener hangs: what waits to be told is bounded, and it is said once; when it goes on,
    so does the worker, and everything is told."""
    go = gevent.event.Event()
    heard: list[str] = []

    def hangs(job: Job, result: object) -> None:
        heard.append(job.id)
        go.wait()

    jobs = queue.add_bulk([JobSpec("n")] * 3000)
    worker = make(lambda job: None, concurrency=50)
    worker.on("completed", hangs)
    slots = engine_of(worker).slots
    eventually(lambda: slots.is_held_back and not slots.held, what="nothing is on its way")
    done = queue.get_job_counts("completed")["completed"]
    assert len(heard) == 1 < done < 1500
    assert caplog.text.count("takes no more jobs than they can hear of") == 1
    go.set()
    eventually(lambda: len(heard) == len(jobs), what="all are told of")
    assert not slots.is_held_back
    assert caplog.text.count("takes no more jobs than they can hear of") == 1


@pytest.mark.slow
def test_a_close_hears_out_listeners_that_are_slow(queue: Queue, make: Make) -> None:
    """At most what they hear in about a second waits for them, so a close has the time."""
    heard: list[str] = []

    def slow(job: Job, result: object) -> None:
        gevent.sleep(0.005)
        heard.append(job.id)

    queue.add_bulk([JobSpec("n")] * 5000)
    worker = make(lambda job: None, concurrency=100)
    worker.on("completed", slow)
    slots = engine_of(worker).slots
    eventually(lambda: len(heard) > 100 and slots.is_held_back)
    worker.close(15)
    assert len(heard) == queue.get_job_counts("completed")["completed"] < 2500


@pytest.mark.slow
def test_a_job_that_tells_much_is_as_fast_as_its_listeners(queue: Queue, make: Make) -> None:
    """Progress is told by the thousand: who tells it waits with the listeners."""
    told, heard = 0, 0

    def process(job: Job) -> None:
        nonlocal told
        for told in range(1500):
            job.update_progress(told)

    def slow(job: Job, progress: object) -> None:
        nonlocal heard
        gevent.sleep(0.002)
        heard += 1
        assert told - heard < 1000  # else told as an error

    worker = make(process)
    worker.on("progress", slow)
    errors = Told(worker).args
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed", 60, every=0.02)
    eventually(lambda: heard == 1500)
    assert errors("error") == []


@pytest.mark.parametrize("event", ["completed", "active"])
@RAISING
def test_what_a_listener_raises_is_an_error_event(
    queue: Queue, make: Make, event: str, raising: typing.Any, kind: type[BaseException]
) -> None:
    """The next listener of the same event hears it, and the job and the worker go on."""
    worker = make(lambda job: "done")
    heard: list[str] = []
    worker.on(event, raising)
    worker.on(event, lambda job, *_: heard.append(job.id))
    told = Told(worker)
    jobs = [queue.add("n") for _ in range(2)]
    for job in jobs:
        eventually(lambda job=job: told.of(job) == ["completed"])  # type: ignore[misc]
    eventually(lambda: len(told.args("error")) == 2)
    assert [type(error) for (error,) in told.args("error")] == [kind] * 2
    assert heard == [job.id for job in jobs]


def test_an_error_that_nobody_listens_to_is_logged(
    queue: Queue, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make(lambda job: None)
    worker.on("completed", raise_value_error)
    queue.add("n")
    eventually(lambda: "a listener's own" in caplog.text)
    record = caplog.records[-1]
    assert (record.name, record.levelno) == ("geventq", logging.ERROR)
    assert record.exc_info is not None


def test_whoever_closes_late_waits_for_the_listeners_too(queue: Queue, make: Make) -> None:
    """7.4: the engine has ended, and a listener still hears of its last job: a second close
    returns when nothing of the worker is left, one in a listener at once."""
    go = gevent.event.Event()
    inside: list[str] = []
    worker = make(lambda job: None)

    def close_again() -> None:
        worker.close()
        worker.join()
        inside.append("returned")

    worker.on("completed", lambda job, result: go.wait())
    worker.on("closed", close_again)
    queue.add("n")
    eventually(lambda: queue.get_job_counts()["completed"] == 1)
    first = gevent.spawn(worker.close)
    eventually(lambda: worker._engine is None)
    late = [gevent.spawn(worker.close), gevent.spawn(worker.join)]
    gevent.sleep(0.02)  # turns enough for a return that should not come
    assert not any(one.ready() for one in late)
    go.set()
    gevent.joinall([first, *late], timeout=20, raise_error=True)
    assert inside == ["returned"]


def test_an_outage_that_nobody_listens_to_is_logged_once(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each part of the worker meets it, and one tells of it; the `error` event adds no line."""
    worker = Worker("q", print, own_server.url)
    with caplog.at_level(logging.WARNING, "geventq"), worker, Queue("q", own_server.url) as queue:
        eventually(lambda: engine_of(worker).subscription.is_up)
        eventually(lambda: [one["cmd"] for one in queue.get_workers()] == ["bzpopmin"])
        own_server.kill()
        eventually(lambda: not engine_of(worker).subscription.is_up)
        eventually(lambda: engine_of(worker).idle_wait.is_cut_off)
        own_server.start()
        eventually(lambda: engine_of(worker).subscription.is_up)
        eventually(lambda: not engine_of(worker).idle_wait.is_cut_off)
        queue.add("n").wait_until_finished(30)
        eventually(lambda: "works again" in caplog.text)  # for the last part that had met it
    server = f"Redis at {own_server.socket_path}"
    begins, ends = caplog.messages
    assert begins.startswith(f"{server} failed, trying again: ")
    assert ends.startswith(f"{server} works again after ")


def test_a_listener_of_errors_that_fails_is_logged_and_not_called_again(
    queue: Queue, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make(lambda job: None)
    worker.on("completed", raise_value_error)
    worker.on("error", raise_exit)
    told = Told(worker)
    queue.add("n")
    told.wait("error")
    eventually(lambda: "worker q: 3" in caplog.text)
    assert len(told.args("error")) == 1


def test_a_listener_may_be_taken_back(queue: Queue, make: Make) -> None:
    heard: list[str] = []
    worker = make(lambda job: None)
    told = Told(worker)
    listener = worker.on("completed", lambda job, result: heard.append(job.id))
    assert worker.off("completed", listener)
    assert not worker.off("completed", listener)
    queue.add("n")
    told.wait("completed")
    assert heard == []


@pytest.mark.parametrize("bad", ["complete", "", None])
def test_an_unknown_event_is_refused(bad: typing.Any) -> None:
    worker = Worker("q", lambda job: None)
    with pytest.raises(ValueError, match="event"):
        worker.on(bad, lambda *args: None)
    with pytest.raises(TypeError, match="listener"):
        worker.on("completed", typing.cast(typing.Any, 5))


def test_a_job_may_use_its_worker(queue: Queue, make: Make) -> None:
    """A processor cancels another job of the worker; the listener of that adds a third."""

    def process(job: Job, token: CancellationToken) -> None:
        if job.name == "first":
            eventually(lambda: worker.cancel_job("second-id", "by the first"))
        elif job.name == "second":
            token.sleep(60)

    worker = make(process, concurrency=2)
    told = Told(worker)
    worker.on("cancelled", lambda job, said: queue.add("third", job_id="third-id"))
    first = queue.add("first")
    second = queue.add("second", job_id="second-id")
    eventually(lambda: queue.get_job_state("third-id") == "completed")
    assert told.of(first) == ["completed"]
    assert told.of(second) == ["cancelled", "failed"]
    error = told.args("failed")[0][1]
    assert isinstance(error, JobCancelled)
    assert error.cancellation.reason == "by the first"
