"""How many connections a process has: those of callers are bounded, what a worker needs comes on
top, and what is idle is closed."""

from __future__ import annotations

import collections.abc
import gc
import socket
import threading
import typing

import gevent
import gevent.event
import gevent.monkey
import gevent.threadpool
import pytest

from geventq import GeventqError, Job, Queue, RedisUnavailableError, Worker
from geventq.store import lookups, pools
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.told import Told
from tests.support.waiting import eventually


@pytest.fixture
def slow(proxy: Proxy) -> Proxy:
    """A network of 10 ms: calls overlap."""
    proxy.delay = 0.01
    return proxy


class Peak:
    """The most connections that a proxy has had at once."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.most = 0
        self._looking = gevent.spawn(self._look)

    def _look(self) -> None:
        while True:
            self.most = max(self.most, self._proxy.connected)
            gevent.sleep(0.001)

    def __enter__(self) -> Peak:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._looking.kill()


def all_of(
    calls: int, call: collections.abc.Callable[[], object]
) -> list[gevent.Greenlet[..., typing.Any]]:
    calling = [gevent.spawn(call) for _ in range(calls)]
    gevent.joinall(calling, timeout=60, raise_error=True)
    return calling


@pytest.mark.parametrize("most", [1, 5])
def test_callers_wait_for_a_connection(slow: Proxy, prefix: str, most: int) -> None:
    """Reads, adds and scripts of many greenlets, on few connections, each in its turn."""
    with Queue("q", slow.url, prefix, max_connections=most) as queue, Peak(slow) as peak:
        job = queue.add("n", 7)
        all_of(40, lambda: queue.get_job(job.id))
        all_of(40, lambda: queue.add("n"))
        all_of(40, job.get_state)
        assert peak.most == most
        assert queue.count() == 41


def test_a_caller_waits_within_his_time(redis_url: str, prefix: str) -> None:
    """The one connection is in a call that takes longer: nothing was done, and he is told why."""
    with (
        Proxy(redis_url) as proxy,
        Queue("q", proxy.url, prefix, max_connections=1, timeout=0.5) as queue,
        Queue("q", proxy.url, prefix) as patient,  # the smallest number counts
    ):
        queue.count()
        held = proxy.hold_request(b"HGETALL")
        first = gevent.spawn(patient.get_job, "1")
        held.wait()
        with pytest.raises(RedisUnavailableError, match="max_connections") as caught:
            queue.count()
        assert not caught.value.may_be_done
        held.release()
        assert first.get(timeout=20) is None
        assert queue.count() == 0


def test_a_caller_who_is_killed_while_he_waits_takes_nothing_with_him(
    redis_url: str, prefix: str
) -> None:
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix, max_connections=1) as queue:
        queue.count()
        held = proxy.hold_request(b"HGETALL")
        first = gevent.spawn(queue.get_job, "1")
        held.wait()
        waiting = [gevent.spawn(queue.count) for _ in range(4)]
        gevent.sleep(0.05)
        waiting[0].kill()
        waiting[2].kill()
        held.release()
        assert first.get(timeout=20) is None
        assert [waiting[one].get(timeout=20) for one in (1, 3)] == [0, 0]
        assert proxy.connected == 1


def test_a_caller_who_is_killed_in_mid_call_leaves_his_place(redis_url: str, prefix: str) -> None:
    with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix, max_connections=1) as queue:
        for _ in range(3):
            held = proxy.hold_request(b"HGETALL")
            calling = gevent.spawn(queue.get_job, "1")
            held.wait()
            waiting = gevent.spawn(queue.count)
            gevent.sleep(0)
            calling.kill()
            assert waiting.get(timeout=20) == 0
            held.release()


@pytest.mark.parametrize("at", ["admit", "opened", "put"])
def test_a_ctrl_c_at_a_bad_moment_takes_no_place_for_ever(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Python raises it between any two steps: behind the admission, behind the connecting, and
    when the connection should become idle."""
    owner: type = pools.Pool if at == "put" else pools.Server
    step = getattr(owner, at)

    def interrupted(*args: typing.Any) -> typing.Any:
        if at == "admit":
            step(*args)
        monkeypatch.setattr(owner, at, step)
        raise KeyboardInterrupt

    with Queue("q", redis_url, prefix, max_connections=1, timeout=5.0) as queue:
        for _ in range(3):
            queue._store._client._pool().close()
            monkeypatch.setattr(owner, at, interrupted)
            with pytest.raises(KeyboardInterrupt):
                queue.count()
            gc.collect()
            assert queue.count() == 0


