"""`QueueEvents`: everything that happens, in order, through outages, until it is closed."""

from __future__ import annotations

import datetime
import itertools
import logging
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    Cancellation,
    GeventqError,
    JobCancelled,
    JobSpec,
    Queue,
    QueueEvents,
    QueueEventsProducer,
    RedisUnavailableError,
    Worker,
)
from geventq.events import QueueEvent
from geventq.outage import Outage
from geventq.store.client import Client
from geventq.store.endpoint import Endpoint
from tests.support.native import in_native_thread
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually


def listening(events: QueueEvents) -> tuple[list[QueueEvent], gevent.Greenlet[..., None]]:
    """What the iteration gives, and the greenlet that iterates; it has begun to read."""
    seen: list[QueueEvent] = []

    def read() -> None:
        for event in events:
            seen.append(event)

    greenlet = gevent.spawn(read)
    assert events.ready.wait(20)
    return seen, greenlet


def test_the_life_of_a_job(queue: Queue, redis_url: str, prefix: str) -> None:
    with QueueEvents("q", redis_url, prefix) as events:
        seen, _ = listening(events)
        with Worker("q", lambda job: job.update_progress({"p": 1}) or [1], redis_url, prefix):
            job = queue.add("n")
            eventually(lambda: seen and seen[-1].name == "drained")
        names = [event.name for event in seen]
        assert names == ["added", "waiting", "active", "progress", "completed", "drained"]
        assert [event.job_id for event in seen] == [job.id] * 5 + [None]
        assert seen[3].data == {"data": {"p": 1}}
        assert seen[4].data == {"returnvalue": [1], "prev": "active"}
        assert [event.id for event in seen] == sorted({event.id for event in seen})


def test_it_begins_now_or_where_it_is_told(queue: Queue, redis_url: str, prefix: str) -> None:
    queue.add("before")
    with (
        QueueEvents("q", redis_url, prefix) as now,
        QueueEvents("q", redis_url, prefix, "0") as all,
    ):
        from_now, _ = listening(now)
        from_the_start, _ = listening(all)
        job = queue.add("after")
        eventually(lambda: len(from_now) == 2 and len(from_the_start) == 4)
        assert {event.job_id for event in from_now} == {job.id}
        rest = QueueEvents("q", redis_url, prefix, from_the_start[1].id)
        after, _ = listening(rest)
        eventually(lambda: len(after) == 2)
        rest.close()
        assert [event.id for event in after] == [event.id for event in from_now]


