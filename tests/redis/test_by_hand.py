"""Jobs that a program takes with `Worker.get_next_job` and settles itself."""

from __future__ import annotations

import collections.abc
import json
import time
import typing

import gevent
import pytest

from geventq import GeventqError, Job, JobSpec, LockLostError, Queue, RedisUnavailableError, Worker
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

By = collections.abc.Callable[..., Worker]


@pytest.fixture
def by_hand(redis_url: str, prefix: str) -> collections.abc.Iterator[By]:
    """Makes workers that are never started: ``by_hand(**options)``."""
    workers: list[Worker] = []

    def make(**options: typing.Any) -> Worker:
        options = {"drain_delay": 0.05, **options}
        worker = Worker("q", lambda job: None, options.pop("url", redis_url), prefix, **options)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.close()


def taken(worker: Worker, lock_token: str = "mine") -> Job:
    job = worker.get_next_job(lock_token)
    assert job is not None
    return job


def test_a_job_in_hand_is_active_and_locked_with_the_callers_token(
    queue: Queue, by_hand: By, redis_client: typing.Any, prefix: str
) -> None:
    worker = by_hand(lock_duration=5.0, name="clerk")
    added = queue.add("n", {"rows": 3})
    job = taken(worker)
    assert (job.id, job.data, job.attempts_started) == (added.id, {"rows": 3}, 1)
    assert queue.get_job_state(job.id) == "active"
    assert redis_client.get(f"{prefix}:q:{job.id}:lock") == "mine"
    assert 4000 < redis_client.pttl(f"{prefix}:q:{job.id}:lock") <= 5000
    read = queue.get_job(job.id)
    assert read is not None
    assert read.processed_by == "clerk"


def test_completed_by_hand(queue: Queue, by_hand: By) -> None:
    queue.add("n")
    job = taken(by_hand())
    job.update_progress(50)
    job.move_to_completed({"rows": 3})
    read = queue.get_job(job.id)
    assert read is not None
    assert (queue.get_job_state(job.id), read.return_value, read.attempts_made) == (
        *("completed", {"rows": 3}),
        1,
    )


def test_failed_by_hand_follows_the_jobs_retry_rules(queue: Queue, by_hand: By) -> None:
    worker = by_hand()
    queue.add("n", attempts=2)
    job = taken(worker)
    job.move_to_failed(ValueError("no rows"))
    assert queue.get_job_state(job.id) == "waiting"
    again = taken(worker)
    assert (again.id, again.attempts_made, again.failed_reason) == (job.id, 1, "no rows")
    again.move_to_failed("still none")
    read = queue.get_job(job.id)
    assert read is not None
    assert (queue.get_job_state(job.id), read.failed_reason) == ("failed", "still none")


def test_moved_by_hand_without_counting_an_attempt(queue: Queue, by_hand: By) -> None:
    worker = by_hand()
    queue.add("n")
    taken(worker).move_to_wait("mine")
    job = taken(worker)
    assert (job.attempts_made, job.attempts_started) == (0, 2)
    job.move_to_delayed(60)
    read = queue.get_job(job.id)
    assert read is not None
    assert (queue.get_job_state(job.id), read.delay, read.attempts_made) == ("delayed", 60.0, 0)


def test_whoever_lost_the_lock_settles_nothing(
    queue: Queue, by_hand: By, redis_client: typing.Any, prefix: str
) -> None:
    """3.4: the token test of the scripts refuses; the job stays as it is."""
    worker = by_hand()
    queue.add("n")
    job = taken(worker)
    redis_client.set(f"{prefix}:q:{job.id}:lock", "another's")
    moves: list[typing.Callable[[], object]] = [
        job.move_to_completed,
        lambda: job.move_to_failed("x"),
        lambda: job.move_to_delayed(1),
        job.move_to_wait,
        lambda: job.update_progress(1),
        lambda: job.extend_lock(5),
    ]
    for move in moves:
        with pytest.raises(LockLostError):
            move()
    assert queue.get_job_state(job.id) == "active"
    with pytest.raises(GeventqError, match="another lock token"):
        job.move_to_wait("not mine")


