"""One `Queue` serves all native threads of a program, patched or not."""

from __future__ import annotations

import collections.abc
import os
import subprocess
import sys
import textwrap
import threading
import typing

import gevent
import gevent.monkey
import gevent.threadpool
import pytest

from geventq import GeventqError, Job, Queue, QueueEvents, Worker
from geventq.store.client import Client
from geventq.store.connection import Connection
from geventq.store.endpoint import Endpoint
from geventq.store.threads import close_hubs_of_ended_threads
from tests.conftest import Make
from tests.support.leaks import descriptors, native_threads
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


@pytest.fixture
def threads() -> collections.abc.Iterator[gevent.threadpool.ThreadPool]:
    """Eight native threads; what runs there has a hub of its own."""
    pool = gevent.threadpool.ThreadPool(8)
    yield pool
    pool.kill()


def test_threads_add_and_read_side_by_side(
    queue: Queue, threads: gevent.threadpool.ThreadPool
) -> None:
    """Every thread finds its own jobs; none gets another's answer."""

    def add_and_read(thread: int) -> list[str]:
        ids = []
        for number in range(25):
            job = queue.add("n", [thread, number])
            read = queue.get_job(job.id)
            assert read is not None
            assert read.data == [thread, number]
            assert job.get_state() == "waiting"
            ids.append(job.id)
        return ids

    results = [threads.spawn(add_and_read, thread) for thread in range(8)]
    ids = [job_id for result in results for job_id in result.get(timeout=30)]
    assert len(set(ids)) == 200
    assert queue.count() == 200


def test_the_first_calls_of_several_threads_share_one_store(
    queue: Queue, threads: gevent.threadpool.ThreadPool
) -> None:
    stores = [threads.spawn(lambda: queue._store) for _ in range(8)]
    assert len({id(store.get(timeout=20)) for store in stores}) == 1


def test_threads_wait_for_ends(
    queue: Queue, make: Make, threads: gevent.threadpool.ThreadPool
) -> None:
    def add_and_wait(number: int) -> typing.Any:
        return queue.add("n", number).wait_until_finished(20)

    results = [threads.spawn(add_and_wait, number) for number in range(8)]
    make(lambda job: job.data, concurrency=4)
    assert [result.get(timeout=20) for result in results] == list(range(8))


def _run_in_thread(call: collections.abc.Callable[[], typing.Any]) -> typing.Any:
    """In a new native thread, which has ended when this returns."""
    answers: list[typing.Any] = []
    ids: list[int] = []

    def body() -> None:
        ids.append(threading.get_native_id())
        answers.append(call())

    gevent.monkey.get_original("_thread", "start_new_thread")(body, ())
    eventually(lambda: answers and not os.path.exists(f"/proc/self/task/{ids[0]}"))
    return answers[0]


def test_threads_that_ended_leave_no_connection_and_no_descriptors(redis_url: str) -> None:
    """A server that answers each request in a new thread.  The system gives a new thread the id
    of the one that has just ended, which must not make that one look alive; what its hub had open
    is closed by whoever comes next."""
    client = Client(Endpoint.of(redis_url), max_connections=50)
    connections: list[Connection] = []

    def call() -> tuple[int, int, int]:
        client.execute("PING")
        for pool in client._pools.values():
            connections.extend(one for one in pool if one not in connections)
        open_now = [one.closed for one in connections].count(False)
        return len(client._pools), open_now, len(descriptors())

    try:
        _, _, open_first = _run_in_thread(call)
        for number in range(2, 6):
            pools, connected, open_now = _run_in_thread(call)
            assert (pools, connected) == (1, 1)
            assert open_now <= open_first
            assert len(connections) == number
    finally:
        client.close()
        close_hubs_of_ended_threads()


def test_a_thread_that_looked_up_a_name_leaves_no_thread_and_no_descriptors(
    redis_url: str,
) -> None:
    """Each hub has a resolver with a pool of native threads of its own."""
    before = native_threads()

    def call() -> bool:
        with Proxy(redis_url) as proxy:
            client = Client(Endpoint.of(proxy.url.replace("127.0.0.1", "localhost")))
            client.execute("PING")
            client.close()
        # More than before are this thread and the one that looked the name up; those of the
        # hub before, which were told to end, get the time that it takes.
        return eventually(lambda: native_threads() <= before + 2)

    try:
        for _ in range(4):
            assert _run_in_thread(call)
    finally:
        close_hubs_of_ended_threads()


