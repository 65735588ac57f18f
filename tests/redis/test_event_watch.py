"""All who follow one queue's events in a hub share a connection; nobody's trouble is another's."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import Queue, QueueEvents, Worker
from geventq.events import QueueEvent
from tests.support.native import in_native_thread
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

Open = collections.abc.Callable[..., tuple[QueueEvents, list[QueueEvent]]]


@pytest.fixture
def follow(redis_url: str, prefix: str) -> collections.abc.Iterator[Open]:
    """Makes a `QueueEvents` with a listener to `x`, and the list of what it heard."""
    opened: list[QueueEvents] = []

    def follow(
        url: str = redis_url, hear: typing.Callable[[QueueEvent], object] | None = None
    ) -> tuple[QueueEvents, list[QueueEvent]]:
        events = QueueEvents("q", url, prefix)
        opened.append(events)
        heard: list[QueueEvent] = []
        events.on("x", hear or heard.append)
        assert events.ready.wait(20)
        return events, heard

    yield follow
    for events in opened:
        events.close()


def reading(client: redis.Redis, prefix: str) -> int:
    """How many connections wait for entries."""
    clients = typing.cast(list[dict[str, str]], client.client_list())
    names = [one["name"] for one in clients if one["cmd"] == "xread"]
    return sum(name.startswith(prefix) for name in names)


def say(client: redis.Redis, prefix: str, *numbers: int) -> None:
    for number in numbers:
        client.xadd(f"{prefix}:q:events", {"event": "x", "n": str(number)})


def numbers(events: list[QueueEvent]) -> list[int]:
    return [int(event.data["n"]) for event in events]


def test_readers_of_one_queue_share_a_connection(
    follow: Open, redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    """1.4: `QueueEvents`, and those who wait for jobs by whatever `Queue`."""
    followers = [follow()[1] for _ in range(10)]
    with Queue("q", redis_url, prefix) as one, Queue("q", redis_url, prefix) as other:
        jobs = [one.add("n", 1), other.add("n", 2)]
        waiting = [gevent.spawn(job.wait_until_finished, 20) for job in jobs]
        eventually(lambda: all(queue._store._ends for queue in (one, other)))
        eventually(lambda: reading(redis_client, prefix) == 1)
        say(redis_client, prefix, 1)
        eventually(lambda: all(numbers(heard) == [1] for heard in followers))
        eventually(lambda: reading(redis_client, prefix) == 1)
        with Worker("q", lambda job: job.data, redis_url, prefix):
            assert [greenlet.get(timeout=20) for greenlet in waiting] == [1, 2]


def test_another_queue_or_server_is_another_connection(
    follow: Open, redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    """1.4: what they share is one stream."""
    follow()
    with QueueEvents("other", redis_url, prefix) as events, Proxy(redis_url) as proxy:
        events.on("x", print)
        follow(proxy.url)
        eventually(lambda: reading(redis_client, prefix) == 3)


@pytest.mark.parametrize("kind", ["iteration", "listener"])
def test_a_slow_reader_holds_up_nobody_and_misses_nothing(
    follow: Open, redis_client: redis.Redis, redis_url: str, prefix: str, kind: str
) -> None:
    """1.4: it is busy with its first event while others hear hundreds, in many reads."""
    go = gevent.event.Event()
    slow: list[QueueEvent] = []

    def hear(event: QueueEvent) -> None:
        slow.append(event)
        go.wait()

    if kind == "listener":
        follow(hear=hear)
        events = None
    else:
        events = QueueEvents("q", redis_url, prefix)
        greenlet = gevent.spawn(lambda: [hear(event) for event in events])
        assert events.ready.wait(20)
    _, quick = follow()
    for number in range(300):
        say(redis_client, prefix, number)
        eventually(lambda number=number: len(quick) == number + 1)
    assert len(slow) == 1
    go.set()
    eventually(lambda: len(slow) == 300)
    say(redis_client, prefix, 300)
    eventually(lambda: len(quick) == len(slow) == 301)
    assert numbers(slow) == numbers(quick) == list(range(301))
    if events is not None:
        events.close()
        greenlet.join(20)


@pytest.mark.parametrize("how", ["close", "close in another thread", "kill"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_others_go_on_when_one_leaves(
    follow: Open, redis_client: redis.Redis, prefix: str, how: str, which: int
) -> None:
    """1.4: whoever it is: who leads just now, by whose client the connection is, or a third."""
    followers = [follow() for _ in range(3)]
    for number in range(3):
        say(redis_client, prefix, number)
        eventually(lambda number=number: all(len(heard) == number + 1 for _, heard in followers))
    events, _ = followers[which]
    if how == "close":
        events.close()
    elif how == "kill":
        assert events._listening is not None
        assert events._listening.greenlet is not None
        events._listening.greenlet.kill()
    else:
        in_native_thread(events.close)
    rest = [heard for number, (_, heard) in enumerate(followers) if number != which]
    for number in range(3, 6):
        say(redis_client, prefix, number)
        eventually(lambda number=number: all(len(heard) == number + 1 for heard in rest))
    assert all(numbers(heard) == list(range(6)) for heard in rest)


def test_an_outage_ends_for_all_of_them(
    follow: Open, redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    """1.4: each hears each event once, those of the outage too."""
    with Proxy(redis_url) as proxy:
        followers = [follow(proxy.url) for _ in range(5)]
        say(redis_client, prefix, 0)
        eventually(lambda: all(len(heard) == 1 for _, heard in followers))
        with proxy.refusing():
            say(redis_client, prefix, 1, 2)
        say(redis_client, prefix, 3)
        eventually(lambda: all(len(heard) == 4 for _, heard in followers))
        assert all(numbers(heard) == [0, 1, 2, 3] for _, heard in followers)
        for events, _ in followers:
            events.close()


def test_nothing_is_left_when_the_last_one_has_gone(
    follow: Open, redis_client: redis.Redis, prefix: str
) -> None:
    """1.4: and who comes later begins anew."""
    for number in range(3):
        followers = [follow() for _ in range(3)]
        lists = [heard for _, heard in followers]
        say(redis_client, prefix, number)
        eventually(lambda lists=lists: all(len(heard) == 1 for heard in lists))
        assert [numbers(heard) for heard in lists] == [[number]] * 3
        for events, _ in followers:
            events.close()
        eventually(lambda: reading(redis_client, prefix) == 0)
