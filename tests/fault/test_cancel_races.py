"""4.1-4.5: the script that cancels, before, between and after whatever else changes the job; and
its answer that was lost, so that it is sent again, whatever the job did meanwhile (3.6).

Between means: the other's request, or the answer to it, is on its way while the job is cancelled.
"""

from __future__ import annotations

import json
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import CancellationToken, CancelResult, DelayedError, Job, JobCancelled, Queue, Worker
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.calls import takes
from tests.support.locks import Locks
from tests.support.proxy import Proxy
from tests.support.told import Told, engine_of, listens, stream_of
from tests.support.waiting import eventually

TERMINAL: typing.Final = {"completed", "failed"}
#: Soon, and so that no lock lapses while a test holds a renewal up.
RENEWS_OFTEN: typing.Final[dict[str, float]] = {"lock_duration": 9.0, "lock_renew_time": 0.4}


class Process:
    """A processor that ends as the test says; soft requests stop it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.heard: list[str] = []
        self.go = gevent.event.Event()

    def __call__(self, job: Job, token: CancellationToken) -> str:
        self.begun.append(job.id)
        gevent.wait([token, self.go], count=1)
        if token.cancelled:
            self.heard.append(job.id)
            token.raise_if_cancelled()
        if job.name == "fails":
            raise RuntimeError("by itself")
        if job.name == "moves":
            raise DelayedError(600)
        return "done"


class Deaf(Process):
    """One that hears of nothing."""

    def __call__(self, job: Job, token: CancellationToken) -> str:
        self.begun.append(job.id)
        self.go.wait()
        return "done"


@pytest.fixture
def process() -> Process:
    return Process()


def sha(name: str) -> bytes:
    return load(name).sha.encode()


def is_outcome(request: bytes) -> bool:
    """Whether a worker's call brings a result or a failure."""
    return sha("settle") in request and (b'"stack"' in request or b"\r\nc\r\n" in request)


def fields(raw: redis.Redis, prefix: str, job: Job) -> dict[str, str]:
    return raw.hgetall(f"{prefix}:q:{job.id}")


def in_one_place(raw: redis.Redis, prefix: str, job: Job) -> str:
    """The one list or set that holds the job."""
    lists, sets = ("wait", "active", "paused"), ("prioritized", "delayed", "completed", "failed")
    found = [name for name in lists if job.id in raw.lrange(f"{prefix}:q:{name}", 0, -1)]
    found += [name for name in sets if raw.zscore(f"{prefix}:q:{name}", job.id) is not None]
    assert len(found) == 1, found
    return found[0]


# -- a take --------------------------------------------------------------------------------------


def test_before_a_take_that_is_on_its_way(
    queue: Queue, proxy: Proxy, prefix: str, process: Process, redis_client: redis.Redis
) -> None:
    """4.1: the job is gone from wait when the take arrives, and never runs."""
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        held = proxy.hold_request(takes)
        job = queue.add("n")
        held.wait()
        assert queue.cancel_job(job.id, "first").status == "cancelled"
        held.release()
        later = queue.add("n")
        eventually(lambda: process.begun == [later.id])
        assert in_one_place(redis_client, prefix, job) == "failed"
        process.go.set()
        later.wait_until_finished(30)


@pytest.mark.parametrize("retry", [False, True])
def test_between_a_take_and_its_answer(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    process: Process,
    redis_client: redis.Redis,
    retry: bool,
) -> None:
    """4.4, 5.3: the hint comes before the take's answer; the run ends before its first turn, and
    with `retry=True` the job's own rules say what follows."""
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        told = Told(worker)
        held = proxy.hold_answer(takes)
        job = queue.add("n", attempts=2)
        held.wait()
        eventually(lambda: job.get_state() == "active")
        assert queue.cancel_job(job.id, "between", retry=retry).status == "requested"
        engine = engine_of(worker)
        eventually(lambda: engine.hearing._kept)
        held.release()
        if retry:
            eventually(lambda: process.begun == [job.id])
            process.go.set()
            assert job.wait_until_finished(30) == "done"
            eventually(lambda: told.of(job) == ["cancelled", "retrying", "completed"])
        else:
            eventually(lambda: job.get_state() == "failed")
            assert process.begun == []
        assert not {"gqc", "defa"} & fields(redis_client, prefix, job).keys()


