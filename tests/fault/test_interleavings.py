"""Meetings that are rare and were thought of late: each test says what meets what, and forces
it."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import subprocess
import sys
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import Cancellation, CancellationToken, Job, JobSpec, Queue
from geventq.cancellation import Attempt
from geventq.store.client import Client
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.calls import recovers, takes
from tests.support.proxy import Proxy
from tests.support.told import Told, ended, engine_of
from tests.support.waiting import TurnedClock, eventually

pytestmark = pytest.mark.slow  # all together


def test_a_request_survives_a_worker_that_closes_while_it_takes_the_job(
    queue: Queue, proxy: Proxy, through: Make, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """4.4, 7.1: a request with retry=False is recorded; a worker takes the job, and closes before
    the answer comes.  The job goes back as it was, and the next worker ends it, unrun."""
    ran: list[str] = []
    job = queue.add("n", attempts=3)
    record = {"reason": "no more", "kind": "user", "hard": False, "retry": False}
    told = json.dumps({**record, "at": 1000, "by": None, "atm": 0})
    text = "Job cancelled: no more"
    redis_client.hset(f"{prefix}:q:{job.id}", mapping={"gqc": told, "defa": text})
    traps = [proxy.hold_answer(takes) for _ in range(4)]
    first = through(lambda job: ran.append("first"), concurrency=8)
    first.start()
    eventually(lambda: queue.get_job_counts()["active"] == 1)
    eventually(lambda: all(trap.was_reached for trap in traps))
    closing = gevent.spawn(first.close)
    eventually(lambda: not first.is_running)
    for trap in traps:
        trap.release()
    closing.get(timeout=20)
    make(lambda job: ran.append("second"))
    read = ended(queue, job, "failed")
    assert (ran, read.failed_reason) == ([], text)


def test_a_search_that_meets_the_jobs_end_does_not_run_it_again(
    queue: Queue, proxy: Proxy, through: Make
) -> None:
    """3.6: a lost take was found, and is asked for again later; the server sees the job locked;
    the job ends and its outcome is answered; only then the answer to the search comes."""
    ran: list[str] = []
    go = gevent.event.Event()

    def process(job: Job) -> None:
        ran.append(job.id)
        go.wait()

    job = queue.add("n")
    lost = proxy.swallow_next(takes)
    worker = through(process, lock_duration=4.0, lock_renew_time=0.1)
    told = Told(worker)
    worker.start()
    lost.wait()
    eventually(lambda: ran == [job.id])
    search = proxy.hold_answer(recovers)
    gevent.sleep(0.15)  # a round of the renewer: it may ask again, or know better
    go.set()
    eventually(lambda: told.of(job) == ["completed"])
    search.release()
    gevent.sleep(0.15)
    assert ran == [job.id]
    assert told.of(job) == ["completed"]


def test_a_search_does_not_run_a_stuck_job_a_second_time(
    queue: Queue, proxy: Proxy, through: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.10, 3.6: a job whose take was lost and found is stuck; its lock lives on for a while, and
    a later search finds it: it must neither run nor be renewed."""
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.03)
    ran: list[str] = []
    go = gevent.event.Event()

    def process(job: Job) -> None:
        ran.append(job.id)
        survive(go)

    job = queue.add("n")
    lost = proxy.swallow_next(takes)
    worker = through(
        process, concurrency=2, lock_duration=2.0, lock_renew_time=0.1, skip_stalled_check=True
    )
    told = Told(worker)
    worker.start()
    lost.wait()
    eventually(lambda: ran == [job.id])
    assert worker.cancel_job(job.id, hard=True)
    told.wait("stuck")
    eventually(lambda: not redis_exists(queue, f"{queue.prefix}:q:{job.id}:lock"))
    gevent.sleep(0.3)  # rounds of the renewer
    assert ran == [job.id]
    assert queue.get_job_state(job.id) == "active"
    go.set()
    eventually(lambda: not worker.active_jobs)


def redis_exists(queue: Queue, key: str) -> bool:
    with Queue("q", queue._connection, queue.prefix) as other:
        return bool(other._store._client.execute("EXISTS", key))