def test_a_waiter_takes_the_place_of_an_idle_connection_of_another_hub(
    redis_url: str, prefix: str
) -> None:
    """Of each thread's hub, and of another queue: what is idle is closed for who needs it."""
    threads = gevent.threadpool.ThreadPool(3)
    try:
        with Proxy(redis_url) as proxy, Queue("q", proxy.url, prefix, max_connections=2) as queue:
            for _ in range(2):
                for result in [threads.spawn(queue.count) for _ in range(3)]:
                    assert result.get(timeout=30) == 0
                assert queue.count() == 0
                with Queue("other", proxy.url, prefix) as other:
                    assert other.count() == 0
                assert proxy.connected <= 2
    finally:
        threads.kill()


def test_the_smallest_number_given_holds_for_all(slow: Proxy, prefix: str) -> None:
    """Per process and server; it goes with the queue that gave it."""
    with Queue("a", slow.url, prefix, max_connections=20) as a:
        all_of(20, a.count)
        eventually(lambda: slow.connected == 20)
        b = Queue("b", slow.url, prefix, max_connections=3)
        b.count()
        eventually(lambda: slow.connected <= 3)
        with Peak(slow) as peak:
            all_of(30, lambda: (a.count(), b.count()))
        assert peak.most <= 3
        b.close()
        with Peak(slow) as peak:
            all_of(30, a.count)
        assert peak.most > 3


