"""An outage of a server is told once by a process, however many loops meet it, and so is its
end."""

from __future__ import annotations

import collections.abc
import logging
import typing

import gevent
import gevent.event
import pytest

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.guarded import Guarded, kill_all
from geventq.outage import _LATE, Outage
from tests.support.waiting import TurnedClock

GONE: typing.Final = RedisUnavailableError("closed the connection")


class Served:
    """A client, as far as an outage knows it."""

    def __init__(self, address: str) -> None:
        self.address = address


class Loops:
    """Loops of one process, which share a server that no other test has: each has its own client,
    if none is given."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.stops: dict[Outage, gevent.event.Event] = {}
        self.clients: list[Served] = []

    def client(self, more: str = "") -> Served:
        self.clients.append(Served(self.server + more))
        return self.clients[-1]

    def __call__(self, what: str, client: Served | None = None) -> Outage:
        stop = gevent.event.Event()
        outage = Outage(what, "q", stop, client or self.client())
        self.stops[outage] = stop
        return outage


@pytest.fixture
def loops(request: pytest.FixtureRequest) -> Loops:
    return Loops(request.node.name)


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, loops: Loops
) -> collections.abc.Iterator[collections.abc.Callable[[], list[str]]]:
    """What was told since the last look, of the server, and of each loop by itself."""

    def said() -> list[str]:
        told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        caplog.clear()
        return [one.replace(loops.server, "S") for one in told]

    with caplog.at_level(logging.DEBUG, "geventq"):
        yield said


BEGINS: typing.Final = "Redis at S failed, trying again: a of queue q: closed the connection"
ENDS: typing.Final = "Redis at S works again after 5.0 s"
Said = collections.abc.Callable[[], list[str]]


@pytest.fixture
def clock(turned_clock: TurnedClock) -> TurnedClock:
    turned_clock.stop()
    return turned_clock


def test_loops_share_the_outage_of_their_server(
    loops: Loops, said: Said, clock: TurnedClock
) -> None:
    """It is news for each of their owners."""
    one, other = loops("a"), loops("b")
    assert [one.failed(GONE), one.failed(GONE), other.failed(GONE)] == [True, False, True]
    assert said() == [BEGINS]
    clock.advance(5)
    one.over()
    assert (one.is_under_way, other.is_under_way, said()) == (False, True, [])
    other.over()
    assert said() == [ENDS]


def test_it_is_news_once_for_the_loops_of_one_client(
    loops: Loops, said: Said, clock: TurnedClock
) -> None:
    """As those of a worker are, which tells its listeners of an outage."""
    client = loops.client()
    one, other = loops("a", client), loops("b", client)
    assert [one.failed(GONE), other.failed(GONE), other.failed(GONE)] == [True, False, False]
    assert loops("c").failed(GONE)
    for loop in loops.stops:
        loop.over()
    clock.advance(_LATE)
    assert [other.failed(GONE), one.failed(GONE)] == [True, False]
    refusal = GeventqError("NOPERM")
    one.over()
    assert [one.failed(refusal), one.failed(refusal)] == [True, False]


def test_the_error_that_was_told_by_another_is_not_told_again(loops: Loops) -> None:
    first, second = (RedisUnavailableError(text) for text in "12")
    loops("a").failed(first)
    loops("b").failed(second)
    assert first.was_logged
    assert second.was_logged


def test_the_details_are_there_at_the_level_of_debug(
    loops: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "geventq"):
        loop = loops("a")
        loop.failed(GONE)
        loop.over()
    details = [one.getMessage() for one in caplog.records if one.levelno == logging.DEBUG]
    assert details[0] == "a of queue q failed, trying again: closed the connection"
    assert details[1].startswith("a of queue q works again after ")


def test_what_is_no_outage_of_the_server_is_each_loops_own(loops: Loops, said: Said) -> None:
    """A refusal, a defect, a loop that has no server."""
    refused, elsewhere = loops("a"), Outage("b", "q", gevent.event.Event())
    refused.failed(GeventqError("NOPERM"))
    elsewhere.failed(GONE)
    assert said() == [
        "a of queue q failed, trying again: NOPERM",
        "b of queue q failed, trying again: closed the connection",
    ]
    refused.over()
    elsewhere.over()
    assert len(said()) == 2


def test_two_servers_have_two_outages(loops: Loops, said: Said) -> None:
    loops("a").failed(GONE)
    loops("b", loops.client("2")).failed(GONE)
    assert len(said()) == 2


@pytest.mark.parametrize("how", ["stops", "rests", "is gone"])
def test_a_loop_that_does_not_try_any_more_holds_up_no_recovery(
    loops: Loops, said: Said, clock: TurnedClock, how: str
) -> None:
    one, other = loops("a"), loops("b")
    one.failed(GONE)
    other.failed(GONE)
    assert said() == [BEGINS]
    clock.advance(5)
    if how == "rests":
        one.over()
        other.rest()
    else:
        if how == "stops":
            loops.stops[other].set()
        else:
            loops.stops.clear()
            del other
        one.over()
    assert said() == [ENDS]


@pytest.mark.parametrize("how", ["returns", "is killed"])
def test_a_task_that_ends_while_it_meets_an_outage_holds_up_no_recovery(
    loops: Loops, said: Said, clock: TurnedClock, how: str
) -> None:
    """As one that waits for a job's end does, which others have heard of meanwhile."""
    one, other, go = loops("a"), loops("b"), gevent.event.Event()

    def meet() -> None:
        other.failed(GONE)
        go.wait()

    one.failed(GONE)
    task = Guarded(meet, "meets", other)
    task.start()
    gevent.sleep(0)
    clock.advance(5)
    one.over()
    assert said() == [BEGINS]
    loops.stops[other].set()
    if how == "returns":
        go.set()
        assert task.join(20)
    else:
        kill_all([task])
    assert said() == [ENDS]