def test_a_take_whose_answer_was_lost_is_cancelled_all_the_same(
    queue: Queue, proxy: Proxy, prefix: str, process: Process
) -> None:
    """3.6, 4.3: the worker finds the job, and the request with it."""
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        lost = proxy.swallow_next(takes)
        job = queue.add("n", attempts=3)
        lost.wait()
        eventually(lambda: job.get_state() in ("active", "failed"))
        assert queue.cancel_job(job.id, "lost and found", wait=30).status == "stopped"
        assert process.begun in ([], [job.id])
        assert job.get_state() == "failed"


# -- a finish ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n", "fails"])
def test_between_a_finish_and_its_answer(
    queue: Queue, proxy: Proxy, prefix: str, process: Process, name: str
) -> None:
    """4.1: it was over before, whatever its worker knows."""
    state = "failed" if name == "fails" else "completed"
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        told = Told(worker)
        job = queue.add(name)
        eventually(lambda: process.begun)
        held = proxy.hold_answer(is_outcome)
        process.go.set()
        held.wait()
        eventually(lambda: job.get_state() == state)
        result = queue.cancel_job(job.id, "late", wait=5)
        assert (result.status, result.state) == ("finished", state)
        held.release()
        told.wait(state)
        assert job.get_state() == state
        assert "cancelled" not in told.of(job)


@pytest.mark.parametrize("options", [{"attempts": 2}, {"attempts": 2, "backoff": 600.0}])
def test_a_retry_whose_answer_was_lost_brings_back_no_cancelled_job(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    process: Process,
    redis_client: redis.Redis,
    options: dict[str, typing.Any],
) -> None:
    """3.6, 4.2: the failure was settled, so the job waits, and is cancelled there; the outcome,
    sent again, is known as settled, and moves nothing."""
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        told = Told(worker)
        job = queue.add("fails", **options)
        eventually(lambda: process.begun)
        worker.pause()
        held = proxy.hold_answer(is_outcome)
        process.go.set()
        held.wait()
        state = "delayed" if "backoff" in options else "waiting"
        eventually(lambda: job.get_state() == state)
        assert queue.cancel_job(job.id, "between").state == state
        proxy.cut()
        told.wait("retrying")
        assert in_one_place(redis_client, prefix, job) == "failed"
        assert fields(redis_client, prefix, job)["failedReason"] == "Job cancelled: between"
        assert told.of(job) == ["retrying"]


def test_a_finish_that_was_lost_on_its_way_is_decided_anew(
    queue: Queue, proxy: Proxy, prefix: str, process: Process, redis_client: redis.Redis
) -> None:
    """3.6, 4.6: nothing was settled; sent again it meets the record, and the error is final."""
    with Worker("q", process, proxy.url, prefix) as worker:
        listens(worker)
        job = queue.add("fails", attempts=5)
        eventually(lambda: process.begun)
        held = proxy.hold_request(is_outcome)
        process.go.set()
        held.wait()
        assert queue.cancel_job(job.id, "in between").status == "requested"
        proxy.cut()
        eventually(lambda: job.get_state() == "failed")
        stored = fields(redis_client, prefix, job)
        assert (stored["failedReason"], stored["atm"]) == ("by itself", "1")
        assert not {"gqc", "defa"} & stored.keys()


# -- a renewal -----------------------------------------------------------------------------------


def test_between_a_renewal_and_its_answer(
    queue: Queue, proxy: Proxy, prefix: str, process: Process
) -> None:
    """5.2: that answer cannot tell of it; the next one does, where no message comes through."""
    renews = sha("renew")
    with Worker("q", process, proxy.url, prefix, **RENEWS_OFTEN) as worker:
        listens(worker)
        engine = engine_of(worker)
        job = queue.add("n")
        eventually(lambda: process.begun)
        engine.subscription.heard = lambda data: None
        held = proxy.hold_answer(lambda request: renews in request)
        held.wait()
        assert queue.cancel_job(job.id, "between").status == "requested"
        held.release()
        eventually(lambda: process.heard == [job.id])


