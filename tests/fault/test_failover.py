"""3.7: another server behind the same address.  Two real servers, one of which replicates the
other, behind a proxy that leads new connections to whichever is the primary."""

from __future__ import annotations

import collections.abc
import contextlib
import logging
import socket

import gevent
import gevent.event
import gevent.server
import gevent.socket
import pytest

from geventq import GeventqError, Queue, QueueEvents, RedisUnavailableError, Worker
from geventq.store.channels import Channels
from geventq.store.client import Client
from geventq.store.endpoint import Endpoint
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.told import engine_of
from tests.support.waiting import eventually


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Pair:
    """Two servers behind one address."""

    def __init__(self, old: Server, new: Server, ports: tuple[int, int], proxy: Proxy) -> None:
        self.old, self.new, self.proxy = old, new, proxy
        self._ports = ports
        self.url = proxy.url

    def follow(self) -> None:
        """`new` replicates `old`, and has all that it has."""
        with self.new.client() as new:
            new.replicaof("127.0.0.1", str(self._ports[0]))
            eventually(lambda: new.info("replication")["master_link_status"] == "up")

    def fail_over(self) -> None:
        """`old` is demoted, and new connections reach `new`.  Those that there are stay."""
        with self.new.client() as new, self.old.client() as old:
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", str(self._ports[1]))
        self.proxy.lead_to(self.new.url)

    def connections(self, server: Server) -> int:
        """Those of ours at `server`: neither the one that asks nor a replication's."""
        with server.client() as client:
            return len([one for one in client.client_list() if "M" not in one["flags"]]) - 1


@pytest.fixture
def pair() -> collections.abc.Iterator[Pair]:
    ports = (free_port(), free_port())
    with (
        Server(options=("--port", str(ports[0]))) as old,
        Server(options=("--port", str(ports[1]))) as new,
        Proxy(old.url) as proxy,
    ):
        made = Pair(old, new, ports, proxy)
        made.follow()
        yield made


@pytest.mark.slow
def test_after_a_fail_over_everything_works_again(pair: Pair) -> None:
    """3.7: adds, a worker, waits and event streams; no connection stays with the old server."""
    ran: list[str] = []
    told: list[str] = []
    with (
        Queue("q", pair.url) as queue,
        Worker("q", lambda job: ran.append(job.id), pair.url, concurrency=4) as worker,
        QueueEvents("q", pair.url) as events,
    ):
        worker.on("error", lambda error: None)
        events.on("completed", lambda event: told.append(event.job_id or ""))
        assert events.ready.wait(20)
        before = [gevent.spawn(queue.add, "n") for _ in range(20)]  # on several connections
        gevent.joinall(before, raise_error=True)
        eventually(lambda: len(ran) == 20)
        pair.fail_over()

        def added() -> str | None:
            with contextlib.suppress(RedisUnavailableError):
                return queue.add("n").id
            return None

        first = eventually(added)
        eventually(lambda: first in ran)
        eventually(lambda: first in told)
        job = queue.add("n", 7)
        job.wait_until_finished(20)
        eventually(lambda: pair.connections(pair.old) == 0, 40)  # a reader looks when it is quiet


@pytest.mark.slow
def test_one_refusal_is_enough_for_all_connections(pair: Pair) -> None:
    """3.7: what is refused was not done, so it is asked again of whoever is behind the address now,
    and the idle connections to the old server are not tried one by one: no add fails."""
    with Queue("q", pair.url) as queue:
        with pair.proxy.stalled():  # so that each has a connection of its own
            reads = [gevent.spawn(queue.count) for _ in range(10)]
            gevent.sleep(0)
        gevent.joinall(reads, raise_error=True)
        pair.fail_over()
        for _ in range(12):
            assert queue.add("n").was_added
        assert pair.connections(pair.old) == 0


@pytest.mark.slow
def test_a_worker_that_was_woken_by_nobody_finds_the_new_server(pair: Pair) -> None:
    """3.7: the idle wait sits on the old server, which would wake it no more."""
    ran: list[str] = []
    with Worker("q", lambda job: ran.append(job.id), pair.url, drain_delay=300.0) as worker:
        worker.on("error", lambda error: None)
        eventually(lambda: pair.connections(pair.old) > 0)
        pair.fail_over()
        with Queue("q", pair.new.url) as queue:
            job = queue.add("n")
            eventually(lambda: ran == [job.id])


