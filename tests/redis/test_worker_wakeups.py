"""A marker in Redis wakes one worker: whoever has popped it runs the job, or another one hears."""

from __future__ import annotations

import collections.abc
import os
import signal
import subprocess
import sys
import time
import typing

import gevent
import gevent.event
import pytest

from geventq import Queue, Worker
from geventq.errors import GeventqError
from geventq.store.client import Client
from geventq.store.scripts import load
from geventq.worker.marker import Marker
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

#: Without its wake-up a worker of these tests looks again after 10 s.
_SOON: typing.Final = 6.0


def wait_until_idle(redis_client: typing.Any, prefix: str, count: int) -> None:
    """Until `count` connections of workers block, in the order in which they came."""

    def blocked() -> bool:
        clients = redis_client.client_list()
        names = [one["name"] for one in clients if "b" in one["flags"]]
        return sum(name.startswith(f"{prefix}:") for name in names) == count

    eventually(blocked, what=f"{count} workers wait for a marker")


def wait_until_blocked(redis_client: typing.Any, count: int) -> None:
    """Until `count` connections block, whoever has them."""

    def blocked() -> bool:
        return sum("b" in one["flags"] for one in redis_client.client_list()) == count

    eventually(blocked, what=f"{count} wait for a marker")


class Starts:
    """When which worker began a job."""

    def __init__(self) -> None:
        self.by: list[str] = []
        self.at = 0.0

    def of(self, name: str) -> collections.abc.Callable[[object], None]:
        def process(job: object) -> None:
            self.by.append(name)
            self.at = time.perf_counter()

        return process


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stays", "pause", "close"])
def test_a_delayed_job_starts_in_time_whatever_becomes_of_whom_its_marker_woke(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, how: str
) -> None:
    """wire-format 7, 11: A pops the marker of a later time and waits for it; then it takes no jobs
    any more.  B idles on."""
    starts = Starts()
    first = make(starts.of("first"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 1)
    make(starts.of("second"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 2)
    due = time.perf_counter() + 1.0
    job = queue.add("n", delay=1.0)
    eventually(lambda: not redis_client.exists(f"{prefix}:q:marker"), what="A has the marker")
    if how == "pause":
        first.pause()
    elif how == "close":
        first.close()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert starts.at - due < _SOON
    if how == "stays":  # whoever comes first
        assert starts.by in (["first"], ["second"])
    else:
        assert starts.by == ["second"]


_ANOTHER: typing.Final = """
import sys
import gevent
from geventq import Worker
worker = Worker("q", lambda job: None, *sys.argv[1:3], drain_delay=60.0)
if sys.argv[3] == "worker":
    worker.run()
else:
    worker.get_next_job("mine")
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("who", ["worker", "by hand"])
def test_a_delayed_job_starts_in_time_though_the_process_that_its_marker_woke_is_no_more(
    queue: Queue,
    proxy: Proxy,
    through: Make,
    redis_url: str,
    redis_client: typing.Any,
    prefix: str,
    who: str,
    end: signal.Signals,
) -> None:
    """wire-format 7: nobody can put the marker back for who is killed or stopped, so a second one
    has a copy of it."""
    starts = Starts()
    first = subprocess.Popen([sys.executable, "-c", _ANOTHER, redis_url, prefix, who])
    try:
        wait_until_blocked(redis_client, 1)
        through(starts.of("second"), drain_delay=60.0).start()
        wait_until_blocked(redis_client, 2)
        due = time.perf_counter() + 1.5
        job = queue.add("n", delay=1.5)
        # It was woken too, and waits again.
        eventually(lambda: sum(b"BZPOPMIN" in one for one in proxy.requests) == 2)
        os.kill(first.pid, end)
        eventually(lambda: queue.get_job_state(job.id) == "completed")
        assert starts.at - due < _SOON
    finally:
        first.kill()
        first.wait()


def test_who_waits_by_hand_forgets_no_marker_that_was_popped_for_a_connection_that_is_cut(
    queue: Queue, proxy: Proxy, redis_client: typing.Any, prefix: str
) -> None:
    by_hand = Worker("q", lambda job: None, proxy.url, prefix, drain_delay=60.0)
    lost = proxy.swallow_next(b"BZPOPMIN")
    waiting = gevent.spawn(by_hand.get_next_job, "mine")
    wait_until_blocked(redis_client, 1)
    due = time.perf_counter() + 1.0
    added = queue.add("n", delay=1.0)
    lost.wait()
    job = waiting.get(timeout=30)
    assert job is not None
    assert job.id == added.id
    assert time.perf_counter() - due < _SOON
    by_hand.close()


def test_a_marker_that_was_popped_for_a_connection_that_is_cut_is_not_forgotten(
    queue: Queue, proxy: Proxy, through: Make, redis_client: typing.Any, prefix: str
) -> None:
    """wire-format 7: the server has popped the marker, its answer never arrives.  The worker
    looks when it has a connection again; it does not wait for its next look."""
    starts = Starts()
    worker = through(starts.of("first"), drain_delay=60.0)
    told = Told(worker)
    lost = proxy.swallow_next(b"BZPOPMIN")
    worker.start()
    wait_until_idle(redis_client, prefix, 1)
    added = time.perf_counter()
    queue.add("n")
    lost.wait()
    eventually(lambda: starts.by == ["first"])
    assert starts.at - added < _SOON
    assert len(told.args("error")) == 1


@pytest.mark.parametrize("how", ["pause", "close"])
def test_a_wake_up_that_no_take_has_followed_yet_is_handed_on(
    queue: Queue,
    make: Make,
    redis_client: typing.Any,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """wire-format 11: A has popped the marker and woken a lane; before that lane has its turn A
    is paused, or begins to close."""
    starts = Starts()
    first = make(starts.of("first"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 1)
    make(starts.of("second"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 2)
    idle_wait = engine_of(first).idle_wait
    may_be_more = idle_wait._may_be_more
    closing = first._closing
    assert closing is not None

    def woken(**how_it_was: bool) -> None:
        may_be_more(**how_it_was)
        if how == "pause":
            first.pause()
        else:
            closing.begin(None, "")

    monkeypatch.setattr(idle_wait, "_may_be_more", woken)
    added = time.perf_counter()
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert starts.by == ["second"]
    assert starts.at - added < _SOON


def test_a_marker_that_cannot_be_put_back_at_once_is_put_back_later(
    queue: Queue,
    make: Make,
    redis_client: typing.Any,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """wire-format 11: the call that hands a wake-up on fails twice; it is told once."""
    script_of = Client.script
    failed: list[str] = []

    def fails(self: Client, which: typing.Any, *args: typing.Any, **more: typing.Any) -> object:
        if which is load("hand_on") and len(failed) < 2:
            failed.append("hand_on")
            raise GeventqError("refused for now")
        return script_of(self, which, *args, **more)

    starts = Starts()
    paused = make(starts.of("paused"), drain_delay=60.0)
    told = Told(paused)
    wait_until_idle(redis_client, prefix, 1)
    make(starts.of("other"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 2)
    monkeypatch.setattr(Client, "script", fails)
    paused.pause()
    added = time.perf_counter()
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert starts.by == ["other"]
    assert starts.at - added < _SOON
    assert len(failed) == 2
    assert len(told.args("error")) == 1


def test_while_redis_refuses_the_idle_wait_tells_so_once_and_backs_off(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7: connections can be made, and each call on them is refused: one outage, one line, and
    no storm of tries; its end is told when a wait has succeeded."""
    pop = Marker.pop
    refused: list[float] = []
    refusing = gevent.event.Event()

    def pops(self: Marker, connection: typing.Any, seconds: float) -> int | None:
        if not refusing.is_set():
            return pop(self, connection, seconds)
        refused.append(time.perf_counter())
        raise GeventqError("Redis refused: READONLY You can't write against a read only replica.")

    monkeypatch.setattr(Marker, "pop", pops)
    worker = Worker("q", lambda job: None, redis_url, prefix, drain_delay=0.01)
    told = Told(worker)
    refusing.set()
    with worker:
        eventually(lambda: len(refused) >= 4)
        refusing.clear()
        eventually(lambda: "works again" in caplog.text)
    assert refused[3] - refused[0] > 0.2  # 50, 100 and 200 ms with their jitter
    assert len(told.args("error")) == 1
    assert caplog.text.count("waiting for jobs of queue q failed") == 1
    assert caplog.text.count("waiting for jobs of queue q works again") == 1


@pytest.mark.slow
def test_who_waits_by_hand_and_leaves_puts_the_marker_back(
    queue: Queue, make: Make, redis_url: str, redis_client: typing.Any, prefix: str
) -> None:
    """wire-format 7: `get_next_job` pops the marker of a later time, and its time is over before:
    a worker that idles runs the job in time."""
    by_hand = Worker("q", lambda job: None, redis_url, prefix, drain_delay=0.7)
    waiting = gevent.spawn(by_hand.get_next_job, "mine")
    eventually(lambda: any("b" in one["flags"] for one in redis_client.client_list()))
    starts = Starts()
    make(starts.of("worker"), drain_delay=60.0)
    wait_until_idle(redis_client, prefix, 1)
    due = time.perf_counter() + 1.5
    job = queue.add("n", delay=1.5)
    assert waiting.get(timeout=20) is None
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert starts.at - due < _SOON
    by_hand.close()


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_who_waits_by_hand_gets_a_job_when_it_is_due(
    queue: Queue, redis_url: str, redis_client: typing.Any, prefix: str, delay: float
) -> None:
    by_hand = Worker("q", lambda job: None, redis_url, prefix, drain_delay=60.0)
    waiting = gevent.spawn(by_hand.get_next_job, "mine")
    eventually(lambda: any("b" in one["flags"] for one in redis_client.client_list()))
    began = time.perf_counter()
    added = queue.add("n", delay=delay)
    job = waiting.get(timeout=30)
    assert job is not None
    assert job.id == added.id
    assert delay - 0.01 < time.perf_counter() - began < delay + _SOON
    by_hand.close()


def test_close_lets_go_who_waits_by_hand(
    redis_url: str, redis_client: typing.Any, prefix: str
) -> None:
    by_hand = Worker("q", lambda job: None, redis_url, prefix, drain_delay=60.0)
    waiting = gevent.spawn(by_hand.get_next_job, "mine")
    eventually(lambda: any("b" in one["flags"] for one in redis_client.client_list()))
    began = time.perf_counter()
    by_hand.close()
    assert waiting.get(timeout=20) is None
    assert time.perf_counter() - began < _SOON
