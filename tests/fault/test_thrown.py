"""Whatever is thrown at a greenlet of ours, at whatever place, the work goes on and ends."""

from __future__ import annotations

import collections
import contextlib
import typing

import gevent
import gevent.event
import pytest

from geventq import Job, Queue, QueueEvents, Worker, WorkerGroup
from geventq.errors import RedisUnavailableError
from tests.conftest import Make
from tests.support.leaks import greenlets
from tests.support.servers import Server
from tests.support.throws import Thrower
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

#: The roles that every worker, queue and `QueueEvents` has.
ROLES: typing.Final = frozenset(
    """lane idle renewer stalled listeners close close-lanes ends events add run""".split()
)

_JOBS: typing.Final = 12  # a round
_ROUNDS: typing.Final = 40  # at most


class _Work:
    """Jobs that are added, run, told of, waited for, round after round, and then the closing."""

    def __init__(self, url: str, prefix: str) -> None:
        self.queue = Queue("q", url, prefix)
        self.events = QueueEvents("q", url, prefix)
        self.worker = Worker(
            *("q", lambda job: gevent.sleep(0.002), url, prefix),
            concurrency=3,
            lock_renew_time=0.05,
            stalled_interval=0.03,
            drain_delay=0.2,
        )
        self.told: collections.Counter[str] = collections.Counter()
        self.heard: set[str] = set()
        self.ids: list[str] = []
        self.errors = 0
        self.worker.on("completed", self._completed)
        self.worker.on("error", self._erred)
        self.events.on("completed", lambda event: self.heard.add(event.job_id or ""))

    def _completed(self, job: typing.Any, result: object) -> None:
        self.told[job.id] += 1
        gevent.sleep(0.001)  # a listener that waits is hit there

    def _erred(self, error: BaseException) -> None:
        self.errors += 1

    def do(self, thrower: Thrower) -> None:
        """Until a round finds no place that was not hit before."""
        self.worker.start()
        assert self.events.ready.wait(20)
        for number in range(_ROUNDS):
            before = thrower.thrown
            self._round(number)
            if thrower.thrown == before and thrower.kinds() >= ROLES - {"close", "close-lanes"}:
                break
        self.worker.close(20)
        self.queue.close()
        self.events.close()

    def _round(self, number: int) -> None:
        ids = [f"{number}-{which}" for which in range(_JOBS)]
        self.ids += ids
        adding = [gevent.spawn(self._add, job_id) for job_id in ids]
        gevent.joinall(adding, raise_error=True)
        waiting = [gevent.spawn(self._wait, job_id) for job_id in ids[:3]]
        gevent.joinall(waiting, raise_error=True)
        eventually(lambda: all(self.told[job_id] for job_id in ids), what="all are told of")
        eventually(lambda: self.heard.issuperset(ids), what="all are heard of")

    def _add(self, job_id: str) -> None:
        while True:
            try:
                self.queue.add("n", job_id=job_id)
                return
            except (RedisUnavailableError, RuntimeError):  # its courier was hit in mid-call
                continue

    def _wait(self, job_id: str) -> None:
        job = self.queue.get_job(job_id)
        assert job is not None
        job.wait_until_finished(timeout=20)


@pytest.mark.parametrize(
    "error",
    [
        *(KeyboardInterrupt, SystemExit, gevent.GreenletExit, gevent.Timeout),
        # Taken for a failure of Redis, after which who was hit waits for a while.
        pytest.param(RuntimeError, marks=pytest.mark.slow),
    ],
)
def test_whatever_is_thrown_at_a_greenlet_of_ours_the_work_goes_on(
    redis_url: str, prefix: str, redis_client: typing.Any, error: type[BaseException]
) -> None:
    """3.6, 7.4: each greenlet of ours is hit at each place where it waits.  A Ctrl-C reaches the
    main greenlet; all jobs complete and are told of once; the closing leaves nothing."""
    work = _Work(redis_url, prefix)
    interrupts = 0
    with Thrower(error) as thrower:
        doing = gevent.spawn(work.do, thrower)
        owed = error is KeyboardInterrupt  # the last one may be on its way when all is done
        while not doing.ready() or (owed and interrupts < thrower.thrown):
            try:
                gevent.sleep(0.01)
            except KeyboardInterrupt:
                interrupts += 1
        doing.get()
    assert thrower.kinds() >= ROLES
    assert interrupts == (thrower.thrown if error is KeyboardInterrupt else 0)
    assert work.told == dict.fromkeys(work.ids, 1)
    assert redis_client.zcard(f"{prefix}:q:completed") == len(work.ids)
    assert redis_client.llen(f"{prefix}:q:active") == 0


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, gevent.GreenletExit, gevent.Timeout])
def test_a_stuck_job_is_given_up_whatever_is_thrown_at_who_does_it(
    queue: Queue, through: Make, redis_client: typing.Any, prefix: str, error: type[BaseException]
) -> None:
    """2.10: it is hit while it records the request; the job is told as stuck once, its lock is not
    renewed any more, and the request is there for the next worker."""
    go = gevent.event.Event()

    def swallows(job: Job) -> None:
        while not go.is_set():
            with contextlib.suppress(BaseException):
                go.wait()

    worker = through(swallows, lock_duration=3600.0, lock_renew_time=0.2)
    told = Told(worker)
    worker.start()
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    interrupts = 0
    with Thrower(error) as thrower:
        assert worker.cancel_job(job.id, "stop", hard=True, kill_after=0)
        owed = error is KeyboardInterrupt
        while not told.args("stuck") or (owed and interrupts < thrower.thrown):
            try:
                gevent.sleep(0.01)
            except KeyboardInterrupt:
                interrupts += 1
    assert "stuck" in thrower.kinds()
    assert told.of(job) == ["stuck"]
    assert not engine_of(worker).slots.held
    assert redis_client.hget(f"{prefix}:q:{job.id}", "gqc") is not None
    go.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, gevent.GreenletExit, gevent.Timeout])
def test_a_heartbeat_that_was_cut_is_made_at_once(
    own_server: Server, error: type[BaseException]
) -> None:
    """3.6: else groups would not know the worker until its next one, ten seconds later."""
    worker = Worker("q", lambda job: None, own_server.url)
    worker.on("error", lambda error: None)
    group = WorkerGroup("q", own_server.url)
    own_server.pause()
    try:
        worker.start()
        (member,) = eventually(
            lambda: [one for one in greenlets("geventq-member-q") if one.gr_frame is not None]
        )
        with pytest.raises(error) if error is KeyboardInterrupt else contextlib.nullcontext():
            member.kill(error)
            gevent.sleep(20 if error is KeyboardInterrupt else 0.1)
    finally:
        own_server.resume()
    eventually(group.members, timeout=6.0, what="it is a member")
    worker.close()
    assert group.members() == []
    group.close()
