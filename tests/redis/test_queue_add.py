"""Adding: all or nothing, checked before anything is written, many at a time."""

from __future__ import annotations

import time
import typing

import gevent
import gevent.threadpool
import pytest
import redis

from geventq import GeventqError, Job, JobSpec, Queue, RedisUnavailableError
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.leaks import greenlets
from tests.support.proxy import Proxy, Trap
from tests.support.waiting import eventually


def keys(raw: redis.Redis, prefix: str) -> set[str]:
    return set(raw.scan_iter(match=f"{prefix}:*"))


def test_an_added_job_is_told_with_its_id(queue: Queue) -> None:
    before = time.time()
    job = queue.add("export", {"rows": 10}, attempts=3, backoff=5.0)
    assert job.id == "1"
    assert (job.name, job.data, job.queue_name) == ("export", {"rows": 10}, "q")
    assert job.opts == {"attempts": 3, "backoff": {"type": "fixed", "delay": 5.0}}
    assert before - 0.001 <= job.timestamp <= time.time()
    read = queue.get_job("1")
    assert read is not None
    assert (read.data, read.opts, read.timestamp) == (job.data, job.opts, job.timestamp)
    assert job.get_state() == "waiting"


def test_data_left_out_is_an_object_and_none_is_null(queue: Queue) -> None:
    assert [queue.add("n").data, queue.add("n", None).data] == [{}, None]
    specs = [JobSpec("n"), JobSpec("n", None)]
    assert [job.data for job in queue.add_bulk(specs)] == [{}, None]


def test_where_a_job_goes(queue: Queue) -> None:
    jobs = queue.add_bulk(
        [
            JobSpec("n"),
            JobSpec("n", options={"priority": 2}),
            JobSpec("n", options={"delay": 60}),
            JobSpec("n", options={"delay": 60, "priority": 2}),
            JobSpec("n", options={"lifo": True}),
            JobSpec("n", options={"delay": 0, "priority": 0, "timestamp": 5}),
        ]
    )
    assert [job.get_state() for job in jobs] == [
        *("waiting", "prioritized", "delayed", "delayed", "waiting", "waiting"),
    ]
    assert [job.id for job in queue.get_waiting()] == ["5", "1", "6"]  # the next to run first
    assert jobs[5].timestamp == 5.0
    assert jobs[2].delay == 60.0


def test_first_in_first_out_also_across_the_pieces_of_a_big_bulk(queue: Queue) -> None:
    jobs = queue.add_bulk([JobSpec("n", number) for number in range(2500)])
    assert [job.id for job in jobs] == [str(number) for number in range(1, 2501)]
    assert [job.id for job in queue.get_waiting(0, 2)] == ["1", "2", "3"]
    assert [job.id for job in queue.get_waiting(2498, -1)] == ["2499", "2500"]
    assert [job.data for job in queue.get_jobs("waiting", 0, 1)] == [2499, 2498]  # newest first


def shown(job: Job) -> tuple[object, ...]:
    return job.id, job.name, job.data, job.opts, job.priority, job.delay, job.timestamp


def test_a_known_id_is_answered_by_what_is_stored(queue: Queue) -> None:
    """2.13: nothing is overwritten, and `was_added` tells."""
    first = queue.add("mail", {"n": 1}, job_id="report", priority=3)
    again = queue.add("sms", {"n": 2}, job_id="report", delay=60)
    assert first.was_added
    assert not again.was_added
    assert shown(again) == shown(first)
    assert again.get_state() == "prioritized"
    known, new, twin = queue.add_bulk(
        [
            JobSpec("n", 2, {"job_id": "report"}),
            *[JobSpec("n", n, {"job_id": "new"}) for n in (3, 4)],
        ]
    )
    assert [job.was_added for job in (known, new, twin)] == [False, True, False]
    assert (known.data, new.data, twin.data) == ({"n": 1}, 3, 3)
    assert shown(twin) == shown(new)
    assert queue.count() == 2
    read = queue.get_job("report")
    assert read is not None
    assert shown(read) == shown(first)
    assert read.was_added


