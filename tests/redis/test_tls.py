"""``rediss://``: the same promises over TLS, on gevent's sockets in every kind of process."""

from __future__ import annotations

import collections.abc
import pathlib
import ssl
import sys
import urllib.parse

import gevent
import gevent.server
import gevent.socket
import gevent.ssl
import gevent.subprocess
import pytest

from geventq import (
    CancellationToken,
    Job,
    JobSpec,
    Queue,
    QueueEvents,
    RedisUnavailableError,
    Worker,
)
from tests.support.leaks import instances
from tests.support.waiting import eventually

CERTIFICATE = pathlib.Path(__file__).parent.parent / "support" / "localhost.pem"


def _forward(source: gevent.socket.socket, target: gevent.socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return  # one side has gone, the other follows
    finally:
        target.close()


@pytest.fixture
def port(redis_url: str) -> collections.abc.Iterator[int]:
    """Where the shared server can be reached by TLS, as ``localhost``."""
    address = urllib.parse.urlsplit(redis_url)

    def serve(client: gevent.socket.socket, _: object) -> None:
        if address.scheme == "unix":
            server = gevent.socket.socket(gevent.socket.AF_UNIX)
            server.connect(address.path)
        else:
            server = gevent.socket.create_connection((address.hostname, address.port or 6379))
        back = gevent.spawn(_forward, server, client)
        _forward(client, server)
        back.join()

    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    listener = gevent.server.StreamServer(("127.0.0.1", 0), serve, ssl_context=context)
    listener.start()
    yield listener.server_port
    listener.stop()


@pytest.fixture
def url(port: int) -> str:
    return f"rediss://localhost:{port}/0?ssl_ca_certs={CERTIFICATE}"


def test_jobs_are_added_worked_and_waited_for(url: str, prefix: str) -> None:
    with (
        QueueEvents("q", url, prefix, "0") as events,
        Queue("q", url, prefix) as queue,
        Worker("q", lambda job: job.data, url, prefix),
    ):
        jobs = [queue.add("n", "x" * 100_000), queue.add("n", 2)]
        assert [job.wait_until_finished(20) for job in jobs] == ["x" * 100_000, 2]
        assert next(iter(events)).name == "added"


def test_running_jobs_are_cancelled_by_messages_that_come_in_many_records(
    url: str, prefix: str
) -> None:
    """5.1: each of TLS holds one message or a part of it, and more than one may wait to be read."""
    heard: list[str] = []

    def process(job: Job, token: CancellationToken) -> None:
        heard.append(str(token.get().reason)[:3])
        token.raise_if_cancelled()

    with (
        Queue("q", url, prefix) as queue,
        Worker("q", process, url, prefix, concurrency=20, lock_duration=90) as worker,
    ):
        ids = [job.id for job in queue.add_bulk([JobSpec("n")] * 20)]
        eventually(lambda: len(worker.active_jobs) == 20)
        assert all(queue.cancel_jobs(ids, "why" * 5_000))
        eventually(lambda: heard == ["why"] * 20)


def test_the_hub_turns_while_the_server_is_silent(url: str, prefix: str) -> None:
    with Queue("q", url, prefix) as queue, QueueEvents("q", url, prefix) as events:
        reading = gevent.spawn(lambda: next(iter(events)))
        assert events.ready.wait(20)
        queue.add("n")  # a blocked hub would not get here
        assert reading.get(timeout=20).name == "added"


def test_an_idle_connection_that_was_cut_is_not_used_again(url: str, prefix: str) -> None:
    with Queue("q", url, prefix) as queue:
        assert queue.count() == 0
        (pool,) = queue._store._client._pools.values()
        (link,) = pool
        link.idle_since -= 10  # unused for long
        assert not link.is_dead()
        assert queue.count() == 0
        assert list(pool) == [link]
        link.idle_since -= 10
        for connection in instances(gevent.ssl.SSLSocket):
            if connection.server_side:
                connection.shutdown(gevent.socket.SHUT_RDWR)
        eventually(link.is_dead)
        assert queue.add("n").id == "1"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_that_does_not_fit_is_refused(port: int, prefix: str, host: str) -> None:
    """Nobody vouches for it, or it is another host's."""
    known = f"?ssl_ca_certs={CERTIFICATE}" if host == "127.0.0.1" else ""
    with Queue("q", f"rediss://:sekret@{host}:{port}/0{known}", prefix) as queue:
        with pytest.raises(RedisUnavailableError, match="certificate verify failed") as caught:
            queue.count()
        assert "sekret" not in str(caught.value)


def test_checks_can_be_switched_off(port: int, prefix: str) -> None:
    with Queue("q", f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none", prefix) as queue:
        eventually(lambda: queue.count() == 0)


def test_a_forked_child_leaves_the_parents_connection_alone(url: str, prefix: str) -> None:
    """7.5: the child has a connection and a TLS session of its own; the parent's go on."""
    program = """
import os, sys, gevent.os
from geventq import Queue
queue = Queue("q", *sys.argv[1:])
own = lambda: queue._store._client.execute("CLIENT", "ID")
before = own()
child = gevent.os.fork()
if not child:
    assert own() != before
    queue.add("n")
    queue.close()
    sys.exit()
assert gevent.os.waitpid(child, 0)[1] == 0
assert own() == before
queue.add("n")
"""
    done = gevent.subprocess.run([sys.executable, "-c", program, url, prefix], timeout=120)
    assert done.returncode == 0
    with Queue("q", url, prefix) as queue:
        assert queue.count() == 2