def test_who_rests_and_fails_again_shares_it_again(
    loops: Loops, said: Said, clock: TurnedClock
) -> None:
    one, other = loops("a"), loops("b")
    one.failed(GONE)
    other.failed(GONE)
    other.rest()
    other.failed(GONE)
    clock.advance(5)
    one.over()
    assert said() == [BEGINS]
    other.over()
    assert said() == [ENDS]


def test_what_all_have_left_by_stopping_is_not_said_to_work(loops: Loops, said: Said) -> None:
    loop = loops("a")
    loop.failed(GONE)
    assert len(said()) == 1
    loop.rest()
    assert said() == []


def test_who_finds_late_that_he_was_cut_off_tells_of_no_new_outage(
    loops: Loops, said: Said, clock: TurnedClock
) -> None:
    """A connection that was not used meanwhile; the next try succeeds."""
    one, late = loops("a"), loops("b")
    one.failed(GONE)
    clock.advance(5)
    one.over()
    assert said() == [BEGINS, ENDS]
    clock.advance(_LATE - 1)
    assert not late.failed(GONE)
    late.over()
    assert said() == []


@pytest.mark.parametrize("after", [1.0, _LATE])
def test_a_new_outage_is_told(loops: Loops, said: Said, clock: TurnedClock, after: float) -> None:
    """Soon after the last one, by who fails twice."""
    one, other = loops("a"), loops("b")
    one.failed(GONE)
    one.over()
    said()
    clock.advance(after)
    news = [other.failed(GONE), one.failed(GONE)]
    assert news == [after >= _LATE] * 2
    assert said() == ([] if after < _LATE else [BEGINS.replace("a of", "b of")])
    assert one.failed(GONE) == (after < _LATE)
    assert said() == ([BEGINS] if after < _LATE else [])
    clock.advance(5)
    other.over()
    assert said() == []
    one.over()
    assert said() == [ENDS]
