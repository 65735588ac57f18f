"""No script of ours holds the server up, however long a list is: each call goes through a bounded
number of jobs, and its caller calls again.  Nothing is missed by it, and nothing done twice.

Where an unbounded call would take seconds its time is looked at; else how much it did."""

from __future__ import annotations

import collections
import collections.abc
import typing

import gevent.event
import pytest
import redis

from geventq import Job, Queue, Worker
from geventq.store.client import Client
from geventq.worker.run.settle_call import LATER, Code, SettleCall, Settled, SettleReply
from geventq.worker.stalled import StalledChecker
from tests.support.servers import Server
from tests.support.waiting import eventually

#: Jobs that one call goes through (fragments/bound.lua).
MOST: typing.Final = 1000
#: Seconds in one script.  Those of unbounded ones are 1.5 and more here.
LONG: typing.Final = 0.75

Between = collections.abc.Callable[[], object]


class Long:
    """A server of a test's own, and ways to fill its queue past the API."""

    def __init__(self, server: Server, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.raw = raw
        self.queue = Queue("q", server.url)
        self.replies: dict[str, list[typing.Any]] = collections.defaultdict(list)
        self.codes: list[list[Code]] = []  # of each call that has settled something
        self.between: Between = lambda: None  # called after each call of a script
        run_script = Client.script

        def noted(
            client: Client, script: typing.Any, *args: typing.Any, **more: typing.Any
        ) -> object:
            reply = run_script(client, script, *args, **more)
            self.replies[script.name].append(reply)
            self.between()
            return reply

        monkeypatch.setattr(Client, "script", noted)
        settle = SettleCall.settle

        def settled(
            calls: SettleCall, batch: typing.Sequence[Settled], *args: typing.Any
        ) -> SettleReply:
            reply = settle(calls, batch, *args)
            if batch:
                self.codes.append(list(reply.codes))
            return reply

        monkeypatch.setattr(SettleCall, "settle", settled)

    def hashes(self, count: int, first: int = 1, **fields: str) -> list[str]:
        """Jobs that are in no list yet; their ids."""
        ids = [str(number) for number in range(first, first + count)]
        plain = {"name": "n", "data": "{}", "opts": "{}", "timestamp": "1", "priority": "0"}
        for part in _parts(ids):
            pipe = self.raw.pipeline(transaction=False)
            for job_id in part:
                pipe.hset(f"bull:q:{job_id}", mapping={**plain, **fields})
            pipe.execute()
        return ids

    def push(self, place: str, ids: list[str]) -> None:
        """Into a list, the first one at its right end."""
        for part in _parts(ids):
            self.raw.lpush(f"bull:q:{place}", *part)

    def file(self, place: str, ids: list[str]) -> None:
        """Into a sorted set, in this order."""
        for first, part in enumerate(_parts(ids)):
            scores = {job_id: first * MOST + n + 1 for n, job_id in enumerate(part)}
            self.raw.zadd(f"bull:q:{place}", scores)

    def at(self, place: str) -> list[str]:
        """What a list holds, from its right end."""
        found: list[str] = self.raw.lrange(f"bull:q:{place}", 0, -1)
        return found[::-1]

    def lock(self, ids: list[str], holder: str = "other:") -> None:
        for part in _parts(ids):
            self.raw.mset({f"bull:q:{job_id}:lock": f"{holder}{job_id}" for job_id in part})

    def checker(self) -> StalledChecker:
        """Its intervals are over by the time that they are looked at."""
        store = self.queue._store
        return StalledChecker(
            lambda *told: None, store._client, store.keys, interval=0.001, max_stalled=1
        )

    def check(self) -> list[str]:
        """One stalled check; the ids that it has recovered."""
        eventually(lambda: not self.raw.exists("bull:q:stalled-check"))
        return list(self.checker().check())

    def calls(self, **options: typing.Any) -> SettleCall:
        store = self.queue._store
        return SettleCall(store._client, store.keys, lock_duration=30, worker_name="", **options)

    def longest(self) -> float:
        """Seconds of the longest script since the start."""
        slow = self.raw.slowlog_get(1000)
        return max((one["duration"] for one in slow), default=0) / 1e6


def _parts(ids: list[str]) -> collections.abc.Iterator[list[str]]:
    for first in range(0, len(ids), MOST):
        yield ids[first : first + MOST]


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> collections.abc.Iterator[Long]:
    options = ("--slowlog-log-slower-than", "50000", "--slowlog-max-len", "1000")
    with Server(options=options) as server, server.client() as raw:
        one = Long(server, raw, monkeypatch)
        yield one
        one.queue.close()


@pytest.mark.slow
def test_a_worker_that_died_with_very_many_jobs(long: Long) -> None:
    """3.5: they come back, what was taken first being among the first to run."""
    ids = long.hashes(40_000)
    long.push("active", ids)
    assert long.check() == []
    assert long.raw.scard("bull:q:stalled") == len(ids)
    assert sorted(long.check(), key=int) == ids
    assert sorted(long.at("wait"), key=int) == ids
    assert long.raw.llen("bull:q:active") == long.raw.scard("bull:q:stalled") == 0
    assert long.longest() < LONG
    recovered = [len(ids) for ids, _, _ in long.replies["stalled"]]
    assert max(recovered) == MOST
    first_page = long.at("wait")[-MOST:]
    assert first_page == ids[:MOST]


def test_jobs_that_live_stay_active_in_their_order(long: Long) -> None:
    """3.5: the dead are every third; a check in which none has died changes nothing at all."""
    ids = long.hashes(4 * MOST + 10)
    long.push("active", ids)
    dead, living = ids[::3], [one for n, one in enumerate(ids) if n % 3]
    long.lock(living)
    long.check()
    assert sorted(long.check(), key=int) == dead
    assert long.at("active") == living
    assert long.check() == []
    assert long.at("active") == living
    assert set(living) == long.raw.smembers("bull:q:stalled")


def test_what_happens_between_the_calls_of_a_check(long: Long) -> None:
    """3.5: after each call one of the living ends and another job is taken, by one who dies of
    it; each that was dead before is recovered once, none of the new ones is."""
    ids = long.hashes(3 * MOST)
    long.push("active", ids)
    dead = ids[1::2]
    ending = ids[::2]
    long.lock(ending)
    long.check()
    new: list[str] = []

    def work_goes_on() -> None:
        ended = ending.pop()
        assert long.raw.lrem("bull:q:active", 1, ended) == 1
        new.extend(long.hashes(1, first=100_000 + len(new)))
        long.push("active", new[-1:])

    long.between = work_goes_on
    recovered = long.check()
    long.between = lambda: None
    assert len(new) >= 5
    assert sorted(recovered, key=int) == dead
    assert sorted(long.at("wait"), key=int) == dead
    assert sorted(long.at("active"), key=int) == sorted(ending + new, key=int)


def test_a_check_under_way_holds_others_off(long: Long) -> None:
    """3.5: their suspects would be what this one has just marked."""
    long.push("active", long.hashes(3 * MOST))
    long.check()
    others: list[list[str]] = []

    def another_checks() -> None:
        long.between = lambda: None
        others.append(list(long.checker().check()))
        long.between = another_checks

    checker = StalledChecker(
        lambda *told: None,
        long.queue._store._client,
        long.queue._store.keys,
        interval=60,
        max_stalled=1,
    )
    eventually(lambda: not long.raw.exists("bull:q:stalled-check"))
    long.between = another_checks
    assert len(list(checker.check())) == 3 * MOST
    assert len(others) >= 3
    assert not any(others)


def test_a_lost_take_is_found_in_a_long_list(long: Long) -> None:
    """3.6: also while others end, whose places the rest takes."""
    ids = long.hashes(5 * MOST)
    long.push("active", ids)
    lost, ending = ids[7::500], ids[8::500]
    long.lock(ids)
    for number, job_id in enumerate(lost, 1):
        long.raw.set(f"bull:q:{job_id}:lock", f"mine:{number}")
    long.between = lambda: long.raw.lrem("bull:q:active", 1, ending.pop())
    found = long.calls().recover("mine:", [(1, len(lost))])
    assert sorted(taken[0] for taken in found) == sorted(lost)
    assert len(long.replies["recover"]) >= 5
    assert all(long.raw.pttl(f"bull:q:{job_id}:lock") > 0 for job_id in lost)


@pytest.mark.parametrize("place", ["failed", "delayed"])
def test_moving_all_jobs(long: Long, place: str) -> None:
    """All go, in their order, so many a call."""
    ids = long.hashes(5 * MOST + 3)
    long.file(place, ids)
    move = long.queue.retry_jobs if place == "failed" else long.queue.promote_jobs
    assert move() == len(ids)
    assert long.at("wait") == ids
    script = "retry_jobs" if place == "failed" else "promote_jobs"
    assert [count for count, _ in long.replies[script]] == [MOST] * 5 + [3]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["clean", "drain", "obliterate"])
