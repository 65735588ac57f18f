"""Jobs run, are cancelled softly and hard, and what became of them is in Redis."""

from __future__ import annotations

import functools
import json
import typing

import gevent
import gevent.event
import pytest

from geventq import (
    CancellationToken,
    DelayedError,
    Job,
    JobCancelled,
    JobKilled,
    JobSpec,
    LockLost,
    Queue,
    UnrecoverableError,
    Worker,
)
from tests.conftest import Make
from tests.support.told import ended
from tests.support.waiting import eventually, never


def test_a_job_runs_and_its_result_is_stored(queue: Queue, make: Make) -> None:
    make(lambda job: {"doubled": job.data * 2})
    read = ended(queue, queue.add("n", 21), "completed")
    assert read.return_value == {"doubled": 42}
    assert (read.attempts_made, read.attempts_started) == (1, 1)


def test_many_jobs_run_once_each(queue: Queue, make: Make) -> None:
    ran: list[int] = []
    make(lambda job: ran.append(job.data), concurrency=20)
    queue.add_bulk([JobSpec("n", number) for number in range(500)])
    eventually(lambda: queue.get_job_counts()["completed"] == 500)
    assert sorted(ran) == list(range(500))


def test_soft_cancel_is_seen_at_the_next_check(queue: Queue, make: Make) -> None:
    """2.6: a cancelled job fails with a text that names the reason."""

    def chunks(job: Job, token: CancellationToken) -> None:
        while True:
            token.raise_if_cancelled()
            gevent.sleep(0.001)

    worker = make(chunks)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    assert worker.cancel_job(job.id, "user asked")
    read = ended(queue, job, "failed")
    assert read.failed_reason == "Job cancelled: user asked"
    assert not worker.cancel_job(job.id, "too late")


def test_hard_cancel_ends_a_blocking_call(queue: Queue, make: Make) -> None:
    """1: a kill throws `JobKilled` where the job sits; `retry=False` is final."""
    seen: list[BaseException] = []
    inside = gevent.event.Event()

    def blocked(job: Job) -> None:
        try:
            inside.set()
            gevent.event.Event().wait()
        except BaseException as error:
            seen.append(error)
            raise

    worker = make(blocked)
    job = queue.add("n", attempts=5)
    inside.wait()
    assert not worker.cancel_job(job.id, "softly")  # arity 1: nobody could hear it
    assert worker.cancel_job(job.id, "it hangs", hard=True, retry=False)
    read = ended(queue, job, "failed")
    assert [type(error) for error in seen] == [JobKilled]
    assert (read.failed_reason, read.attempts_made) == ("Job cancelled: it hangs", 1)


def test_a_cancelled_job_is_retried_by_its_own_rules(queue: Queue, make: Make) -> None:
    """2.6: with `retry=True` the job's attempts decide."""

    inside = gevent.event.Event()

    def first_blocks(job: Job, token: CancellationToken) -> str:
        if job.attempts_made == 0:
            inside.set()
            token.sleep(60)
        return "second"

    worker = make(first_blocks)
    job = queue.add("n", attempts=2)
    inside.wait()
    assert worker.cancel_job(job.id)
    assert ended(queue, job, "completed").return_value == "second"


def test_a_result_after_a_request_counts(queue: Queue, make: Make) -> None:
    """2.5: cancellation is cooperative; the stream says `cancel-ignored`."""
    inside, go = gevent.event.Event(), gevent.event.Event()
    worker = make(lambda job, token: inside.set() or (go.wait() and "done"))
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, "please")
    go.set()
    assert ended(queue, job, "completed").return_value == "done"


def test_a_request_before_the_first_turn_keeps_the_processor_from_running(
    queue: Queue, make: Make
) -> None:
    """2.8: cancelled in the `active` event, just before the processor: it does not run."""
    ran: list[str] = []
    worker = make(lambda job, token: ran.append(job.id))
    worker.on("active", lambda job: worker.cancel_job(job.id, "never mind"))
    read = ended(queue, queue.add("n"), "failed")
    assert ran == []
    assert read.failed_reason == "Job cancelled: never mind"


def test_a_shielded_block_is_waited_for(queue: Queue, make: Make) -> None:
    """2.9: a kill that fell due in a shield is thrown at its exit."""
    inside, go = gevent.event.Event(), gevent.event.Event()
    steps: list[str] = []

    def commit(job: Job, token: CancellationToken) -> None:
        with token.shield():
            inside.set()
            go.wait()
            steps.append("committed")
        steps.append("not reached")

    worker = make(commit)
    job = queue.add("n")
    inside.wait()
    assert worker.cancel_job(job.id, "kill", hard=True)
    gevent.sleep(0.05)  # turns enough for a throw that should not come
    assert steps == []
    go.set()
    ended(queue, job, "failed")
    assert steps == ["committed"]


