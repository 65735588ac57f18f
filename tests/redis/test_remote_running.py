"""4.4, 4.6, 5.1, 5.2: a request from another process reaches the job that runs, once, and is never
lost."""

from __future__ import annotations

import json
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    CancellationToken,
    DelayedError,
    GeventqError,
    Job,
    JobCancelled,
    JobKilled,
    Queue,
    Worker,
)
from geventq.control.messages import Message
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.told import Told, engine_of, listens, stream_of
from tests.support.waiting import eventually, never


class Obedient:
    """A processor that stops when it is asked to, and tells with which request."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.tokens: list[CancellationToken] = []
        self.go = gevent.event.Event()

    def process(self, job: Job, token: CancellationToken) -> str:
        self.tokens.append(token)
        self.begun.append(job.id)
        gevent.wait([token, self.go], count=1)
        token.raise_if_cancelled()
        return "done"


@pytest.fixture
def obedient() -> Obedient:
    return Obedient()


def of(events: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    return [event for event in events if event["event"] == name]


def test_it_is_told_at_once_and_the_receipt_says_how(
    queue: Queue, make: Make, obedient: Obedient, redis_client: redis.Redis, prefix: str
) -> None:
    """5.1, 5.4, 4.4: by a message to this worker alone; the record goes with the end."""
    worker = make(obedient.process)
    told = Told(worker)
    listens(worker)
    job = queue.add("n", attempts=3)
    eventually(lambda: obedient.begun)
    result = queue.cancel_job(job.id, {"why": []}, wait=30)
    assert (result.status, result.stage, result.worker) == ("stopped", "seen", worker.id)
    told.wait("failed")
    (token,) = obedient.tokens
    assert token.get().reason == {"why": []}
    assert (token.get().kind, token.get().retry) == ("remote", False)
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason == 'Job cancelled: {"why": []}'
    assert (read.attempts_made, read.deferred_failure) == (1, None)
    assert not redis_client.hexists(f"{prefix}:q:{job.id}", "gqc")
    events = stream_of(redis_client, prefix, job)
    assert [one["event"] for one in events if one["event"].startswith("cancel")] == [
        *("cancel-requested", "cancel-stage", "cancelled")
    ]


def test_with_retry_the_job_runs_again(queue: Queue, make: Make, obedient: Obedient) -> None:
    """4.4: the request covers the run that it found, and nothing is left of it."""
    worker = make(obedient.process)
    listens(worker)
    job = queue.add("n", attempts=2)
    eventually(lambda: obedient.begun)
    assert queue.cancel_job(job.id, "this run", retry=True)
    eventually(lambda: len(obedient.begun) == 2)
    obedient.go.set()
    assert job.wait_until_finished(30) == "done"


def hold_end(proxy: Proxy, kind: str = "c") -> typing.Any:
    """The next outcome is held before it reaches the server; `kind` is the letter of settle.lua."""
    sha, letter = load("settle").sha.encode(), f"\r\n{kind}\r\n".encode()
    return proxy.hold_request(lambda sent: sha in sent and letter in sent)


def test_a_request_between_the_processors_end_and_the_outcome(
    queue: Queue, proxy: Proxy, prefix: str, obedient: Obedient, redis_client: redis.Redis
) -> None:
    """2.5, 4.6: the script finds it, the worker decides again, and the result counts."""
    with Worker("q", obedient.process, proxy.url, prefix) as worker:
        listens(worker)
        job = queue.add("n")
        eventually(lambda: obedient.begun)
        held = hold_end(proxy)
        obedient.go.set()
        held.wait()
        assert queue.cancel_job(job.id, "too late").status == "requested"
        held.release()
        assert job.wait_until_finished(30) == "done"
        (ignored,) = of(stream_of(redis_client, prefix, job), "cancel-ignored")
        assert (ignored["reason"], ignored["kind"]) == ("too late", "remote")
        fields = redis_client.hgetall(f"{prefix}:q:{job.id}")
        assert not {"gqc", "defa"} & fields.keys()
        obedient.go.set()


def test_a_second_request_between_the_end_that_answers_the_first_and_its_outcome(
    queue: Queue, proxy: Proxy, prefix: str, obedient: Obedient, redis_client: redis.Redis
) -> None:
    """4.6: the outcome says that it knows of the first; the job is not retried for all that."""
    with Worker("q", obedient.process, proxy.url, prefix) as worker:
        listens(worker)
        job = queue.add("n", attempts=3, backoff=60)
        eventually(lambda: obedient.begun)
        held = hold_end(proxy, "d")
        assert queue.cancel_job(job.id, "this run", retry=True).status == "requested"
        held.wait()
        assert queue.cancel_job(job.id, "for good").status == "requested"
        held.release()
        eventually(lambda: job.get_state() == "failed")
        fields = redis_client.hgetall(f"{prefix}:q:{job.id}")
        assert (fields["failedReason"], fields["atm"]) == ("Job cancelled: for good", "1")
        assert not {"gqc", "defa"} & fields.keys()


@pytest.mark.parametrize(
    ("error", "retry", "state"),
    [
        ("fails", False, "failed"),
        ("fails", True, "waiting"),
        ("moves", False, "failed"),
        ("moves", True, "delayed"),
    ],
)
def test_an_end_of_its_own_answers_a_request_that_nobody_had_seen(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    redis_client: redis.Redis,
    error: str,
    retry: bool,
    state: str,
) -> None:
    """2.5: an error keeps its text, and `retry=False` is final; a move is done with `retry=True`,
    else the job is cancelled instead."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> None:
        inside.set()
        go.wait()
        worker.pause()
        if error == "moves":
            raise DelayedError(600)
        raise RuntimeError("by itself")

    worker = Worker("q", process, proxy.url, prefix)
    with worker:
        job = queue.add("n", attempts=5)
        inside.wait()
        sha = load("settle").sha.encode()
        held = proxy.hold_request(
            lambda sent: (sha in sent and b'"stack"' in sent) or b'"move"' in sent
        )
        go.set()
        held.wait()
        assert queue.cancel_job(job.id, "stop", retry=retry)
        held.release()
        eventually(lambda: job.get_state() == state)
        fields = redis_client.hgetall(f"{prefix}:q:{job.id}")
        assert not {"gqc", "defa"} & fields.keys()
        if error == "fails":
            assert fields["failedReason"] == "by itself"
            assert of(stream_of(redis_client, prefix, job), "cancelled")
        elif not retry:
            assert fields["failedReason"] == "Job cancelled: stop"


