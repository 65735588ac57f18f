"""`wait_until_finished`: the result or the reason, however soon or late one begins to wait."""

from __future__ import annotations

import time
import typing

import gevent
import gevent.threadpool
import pytest
import redis

from geventq import GeventqError, Job, Queue, UnrecoverableError, Worker
from tests.conftest import Make
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually


def fail(job: Job) -> None:
    raise UnrecoverableError("no such user")


def waiting(job: Job) -> gevent.Greenlet[..., typing.Any]:
    """A greenlet that waits for the job, and has begun to."""
    greenlet = gevent.spawn(job.wait_until_finished, 20)
    eventually(lambda: job._store._ends and next(iter(job._store._ends.values()))._waiting)
    return greenlet


def writing(client: redis.Redis, key: str, *entries: dict[str, typing.Any]) -> None:
    """All of them at once, as one script would."""
    pipeline = client.pipeline(transaction=True)
    for entry in entries:
        pipeline.xadd(key, entry)
    pipeline.execute()


def test_the_result_of_a_job_that_ends_later(queue: Queue, make: Make) -> None:
    greenlet = waiting(queue.add("n", {"a": 1}))
    make(lambda job: {"got": job.data})
    assert greenlet.get(timeout=20) == {"got": {"a": 1}}


def test_the_result_of_a_job_that_ended_before(queue: Queue, make: Make) -> None:
    job = queue.add("n")
    make(lambda job: [1, "é", None])
    eventually(job.is_completed)
    assert job.wait_until_finished(20) == [1, "é", None]


def test_a_final_failure_is_raised_with_its_reason(queue: Queue, make: Make) -> None:
    job = queue.add("n", attempts=3)
    make(fail)
    for _ in range(2):  # while it comes, and when it has been there for long
        with pytest.raises(GeventqError, match="no such user"):
            job.wait_until_finished(20)


def test_a_failed_attempt_is_not_the_end(queue: Queue, make: Make) -> None:
    def flaky(job: Job) -> str:
        if not job.attempts_made:
            raise ValueError("once")
        return "second time"

    greenlet = waiting(queue.add("n", attempts=2))
    make(flaky)
    assert greenlet.get(timeout=20) == "second time"


@pytest.mark.parametrize("early", [True, False])
def test_a_job_that_is_not_kept(queue: Queue, make: Make, early: bool) -> None:
    """Its hash is gone: the event is all that is left."""
    job = queue.add("n", remove_on_complete=True)
    greenlet = waiting(job) if early else None
    make(lambda job: "gone")
    eventually(lambda: queue.get_job(job.id) is None)
    assert (greenlet.get(timeout=20) if greenlet else job.wait_until_finished(20)) == "gone"


def test_an_earlier_job_with_the_same_id_does_not_answer(queue: Queue, make: Make) -> None:
    """The first run of `report` ended and was removed; the second was removed unrun."""
    worker = make(lambda job: "first")
    first = queue.add("n", job_id="report", remove_on_complete=True)
    assert first.wait_until_finished(20) == "first"
    worker.close()
    second = queue.add("n", job_id="report")
    assert second.remove()
    with pytest.raises(GeventqError, match="report does not exist"):
        second.wait_until_finished(20)