def test_a_renewal_that_is_on_its_way_brings_no_lock_back(
    queue: Queue, proxy: Proxy, prefix: str, redis_client: redis.Redis
) -> None:
    """4.5, 3.1: taken away by force before the renewal arrives."""
    renews, process = sha("renew"), Deaf()
    with Worker("q", process, proxy.url, prefix, **RENEWS_OFTEN) as worker:
        listens(worker)
        told = Told(worker)
        engine = engine_of(worker)
        job = queue.add("n")
        eventually(lambda: process.begun)
        engine.subscription.heard = lambda data: None
        held = proxy.hold_request(lambda request: renews in request)
        held.wait()
        assert queue.cancel_job(job.id, "taken", force=True).status == "stopped"
        held.release()
        told.wait("lock_lost")
        assert not redis_client.exists(f"{prefix}:q:{job.id}:lock")
        process.go.set()
        assert in_one_place(redis_client, prefix, job) == "failed"


# -- a stalled check -----------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_around_a_stalled_check(
    queue: Queue,
    make: Make,
    process: Process,
    locks: Locks,
    redis_client: redis.Redis,
    prefix: str,
    when: str,
    retry: bool,
) -> None:
    """3.5, 4.4: a dead worker's job, asked before it is suspected, between that and its recovery,
    or when it waits again.  It runs again only if the request was for the dead run alone."""
    job = queue.add("n", attempts=2)
    locks.leave_as_a_dead_worker_does(job.id)
    client, keys = queue._store._client, queue._store.keys

    def check() -> None:
        redis_client.delete(keys.stalled_check)
        client.script(load("stalled"), keys, [keys.base, 1, 1, 5, "begin", 0])

    def ask() -> CancelResult:
        return queue.cancel_job(job.id, "dead", retry=retry)

    results = [ask()] if when == "before" else []
    check()
    results += [ask()] if when == "between" else []
    check()
    assert job.get_state() == "waiting"
    results += [ask()] if when == "after" else []
    (result,) = results
    assert result.status == ("cancelled" if when == "after" else "requested")
    make(process)
    if when != "after" and retry:
        eventually(lambda: process.begun == [job.id])
        process.go.set()
        assert job.wait_until_finished(30) == "done"
        assert fields(redis_client, prefix, job)["atm"] == "2"
    else:
        eventually(lambda: job.get_state() == "failed")
        assert process.begun == []
        assert in_one_place(redis_client, prefix, job) == "failed"


# -- a retry by hand, a removal ------------------------------------------------------------------


def test_a_retry_by_hand_after_a_run_was_cancelled(
    queue: Queue, make: Make, process: Process, redis_client: redis.Redis, prefix: str
) -> None:
    """4.4: what ended the job is shown until then, and forbids nothing afterwards."""
    told = Told(make(process))
    job = queue.add("n")
    eventually(lambda: process.begun)
    assert queue.cancel_job(job.id, {"why": [1]}, wait=30).status == "stopped"
    shown = queue.get_job(job.id)
    assert shown is not None
    for one in (shown, told.wait("failed")[0]):
        assert one.cancellation is not None
        assert (one.cancellation.reason, one.cancellation.retry) == ({"why": [1]}, False)
    process.go.set()
    shown.retry()
    assert job.wait_until_finished(30) == "done"
    again = queue.get_job(job.id)
    assert again is not None
    assert again.cancellation is None
    assert queue.cancel_job(job.id).status == "finished"