def test_a_listener_that_hangs_in_one_life_does_not_end_those_of_the_next(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.1: close(0) waits for a listener that hangs; meanwhile the worker is started anew; the
    time of the old listener is over: it is killed, and the new life's events are told."""
    monkeypatch.setattr("geventq.worker.closing._LISTENERS", 0.2)
    inside = gevent.event.Event()
    told: list[str] = []

    def hangs_once(job: Job, result: object) -> None:
        if not inside.is_set():
            inside.set()
            gevent.event.Event().wait()
        told.append(job.id)

    worker = make(lambda job: "done")
    worker.on("completed", hangs_once)
    queue.add("n")
    inside.wait()
    closing = gevent.spawn(worker.close, 0)
    eventually(lambda: not worker.is_running)
    eventually(lambda: worker._engine is None)
    worker.start()
    closing.get(timeout=20)
    job = queue.add("n")
    eventually(lambda: told == [job.id])


def test_close_asks_the_jobs_at_once_when_redis_is_silent(
    queue: Queue, proxy: Proxy, through: Make
) -> None:
    """7.1: close(0) cancels now; what the worker itself has to wait for (here: an answer in the
    idle wait, and to the wake-up that it hands on) comes later."""
    heard: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        token.wait()
        heard.append(job.id)

    worker = through(process, concurrency=2)
    worker.start()
    queue.add("n")
    eventually(lambda: worker.active_jobs)
    eventually(lambda: any(b"BZPOPMIN" in asked for asked in proxy.requests))
    gevent.sleep(0)  # the job's first turn
    with proxy.stalled():
        closing = gevent.spawn(worker.close, 0)
        for _ in range(20):  # turns of the hub, in which nothing can come from Redis
            gevent.sleep(0)
        assert heard
    closing.get(timeout=20)


def survive(go: gevent.event.Event) -> None:
    while not go.is_set():
        with contextlib.suppress(BaseException):
            go.wait()


class Nobody:
    def requested(self, attempt: Attempt) -> None: ...
    def thrown(self, attempt: Attempt) -> None: ...
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


@pytest.mark.parametrize("script", ["renew", "stalled", "settle"])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_part_of_the_worker_outlives_a_failure_of_whatever_kind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, script: str, error: Exception
) -> None:
    """3.1: the resolver cannot start a thread, memory is short: a renewer that dies of it would
    leave every lock to its fate, silently."""
    script_of = Client.script
    failed: list[str] = []

    def fails(self: Client, which: typing.Any, *args: typing.Any, **options: typing.Any) -> object:
        if which is load(script) and len(failed) < 2:
            failed.append(script)
            raise error
        return script_of(self, which, *args, **options)

    monkeypatch.setattr(Client, "script", fails)
    go = gevent.event.Event()
    worker = make(
        lambda job: go.wait(), lock_duration=6.0, lock_renew_time=0.2, stalled_interval=0.05
    )
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: len(failed) == 2)
    eventually(lambda: worker.active_jobs)
    engine = engine_of(worker)
    gevent.sleep(0.3)
    for part in (engine.lanes, engine.renewer, *engine.stalled_checker):
        assert all(not greenlet.dead for greenlet in part.disown())
    go.set()
    eventually(lambda: told.of(job) == ["completed"])
    assert told.args("error")


