"""What each script promises by itself, looked at from outside: types before the first write, each
outcome alone, orders that are kept, locks that are never shortened."""

from __future__ import annotations

import json
import typing

import gevent.event
import pytest
import redis

from geventq import GeventqError, Job, JobSpec, Queue, UnrecoverableError, Worker, clock
from geventq.store.client import Client
from geventq.store.keys import QueueKeys
from geventq.store.scripts import load
from geventq.worker.run.execution import Execution
from geventq.worker.run.outcome import Outcome
from geventq.worker.run.settle_call import UNREADABLE, SettleCall
from tests.conftest import Make
from tests.support.told import Told
from tests.support.vectors import dump
from tests.support.waiting import eventually


class Direct:
    """Scripts, called past the API."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._client = client
        self.keys = keys

    def __call__(self, script: str, *args: str | int, job: str | None = None) -> typing.Any:
        keys = self.keys if job is None else self.keys.of_job(job)
        return self._client.script(load(script), keys, args)

    def take(self, room: int, base: str = "mine:", lock_ms: int = 30_000) -> list[typing.Any]:
        """The whole answer of a take."""
        reply: list[typing.Any] = self(
            "settle", self.keys.base, 1_750_000_000_000, room, base, 1, lock_ms, "", ""
        )
        return reply

    def settle(self, *outcomes: tuple[str, str, str, str, str]) -> list[typing.Any]:
        """The codes of outcomes (kind, id, lock token, value, more)."""
        args: list[str | int] = [self.keys.base, 1_750_000_000_000, -1, "", "", 30_000, "", ""]
        for kind, job_id, token, value, more in outcomes:
            args += [1, kind, 1_750_000_000_000, value, 1, more, job_id, token]
        codes: list[typing.Any] = self("settle", *args)[0] or [0] * len(outcomes)
        return codes


@pytest.fixture
def direct(queue: Queue) -> Direct:
    return Direct(queue._store._client, queue._store.keys)


# -- types before the first write (3.7) -----------------------------------------------------------

CHANGES: typing.Final = {
    "promote": lambda queue, job: job.promote(),
    "change_delay": lambda queue, job: job.change_delay(5),
    "change_priority": lambda queue, job: job.change_priority(5),
    "update_progress": lambda queue, job: job.update_progress(5),
    "log": lambda queue, job: job.log("row"),
    "clear_logs": lambda queue, job: job.clear_logs(),
    "retry_job": lambda queue, job: job.retry(),
    "retry_jobs": lambda queue, job: queue.retry_jobs(),
    "promote_jobs": lambda queue, job: queue.promote_jobs(),
    "remove_job": lambda queue, job: job.remove(),
    "pause": lambda queue, job: queue.pause(),
    "resume": lambda queue, job: queue.resume(),
    "drain": lambda queue, job: queue.drain(),
    "clean": lambda queue, job: queue.clean(0),
    "obliterate": lambda queue, job: queue.obliterate(),
    "add": lambda queue, job: queue.add_bulk([JobSpec("n"), JobSpec("n", options={"delay": 9})]),
}
CHANGED: typing.Final = [
    (script, key)
    for script in CHANGES
    for key in load(script).key_names
    if key not in ("job", "lock", "schedulers")
]


@pytest.mark.parametrize(("script", "key"), CHANGED)
def test_a_foreign_key_is_named_and_nothing_is_written(
    queue: Queue, redis_client: redis.Redis, prefix: str, script: str, key: str
) -> None:
    """3.7: whichever of its keys it is.  The job is where the script looks for it."""
    state = {"retry_job": "failed", "retry_jobs": "failed", "change_priority": "wait"}
    job = queue.add("n", delay=60)
    if place := state.get(script):
        redis_client.delete(f"{prefix}:q:delayed")
        if place == "wait":
            redis_client.lpush(f"{prefix}:q:wait", job.id)
        else:
            redis_client.zadd(f"{prefix}:q:{place}", {job.id: 1})
    keys = queue._store.keys.of_job(job.id)
    name = getattr(keys, key)
    redis_client.delete(name)
    if key in ("id", "pc", "stalled_check"):  # texts themselves
        redis_client.lpush(name, "foreign")
    else:
        redis_client.set(name, "foreign")
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match="WRONGTYPE") as caught:
        CHANGES[script](queue, job)
    assert name in str(caught.value)
    assert dump(redis_client, f"{prefix}:*") == before


@pytest.mark.parametrize("key", [one for one in load("settle").key_names if one != "pc"])
def test_a_foreign_key_stops_the_workers_call_before_it_writes(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str, key: str
) -> None:
    """3.7: popped or released, a job would be in no list any more."""
    queue.add_bulk([JobSpec("n"), JobSpec("n", options={"priority": 1})])
    redis_client.delete(getattr(direct.keys, key))
    redis_client.set(getattr(direct.keys, key), "foreign")
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match="WRONGTYPE"):
        direct.take(5)
    assert dump(redis_client, f"{prefix}:*") == before


@pytest.mark.parametrize("key", load("stalled").key_names)
def test_a_foreign_key_stops_the_stalled_check_before_it_writes(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str, key: str
) -> None:
    """3.7, 3.5."""
    job = queue.add("n")
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:active")
    redis_client.sadd(f"{prefix}:q:stalled", job.id)
    redis_client.delete(getattr(direct.keys, key))
    redis_client.xadd(getattr(direct.keys, key), {"foreign": "1"})
    if key == "events":
        redis_client.delete(getattr(direct.keys, key))
        redis_client.set(getattr(direct.keys, key), "foreign")
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match="WRONGTYPE"):
        direct("stalled", direct.keys.base, 1, 1000, 1, "begin", 0)
    assert dump(redis_client, f"{prefix}:*") == before


# -- a stream of events that takes no more (3.7) ---------------------------------------------------

LAST_ID: typing.Final = f"{2**64 - 1}-{2**64 - 1}"
TELLING: typing.Final = {
    **{script: call for script, call in CHANGES.items() if "events" in load(script).key_names},
    "cancel": lambda queue, job: queue.cancel_job(job.id),
    "cancel of some": lambda queue, job: queue.cancel_jobs([job.id, "nobody"]),
}


@pytest.mark.parametrize("last", [LAST_ID, f"{2**64 - 1}-{2**64 - 3}"])
@pytest.mark.parametrize("script", TELLING)
def test_nothing_is_written_where_events_cannot_be_told(
    queue: Queue, redis_client: redis.Redis, prefix: str, script: str, last: str
) -> None:
    """3.7: also where there is room for the first one or two.  It is said what helps."""
    job = queue.add("n", delay=60)
    if script in ("retry_job", "retry_jobs"):
        redis_client.rename(f"{prefix}:q:delayed", f"{prefix}:q:failed")
        redis_client.zadd(f"{prefix}:q:failed", {job.id: 1})
    redis_client.xadd(f"{prefix}:q:events", {"event": "foreign"}, id=last)
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match=f"{prefix}:q:events has no ids left.*delete it"):
        TELLING[script](queue, job)
    assert dump(redis_client, f"{prefix}:*") == before
    redis_client.delete(f"{prefix}:q:events")
    TELLING[script](queue, job)


def test_the_stalled_check_writes_nothing_where_events_cannot_be_told(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7, 3.5."""
    job = queue.add("n")
    redis_client.rename(f"{prefix}:q:wait", f"{prefix}:q:active")
    redis_client.sadd(f"{prefix}:q:stalled", job.id)
    redis_client.xadd(f"{prefix}:q:events", {"event": "foreign"}, id=LAST_ID)
    before = dump(redis_client, f"{prefix}:*")
    with pytest.raises(GeventqError, match="no ids left"):
        direct("stalled", direct.keys.base, 1, 1000, 1, "begin", 0)
    assert dump(redis_client, f"{prefix}:*") == before


