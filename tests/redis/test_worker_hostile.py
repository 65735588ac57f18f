"""What a processor, a producer or a caller may hand the worker: whatever it is, the job ends, in
one state, and no other job is harmed."""

from __future__ import annotations

import collections.abc
import json
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import GeventqError, Job, JobSpec, Queue, Worker
from tests.conftest import Make
from tests.support.servers import Server
from tests.support.told import Told, ended
from tests.support.waiting import eventually


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnreadableNotes(Exception):
    @property
    def __notes__(self) -> list[str]:  # looked at by `traceback`
        raise RuntimeError("no notes")


class UnreadableCause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


class UnreadableClass(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("no class")


class EqualToEverything(Exception):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def nested_group() -> BaseException:
    """Formatting it ends in a `RecursionError`."""
    error: Exception = ValueError("innermost")
    for _ in range(2000):
        error = ExceptionGroup("group", [error])
    return error


def raises(make_error: collections.abc.Callable[[], BaseException]) -> typing.Any:
    def process(job: Job) -> None:
        raise make_error()

    return process


def recurses(job: Job) -> typing.Any:
    return recurses(job)


def circular(job: Job) -> object:
    found: list[object] = []
    found.append(found)
    return found


async def coroutine() -> None:
    """Never awaited."""


def unawaited(job: Job) -> object:
    made = coroutine()
    made.close()  # else Python warns
    return made


PROCESSORS: typing.Final = {
    "unprintable": raises(Unprintable),
    "unreadable notes": raises(UnreadableNotes),
    "unreadable cause": raises(UnreadableCause),
    "unreadable class": raises(UnreadableClass),
    "equal to everything": raises(EqualToEverything),
    "nested group": raises(nested_group),
    "MemoryError": raises(MemoryError),
    "RecursionError": recurses,
    "StopIteration": raises(StopIteration),
    "GeneratorExit": raises(GeneratorExit),
    "a generator": lambda job: (number for number in ()),
    "a greenlet": lambda job: gevent.spawn(int),
    "a coroutine": unawaited,
    "circular": circular,
    "an iterator that never ends": lambda job: iter(int, 1),
}


@pytest.mark.parametrize("what", PROCESSORS)
def test_whatever_a_processor_leaves_behind_its_job_fails_once(
    queue: Queue, make: Make, what: str, redis_client: redis.Redis, prefix: str
) -> None:
    """2.6, 2.7: an attempt without an outcome would be active, and renewed, for ever."""
    worker = make(lambda job: PROCESSORS[job.name](job) if job.name in PROCESSORS else "sound")
    told = Told(worker)
    hostile = queue.add(what, attempts=1)
    sound = queue.add("n")
    eventually(lambda: told.of(sound) == ["completed"])
    eventually(lambda: told.of(hostile) == ["failed"])
    assert queue.get_job_state(hostile.id) == "failed"
    read = queue.get_job(hostile.id)
    assert read is not None
    assert read.failed_reason
    assert not redis_client.exists(f"{prefix}:q:{hostile.id}:lock")
    worker.close(5)


FOREIGN_POLICIES: typing.Final = (
    {"age": "3600"},
    {"count": "10"},
    {"count": 1.5},
    {"count": -7},
    {"count": True, "limit": "x"},
    {"age": 10, "limit": 2.5},
    {"age": 1e999},
    {"count": [1]},
    1.5,
    -1,
    1e999,
    "yes",
)


@pytest.mark.parametrize("policy", FOREIGN_POLICIES, ids=str)
def test_a_foreign_removal_policy_harms_no_job(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, policy: object
) -> None:
    """3.7: another program stored a policy that our Lua cannot compute with.  The script would
    stop half-way, with the other jobs of its batch out of `active` and in no list."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait(), concurrency=3)
    worker.on("error", lambda error: None)
    told = Told(worker)
    worker.pause()
    jobs = queue.add_bulk([JobSpec("n") for _ in range(3)])
    options = json.dumps({"removeOnComplete": policy, "removeOnFail": policy, "attempts": 1})
    redis_client.hset(f"{prefix}:q:{jobs[1].id}", "opts", options)
    worker.resume()
    eventually(lambda: queue.get_job_counts()["active"] >= 2)
    go.set()
    for job in (jobs[0], jobs[2]):
        eventually(lambda job=job: told.of(job) == ["completed"])
        assert queue.get_job_state(job.id) == "completed"
    eventually(lambda: len(told.of(jobs[1])) == 1)
    assert queue.get_job_state(jobs[1].id) in ("completed", "failed", "unknown")
    assert not redis_client.exists(f"{prefix}:q:{jobs[1].id}:lock")


@pytest.fixture
def small_server() -> collections.abc.Iterator[Server]:
    """It refuses texts of more than a megabyte (a usual one: of 512)."""
    with Server(options=("--proto-max-bulk-len", "1mb")) as server:
        yield server


def huge(job: Job) -> str:
    if job.name == "result":
        return "x" * 3_000_000
    if job.name == "error":
        raise ValueError("x" * 3_000_000)
    return "sound"


@pytest.mark.slow
def test_what_the_server_does_not_accept_holds_up_no_other_job(
    small_server: Server, prefix: str
) -> None:
    """3.6: an outcome is sent until Redis takes it; one that it never takes must not hold up
    the others of its batch."""
    worker = Worker("q", huge, small_server.url, prefix, concurrency=5, lock_duration=2.0)
    worker.on("error", lambda error: None)
    told = Told(worker)
    with Queue("q", small_server.url, prefix) as queue, worker:
        jobs = queue.add_bulk([JobSpec(name) for name in ("n", "result", "n", "n", "n")])
        for job in (jobs[0], jobs[2], jobs[3], jobs[4]):
            eventually(lambda job=job: told.of(job) == ["completed"])
            assert queue.get_job_state(job.id) == "completed"
        worker.close(0)


@pytest.mark.parametrize("what", ["result", "error"])
def test_what_no_server_accepts_fails_the_job(
    queue: Queue, make: Make, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """issue, Bad input: a result that cannot be stored fails the job with that text."""
    monkeypatch.setattr("geventq.worker.run.outcome.LARGEST", 1_000_000)
    worker = make(huge)
    told = Told(worker)
    job = queue.add(what)
    eventually(lambda: told.of(job) == ["failed"])
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason is not None
    assert len(read.failed_reason) < 1_100_000
    assert read.failed_reason.startswith("xxx" if what == "error" else "result: 3000002 bytes")


@pytest.mark.parametrize("job_id", [None, 17, b"17", object()])
def test_a_request_needs_the_id_of_a_job(queue: Queue, make: Make, job_id: typing.Any) -> None:
    """`cancel_job` asks one job.  With an id that a program has not got (`None`) it must
    not ask them all."""
    worker = make(lambda job, token: token.sleep(60), concurrency=2)
    queue.add_bulk([JobSpec("n"), JobSpec("n")])
    eventually(lambda: len(worker.active_jobs) == 2)
    with pytest.raises(TypeError, match="job_id"):
        worker.cancel_job(job_id)
    assert worker.cancel_all_jobs() == 2


def test_a_reason_that_is_nested_too_deeply_is_refused(queue: Queue, make: Make) -> None:
    """A reason is JSON, or there is a `ValueError`."""
    worker = make(lambda job, token: token.sleep(60))
    queue.add("n")
    eventually(lambda: worker.active_jobs)
    reason: list[object] = []
    for _ in range(100_000):
        reason = [reason]
    with pytest.raises(ValueError, match="reason"):
        worker.cancel_all_jobs(reason)


def test_a_back_off_strategy_that_hangs_holds_up_no_close(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.1: it is asked when the processor has ended, so that nothing can cancel it: it has a limit
    of its own."""
    monkeypatch.setattr("geventq.worker.run.outcome.STRATEGY_LIMIT", 0.1)
    asked = gevent.event.Event()

    def hangs(made: int, error: BaseException, job: Job) -> float:
        asked.set()
        gevent.event.Event().wait()
        return 0.0

    worker = make(PROCESSORS["MemoryError"], backoff_strategies={"hangs": hangs})
    job = queue.add("n", attempts=2, backoff={"type": "hangs"})
    asked.wait()
    with gevent.Timeout(20):
        worker.close(0)
    assert queue.get_job_state(job.id) == "failed"


def test_an_error_whose_text_hangs_holds_up_no_close(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.1: a text that is read from a database, say; likewise.  Each attempt is told, and the
    other slots' jobs go on."""
    monkeypatch.setattr("geventq.worker.run.outcome.TEXT_LIMIT", 0.1)
    asked = gevent.event.Event()

    class HangingError(Exception):
        def __str__(self) -> str:
            asked.set()
            gevent.event.Event().wait()
            return ""

    def process(job: Job) -> None:
        try:
            raise HangingError
        except HangingError as error:
            raise HangingError from error

    worker = make(process)
    job = queue.add("n")
    asked.wait()
    with gevent.Timeout(20):
        worker.close(0)
    failed = ended(queue, job, "failed")
    assert failed.failed_reason == "HangingError (its text failed: Timeout)"
    assert failed.stacktrace[0].count("HangingError: <exception str() failed>") == 2


def test_a_result_that_hangs_while_it_is_written_holds_up_no_close(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.1: a row that reads its columns when it is asked for them; likewise."""
    monkeypatch.setattr("geventq.worker.run.outcome.RESULT_LIMIT", 0.1)
    asked = gevent.event.Event()

    class Row(dict[str, int]):
        def items(self) -> typing.Any:
            asked.set()
            gevent.event.Event().wait()

    worker = make(lambda job: Row(column=1))
    job = queue.add("n")
    asked.wait()
    with gevent.Timeout(20):
        worker.close(0)
    reason = ended(queue, job, "failed").failed_reason
    assert reason == "result: it took more than 0.1 s to write it"


@pytest.mark.parametrize("kind", ["shutdown", "lock_lost"])
def test_a_record_of_a_kind_that_is_never_recorded_is_void(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, kind: str
) -> None:
    """4.4, 7.1: a job with such a record would be taken and given back without end."""
    job = queue.add("n", delay=0.2)
    told = {"reason": None, "kind": kind, "hard": False, "retry": True, "at": 1, "atm": 0}
    redis_client.hset(f"{prefix}:q:{job.id}", "gqc", json.dumps(told))
    make(lambda job: "done")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert not redis_client.hexists(f"{prefix}:q:{job.id}", "gqc")


@pytest.mark.parametrize(
    "key", ["wait", "active", "prioritized", "delayed", "completed", "meta", "events", "stalled"]
)
def test_a_key_of_a_foreign_type_loses_no_job(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, key: str
) -> None:
    """3.7: a script is not rolled back, so it looks before its first write: what it would have
    popped stays in *waiting*, what it would have finished stays active, until the key is sound."""
    go = gevent.event.Event()
    worker = make(lambda job: bool(go.wait()), stalled_interval=60)
    told = Told(worker)
    eventually(lambda: redis_client.exists(f"{prefix}:q:stalled-check"))
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    eventually(lambda: worker.active_jobs)
    sound = redis_client.dump(f"{prefix}:q:{key}")
    redis_client.delete(f"{prefix}:q:{key}")
    redis_client.set(f"{prefix}:q:{key}", "foreign")
    go.set()
    told.wait("error")
    redis_client.delete(f"{prefix}:q:{key}")
    if sound is not None:
        redis_client.restore(f"{prefix}:q:{key}", 0, sound)
    eventually(lambda: len(told.args("completed")) == 3, what="all are completed")
    assert [told.of(job) for job in jobs] == [["completed"]] * 3
    assert [job.get_state() for job in jobs] == ["completed"] * 3


def test_the_stalled_check_loses_no_job_to_a_key_of_a_foreign_type(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """3.5, 3.7: a job that is active without a lock stays there until it can go to *waiting*."""
    job = queue.add("n")
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:active")
    redis_client.sadd(f"{prefix}:q:stalled", job.id)
    redis_client.set(f"{prefix}:q:wait", "foreign")
    worker = make(lambda job: None, stalled_interval=0.1)
    told = Told(worker)
    eventually(
        lambda: any("wait holds a string" in str(error) for (error,) in told.args("error")),
        what="the check has failed",
    )
    redis_client.delete(f"{prefix}:q:wait")
    told.wait("completed")
    assert job.get_state() == "completed"


@pytest.mark.parametrize("upkeep", ["promote", "promote_jobs", "retry", "retry_jobs"])
def test_a_job_that_cannot_go_to_waiting_stays_where_it_is(
    queue: Queue, redis_client: typing.Any, prefix: str, upkeep: str
) -> None:
    """3.7: *waiting* is of a foreign type, so the call raises, and the job is in its old state."""
    state = "delayed" if upkeep.startswith("promote") else "failed"
    job = queue.add("n", delay=60)
    if state == "failed":
        redis_client.rename(f"{prefix}:q:delayed", f"{prefix}:q:failed")
        redis_client.zadd(f"{prefix}:q:failed", {job.id: 1})
    redis_client.set(f"{prefix}:q:wait", "foreign")
    with pytest.raises(GeventqError, match="WRONGTYPE"):
        getattr(queue if upkeep.endswith("jobs") else job, upkeep)()
    redis_client.delete(f"{prefix}:q:wait")
    assert job.get_state() == state
    getattr(queue if upkeep.endswith("jobs") else job, upkeep)()
    assert job.get_state() == "waiting"


def test_a_prioritized_job_that_cannot_go_to_waiting_keeps_its_place(
    queue: Queue, redis_client: typing.Any, prefix: str
) -> None:
    """3.7: *waiting* is of a foreign type when a job's priority is taken away."""
    job = queue.add("n", priority=5)
    redis_client.set(f"{prefix}:q:wait", "foreign")
    with pytest.raises(GeventqError, match=r"WRONGTYPE the key .*:q:wait holds a string"):
        job.change_priority(0)
    assert job.get_state() == "prioritized"


def test_a_call_that_is_refused_makes_no_lost_lock_of_a_success(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """3.6, 3.7: the call is refused before its first write, so that the first job is active as
    before; its outcome is sent again, and both jobs run once."""
    go = gevent.event.Event()
    worker = make(lambda job: bool(go.wait()))
    told = Told(worker)
    jobs = queue.add_bulk([JobSpec("n")] * 2)
    eventually(lambda: worker.active_jobs)
    redis_client.delete(f"{prefix}:q:marker")
    redis_client.set(f"{prefix}:q:marker", "foreign")
    go.set()
    told.wait("error")
    assert jobs[0].get_state() == "active"
    redis_client.delete(f"{prefix}:q:marker")
    eventually(lambda: len(told.args("completed")) == 2, what="both are completed")
    assert [told.of(job) for job in jobs] == [["completed"]] * 2