@pytest.mark.parametrize("end", ["completes", "fails", "is retried"])
def test_what_did_not_end_the_job_is_not_shown_after_the_run(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, end: str
) -> None:
    """4.4: after completion, and after the run's end when its `retry` was true."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> str:
        if inside.is_set():
            return "again"
        inside.set()
        go.wait()
        if end == "completes":
            return "all the same"
        raise JobCancelled(token.get())

    make(process)
    job = queue.add("n", attempts=2 if end == "is retried" else 1)
    inside.wait()
    assert queue.cancel_job(job.id, "this run", retry=end != "completes")
    go.set()
    eventually(lambda: job.get_state() in TERMINAL)
    after = queue.get_job(job.id)
    assert after is not None
    assert after.cancellation is None
    assert after.get_state() == ("failed" if end == "fails" else "completed")


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("end", ["completed", "failed"])
def test_what_a_foreign_worker_did_not_heed_is_not_shown_either(
    queue: Queue, redis_client: redis.Redis, prefix: str, end: str, retry: bool
) -> None:
    """4.4: it leaves the record, which says of which run it was."""
    job = queue.add("n")
    foreign = Foreign(redis_client, prefix, job)
    assert queue.cancel_job(job.id, "not heeded", retry=retry).status == "requested"
    told = {"returnvalue": "1"} if end == "completed" else {"failedReason": "by itself"}
    foreign.ends(end, finishedOn=1, **told)
    after = queue.get_job(job.id)
    assert after is not None
    assert (after.cancellation is not None) == (end == "failed" and not retry)


def test_around_a_removal(
    queue: Queue, proxy: Proxy, prefix: str, redis_client: redis.Redis
) -> None:
    """4.1: removed while the request is on its way: not found, and nothing is left behind; a job
    that comes later with that id runs."""
    job = queue.add("n", job_id="same")
    with Queue("q", proxy.url, prefix) as through:
        through.get_job_counts()
        held = proxy.hold_request(lambda request: sha("cancel") in request)
        caller = gevent.spawn(through.cancel_job, "same", "too late")
        held.wait()
        assert queue.remove(job.id)
        held.release()
        assert caller.get().status == "not_found"
    assert not redis_client.keys(f"{prefix}:q:same*")
    assert not redis_client.keys(f"{prefix}:q:gq:*")
    queue.add("n", job_id="same")
    assert queue.get_job_state("same") == "waiting"


@pytest.mark.slow
def test_a_job_that_is_removed_while_somebody_waits_for_its_cancellation(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """5.4: with the whole queue, by force; he is told that it has stopped."""
    process = Deaf()
    worker = make(process)
    job = queue.add("n")
    eventually(lambda: process.begun)
    caller = gevent.spawn(queue.cancel_job, job.id, "wait", wait=60)
    eventually(lambda: redis_client.hexists(f"{prefix}:q:{job.id}", "gqc"))
    queue.obliterate(force=True)
    assert caller.get().status == "stopped"
    process.go.set()
    worker.close(0)


# -- what a worker leaves behind that knows nothing of records -------------------------------------


class Foreign:
    """A worker of BullMQ in another language, as far as it changes a job that it holds."""

    def __init__(self, raw: redis.Redis, prefix: str, job: Job) -> None:
        self.raw = raw
        self.base = f"{prefix}:q"
        self.job = job
        raw.lmove(f"{self.base}:wait", f"{self.base}:active", "RIGHT", "LEFT")
        raw.set(f"{self.base}:{job.id}:lock", "node's", px=60_000)
        self.set(processedOn=1, ats=1)

    def set(self, **fields: str | int) -> None:
        self.raw.hset(f"{self.base}:{self.job.id}", mapping=fields)  # type: ignore[arg-type]

    def ends(self, place: str, **fields: str | int) -> None:
        """The run is over: `place` is where the job goes."""
        self.raw.delete(f"{self.base}:{self.job.id}:lock")
        self.raw.lrem(f"{self.base}:active", 1, self.job.id)
        self.set(atm=1, **fields)
        if place == "wait":
            self.raw.lpush(f"{self.base}:wait", self.job.id)
        else:
            self.raw.zadd(f"{self.base}:{place}", {self.job.id: 1})

    def retries_by_hand(self, place: str) -> None:
        """As its `job.retry()` does: `processedOn` goes, and `defa` stays."""
        self.raw.zrem(f"{self.base}:{place}", self.job.id)
        gone = ("finishedOn", "processedOn", "failedReason", "returnvalue")
        self.raw.hdel(f"{self.base}:{self.job.id}", *gone)
        self.raw.lpush(f"{self.base}:wait", self.job.id)


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("end", ["completed", "failed", "retried by itself"])
def test_the_next_run_after_a_foreign_one_that_did_not_heed_the_request(
    queue: Queue,
    make: Make,
    process: Process,
    redis_client: redis.Redis,
    prefix: str,
    end: str,
    retry: bool,
) -> None:
    """4.4: by `atm` it was another run.  With `retry=False` the job ends unrun if it came back by
    itself, and runs if somebody retried it by hand; with `retry=True` it runs."""
    job = queue.add("n", attempts=3)
    foreign = Foreign(redis_client, prefix, job)
    assert queue.cancel_job(job.id, "not heeded", retry=retry).status == "requested"
    if end == "retried by itself":
        foreign.ends("wait")
    else:
        foreign.ends(end, finishedOn=1)
        foreign.retries_by_hand(end)
    assert {"gqc"} <= fields(redis_client, prefix, job).keys()
    make(process)
    if end == "retried by itself" and not retry:
        eventually(lambda: job.get_state() == "failed")
        assert process.begun == []
        read = queue.get_job(job.id)
        assert read is not None
        assert read.failed_reason == "Job cancelled: not heeded"
        assert read.cancellation is not None
    else:
        eventually(lambda: process.begun == [job.id])
        process.go.set()
        assert job.wait_until_finished(30) == "done"
    assert not {"gqc", "defa"} & fields(redis_client, prefix, job).keys()


def test_a_deferred_failure_of_another_kind_is_not_the_requests(
    queue: Queue, make: Make, process: Process, redis_client: redis.Redis, prefix: str
) -> None:
    """4.4: the record is void and goes; what BullMQ deferred holds."""
    job = queue.add("n", attempts=3)
    foreign = Foreign(redis_client, prefix, job)
    assert queue.cancel_job(job.id, "this run", retry=True)
    foreign.ends("wait", defa="job stalled more than allowable limit")
    make(process)
    eventually(lambda: job.get_state() == "failed")
    assert process.begun == []
    stored = fields(redis_client, prefix, job)
    assert stored["failedReason"] == "job stalled more than allowable limit"
    assert not {"gqc", "defa"} & stored.keys()
    read = queue.get_job(job.id)
    assert read is not None
    assert read.cancellation is None


# -- the answer to the cancel is lost, and it is sent again ----------------------------------------


def lose_answer(proxy: Proxy, prefix: str, job: Job, **options: typing.Any) -> typing.Any:
    """A caller whose first answer is lost; his second request is held until `release`."""
    through = Queue("q", proxy.url, prefix)
    through.get_job_counts()
    proxy.swallow_next(sha("cancel"))
    again = proxy.hold_request(sha("cancel"))
    caller = gevent.spawn(through.cancel_job, job.id, "once", **options)
    caller.rawlink(lambda _: through.close())
    again.wait()
    return caller, again


@pytest.mark.parametrize("wait", [None, 30])
@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("name", ["n", "fails", "moves"])
def test_a_running_job_has_ended_by_then(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    make: Make,
    process: Process,
    redis_client: redis.Redis,
    name: str,
    retry: bool,
    wait: float | None,
) -> None:
    """3.6: it is told what the first call did, and asks nothing twice: a run that follows is not
    meant, nor the job that waits for it."""
    worker = make(process)
    listens(worker)
    job = queue.add(name, attempts=3, backoff=600.0)
    eventually(lambda: process.begun)
    caller, again = lose_answer(proxy, prefix, job, retry=retry, wait=wait)
    eventually(lambda: job.get_state() == ("delayed" if retry else "failed"))
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("stopped" if wait else "requested", "active")
    assert job.get_state() == ("delayed" if retry else "failed")
    events = [one["event"] for one in stream_of(redis_client, prefix, job)]
    assert events.count("cancel-requested") == 1


def test_a_running_job_is_still_running(
    queue: Queue, proxy: Proxy, prefix: str, make: Make, redis_client: redis.Redis
) -> None:
    process = Deaf()
    make(process)
    job = queue.add("n")
    eventually(lambda: process.begun)
    caller, again = lose_answer(proxy, prefix, job)
    again.release()
    assert caller.get().status == "requested"
    events = [one["event"] for one in stream_of(redis_client, prefix, job)]
    assert events.count("cancel-requested") == 1
    process.go.set()
    job.wait_until_finished(30)


@pytest.mark.parametrize("wait", [None, 30])
@pytest.mark.parametrize("name", ["n", "completes"])
def test_a_running_job_has_ended_and_is_not_kept(
    queue: Queue, proxy: Proxy, prefix: str, make: Make, name: str, wait: float | None
) -> None:
    """3.6, 4.3: it is told the same as of one that is kept."""
    go = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> str:
        go.set()
        token.wait(None)
        if job.name == "n":
            token.raise_if_cancelled()
        return "all the same"

    listens(make(process))
    job = queue.add(name, remove_on_fail=True, remove_on_complete=True)
    go.wait()
    caller, again = lose_answer(proxy, prefix, job, wait=wait)
    eventually(lambda: job.get_state() == "unknown")
    again.release()
    result = caller.get()
    ended = "stopped" if name == "n" else "completed"
    assert (result.status, result.state) == (ended if wait else "requested", "active")


@pytest.mark.parametrize("end", ["stalls", "is retried by a foreign worker", "by hand"])
@pytest.mark.parametrize("retry", [False, True])
def test_a_running_job_waits_again_and_nobody_has_heeded_the_request(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    redis_client: redis.Redis,
    end: str,
    retry: bool,
) -> None:
    """3.6: what was asked of its run is recorded; the job that waits is not failed for it."""
    job = queue.add("n", attempts=3)
    foreign = Foreign(redis_client, prefix, job)
    caller, again = lose_answer(proxy, prefix, job, retry=retry)
    if end == "by hand":
        foreign.ends("failed", finishedOn=1, failedReason="by itself")
        job.retry()
    else:
        foreign.ends("wait")
    if end == "stalls":
        foreign.set(atm=0)
    recorded = fields(redis_client, prefix, job)
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("requested", "active")
    assert in_one_place(redis_client, prefix, job) == "wait"
    assert fields(redis_client, prefix, job) == recorded


@pytest.mark.parametrize("state", ["waiting", "delayed"])
def test_a_job_that_did_not_run_was_retried_by_hand_meanwhile(
    queue: Queue, proxy: Proxy, prefix: str, state: str
) -> None:
    """3.6, 4.4: who retries it is not undone by a request of before."""
    job = queue.add("n", delay=600 if state == "delayed" else 0)
    caller, again = lose_answer(proxy, prefix, job)
    assert job.get_state() == "failed"
    job.retry()
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("cancelled", state)
    assert job.get_state() == "waiting"


@pytest.mark.parametrize("others", [1, 2, 5])
def test_others_have_asked_and_were_answered_meanwhile(
    queue: Queue, proxy: Proxy, prefix: str, make: Make, redis_client: redis.Redis, others: int
) -> None:
    """3.6: however often the job was cancelled since, the run that goes on is not meant."""
    runs: list[CancellationToken] = []

    def process(job: Job, token: CancellationToken) -> None:
        runs.append(token)
        token.wait(None)
        token.raise_if_cancelled()

    listens(make(process))
    job = queue.add("n", attempts=20)
    eventually(lambda: len(runs) == 1)
    caller, again = lose_answer(proxy, prefix, job, retry=True)
    for count in range(2, 2 + others):
        eventually(lambda count=count: len(runs) == count)
        assert queue.cancel_job(job.id, "another", retry=True).status == "requested"
    eventually(lambda: len(runs) == 2 + others)
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("requested", "active")
    events = [one["event"] for one in stream_of(redis_client, prefix, job)]
    assert events.count("cancel-requested") == 1 + others
    assert not runs[-1].cancelled
    assert "gqc" not in fields(redis_client, prefix, job)


def test_another_has_asked_the_run_after_a_foreign_one(
    queue: Queue, proxy: Proxy, prefix: str, redis_client: redis.Redis
) -> None:
    """3.6, 4.4: whose record stands where the first one's stood, which nobody has cleared."""
    job = queue.add("n", attempts=3)
    foreign = Foreign(redis_client, prefix, job)
    caller, again = lose_answer(proxy, prefix, job, retry=True, hard=True)
    foreign.ends("wait")
    Foreign(redis_client, prefix, job)
    assert queue.cancel_job(job.id, "softly", hard=False, retry=True).status == "requested"
    recorded = fields(redis_client, prefix, job)
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("requested", "active")
    assert fields(redis_client, prefix, job) == recorded


