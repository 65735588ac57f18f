"""`HealthPort` in a program: what it answers, and what is left of it (cancellation.md 7.3-7.5)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import typing

import gevent
import gevent.event
import gevent.socket
import pytest
import redis

from geventq import GeventqError, Job, Queue, Supervisor, Worker, WorkerGroup
from geventq.health import HealthPort, Place
from tests.conftest import Make
from tests.support.waiting import eventually


def ask(port: HealthPort, path: str) -> tuple[int, dict[str, typing.Any]]:
    """The status and the JSON; 0 where nobody listens."""
    try:
        sock = gevent.socket.create_connection(port.place, timeout=10)
    except ConnectionRefusedError:
        return 0, {}
    with sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while more := sock.recv(65536):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def status_of(port: HealthPort) -> tuple[int, str]:
    status, said = ask(port, "/ready")
    return status, said["status"]


def test_it_tells_the_life_of_a_worker(redis_url: str, prefix: str, queue: Queue) -> None:
    go = gevent.event.Event()
    worker = Worker("q", lambda job: go.wait(), redis_url, prefix)
    with HealthPort(0, worker) as port:
        assert status_of(port) == (503, "starting")
        worker.start()
        eventually(lambda: status_of(port) == (200, "ready"))
        worker.pause()
        assert status_of(port) == (503, "paused")
        worker.resume()
        assert status_of(port) == (200, "ready")
        queue.add("n")
        eventually(lambda: worker.active_jobs)
        assert ask(port, "/ready")[1]["active_jobs"] == 1
        closing = gevent.spawn(worker.close)
        eventually(lambda: status_of(port) == (503, "closing"))
        go.set()
        closing.join()
        assert status_of(port) == (503, "closed")
        assert ask(port, "/live")[0] == 200
        worker.start()
        eventually(lambda: status_of(port) == (200, "ready"))
        worker.close()
    assert ask(port, "/live")[0] == 0


def test_it_is_the_last_to_go(
    redis_url: str, prefix: str, queue: Queue, redis_client: redis.Redis
) -> None:
    """7.3: no takes, jobs, listeners, group, connections, and then the health port."""
    order: list[str] = []
    go = gevent.event.Event()
    worker = Worker("q", lambda job: go.wait(), redis_url, prefix, name="last")
    worker.on("completed", lambda job, result: order.append(f"completed, {status_of(port)[0]}"))
    worker.on("closed", lambda: order.append("closed"))
    with WorkerGroup("q", redis_url, prefix) as group, HealthPort(0, worker) as port:
        worker.before_closing(lambda: order.append("closes"))
        worker.start()
        eventually(lambda: len(group.members()) == 1)
        jobs = [queue.add("n") for _ in range(2)]
        eventually(lambda: worker.active_jobs)
        gevent.spawn_later(0.1, go.set)  # while it closes
        worker.close()
        order.append(status_of(port)[1])
        assert group.members() == []
        names = [one["name"] for one in redis_client.client_list()]
        assert not [name for name in names if name.endswith(":w:last")]
    assert order == ["closes", "completed, 503", "closed", "closed"]
    assert sorted(job.get_state() for job in jobs) == ["completed", "waiting"]
    assert ask(port, "/live")[0] == 0


@pytest.mark.slow
def test_stuck_jobs_that_hold_every_slot_make_it_unready(queue: Queue, make: Make) -> None:
    let_go: list[bool] = []
    ended: list[str] = []

    def process(job: Job) -> None:
        while not let_go:
            with contextlib.suppress(BaseException):
                gevent.sleep(0.01)
        ended.append(job.id)

    worker = make(process, cancel_mode="hard", job_timeout=0.05)
    with HealthPort(0, worker) as port:
        for _ in range(3):
            queue.add("n")
        eventually(lambda: status_of(port) == (503, "stuck"), timeout=60)
        assert ask(port, "/ready")[1]["stuck_jobs"] == 2
        let_go.append(True)
        eventually(lambda: status_of(port) == (200, "ready"))
        eventually(lambda: len(ended) == 3)


def test_a_supervisor_is_ready_when_all_of_its_workers_are(redis_url: str, prefix: str) -> None:
    workers = [Worker(name, lambda job: None, redis_url, prefix) for name in ("a", "b")]
    supervisor = Supervisor([workers[0], Supervisor([workers[1]])])
    with HealthPort(0, supervisor) as port:
        assert status_of(port) == (503, "starting")
        with supervisor:
            eventually(lambda: status_of(port) == (200, "ready"))
            said = ask(port, "/ready")[1]
            assert [one["queue"] for one in said["workers"]] == ["a", "b"]
            assert said["concurrency"] == 2
            workers[1].pause()
            assert status_of(port) == (503, "paused")
        assert status_of(port) == (503, "closed")


def test_a_port_that_is_taken_is_named(make: Make) -> None:
    worker = make(lambda job: None)
    with HealthPort(0, worker) as port:
        other = HealthPort(port.place.port, worker)
        with pytest.raises(GeventqError, match=rf"health_port: 127\.0\.0\.1:{port.place.port}: "):
            other.start()
        other.close()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (8080, ("127.0.0.1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_a_place_is_read(value: int | str, place: tuple[str, int]) -> None:
    assert Place.of(value) == place


@pytest.mark.parametrize(
    "value", ["", "a", ":1", "1:", "65536", "-1", "1.5", "\u0663", True, None, 1.5, b"1"]
)
def test_what_is_no_place_is_refused(value: typing.Any) -> None:
    with pytest.raises((TypeError, ValueError), match="health_port: \\[HOST:\\]PORT is needed"):
        Place.of(value)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_in_a_forked_child_nobody_answers(redis_url: str, prefix: str) -> None:
    """7.5: the port is the parent's, who goes on; and free as soon as he has closed."""
    worker = Worker("q", lambda job: None, redis_url, prefix)
    with worker, HealthPort(0, worker) as port:
        eventually(lambda: status_of(port) == (200, "ready"))
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writer, b"here")
            gevent.sleep(60)  # gives the hub its turns
            os._exit(0)
        try:
            assert os.read(reader, 4) == b"here"  # it has had the first turn of its own
            assert all(ask(port, "/live")[1]["pid"] == os.getpid() for _ in range(20))
            port.close()
            assert ask(port, "/live")[0] == 0
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            os.close(writer)
