"""`JobLogFilter`: log records say which job they come from, wherever in it they are made
(cancellation.md 2.16)."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import logging
import multiprocessing.pool
import threading
import typing

import gevent
import pytest

from geventq import Job, JobLogFilter, Queue
from geventq.cancellation import CancellationToken
from tests.conftest import Make
from tests.support.told import Told
from tests.support.waiting import eventually

log = logging.getLogger("users.own.code")

Seen = dict[str, list[tuple[object, object, object]]]


class Lines(logging.Handler):
    """Keeps (job, queue, attempt) of each record, by its message."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = {}

    def emit(self, record: typing.Any) -> None:
        where = (record.job, record.queue, record.attempt)
        self.seen.setdefault(record.getMessage(), []).append(where)


@pytest.fixture
def lines() -> collections.abc.Iterator[Lines]:
    handler = Lines()
    handler.addFilter(JobLogFilter())
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def _run(make: Make, queue: Queue, process: typing.Any) -> Job:
    told = Told(make(process))
    job = queue.add("n")
    told.wait("completed")
    return job


def _says(text: str) -> None:
    log.warning(text)


def test_records_in_a_job_name_it_and_others_do_not(queue: Queue, make: Make, lines: Lines) -> None:
    log.warning("before")
    job = _run(make, queue, lambda job: _says("inside"))
    log.warning("after")
    assert lines.seen == {
        "before": [("-", "-", "-")],
        "inside": [(job.id, "q", 1)],
        "after": [("-", "-", "-")],
    }


def test_each_attempt_has_its_number(queue: Queue, make: Make, lines: Lines) -> None:
    def process(job: Job) -> None:
        log.warning("tries")
        if job.attempts_made < 2:
            raise ValueError("not yet")

    told = Told(make(process))
    job = queue.add("n", attempts=3)
    told.wait("completed")
    assert lines.seen["tries"] == [(job.id, "q", number) for number in (1, 2, 3)]


def test_jobs_side_by_side_are_told_apart(queue: Queue, make: Make, lines: Lines) -> None:
    """Also where one greenlet runs job after job."""

    def process(job: Job) -> None:
        for _ in range(3):
            log.warning(job.id)
            gevent.sleep(0.001)
        gevent.spawn(log.warning, job.id).join()

    told = Told(make(process, concurrency=10))
    for _ in range(40):
        queue.add("n")
    eventually(lambda: len(told.args("completed")) == 40)
    assert len(lines.seen) == 40
    assert all(found == [(job_id, "q", 1)] * 4 for job_id, found in lines.seen.items())


def in_a_greenlet(token: CancellationToken) -> None:
    gevent.spawn(lambda: gevent.spawn(_says, "there").join()).join()


def in_a_later_greenlet(token: CancellationToken) -> None:
    gevent.spawn_later(0.001, _says, "there").join()


def in_token_run(token: CancellationToken) -> None:
    token.run(_says, "there")


def in_token_spawn(token: CancellationToken) -> None:
    token.spawn(_says, "there").join()


def in_a_thread(token: CancellationToken) -> None:
    thread = threading.Thread(target=_says, args=("there",))
    thread.start()
    thread.join()


def in_a_thread_of_a_thread(token: CancellationToken) -> None:
    thread = threading.Thread(target=in_a_thread, args=(token,))
    thread.start()
    thread.join()


def in_an_executor(token: CancellationToken) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(_says, "there").result()


def in_a_thread_pool(token: CancellationToken) -> None:
    with multiprocessing.pool.ThreadPool(1) as pool:
        pool.apply_async(_says, ("there",)).get()


def in_gevents_thread_pool(token: CancellationToken) -> None:
    typing.cast(typing.Any, gevent.get_hub()).threadpool.apply(_says, ("there",))


def in_a_coroutine(token: CancellationToken) -> None:
    async def says() -> None:
        _says("there")

    token.run_coroutine(says())


@pytest.mark.parametrize(
    "place",
    [
        in_a_coroutine,
        *(in_a_greenlet, in_a_later_greenlet, in_token_run, in_token_spawn, in_a_thread),
        *(in_a_thread_of_a_thread, in_an_executor, in_a_thread_pool, in_gevents_thread_pool),
    ],
)
def test_what_a_job_starts_is_the_jobs(
    queue: Queue,
    make: Make,
    lines: Lines,
    place: typing.Callable[[CancellationToken], None],
) -> None:
    job = _run(make, queue, lambda job, token: place(token))
    assert lines.seen == {"there": [(job.id, "q", 1)]}


def test_a_pool_that_many_jobs_share_is_none_of_them(
    queue: Queue, make: Make, lines: Lines
) -> None:
    """Each call is that of the job that queued it, also in the thread that an earlier one began."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        told = Told(make(lambda job: executor.submit(_says, job.id).result()))
        jobs = [queue.add("n") for _ in range(3)]
        eventually(lambda: len(told.args("completed")) == 3)
        executor.submit(_says, "nobody's").result()
    assert lines.seen == {job.id: [(job.id, "q", 1)] for job in jobs} | {
        "nobody's": [("-", "-", "-")]
    }


def test_what_a_record_says_of_itself_is_kept(queue: Queue, make: Make, lines: Lines) -> None:
    job = _run(make, queue, lambda job: log.warning("inside", extra={"queue": "another"}))
    assert lines.seen["inside"] == [(job.id, "another", 1)]


def test_a_name_and_what_stands_outside_can_be_chosen() -> None:
    record = logging.makeLogRecord({"name": "a.b"})
    assert JobLogFilter("a", outside=None).filter(record)
    assert typing.cast(typing.Any, record).job is None
    assert not JobLogFilter("b").filter(record)