def test_listeners_are_called_in_order_and_may_fail(
    queue: Queue, redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with QueueEvents("q", redis_url, prefix) as events:
        seen: list[typing.Any] = []

        @lambda listener: events.on("added", listener)
        def broken(event: QueueEvent) -> None:
            seen.append("broken")
            raise ValueError("a listener's own trouble")

        events.on("added", lambda event: seen.append(event.data["name"]))
        assert events.ready.wait(20)
        with caplog.at_level(logging.ERROR, "geventq"):
            queue.add("one")
            queue.add("two")
            eventually(lambda: len(seen) == 4)
        assert seen == ["broken", "one", "broken", "two"]
        assert "a listener's own trouble" in caplog.text


def test_close_ends_the_iteration_at_once(queue: Queue, redis_url: str, prefix: str) -> None:
    events = QueueEvents("q", redis_url, prefix)
    _, greenlet = listening(events)
    events.close()
    greenlet.join(2)
    assert greenlet.ready()
    events.close()


def test_close_inside_the_iteration(queue: Queue, redis_url: str, prefix: str) -> None:
    events = QueueEvents("q", redis_url, prefix, "0")
    queue.add("n")
    seen = []
    for event in events:
        seen.append(event.name)
        events.close()
    assert seen == ["added"]


def test_close_inside_a_listener(queue: Queue, redis_url: str, prefix: str) -> None:
    events = QueueEvents("q", redis_url, prefix)
    done = gevent.event.Event()

    def stop(event: QueueEvent) -> None:
        events.close()
        done.set()

    events.on("added", stop)
    assert events.ready.wait(20)
    queue.add("n")
    assert done.wait(20)
    assert events._listening is not None
    assert events._listening.join(20)


def test_an_outage_is_lived_through_and_nothing_is_missed(
    queue: Queue,
    redis_url: str,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[BaseException] = []
    failed = Outage.failed
    monkeypatch.setattr(
        Outage, "failed", lambda outage, error: tries.append(error) or failed(outage, error)
    )
    with Proxy(redis_url) as proxy, QueueEvents("q", proxy.url, prefix) as events:
        seen, _ = listening(events)
        with caplog.at_level(logging.WARNING, "geventq"), proxy.refusing():
            during = queue.add("during")
            eventually(lambda: len(tries) == 4)
            assert caplog.text.count("failed, trying again") == 1
        after = queue.add("after")
        eventually(lambda: len(seen) == 4)
        assert [event.job_id for event in seen] == [during.id] * 2 + [after.id] * 2


def test_who_stops_reading_holds_up_no_recovery(caplog: pytest.LogCaptureFixture) -> None:
    """3.7: a server works again as soon as nobody who still needs it meets its outage."""
    events = QueueEvents("q", "redis://127.0.0.1:1")
    other = Client(Endpoint.of("redis://127.0.0.1:1"))
    outage = Outage("something else", None, gevent.event.Event(), other)
    with caplog.at_level(logging.WARNING, "geventq"):
        reading = gevent.spawn(list, events)
        eventually(lambda: "failed, trying again" in caplog.text)
        outage.failed(RedisUnavailableError("gone"))
        outage.over()
        assert "works again" not in caplog.text
        events.close()
        reading.join()
    assert caplog.text.count("works again") == 1


def test_an_event_that_was_given_out_does_not_come_again_after_an_outage(
    queue: Queue, redis_url: str, prefix: str
) -> None:
    """The iteration stops in the middle of what one call has read, and the link is cut."""
    queue.add_bulk([JobSpec("n")] * 3)
    with Proxy(redis_url) as proxy, QueueEvents("q", proxy.url, prefix, "0") as events:
        first = [event.id for event in itertools.islice(events, 2)]
        proxy.cut()
        rest = [event.id for event in itertools.islice(events, 4)]
        assert len({*first, *rest}) == 6


# -- gaps ----------------------------------------------------------------------------------------


def names(events: list[QueueEvent]) -> list[tuple[str, typing.Any]]:
    return [(event.name, event.data.get("n", event.data.get("missed"))) for event in events]


@pytest.mark.parametrize("by", ["iteration", "listener"])
def test_a_gap_in_the_stream_is_told_in_its_place(
    redis_url: str, redis_client: redis.Redis, prefix: str, by: str
) -> None:
    """2.3: the reader is held up between two reads, and what came meanwhile is trimmed."""
    key = f"{prefix}:q:events"
    redis_client.xadd(key, {"event": "x", "n": "before"})
    with Proxy(redis_url) as proxy, QueueEvents("q", proxy.url, prefix) as events:
        if by == "iteration":
            seen, _ = listening(events)
        else:
            seen = []
            for name in ("x", "gap"):
                events.on(name, seen.append)
            assert events.ready.wait(20)
        redis_client.xadd(key, {"event": "x", "n": "1"})
        eventually(lambda: names(seen) == [("x", "1")])
        look = proxy.hold_request(b"XINFO")
        redis_client.xadd(key, {"event": "x", "n": "2"})
        look.wait()
        for number in range(3, 8):
            redis_client.xadd(key, {"event": "x", "n": str(number)})
        redis_client.xtrim(key, maxlen=2, approximate=False)
        look.release()
        eventually(lambda: len(seen) == 4)
        assert names(seen) == [("x", "1"), ("gap", 4), ("x", "6"), ("x", "7")]
        gap = seen[1]
        assert (gap.job_id, gap.id) == (None, seen[0].id)


def test_what_was_read_may_be_trimmed_without_a_gap(
    queue: Queue, redis_url: str, redis_client: redis.Redis, prefix: str
) -> None:
    """2.3: nothing was missed, so nothing is told."""
    with QueueEvents("q", redis_url, prefix) as events:
        seen, _ = listening(events)
        for number in range(1, 6):
            queue.add("n")
            eventually(lambda number=number: len(seen) == 2 * number)
            redis_client.xtrim(f"{prefix}:q:events", maxlen=number % 2, approximate=False)
        assert {event.name for event in seen} == {"added", "waiting"}


def test_a_stream_that_began_anew_is_read_from_its_beginning(
    own_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.3: all data are lost; the entries of the new stream may even have older ids."""
    monkeypatch.setattr("geventq.store.event_watch.LONGEST_WAIT", 0.2)
    key = f"{prefix}:q:events"
    with QueueEvents("q", own_server.url, prefix) as events, own_server.client() as raw:
        seen, _ = listening(events)
        raw.xadd(key, {"event": "x", "n": "old"})
        eventually(lambda: len(seen) == 1)
        pipeline = raw.pipeline(transaction=True)
        pipeline.flushall()
        pipeline.xadd(key, {"event": "x", "n": "new"}, id="5-1")
        pipeline.execute()
        eventually(lambda: len(seen) == 3)
        assert names(seen) == [("x", "old"), ("gap", None), ("x", "new")]


def test_who_goes_on_where_he_was_told_hears_of_what_is_gone(
    redis_url: str, redis_client: redis.Redis, prefix: str
) -> None:
    """2.3: a program that was down for long, and had kept the id of its last event."""
    key = f"{prefix}:q:events"
    last, *_ = [redis_client.xadd(key, {"event": "x", "n": str(n)}) for n in range(5)]
    for keeps, told in ((5, 4), (2, 3)):
        redis_client.xtrim(key, maxlen=keeps, approximate=False)
        with QueueEvents("q", redis_url, prefix, str(last)) as events:
            seen, _ = listening(events)
            eventually(lambda seen=seen, told=told: len(seen) == told)
            assert (seen[0].name == "gap") == (keeps == 2)


# -- listeners of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [ValueError, gevent.Timeout, gevent.GreenletExit, SystemExit, RecursionError, JobCancelled],
)
def test_whatever_a_listener_raises_the_next_event_is_heard(
    queue: Queue,
    redis_url: str,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    """2.2: and so do the other listeners, and those that are registered later."""
    error = JobCancelled(Cancellation("no", "user")) if kind is JobCancelled else kind()
    heard: list[str] = []

    def broken(event: QueueEvent) -> None:
        heard.append("broken")
        if heard.count("broken") == 1:
            raise error

    with QueueEvents("q", redis_url, prefix) as events, caplog.at_level(logging.ERROR, "geventq"):
        events.on("added", broken)
        events.on("added", lambda event: heard.append("sound"))
        assert events.ready.wait(20)
        for number in range(3):
            queue.add("n")
            eventually(lambda number=number: len(heard) == 2 * number + 2)
        events.on("added", lambda event: heard.append("late"))
        queue.add("n")
        eventually(lambda: heard[-1] == "late")
        assert heard == ["broken", "sound"] * 4 + ["late"]
    assert caplog.text.count("a listener of queue q failed") == 1


def test_it_is_closed_from_another_thread(queue: Queue, redis_url: str, prefix: str) -> None:
    """Two hubs: the listeners' greenlet runs in this one, the close is called in another."""
    events = QueueEvents("q", redis_url, prefix)
    heard: list[QueueEvent] = []
    events.on("added", heard.append)
    assert events.ready.wait(20)
    queue.add("n")
    eventually(lambda: heard)
    in_native_thread(events.close)
    _, greenlet = listening(again := QueueEvents("q", redis_url, prefix))
    in_native_thread(again.close)
    greenlet.join(20)
    assert greenlet.successful()
    with pytest.raises(GeventqError, match="closed"):
        iter(events)


def test_two_do_not_read_the_same_events(queue: Queue, redis_url: str, prefix: str) -> None:
    """They would take each other's answers from one connection."""
    with QueueEvents("q", redis_url, prefix) as events:
        _, greenlet = listening(events)
        for second in (lambda: next(iter(events)), lambda: events.on("added", print)):
            with pytest.raises(GeventqError, match="being read already"):
                second()
        assert not greenlet.ready()
    with pytest.raises(GeventqError, match="closed"):
        iter(events)


def test_listeners_that_were_registered_are_served_and_nobody_else(
    queue: Queue, redis_url: str, prefix: str
) -> None:
    """Also before their greenlet has had its first turn, and over an iterator made before."""
    with QueueEvents("q", redis_url, prefix) as events:
        made_before = iter(events)
        seen: list[QueueEvent] = []
        events.on("added", seen.append)
        for second in (lambda: iter(events), lambda: next(made_before)):
            with pytest.raises(GeventqError, match="being read already"):
                second()
        assert events.ready.wait(20)
        queue.add("n")
        eventually(lambda: seen)


def test_a_connection_that_cannot_be_used_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="connection"):
        QueueEvents("q", "http://u:sekret@h")


def test_what_others_wrote_does_not_end_the_reading(
    queue: Queue, redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    """A Node reader ends for good at the first of these (wire-format 12)."""
    with QueueEvents("q", redis_url, prefix) as events:
        seen, _ = listening(events)
        key = f"{prefix}:q:events"
        redis_client.xadd(key, {"event": "completed", "jobId": "1", "returnvalue": "{"})
        redis_client.xadd(key, {"event": "progress", "jobId": "1", "data": "NaN"})
        redis_client.xadd(key, {"noevent": "x"})
        redis_client.xadd(key, {"event": b"\xff", "jobId": b"\xfe"})
        eventually(lambda: len(seen) == 4)
        assert seen[0].data == {"returnvalue": "{"}
        assert (seen[2].name, seen[2].data) == ("", {"noevent": "x"})


def test_its_connection_has_the_name_that_others_look_for(
    redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    with QueueEvents("q", redis_url, prefix) as events:
        listening(events)
        clients = typing.cast(list[dict[str, str]], redis_client.client_list())
        assert f"{prefix}:cQ==:qe" in {client["name"] for client in clients}


def test_own_events_are_published(redis_url: str, prefix: str) -> None:
    producer = QueueEventsProducer("q", redis_url, prefix)
    with QueueEvents("q", redis_url, prefix) as events:
        seen, _ = listening(events)
        fields = {"jobId": "7", "n": 5, "text": "é", "on": True, "list": [1, None]}
        entry_id = producer.publish("mine", fields)
        eventually(lambda: seen)
        told = {"n": "5", "text": "é", "on": "true", "list": "[1,null]"}
        assert seen == [QueueEvent("mine", "7", told, entry_id)]
    producer.close()


# Whoever waits for a job, or counts them, would take them for true (2.8).
TAKEN: typing.Final = (
    *("added", "waiting", "active", "progress", "completed", "failed", "delayed", "stalled"),
    *("removed", "duplicated", "deduplicated", "drained", "cleaned", "paused", "resumed"),
    *("waiting-children", "retries-exhausted", "cancelled", "cancel-requested", "cancel-x", "gap"),
)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", {}), "name"),
        ((5, {}), "name"),
        *(((name, {}), "name: an event of geventq or BullMQ has that name") for name in TAKEN),
        (("mine", None), "fields"),
        (("mine", {5: "x"}), "fields"),
        (("mine", {"": "x"}), "fields"),
        (("mine", {"event": "x"}), "fields: 'event'"),
        (("mine", {"a": float("nan")}), r"fields\['a'\]"),
        (("mine", {"a": {1, 2}}), r"fields\['a'\]"),
        (("mine", {"a": "\ud800"}), r"fields\['a'\]"),
        (("mine", {}, -1), "max_events"),
        (("mine", {}, True), "max_events"),
    ],
)
def test_events_of_ones_own_are_checked_before_a_call(
    arguments: tuple[typing.Any, ...], field: str
) -> None:
    producer = QueueEventsProducer("q", "redis://127.0.0.1:1")
    with pytest.raises((ValueError, TypeError), match=f"^{field}"):
        producer.publish(*arguments)


@pytest.mark.parametrize("kind", [QueueEvents, QueueEventsProducer])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("timeout", value) for value in (0, -1, float("nan"), float("inf"), True, "1", None)),
        *(("max_connections", value) for value in (0, -1, 1.5, True, "1", None)),
    ],
)
def test_options_of_connections_are_checked(kind: typing.Any, option: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{option}: "):
        kind("q", **{option: value})
    assert kind("q", timeout=datetime.timedelta(seconds=2)).timeout == 2.0


@pytest.mark.parametrize(
    ("name", "last", "error"),
    [
        ("a:b", "$", ValueError),
        ("", "$", ValueError),
        ("q", "", ValueError),
        ("q", "now", ValueError),
        ("q", "1-2-3", ValueError),
        ("q", 0, TypeError),
    ],
)
def test_bad_arguments_are_refused(name: str, last: typing.Any, error: type[Exception]) -> None:
    """A bad id would be refused by Redis at every read, for ever."""
    with pytest.raises(error):
        QueueEvents(name, last_event_id=last)