def test_the_idle_wait_outlives_a_failure_of_whatever_kind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose idle wait has died would sleep for ever."""
    open_connection = Client.open_connection
    failed: list[int] = []

    def fails(self: Client, *, name: str | None = None) -> object:
        if name is not None and not failed:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        return open_connection(self, name=name)

    monkeypatch.setattr(Client, "open_connection", fails)
    worker = make(lambda job: "done", drain_delay=60.0)
    worker.on("error", lambda error: None)
    eventually(lambda: failed)
    eventually(lambda: len(queue.get_workers()) == 1)
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")


def test_ctrl_c_that_hits_a_lane_loses_nothing(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.6, 7.2: Ctrl-C, where nobody heeds it, raises in whatever greenlet runs: here in a lane,
    after the server has carried its call out.  The main greenlet gets it; the lane goes on, and
    asks what became of its call."""
    script_of = Client.script
    hit: list[int] = []

    def interrupted(
        self: Client, which: typing.Any, keys: typing.Any, args: typing.Any, **more: typing.Any
    ) -> object:
        reply = script_of(self, which, keys, args, **more)
        if which is load("settle") and not hit and "c" in args:
            hit.append(1)
            raise KeyboardInterrupt
        return reply

    worker = make(lambda job: "done")
    told = Told(worker)
    worker.pause()
    job = queue.add("n")
    monkeypatch.setattr(Client, "script", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.resume()
        gevent.sleep(20)
    monkeypatch.undo()
    eventually(lambda: all(not lane.dead for lane in engine_of(worker).lanes.greenlets))
    eventually(lambda: told.of(job) == ["completed"])
    assert told.of(job) == ["completed"]


def test_a_take_whose_answer_comes_after_the_locks_life_is_not_run(
    queue: Queue, proxy: Proxy, through: Make, make: Make, turned_clock: TurnedClock
) -> None:
    """3.3: the answer to a take lies in the socket while the process is suspended; the lock has
    lapsed and another worker runs the job.  Awake, this one must not begin it."""
    ran: list[str] = []
    go = gevent.event.Event()
    job = queue.add("n")
    answer = proxy.hold_answer(takes)
    late = through(lambda job: ran.append("late"), lock_duration=2.0, skip_stalled_check=True)
    late.start()
    answer.wait()
    eventually(lambda: queue.get_job_state(job.id) == "active")
    late_key = f"{queue.prefix}:q:{job.id}:lock"
    with Queue("q", queue._connection, queue.prefix) as other:
        other._store._client.execute("DEL", late_key)  # as time would
    turned_clock.advance(3.0)

    def process(job: Job) -> None:
        ran.append("other")
        go.wait()

    make(process, stalled_interval=0.05)
    eventually(lambda: ran == ["other"])
    answer.release()
    gevent.sleep(0.1)
    go.set()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == ["other"]


def test_a_take_whose_answer_comes_late_but_is_still_locked_runs(
    queue: Queue, proxy: Proxy, through: Make, turned_clock: TurnedClock
) -> None:
    """3.3, 3.6: by our clock the lock may have lapsed; the server knows that it has not."""
    ran: list[str] = []
    job = queue.add("n")
    answer = proxy.hold_answer(takes)
    late = through(lambda job: ran.append("late"), lock_duration=5.0, skip_stalled_check=True)
    late.start()
    answer.wait()
    eventually(lambda: queue.get_job_state(job.id) == "active")
    turned_clock.advance(4.8)
    answer.release()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == ["late"]


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


def test_a_worker_without_a_free_slot_leaves_the_wake_up_to_the_others(
    queue: Queue, make: Make
) -> None:
    """wire-format 11: the first waits first in line for the marker; a processor's rate limit says
    that it takes nothing for a while."""
    from geventq import RateLimitError

    ran: list[str] = []

    def limited(job: Job) -> None:
        ran.append("limited")
        raise RateLimitError(30.0)

    first = make(limited, drain_delay=60.0)
    job = queue.add("n")
    eventually(lambda: ran == ["limited"])
    eventually(lambda: queue.get_job_state(job.id) == "waiting")
    second = make(lambda job: ran.append("second"), drain_delay=60.0)
    eventually(lambda: len(queue.get_workers()) == 2)
    for _ in range(3):
        job = queue.add("n")
        eventually(lambda job=job: queue.get_job_state(job.id) == "completed")
    assert first.is_running
    assert second.is_running


def test_a_callback_that_outlives_its_job_has_ended_when_the_worker_is_closed(
    queue: Queue, make: Make
) -> None:
    """2.11, 7.4: the job obeys at once, its callback takes a moment, and the worker closes: the
    callback is neither cut nor left behind (tests/support/leaks.py)."""
    ended: list[str] = []

    def cleanup() -> None:
        gevent.sleep(0.2)
        ended.append("cleanup")

    def process(job: Job, token: CancellationToken) -> None:
        token.on_cancel(cleanup)
        linked = token.link()
        linked.on_cancel(cleanup)
        linked.sleep(60)

    worker = make(process)
    queue.add("n", attempts=1)
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)
    worker.close(0)
    assert ended == ["cleanup", "cleanup"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_that_hits_a_run_after_its_processor_leaves_no_job_behind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """7.1, 7.2: it is raised where the outcome is made (or a defect of ours is): the job would be
    active for ever, and close(0) would wait for it.  It goes back, and runs again."""
    from geventq.worker.run import life

    decide = life.decide
    ran: list[str] = []
    hit: list[int] = []

    def interrupted(*args: typing.Any) -> object:
        if not hit:
            hit.append(1)
            raise error
        return decide(*args)

    monkeypatch.setattr(life, "decide", interrupted)
    worker = make(lambda job: ran.append(job.id))
    worker.on("error", lambda error: None)
    worker.pause()
    job = queue.add("n")
    with contextlib.suppress(KeyboardInterrupt):  # from here on it may come
        worker.resume()
        eventually(lambda: queue.get_job_state(job.id) == "completed")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == [job.id, job.id]
    with gevent.Timeout(20):
        worker.close(0)


def test_ctrl_c_in_the_hub_holds_up_no_job(queue: Queue, make: Make) -> None:
    """7.2: it hits the hub between the first turns of two jobs."""
    turns: list[str] = []

    class Interrupting(collections.deque[typing.Any]):
        def popleft(self) -> typing.Any:
            if len(self) == 2 and "hit" not in turns:
                turns.append("hit")
                raise KeyboardInterrupt
            return super().popleft()

    class Fake:
        dead = False
        has_begun = False

        def switch(self) -> None:
            self.has_begun = True
            turns.append("turn")

    from geventq.worker.run.runners import _switch_into

    gevent.get_hub().loop.run_callback(_switch_into, Interrupting([Fake(), Fake()]))
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(1)
    eventually(lambda: turns == ["turn", "hit", "turn"])


@pytest.mark.parametrize("where", ["Admission.executions", "Runners.dispatch", "JobLife.settled"])
def test_ctrl_c_that_hits_the_handling_of_an_answer_loses_nothing(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """3.6, 7.2: jobs were taken, or outcomes accepted, and the lane that was told is interrupted:
    every job runs once, every outcome is told once, and close(0) waits for nobody."""
    from geventq.worker.run import admission, life, runners

    owners = {"Admission": admission, "Runners": runners, "JobLife": life}
    kind, name = where.split(".")
    owner = getattr(owners[kind], kind)
    original = getattr(owner, name)
    hit: list[int] = []

    def interrupted(*args: typing.Any, **options: typing.Any) -> object:
        if not hit:
            hit.append(1)
            raise KeyboardInterrupt
        return original(*args, **options)

    ran: list[str] = []
    worker = make(lambda job: ran.append(job.id), concurrency=8)
    told = Told(worker)
    worker.pause()
    jobs = queue.add_bulk([JobSpec("n") for _ in range(4)])
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.resume()
        gevent.sleep(20)
    eventually(lambda: queue.get_job_counts()["completed"] == 4)
    eventually(lambda: all(told.of(job) == ["completed"] for job in jobs))
    assert sorted(ran) == sorted(job.id for job in jobs)
    assert not engine_of(worker).slots.held
    with gevent.Timeout(20):
        worker.close(0)


def test_ctrl_c_that_hits_the_first_step_of_a_run_does_not_lose_it() -> None:
    """7.2, 2.16: a greenlet that waits for its next job was given one, and is interrupted as it
    wakes up."""
    from geventq.worker.run.runners import Runners, untouched

    ran: list[object] = []
    failed: list[object] = []

    class Over:
        was_thrown = False

    class Given:
        attempt = Over()

    runners = Runners(ran.append, lambda *args: failed.append(args), "q", untouched=untouched())
    runners._new().start()
    eventually(lambda: runners.idle)
    runner = runners.idle.pop()
    given = typing.cast(typing.Any, Given())
    runner.has_begun = False
    runner.execution = given
    with pytest.raises(KeyboardInterrupt):
        gevent.get_hub().loop.run_callback(runner.throw, KeyboardInterrupt())
        gevent.sleep(1)
    assert (ran, failed) == ([given], [])
    runners.stop()
    runner.join()


_INTERRUPTED: typing.Final = """
import signal, time
from geventq.store.scripts import pack

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGVTALRM, interrupt)
deadline = time.monotonic() + 60
hits = 0
while hits < 100 and time.monotonic() < deadline:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        while True:
            pack(("SET", "a", *range(100), 0.5))
    except KeyboardInterrupt:
        hits += 1
print("survived" if hits == 100 else hits)
"""


def test_ctrl_c_while_a_command_is_packed_does_not_crash_the_process() -> None:
    """7.2: hiredis packs numbers by a call that may raise, and does not look whether it did."""
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "survived\n")
