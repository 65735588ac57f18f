"""3.1-3.3: the lock of a running job is kept, and its loss is noticed in time."""

from __future__ import annotations

import typing

import gevent
import gevent.event
import pytest
from gevent import monkey

from geventq import (
    Cancellation,
    CancellationToken,
    Job,
    JobKilled,
    JobSpec,
    LockLost,
    Queue,
    Worker,
    clock,
)
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.proxy import Proxy
from tests.support.told import Told, engine_of
from tests.support.waiting import TurnedClock, at_best, eventually

native_sleep: typing.Final = monkey.get_original("time", "sleep")
RENEW: typing.Final = load("renew").sha.encode()


def until_killed(noted: typing.Callable[[], object]) -> typing.Callable[[Job], None]:
    """A processor that blocks, and notes something when it is killed."""

    def process(job: Job) -> None:
        try:
            gevent.event.Event().wait()
        except JobKilled:
            noted()
            raise

    return process


def test_all_due_locks_are_renewed_in_one_call_stamped_with_the_time_it_was_sent(
    queue: Queue, proxy: Proxy, prefix: str
) -> None:
    """3.1: while the answer is held back nothing counts as renewed."""
    trap = proxy.hold_answer(RENEW)
    process = lambda job, token: token.sleep(60)  # noqa: E731
    with Worker("q", process, proxy.url, prefix, concurrency=5, lock_duration=2.0) as worker:
        jobs = queue.add_bulk([JobSpec("n") for _ in range(5)])
        eventually(lambda: len(worker.active_jobs) == 5)
        held = engine_of(worker).slots.held
        taken = {token: one.renewed_at for token, one in held.items()}
        request = trap.wait()
        arrived = clock.monotonic()
        assert all(f"\r\n{job.id}\r\n".encode() in request for job in jobs)
        gevent.sleep(0.02)
        assert {token: one.renewed_at for token, one in held.items()} == taken
        trap.release()
        eventually(lambda: {one.renewed_at for one in held.values()} != set(taken.values()))
        (stamp,) = {one.renewed_at for one in held.values()}
        assert max(taken.values()) < stamp <= arrived
        worker.close(0)


@pytest.mark.slow
def test_a_job_outlives_its_locks_first_life(queue: Queue, make: Make, locks: Locks) -> None:
    """3.1: another worker that looks for stalled jobs all the time finds none."""
    go = gevent.event.Event()
    ran: list[str] = []

    def process(job: Job) -> None:
        ran.append(job.id)
        go.wait()

    life: dict[str, float] = {"lock_duration": 2.0, "lock_renew_time": 0.2}
    make(process, **life)
    told = Told(make(process, **life, stalled_interval=0.05))
    job = queue.add("n")
    eventually(lambda: ran)
    gevent.sleep(2.5)
    assert locks.left(job.id) > 0
    go.set()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert (ran, told.args("stalled")) == ([job.id], [])


@pytest.mark.parametrize("lose", [Locks.lose, Locks.give_away])
def test_a_lost_lock_kills_at_once_in_hard_mode_and_spares_the_others(
    queue: Queue, make: Make, locks: Locks, lose: typing.Callable[[Locks, str], None]
) -> None:
    """3.2: the server says gone or foreign: no grace, reason `LockLost`, nobody else is touched."""
    go = gevent.event.Event()
    ended: list[tuple[str, Cancellation | None]] = []

    def process(job: Job, token: CancellationToken) -> str:
        try:
            go.wait()
        finally:
            ended.append((job.id, token.check()))
        return "done"

    worker = make(
        process,
        concurrency=2,
        cancel_mode="hard",
        kill_after=60.0,
        lock_duration=4.0,
        lock_renew_time=0.1,
        skip_stalled_check=True,
    )
    told = Told(worker)
    one, other = queue.add_bulk([JobSpec("n"), JobSpec("n")])
    eventually(lambda: len(worker.active_jobs) == 2)
    lose(locks, one.id)
    told.wait("lock_lost")
    eventually(lambda: len(worker.active_jobs) == 1)
    ((job_id, said),) = ended
    assert said is not None
    assert (job_id, said.kind, said.reason) == (one.id, "lock_lost", LockLost(one.id))
    go.set()
    eventually(lambda: queue.get_job_state(other.id) == "completed")
    assert told.of(one) == ["lock_lost"]
    assert queue.get_job_state(one.id) == "active"