def test_idle_connections_are_closed_after_a_while(
    slow: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call has to come for that."""
    monkeypatch.setattr(pools, "_IDLE", 0.2)
    monkeypatch.setattr(pools, "_LOOK", 0.1)
    with Queue("q", slow.url, prefix) as queue:
        all_of(20, queue.count)
        assert slow.connected > 5
        eventually(lambda: not slow.connected)
        assert queue.count() == 0


def test_jobs_share_the_callers_connections_and_the_worker_has_its_own(
    slow: Proxy, prefix: str, queue: Queue
) -> None:
    """100 jobs at once that write to Redis: none waits for its lock's renewal or its outcome."""
    failed: list[BaseException] = []

    def process(job: Job) -> None:
        for number in range(3):
            job.update_progress(number)

    with Peak(slow) as peak:
        worker = Worker("q", process, slow.url, prefix, concurrency=100, max_connections=4)
        worker.on("failed", lambda job, error: failed.append(error))
        with worker:
            jobs = [queue.add("n") for _ in range(100)]
            eventually(lambda: queue.get_job_counts()["completed"] == len(jobs), 40)
    assert not failed
    # Callers, lanes, and the renewer, checker, idle wait, heartbeat and a spare.
    assert peak.most <= 4 + 4 + 5


def test_a_worker_does_not_wait_for_callers(redis_url: str, prefix: str, queue: Queue) -> None:
    """Its jobs hold all connections there may be; it renews, settles and takes all the same."""
    with Proxy(redis_url) as proxy:
        held = proxy.hold_request(b"HGETALL")

        def process(job: Job) -> None:
            if job.name == "reads":
                with Queue("q", proxy.url, prefix) as of_the_job:
                    of_the_job.get_job(job.id)

        worker = Worker("q", process, proxy.url, prefix, concurrency=2, max_connections=1)
        with worker:
            reads = queue.add("reads")
            held.wait()
            assert queue.add("n").wait_until_finished(20) is None
            held.release()
            assert reads.wait_until_finished(20) is None


@pytest.mark.slow
def test_a_server_that_is_full_is_an_outage(own_server: Server, prefix: str) -> None:
    """ "max number of clients reached": no job fails by it, and a worker comes in when it may."""
    failed: list[object] = []

    def process(job: Job) -> int:
        job.update_progress(1)
        return 7

    worker = Worker("q", process, own_server.url, prefix, concurrency=20)
    worker.on("failed", lambda job, error: failed.append(error))
    worker.on("error", lambda error: None)
    with own_server.client() as admin, Queue("q", own_server.url, prefix) as queue:
        for _ in range(40):
            queue.add("n", attempts=3)
        queue.close()
        admin.config_set("maxclients", 1)
        with pytest.raises(RedisUnavailableError) as caught:
            queue.add("n")
        assert isinstance(caught.value, GeventqError)
        worker.start()
        gevent.sleep(0.5)
        admin.config_set("maxclients", 9)
        eventually(lambda: admin.zcard(f"{prefix}:q:completed") == 40, 60)
        admin.config_set("maxclients", 1000)
        worker.close(0)
        assert not failed


def test_scripts_that_are_flushed_all_the_time_run(own_server: Server, prefix: str) -> None:
    """3.7: between the loading of a script and its call another may flush: a big add takes its
    time on the line."""
    stop = threading.Event()

    def flush() -> None:
        with own_server.client() as client:
            while not stop.is_set():
                client.script_flush()

    thread = gevent.threadpool.ThreadPool(1)
    flushing = thread.spawn(flush)
    try:
        with Queue("q", own_server.url, prefix) as queue:
            for number in range(100):
                queue.add("small", number)
                queue.add("big", "x" * 400_000, remove_on_complete=True)
            assert queue.count() == 200
    finally:
        stop.set()
        flushing.get(timeout=20)
        thread.kill()


@pytest.fixture
def hanging_look_ups() -> collections.abc.Iterator[None]:
    """As users' look-ups of names whose servers are silent: all threads of the hub's pool hang."""
    pool = gevent.get_hub().threadpool
    hang = gevent.monkey.get_original("_thread", "allocate_lock")()
    hang.acquire()

    def look_up() -> None:
        with hang:
            pass

    hung = [pool.spawn(look_up) for _ in range(pool.maxsize)]
    yield
    hang.release()
    gevent.wait(hung, timeout=20)


def by_name(proxy: Proxy) -> str:
    return proxy.url.replace("127.0.0.1", "localhost")


@pytest.mark.slow
@pytest.mark.usefixtures("hanging_look_ups")
def test_a_worker_connects_anew_whatever_users_look_up(
    redis_url: str, prefix: str, queue: Queue
) -> None:
    """2.11: its server has a name, its connections are cut, and the job keeps its lock, is
    settled, and the next one is taken."""
    with Proxy(redis_url) as proxy:
        go = gevent.event.Event()
        worker = Worker("q", lambda job: go.wait(20), by_name(proxy), prefix, lock_duration=2)
        told = Told(worker)
        with worker:
            job = queue.add("n")
            eventually(lambda: worker.active_jobs)
            for _ in range(4):
                proxy.cut()
                gevent.sleep(1)
            go.set()
            told.wait("completed")
            assert told.args("lock_lost") == []
            assert queue.add("n").wait_until_finished(20) is True
        assert job.is_completed()


def test_those_who_look_for_one_name_share_a_look(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many greenlets that connect at once start no thread each; what the look raises is each
    one's outage."""
    looks = []
    hang = gevent.monkey.get_original("_thread", "allocate_lock")()
    hang.acquire()

    def look(host: str, port: int, flags: int) -> list[lookups.Address]:
        if flags:
            raise OSError
        looks.append(host)
        with hang:
            pass
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(lookups, "_system", look)
    with Queue("q", "redis://a.name.invalid", prefix) as queue:
        calls = [gevent.spawn(queue.get_job_state, "1") for _ in range(30)]
        eventually(lambda: looks)
        hang.release()
        gevent.joinall(calls, timeout=20)
        errors = {type(call.exception) for call in calls}
        assert errors == {RedisUnavailableError}
        assert len(looks) < 10


def test_a_connection_that_the_server_has_closed_costs_no_call(
    own_server: Server, prefix: str
) -> None:
    """3.6: what was not sent was not done, so it is sent on another connection, whatever it is."""
    with Queue("q", own_server.url, prefix) as queue, own_server.client() as client:
        for number in range(5):
            queue.add("n")
            client.client_kill_filter(_type="normal", skipme=True)
            assert queue.count() == number + 1
            client.client_kill_filter(_type="normal", skipme=True)


def test_a_connection_that_was_closed_a_moment_ago_is_not_used(proxy: Proxy, prefix: str) -> None:
    """3.6: over TCP a first sending still succeeds then, and an add without an id would fail."""
    with Queue("q", proxy.url, prefix) as queue:
        for _ in range(5):
            queue.add("n")
            proxy.cut()
            gevent.sleep(0.05)
        assert queue.count() == 5


def test_what_was_not_sent_to_its_end_was_not_done(own_server: Server, prefix: str) -> None:
    """3.6: a server that hangs while a large job is sent to it has not read its command."""
    with Queue("q", own_server.url, prefix, timeout=1.0) as queue:
        queue.add("n")
        own_server.pause()
        try:
            with pytest.raises(RedisUnavailableError) as caught:
                queue.add("n", "x" * 30_000_000)
        finally:
            own_server.resume()
        assert not caught.value.may_be_done
        assert queue.count() == 1


@pytest.mark.parametrize("order", ["the silent one first", "the silent one last"])
def test_an_address_that_is_silent_does_not_keep_callers_from_the_others(
    own_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """3.7: of a name with several, as during a fail-over by DNS: without an end of its own the
    first one takes all the time of each call, for ever."""
    with Proxy(own_server.url) as proxy, socket.socket() as full:
        full.bind(("127.0.0.2", int(proxy.url.split(":")[2].partition("/")[0])))
        full.listen(0)
        port = full.getsockname()[1]
        filling = [socket.socket() for _ in range(4)]
        for one in filling:  # a queue that is full: what comes now is not answered
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", port))
        hosts = ["127.0.0.2", "127.0.0.1"]
        if order == "the silent one last":
            hosts.reverse()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
        monkeypatch.setattr("geventq.store.sockets.addresses", lambda host, port: found)
        with Queue("q", proxy.url, prefix, timeout=4.0) as queue:
            assert queue.add("n").id == "1"
        for one in filling:
            one.close()