def test_an_end_that_is_read_late_is_not_the_next_jobs(
    queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """`report` ended and is added again; then the reader, which others keep busy, comes to the
    end of the first one."""
    worker = make(lambda job: "first")
    queue.add("n", job_id="report", remove_on_complete=True).wait_until_finished(20)
    worker.close()
    second = waiting(queue.add("n", job_id="report"))
    ends = next(iter(queue._store._ends.values()))
    eventually(lambda: ends._reader is not None)
    late = [
        (entry_id.encode(), [item.encode() for pair in fields.items() for item in pair])
        for entry_id, fields in redis_client.xrange(f"{prefix}:q:events")
        if fields["event"] == "completed"
    ]
    assert len(late) == 1
    ends.heard(late)
    make(lambda job: "second")
    assert second.get(timeout=20) == "second"


def test_an_end_between_the_look_and_its_answer_is_heard(
    prefix: str, redis_url: str, queue: Queue
) -> None:
    """Others keep the reader busy.  The job is looked at, ends, the reader hears of it, and only
    then comes the answer of the look: not yet."""
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as watched:
        others = waiting(watched.add("n"))
        ends = next(iter(watched._store._ends.values()))
        eventually(lambda: ends._reader is not None)
        job = watched.add("n", remove_on_complete=True, lifo=True)
        answer = proxy.hold_answer(b"EVALSHA")
        waiter = gevent.spawn(job.wait_until_finished, 20)
        answer.wait()
        heard = proxy.hold_request(b"XREAD")
        with Worker("q", lambda job: "ended", redis_url, prefix) as worker:
            eventually(lambda: queue.get_job(job.id) is None)
            heard.wait()  # the reader has handled what came
            worker.close()
        heard.release()
        answer.release()
        assert waiter.get(timeout=20) == "ended"
        others.kill()


def test_closing_the_queue_lets_those_who_wait_go(redis_url: str, prefix: str) -> None:
    queue = Queue("q", redis_url, prefix)
    greenlet = waiting(queue.add("n"))
    queue.close()
    with pytest.raises(GeventqError, match="closed"):
        greenlet.get(timeout=20)


def test_a_job_that_is_removed_meanwhile(queue: Queue) -> None:
    job = queue.add("n")
    greenlet = waiting(job)
    assert job.remove()
    with pytest.raises(GeventqError, match="does not exist"):
        greenlet.get(timeout=20)


def test_the_time_out_is_a_gevent_timeout(queue: Queue) -> None:
    with pytest.raises(gevent.Timeout):
        queue.add("n").wait_until_finished(0.01)


def test_no_time_is_one_look_that_sees_what_is_there(
    queue: Queue, make: Make, redis_client: redis.Redis
) -> None:
    """Also when the server's answer takes a moment, which a timer of 0 s would not wait for."""
    make(lambda job: job.data)
    job = queue.add("n", "result")
    assert job.wait_until_finished(10) == "result"
    open_job = queue.add("n", delay=60)
    for pause in (False, True):
        if pause:
            redis_client.execute_command("CLIENT", "PAUSE", 100, "ALL")
        assert job.wait_until_finished(0) == "result"
        with pytest.raises(gevent.Timeout):
            open_job.wait_until_finished(0)


def test_many_who_wait_share_one_connection(
    queue: Queue, make: Make, redis_client: redis.Redis
) -> None:
    jobs = [queue.add("n", number) for number in range(30)]
    greenlets = [gevent.spawn(job.wait_until_finished, 20) for job in jobs]
    store = queue._store
    eventually(lambda: store._ends and len(next(iter(store._ends.values()))._waiting) == 30)

    def readers() -> int:
        clients = typing.cast(list[dict[str, str]], redis_client.client_list())
        return sum(client["cmd"] == "xread" for client in clients)

    eventually(lambda: readers() == 1)
    make(lambda job: job.data, concurrency=10)
    assert [greenlet.get(timeout=20) for greenlet in greenlets] == list(range(30))
    eventually(lambda: readers() == 0)


# -- what the stream does not tell -----------------------------------------------------------------


class Busy:
    """Other jobs' events, which never stop coming."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._event = {"event": "progress", "jobId": "other", "data": "1"}
        self._client, self._key = client, key
        self._greenlet = gevent.spawn(self._write)

    def _write(self) -> None:
        while True:
            self._client.xadd(self._key, self._event, maxlen=100, approximate=False)
            gevent.sleep(0.01)

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *_: object) -> None:
        self._greenlet.kill()


def end_unheard(client: redis.Redis, prefix: str, job: Job) -> None:
    """Complete the job as another process would, but for the event."""
    base = f"{prefix}:q:"
    pipeline = client.pipeline(transaction=True)
    pipeline.lrem(f"{base}wait", 1, job.id)
    pipeline.hset(f"{base}{job.id}", mapping={"returnvalue": '"done"', "finishedOn": 5, "atm": 1})
    pipeline.zadd(f"{base}completed", {job.id: 5})
    pipeline.execute()


@pytest.mark.parametrize("kept", [True, False])
def test_an_end_that_was_trimmed_before_it_was_read(
    redis_url: str, redis_client: redis.Redis, prefix: str, kept: bool
) -> None:
    """2.3: the reader is held up, the job ends, its event is trimmed, and then others keep the
    stream busy: the next read sees that the stream has a gap."""
    key = f"{prefix}:q:events"
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix) as queue:
        job = queue.add("n")
        greenlet = waiting(job)
        look = proxy.hold_request(b"XINFO")
        redis_client.xadd(key, {"event": "x"})  # ends the wait
        look.wait()
        if kept:
            end_unheard(redis_client, prefix, job)
        else:
            redis_client.delete(f"{prefix}:q:{job.id}")
            redis_client.lrem(f"{prefix}:q:wait", 1, job.id)
        redis_client.xtrim(key, maxlen=0, approximate=False)
        with Busy(redis_client, key):
            look.release()
            if kept:
                assert greenlet.get(timeout=20) == "done"
            else:
                with pytest.raises(GeventqError, match="does not exist"):
                    greenlet.get(timeout=20)


def test_an_end_that_no_event_tells_of(
    queue: Queue, redis_client: redis.Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.3: the jobs are looked at every few seconds, also while the stream is busy and whole."""
    monkeypatch.setattr("geventq.store.job_ends._LOOK_EVERY", 0.2)
    job = queue.add("n")
    greenlet = waiting(job)
    with Busy(redis_client, f"{prefix}:q:events"):
        end_unheard(redis_client, prefix, job)
        assert greenlet.get(timeout=20) == "done"


def test_the_first_end_is_the_answer(queue: Queue, redis_client: redis.Redis, prefix: str) -> None:
    """2.4: the job completes, is removed, is added anew and fails, all before the one who waits
    gets a turn."""
    job = queue.add("n", job_id="report")
    greenlet = waiting(job)
    writing(
        redis_client,
        f"{prefix}:q:events",
        {"event": "completed", "jobId": "report", "returnvalue": '"first"', "prev": "active"},
        {"event": "removed", "jobId": "report", "prev": "completed"},
        {"event": "added", "jobId": "report", "name": "n"},
        {"event": "failed", "jobId": "report", "failedReason": "second", "prev": "active"},
    )
    assert greenlet.get(timeout=20) == "first"


def test_the_end_of_the_next_job_with_its_id_is_not_its_own(
    queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """2.11: the job goes without a word (a drain, another program), and its id is used again."""
    greenlet = waiting(queue.add("n", job_id="report"))
    writing(
        redis_client,
        f"{prefix}:q:events",
        {"event": "added", "jobId": "report", "name": "n"},
        {"event": "completed", "jobId": "report", "returnvalue": '"second"', "prev": "active"},
    )
    with pytest.raises(GeventqError, match="report does not exist"):
        greenlet.get(timeout=20)


def test_each_life_of_an_id_has_its_own_end(queue: Queue, make: Make) -> None:
    """2.11: three jobs, one after the other; each is asked for when all are over."""
    make(lambda job: job.data)
    lives = []
    for number, kept in enumerate([False, True, False]):
        job = queue.add("n", number, job_id="report", remove_on_complete=not kept)
        assert job.wait_until_finished(20) == number
        lives.append(job)
        if kept:
            assert job.remove()
    assert [job.wait_until_finished(20) for job in lives] == [0, 1, 2]
    last = queue.add("n", 3, job_id="report", delay=60)
    assert [job.wait_until_finished(0) for job in lives] == [0, 1, 2]
    with pytest.raises(gevent.Timeout):
        last.wait_until_finished(0)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_ids_that_begin_anew_after_a_flush(
    own_server: Server, prefix: str, kept: bool, read: bool
) -> None:
    """2.11: job 1 is lost with all data; the new job 1 is another one.  Somebody waits since
    before, somebody begins to wait later."""
    with Queue("q", own_server.url, prefix) as queue, own_server.client() as raw:
        old = queue.add("n", "old")
        greenlet = waiting(queue.get_job("1") or old if read else old)
        raw.flushall()
        eventually(lambda: time.time() > old.timestamp + 0.002)
        new = queue.add("n", "new", remove_on_complete=not kept)
        assert new.id == old.id
        with Worker("q", lambda job: job.data, own_server.url, prefix):
            assert new.wait_until_finished(20) == "new"
        for wait in (lambda: greenlet.get(timeout=20), lambda: old.wait_until_finished(20)):
            with pytest.raises(GeventqError, match="1 does not exist"):
                wait()


# -- outages ---------------------------------------------------------------------------------------


def test_an_outage_does_not_end_a_wait(prefix: str, own_server: Server) -> None:
    """api: it ends by its own argument alone, also where Redis cannot be reached from the start."""
    with Proxy(own_server.url) as proxy, Queue("q", proxy.url, prefix) as queue:
        job = queue.add("n")
        proxy.refuse()
        greenlets = [gevent.spawn(job.wait_until_finished, limit) for limit in (20, None)]
        with pytest.raises(gevent.Timeout):
            job.wait_until_finished(0.5)
        with pytest.raises(gevent.Timeout):
            job.wait_until_finished(0)
        with Worker("q", lambda job: "done", own_server.url, prefix):
            with Queue("q", own_server.url, prefix) as direct:
                eventually(lambda: direct.get_job_state(job.id) == "completed")
            assert not any(greenlet.ready() for greenlet in greenlets)
            proxy.accept()
            assert [greenlet.get(timeout=20) for greenlet in greenlets] == ["done", "done"]


@pytest.mark.slow
def test_a_wait_ends_in_its_time_while_redis_hangs(prefix: str, own_server: Server) -> None:
    """1.3: in whatever call the wait, or its reader, is: it is cut."""
    with Queue("q", own_server.url, prefix) as queue:
        job = queue.add("n")
        before = waiting(queue.add("n"))
        ends = next(iter(queue._store._ends.values()))
        eventually(lambda: ends._reader is not None)
        own_server.pause()
        try:
            began = time.perf_counter()
            for limit in (0, 0.2):
                with pytest.raises(gevent.Timeout):
                    job.wait_until_finished(limit)
            before.kill()
            assert time.perf_counter() - began < 9  # one call of Redis has ten seconds
        finally:
            own_server.resume()


def test_closing_the_queue_during_an_outage_lets_those_who_wait_go(
    prefix: str, own_server: Server
) -> None:
    """2.5: also those whose job could not even be looked at."""
    with Proxy(own_server.url) as proxy:
        queue = Queue("q", proxy.url, prefix)
        job = queue.add("n")
        proxy.refuse()
        greenlet = gevent.spawn(job.wait_until_finished)
        eventually(lambda: any(ends._reader for ends in queue._store._ends.values()))
        queue.close()
        with pytest.raises(GeventqError, match="closed"):
            greenlet.get(timeout=20)


# -- jobs that somebody keeps ----------------------------------------------------------------------


def test_a_job_of_a_closed_queue_or_worker_can_be_used(
    redis_url: str, prefix: str, queue: Queue
) -> None:
    """2.5: as one that was read anew; nothing of it stays open."""
    kept: list[Job] = []
    with Queue("q", redis_url, prefix) as other:
        kept.append(other.add("n"))
    with Worker("q", lambda job: "done", redis_url, prefix) as worker:
        worker.on("completed", lambda job, result: kept.append(job))
        eventually(lambda: len(kept) == 2)
    by_hand = Worker("q", lambda job: None, redis_url, prefix)
    queue.add("n")
    taken = by_hand.get_next_job("token", block=False)
    assert taken is not None
    by_hand.close()
    for job in kept:
        assert job.get_state() == "completed"
        assert job.wait_until_finished(20) == "done"
        assert job.wait_until_finished(0) == "done"
    assert kept[1].remove()
    assert taken.get_state() == "active"
    with pytest.raises(gevent.Timeout):
        taken.wait_until_finished(0.05)


def test_closing_a_queue_lets_those_go_who_wait_in_other_threads(
    redis_url: str, prefix: str
) -> None:
    """2.5: each in the hub of his own thread."""
    with Queue("q", redis_url, prefix) as queue:
        job = queue.add("n")
        pool = gevent.threadpool.ThreadPool(2)
        waits = [pool.spawn(job.wait_until_finished, 20) for _ in range(2)]
        eventually(lambda: sum(bool(ends._waiting) for ends in queue._store._ends.values()) == 2)
        queue.close()
        for wait in waits:
            with pytest.raises(GeventqError, match="closed"):
                wait.get(timeout=20)
        pool.kill()


def test_closing_a_worker_lets_those_go_who_wait_on_its_jobs(
    redis_url: str, prefix: str, queue: Queue
) -> None:
    """2.5: the job goes back and may end much later; they would not hear of it."""
    worker = Worker("q", lambda job, token: token.sleep(60), redis_url, prefix)
    with worker:
        queue.add("n")
        eventually(lambda: worker.active_jobs)
        greenlet = waiting(worker.active_jobs[0])
        worker.close(0)
        with pytest.raises(GeventqError, match="closed"):
            greenlet.get(timeout=20)


def test_an_end_during_an_outage_is_seen(prefix: str, own_server: Server) -> None:
    """The reader is cut off, the job ends and its events are trimmed, then the reader is back."""
    with Proxy(own_server.url) as proxy, Queue("q", proxy.url, prefix) as queue:
        job = queue.add("n")
        greenlet = waiting(job)
        proxy.refuse()
        with (
            Worker("q", lambda job: "done", own_server.url, prefix),
            Queue("q", own_server.url, prefix) as direct,
        ):
            eventually(lambda: direct.get_job_state(job.id) == "completed")
        with own_server.client() as raw:
            raw.xtrim(f"{prefix}:q:events", maxlen=0, approximate=False)
        proxy.accept()
        assert greenlet.get(timeout=20) == "done"