def test_jobs_end_as_they_did_once_their_events_can_be_told(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7, 3.6: nothing is popped, released or written before."""
    go = gevent.event.Event()
    worker = make(lambda job: go.wait(), concurrency=2)
    told = Told(worker)
    first, second, third = (queue.add("n") for _ in range(3))
    worker.start()
    eventually(lambda: len(worker.active_jobs) == 2)
    redis_client.xadd(f"{prefix}:q:events", {"event": "foreign"}, id=LAST_ID)

    def stands() -> list[object]:
        places = [redis_client.lrange(f"{prefix}:q:{one}", 0, -1) for one in ("wait", "active")]
        hashes = [redis_client.hgetall(f"{prefix}:q:{job.id}") for job in (first, second, third)]
        return [places, hashes, sorted(redis_client.keys(f"{prefix}:q:*:lock"))]

    before = stands()
    go.set()
    assert "no ids left" in str(told.wait("error")[0])
    assert stands() == before
    redis_client.delete(f"{prefix}:q:events")
    for job in (first, second, third):
        eventually(lambda job=job: told.of(job) == ["completed"])
        assert queue.get_job_state(job.id) == "completed"


def test_renewal_does_not_depend_on_the_suspects(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    """3.1: a foreign key in their place takes nobody's lock."""
    redis_client.set(f"{prefix}:q:stalled", "foreign")
    redis_client.set(f"{prefix}:q:1:lock", "mine", px=1000)
    assert direct("renew", direct.keys.base, 60_000, "1", "mine", "2", "mine") == [
        [60_000, 0],
        [],
        [],
    ]
    assert redis_client.pttl(f"{prefix}:q:1:lock") > 30_000
    assert direct("extend_lock", "mine", 90_000, "1", job="1") == 1
    assert redis_client.pttl(f"{prefix}:q:1:lock") > 60_000


def test_removing_what_is_no_job_takes_the_id_out_and_leaves_the_key(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7: whoever keeps something there keeps it."""
    job = queue.add("n")
    redis_client.delete(f"{prefix}:q:{job.id}")
    redis_client.set(f"{prefix}:q:{job.id}", "somebody's")
    assert queue.remove(job.id)
    assert redis_client.get(f"{prefix}:q:{job.id}") == "somebody's"
    assert queue.get_job_counts()["waiting"] == 0


# -- each outcome alone (3.7) ---------------------------------------------------------------------

FAILURE: typing.Final = json.dumps({"stack": "[]"})


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("f", '{"stack": "\\ud83d"}'),  # half a character, as JSON has it
        ("f", "no JSON"),
        ("f", "[" * 5000),
        ("f", "{}"),
        ("f", "5"),
        ("r", '{"stack": []}'),
        ("d", '{"stack": "[]"}'),
        ("d", '{"stack": "[]", "delay": "soon"}'),
        ("d", ""),
    ],
)
def test_an_outcome_that_cannot_be_read_harms_no_other(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str, kind: str, more: str
) -> None:
    """3.7: it has its own code, nothing is written for it, and its job is still locked."""
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    direct.take(3)
    before = redis_client.hgetall(f"{prefix}:q:{jobs[1].id}")
    codes = direct.settle(
        ("c", jobs[0].id, "mine:1", "1", ""),
        (kind, jobs[1].id, "mine:2", "boom", more),
        ("f", jobs[2].id, "mine:3", "boom", FAILURE),
    )
    assert codes == [0, UNREADABLE, 0]
    assert [job.get_state() for job in jobs] == ["completed", "active", "failed"]
    assert redis_client.hgetall(f"{prefix}:q:{jobs[1].id}") == before
    assert redis_client.get(f"{prefix}:q:{jobs[1].id}:lock") == "mine:2"


def test_an_outcome_that_fails_half_way_is_told_and_its_job_is_not_lost(
    queue: Queue, direct: Direct
) -> None:
    """3.7: a policy of this kind is refused long before; whatever else may fail fails as it does,
    alone."""
    jobs = queue.add_bulk([JobSpec("n")] * 2)
    direct.take(2)
    odd = json.dumps({"stack": "[]", "keep": [{}, {}, {}]})
    codes = direct.settle(
        ("f", jobs[0].id, "mine:1", "boom", odd), ("c", jobs[1].id, "mine:2", "1", "")
    )
    assert b"could not be carried out" in codes[0]
    assert codes[1] == 0
    assert [job.get_state() for job in jobs] == ["active", "completed"]


def test_outcomes_that_share_what_they_are_are_judged_each_for_itself(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    jobs = queue.add_bulk([JobSpec("n")] * 5)
    direct.take(5)
    one, another, third, fourth, fifth = (job.id for job in jobs)
    redis_client.set(f"{prefix}:q:{another}:lock", "another's")
    now = 1_750_000_000_000
    codes = direct(
        *("settle", direct.keys.base, now, -1, "", "", 30_000, "", ""),
        *(3, "c", now, "null", 1, "", one, "mine:1", another, "mine:2", third, "mine:3"),
        *(2, "f", now, "boom", 1, FAILURE, fourth, "mine:4", fifth, "mine:4"),
    )[0]
    assert codes == [0, -6, 0, 0, -6]
    states = ["completed", "active", "completed", "failed", "active"]
    assert [job.get_state() for job in jobs] == states
    assert queue._store.read(third).finished_on == now / 1000  # type: ignore[union-attr]


def test_a_worker_tells_once_what_its_outcomes_share(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call costs both sides less, the less there is in it."""
    script_of, seen = Client.script, list[typing.Any]()

    def script(
        self: Client, which: typing.Any, keys: typing.Any, args: typing.Any, **more: typing.Any
    ) -> typing.Any:
        if which is load("settle"):
            seen.append(args[8:])
        return script_of(self, which, keys, args, **more)

    monkeypatch.setattr(Client, "script", script)
    monkeypatch.setattr(clock, "wall_ms", lambda: 1_750_000_000_000)
    jobs = queue.add_bulk([JobSpec("n", {"fails": n == 15}) for n in range(30)])

    def process(job: Job) -> None:
        if job.data["fails"]:
            raise UnrecoverableError("boom")

    worker = make(process, concurrency=60)
    told = Told(worker)
    eventually(lambda: len(told.args("completed")) == 29 and told.args("failed"))
    assert max(int(args[0]) for args in seen if args) > 1
    states = [job.get_state() for job in jobs]
    assert states == ["failed" if n == 15 else "completed" for n in range(30)]


@pytest.mark.parametrize("text", ["a\0b", "\0", "", "\0\0 \0", "plain"])
def test_a_worker_sees_a_hash_as_it_is_stored(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str, text: str
) -> None:
    """With zero bytes, which separate its fields in the answer, and with empty fields."""
    jobs = queue.add_bulk([JobSpec("n")] * 3)
    redis_client.hset(f"{prefix}:q:{jobs[1].id}", mapping={"failedReason": text, "pb": ""})
    make(lambda job: [job.failed_reason, job.processed_by, job.data], concurrency=3)
    assert [job.wait_until_finished(20) for job in jobs] == [
        [None, None, {}],
        [text, "", {}],
        [None, None, {}],
    ]


@pytest.mark.parametrize("key", ["dependencies", "unsuccessful"])
def test_foreign_keys_in_the_place_of_children_are_none(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str, key: str
) -> None:
    """3.7."""
    jobs = queue.add_bulk([JobSpec("n")] * 2)
    direct.take(2)
    redis_client.set(f"{prefix}:q:{jobs[0].id}:{key}", "foreign")
    codes = direct.settle(*[("c", one.id, f"mine:{n}", "1", "") for n, one in enumerate(jobs, 1)])
    assert codes == [0, 0]


def test_a_trace_that_another_program_has_cut_holds_up_nobody(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7: Node has cut a trace through a character; the job fails here too, and is retried."""
    worker = Worker(
        "q", lambda job: 1 / 0 if job.name == "cut" else "done", queue._connection, prefix
    )
    told = Told(worker)
    cut = queue.add("cut", attempts=2)
    redis_client.hset(f"{prefix}:q:{cut.id}", "stacktrace", '["Error: \\ud83d"]')
    others = queue.add_bulk([JobSpec("n")] * 50)
    with worker:
        eventually(lambda: queue.get_job_counts()["completed"] == len(others))
        eventually(lambda: told.of(cut)[-1:] == ["failed"])


def test_an_outcome_that_the_script_refuses_to_read_becomes_a_plain_failure(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7: whatever made it so."""
    written = SettleCall._more

    def broken(calls: SettleCall, run: Execution, outcome: Outcome, *rest: typing.Any) -> str:
        if str(outcome.error) == "odd":
            return '{"stack": "\\ud83d"}'
        return written(calls, run, outcome, *rest)

    monkeypatch.setattr(SettleCall, "_more", broken)

    def process(job: Job) -> None:
        raise ValueError("odd")

    worker = make(process)
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: told.of(job) == ["failed"])
    stored = queue.get_job(job.id)
    assert stored is not None
    assert "cannot read" in (stored.failed_reason or "")
    assert not worker.active_jobs


# -- takes ----------------------------------------------------------------------------------------


def test_a_take_that_fails_puts_back_what_it_popped(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    """3.7: the stream can take no more entries.  All stand where they stood."""
    ids = [queue.add("n").id for _ in range(3)]
    urgent = [queue.add("n", priority=1).id for _ in range(3)]
    redis_client.delete(f"{prefix}:q:events")
    last = 2**64 - 1
    redis_client.xadd(f"{prefix}:q:events", {"event": "x"}, id=f"{last}-{last}")
    places = ("wait", "prioritized", "active")
    before = [dump(redis_client, f"{prefix}:q:{place}") for place in places]
    with pytest.raises(GeventqError):
        direct.take(5)
    assert [dump(redis_client, f"{prefix}:q:{place}") for place in places] == before
    redis_client.delete(f"{prefix}:q:events")
    taken = [job_id.decode() for job_id in direct.take(9)[5::3]]
    assert taken == [*ids, *urgent]


@pytest.mark.parametrize("life", [0, -5])
def test_a_lock_without_a_life_is_refused_before_anything_is_popped(
    queue: Queue, direct: Direct, life: int
) -> None:
    """3.7."""
    queue.add("n")
    with pytest.raises(GeventqError, match="lock duration"):
        direct.take(1, lock_ms=life)
    assert queue.get_job_counts()["waiting"] == 1


@pytest.mark.parametrize(
    "job_id", [b"caf\xe9", b"\xed\xa0\xbd", b"\xc0\xaf", b"a\xf0\x9f\x98", b"\xff", b"\xe2\x82"]
)
def test_an_id_that_is_not_utf_8_fails_once(
    queue: Queue, make: Make, redis_url: str, prefix: str, job_id: bytes
) -> None:
    """It is told, and stays to be looked at in `failed`; it used to come back for ever."""
    with redis.Redis.from_url(redis_url) as raw:
        raw.hset(
            f"{prefix}:q:".encode() + job_id, mapping={"name": "n", "data": "{}", "opts": "{}"}
        )
        raw.lpush(f"{prefix}:q:wait", job_id)
        worker = make(lambda job: "done")
        told = Told(worker)
        eventually(lambda: told.args("error"))
        good = queue.add("n", job_id="café😀")
        eventually(lambda: told.of(good) == ["completed"])
        assert "not UTF-8" in str(told.args("error")[0][0])
        assert len(told.args("error")) == 1
        assert raw.zscore(f"{prefix}:q:failed", job_id) is not None
        assert queue.get_job_counts()["active"] == queue.get_job_counts()["waiting"] == 0


# -- orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", ["none", "behind", "begun anew"])
@pytest.mark.parametrize("priority", [0, 7])
@pytest.mark.parametrize("count", [2, 12])
def test_jobs_that_are_given_back_keep_their_order(
    queue: Queue,
    make: Make,
    redis_client: redis.Redis,
    prefix: str,
    priority: int,
    others: str,
    count: int,
) -> None:
    """7.1: in front of those that wait, also where these came after `prioritized` was empty once,
    so that their counters are the lower ones; later ones come behind them all."""
    options = {"priority": priority} if priority else {}
    spec = JobSpec("n", options=options)
    ids = [job.id for job in queue.add_bulk([spec] * count)]
    if others == "behind":
        ids += [job.id for job in queue.add_bulk([spec] * 3)]
    worker = make(lambda job, token: token.sleep(60), concurrency=count)
    eventually(lambda: len(worker.active_jobs) == count)
    if others == "begun anew":
        redis_client.delete(f"{prefix}:q:pc")  # as a take does that finds nothing
        ids += [job.id for job in queue.add_bulk([spec] * 3)]
    worker.close(0)
    ids += [job.id for job in queue.add_bulk([spec] * 2)]
    state = "prioritized" if priority else "waiting"
    assert [job.id for job in queue.get_jobs([state], ascending=True)] == ids


def test_jobs_of_several_priorities_go_back_together(queue: Queue, make: Make) -> None:
    """7.1."""
    priorities = [2, 1, 0, 2, 0, 1, 2, 0, 1]
    jobs = queue.add_bulk([JobSpec("n", options={"priority": one}) for one in priorities])
    worker = make(lambda job, token: token.sleep(60), concurrency=len(jobs))
    eventually(lambda: len(worker.active_jobs) == len(jobs))
    worker.close(0)

    def by_priority(wanted: int) -> list[str]:
        return [job.id for job, one in zip(jobs, priorities, strict=True) if one == wanted]

    assert [job.id for job in queue.get_jobs(["waiting"], ascending=True)] == by_priority(0)
    urgent = [job.id for job in queue.get_jobs(["prioritized"], ascending=True)]
    assert urgent == by_priority(1) + by_priority(2)


def test_jobs_due_in_the_same_millisecond_keep_their_order(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    """wire-format 2.2: beyond 4,096 too, where BullMQ's scores are all the same."""
    due = 1_900_000_000_000
    ids = [f"job-{19_999 - number}" for number in range(10_000)]  # ties stand the other way round
    for first in range(0, 10_000, 1000):
        args: list[str | int] = [direct.keys.base, 1_750_000_000_000, ""]
        for number in range(first, first + 1000):
            rare = f";{due - 1_750_000_000_000};0;"
            args += [ids[number], "n", "{}", "{}", rare]
        direct("add", *args)
    assert redis_client.zrange(f"{prefix}:q:delayed", 0, -1) == ids
    scores = [
        score for _, score in redis_client.zrange(f"{prefix}:q:delayed", 0, -1, withscores=True)
    ]
    assert scores[:4096] == [due * 4096 + n for n in range(4096)]
    assert scores[-1] < (due + 3) * 4096


# -- again, and locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["one", "all"])
def test_a_retry_by_hand_forgets_the_stalls(
    queue: Queue, redis_client: redis.Redis, prefix: str, again: str
) -> None:
    """4.4, 3.5: they were its earlier runs'; attempts stay (wire-format 9.18)."""
    job = queue.add("n")
    redis_client.delete(f"{prefix}:q:wait")
    redis_client.zadd(f"{prefix}:q:failed", {job.id: 1})
    redis_client.hset(f"{prefix}:q:{job.id}", mapping={"stc": 2, "atm": 3, "ats": 4})
    if again == "one":
        stored = queue.get_job(job.id)
        assert stored is not None
        stored.retry()
    else:
        assert queue.retry_jobs() == 1
    assert redis_client.hmget(f"{prefix}:q:{job.id}", "stc", "atm", "ats") == [None, "3", "4"]


def test_renewal_never_shortens_a_lock(
    queue: Queue, direct: Direct, redis_client: redis.Redis, prefix: str
) -> None:
    """3.1: `extend_lock` came between; the answer is what the server goes by."""
    redis_client.set(f"{prefix}:q:1:lock", "mine", px=90_000)
    redis_client.set(f"{prefix}:q:2:lock", "mine", px=5_000)
    redis_client.set(f"{prefix}:q:3:lock", "another's", px=5_000)
    pairs = [part for number in "1234" for part in (number, "mine")]
    lives, *_ = direct("renew", direct.keys.base, 30_000, *pairs)
    assert 60_000 < lives[0] <= 90_000
    assert lives[1:] == [30_000, 0, 0]
    assert redis_client.pttl(f"{prefix}:q:1:lock") > 60_000
    assert redis_client.pttl(f"{prefix}:q:2:lock") > 10_000
    assert redis_client.pttl(f"{prefix}:q:3:lock") <= 5_000


@pytest.mark.parametrize(
    ("kind", "then", "plain", "lapsed"),
    [
        ("c", "gone", 1, -2),
        ("c", "ours", 1, 1),
        ("c", "another's", -2, -2),
        ("f", "ours", 1, 1),
        ("r", "retried", 1, -2),
        ("d", "retried", 1, -2),
        ("b", "waits", 1, -2),
    ],
)
@pytest.mark.parametrize("has_lapsed", [False, True])
def test_an_outcome_that_is_sent_again(
    direct: Direct,
    redis_client: redis.Redis,
    prefix: str,
    kind: str,
    then: str,
    plain: int,
    lapsed: int,
    has_lapsed: bool,
) -> None:
    """3.6: was it carried out the first time?  Once the lock can have lapsed, another may have
    ended the job: then only an end at our own moment is certain."""
    fields: dict[str, dict[str, str | int]] = {
        "ours": {"atm": 1, "finishedOn": 1_750_000_000_000},
        "another's": {"atm": 1, "finishedOn": 1_750_000_000_009},
        "retried": {"atm": 1},
        "waits": {"name": "n"},
    }
    if then in fields:
        redis_client.hset(f"{prefix}:q:1", mapping=fields[then])  # type: ignore[arg-type]
    more = {"atm0": 0, "stc0": 0, "lapsed": has_lapsed, "keep": [0, -1, 1000]}
    more |= {"stack": "[]"} if kind in "frd" else {}
    more |= {"delay": 5} if kind == "d" else {}
    (code,) = direct.settle((kind, "1", "mine:1", "x", json.dumps(more)))
    assert code == (lapsed if has_lapsed else plain)


def test_every_script_is_accepted_by_the_server(direct: Direct) -> None:
    """A word of Lua's own as a name, say, is seen by the server alone."""
    import importlib.resources

    for file in (importlib.resources.files("geventq.store") / "lua").iterdir():
        if file.name.endswith(".lua"):
            script = load(file.name.removesuffix(".lua"))
            sha = direct._client.execute("SCRIPT", "LOAD", script.source)
            assert sha.decode() == script.sha