def test_a_known_id_shows_how_far_its_job_is(queue: Queue, make: Make) -> None:
    """2.13: in whatever state it is; adds that travel together are told apart too."""
    make(lambda job: job.update_progress(5) or "done")
    queue.add("n", job_id="report").wait_until_finished(20)
    again = queue.add("n", job_id="report")
    assert (again.was_added, again.return_value, again.progress) == (False, "done", 5)
    assert again.wait_until_finished(20) == "done"
    adding = [gevent.spawn(queue.add, "n", number, job_id="one") for number in range(20)]
    jobs = [greenlet.get(timeout=20) for greenlet in adding]
    assert sum(job.was_added for job in jobs) == 1
    assert len({job.data for job in jobs}) == 1


def test_a_known_id_whose_key_is_no_job(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """2.13: another program's key is left alone."""
    redis_client.set(f"{prefix}:q:report", "x")
    job = queue.add("n", job_id="report")
    assert (job.was_added, job.id, job.data) == (False, "report", {})
    assert redis_client.get(f"{prefix}:q:report") == "x"


@pytest.mark.parametrize("known", [False, True])
def test_an_add_whose_answer_was_lost_knows_its_own_job_again(
    redis_url: str, prefix: str, queue: Queue, known: bool
) -> None:
    """2.13: the first sending stored the jobs, its answer is lost, and the second one finds
    them: this call has added them, but for one that was there before."""
    if known:
        queue.add("n", {"n": 0}, job_id="a")
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as other:
        other.add("n")  # the script is known
        proxy.swallow_next(load("add").sha.encode())
        jobs = other.add_bulk(
            [JobSpec("n", {"n": n}, {"job_id": job_id}) for n, job_id in ((1, "a"), (2, "b"))]
            + [
                JobSpec("n", {"n": 2}, {"job_id": "b", "timestamp": 5}),
                JobSpec("n", None, {"job_id": "c"}),
            ]
        )
    assert [job.was_added for job in jobs] == [not known, True, False, True]
    assert [job.data for job in jobs] == [{"n": 0 if known else 1}, {"n": 2}, {"n": 2}, None]


def test_nothing_to_add_is_no_call(prefix: str) -> None:
    assert Queue("q", "redis://127.0.0.1:1", prefix).add_bulk([]) == []


@pytest.mark.parametrize(
    "spoilt",
    [
        JobSpec(""),
        JobSpec("n", float("nan")),
        JobSpec("n", {1, 2}),
        JobSpec("n", None, {"dealy": 1}),
        JobSpec("n", None, {"job_id": "meta"}),
        JobSpec("n", "x" * 100, {"size_limit": 50}),
        JobSpec(5),  # type: ignore[arg-type]
        ("n", 1),
    ],
)
def test_one_bad_job_and_none_is_written(
    queue: Queue, redis_client: redis.Redis, prefix: str, spoilt: typing.Any
) -> None:
    with pytest.raises((ValueError, TypeError)):
        queue.add_bulk([JobSpec("n"), spoilt, JobSpec("n")])
    assert not keys(redis_client, prefix)


def test_more_than_a_call_can_take_is_refused(queue: Queue) -> None:
    with pytest.raises(ValueError, match=r"50000 jobs a call"):
        queue.add_bulk([JobSpec("n")] * 50_001)
    with pytest.raises(ValueError, match=r"67108864 bytes a call"):
        queue.add_bulk(JobSpec("n", "x" * 2**20) for _ in range(64))
    assert queue.count() == 0


@pytest.mark.parametrize("suffix", ["wait", "events", "meta", "id", "marker", "delayed", "pc"])
def test_a_key_of_another_type_is_told_and_nothing_is_written(
    queue: Queue, redis_client: redis.Redis, prefix: str, suffix: str
) -> None:
    """Redis does not roll a script back, so it looks before it writes (cancellation.md 3.7)."""
    key = f"{prefix}:q:{suffix}"
    if suffix in ("pc", "id"):
        redis_client.sadd(key, "x")
    else:
        redis_client.set(key, "x")
    with pytest.raises(GeventqError, match="WRONGTYPE"):
        queue.add_bulk([JobSpec("n"), JobSpec("n", None, {"priority": 1, "job_id": "a"})])
    assert keys(redis_client, prefix) == {key}


def test_defaults_go_under_the_jobs_own_options(redis_url: str, prefix: str) -> None:
    with Queue("q", redis_url, prefix, {"attempts": 3, "delay": 60}) as queue:
        assert queue.add("n", delay=0).opts == {"attempts": 3, "delay": 0}
        assert queue.add("n").get_state() == "delayed"


def test_the_stream_is_kept_at_its_length(
    redis_url: str, prefix: str, redis_client: redis.Redis
) -> None:
    with Queue("q", redis_url, prefix, max_events=100) as queue:
        queue.add_bulk([JobSpec("n")] * 3000)
        assert redis_client.xlen(f"{prefix}:q:events") <= 300  # about: whole nodes are cut
        assert redis_client.hget(f"{prefix}:q:meta", "opts.maxLenEvents") == "100"


# -- adds that meet ------------------------------------------------------------------------------


def test_adds_of_many_greenlets_travel_together(redis_url: str, prefix: str) -> None:
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        queue.add("first")  # the script is known, a connection is there
        proxy.requests.clear()
        adding = [gevent.spawn(queue.add, "n", number) for number in range(100)]
        jobs = [greenlet.get(timeout=20) for greenlet in adding]
        assert len({job.id for job in jobs}) == 100
        assert all(queue.get_job(job.id).data == job.data for job in jobs)  # type: ignore[union-attr]
        sent = [request for request in proxy.requests if b"EVALSHA" in request]
        assert len(sent) < 20


def test_a_lone_add_is_sent_by_its_own_greenlet(queue: Queue) -> None:
    queue.add("n")
    assert not queue._gathering()._couriers


def test_a_caller_that_is_killed_takes_only_its_own_job_with_it(
    redis_url: str, prefix: str
) -> None:
    """The first add is held at the server; three gather behind it, one of them is killed before
    they are sent."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        queue.add("first")
        held = proxy.hold_request(b"EVALSHA")
        first = gevent.spawn(queue.add, "held")
        held.wait()
        couriers = proxy.hold_request(b"EVALSHA")
        early = gevent.spawn(queue.add, "early")
        couriers.wait()  # a courier is on its way with it; a second one may still start
        second = proxy.hold_request(b"EVALSHA")
        also = gevent.spawn(queue.add, "also")
        second.wait()
        names = ["a", "killed", "b"]
        waiting = [gevent.spawn(queue.add, name) for name in names]
        eventually(lambda: queue._gathering()._outstanding == 6)
        waiting[1].kill()
        for trap in (held, couriers, second):
            trap.release()
        for greenlet in (first, early, also, waiting[0], waiting[2]):
            assert isinstance(greenlet.get(timeout=20), Job)
        stored = sorted(job.name for job in queue.get_waiting())
        assert stored == ["a", "also", "b", "early", "first", "held"]


def meeting(proxy: Proxy, queue: Queue) -> tuple[Trap, gevent.Greenlet[..., Job]]:
    """An add that is held at the server: those that come now gather behind it."""
    queue.add("first")
    held = proxy.hold_request(b"EVALSHA")
    greenlet = gevent.spawn(queue.add, "held")
    held.wait()
    return held, greenlet


def test_jobs_with_ids_do_not_suffer_from_those_without(redis_url: str, prefix: str) -> None:
    """3.6: an add is sent again if its job has an id, also when the add has met others."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        held, first = meeting(proxy, queue)
        lost = proxy.swallow_next(lambda request: b"mine" in request)
        adding = [
            *(gevent.spawn(queue.add, "n", job_id=f"mine{number}") for number in range(3)),
            *(gevent.spawn(queue.add, "n") for _ in range(3)),
        ]
        for greenlet in adding:
            assert isinstance(greenlet.get(timeout=20), Job)
        assert lost.was_reached
        held.release()
        first.get(timeout=20)
        assert queue.count() == 8


def test_a_big_job_travels_alone(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server refuses by its size, by closing the connection, fails nobody else."""
    monkeypatch.setattr("geventq.store.add_batches._BIG", 1000)
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        held, first = meeting(proxy, queue)
        lost = proxy.lose_next(lambda request: b"xxxx" in request)
        big = gevent.spawn(queue.add, "big", "x" * 2000)
        small = [gevent.spawn(queue.add, "small") for _ in range(5)]
        for greenlet in small:
            assert isinstance(greenlet.get(timeout=20), Job)
        with pytest.raises(RedisUnavailableError):
            big.get(timeout=20)
        assert lost.was_reached
        held.release()
        first.get(timeout=20)


def test_a_courier_that_is_killed_leaves_nobody_waiting(redis_url: str, prefix: str) -> None:
    """`gevent.killall` of everything there is, for example."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        held, first = meeting(proxy, queue)
        sent = proxy.hold_request(b"EVALSHA")
        waiting = gevent.spawn(queue.add, "n")
        sent.wait()
        (courier,) = greenlets("geventq-add-q")
        courier.kill()
        with pytest.raises(RedisUnavailableError, match="may have been stored"):
            waiting.get(timeout=20)
        held.release()
        sent.release()
        first.get(timeout=20)


def test_an_error_reaches_every_caller_as_its_own(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    queue.add("n")
    redis_client.delete(f"{prefix}:q:wait")
    redis_client.set(f"{prefix}:q:wait", "not a list")
    adding = [gevent.spawn(queue.add, "n") for _ in range(10)]
    gevent.joinall(adding)
    errors = [greenlet.exception for greenlet in adding]
    assert all(isinstance(error, GeventqError) for error in errors)
    assert len({id(error) for error in errors}) == 10


# -- lost answers (cancellation.md 3.6) ----------------------------------------------------------


def test_an_add_whose_answer_is_lost_is_not_sent_again(redis_url: str, prefix: str) -> None:
    """3.6: a second copy could be stored, so the caller is told that one may have been."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        queue.add("first")
        lost = proxy.swallow_next(b"EVALSHA")
        with pytest.raises(RedisUnavailableError, match="may have been stored") as caught:
            queue.add("n")
        assert lost.was_reached
        assert caught.value.may_be_done
        assert queue.count() == 2  # it was


def test_an_add_with_ids_is_sent_again(redis_url: str, prefix: str) -> None:
    """3.6: its own id tells that it is there already."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        queue.add("first")
        lost = proxy.swallow_next(b"EVALSHA")
        job = queue.add("n", {"a": 1}, job_id="mine")
        assert lost.was_reached
        assert job.id == "mine"
        assert queue.count() == 2


def test_a_redis_that_cannot_be_reached_is_told_by_address_only(prefix: str) -> None:
    with Queue("q", "redis://user:secret@127.0.0.1:1/0", prefix) as queue:
        with pytest.raises(RedisUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            queue.add("n")
        assert "secret" not in str(caught.value)
        assert "may have been stored" not in str(caught.value)


def test_adds_from_native_threads_that_have_hubs_of_their_own(queue: Queue) -> None:
    pool = gevent.threadpool.ThreadPool(4)
    try:
        results = [pool.spawn(lambda: [queue.add("n").id for _ in range(20)]) for _ in range(4)]
        ids = [job_id for result in results for job_id in result.get(timeout=20)]
    finally:
        pool.kill()
    assert len(set(ids)) == 80