def test_a_soft_request_to_a_processor_without_a_token(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """2.1, 2.5: it cannot be stopped softly, but its failure is final."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> None:
        inside.set()
        go.wait()
        raise RuntimeError("by itself")

    listens(make(process))
    job = queue.add("n", attempts=5)
    inside.wait()
    assert queue.cancel_job(job.id, "stop", wait=0.5).stage == "seen"
    go.set()
    eventually(lambda: job.get_state() == "failed")
    assert redis_client.hget(f"{prefix}:q:{job.id}", "failedReason") == "by itself"


def test_the_grace_counts_from_the_moment_it_is_heard(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.6, 5.4: hard, with the grace asked for; each stage is told to who waits."""
    inside = gevent.event.Event()

    def process(job: Job) -> None:
        inside.set()
        gevent.event.Event().wait()

    listens(make(process))
    job = queue.add("n")
    inside.wait()
    result = queue.cancel_job(job.id, kill_after=0.2, wait=30)
    assert (result.status, result.stage) == ("stopped", "thrown")
    assert result.seconds is not None
    assert result.seconds >= 0.2
    stages = of(stream_of(redis_client, prefix, job), "cancel-stage")
    assert [one["stage"] for one in stages] == ["seen", "grace", "thrown"]


def test_a_forced_cancel_is_heard_as_a_lost_lock(
    queue: Queue, make: Make, obedient: Obedient
) -> None:
    """4.5: the worker stops at once, and tells no failure."""
    worker = make(obedient.process)
    told = Told(worker)
    listens(worker)
    job = queue.add("n")
    eventually(lambda: obedient.begun)
    assert queue.cancel_job(job.id, "taken", force=True).status == "stopped"
    eventually(lambda: obedient.tokens[0].cancelled)
    assert obedient.tokens[0].get().kind == "lock_lost"
    told.wait("lock_lost")


@pytest.mark.parametrize("options", [{"hard": True}, {"kill_after": 0.2}])
def test_a_forced_cancel_that_is_hard_kills_the_run_as_well(
    queue: Queue, make: Make, options: dict[str, typing.Any]
) -> None:
    """4.5: the worker is a soft one, and its processor takes no token."""
    killed: list[JobKilled] = []

    def process(job: Job) -> None:
        try:
            gevent.sleep(60)
        except JobKilled as error:
            killed.append(error)
            raise

    worker = make(process)
    told = Told(worker)
    listens(worker)
    job = queue.add("n", attempts=3)
    eventually(lambda: worker.active_jobs)
    assert queue.cancel_job(job.id, "taken", force=True, **options).status == "stopped"
    eventually(lambda: killed)
    assert killed[0].cancellation.kind == "lock_lost"
    told.wait("lock_lost")
    eventually(lambda: not worker.active_jobs)
    assert job.get_state() == "failed"


def test_a_forced_cancel_that_is_not_hard_kills_nothing(queue: Queue, make: Make) -> None:
    """4.5: what the run returns is refused."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait())
    told = Told(worker)
    listens(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    assert queue.cancel_job(job.id, "taken", force=True).status == "stopped"
    told.wait("lock_lost")
    assert worker.active_jobs
    go.set()
    eventually(lambda: not worker.active_jobs)
    assert job.get_state() == "failed"


@pytest.mark.parametrize("found_by", ["sweep", "renewal"])
@pytest.mark.parametrize(
    "options",
    [{}, {"cancel_secret": "seven horses in a row"}, {"hints": "recorded-only"}],
    ids=["plain", "signed", "recorded-only"],
)
def test_a_forced_kill_reaches_a_worker_that_heard_no_message(
    redis_url: str,
    prefix: str,
    make: Make,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    found_by: str,
    options: dict[str, typing.Any],
) -> None:
    """4.5, 5.2: it finds the lock gone, and why; that was left for this run alone, and passes."""
    killed, go = list[JobKilled](), gevent.event.Event()

    def process(job: Job) -> None:
        try:
            go.wait()
        except JobKilled as error:
            killed.append(error)
            raise

    worker = make(process, lock_renew_time=0.2, **options)
    listens(worker)
    engine = engine_of(worker)
    monkeypatch.setattr(engine.hearing, "message", lambda _: "elsewhere")
    if found_by == "renewal":
        monkeypatch.setattr(engine.subscription, "look_at_all", lambda: None)
    with Queue("q", redis_url, prefix, cancel_secret=options.get("cancel_secret")) as queue:
        job = queue.add("n", attempts=3)
        eventually(lambda: worker.active_jobs)
        assert queue.cancel_job(job.id, "taken", force=True, hard=True, retry=True)
        if found_by == "sweep":
            engine.subscription.look_at_all()
        eventually(lambda: killed)
        assert killed[0].cancellation.kind == "lock_lost"
        eventually(lambda: [one.attempts_made for one in worker.active_jobs] == [1])
        never(lambda: len(killed) > 1, 0.5)
        (left,) = redis_client.keys(f"{prefix}:q:gq:taken:*")
        assert 0 < redis_client.pttl(left) <= 60_000
        go.set()
        job.wait_until_finished(30)


def test_a_key_of_another_type_holds_no_forced_kill_up(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7: where the message would be left, and where it is looked for."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait())
    told = Told(worker)
    job = queue.add("n")
    (run,) = eventually(lambda: list(engine_of(worker).slots.running))
    redis_client.set(f"{prefix}:q:gq:taken:{run.lock_token}", "text")
    assert queue.cancel_job(job.id, "taken", force=True, hard=True).status == "stopped"
    assert job.get_state() == "failed"
    told.wait("lock_lost")
    go.set()


def test_what_is_left_of_a_forced_kill_is_read_with_care(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """5.6: garbage, a message of another run, and one that asks for no kill, kill nothing."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait())
    listens(worker)
    job = queue.add("n")
    (run,) = eventually(lambda: list(engine_of(worker).slots.running))
    told = {"queue": "q", "prefix": prefix, "db": 0, "jobId": job.id, "forced": True, "hard": True}
    told |= {"nonce": "n", "atm": 0, "ts": run.job.timestamp_ms, "at": run.job.timestamp_ms}
    hearing = engine_of(worker).hearing
    for changed in ({"atm": 1}, {"ts": 1}, {"prefix": "x"}, {"forced": False}, {"hard": None}):
        hearing.taken_away(run, json.dumps(told | changed).encode())
    for garbage in (b"", b"{", b"[]", b"\xff", b"x" * 70_000):
        hearing.taken_away(run, garbage)
    assert run.attempt.strongest is None
    hearing.taken_away(run, json.dumps(told).encode())
    eventually(lambda: run.attempt.was_thrown)
    go.set()


def test_each_step_of_a_remote_cancellation_is_timed(
    queue: Queue, proxy: Proxy, prefix: str
) -> None:
    """5.5: until it was seen, until the processor's end, until that is in Redis."""
    with Worker("q", lambda job: gevent.sleep(60), proxy.url, prefix) as worker:
        listens(worker)
        job = queue.add("n")
        eventually(lambda: worker.active_jobs)
        held = hold_end(proxy, "f")
        queue.cancel_job(job.id, kill_after=0.2)
        held.wait()
        gevent.sleep(0.2)
        held.release()
        delays = engine_of(worker).hearing.delays
        eventually(lambda: delays.counts["settled"])
        assert delays.counts == {"seen": 1, "stopped": 1, "settled": 1}
        assert delays.sums == delays.longest
        assert min(delays.sums["stopped"], delays.sums["settled"]) >= 0.19


@pytest.mark.parametrize("remote_first", [False, True])
def test_a_run_that_was_asked_here_and_from_afar_ends_by_the_stronger_request(
    queue: Queue, make: Make, remote_first: bool
) -> None:
    """2.2, 4.4: everything tells of that one; a record that was for the run alone is not shown as
    what ended the job."""
    go = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        go.wait()
        token.raise_if_cancelled()

    worker = make(process)
    told = Told(worker)
    listens(worker)
    job = queue.add("n", attempts=5)
    eventually(lambda: worker.active_jobs)
    if remote_first:
        assert queue.cancel_job(job.id, "this run", retry=True).status == "requested"
        eventually(lambda: engine_of(worker).slots.running.find(job.id)[0].heard)
        assert worker.cancel_job(job.id, "for good", retry=False)
    else:
        assert worker.cancel_job(job.id, "this run")
        assert queue.cancel_job(job.id, "for good").status == "requested"
        eventually(lambda: engine_of(worker).slots.running.find(job.id)[0].heard)
    go.set()
    text = "Job cancelled: for good"
    assert told.cancellation().reason == "for good"
    here, error = told.wait("failed")
    assert (str(error), type(error)) == (text, JobCancelled)
    stored = queue.get_job(job.id)
    assert stored is not None
    assert stored.failed_reason == text
    assert stored.stacktrace[-1].endswith(text)
    shown = None if remote_first else "for good"
    for one in (here, stored):
        assert (one.cancellation and one.cancellation.reason) == shown


def test_a_hint_that_comes_before_the_answer_to_the_take(
    queue: Queue, proxy: Proxy, prefix: str, obedient: Obedient, redis_url: str
) -> None:
    """5.3: it is kept until then, and stops the job before its first turn."""
    sha = load("settle").sha.encode()
    with Worker("q", obedient.process, proxy.url, prefix) as worker:
        listens(worker)
        told = Told(worker)
        held = proxy.hold_answer(lambda sent: sha in sent and b"\r\n-1\r\n" not in sent)
        job = queue.add("n")
        held.wait()
        eventually(lambda: job.get_state() == "active")
        assert queue.cancel_job(job.id, "early").status == "requested"
        engine = engine_of(worker)
        eventually(lambda: engine.hearing._kept)
        held.release()
        told.wait("failed")
        assert not obedient.begun
        eventually(lambda: not engine.hearing._kept)


def test_a_hint_that_came_before_a_take_began_is_nothing_to_its_jobs(
    queue: Queue, make: Make, obedient: Obedient, redis_client: redis.Redis
) -> None:
    """5.3: it is kept for another take, whose answer has not come."""
    worker = make(obedient.process)
    listens(worker)
    hearing = engine_of(worker).hearing
    hearing.take_begins(10**9)
    redis_client.publish("bullmq:cancel", json.dumps({"queue": "q", "jobId": "later"}))
    eventually(lambda: hearing._kept)
    queue.add("n", job_id="later")
    eventually(lambda: obedient.begun == ["later"])
    assert not obedient.tokens[0].cancelled
    hearing.take_is_over(10**9)
    obedient.go.set()
    eventually(lambda: queue.get_job_state("later") == "completed")


def test_a_message_is_acted_on_in_the_hub(
    queue: Queue, make: Make, obedient: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.1: no greenlet of ours has to wake up before the job's own."""
    worker = make(obedient.process)
    listens(worker)
    job = queue.add("n")
    eventually(lambda: obedient.begun)
    hearing, where = engine_of(worker).hearing, []
    message = hearing.message

    def heard(told: Message) -> str:
        where.append(gevent.getcurrent())
        return message(told)

    monkeypatch.setattr(hearing, "message", heard)
    assert queue.cancel_job(job.id, wait=20).status == "stopped"
    assert where == [gevent.get_hub()]


@pytest.mark.parametrize("what", ["garbage", "another run", "recorded-only", "forced", "a call"])
def test_what_may_log_or_call_or_tell_is_left_to_a_greenlet(
    queue: Queue,
    make: Make,
    obedient: Obedient,
    redis_client: redis.Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """2.9: the hub logs nothing, calls no code of users', and does not touch Redis."""
    worker = make(obedient.process, hints="recorded-only" if what == "recorded-only" else "trusted")
    listens(worker)
    engine = engine_of(worker)
    job = queue.add("n")
    eventually(lambda: obedient.begun)
    owner, name = {
        "garbage": (engine.subscription.ignored, "note"),
        "another run": (engine.subscription.ignored, "note"),
        "recorded-only": (engine.subscription, "_look"),
        "forced": (engine.giving_up, "lock_lost"),
        "a call": (engine.subscription, "on_call"),
    }[what]
    original, where = getattr(owner, name), []

    def called(*args: typing.Any) -> object:
        where.append(gevent.getcurrent())
        return original(*args)

    monkeypatch.setattr(owner, name, called)
    mine = {"queue": "q", "prefix": prefix, "db": 0, "nonce": "n1", "at": 1}
    if what == "forced":
        queue.cancel_job(job.id, force=True)
    elif what == "recorded-only":
        queue.cancel_job(job.id)
    else:
        message: dict[str, dict[str, object]] = {
            "garbage": {"queue": "q"},
            "another run": {**mine, "jobId": job.id, "atm": 7, "ts": 1},
            "a call": {**mine, "call": "ping"},
        }
        redis_client.publish(f"bullmq:cancel:{worker.id}", json.dumps(message[what]))
    eventually(lambda: where)
    assert set(where) == {engine.subscription.greenlet}
    obedient.go.set()


def test_recorded_only_reads_the_record_first(
    queue: Queue, make: Make, obedient: Obedient, redis_client: redis.Redis, prefix: str
) -> None:
    """5.1: a message with our members and no record behind it stops nothing."""
    worker = make(obedient.process, hints="recorded-only", concurrency=2)
    listens(worker)
    jobs = [queue.add("n"), queue.add("n")]
    eventually(lambda: len(obedient.begun) == 2)
    forged = {"queue": "q", "jobId": jobs[0].id, "reason": "x", "prefix": prefix, "db": 0}
    timestamp = int(jobs[0].timestamp * 1000)
    forged |= {"nonce": "n1", "atm": 0, "ts": timestamp, "at": timestamp, "retry": False}
    redis_client.publish(f"bullmq:cancel:{worker.id}", json.dumps(forged))
    redis_client.publish("bullmq:cancel", json.dumps({"queue": "q", "jobId": jobs[0].id}))
    queue.cancel_job(jobs[1].id, "recorded")
    eventually(lambda: jobs[1].get_state() == "failed")
    assert jobs[0].get_state() == "active"
    engine = engine_of(worker)
    assert engine.subscription.ignored.counts["no record"] == 1
    obedient.go.set()
    assert jobs[0].wait_until_finished(30) == "done"


@pytest.mark.parametrize("secret", [None, "seven horses in a row"])
@pytest.mark.parametrize(
    ("mode", "first", "is_killed"),
    [
        ("soft", {"hard": False}, False),
        ("soft", {}, False),
        ("soft", {"hard": True}, True),
        ("hard", {"hard": False}, False),
    ],
)
def test_a_soft_request_takes_nothing_from_the_grace_of_a_hard_one(
    make: Make,
    obedient: Obedient,
    redis_url: str,
    prefix: str,
    mode: typing.Any,
    first: dict[str, typing.Any],
    is_killed: bool,
    secret: str | None,
) -> None:
    """4.6, 2.2: of two the shorter grace counts, and who asks for no kill has none; by their
    record, which is read when both are there."""

    def deaf(job: Job, token: CancellationToken) -> None:
        obedient.tokens.append(token)
        obedient.go.wait()

    worker = make(deaf, cancel_secret=secret, cancel_mode=mode)
    with Queue("q", redis_url, prefix, cancel_secret=secret) as queue:
        job = queue.add("n")
        eventually(lambda: obedient.tokens)
        listens(worker)
        engine = engine_of(worker)
        engine.subscription.stop()
        queue.cancel_job(job.id, "first", **first)
        queue.cancel_job(job.id, "second", kill_after=60)
        (run,) = engine.slots.running.find(job.id)
        text = queue._store._client.execute("HGET", f"{prefix}:q:{job.id}", "gqc", again=True)
        engine.hearing.record(run, text)
        assert obedient.tokens[0].get().hard
        if is_killed:
            eventually(lambda: run.attempt.was_thrown)
        else:
            never(lambda: run.attempt.was_thrown, 0.1)
        obedient.go.set()


@pytest.mark.parametrize("secret", [None, "seven horses in a row"])
@pytest.mark.parametrize(
    "fields",
    [
        {"atm": ""},
        {"attemptsMade": ""},
        {"atm": "x"},
        {"atm": "-3"},
        {"atm": "1.5"},
        {"timestamp": ""},
        {"timestamp": "x"},
        {"timestamp": "1e400"},
        {"timestamp": "12.5"},
        {"timestamp": "nan"},
    ],
)
@pytest.mark.parametrize("how", [{}, {"hard": True}, {"force": True}])
def test_counters_of_another_program_hold_no_request_up(
    make: Make,
    obedient: Obedient,
    redis_client: redis.Redis,
    redis_url: str,
    prefix: str,
    fields: dict[str, str],
    how: dict[str, typing.Any],
    secret: str | None,
) -> None:
    """3.7, 5.6: what is no number counts as none."""
    worker = make(obedient.process, cancel_secret=secret)
    key = f"{prefix}:q:f"
    redis_client.hset(key, mapping={"name": "n", "data": "{}", "timestamp": "5", **fields})
    redis_client.rpush(f"{prefix}:q:wait", "f")
    with Queue("q", redis_url, prefix, cancel_secret=secret) as queue:
        queue.add("n")
        eventually(lambda: "f" in obedient.begun)
        listens(worker)
        assert queue.cancel_job("f", "x", **how)
        # The message may mean another run: what is recorded counts.
        engine_of(worker).subscription.look_at_all()
        eventually(lambda: obedient.tokens[obedient.begun.index("f")].cancelled)


def test_a_key_that_holds_no_hash_holds_up_no_signed_request(
    make: Make, obedient: Obedient, redis_client: redis.Redis, redis_url: str, prefix: str
) -> None:
    """3.7, 8: the others are asked, and the error says which was not."""
    make(obedient.process, cancel_secret="seven horses in a row")
    redis_client.set(f"{prefix}:q:broken", "text")
    with Queue("q", redis_url, prefix, cancel_secret="seven horses in a row") as queue:
        job = queue.add("n")
        eventually(lambda: obedient.begun)
        with pytest.raises(GeventqError, match=r"job broken .* holds no hash") as raised:
            queue.cancel_jobs(["broken", job.id, "none"], hard=True)
        results = raised.value.results or []
        assert results[0] is None
        assert [one.status for one in results[1:]] == ["requested", "not_found"]


@pytest.mark.parametrize(("end", "state"), [("completed", "completed"), ("failed", "failed")])
def test_a_job_taken_by_hand_answers_when_it_is_settled(
    queue: Queue, redis_url: str, prefix: str, redis_client: redis.Redis, end: str, state: str
) -> None:
    """4.7, 2.5: nobody tells it while it runs; a result counts, and a failure is final."""
    worker = Worker("q", print, redis_url, prefix)
    added = queue.add("n", attempts=5)
    job = worker.get_next_job("mine")
    assert job is not None
    assert queue.cancel_job(added.id, "by hand").status == "requested"
    if end == "completed":
        job.move_to_completed("result")
    else:
        job.move_to_failed(RuntimeError("why"))
    assert added.get_state() == state
    assert not {"gqc", "defa"} & redis_client.hgetall(f"{prefix}:q:{added.id}").keys()
    name = "cancel-ignored" if end == "completed" else "cancelled"
    assert of(stream_of(redis_client, prefix, added), name)
    worker.close()
