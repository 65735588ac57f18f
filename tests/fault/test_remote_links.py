"""5.2: whatever cuts a worker off from its channels, a recorded request reaches the job."""

from __future__ import annotations

import contextlib
import logging
import typing
import urllib.parse

import gevent
import pytest
import redis

from geventq import CancellationToken, Job, LockLost, Queue, Worker
from geventq.store.connection import Connection
from geventq.store.hub_reading import HubReading
from geventq.worker.run.hearing import Hearing
from geventq.worker.subscription import Subscription
from tests.support.calls import takes
from tests.support.interrupts import Interrupter
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.told import engine_of, listens
from tests.support.waiting import eventually


class Held:
    """Jobs that run until they are asked to stop."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.stopped: list[str] = []

    def process(self, job: Job, token: CancellationToken) -> None:
        self.begun.append(job.id)
        token.wait()
        self.stopped.append(token.get().reason)
        token.raise_if_cancelled()


@pytest.fixture
def held() -> Held:
    return Held()


SECRET: typing.Final = "no secret to the server"


@contextlib.contextmanager
def user_without_channels(
    redis_url: str, redis_client: redis.Redis, prefix: str
) -> typing.Iterator[str]:
    """The URL of a user who may do all, but neither subscribe nor publish."""
    name = f"{prefix}-user"
    redis_client.acl_setuser(
        *(name,),
        enabled=True,
        passwords=[f"+{SECRET}"],
        keys=["*"],
        commands=["+@all"],
        channels=[],
        reset=True,
    )
    parts = urllib.parse.urlsplit(redis_url)
    place = f"{name}:{urllib.parse.quote(SECRET)}@{parts.netloc.rpartition('@')[2]}"
    try:
        yield urllib.parse.urlunsplit(parts._replace(netloc=place))
    finally:
        redis_client.acl_deluser(name)


def is_subscribe(request: bytes) -> bool:
    return b"SUBSCRIBE" in request


def test_a_request_while_the_subscription_is_not_confirmed(
    queue: Queue, proxy: Proxy, prefix: str, held: Held
) -> None:
    """5.2: nobody hears the message; the sweep that follows the confirmation finds the record."""
    late = proxy.hold_request(is_subscribe)
    # Renewals are far away, so that only the sweep can tell.
    with Worker("q", held.process, proxy.url, prefix, lock_duration=600) as worker:
        late.wait()
        job = queue.add("n")
        eventually(lambda: held.begun)
        assert queue.cancel_job(job.id, "unheard").status == "requested"
        assert not held.stopped
        late.release()
        eventually(lambda: held.stopped == ["unheard"])
        listens(worker)


def test_a_take_that_the_sweep_came_too_early_for(
    queue: Queue, proxy: Proxy, prefix: str, held: Held
) -> None:
    """5.2, 5.3: taken; asked, while nobody listens; swept, before the take's answer arrives."""
    late = proxy.hold_request(is_subscribe)
    with Worker("q", held.process, proxy.url, prefix, lock_duration=600) as worker:
        late.wait()
        answer = proxy.hold_answer(takes)
        job = queue.add("n")
        answer.wait()
        eventually(lambda: job.get_state() == "active")
        assert queue.cancel_job(job.id, "between").status == "requested"
        late.release()
        listens(worker)
        answer.release()
        eventually(lambda: held.stopped == ["between"])