def test_deleting_all_jobs(long: Long, what: str) -> None:
    """wire-format 9.15-9.17: so many a call; every second one is young, where that counts."""
    ids = long.hashes(5 * MOST + 3)
    young = long.hashes(5 * MOST, first=10**6, timestamp="9999999999999")
    mixed = [one for pair in zip(ids, young, strict=False) for one in pair] + ids[-3:]
    long.push("wait", mixed)
    if what == "clean":
        assert sorted(long.queue.clean(0, 0, "waiting"), key=int) == ids
        assert long.at("wait") == young
    else:
        getattr(long.queue, what)()
        assert not long.raw.keys("bull:q:[0-9]*")
    assert len(long.replies[what]) >= 11
    assert long.longest() < LONG


def test_jobs_that_fall_due_at_once(long: Long) -> None:
    """wire-format 8.9: so many a take, in their order."""
    ids = long.hashes(2 * MOST + 3)
    long.file("delayed", ids)
    calls = long.calls()
    left = []
    while not left or left[-1]:
        calls.settle((), 0)
        left.append(long.raw.zcard("bull:q:delayed"))
    assert left == [MOST + 3, 3, 0]
    assert long.at("wait") == ids


@pytest.mark.parametrize("keep", [{"count": 5}, {"age": 10}, {"age": 10, "limit": 10**6}])
def test_a_removal_policy_that_is_new_to_a_long_set(long: Long, keep: dict[str, int]) -> None:
    """wire-format 8.5: what is too much goes over several ends."""
    long.file("completed", long.hashes(3 * MOST, first=10**6))
    with Worker("q", lambda job: None, long.server.url, remove_on_complete=keep):
        before = long.raw.zcard("bull:q:completed")
        while before > 10:
            job = long.queue.add("n")
            eventually(job.is_completed)
            after = long.raw.zcard("bull:q:completed")
            assert before - MOST <= after < before  # one came
            before = after
    assert len(long.raw.keys("bull:q:[0-9]*")) == before