@pytest.mark.parametrize("arity", [1, 2])
def test_a_lost_lock_asks_only_in_soft_mode(
    queue: Queue, make: Make, locks: Locks, arity: int
) -> None:
    """3.2: the processor goes on to its own end, nothing is thrown; 3.4: nobody is told that."""
    go = gevent.event.Event()
    ended: list[Cancellation | None] = []

    def deaf(job: Job) -> str:
        go.wait()
        ended.append(None)
        return "done"

    def hears(job: Job, token: CancellationToken) -> str:
        token.wait()
        go.wait()
        ended.append(token.check())
        return "done"

    process = deaf if arity == 1 else hears
    worker = make(process, lock_duration=0.4, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    locks.give_away(job.id)
    told.wait("lock_lost")
    gevent.sleep(0.02)  # turns enough for a throw that should not come
    assert ended == []
    go.set()
    eventually(lambda: not worker.active_jobs)
    assert [said and said.kind for said in ended] == [None if arity == 1 else "lock_lost"]
    assert told.of(job) == ["lock_lost"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_without_an_answer_the_lock_is_lost_before_it_can_have_expired(
    queue: Queue, proxy: Proxy, prefix: str, locks: Locks, how: str
) -> None:
    """3.3: sent at + lock_duration - 10 %, on the worker's own clock: as the job is killed, its
    lock is still there on the server."""

    def left_as_it_is_killed() -> float:
        left: list[float] = []
        job_ids: list[str] = []
        worker = Worker(
            "q",
            until_killed(lambda: left.append(locks.left(job_ids[0]))),
            proxy.url,
            prefix,
            cancel_mode="hard",
            lock_duration=1.6,
            lock_renew_time=1.28,  # a renewal that waits its second would come back too late
            skip_stalled_check=True,
        )
        told = Told(worker)
        with worker:
            job = queue.add("n")
            job_ids.append(job.id)
            eventually(lambda: worker.active_jobs)
            with proxy.stalled() if how == "silent" else proxy.refusing():
                told.wait("lock_lost")
                eventually(lambda: left)
            worker.close(0)
        assert told.of(job) == ["lock_lost"]
        return left[0]

    # 0.16, and what a busy server took from the sending of the take to the setting of the lock.
    at_best(left_as_it_is_killed, lambda left: 0 < left <= 0.16 + 0.6)


def test_a_hub_that_was_blocked_for_a_locks_life_has_lost_it(
    queue: Queue, make: Make, locks: Locks
) -> None:
    """3.3, 6: the renewer finds itself late: it does not ask whether the lock is still there (it
    may be another's by then), and kills."""
    seen: list[Cancellation] = []

    def blocks(job: Job) -> None:
        native_sleep(1.2)  # code that computes without yielding
        try:
            gevent.sleep(60)
        except JobKilled as error:
            seen.append(error.cancellation)
            raise

    told = Told(make(blocks, cancel_mode="hard", lock_duration=1.0, skip_stalled_check=True))
    job = queue.add("n")
    told.wait("lock_lost")
    eventually(lambda: seen)
    assert (seen[0].kind, locks.left(job.id)) == ("lock_lost", 0)
    assert told.of(job) == ["lock_lost"]


def test_a_machine_that_was_suspended_has_lost_its_locks(
    queue: Queue, make: Make, turned_clock: TurnedClock
) -> None:
    """3.3: an hour passes at once, on the clock that counts a suspended machine's time."""
    worker = make(lambda job, token: token.wait(), lock_duration=1.0, skip_stalled_check=True)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    turned_clock.advance(3600)
    told.wait("lock_lost")
    eventually(lambda: not worker.active_jobs)
    assert told.of(job) == ["lock_lost"]


def test_without_renewal_only_extend_lock_keeps_a_lock(
    queue: Queue, make: Make, locks: Locks
) -> None:
    """3.3: `skip_lock_renewal`: the rule applies all the same, from the last extension on."""
    left: list[float] = []

    def process(job: Job, token: CancellationToken) -> None:
        if job.name == "extends":
            job.extend_lock(30.0)
        token.wait()
        left.append(locks.left(job.id))

    worker = make(
        process,
        concurrency=2,
        lock_duration=1.0,
        skip_lock_renewal=True,
        skip_stalled_check=True,
    )
    told = Told(worker)
    extends = queue.add("extends")
    eventually(lambda: locks.left(extends.id) > 1)

    def left_as_it_lapses() -> float:
        left.clear()
        lapses = queue.add("lapses")
        eventually(lambda: left)
        eventually(lambda: [job.id for job in worker.active_jobs] == [extends.id])
        eventually(lambda: told.of(lapses) == ["lock_lost"])
        return left[0]

    at_best(left_as_it_lapses, lambda left: left > 0)
    assert worker.cancel_job(extends.id)
    told.wait("completed")


def test_a_lock_extended_to_less_is_lost_in_time_too(
    queue: Queue, make: Make, locks: Locks
) -> None:
    """3.3: `extend_lock(0.5)` of a lock of 30 s, renewed by nobody: lost before 0.5 s are over,
    and not at once."""
    lost_after: list[tuple[float, float]] = []

    def process(job: Job, token: CancellationToken) -> None:
        began = clock.monotonic()
        job.extend_lock(0.5)
        token.wait()
        lost_after.append((clock.monotonic() - began, locks.left(job.id)))

    told = Told(make(process, skip_lock_renewal=True, skip_stalled_check=True))

    def lost() -> tuple[float, float]:
        job = queue.add("n")
        eventually(lambda: lost_after)
        eventually(lambda: told.of(job) == ["lock_lost"])
        return lost_after.pop()

    seconds, _ = at_best(lost, lambda measured: measured[1] > 0)
    assert seconds >= 0.4


EXTEND: typing.Final = load("extend_lock").sha.encode()
LOCK: typing.Final = 4.0


class Believed:
    """A running job whose worker is asked how long it takes the lock for its own."""

    def __init__(self, queue: Queue, worker: Worker, locks: Locks) -> None:
        self._engine = engine_of(worker)
        self._locks = locks
        queue.add("n")
        self.job = eventually(lambda: worker.active_jobs)[0]
        (self.execution,) = self._engine.slots.held.values()

    def seconds(self) -> float:
        return self.execution.renewed_at + 0.9 * LOCK - clock.monotonic()

    def holds(self) -> bool:
        """Whether the server has the lock at least as long; looked at once and for ever."""
        believed = self.seconds()
        return 0 < believed <= self._locks.left(self.job.id)


@pytest.mark.parametrize("seconds", [60.0, 1.5])
@pytest.mark.parametrize("first", ["extend", "renew"])
def test_the_call_that_was_carried_out_last_holds_not_the_answer_that_came_last(
    queue: Queue, proxy: Proxy, through: Make, locks: Locks, first: str, seconds: float
) -> None:
    """3.1: `extend_lock` and a renewal cross.  The server carries out one, then the other; the
    answers arrive the other way round."""
    worker = through(lambda job, token: token.wait(), lock_duration=LOCK, lock_renew_time=0.3)
    worker.start()
    believed = Believed(queue, worker, locks)
    held_back = proxy.hold_answer(EXTEND if first == "extend" else RENEW)
    if first == "extend":
        extending = gevent.spawn(believed.job.extend_lock, seconds)
        held_back.wait()
        proxy.hold_answer(RENEW).release()
        stamp = believed.execution.stamped_at
        eventually(lambda: believed.execution.stamped_at != stamp, what="a renewal was answered")
    else:
        held_back.wait()
        extending = gevent.spawn(believed.job.extend_lock, seconds)
        extending.get(timeout=20)
    assert believed.holds()
    held_back.release()
    extending.get(timeout=20)
    gevent.sleep(0.05)
    assert believed.holds()
    if seconds < LOCK:
        stamp = believed.execution.stamped_at
        eventually(lambda: believed.execution.stamped_at > stamp + 0.1, what="it is renewed again")
        assert believed.holds()
    assert (locks.left(believed.job.id) > 50) == (seconds == 60.0)


@pytest.mark.parametrize("seconds", [60.0, 1.5])
def test_an_extension_whose_answer_nobody_waited_for_may_have_been_carried_out(
    queue: Queue, proxy: Proxy, through: Make, locks: Locks, seconds: float
) -> None:
    """3.1: whoever extends gives up after the server has carried it out."""
    worker = through(
        *(lambda job, token: token.wait(),), lock_duration=LOCK, skip_lock_renewal=True
    )
    worker.start()
    believed = Believed(queue, worker, locks)
    held_back = proxy.hold_answer(EXTEND)
    with gevent.Timeout(0.3, False):
        believed.job.extend_lock(seconds)
    assert held_back.was_reached
    assert believed.holds()
    held_back.release()


def test_looking_for_lost_takes_shortens_no_lock(queue: Queue, make: Make, locks: Locks) -> None:
    """3.6: a job that is looked for runs here, and has extended its lock."""
    worker = make(lambda job, token: token.wait())
    queue.add("n")
    job = eventually(lambda: worker.active_jobs)[0]
    job.extend_lock(300)
    lanes = engine_of(worker).lanes
    lanes._lost_takes.add(clock.monotonic(), 1, lanes._next_lock)
    lanes.may_be_more()
    eventually(lambda: not lanes._lost_takes)
    other = queue.add("n")
    worker.concurrency = 2
    eventually(lambda: other.id in [job.id for job in worker.active_jobs])
    assert locks.left(job.id) > 200