@pytest.mark.parametrize("by", ["us", "node"])
def test_others_have_cancelled_it_where_it_did_not_run(
    queue: Queue, proxy: Proxy, prefix: str, redis_client: redis.Redis, by: str
) -> None:
    """3.6, 4.4: and it was retried by hand each time."""

    def retry() -> None:
        if by == "us":
            job.retry()
            return
        redis_client.zrem(f"{prefix}:q:failed", job.id)
        redis_client.hdel(f"{prefix}:q:{job.id}", "finishedOn", "failedReason")
        redis_client.lpush(f"{prefix}:q:wait", job.id)

    job = queue.add("n")
    caller, again = lose_answer(proxy, prefix, job)
    for _ in range(3):
        retry()
        assert queue.cancel_job(job.id, "another").status == "cancelled"
    retry()
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("cancelled", "waiting")
    assert job.get_state() == "waiting"


def test_of_what_was_answered_little_is_kept(
    queue: Queue, prefix: str, redis_client: redis.Redis
) -> None:
    """4.3: whoever cancels a job a hundred times leaves no hundred reasons in it."""
    job = queue.add("n")
    for _ in range(100):
        assert queue.cancel_job(job.id, "r" * 1000).status == "cancelled"
        job.retry()
    kept = fields(redis_client, prefix, job)
    assert len(json.loads(kept["gqa"])) == 16
    assert sum(map(len, kept.values())) < 2000