def test_a_lost_lock_cancels_the_attempt_and_nothing_is_written(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """3.2, 3.4: reason `LockLost(job_id)`; the job's state is not touched."""
    reasons: list[object] = []

    def wait(job: Job, token: CancellationToken) -> None:
        token.wait()
        reasons.append(token.reason)
        raise JobCancelled(token.get())

    worker = make(wait, lock_duration=4.0, lock_renew_time=0.1, skip_stalled_check=True)
    lost: list[str] = []
    worker.on("lock_lost", lambda job, said: lost.append(job.id))
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    redis_client.set(f"{prefix}:q:{job.id}:lock", "another")
    eventually(lambda: lost == [job.id])
    eventually(lambda: not worker.active_jobs)
    assert reasons == [LockLost(job.id)]
    assert queue.get_job_state(job.id) == "active"


def test_a_lost_lock_asks_softly_in_soft_mode(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    """3.2: only hard mode kills; the processor runs on, and what it returns is not written."""
    go = gevent.event.Event()
    seen: list[object] = []

    def deaf(job: Job, token: CancellationToken) -> str:
        token.wait()
        seen.append(go.wait())
        return "a result"

    worker = make(deaf, lock_duration=4.0, lock_renew_time=0.1, skip_stalled_check=True)
    told: list[str] = []
    for event in ("lock_lost", "completed", "cancelled", "failed"):
        worker.on(event, lambda job, *rest, event=event: told.append(event))
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    redis_client.set(f"{prefix}:q:{job.id}:lock", "another")
    eventually(lambda: told == ["lock_lost"])
    gevent.sleep(0.05)  # a kill would come at the next turn
    assert worker.active_jobs
    go.set()
    eventually(lambda: not worker.active_jobs)
    assert seen == [True]
    assert told == ["lock_lost"]
    assert queue.get_job_state(job.id) == "active"


def test_closing_gives_the_job_back_as_if_it_had_not_been_taken(queue: Queue, make: Make) -> None:
    """7.1: wait's front, `atm` unchanged, `ats` taken back."""
    worker = make(lambda job, token: token.sleep(60))
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    worker.close(0)
    read = queue.get_job(job.id)
    assert read is not None
    assert queue.get_job_state(job.id) == "waiting"
    assert (read.attempts_made, read.attempts_started) == (0, 0)


@pytest.mark.parametrize("error", [SystemExit(3), gevent.GreenletExit(), ValueError("x")])
def test_whatever_a_processor_raises_fails_its_job(
    queue: Queue, make: Make, error: BaseException
) -> None:
    """2.6: an escaped `GreenletExit` or `SystemExit` is a failure, never a result."""

    def raising(job: Job) -> None:
        raise error

    make(raising)
    read = ended(queue, queue.add("n"), "failed")
    assert read.failed_reason == (str(error) or type(error).__name__)


def test_an_unrecoverable_error_is_final(queue: Queue, make: Make) -> None:
    def raising(job: Job) -> None:
        raise UnrecoverableError("no way")

    make(raising)
    assert ended(queue, queue.add("n", attempts=5), "failed").attempts_made == 1


def test_a_processor_may_delay_its_job(queue: Queue, make: Make) -> None:
    def later(job: Job) -> None:
        raise DelayedError(60)

    make(later)
    job = ended(queue, queue.add("n"), "delayed")
    assert (job.delay, job.attempts_made) == (60.0, 0)


def test_a_result_that_is_not_json_fails_the_job(queue: Queue, make: Make) -> None:
    make(lambda job: object())
    assert "not JSON" in (ended(queue, queue.add("n"), "failed").failed_reason or "")


def test_a_time_limit_kills_a_processor_that_takes_no_token(queue: Queue, make: Make) -> None:
    """2.15: kind `timeout`, hard where nobody could hear a soft one."""
    make(lambda job: gevent.sleep(60))
    read = ended(queue, queue.add("n", timeout=0.05), "failed")
    assert read.failed_reason == "Job timed out after 0.05 s"


def test_an_id_without_a_hash_is_skipped_and_told(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str
) -> None:
    errors: list[BaseException] = []
    redis_client.lpush(f"{prefix}:q:wait", "ghost")
    worker = make(lambda job: None)
    worker.on("error", errors.append)
    ended(queue, queue.add("n"), "completed")
    eventually(lambda: errors)
    assert "ghost" in str(errors[0])
    assert not redis_client.exists(f"{prefix}:q:ghost")


@pytest.mark.parametrize("retry", [True, False])
def test_a_recorded_request_ends_the_run_it_was_meant_for(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, retry: bool
) -> None:
    """4.4: the taker ends the job by the request's `retry`, without running it.  What ended the
    job for good is shown."""
    ran: list[int] = []
    job = queue.add("n", attempts=2)
    record = {"reason": "stuck", "kind": "user", "hard": True, "retry": retry, "at": 1, "atm": 0}
    redis_client.hset(f"{prefix}:q:{job.id}", "gqc", json.dumps(record))
    make(lambda job: ran.append(job.attempts_made))
    read = ended(queue, job, "completed" if retry else "failed")
    assert ran == ([1] if retry else [])  # retried by its own rules, or final
    assert read.failed_reason == "Job cancelled: stuck"
    assert (read.cancellation is None) is retry


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concurrency": "4"}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"lock_duration": float("nan")}, "lock_duration"),
        ({"lock_duration": 10, "lock_renew_time": 9}, "lock_renew_time"),
        ({"concurency": 4}, "concurency"),
        ({"cancel_mode": "medium"}, "cancel_mode"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, typing.Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        Worker("q", lambda job: None, **options)


@pytest.mark.parametrize("process", [lambda: None, lambda a, b, c: None, 5])
def test_a_processor_that_cannot_take_a_job_is_refused(process: typing.Any) -> None:
    """2.1: counted once, when the worker is made."""
    with pytest.raises(TypeError, match="process"):
        Worker("q", process)


async def _coroutine(job: Job) -> None: ...


async def _asynchronous_generator(job: Job) -> typing.AsyncIterator[int]:
    yield 1


def _generator(job: Job, token: CancellationToken) -> typing.Iterator[int]:
    yield 1


class _Called:
    async def __call__(self, job: Job) -> None: ...


@pytest.mark.parametrize(
    "process",
    [
        *(_coroutine, _asynchronous_generator, _generator, _Called(), _Called().__call__),
        functools.partial(functools.partial(_generator), token=None),
    ],
)
def test_a_processor_whose_call_runs_nothing_is_refused(process: typing.Any) -> None:
    """Else each job would fail with "coroutine has no form in JSON", and none would run."""
    with pytest.raises(TypeError, match=r"process: a plain function .* got an? "):
        Worker("q", process)


@pytest.mark.parametrize("name", [".tasks:process", "tasks..x:process", "tests.:process"])
def test_a_relative_name_of_a_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="process: there is no module"):
        Worker("q", name)


@pytest.mark.parametrize("name", ["hard", "retry"])
def test_a_request_with_what_is_no_flag_is_refused(name: str) -> None:
    worker = Worker("q", lambda job: None)
    values: list[typing.Any] = [1, 0, "yes"] + [None] * (name == "retry")
    for value in values:
        with pytest.raises(TypeError, match=f"{name}: True or False"):
            worker.cancel_job("1", **{name: value})
        with pytest.raises(TypeError, match=f"{name}: True or False"):
            worker.cancel_all_jobs(**{name: value})


@pytest.mark.parametrize(
    ("field", "value"), [("ats", "many"), ("atm", "x"), ("opts", '{"attempts":1e999}')]
)
def test_a_hash_with_foreign_values_stops_nobody_else(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, field: str, value: str
) -> None:
    """Bad input: such a job runs or fails, and what was taken with it runs at once."""
    broken, sound = queue.add_bulk([JobSpec("n"), JobSpec("n")])
    redis_client.hset(f"{prefix}:q:{broken.id}", field, value)
    make(lambda job: None, concurrency=10)
    ended(queue, sound, "completed")
    eventually(lambda: queue.get_job_state(broken.id) in ("completed", "failed"))


def test_drained_is_told_once_each_time_the_jobs_run_out(queue: Queue, make: Make) -> None:
    told: list[str] = []
    worker = make(lambda job: None, drain_delay=0.02)
    worker.on("completed", lambda job, result: told.append("completed"))
    worker.on("drained", lambda: told.append("drained"))

    def drained_since_the_job() -> int:
        return told[told.index("completed") :].count("drained") if "completed" in told else 0

    for _ in range(2):
        told.clear()
        queue.add("n")
        eventually(drained_since_the_job)
        never(lambda: drained_since_the_job() > 1, 0.1)  # five waits in vain


@pytest.mark.parametrize("opts", ["[", "[]", "NaN", '{"attempts":three}', b"\xff"])
def test_options_that_cannot_be_read_fail_the_job_without_running(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, opts: str | bytes
) -> None:
    ran: list[str] = []
    job = queue.add("n")
    redis_client.hset(f"{prefix}:q:{job.id}", "opts", opts)
    make(lambda job: ran.append(job.id))
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    assert ran == []
    failed_reason = redis_client.hget(f"{prefix}:q:{job.id}", "failedReason")
    assert failed_reason.startswith("opts: cannot be used")


def test_a_start_that_failed_may_be_followed_by_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is read by the start, for the command line sets it."""
    worker = Worker("q", lambda job: None)
    monkeypatch.setenv("GEVENTQ_REDIS_URL", "nonsense://host")
    with pytest.raises(ValueError, match="connection"):
        worker.start()
    assert not worker.is_running
    worker.close()
