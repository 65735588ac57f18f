"""8: a worker with a secret kills only for who has signed; all else asks softly."""

from __future__ import annotations

import collections.abc
import json
import logging
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import CancellationToken, CancelResult, DelayedError, GeventqError, Job, Queue, Worker
from geventq.cancel_request import Request
from geventq.cancel_secret import check_cancel_secret
from geventq.store.cancel_calls import CancelCalls
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.told import Told, ended, engine_of, stream_of
from tests.support.waiting import TurnedClock, eventually, later_by_the_server, never

SECRET: typing.Final = "seven horses in a row"
OTHER: typing.Final = "eight horses in a row"
WHEN: typing.Final = 1_750_000_000.0
KILLED: typing.Final = ("grace", "thrown")  # the end may be told before the last stage

By = collections.abc.Callable[..., Queue]


class Deaf:
    """A processor that looks at nothing; what stops it is a kill."""

    def __init__(self) -> None:
        self.tokens: list[CancellationToken] = []
        self.jobs: list[Job] = []
        self.go = gevent.event.Event()

    def process(self, job: Job, token: CancellationToken) -> str:
        self.tokens.append(token)
        self.jobs.append(job)
        self.go.wait()
        return "done"


def obedient(job: Job, token: CancellationToken) -> None:
    token.sleep(600)


@pytest.fixture
def deaf() -> collections.abc.Iterator[Deaf]:
    deaf = Deaf()
    yield deaf
    deaf.go.set()


@pytest.fixture
def by(redis_url: str, prefix: str) -> collections.abc.Iterator[By]:
    """``by(secret)``: the queue, as who has that secret sees it."""
    queues: list[Queue] = []

    def by(secret: str | None = SECRET, name: str = "q", under: str = prefix) -> Queue:
        queues.append(Queue(name, redis_url, under, cancel_secret=secret))
        return queues[-1]

    yield by
    for queue in queues:
        queue.close()


def running(queue: Queue, worker: Worker, **options: typing.Any) -> Job:
    """A new job of the queue, when it runs, and the worker hears."""
    job = queue.add("n", **options)
    engine = engine_of(worker)

    def runs() -> bool:
        found = engine.slots.running.find(job.id)
        return bool(found) and found[0].attempt.greenlet is not None

    eventually(lambda: runs() and engine.subscription.is_up)
    return job


def signs(queue: Queue) -> None:
    """Wait until the workers of the queue have told that they need signatures."""
    client, keys = queue._store._client, queue._store.keys
    eventually(lambda: client.execute("HGET", keys.meta, "gqs", again=True))


def answered(
    queue: Queue,
    job: Job,
    deaf: Deaf,
    stage: str,
    client: redis.Redis,
    **asked: typing.Any,
) -> CancelResult:
    """What came of cancelling a job that ends by itself when somebody was told `stage`."""
    asking = gevent.spawn(queue.cancel_job, job.id, wait=30, **asked)

    def told() -> bool:
        return stage in [one.get("stage") for one in stream_of(client, queue.prefix, job)]

    eventually(lambda: told() or asking.ready())
    deaf.go.set()
    return asking.get()


def message_of(queue: Queue, job: Job, reason: object = None, **options: typing.Any) -> bytes:
    """The message that ``queue.cancel_job`` would send now; nothing is sent."""
    store = queue._store
    calls = CancelCalls(store._client, store.keys, queue._secret)
    args = calls._looked_at(Request(reason, **options), [job.id], "")
    return typing.cast(bytes, args[-2])


def record_with(job: Job, *signed: bytes, **members: object) -> bytes:
    """A record that asks for a kill of the job's first run, with these signed requests in it."""
    record = {**Request("x", hard=True).record(), "at": 5, "nonces": ["a"], "atm": 0}
    record |= {"ts": round(job.timestamp * 1000), "signed": [one.decode() for one in signed]}
    return json.dumps(record | members).encode()


def hash_of(client: redis.Redis, prefix: str, job: Job, queue: str = "q") -> dict[str, str]:
    return typing.cast("dict[str, str]", client.hgetall(f"{prefix}:{queue}:{job.id}"))


