"""3.6, 3.7: outcomes whose answer was lost are settled once, and a server that refuses for now is
an outage: whatever the worker owed is delivered when it serves again."""

from __future__ import annotations

import collections.abc
import logging
import typing

import gevent
import gevent.event
import pytest

from geventq import (
    CancellationToken,
    DelayedError,
    Job,
    Queue,
    RedisUnavailableError,
    UnrecoverableError,
    WaitingError,
    Worker,
)
from geventq.store.scripts import load
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.told import Told
from tests.support.waiting import eventually


def outcome(kind: str) -> collections.abc.Callable[[bytes], bool]:
    """Requests of the settle script that carry an outcome of this kind."""
    sha, letter = load("settle").sha.encode(), f"$1\r\n{kind}\r\n".encode()
    return lambda request: sha in request and letter in request


@pytest.mark.parametrize(
    ("kind", "first", "state", "told_of", "counters"),
    [
        pytest.param("f", UnrecoverableError("no"), "failed", ["failed"], (1, 1), id="failure"),
        pytest.param(
            "r", ValueError("again"), "completed", ["retrying", "completed"], (2, 2), id="retry"
        ),
        pytest.param("d", DelayedError(0.02), "completed", ["completed"], (1, 2), id="to delayed"),
        pytest.param("w", WaitingError(), "completed", ["completed"], (1, 2), id="to wait"),
    ],
)
def test_an_outcome_whose_answer_was_lost_is_settled_once(
    queue: Queue,
    proxy: Proxy,
    prefix: str,
    kind: str,
    first: Exception,
    state: str,
    told_of: list[str],
    counters: tuple[int, int],
) -> None:
    """3.6: the server carried it out, the connection broke, it is sent again: known as ours by
    `atm`, or, for a move, by the id that is not in `active` without a lock."""
    runs: list[int] = []

    def process(job: Job) -> str:
        runs.append(job.attempts_made)
        if len(runs) == 1:
            raise first
        return "done"

    worker = Worker("q", process, proxy.url, prefix, skip_stalled_check=True)
    told = Told(worker)
    trap = proxy.swallow_next(outcome(kind))
    with worker:
        job = queue.add("n", attempts=3)
        trap.wait()
        # In any order: the second run may be over before the first one's outcome is known.
        eventually(lambda: sorted(told.of(job)) == sorted(told_of))
        eventually(lambda: queue.get_job_state(job.id) == state)
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.attempts_made, read.attempts_started) == counters
    assert len(runs) == counters[1]


def test_a_retry_after_a_time_whose_answer_was_lost_is_settled_once(
    queue: Queue, proxy: Proxy, prefix: str
) -> None:
    """3.6: in *delayed* with a higher `atm`."""
    runs: list[int] = []

    def process(job: Job) -> None:
        runs.append(job.attempts_made)
        if len(runs) == 1:
            raise ValueError("again")

    worker = Worker("q", process, proxy.url, prefix, skip_stalled_check=True)
    told = Told(worker)
    trap = proxy.swallow_next(outcome("d"))
    with worker:
        job = queue.add("n", attempts=3, backoff=0.05)
        trap.wait()
        eventually(lambda: sorted(told.of(job)) == ["completed", "retrying"])
    assert runs == [0, 1]


def test_a_give_back_whose_answer_was_lost_is_made_once(
    queue: Queue, proxy: Proxy, prefix: str
) -> None:
    """3.6, 7.1: closing; the job stands once in wait, with nothing counted."""
    inside = gevent.event.Event()

    def process(job: Job, token: CancellationToken) -> None:
        inside.set()
        token.sleep(60)

    worker = Worker("q", process, proxy.url, prefix, skip_stalled_check=True)
    told = Told(worker)
    worker.start()
    job = queue.add("n")
    inside.wait()
    trap = proxy.swallow_next(outcome("b"))
    worker.close(0)
    assert trap.was_reached
    assert told.of(job) == ["cancelled"]
    assert [waits.id for waits in queue.get_waiting()] == [job.id]
    read = queue.get_job(job.id)
    assert read is not None
    assert (read.attempts_made, read.attempts_started) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("lives", [True, False])
