"""All who read one queue's events in one hub wait on one connection: one of them asks for all."""

from __future__ import annotations

import collections.abc

import gevent
import gevent.threadpool
import pytest
import redis

from geventq import GeventqError, Queue, QueueEvents
from geventq.events import QueueEvent
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

Readers = collections.abc.Callable[[], int]


@pytest.fixture
def readers(redis_client: redis.Redis, prefix: str) -> Readers:
    """How many connections wait for events of queues under the prefix, or are kept for that."""
    key = f"{prefix}:"

    def count() -> int:
        names = [one["name"] for one in redis_client.client_list()]
        return len([name for name in names if name.startswith(key) and name.endswith(":qe")])

    return count


def is_look(request: bytes) -> bool:
    return b"XINFO" in request or load("read_events").sha.encode() in request


def heard_by(events: QueueEvents) -> list[str]:
    seen: list[str] = []

    def listen(event: QueueEvent) -> None:
        assert event.job_id is not None
        seen.append(event.job_id)

    events.on("added", listen)
    assert events.ready.wait(20)
    return seen


def test_readers_of_one_queue_share_a_connection(
    redis_url: str, prefix: str, make: Make, readers: Readers
) -> None:
    """Listeners, and those who wait for ends, of several objects; each hears everything."""
    with (
        QueueEvents("q", redis_url, prefix) as first,
        QueueEvents("q", redis_url, prefix) as second,
        QueueEvents("other", redis_url, prefix) as other,
        Queue("q", redis_url, prefix) as queue,
        Queue("q", redis_url, prefix) as again,
    ):
        heard = [heard_by(first), heard_by(second)]
        heard_by(other)
        jobs = [one.add("n", number) for number, one in enumerate([queue, again] * 10)]
        waits = [gevent.spawn(job.wait_until_finished, 30) for job in jobs]
        eventually(lambda: all(len(seen) == 20 for seen in heard))
        assert readers() == 2  # of two queues
        make(lambda job: job.data, concurrency=5)
        assert [wait.get(timeout=30) for wait in waits] == list(range(20))
        assert readers() == 2
    eventually(lambda: not readers())


def test_when_the_one_who_asks_leaves_another_goes_on(
    redis_url: str, prefix: str, queue: Queue, readers: Readers
) -> None:
    """Closed, killed, or out of time, in whatever order they came."""
    made = [QueueEvents("q", redis_url, prefix) for _ in range(4)]
    heard = [heard_by(events) for events in made]
    expected: list[str] = []
    waiting = gevent.spawn(queue.add("n").wait_until_finished)
    expected.append("1")
    for closed in range(4):
        expected.append(queue.add("n").id)
        eventually(lambda: all(seen == expected for seen in heard[closed:]))  # noqa: B023
        made[closed].close()
        if closed == 1:
            waiting.kill()
    eventually(lambda: not readers())


def test_no_entry_is_missed_between_a_look_and_a_wait(redis_url: str, prefix: str) -> None:
    """A reader has looked and found nothing; before it waits, an entry comes that the one who asks
    for all has read already, and waits behind.  The interleaving is forced: the reader's look is
    answered late."""
    with (
        Proxy(redis_url) as proxy,
        QueueEvents("q", proxy.url, prefix) as asks,
        QueueEvents("q", proxy.url, prefix) as looks,
        Queue("q", redis_url, prefix) as queue,
    ):
        heard = heard_by(asks), heard_by(looks)
        for number in range(1, 30):
            late = proxy.hold_answer(is_look)
            queue.add("n")
            late.wait()  # of either of them
            queue.add("n")
            gevent.sleep(0.002)
            late.release()
            eventually(lambda: all(len(seen) == 2 * number for seen in heard), 4)  # noqa: B023


def test_a_reader_is_closed_from_another_thread_whatever_it_does(
    redis_url: str, prefix: str, readers: Readers
) -> None:
    """It asks for all, waits for the other, or looks."""
    threads = gevent.threadpool.ThreadPool(1)
    try:
        with Proxy(redis_url) as proxy:
            for _ in range(2):
                first, second = (QueueEvents("q", proxy.url, prefix) for _ in range(2))
                heard_by(first)
                heard_by(second)
                threads.apply(second.close)
                threads.apply(first.close)
                with pytest.raises(GeventqError, match="closed"):
                    iter(first)
            looking = QueueEvents("q", proxy.url, prefix)
            held = proxy.hold_request(is_look)
            looking.on("added", print)
            held.wait()
            threads.apply(looking.close)
            held.release()
        eventually(lambda: not readers())
    finally:
        threads.kill()