def of(client: redis.Redis, prefix: str, job: Job, name: str) -> list[dict[str, str]]:
    return [one for one in stream_of(client, prefix, job) if one["event"] == name]


def ignored_by(worker: Worker) -> dict[str, int]:
    return dict(engine_of(worker).subscription.ignored.counts)


# -- signed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hints", ["trusted", "recorded-only"])
@pytest.mark.parametrize("how", [{"hard": True}, {"kill_after": 0.05}])
def test_who_has_the_secret_kills(
    by: By, make: Make, deaf: Deaf, hints: typing.Any, how: dict[str, typing.Any]
) -> None:
    """8: by the message, or by the record alone."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET, hints=hints)
    job = running(queue, worker)
    result = queue.cancel_job(job.id, {"why": [1.0, []]}, wait=30, **how)
    assert (result.status, result.stage in KILLED) == ("stopped", True)
    (token,) = deaf.tokens
    assert (token.reason, token.get().hard) == ({"why": [1.0, []]}, True)
    assert ignored_by(worker) == {}


def test_a_kill_that_was_recorded_while_nobody_heard(
    by: By, deaf: Deaf, redis_url: str, prefix: str, redis_client: redis.Redis
) -> None:
    """8, 5.2: no message, and long ago: a record does not expire."""
    queue = by()
    with Worker("q", deaf.process, redis_url, prefix, cancel_secret=SECRET) as worker:
        job = running(queue, worker)
        told = json.loads(message_of(queue, job, "late", hard=True))
        engine_of(worker).subscription.stop()
        queue.cancel_job(job.id, "late", hard=True)
        record = json.loads(hash_of(redis_client, prefix, job)["gqc"])
        (signed,) = record["signed"]
        assert json.loads(signed).keys() == told.keys()
        (run,) = engine_of(worker).slots.running.find(job.id)
        engine_of(worker).hearing.record(run, json.dumps(record).encode())
        ended(queue, job, "failed")
        assert deaf.tokens[0].get().hard


def test_a_job_cancels_another_with_its_workers_secret(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str
) -> None:
    """8: `job.cancel` inside a processor is signed as well."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET, concurrency=2)
    job = running(queue, worker)
    assert deaf.jobs[0].cancel("by itself", hard=True)
    ended(queue, job, "failed")
    assert of(redis_client, prefix, job, "cancel-refused") == []


def test_a_worker_without_a_secret_heeds_signed_requests(by: By, make: Make, deaf: Deaf) -> None:
    """8: signatures cost it nothing, and nothing needs them there."""
    queue = by()
    worker = make(deaf.process)
    job = running(queue, worker)
    assert queue.cancel_job(job.id, hard=True, wait=30).status == "stopped"
    job = running(queue, worker)
    assert queue.cancel_job(job.id, force=True).status == "stopped"


def test_of_several_secrets_each_is_believed(by: By, make: Make, deaf: Deaf) -> None:
    """8: while it is changed, requests signed with either reach their jobs."""
    worker = make(deaf.process, cancel_secret=f"{SECRET}\n{OTHER}", concurrency=3)
    for secret in (SECRET, OTHER):
        queue = by(secret)
        job = running(queue, worker)
        signs(queue)
        assert queue.cancel_job(job.id, hard=True, wait=30).stage in KILLED
        job = running(queue, worker)
        assert queue.cancel_job(job.id, force=True).status == "stopped"


# -- not signed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, OTHER], ids=["unsigned", "with another secret"])
@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("soft", {"hard": True}),
        ("soft", {"kill_after": 0.0}),
        ("soft", {"hard": True, "retry": True}),
        ("hard", {}),
    ],
)
def test_a_hard_request_that_is_not_signed_asks_softly(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    secret: str | None,
    mode: typing.Any,
    how: dict[str, typing.Any],
) -> None:
    """8: the token is set, nothing is thrown, and the caller reads the stage `refused`."""
    worker = make(deaf.process, cancel_secret=SECRET, cancel_mode=mode)
    job = running(by(), worker)
    result = answered(by(secret), job, deaf, "refused", redis_client, reason="please", **how)
    assert (result.status, result.stage) == ("completed", "refused")
    (token,) = deaf.tokens
    assert (token.reason, token.get().hard) == ("please", False)
    (refused,) = of(redis_client, prefix, job, "cancel-refused")
    assert (refused["stage"], refused["worker"]) == ("refused", worker.id)


