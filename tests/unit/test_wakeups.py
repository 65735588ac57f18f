"""Whoever waits for a thing that is set is told, also while others leave that were waiting for it.

gevent alone would lose him: see `geventq.wakeups`."""

from __future__ import annotations

import pathlib
import re
import time
import typing

import gevent
import gevent.event
import pytest

import geventq
from geventq import CancellationToken, JobCancelled
from geventq.wakeups import Event, wait_for_result

SHORT: typing.Final = 0.01


def leaving_as_it_is_set(
    wait: typing.Callable[[float], object],
    set_it: typing.Callable[[], object],
    then: typing.Callable[[], object],
) -> object:
    """What `then` returns in a greenlet that sets the thing in the very turn of the loop in which
    the time of another one, which waits for it, has run out.  `None` if that never ends."""

    def sets() -> object:
        gevent.sleep(SHORT / 2)
        set_it()
        return then()

    greenlets = [gevent.spawn(wait, SHORT), gevent.spawn(sets)]
    gevent.sleep(0)
    end = time.perf_counter() + 2 * SHORT
    while time.perf_counter() < end:  # so that the times of both are over in one turn
        pass
    gevent.joinall(greenlets, timeout=2)
    answer = greenlets[1].value
    gevent.killall(greenlets)
    return answer


def test_gevent_alone_would_lose_him() -> None:
    """Where this fails gevent is mended, and `geventq.wakeups` can go."""
    event = gevent.event.Event()
    assert leaving_as_it_is_set(event.wait, event.set, event.wait) is None


def test_an_event_wakes_everybody() -> None:
    event = Event()
    assert leaving_as_it_is_set(event.wait, event.set, event.wait) is True


def test_a_result_wakes_everybody() -> None:
    result: gevent.event.AsyncResult[str] = gevent.event.AsyncResult()
    assert (
        leaving_as_it_is_set(result.wait, lambda: result.set("it"), lambda: wait_for_result(result))
        == "it"
    )


@pytest.mark.parametrize("way", ["wait", "sleep", "get"])
def test_a_token_wakes_everybody(way: str) -> None:
    """A job that sleeps by its token stops, whatever its helpers do at that moment."""
    token = CancellationToken()

    def stops() -> str:
        try:
            if way == "sleep":
                token.sleep(60)
            elif way == "check":
                token.check()
            else:
                return typing.cast(str, getattr(token, way)().reason)
        except JobCancelled as error:
            return typing.cast(str, error.cancellation.reason)
        return "not stopped"

    assert leaving_as_it_is_set(token.wait, lambda: token.cancel("enough"), stops) == "enough"


def test_no_module_waits_in_gevents_way() -> None:
    own_way = re.compile(r"gevent\.event\.Event\(|AsyncResult\.wait\(|threading\.Event\(")
    package = pathlib.Path(geventq.__file__).parent
    found = [path.name for path in package.rglob("*.py") if own_way.search(path.read_text("utf-8"))]
    assert found == ["wakeups.py"]
