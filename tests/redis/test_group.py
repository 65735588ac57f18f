"""5.7: the workers of a queue on all machines, and what is asked of them together."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import sys
import typing

import gevent
import pytest
import redis

from geventq import (
    CancellationToken,
    GeventqError,
    Job,
    JobSpec,
    MultiCallResult,
    Queue,
    RedisUnavailableError,
    Supervisor,
    Worker,
    WorkerGroup,
    WorkerInfo,
    clock,
)
from geventq.control.messages import channel_of
from tests.conftest import Make
from tests.support.calls import takes
from tests.support.proxy import Proxy
from tests.support.told import engine_of, listens
from tests.support.waiting import eventually, later_by_the_server


def endless(job: Job, token: CancellationToken) -> None:
    token.wait()
    token.raise_if_cancelled()


def idle(job: Job) -> None:
    """A processor that has nothing to do."""


@pytest.fixture
def group(redis_url: str, prefix: str) -> typing.Iterator[WorkerGroup]:
    with WorkerGroup("q", redis_url, prefix) as group:
        yield group


def joined(group: WorkerGroup, *workers: Worker) -> None:
    """Wait until each of them is a member, and no other is."""
    ids = {worker.id for worker in workers}
    eventually(lambda: {one.id for one in group.members()} == ids)


def running(queue: Queue, worker: Worker, count: int) -> list[Job]:
    jobs = [queue.add("n") for _ in range(count)]
    eventually(lambda: len(worker.active_jobs) == count)
    return jobs


# -- who is a member -----------------------------------------------------------------------------


def test_a_worker_is_a_member_from_its_start_to_the_end_of_its_close(
    queue: Queue, make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: with what it is; and it leaves no key behind."""
    assert group.members() == []
    worker = make(endless, name="anna", node="north", concurrency=3)
    joined(group, worker)
    running(queue, worker, 2)
    assert group.members() == [
        WorkerInfo(
            id=worker.id,
            name="anna",
            queue_name="q",
            node="north",
            pid=os.getpid(),
            concurrency=3,
            active_jobs=2,
        )
    ]
    worker.concurrency = 5
    eventually(lambda: group.members()[0].concurrency == 5)
    worker.close(0)
    assert group.members() == []
    assert redis_client.keys(f"{prefix}:q:gq:*") == []


def test_one_that_starts_again_is_another_member(make: Make, group: WorkerGroup) -> None:
    worker = make(idle)
    joined(group, worker)
    first = worker.id
    worker.close()
    worker.start()
    joined(group, worker)
    assert worker.id != first


@pytest.mark.slow
def test_members_of_other_queues_and_prefixes_are_not_asked(
    redis_url: str, prefix: str, make: Make, group: WorkerGroup
) -> None:
    worker = make(idle)
    with Worker("r", idle, redis_url, prefix) as other, Worker("q", idle, redis_url) as third:
        joined(WorkerGroup("r", redis_url, prefix), other)
        joined(group, worker)
        assert group.multi_call("ping").replies == {worker.id: "pong"}
        assert third.id not in [one.id for one in group.members()]