def test_and_it_stops_who_heeds_it(by: By, make: Make) -> None:
    """8: softly; the receipt says both."""
    worker = make(obedient, cancel_secret=SECRET)
    job = running(by(), worker)
    result = by(None).cancel_job(job.id, "please", hard=True, wait=30)
    assert (result.status, result.stage) == ("stopped", "refused")
    assert ended(by(), job, "failed").failed_reason == "Job cancelled: please"


def test_who_is_refused_is_told_of_no_other_stage(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str
) -> None:
    """8: also when somebody else has the job killed."""
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(by(), worker)
    asking = gevent.spawn(by(None).cancel_job, job.id, "please", hard=True, wait=30)
    eventually(lambda: of(redis_client, prefix, job, "cancel-refused"))
    assert by().cancel_job(job.id, "now", hard=True, wait=30).stage in KILLED
    result = asking.get()
    assert (result.status, result.stage) == ("stopped", "refused")
    refused = of(redis_client, prefix, job, "cancel-refused")[0]["nonce"]
    stages = of(redis_client, prefix, job, "cancel-stage")
    assert refused not in [one["nonce"] for one in stages]


def test_who_hears_of_the_end_first_knows_of_the_refusal_too(by: By, make: Make) -> None:
    """8, 5.4: what is told of a stage by itself may come behind the end."""
    worker = make(obedient, cancel_secret=SECRET)
    engine_of(worker).stages.stop()
    job = running(by(), worker)
    result = by(None).cancel_job(job.id, "please", hard=True, wait=30)
    assert (result.status, result.stage) == ("stopped", "refused")


@pytest.mark.parametrize("retry", [True, False])
def test_a_soft_request_needs_no_signature(
    by: By, make: Make, redis_client: redis.Redis, prefix: str, retry: bool
) -> None:
    """8: it is what it was, `retry=False` too, and nobody speaks of a refusal."""
    worker = make(obedient, cancel_secret=SECRET)
    job = running(by(), worker, attempts=2, backoff=60.0)
    result = by(None).cancel_job(job.id, "please", retry=retry, wait=30)
    assert (result.status, result.stage) == ("stopped", "seen")
    ended(by(), job, "delayed" if retry else "failed")
    assert of(redis_client, prefix, job, "cancel-refused") == []


def test_a_job_that_does_not_run_is_cancelled_by_anybody(
    by: By, redis_client: redis.Redis, prefix: str
) -> None:
    """8, 4.2: what is signed is the kill; and there is no worker that could verify."""
    for secret in (None, SECRET):
        job = by().add("n", delay=60)
        assert by(secret).cancel_job(job.id, "no", hard=True, force=True).status == "cancelled"
        assert "signed" not in json.loads(hash_of(redis_client, prefix, job)["gqe"])