def test_a_client_is_closed_from_another_thread(
    redis_url: str, threads: gevent.threadpool.ThreadPool
) -> None:
    client = Client(Endpoint.of(redis_url))
    client.execute("PING")
    (pool,) = client._pools.values()
    (connection,) = pool
    threads.apply(client.close)
    assert connection.closed
    assert not pool


def test_events_are_read_in_one_thread_and_closed_in_another(
    queue: Queue, threads: gevent.threadpool.ThreadPool, redis_url: str, prefix: str
) -> None:
    """The reader is blocked in its call; closing wakes it."""
    events = QueueEvents("q", redis_url, prefix)
    seen: list[str] = []
    reading = threads.spawn(lambda: [seen.append(event.name) for event in events])
    eventually(events.ready.is_set)
    queue.add("n")
    eventually(lambda: seen == ["added", "waiting"])
    events.close()
    reading.get(timeout=20)


def test_closing_the_queue_lets_those_go_who_wait_in_other_threads(
    queue: Queue, threads: gevent.threadpool.ThreadPool
) -> None:
    job = queue.add("n")
    waiting = threads.spawn(job.wait_until_finished)
    eventually(lambda: len(queue._store._ends) == 1)
    (ends,) = queue._store._ends.values()
    eventually(lambda: ends._reader is not None)
    queue.close()
    with pytest.raises(GeventqError, match="closed"):
        waiting.get(timeout=20)


def test_jobs_of_one_thread_are_worked_in_another(
    queue: Queue, threads: gevent.threadpool.ThreadPool, redis_url: str, prefix: str
) -> None:
    ran: list[str] = []

    def work() -> None:
        with Worker("q", lambda job: ran.append(job.id), redis_url, prefix):
            eventually(lambda: len(ran) == 20, 20)

    working = threads.spawn(work)
    added = threads.spawn(lambda: [queue.add("n").id for _ in range(20)])
    assert sorted(added.get(timeout=20)) == sorted(ids_after(working, ran))


def ids_after(working: typing.Any, ran: list[str]) -> list[str]:
    working.get(timeout=30)
    return ran


def test_a_forked_child_uses_the_queue_of_its_parent(queue: Queue) -> None:
    """Its calls go over connections of its own."""
    parents: Job = queue.add("parent")
    reading, writing = os.pipe()
    pid = gevent.monkey.get_original("os", "fork")()
    if pid == 0:
        try:
            os.write(writing, queue.add("child").id.encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 10) == b"2"
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    assert queue.count() == 2
    assert parents.get_state() == "waiting"


def test_several_threads_wait_for_a_job_of_a_paused_worker(
    queue: Queue, threads: gevent.threadpool.ThreadPool, redis_url: str, prefix: str
) -> None:
    worker = Worker("q", lambda job: None, redis_url, prefix, drain_delay=60.0)
    worker.pause()
    waiting = [threads.spawn(worker.get_next_job, f"token{number}") for number in range(4)]
    eventually(lambda: len(worker._held_up) == 4)
    ids = {queue.add("n").id for _ in waiting}
    worker.resume()
    jobs = [one.get(timeout=20) for one in waiting]
    assert {job.id for job in jobs if job is not None} == ids
    worker.close()


def test_a_worker_whose_thread_has_ended_can_be_closed(redis_url: str, prefix: str) -> None:
    """From another one: nothing there will ever answer."""
    script = """
        import threading, sys, time
        import gevent
        from geventq import Worker

        def work():
            worker.start()
            gevent.sleep(0.1)

        worker = Worker("q", lambda job: None, *sys.argv[1:])
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert worker.cancel_all_jobs() == 0
        worker.join()
        worker.close()
        assert not worker.is_running
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), redis_url, prefix],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "has ended before it was closed" in done.stderr