def test_policies_that_take_turns_share_one_bound(long: Long) -> None:
    """wire-format 8.5: the ends of one call have different policies each."""
    long.file("completed", long.hashes(5 * MOST, first=10**6))
    go = gevent.event.Event()
    with Worker("q", lambda job: go.wait(), long.server.url, concurrency=20) as worker:
        for n in range(20):
            keep = {"count": 5} if n % 2 else {"age": 10}
            long.queue.add("n", remove_on_complete=keep)
        eventually(lambda: len(worker.active_jobs) == 20)
        go.set()
        eventually(lambda: long.raw.llen("bull:q:active") == 0)
    assert len(long.codes) < 5, "the ends were to travel together"
    assert long.raw.zcard("bull:q:completed") >= (5 - len(long.codes)) * MOST


def test_a_job_that_ends_behind_very_many_others(long: Long) -> None:
    """It is looked for in `active`: so many ends a call, and the others come again."""
    jobs = [long.queue.add("n") for _ in range(100)]
    go = gevent.event.Event()

    def process(job: Job) -> str:
        go.wait()
        return "done"

    told: list[str] = []
    worker = Worker("q", process, long.server.url, concurrency=100, skip_stalled_check=True)
    worker.on("completed", lambda job, result: told.append(job.id))
    with worker:
        eventually(lambda: len(worker.active_jobs) == 100)
        dead = [f"dead-{n}" for n in range(60_000)]
        long.push("active", dead)
        go.set()
        eventually(lambda: len(told) == 100)
    assert sorted(told) == sorted(job.id for job in jobs)
    codes = [code for call in long.codes for code in call]
    assert codes.count(0) == 100
    assert LATER in codes
    assert long.raw.llen("bull:q:active") == len(dead)
    assert long.longest() < LONG


def test_a_queue_paused_by_version_5(long: Long) -> None:
    """wire-format 9.11."""
    ids = long.hashes(15_000)
    long.push("paused", ids)
    long.push("wait", ["first"])
    long.queue.resume()
    assert sorted(long.at("wait")) == sorted([*ids, "first"])
    assert not long.raw.exists("bull:q:paused")


def test_a_long_stream_is_cut_to_what_was_asked_for(long: Long) -> None:
    """Redis itself takes at most 10,000 entries off at once."""
    for _ in range(25):
        pipe = long.raw.pipeline(transaction=False)
        for _ in range(1000):
            pipe.xadd("bull:q:events", {"event": "x"})
        pipe.execute()
    went = long.queue.trim_events(10)
    left = long.raw.xlen("bull:q:events")
    assert went + left == 25_000
    assert 10 <= left < 1000