def test_the_worker_says_once_that_it_refuses(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """8: however many ask; nothing that is logged or told shows a secret."""
    worker = make(deaf.process, cancel_secret=SECRET, concurrency=3)
    with caplog.at_level(logging.DEBUG):
        for secret in (None, None, OTHER):
            job = running(by(), worker)
            by(secret).cancel_job(job.id, hard=True)
            eventually(lambda job=job: of(redis_client, prefix, job, "cancel-refused"))
    said = [one.getMessage() for one in caplog.records if "hard request" in one.getMessage()]
    assert len(said) == 1
    assert "of queue q is not signed: the job was asked softly" in said[0]
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


def test_the_plain_message_stays_soft(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis
) -> None:
    """8, 5.8: as with every worker."""
    worker = make(deaf.process, cancel_secret=SECRET, cancel_mode="hard")
    job = running(by(), worker)
    redis_client.publish(
        "bullmq:cancel", json.dumps({"queue": "q", "jobId": job.id, "reason": "x", "hard": True})
    )
    eventually(lambda: deaf.tokens[0].cancelled)
    assert not deaf.tokens[0].get().hard
    assert worker.active_jobs


def test_in_its_own_process_nothing_is_signed(by: By, make: Make, deaf: Deaf) -> None:
    """8: `worker.cancel_job` is not from elsewhere."""
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(by(), worker)
    assert worker.cancel_job(job.id, hard=True)
    ended(by(), job, "failed")


# -- several requests ----------------------------------------------------------------------------

SOFT: typing.Final = {"hard": False}
HARD: typing.Final = {"hard": True}


@pytest.mark.parametrize(
    ("first", "second", "stage"),
    [
        ((SECRET, HARD), (None, SOFT), "thrown"),
        ((None, SOFT), (SECRET, HARD), "thrown"),
        ((SECRET, HARD), (None, HARD), "thrown"),
        ((None, HARD), (SECRET, HARD), "thrown"),
        ((SECRET, SOFT), (None, HARD), "refused"),
        ((None, HARD), (SECRET, SOFT), "seen"),
        ((OTHER, HARD), (SECRET, HARD), "thrown"),
        ((SECRET, {"kill_after": 60}), (None, {"kill_after": 0}), "refused"),
        ((None, {"kill_after": 0}), (SECRET, {"kill_after": 60}), "grace"),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_of_a_merged_record_what_is_signed_counts(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    first: tuple[str | None, dict[str, typing.Any]],
    second: tuple[str | None, dict[str, typing.Any]],
    stage: str,
    at_once: bool,
) -> None:
    """8: in whatever order they come, seen one by one or both at once."""
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(by(), worker)
    (run,) = engine_of(worker).slots.running.find(job.id)
    if at_once:  # the first is not seen before the second is there
        engine_of(worker).subscription.stop()

    def read_both() -> None:
        def both() -> str | None:
            text = hash_of(redis_client, prefix, job)["gqc"]
            return text if len(json.loads(text)["nonces"]) == 2 else None

        engine_of(worker).hearing.record(run, eventually(both).encode())

    by(first[0]).cancel_job(job.id, "first", **first[1])
    reading = None
    if at_once:
        reading = gevent.spawn(read_both)
    elif first == (SECRET, HARD):
        ended(by(), job, "failed")
        return
    else:
        eventually(lambda: deaf.tokens[0].cancelled)
    result = answered(by(second[0]), job, deaf, stage, redis_client, reason="second", **second[1])
    if reading is not None:
        reading.get()
    if stage == "thrown":
        assert (result.status, result.stage in KILLED) == ("stopped", True)
    else:
        assert (result.status, result.stage) == ("completed", stage)


def test_of_nine_signed_requests_the_strongest_is_kept(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str
) -> None:
    """8: at most eight stand in a record."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    engine_of(worker).subscription.stop()
    ways = [{"kill_after": 50.0}, {"kill_after": 0.5}, *[{"hard": None}] * 5, *[SOFT] * 4]
    for number, way in enumerate(ways):
        queue.cancel_job(job.id, number, **typing.cast("typing.Any", way))
    text = hash_of(redis_client, prefix, job)["gqc"]
    signed = [json.loads(one) for one in json.loads(text)["signed"]]
    assert len(signed) == 8
    assert [one["killAfter"] for one in signed if one["hard"]] == [0.5]
    assert signed[-1]["reason"] == len(ways) - 1
    hearing, (run,) = engine_of(worker).hearing, engine_of(worker).slots.running.find(job.id)
    hearing.record(run, text.encode())
    ended(queue, job, "failed")


@pytest.mark.parametrize(
    "secrets",
    [
        [SECRET, *[OTHER] * 9],
        [*[OTHER] * 9, SECRET],
        [SECRET, *[f"{OTHER}, no {n}" for n in range(9)]],
    ],
    ids=["first", "last", "each with its own"],
)
def test_many_requests_with_another_secret_displace_none(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str, secrets: list[str]
) -> None:
    """8: the script cannot verify, but the workers have told it what they believe."""
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(by(), worker)
    signs(by())
    engine_of(worker).subscription.stop()
    for secret in secrets:
        by(secret).cancel_job(job.id, "x", hard=True)
    text = hash_of(redis_client, prefix, job)["gqc"]
    keys = [json.loads(one)["key"] for one in json.loads(text)["signed"]]
    assert (len(keys), keys.count(check_cancel_secret("", SECRET).key)) == (8, 1)
    hearing, (run,) = engine_of(worker).hearing, engine_of(worker).slots.running.find(job.id)
    hearing.record(run, text.encode())
    ended(by(), job, "failed")


# -- forged, changed, copied, replayed -----------------------------------------------------------

CHANGES: typing.Final = {
    "queue": "r",
    "jobId": "2",
    "atm": 1,
    "ts": 5,
    "at": 5,
    "nonce": "another",
    "hard": True,
    "killAfter": 0.0,
    "retry": True,
    "by": "somebody else",
    "waits": False,
    "forced": True,
    "prefix": "bull",
    "db": 1,
    "reason": "another",
    "key": "00000000",
    "sig": "0" * 64,
}


def changed(message: bytes, name: str) -> bytes:
    def text(told: dict[str, typing.Any]) -> bytes:
        return json.dumps(told, separators=(",", ":")).encode()

    told = json.loads(message)
    assert text(told) == message  # so that nothing else is changed
    assert name == "forced" or told[name] != CHANGES[name]
    return text({**told, name: CHANGES[name]})


def test_every_member_of_a_message_is_signed(by: By, make: Make, deaf: Deaf) -> None:
    """8: there is none that could be changed."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    told = json.loads(message_of(queue, job, hard=False, kill_after=None, wait=1))
    assert told.keys() | {"forced"} == CHANGES.keys()


@pytest.mark.parametrize("member", CHANGES)
@pytest.mark.parametrize("place", ["message", "record"])
def test_a_changed_member_makes_it_a_request_that_is_not_signed(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    member: str,
    place: str,
) -> None:
    """8: nothing is thrown, and no lock given up, for a message; a record of it asks softly."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    told = Told(worker)
    job = running(queue, worker)
    soft = member in ("hard", "killAfter")
    message = message_of(queue, job, "x", hard=not soft, wait=1)
    forged = changed(message, member)
    if place == "message":
        redis_client.publish(f"bullmq:cancel:{worker.id}", forged)
    else:
        redis_client.hset(f"{prefix}:q:{job.id}", "gqc", record_with(job, forged))
        # Whoever hears anything about the job reads its record.
        redis_client.publish(f"bullmq:cancel:{worker.id}", changed(message, "sig"))
        eventually(lambda: deaf.tokens[0].cancelled)
        assert not deaf.tokens[0].get().hard
    # What comes behind it has been heard: so it has, too.
    redis_client.publish(f"bullmq:cancel:{worker.id}", b"no JSON")
    eventually(lambda: ignored_by(worker).get("not JSON"))
    assert deaf.tokens[0].cancelled == (place == "record")
    assert [one.id for one in worker.active_jobs] == [job.id]
    assert told.args("lock_lost") == []
    deaf.go.set()
    ended(queue, job, "completed")


@pytest.mark.parametrize("forged", ["queue", "prefix", "id"])
def test_what_was_signed_for_one_job_is_nothing_to_another(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    redis_url: str,
    prefix: str,
    forged: str,
) -> None:
    """8: bound to queue, prefix and id; copied as a message, and as a record in the hash."""
    name = "r" if forged == "queue" else "q"
    under = f"{prefix}2" if forged == "prefix" else prefix
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(by(), worker, job_id="j", timestamp=WHEN)
    with Worker(name, deaf.process, redis_url, under, cancel_secret=SECRET) as other:
        queue = by(name=name, under=under)
        theirs = running(queue, other, job_id="k" if forged == "id" else "j", timestamp=WHEN)
        message = message_of(by(), job, "x", hard=True)
        redis_client.publish(f"bullmq:cancel:{other.id}", message)
        redis_client.publish(f"bullmq:cancel:{other.id}", b"no JSON")
        eventually(lambda: ignored_by(other).get("not JSON"))
        assert not deaf.tokens[-1].cancelled
        (run,) = engine_of(other).slots.running.find(theirs.id)
        engine_of(other).hearing.record(run, record_with(theirs, message))
        assert deaf.tokens[-1].cancelled
        assert not deaf.tokens[-1].get().hard
        never(lambda: run.is_over, 0.1)
        deaf.go.set()


def test_it_is_nothing_to_a_later_job_with_the_same_id(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis
) -> None:
    """8: bound to the job's `timestamp`: also when all was obliterated in between."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker, job_id="j")
    message = message_of(queue, job, "x", hard=True)
    deaf.go.set()
    ended(queue, job, "completed")
    assert queue.remove("j")
    deaf.go.clear()
    later = running(queue, worker, job_id="j")
    assert later.timestamp != job.timestamp
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    eventually(lambda: ignored_by(worker).get("another run"))
    assert not deaf.tokens[-1].cancelled


def test_it_is_nothing_to_the_jobs_next_run(by: By, make: Make, redis_client: redis.Redis) -> None:
    """8: bound to `atm`."""
    runs: list[CancellationToken] = []

    def process(job: Job, token: CancellationToken) -> None:
        runs.append(token)
        token.sleep(600)

    queue = by()
    worker = make(process, cancel_secret=SECRET)
    job = running(queue, worker, attempts=3)
    message = message_of(queue, job, "x", hard=True, retry=True)
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    eventually(lambda: len(runs) == 2)
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    eventually(lambda: ignored_by(worker).get("another run"))
    assert not runs[1].cancelled


@pytest.mark.parametrize("which", [{"atm": 1}, {"ts": 6}])
def test_nor_is_a_record_of_it(by: By, make: Make, deaf: Deaf, which: dict[str, int]) -> None:
    """8: one that was kept and is written again, into the hash of a later run or job."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    (run,) = engine_of(worker).slots.running.find(job.id)
    told = json.loads(message_of(queue, job, "x", hard=True)) | which
    del told["key"], told["sig"]
    signed = check_cancel_secret("", SECRET).signed(json.dumps(told).encode())
    engine_of(worker).hearing.record(run, record_with(job, signed))
    assert not deaf.tokens[0].get().hard
    never(lambda: run.attempt.was_thrown, 0.05)


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_record_that_an_earlier_run_has_left_asks_nothing_of_this_one(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    secret: str | None,
) -> None:
    """4.4: not softly either, whatever in it is signed, at the take and in later looks."""
    queue = by(secret)
    job = queue.add("n")
    signed = message_of(queue, job, "x", hard=True, retry=True) if secret else b"{}"
    left = record_with(job, signed, retry=True)
    redis_client.hset(f"{prefix}:q:{job.id}", mapping={"gqc": left, "atm": 1, "processedOn": 1})
    worker = make(deaf.process, cancel_secret=secret)
    eventually(lambda: deaf.tokens and engine_of(worker).subscription.is_up)
    engine_of(worker).hearing.requests_known = -1
    engine_of(worker).subscription.look_at_all()
    assert not deaf.tokens[0].cancelled
    assert worker.active_jobs
    deaf.go.set()
    eventually(lambda: job.get_state() == "completed")
    assert "gqc" not in hash_of(redis_client, prefix, job)


def test_a_message_counts_once_a_worker(by: By, make: Make, redis_client: redis.Redis) -> None:
    """8: a move leaves `atm` as it is, so that only the nonce tells the next run from this one."""
    runs: list[CancellationToken] = []

    def process(job: Job, token: CancellationToken) -> None:
        runs.append(token)
        token.wait()
        raise DelayedError(0.001)

    queue = by()
    worker = make(process, cancel_secret=SECRET)
    job = running(queue, worker)
    message = message_of(queue, job, "x", hard=False, retry=True)
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    eventually(lambda: len(runs) == 2)
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    eventually(lambda: ignored_by(worker).get("replayed") == 1)
    never(lambda: runs[1].cancelled, 0.1)
    assert queue.cancel_job(job.id, "x", retry=True)  # a new one does
    eventually(lambda: len(runs) == 3)


def test_a_message_expires(by: By, make: Make, deaf: Deaf, redis_client: redis.Redis) -> None:
    """8: after 60 s; its record does not."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET, lock_duration=600)
    job = running(queue, worker)
    message = message_of(queue, job, "x", hard=True)
    with later_by_the_server(61):
        redis_client.publish(f"bullmq:cancel:{worker.id}", message)
        eventually(lambda: ignored_by(worker).get("too old") == 1)
    assert not deaf.tokens[0].cancelled
    assert queue.cancel_job(job.id, "x", hard=True, wait=30).status == "stopped"


def test_the_clocks_of_machines_may_differ(
    by: By, make: Make, deaf: Deaf, turned_clock: TurnedClock
) -> None:
    """8: it is the server's that counts, on both sides."""
    queue = by()
    turned_clock.advance(7200)
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    signs(queue)
    eventually(lambda: engine_of(worker)._server_clock._ahead is not None)
    engine_of(worker).subscription.look_at_all = lambda: None  # type: ignore[method-assign]
    assert queue.cancel_job(job.id, "x", hard=True, wait=30).stage in KILLED
    assert ignored_by(worker) == {}


def test_a_nonce_that_was_seen_without_a_signature_hides_no_signed_request(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str
) -> None:
    """8: else whoever hears a message could take its strength away."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    message = message_of(queue, job, "x", hard=True)
    (run,) = engine_of(worker).slots.running.find(job.id)
    record = record_with(job, nonces=[json.loads(message)["nonce"]])
    engine_of(worker).hearing.record(run, record)
    assert deaf.tokens[0].cancelled
    assert not deaf.tokens[0].get().hard
    redis_client.publish(f"bullmq:cancel:{worker.id}", message)
    ended(queue, job, "failed")


@pytest.mark.parametrize("signed", ["gone", 5, "text", [5, None, "{}", '{"sig":"x"}'], {"a": 1}])
def test_a_record_of_another_version_asks_softly(
    by: By,
    make: Make,
    deaf: Deaf,
    redis_client: redis.Redis,
    prefix: str,
    signed: object,
) -> None:
    """8, 4.7: one without signed requests in it, or with what are none; more can be merged in."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    job = running(queue, worker)
    record = record_with(job, signed=signed)
    if signed == "gone":
        record = record.replace(b', "signed": "gone"', b"")
    redis_client.hset(f"{prefix}:q:{job.id}", "gqc", record)
    (run,) = engine_of(worker).slots.running.find(job.id)
    engine_of(worker).hearing.record(run, record)
    never(lambda: run.is_over, 0.1)
    assert queue.cancel_job(job.id, "y", hard=True, wait=30).status == "stopped"


def test_a_request_that_was_recorded_before_the_take_ends_the_job_unrun(
    by: By, make: Make, redis_url: str, prefix: str
) -> None:
    """8, 4.4: asked softly it does not run either."""
    begun: list[str] = []
    by_hand = Worker("q", print, redis_url, prefix, lock_duration=0.2)
    job = by().add("n")
    assert by_hand.get_next_job("mine") is not None
    assert by(None).cancel_job(job.id, "x", hard=True).status == "requested"
    by_hand.close()
    make(lambda job: begun.append(job.id), cancel_secret=SECRET, stalled_interval=0.1)
    assert ended(by(), job, "failed").failed_reason == "Job cancelled: x"
    assert begun == []


# -- force ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, OTHER])
def test_force_needs_the_workers_secret(by: By, make: Make, deaf: Deaf, secret: str | None) -> None:
    """8: the script refuses it, with an error that says what to do, and changes nothing."""
    worker = make(deaf.process, cancel_secret=SECRET, concurrency=2)
    job, waiting = running(by(), worker), by().add("n", delay=60)
    signs(by())
    queue = by(secret)
    with pytest.raises(GeventqError, match=r"only with the cancel_secret .* give it to the Queue"):
        queue.cancel_job(job.id, force=True)
    with pytest.raises(GeventqError, match="cancel_secret") as raised:
        queue.cancel_jobs([job.id, waiting.id], force=True)
    assert raised.value.results is not None
    assert [one and one.status for one in raised.value.results] == [None, "cancelled"]
    assert not deaf.tokens[0].cancelled
    assert queue.get_job_state(job.id) == "active"
    assert by().cancel_job(job.id, force=True).status == "stopped"
    eventually(lambda: deaf.tokens[0].cancelled)
    assert deaf.tokens[0].get().kind == "lock_lost"


def test_force_needs_it_when_the_workers_are_dead_too(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis, prefix: str
) -> None:
    """8: `meta` says so, whoever is there; with `meta` it goes, and comes again with a worker."""
    worker = make(deaf.process, cancel_secret=SECRET)
    signs(by())
    member = engine_of(worker).member
    assert redis_client.hget(f"{prefix}:q:meta", "gqs") == check_cancel_secret("", SECRET).key
    redis_client.delete(f"{prefix}:q:meta")
    member.changed()
    signs(by())
    worker.close()
    assert redis_client.hexists(f"{prefix}:q:meta", "gqs")


def test_a_worker_without_a_secret_writes_nothing(
    make: Make, queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """8: the queue's `meta` is as it was."""
    make(obedient)
    eventually(lambda: redis_client.exists(f"{prefix}:q:gq:workers"))
    assert not redis_client.hexists(f"{prefix}:q:meta", "gqs")


def test_a_forced_message_that_is_not_signed_gives_no_lock_up(
    by: By, make: Make, deaf: Deaf, redis_client: redis.Redis
) -> None:
    """8: the worker looks itself whether the lock is gone."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET)
    told = Told(worker)
    job = running(queue, worker)
    forged = json.loads(message_of(queue, job, "x"))
    del forged["sig"]
    redis_client.publish(f"bullmq:cancel:{worker.id}", json.dumps({**forged, "forced": True}))
    never(lambda: told.args("lock_lost"), 0.2)
    assert worker.active_jobs
    deaf.go.set()
    ended(queue, job, "completed")


# -- in bulk -------------------------------------------------------------------------------------


def test_many_jobs_are_signed_one_by_one(by: By, make: Make, deaf: Deaf) -> None:
    """8, 4.2: also with long reasons, in calls that stay small."""
    queue = by()
    worker = make(deaf.process, cancel_secret=SECRET, concurrency=300)
    jobs = [queue.add("n") for _ in range(300)]
    eventually(lambda: len(worker.active_jobs) == 300)
    client, sizes = queue._store._client, list[int]()
    script = client.script

    def measured(
        what: typing.Any, keys: typing.Any, args: typing.Any, **options: typing.Any
    ) -> object:
        sizes.append(sum(len(str(one)) for one in args))
        return script(what, keys, args, **options)

    client.script = measured  # type: ignore[method-assign]
    results = queue.cancel_jobs([job.id for job in jobs], '"/\x7f' * 4000, hard=True, wait=60)
    assert {one.status for one in results} == {"stopped"}
    assert max(sizes) < 2 * 2**20


# -- on the way ----------------------------------------------------------------------------------


def test_a_signed_hint_that_comes_before_the_answer_to_the_take(
    by: By, proxy: Proxy, prefix: str, deaf: Deaf
) -> None:
    """8, 5.3: it is verified when it comes, and stops the job before its first turn."""
    queue = by()
    sha = load("settle").sha.encode()
    with Worker("q", deaf.process, proxy.url, prefix, cancel_secret=SECRET) as worker:
        engine = engine_of(worker)
        eventually(lambda: engine.subscription.is_up)
        held = proxy.hold_answer(lambda sent: sha in sent and b"\r\n-1\r\n" not in sent)
        job = queue.add("n")
        held.wait()
        eventually(lambda: job.get_state() == "active")
        assert queue.cancel_job(job.id, "early", hard=True).status == "requested"
        eventually(lambda: engine.hearing._kept)
        held.release()
        ended(queue, job, "failed")
        assert deaf.tokens == []


def test_a_signed_request_whose_answer_was_lost_is_made_once(
    proxy: Proxy, prefix: str, make: Make, redis_client: redis.Redis
) -> None:
    """8, 3.6: it is sent again as it was, with its nonce and its signature."""
    worker = make(obedient, cancel_secret=SECRET)
    with Queue("q", proxy.url, prefix, cancel_secret=SECRET) as queue:
        job = running(queue, worker)
        engine_of(worker).subscription.stop()
        sha = load("cancel").sha.encode()
        proxy.lose_next(lambda sent: sha in sent)
        assert queue.cancel_job(job.id, "once", hard=True).status == "requested"
        record = json.loads(hash_of(redis_client, prefix, job)["gqc"])
        assert (len(record["nonces"]), len(record["signed"])) == (1, 1)
        assert len(of(redis_client, prefix, job, "cancel-requested")) == 1
