"""A kill meets a shield that has outlived its cap, or a job that ends while it is called stuck."""

from __future__ import annotations

import logging

import gevent
import gevent.event
import pytest
import redis

from geventq import Cancellation, Job, Queue
from geventq.cancellation import Attempt
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.attempts import survive
from tests.support.proxy import Proxy
from tests.support.told import Told
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


class Nobody:
    home = None

    def stuck(self, attempt: Attempt, stack: str) -> None: ...


@pytest.mark.parametrize("who", ["itself", "another"])
def test_a_kill_is_thrown_in_the_hub_also_where_a_shield_has_outlived_its_cap(who: str) -> None:
    """2.9: whoever asks goes on; the job, whose shield's cap ran out before, is killed in the
    hub's turn, and nothing is thrown after its end."""
    attempt = Attempt("1", with_token=True, hard=False, kill_after=0.0, observer=Nobody())
    seen: list[str] = []

    def ask() -> None:
        said = Cancellation("now", hard=True)
        assert attempt.request(said, hard=True, kill_after=0.0)
        seen.append("went on")

    def job() -> None:
        attempt.begin(gevent.getcurrent(), None)
        assert attempt.token is not None
        try:
            with attempt.token.shield(max=0.01):
                gevent.sleep(0.03)
                if who == "itself":
                    ask()
                gevent.sleep(60)
        except BaseException as error:
            seen.append(type(error).__name__)
        attempt.end()

    greenlet = gevent.spawn(job)
    if who == "another":
        gevent.sleep(0.05)
        gevent.spawn(ask).join(20)
    greenlet.join(20)
    assert seen == ["went on", "JobKilled"]
    gevent.sleep(1.2)  # a second throw would be printed, and fail the test


def test_a_job_that_ends_while_it_is_reported_stuck_has_one_outcome(
    queue: Queue,
    proxy: Proxy,
    through: Make,
    monkeypatch: pytest.MonkeyPatch,
    redis_client: redis.Redis,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2.10: the request of a stuck job is on its way into the hash; the job ends, and its outcome
    is taken.  It was not stuck after all: one outcome is told, and no record is left."""
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.03)
    caplog.set_level(logging.CRITICAL, "geventq")
    go = gevent.event.Event()

    def process(job: Job) -> None:
        survive(go)

    recording = proxy.hold_answer(load("record_request").sha.encode())
    worker = through(process)
    told = Told(worker)
    worker.start()
    job = queue.add("n", attempts=1)
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)
    assert worker.cancel_job(job.id, "die", hard=True, retry=True)
    recording.wait()
    go.set()
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    eventually(lambda: "failed" in told.of(job))
    recording.release()
    gevent.sleep(0.05)
    assert told.of(job) == ["cancelled", "failed"]
    assert not redis_client.hexists(f"{prefix}:q:{job.id}", "gqc")
    sound = queue.add("n")
    eventually(lambda: queue.get_job_state(sound.id) == "completed")