def test_what_may_not_run_is_settled_instead_of_handed_out(
    queue: Queue, by_hand: By, redis_client: typing.Any, prefix: str
) -> None:
    """4.4 and Bad input: a broken payload, a deferred failure, a recorded request, a ghost."""
    worker = by_hand()
    errors: list[BaseException] = []
    worker.on("error", errors.append)
    broken, deferred, asked, sound = (queue.add("n") for _ in range(4))
    redis_client.hset(f"{prefix}:q:{broken.id}", "data", "{")
    redis_client.hset(f"{prefix}:q:{deferred.id}", "defa", "not this one")
    record = {"reason": "stop", "kind": "user", "hard": True, "retry": False, "at": 1, "atm": 0}
    redis_client.hset(f"{prefix}:q:{asked.id}", "gqc", json.dumps(record))
    redis_client.rpush(f"{prefix}:q:wait", "ghost")
    assert taken(worker).id == sound.id
    reasons = [job.failed_reason for job in queue.get_failed()]
    assert {"Job cancelled: stop", "not this one"} <= set(reasons)
    assert any(f"data of job {broken.id} is not JSON" in (reason or "") for reason in reasons)
    assert len(reasons) == 3
    assert ["ghost" in str(error) for error in errors] == [True]


def test_while_there_is_none_it_waits_and_wakes_up_for_the_first(queue: Queue, by_hand: By) -> None:
    worker = by_hand(drain_delay=30.0)
    waiting = gevent.spawn(worker.get_next_job, "mine")
    assert worker.get_next_job("other", block=False) is None
    added = queue.add("n")
    job = waiting.get(timeout=20)
    assert job is not None
    assert job.id == added.id


def test_a_paused_worker_hands_nothing_out(queue: Queue, by_hand: By) -> None:
    worker = by_hand(drain_delay=30.0)
    added = queue.add("n")
    worker.pause()
    assert worker.get_next_job("mine", block=False) is None
    waiting = gevent.spawn(worker.get_next_job, "mine")
    gevent.sleep(0)
    worker.resume()
    job = waiting.get(timeout=20)
    assert job is not None
    assert job.id == added.id


def test_a_started_worker_neither_counts_cancels_nor_gives_back_a_job_in_hand(
    queue: Queue, make: Make
) -> None:
    """Such a job is its taker's alone."""
    worker = make(lambda job, token: token.sleep(60))
    running = queue.add("n")
    eventually(lambda: worker.active_jobs)
    queue.add("n")
    job = taken(worker)
    assert [active.id for active in worker.active_jobs] == [running.id]
    assert not worker.cancel_job(job.id, hard=True)
    worker.close(0)
    assert queue.get_job_state(running.id) == "waiting"
    assert queue.get_job_state(job.id) == "active"


def test_a_job_whose_take_was_not_answered_is_found_by_the_next_call(
    queue: Queue, by_hand: By, proxy: Proxy
) -> None:
    """3.6, Take: the call was carried out, its answer lost; with the same token the job comes,
    and the one that is in hand already does not come twice."""
    worker = by_hand(url=proxy.url)
    first, second = queue.add("n"), queue.add("n")
    in_hand = taken(worker)
    assert in_hand.id == first.id
    sha = load("settle").sha.encode()
    proxy.swallow_next(lambda request: sha in request)
    with pytest.raises(RedisUnavailableError):
        worker.get_next_job("mine", block=False)
    assert queue.get_job_counts()["active"] == 2
    found = taken(worker)
    assert (found.id, found.attempts_started) == (second.id, 1)
    assert worker.get_next_job("mine", block=False) is None
    found.move_to_completed()
    in_hand.move_to_completed()


def test_an_outcome_whose_answer_was_lost_is_a_success(
    queue: Queue, by_hand: By, proxy: Proxy
) -> None:
    """3.6, Finish: sent again with the counters of the take."""
    worker = by_hand(url=proxy.url)
    queue.add("n")
    job = taken(worker)
    sha = load("settle").sha.encode()
    proxy.swallow_next(lambda request: sha in request)
    job.move_to_completed("done")
    assert queue.get_job_counts()["completed"] == 1


@pytest.mark.parametrize("lock_token", ["", 5, None])
def test_a_bad_lock_token_is_named(by_hand: By, lock_token: typing.Any) -> None:
    with pytest.raises((TypeError, ValueError), match="token"):
        by_hand().get_next_job(lock_token)


