"""`wait_until_finished`: the result or the reason, however soon or late one begins to wait."""

from __future__ import annotations

import typing

import gevent
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