@pytest.mark.slow
def test_a_password_that_the_url_lacks_is_an_outage(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """3.7: as one that is wrong.  The server hangs up on a script before it has read it."""
    go = gevent.event.Event()
    errors: list[BaseException] = []
    with (
        own_server.client() as admin,
        Worker("q", lambda job: go.wait(), own_server.url) as worker,
        Queue("q", own_server.url, timeout=2) as queue,
    ):
        worker.on("error", errors.append)
        job = queue.add("n")
        eventually(lambda: worker.active_jobs)
        with caplog.at_level(logging.WARNING, "geventq"):
            admin.acl_setuser("default", enabled=True, reset_passwords=True, passwords=["+secret"])
            for kind in ("normal", "pubsub"):
                admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            eventually(lambda: errors)
            go.set()
            for call in (queue.count, queue.is_paused, lambda: queue.add("n", job_id="another")):
                with pytest.raises(RedisUnavailableError, match=r"NOAUTH|unauthenticated"):
                    call()
            eventually(lambda: engine_of(worker).lanes.is_cut_off)
            admin.acl_setuser("default", enabled=True, nopass=True)
            assert job.wait_until_finished(20) is True
    assert all(isinstance(error, RedisUnavailableError) for error in errors)
    assert len([one for one in caplog.records if "failed, trying again" in one.message]) == 1


# -- what a server answers, word by word ----------------------------------------------------------


class Answering:
    """A server that gives one answer to every request, and counts its connections."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.connections = 0
        self._server = gevent.server.StreamServer(("127.0.0.1", 0), self._serve)

    def _serve(self, sock: gevent.socket.socket, address: object) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                sock.sendall(self.answer)

    def __enter__(self) -> Answering:
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(timeout=0)


@pytest.mark.parametrize(
    ("text", "connections"),
    [
        *((text, 3) for text in ("READONLY x", "LOADING x", "MASTERDOWN x", "CLUSTERDOWN x")),
        *((text, 3) for text in ("NOREPLICAS x", "UNBLOCKED x")),
        *((text, 3) for text in ("NOAUTH x", "ERR Protocol error: unauthenticated bulk length")),
        ("ERR max number of clients reached", 3),
        *((text, 1) for text in ("BUSY x", "TRYAGAIN x", "MISCONF x", "OOM x")),
    ],
)
def test_every_call_judges_an_outage_alike(text: str, connections: int) -> None:
    """3.7: nothing was done; a connection whose server serves no more is not used again."""
    with Answering(f"-{text}\r\n".encode()) as server:
        client = Client(Endpoint.of(server.url))
        try:
            for _ in range(3):
                with pytest.raises(RedisUnavailableError, match="refuses for now") as caught:
                    client.execute("PING")
                assert not caught.value.may_be_done
            assert server.connections == connections
        finally:
            client.close()


@pytest.mark.parametrize("text", ["LOADING x", "MASTERDOWN x", "BUSY x", "READONLY x"])
def test_who_listens_judges_an_outage_likewise(text: str) -> None:
    """3.7: a user who may not hear a channel is another matter, and asks again much later."""
    with Answering(f"-{text}\r\n".encode()) as server:
        client = Client(Endpoint.of(server.url))
        channels = Channels(client, ["one", "two"])
        try:
            with pytest.raises(RedisUnavailableError, match="refuses for now"):
                channels.subscribe()
        finally:
            channels.close()
            client.close()


@pytest.mark.parametrize("text", ["WRONGTYPE x", "NOPERM x", "ERR unknown command"])
def test_a_refusal_is_none(text: str) -> None:
    """3.7: the server serves, and the connection stays."""
    with Answering(f"-{text}\r\n".encode()) as server:
        client = Client(Endpoint.of(server.url))
        try:
            for _ in range(3):
                with pytest.raises(GeventqError, match="refused") as caught:
                    client.execute("PING")
                assert not isinstance(caught.value, RedisUnavailableError)
            assert server.connections == 1
        finally:
            client.close()


@pytest.mark.slow
def test_an_outage_is_told_once_whatever_it_is(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """3.7: a server that lets everybody in and refuses every write."""
    errors: list[BaseException] = []
    with Worker("q", lambda job: None, own_server.url, drain_delay=0.2) as worker:
        worker.on("error", errors.append)
        gevent.sleep(0)
        with own_server.client() as client:
            client.replicaof("127.0.0.1", "1")
            with caplog.at_level(logging.WARNING, "geventq"):
                eventually(lambda: errors)
                gevent.sleep(3)  # some tries more
            client.replicaof("NO", "ONE")
        with Queue("q", own_server.url) as queue:
            assert queue.add("n").wait_until_finished(20) is None
    assert len([one for one in caplog.records if "failed, trying again" in one.message]) == 1
    assert len(errors) == 1
    assert all(isinstance(error, RedisUnavailableError) for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["meta", "events", "wait", "delayed", "completed", "marker"])
def test_a_foreign_key_is_told_once_and_asked_about_ever_less(
    own_server: Server, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """3.7: what may have been taken is looked for after each failure; that this works says
    nothing of the call that fails."""
    errors: list[BaseException] = []
    with own_server.client() as client, Worker("q", lambda job: None, own_server.url) as worker:
        worker.on("error", errors.append)
        with Queue("q", own_server.url) as queue:
            assert queue.add("n").wait_until_finished(20) is None
            client.delete(f"bull:q:{key}")
            client.set(f"bull:q:{key}", "foreign")
            before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            worker.resume()  # so that it looks
            eventually(lambda: errors)
            gevent.sleep(3)  # some tries more
            after = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            client.delete(f"bull:q:{key}")
            assert queue.add("n").wait_until_finished(20) is None
    assert len([one for one in caplog.records if "failed, trying again" in one.message]) <= 4
    assert len(errors) <= 4
    assert after - before < 100


def test_an_outage_that_was_told_is_not_told_again_at_the_close(own_server: Server) -> None:
    """3.7: who idles owes the queue a marker at its end, and cannot put it back."""
    errors: list[BaseException] = []
    worker = Worker("q", lambda job: None, own_server.url, skip_stalled_check=True)
    worker.on("error", errors.append)
    with worker:
        with own_server.client() as client:
            eventually(lambda: any("b" in one["flags"] for one in client.client_list()))
        own_server.kill()
        eventually(lambda: errors and engine_of(worker).idle_wait.is_cut_off)
    assert len(errors) == 1