def test_all_who_wait_for_a_job_share_a_connection(queue: Queue, by_hand: By, proxy: Proxy) -> None:
    """However many they are; each job goes to one of them."""
    worker = by_hand(drain_delay=20.0, max_connections=3, url=proxy.url)
    waiting = [gevent.spawn(worker.get_next_job, f"token{number}") for number in range(20)]
    eventually(lambda: any(b"BZPOPMIN" in request for request in proxy.requests))
    gevent.sleep(0.1)
    assert proxy.connected <= 4
    ids = [job.id for job in queue.add_bulk([JobSpec("n")] * 20)]
    jobs = [one.get(timeout=20) for one in waiting]
    assert sorted(job.id for job in jobs) == sorted(ids)
    for job in jobs:
        job.move_to_completed()


def test_a_close_ends_the_wait_for_a_job(by_hand: By) -> None:
    worker = by_hand(drain_delay=60.0)
    waiting = [gevent.spawn(worker.get_next_job, f"token{number}") for number in range(3)]
    gevent.sleep(0.1)
    worker.close()
    assert [one.get(timeout=10) for one in waiting] == [None, None, None]


def test_a_take_whose_caller_is_killed_is_found_by_the_next_call(
    queue: Queue, by_hand: By, proxy: Proxy
) -> None:
    """3.6, Take: the server has carried it out, whatever ended the waiting."""
    worker = by_hand(url=proxy.url)
    job = queue.add("n")
    held = proxy.hold_answer(load("settle").sha.encode())
    calling = gevent.spawn(worker.get_next_job, "mine")
    held.wait()
    calling.kill()
    held.release()
    found = taken(worker)
    assert (found.id, found.attempts_started) == (job.id, 1)
    found.move_to_completed()


def test_who_waits_for_a_moment_only_has_time_for_a_look(
    queue: Queue, by_hand: By, proxy: Proxy
) -> None:
    """Redis is further away than that: he has the job, and no outage is told."""
    worker = by_hand(url=proxy.url, drain_delay=0.1)
    assert worker.get_next_job("mine", block=False) is None  # connected, and all is imported
    queue.add("n")
    proxy.delay = 0.2
    taken(worker).move_to_completed()
    assert queue.get_job_counts()["completed"] == 1


def test_who_is_woken_in_his_last_moment_has_time_for_a_look(by_hand: By, proxy: Proxy) -> None:
    """Another one who waits has asked, and leaves; no outage is told where there is none."""
    worker = by_hand(url=proxy.url, drain_delay=0.5)
    asking = gevent.spawn(worker.get_next_job, "first")
    eventually(lambda: any(b"BZPOPMIN" in request for request in proxy.requests))
    began = time.perf_counter()
    waiting = gevent.spawn(worker.get_next_job, "second")
    gevent.sleep(0.1)
    proxy.delay = 0.1
    gevent.sleep(began + 0.45 - time.perf_counter())
    asking.kill()
    assert waiting.get(timeout=20) is None


def _waiting(redis_client: typing.Any) -> int:
    """Clients that stand in line for a marker, in all queues of the server."""
    return len([one for one in redis_client.client_list() if one["cmd"] == "bzpopmin"])


@pytest.mark.parametrize("when", ["before it has the marker", "before it has looked"])
def test_who_is_killed_while_he_waits_for_a_job_takes_no_wake_up_along(
    queue: Queue, by_hand: By, make: Make, proxy: Proxy, redis_client: typing.Any, when: str
) -> None:
    """wire-format 7: the marker wakes one worker only, here the one that is killed."""
    if when == "before it has the marker":
        held = proxy.hold_answer(b"BZPOPMIN")
    calling = gevent.spawn(by_hand(url=proxy.url, drain_delay=60.0).get_next_job, "mine")
    eventually(lambda: any(b"BZPOPMIN" in request for request in proxy.requests))
    if when == "before it has looked":
        held = proxy.hold_request(load("settle").sha.encode())
    ran: list[str] = []
    make(lambda job: ran.append(job.id), drain_delay=60.0)
    eventually(lambda: _waiting(redis_client) == 2)
    job = queue.add("n")
    held.wait()
    assert not ran
    calling.kill()
    eventually(lambda: ran == [job.id], timeout=5.0)  # of 10 that a worker waits at most