def test_a_subscription_that_is_cut(
    queue: Queue, proxy: Proxy, prefix: str, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """5.2: it polls meanwhile, tells the outage once and the recovery, and trusts hints again."""
    with Worker("q", held.process, proxy.url, prefix, concurrency=2, lock_duration=600) as worker:
        listens(worker)
        first, second = queue.add("n"), queue.add("n")
        eventually(lambda: len(held.begun) == 2)
        with caplog.at_level(logging.WARNING, "geventq"), proxy.refusing():
            assert queue.cancel_job(first.id, "while it was cut")
            eventually(lambda: not engine_of(worker).subscription.is_up)
        eventually(lambda: held.stopped == ["while it was cut"])
        listens(worker)
        eventually(lambda: "works again" in caplog.text)
        begins, ends = caplog.messages
        assert " failed, trying again: " in begins
        assert begins.partition(" failed")[0] == ends.partition(" works")[0]
        assert queue.cancel_job(second.id, "again")
        eventually(lambda: held.stopped == ["while it was cut", "again"])


def test_a_subscription_that_comes_about_no_more(
    queue: Queue, proxy: Proxy, prefix: str, held: Held
) -> None:
    """5.2: all other calls are answered; so each second it looks at the records by one of them."""
    with Worker("q", held.process, proxy.url, prefix, lock_duration=600) as worker:
        listens(worker)
        job = queue.add("n")
        eventually(lambda: held.begun)
        for _ in range(100):
            proxy.lose_next(is_subscribe)
        proxy.cut()
        eventually(lambda: not engine_of(worker).subscription.is_up)
        assert queue.cancel_job(job.id, "by a look")
        eventually(lambda: held.stopped == ["by a look"])
        assert not engine_of(worker).subscription.is_up
        proxy.remove_traps()


@pytest.mark.slow
def test_a_link_that_is_dead_without_being_closed(
    queue: Queue, proxy: Proxy, prefix: str, held: Held
) -> None:
    """5.2: nothing comes any more, and nobody says so; it asks, and connects anew."""
    with Worker("q", held.process, proxy.url, prefix, lock_duration=600) as worker:
        listens(worker)
        job = queue.add("n")
        eventually(lambda: held.begun)
        proxy.half_open()
        assert queue.cancel_job(job.id, "into the void")
        eventually(lambda: held.stopped == ["into the void"], 60)
        proxy.cut_half_open()


def test_redis_is_restarted(own_server: Server, held: Held) -> None:
    """5.2: nobody listened as it was asked; the record outlives the server."""
    with (
        Queue("q", own_server.url) as queue,
        Worker("q", held.process, own_server.url, lock_duration=600) as worker,
    ):
        listens(worker)
        job = queue.add("n")
        eventually(lambda: held.begun)
        own_server.restart()
        eventually(lambda: bool(queue.cancel_job(job.id, "after the restart")))
        eventually(lambda: held.stopped == ["after the restart"], 60)
        eventually(lambda: job.get_state() == "failed", 60)


@pytest.mark.slow
def test_users_without_channels(
    redis_url: str,
    redis_client: redis.Redis,
    queue: Queue,
    prefix: str,
    held: Held,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """5.2: SUBSCRIBE and PUBLISH are refused: told once, and the records are looked at."""
    with (
        user_without_channels(redis_url, redis_client, prefix) as url,
        caplog.at_level(logging.WARNING, "geventq"),
        Worker("q", held.process, url, prefix, concurrency=2, lock_duration=600) as worker,
        Queue("q", url, prefix) as refused,
    ):
        jobs = [queue.add("n"), queue.add("n")]
        eventually(lambda: len(held.begun) == 2)
        assert refused.cancel_job(jobs[0].id, "by the record").status == "requested"
        eventually(lambda: held.stopped == ["by the record"])
        assert queue.cancel_job(jobs[1].id, "once more")
        eventually(lambda: len(held.stopped) == 2)
        assert not engine_of(worker).subscription.is_up
    told = [one for one in caplog.messages if one.startswith("hearing of requests")]
    assert len(told) == 1, told
    assert SECRET not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("options", [{"lock_duration": 600}, {"skip_lock_renewal": True}])
def test_who_asks_may_not_publish_and_no_lock_is_renewed_soon(
    redis_url: str,
    redis_client: redis.Redis,
    queue: Queue,
    prefix: str,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, typing.Any],
    force: bool,
) -> None:
    """5.2: no message comes, and no renewal; the worker looks by itself, its link being whole."""
    monkeypatch.setattr("geventq.worker.subscription._SILENT", 0.2)
    with (
        user_without_channels(redis_url, redis_client, prefix) as url,
        Worker("q", held.process, redis_url, prefix, **options) as worker,
        Queue("q", url, prefix) as refused,
    ):
        listens(worker)
        job = queue.add("n")
        eventually(lambda: held.begun)
        assert refused.cancel_job(job.id, "silently", force=force)
        eventually(lambda: held.stopped == [LockLost(job.id) if force else "silently"])
        assert engine_of(worker).subscription.is_up


def test_a_request_is_read_in_the_renewal(
    queue: Queue, proxy: Proxy, prefix: str, held: Held, redis_client: redis.Redis
) -> None:
    """5.2: its message was published to nobody, and no subscription is made anew."""
    with Worker(
        "q", held.process, proxy.url, prefix, lock_duration=6, lock_renew_time=0.4
    ) as worker:
        listens(worker)
        job = queue.add("n")
        eventually(lambda: held.begun)
        # As a server does that has lost the subscriptions' state: the link stays open.
        engine_of(worker).subscription.heard = lambda data: None
        assert queue.cancel_job(job.id, "renewed")
        eventually(lambda: held.stopped == ["renewed"])


def test_a_worker_that_died_between_the_request_and_the_end(
    queue: Queue, prefix: str, redis_url: str, redis_client: redis.Redis
) -> None:
    """3.5, 5.2: the job stalls, and the next worker ends it unrun."""
    ran: list[str] = []
    dead = Worker("q", print, redis_url, prefix, lock_duration=0.2, skip_stalled_check=True)
    job = queue.add("n", attempts=3)
    assert dead.get_next_job("gq:dead:1") is not None
    assert queue.cancel_job(job.id, "it is dead").worker == "dead"
    dead.close()
    with Worker("q", lambda job: ran.append(job.id), redis_url, prefix, stalled_interval=0.1):
        eventually(lambda: job.get_state() == "failed")
    assert ran == []
    assert redis_client.hget(f"{prefix}:q:{job.id}", "failedReason") == "Job cancelled: it is dead"


WATCHED: typing.Final = [
    (HubReading, "_readable"),
    (Connection, "_fed"),
    (Subscription, "_heard"),
    (Hearing, "message"),
]


@pytest.mark.parametrize(
    ("owner", "name"), WATCHED, ids=[f"{owner.__name__}.{name}" for owner, name in WATCHED]
)
def test_ctrl_c_at_any_line_of_what_the_hub_does_about_a_message(
    queue: Queue,
    redis_url: str,
    prefix: str,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    owner: typing.Any,
    name: str,
) -> None:
    """5.2, 7.2: the main greenlet gets it, and the job stops all the same."""
    interrupter = Interrupter()
    monkeypatch.setattr(owner, name, interrupter.watch(owner, name))
    number, hits, is_last = 1, 0, False
    with Worker("q", held.process, redis_url, prefix, lock_duration=600) as worker:
        worker.on("error", lambda error: None)
        while not is_last:
            listens(worker)
            job = queue.add("n")
            eventually(lambda: len(held.begun) > len(held.stopped))
            interrupter.arm(number)
            asking = gevent.spawn(queue.cancel_job, job.id, number)
            hits += _until_failed(queue, job)
            assert asking.get()
            number += interrupter.has_hit
            is_last = interrupter.lines > 0 and not interrupter.has_hit  # fewer lines than `number`
        interrupter.disarm()
    assert hits == number - 1 >= 2


def _until_failed(queue: Queue, job: Job) -> int:
    """Wait for the job; how often a Ctrl-C reached this greenlet, the main one, meanwhile."""
    hits = 0
    while True:
        try:
            eventually(lambda: queue.get_job_state(job.id) == "failed")
            gevent.idle()  # one that is under way comes here
            return hits
        except KeyboardInterrupt:
            hits += 1