def test_a_heartbeat_is_fresh_by_the_servers_clock(
    make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: after 30 s at most it is stale, and the next heartbeat of another one removes it."""
    worker = make(idle)
    joined(group, worker)
    seconds, micros = redis_client.time()
    now = seconds * 1000 + micros // 1000
    key = f"{prefix}:q:gq:workers"
    for member, age in (("old", 30_000), ("young", 1_000)):
        redis_client.zadd(key, {member: now - age})
        redis_client.hset(f"{prefix}:q:gq:worker:{member}", mapping={"node": "x", "pid": "1"})
    assert {one.id for one in group.members()} == {worker.id, "young"}
    engine_of(worker).member.changed()
    eventually(lambda: set(redis_client.zrange(key, 0, -1)) == {worker.id, "young"})
    for member in (worker.id, ""):
        ttl = redis_client.pttl(f"{prefix}:q:gq:worker:{member}" if member else key)
        assert 0 < ttl <= 30_000


def _scripts_run(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    names = ("cmdstat_evalsha", "cmdstat_eval")
    return sum(stats[name]["calls"] for name in names if name in stats)


@pytest.mark.parametrize("apart", [0, 1])
def test_members_without_end_are_told_in_several_calls(
    queue: Queue, group: WorkerGroup, redis_client: redis.Redis, prefix: str, apart: int
) -> None:
    """4.2: no call of a script goes through more than a thousand; none is missed, also of those
    whose heartbeats came in one millisecond, and none told twice."""
    soon = clock.wall_ms() + 60_000
    ids = [f"w{number}" for number in range(2500)]
    redis_client.zadd(
        f"{prefix}:q:gq:workers", {one: soon + apart * (n // 700) for n, one in enumerate(ids)}
    )
    pipe = redis_client.pipeline(transaction=False)
    for one in ids:
        pipe.hset(f"{prefix}:q:gq:worker:{one}", mapping={"node": "n", "pid": "1"})
    pipe.execute()
    before = _scripts_run(redis_client)
    found = group.members()
    assert sorted(one.id for one in found) == sorted(ids)
    assert _scripts_run(redis_client) - before >= 3


def test_a_heartbeat_forgets_the_stale_ones_a_thousand_at_a_time(
    group: WorkerGroup, redis_client: redis.Redis, prefix: str, make: Make
) -> None:
    """4.2: as many workers as there may have been."""
    key = f"{prefix}:q:gq:workers"
    redis_client.zadd(key, {f"w{number}": 1 for number in range(1500)})
    worker = make(idle)
    joined(group, worker)
    assert redis_client.zcard(key) == 501
    engine_of(worker).member.changed()
    eventually(lambda: redis_client.zcard(key) == 1)


def test_jobs_cost_no_heartbeat(
    queue: Queue, make: Make, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.7: one call each ten seconds, however many jobs run."""
    worker = make(idle)
    joined(group, worker)
    beats: list[object] = []
    monkeypatch.setattr(engine_of(worker).member, "_beat", lambda: beats.append(1))
    jobs = [queue.add("n") for _ in range(200)]
    eventually(lambda: queue.get_job_state(jobs[-1].id) == "completed")
    assert len(beats) <= 1


# -- what is asked -------------------------------------------------------------------------------


def test_all_answer(make: Make, group: WorkerGroup) -> None:
    """5.7: right after their start as well: who does not listen yet is asked again."""
    workers = [make(idle) for _ in range(3)]
    joined(group, *workers)
    answered = group.multi_call("ping")
    assert answered == MultiCallResult({one.id: "pong" for one in workers}, [])
    assert answered.ok


def test_nobody_is_asked_where_nobody_is(group: WorkerGroup) -> None:
    assert group.multi_call("ping") == MultiCallResult({}, [])
    assert group.cancel_all_jobs() == 0


def test_pause_resume_and_stats(queue: Queue, make: Make, group: WorkerGroup) -> None:
    workers = [make(endless, name="a", node="north"), make(endless, concurrency=2)]
    joined(group, *workers)
    ids = {one.id for one in workers}
    assert group.multi_call("pause").replies == dict.fromkeys(ids, True)
    assert all(one.is_paused for one in workers)
    paused = group.multi_call("stats").replies
    assert {one["is_paused"] for one in paused.values()} == {True}
    assert group.multi_call("resume").ok
    assert not any(one.is_paused for one in workers)
    jobs = [queue.add("n") for _ in range(3)]
    eventually(lambda: sum(len(one.active_jobs) for one in workers) == len(jobs))
    stats = group.multi_call("stats").replies
    assert {one["active_jobs"] for one in stats.values()} == {1, 2}
    first = stats[workers[0].id]
    assert first.pop("uptime") > 0
    assert first == {
        "id": workers[0].id,
        "name": "a",
        "queue_name": "q",
        "node": "north",
        "pid": os.getpid(),
        "concurrency": 1,
        "active_jobs": 1,
        "stuck_jobs": 0,
        "is_paused": False,
    }


def test_how_many_requests_took_effect(queue: Queue, make: Make, group: WorkerGroup) -> None:
    """5.7: it asks as the workers' own calls: for this run, with their own mode."""
    workers = [make(endless, concurrency=2) for _ in range(2)]
    joined(group, *workers)
    jobs = [queue.add("n", attempts=2, backoff=3600) for _ in range(4)]
    eventually(lambda: all(len(one.active_jobs) == 2 for one in workers))
    assert group.cancel_job("unknown", "why") == 0
    assert group.cancel_job(jobs[0].id, {"why": [1]}) == 1
    eventually(lambda: queue.get_job_state(jobs[0].id) == "delayed")
    found = queue.get_job(jobs[0].id)
    assert found is not None
    assert "why" in str(found.failed_reason)
    assert group.cancel_all_jobs("enough") == 3
    eventually(lambda: queue.get_job_count("delayed") == 4)
    assert group.cancel_all_jobs() == 0


def test_only_the_workers_of_one_node(queue: Queue, make: Make, group: WorkerGroup) -> None:
    north, south = make(endless, node="north"), make(endless, node="south")
    joined(group, north, south)
    queue.add_bulk([_spec(), _spec()])
    eventually(lambda: north.active_jobs and south.active_jobs)
    (job,) = south.active_jobs
    assert group.cancel_job(job.id, node="north") == 0
    assert group.cancel_all_jobs(node="nowhere") == 0
    assert group.cancel_all_jobs("south only", node="south") == 1
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    assert len(north.active_jobs) == 1


def _spec() -> typing.Any:
    from geventq import JobSpec

    return JobSpec("n")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (("pnig",), ValueError, "method: one of ping, cancel_job.*'pnig'"),
        ((None,), ValueError, "method: one of"),
        (("ping", 1), TypeError, r"args: ping\(\)"),
        (("cancel_job",), TypeError, r"args: cancel_job\(job_id, reason=None\)"),
        (("cancel_job", None), TypeError, "job_id: text is needed"),
        (("cancel_job", "meta"), ValueError, "job_id: is reserved"),
        (("cancel_job", "1", "x" * 20_000), ValueError, "reason: at most 16384 bytes"),
        (("cancel_all_jobs", object()), TypeError, "reason"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_before_anybody_is(
    make: Make,
    group: WorkerGroup,
    call: tuple[typing.Any, ...],
    error: type[Exception],
    match: str,
) -> None:
    worker = make(idle)
    joined(group, worker)
    with pytest.raises(error, match=match):
        group.multi_call(*call)
    with pytest.raises(ValueError, match="timeout"):
        group.multi_call("ping", timeout=0)
    with pytest.raises(TypeError, match="node"):
        group.cancel_all_jobs(node=typing.cast(str, 1))
    with pytest.raises(ValueError, match="node"):
        group.cancel_job("1", node="")
    assert not engine_of(worker).member._nonces


def test_a_call_that_a_worker_does_not_know_is_an_error(
    make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: one of a later geventq. The others' replies are told, and who has not answered."""
    old, new = make(idle), make(idle)
    joined(group, old, new)
    redis_client.zadd(f"{prefix}:q:gq:workers", {"ghost": 10**15})
    redis_client.hset(f"{prefix}:q:gq:worker:ghost", "node", "x")
    del engine_of(old).member._methods["stats"]
    with pytest.raises(GeventqError, match=f"worker {old.id}: it knows no stats") as raised:
        group.multi_call("stats", timeout=1)
    assert str(raised.value).endswith("; worker ghost: no answer")
    assert {new.id} == {one["id"] for one in raised.value.results if one}


def _call(own_prefix: str, redis_client: redis.Redis, **members: object) -> str:
    seconds, micros = redis_client.time()
    now = seconds * 1000 + micros // 1000
    told = {"queue": "q", "prefix": own_prefix, "db": 0, "call": "pause", "args": [], "nonce": "n"}
    return json.dumps({**told, "at": now, **members})


def test_a_call_counts_once_and_not_for_ever(
    make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: one that comes again, one of another prefix or database, one of a minute ago, and one
    that is none."""
    worker = make(idle)
    joined(group, worker)
    channel = channel_of(worker.id)
    listens(worker)
    database = engine_of(worker).hearing._database
    seconds, _ = redis_client.time()

    def publish(**members: object) -> None:
        assert redis_client.publish(channel, _call(prefix, redis_client, **members)) == 1

    publish(db=database)
    eventually(lambda: worker.is_paused)
    worker.resume()
    publish(db=database)
    publish(db=database + 1, nonce="a")
    publish(db=database, nonce="b", prefix="other")
    publish(db=database, nonce="c", at=(seconds - 120) * 1000)
    publish(db=database, nonce="d:e")
    publish(db=database, nonce="f", call="pnig")
    reply = eventually(lambda: redis_client.lrange(f"{prefix}:q:gq:reply:f", 0, -1))
    assert json.loads(reply[0]) == {"worker": worker.id, "error": "it knows no pnig"}
    assert not worker.is_paused
    assert engine_of(worker).subscription.ignored.counts == {"too old": 1, "wrong types": 1}
    assert len(redis_client.lrange(f"{prefix}:q:gq:reply:n", 0, -1)) == 1
    assert 0 < redis_client.ttl(f"{prefix}:q:gq:reply:n") <= 60


@pytest.mark.slow
def test_who_does_not_answer_is_missing(
    make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: of those who are members, and after `timeout`; garbage is nobody's answer."""
    worker = make(idle)
    joined(group, worker)
    redis_client.zadd(f"{prefix}:q:gq:workers", {"ghost": 10**15})
    redis_client.hset(f"{prefix}:q:gq:worker:ghost", "node", "x")
    ghost = redis_client.pubsub()
    ghost.subscribe(channel_of("ghost"))
    answered = group.multi_call("ping", timeout=0.3)
    assert answered == MultiCallResult({worker.id: "pong"}, ["ghost"])
    assert not answered.ok
    asking = gevent.spawn(group.multi_call, "ping", timeout=1)

    def heard() -> typing.Any:
        message = ghost.get_message(ignore_subscribe_messages=True)
        return message and json.loads(message["data"])

    eventually(heard)  # of the first call
    call = eventually(heard)
    key = f"{prefix}:q:gq:reply:{call['nonce']}"
    redis_client.rpush(key, "{", "[]", "{}", '{"worker": 1}', '{"worker": "x", "result": 1}')
    assert asking.get() == MultiCallResult({worker.id: "pong"}, ["ghost"])
    ghost.close()


def test_one_that_begins_to_listen_while_it_is_asked_answers(
    make: Make, group: WorkerGroup
) -> None:
    """5.7: its link was cut: [call] - [subscribed again] - [asked again]."""
    worker = make(idle)
    joined(group, worker)
    subscription = engine_of(worker).subscription
    eventually(lambda: subscription.is_up)
    channels = subscription._channels
    subscribe, may = channels.subscribe, gevent.event.Event()

    def later() -> None:
        may.wait()
        subscribe()

    channels.subscribe = later  # type: ignore[method-assign]
    channels.renew()
    eventually(lambda: not subscription.is_up)
    asking = gevent.spawn(group.multi_call, "ping", timeout=20)
    assert group.multi_call("ping", timeout=0.3).missing == [worker.id]
    may.set()
    assert asking.get().replies == {worker.id: "pong"}


# -- what fails ----------------------------------------------------------------------------------


def test_a_caller_that_is_killed_leaves_nothing(
    make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """The check for what was left behind is the fixture's."""
    redis_client.zadd(f"{prefix}:q:gq:workers", {"ghost": 10**15})
    redis_client.hset(f"{prefix}:q:gq:worker:ghost", "node", "x")
    asking = gevent.spawn(group.multi_call, "ping", timeout=60)
    eventually(lambda: "blpop" in [one["cmd"] for one in redis_client.client_list()])
    asking.kill()
    with gevent.Timeout(0.05, False):
        group.multi_call("ping", timeout=60)
    assert group.multi_call("ping", timeout=0.1).missing == ["ghost"]


def test_an_outage_is_told(proxy: Proxy, prefix: str, make: Make) -> None:
    worker = make(idle)
    with WorkerGroup("q", proxy.url, prefix, timeout=0.5) as group:
        joined(group, worker)
        proxy.refuse()
        with pytest.raises(RedisUnavailableError):
            group.multi_call("ping")
        proxy.accept()
        assert group.multi_call("ping").ok


@pytest.mark.slow
def test_a_server_that_hangs_holds_no_caller_past_his_time(
    proxy: Proxy, prefix: str, make: Make
) -> None:
    """5.7: while the replies are waited for, who has not answered is missing; before, it is told
    as an outage that may have been heard of."""
    worker = make(idle)
    with WorkerGroup("q", proxy.url, prefix) as group:
        joined(group, worker)
        waits = proxy.hold_request(lambda sent: b"BLPOP" in sent)
        began = clock.monotonic()
        asking = gevent.spawn(group.multi_call, "ping", timeout=0.5)
        waits.wait()
        assert asking.get() == MultiCallResult({}, [worker.id])
        assert clock.monotonic() - began < 8  # of the usual 10
        waits.release()
        assert group.multi_call("ping").ok
        held = proxy.hold_request(lambda sent: b"PUBLISH" in sent)
        began = clock.monotonic()
        with pytest.raises(RedisUnavailableError) as raised:
            group.multi_call("ping", timeout=0.5)
        assert clock.monotonic() - began < 8  # of the usual 10
        assert raised.value.may_be_done
        held.release()


def test_one_who_may_not_publish_is_told_so(
    redis_url: str, redis_client: redis.Redis, prefix: str, make: Make, group: WorkerGroup
) -> None:
    """8: at once, not as workers that do not answer; who is there he may see."""
    worker = make(idle)
    joined(group, worker)
    user = f"{prefix}mute"
    redis_client.acl_setuser(
        *(user,),
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        commands=["+@all"],
        channels=[],
        reset=True,
    )
    try:
        url = redis_url.replace("://", f"://{user}:secret@", 1)
        with WorkerGroup("q", url, prefix) as mute:
            assert [one.id for one in mute.members()] == [worker.id]
            began = clock.monotonic()
            with pytest.raises(GeventqError, match="NOPERM"):
                mute.multi_call("ping")
            assert clock.monotonic() - began < 4  # of the 5 for replies
    finally:
        redis_client.acl_deluser(user)


def test_of_very_many_active_jobs_each_worker_has_told_its_own(
    queue: Queue, make: Make, group: WorkerGroup, redis_client: redis.Redis, prefix: str
) -> None:
    """5.7: past 10,000 they are not counted one by one: the number is the last heartbeat's, and
    `stats` asks."""
    worker = make(endless, concurrency=3)
    joined(group, worker)
    running(queue, worker, 3)
    for first in range(0, 10_001, 1000):
        redis_client.lpush(f"{prefix}:q:active", *[f"dead-{first + n}" for n in range(1000)])
    engine_of(worker).member.changed()
    eventually(lambda: [one.active_jobs for one in group.members()] == [3])
    assert group.multi_call("stats").replies[worker.id]["active_jobs"] == 3
    assert group.cancel_all_jobs("no") == 3


def test_who_may_not_write_the_groups_keys_works_all_the_same(
    redis_url: str,
    redis_client: redis.Redis,
    queue: Queue,
    prefix: str,
    group: WorkerGroup,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """5.7, 8: it is no member, which is told once."""
    user = f"{prefix}user"
    redis_client.acl_setuser(
        user,
        enabled=True,
        passwords=["+secret"],
        keys=[f"{prefix}:q:", f"{prefix}:q:[^g]*"],
        commands=["+@all"],
        channels=["*"],
        reset=True,
    )
    try:
        url = redis_url.replace("://", f"://{user}:secret@", 1)
        with caplog.at_level(logging.WARNING), Worker("q", idle, url, prefix) as worker:
            eventually(lambda: "heartbeat" in caplog.text)
            engine_of(worker).member.changed()
            job = queue.add("n")
            eventually(lambda: queue.get_job_state(job.id) == "completed")
            assert group.members() == []
        assert caplog.text.count("heartbeat of a worker") == 1
    finally:
        redis_client.acl_deluser(user)


def test_a_supervisor_closes_it_last(redis_url: str, prefix: str) -> None:
    worker = Worker("q", idle, redis_url, prefix)
    group = WorkerGroup("q", redis_url, prefix)
    with Supervisor([group, worker]):
        joined(group, worker)
        assert group.multi_call("ping").ok
    assert not worker.is_running


# -- processes -----------------------------------------------------------------------------------

PROGRAM = """
import sys
import gevent.monkey
gevent.monkey.patch_all()
from geventq import Worker

def process(job, token):
    token.wait()
    token.raise_if_cancelled()

Worker("q", process, sys.argv[1], sys.argv[2], node=sys.argv[3]).run()
"""


@pytest.mark.slow
@pytest.mark.unpatched
def test_a_worker_that_was_killed_is_missing_and_then_gone(
    redis_url: str,
    redis_client: redis.Redis,
    prefix: str,
    queue: Queue,
    group: WorkerGroup,
    tmp_path: pathlib.Path,
) -> None:
    """5.7: `kill -9`, on one of two nodes: within 30 s it is no member any more."""
    import subprocess
    import time

    started = {
        node: subprocess.Popen([sys.executable, "-c", PROGRAM, redis_url, prefix, node])
        for node in ("north", "south")
    }
    try:
        eventually(lambda: len(group.members()) == 2, 60)
        ids = {one.node: one.id for one in group.members()}
        assert {one.node: one.pid for one in group.members()} == {
            node: process.pid for node, process in started.items()
        }
        assert group.multi_call("ping", timeout=30).replies.keys() == set(ids.values())
        queue.add("n")
        queue.add("n")
        # By what they say themselves: Redis knows of a job before its worker does.
        eventually(
            lambda: (
                [one["active_jobs"] for one in group.multi_call("stats").replies.values()] == [1, 1]
            )
        )
        assert group.cancel_all_jobs("one", node="north") == 1
        started["south"].send_signal(signal.SIGKILL)
        started["south"].wait()
        answered = group.multi_call("ping", timeout=1)
        assert answered.replies == {ids["north"]: "pong"}
        assert answered.missing == [ids["south"]]
        killed = time.monotonic()
        eventually(lambda: [one.id for one in group.members()] == [ids["north"]], 60, every=0.1)
        assert time.monotonic() - killed < 30
        assert group.multi_call("ping").ok
        started["north"].terminate()
        assert started["north"].wait(30) == 0
        assert group.members() == []
        left = redis_client.zrange(f"{prefix}:q:gq:workers", 0, -1)
        assert ids["north"] not in left
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def _is_gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # gevent was quicker, where an earlier test has made it look
        return True


@pytest.mark.unpatched
def test_a_forked_child_is_no_member_and_its_group_goes_on(
    redis_url: str, prefix: str, make: Make, group: WorkerGroup
) -> None:
    """7.5: the parent's membership is the parent's; a group makes new connections."""
    worker = make(idle)
    joined(group, worker)
    assert group.multi_call("ping").ok
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said: typing.Any = None
        try:
            mine = Worker("q", idle, redis_url, prefix)
            asking = WorkerGroup("q", redis_url, prefix)
            with mine:
                eventually(lambda: len(asking.members()) == 2)
                said = [
                    mine.id,
                    sorted(asking.multi_call("ping", timeout=20).replies),
                    [one.pid for one in group.members() if one.id == mine.id],
                ]
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(writer, json.dumps(said).encode())
            os._exit(0)
    os.close(writer)
    try:
        gevent.os.tp_read(reader, 0)
        eventually(lambda: _is_gone(pid))
        child, replied, pids = json.loads(os.read(reader, 100_000))
    finally:
        os.close(reader)
    assert pids == [pid]
    assert replied == sorted([child, worker.id])
    joined(group, worker)
    assert group.multi_call("ping").replies == {worker.id: "pong"}


# -- signed --------------------------------------------------------------------------------------

SECRET: typing.Final = "seven horses in a row"
GUARDED: typing.Final = (("pause",), ("resume",), ("cancel_job", "1"), ("cancel_all_jobs",))


@pytest.fixture
def by(redis_url: str, prefix: str) -> typing.Iterator[typing.Callable[..., WorkerGroup]]:
    """``by(secret)``: the group, as who has that secret asks it."""
    groups: list[WorkerGroup] = []

    def by(secret: str | None) -> WorkerGroup:
        groups.append(WorkerGroup("q", redis_url, prefix, cancel_secret=secret))
        return groups[-1]

    yield by
    for group in groups:
        group.close()


By = typing.Callable[..., WorkerGroup]


@pytest.mark.parametrize("secret", [None, "eight horses in a row"])
@pytest.mark.parametrize("call", GUARDED)
def test_a_worker_with_a_secret_refuses_what_is_not_signed(
    make: Make, by: By, secret: str | None, call: tuple[str, ...]
) -> None:
    """8: a call that pauses or cancels; the caller is told so, and it is not as if nobody had
    answered."""
    guarded, other = make(idle, cancel_secret=SECRET), make(idle, name="anna")
    group = by(secret)
    joined(group, guarded, other)
    with pytest.raises(GeventqError) as raised:
        group.multi_call(*call)
    why = "unsigned" if secret is None else "signed with another secret, or changed"
    told = (
        f"worker {guarded.id}: {call[0]} was refused: it needs the workers' cancel_secret ({why})"
    )
    assert str(raised.value) == told
    assert len(raised.value.results or []) == 2
    assert not guarded.is_paused
    assert other.is_paused == (call == ("pause",))
    assert group.multi_call("ping").ok
    assert group.multi_call("stats").ok


@pytest.mark.parametrize("secret", [SECRET, f"the next one\n{SECRET}"])
def test_a_signed_call_is_carried_out(queue: Queue, make: Make, by: By, secret: str) -> None:
    """8: by workers with the secret, and by others as well."""
    both = "the next one\n" + SECRET
    workers = [make(endless, cancel_secret=both, node="north"), make(endless, node="south")]
    group = by(secret)
    joined(group, *workers)
    assert group.multi_call("pause").replies == {worker.id: True for worker in workers}
    assert all(worker.is_paused for worker in workers)
    assert group.multi_call("resume").ok
    queue.add_bulk([JobSpec("n")] * 2)
    eventually(lambda: all(worker.active_jobs for worker in workers))
    assert group.cancel_all_jobs("x", node="north") == 1
    assert group.cancel_all_jobs("x") == 1


def test_a_signed_call_is_carried_out_once_and_soon_and_where_it_was_meant(
    make: Make,
    by: By,
    redis_url: str,
    redis_client: redis.Redis,
    prefix: str,
) -> None:
    """8: a replay of it, one to a worker of another node, of another queue, and an old one."""
    worker = make(idle, cancel_secret=SECRET, node="north", lock_duration=600)
    south = make(idle, cancel_secret=SECRET, node="south", lock_duration=600)
    with Worker("r", idle, redis_url, prefix, cancel_secret=SECRET, node="north") as other:
        group = by(SECRET)
        joined(group, worker, south)
        eventually(lambda: all(engine_of(one).subscription.is_up for one in (worker, south, other)))
        heard: list[bytes] = []
        publish = group._members.publish

        def listening(messages: typing.Mapping[str, bytes], timeout: float) -> set[str]:
            heard.extend(messages.values())
            return publish(messages, timeout)

        group._members.publish = listening  # type: ignore[method-assign]
        assert group._call("pause", [], "north", 5.0).ok
        group._members.publish = publish  # type: ignore[method-assign]
        assert worker.is_paused
        worker.resume()
        for one in (worker, south, other):
            engine_of(one).member._nonces.clear()  # a thousand other calls have come since
            redis_client.publish(channel_of(one.id), heard[0])
        eventually(lambda: engine_of(worker).subscription.ignored.counts["replayed"])
        assert group.multi_call("ping").ok  # so that the others have heard it too
        assert not (worker.is_paused or south.is_paused or other.is_paused)
        with later_by_the_server(61):
            engine_of(worker).member._nonces.clear()
            redis_client.publish(channel_of(worker.id), heard[0])
            eventually(lambda: engine_of(worker).subscription.ignored.counts["too old"])
        assert not worker.is_paused


# -- what Redis has given, and the worker does not know of yet -------------------------------------


@pytest.mark.parametrize("call", ["cancel_job", "cancel_all_jobs"])
def test_a_job_whose_take_is_not_answered_is_reached(
    queue: Queue, proxy: Proxy, prefix: str, group: WorkerGroup, call: str
) -> None:
    """5.3, 5.7: who asks sees it in *active*; its run ends before it begins, and counts."""
    begun: list[str] = []
    with Worker("q", lambda job, token: begun.append(job.id), proxy.url, prefix) as worker:
        listens(worker)
        joined(group, worker)
        held = proxy.hold_answer(takes)
        job = queue.add("n")
        held.wait()
        eventually(lambda: job.get_state() == "active")
        asked = gevent.spawn(getattr(group, call), *([job.id] if call == "cancel_job" else []))
        eventually(lambda: engine_of(worker).member._later)
        later = queue.add("n")  # no take that was sent before the call brings it
        held.release()
        assert asked.get(timeout=30) == 1
        eventually(lambda: job.get_state() == "failed")
        eventually(lambda: later.get_state() == "completed")
        assert begun == [later.id]
        assert not engine_of(worker).hearing._kept


def test_a_take_that_brings_another_job_changes_nothing(
    queue: Queue, proxy: Proxy, prefix: str, group: WorkerGroup
) -> None:
    with Worker("q", lambda job, token: "done", proxy.url, prefix) as worker:
        listens(worker)
        joined(group, worker)
        held = proxy.hold_answer(takes)
        job = queue.add("n")
        held.wait()
        asked = gevent.spawn(group.cancel_job, "another")
        eventually(lambda: engine_of(worker).member._later)
        held.release()
        assert asked.get(timeout=30) == 0
        assert job.wait_until_finished(30) == "done"


def test_a_take_that_is_not_answered_for_long_keeps_no_caller(
    queue: Queue, proxy: Proxy, prefix: str, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it brings after that is not cancelled: the reply has said that nothing was."""
    monkeypatch.setattr("geventq.worker.member._TAKES", 0.05)
    with Worker("q", lambda job, token: "done", proxy.url, prefix) as worker:
        listens(worker)
        joined(group, worker)
        held = proxy.hold_answer(takes)
        job = queue.add("n")
        held.wait()
        assert group.multi_call("cancel_all_jobs", "late").replies == {worker.id: 0}
        held.release()
        assert job.wait_until_finished(30) == "done"