@pytest.mark.parametrize("options", [{}, {"remove_on_fail": True}])
@pytest.mark.parametrize("retry", [False, True])
def test_a_job_that_was_taken_away(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    locks: Locks,
    redis_client: redis.Redis,
    options: dict[str, typing.Any],
    retry: bool,
) -> None:
    """4.5: once, also where it runs again by now."""
    job = queue.add("n", attempts=2, **options)
    locks.leave_as_a_dead_worker_does(job.id)
    caller, again = lose_answer(proxy, prefix, job, force=True, retry=retry)
    if retry:
        redis_client.lmove(f"{prefix}:q:wait", f"{prefix}:q:active", "RIGHT", "LEFT")
        redis_client.set(f"{prefix}:q:{job.id}:lock", "another's", px=60_000)
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("stopped", "active")
    if retry:
        assert job.get_state() == "active"
        assert redis_client.exists(f"{prefix}:q:{job.id}:lock")


@pytest.mark.parametrize("retry", [False, True])
def test_another_request_has_ended_the_run_by_then(
    queue: Queue, proxy: Proxy, prefix: str, locks: Locks, retry: bool
) -> None:
    """3.6, 4.5: by force; the first one is told that it was made, and stops no other run."""
    job = queue.add("n", attempts=2)
    locks.leave_as_a_dead_worker_does(job.id)
    caller, again = lose_answer(proxy, prefix, job)
    assert queue.cancel_job(job.id, "by force", force=True, retry=retry).status == "stopped"
    again.release()
    result = caller.get()
    assert (result.status, result.state) == ("requested", "active")
    assert job.get_state() == ("waiting" if retry else "failed")


def test_an_unknown_job_leaves_no_tombstone(queue: Queue, proxy: Proxy, prefix: str) -> None:
    """4.1."""
    caller, again = lose_answer(proxy, prefix, Job(queue._store, "nope", {}))
    again.release()
    assert caller.get().status == "not_found"
    later = queue.add("n", job_id="nope")
    assert later.get_state() == "waiting"