def test_an_outcome_is_offered_until_the_server_answers(
    queue: Queue, proxy: Proxy, prefix: str, redis_client: typing.Any, lives: bool
) -> None:
    """3.6: the line is down for longer than the lock's life; the processor has ended, so nothing
    is let go by our own clock (3.3): the token test of the script decides."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> str:
        inside.set()
        go.wait()
        return "done"

    worker = Worker("q", process, proxy.url, prefix, lock_duration=2.0, skip_stalled_check=True)
    told = Told(worker)
    with worker:
        job = queue.add("n")
        inside.wait()
        with proxy.refusing():
            go.set()
            if lives:
                assert redis_client.persist(f"{prefix}:q:{job.id}:lock")
            gevent.sleep(2.5)
            assert told.of(job) == []
        eventually(lambda: told.of(job))
    assert told.of(job) == (["completed"] if lives else ["lock_lost"])
    assert queue.get_job_state(job.id) == ("completed" if lives else "active")


class Refusal(typing.NamedTuple):
    """How an administrator makes a server refuse, and serve again."""

    begin: tuple[str, ...]
    end: tuple[str, ...]


REFUSALS: typing.Final = {
    "NOREPLICAS": Refusal(
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
    "READONLY": Refusal(("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_server_that_refuses_for_now_is_an_outage(
    own_server: Server, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """3.7: the outcome and the next take wait; nothing is lost, told twice or failed; the log
    says once that it began, and once that it is over."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> str:
        inside.set()
        go.wait()
        return "done"

    refusal = REFUSALS[code]
    with own_server.client() as client, Queue("q", own_server.url) as queue:
        worker = Worker("q", process, own_server.url)
        told = Told(worker)
        with worker:
            first, second = queue.add("n"), queue.add("n")
            inside.wait()
            client.execute_command(*refusal.begin)
            go.set()
            (error,) = told.wait("error")
            assert code in str(error)
            client.execute_command(*refusal.end)
            eventually(lambda: told.of(second) == ["completed"])
        assert told.of(first) == ["completed"]
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    server = f"Redis at {own_server.socket_path} "
    assert said[0].startswith(f"{server}failed, trying again: ")
    assert said[1].startswith(f"{server}works again after ")
    assert len(said) == 2


def test_a_server_that_is_full_still_lets_jobs_end(own_server: Server) -> None:
    """3.7: an outage for those who add; a script that has begun to take things away is not
    stopped half way, so what is there can be worked off."""
    with own_server.client() as client, Queue("q", own_server.url) as queue:
        jobs = [queue.add("n") for _ in range(3)]
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailableError, match="OOM"):
            queue.add("n")
        worker = Worker("q", lambda job: "done", own_server.url)
        told = Told(worker)
        with worker:
            eventually(lambda: [told.of(job) for job in jobs] == [["completed"]] * 3)
        client.config_set("maxmemory", 0)
        assert queue.get_job_counts() == {**queue.get_job_counts(), "waiting": 0, "completed": 3}


def test_a_server_that_starts_anew_gets_what_it_is_owed(own_server: Server) -> None:
    """3.6, 3.7: killed and started again (its data are kept, its scripts are not): the job that
    ended meanwhile is completed, the next one runs."""
    inside, go = gevent.event.Event(), gevent.event.Event()

    def process(job: Job) -> str:
        inside.set()
        go.wait()
        return "done"

    with Queue("q", own_server.url) as queue:
        worker = Worker("q", process, own_server.url)
        told = Told(worker)
        with worker:
            first, second = queue.add("n"), queue.add("n")
            inside.wait()
            own_server.kill()
            go.set()
            told.wait("error")
            own_server.start()
            eventually(lambda: told.of(second) == ["completed"])
        assert told.of(first) == ["completed"]


def test_scripts_that_were_flushed_are_loaded_again(own_server: Server) -> None:
    """3.7: `NOSCRIPT` is no outage: nothing ran, so it is sent again at once, without a word."""
    with own_server.client() as client, Queue("q", own_server.url) as queue:
        worker = Worker("q", lambda job: "done", own_server.url)
        told = Told(worker)
        with worker:
            for _ in range(3):
                client.script_flush()
                job = queue.add("n")
                eventually(lambda job=job: told.of(job) == ["completed"])  # type: ignore[misc]
        assert told.args("error") == []
