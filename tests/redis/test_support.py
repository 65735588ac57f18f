"""The test support keeps its own promises: a proxy that does not cut would prove nothing."""

from __future__ import annotations

import collections.abc
import pathlib
import subprocess

import gevent
import gevent.socket
import gevent.subprocess
import pytest
import redis

from tests.support.leaks import Snapshot, forget_children
from tests.support.programs import lives
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import TurnedClock, eventually


class _Client:
    """A client on gevent's sockets, so that the proxy gets its turns in unpatched runs too."""

    def __init__(self, proxy: Proxy) -> None:
        port = int(proxy.url.rpartition(":")[2].partition("/")[0])
        self._socket = gevent.socket.create_connection(("127.0.0.1", port), timeout=20)

    def send(self, *words: bytes) -> None:
        self._socket.sendall(
            b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        )

    def read(self) -> bytes:
        """What arrived; empty when cut."""
        try:
            return self._socket.recv(65536)
        except ConnectionError:
            return b""

    def call(self, *words: bytes) -> bytes:
        self.send(*words)
        return self.read()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def client(proxy: Proxy) -> collections.abc.Iterator[_Client]:
    client = _Client(proxy)
    yield client
    client.close()


def test_a_swallowed_call_was_executed_and_its_client_is_cut(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    key = f"{prefix}:n"
    trap = proxy.swallow_next(match=b"INCR")
    assert client.call(b"PING") == b"+PONG\r\n"
    assert client.call(b"INCR", key.encode()) == b""
    assert key.encode() in trap.wait()
    assert redis_client.get(key) == "1"

    again = _Client(proxy)
    assert again.call(b"INCR", key.encode()) == b":2\r\n", "only one answer is swallowed"
    again.close()


def test_a_lost_call_was_not_executed(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    trap = proxy.lose_next(match=lambda request: b"INCR" in request)
    assert client.call(b"INCR", f"{prefix}:n".encode()) == b""
    assert trap.was_reached
    assert redis_client.get(f"{prefix}:n") is None


def test_a_held_request_reaches_the_server_when_released(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    trap = proxy.hold_request(match=b"SET")
    client.send(b"SET", f"{prefix}:k".encode(), b"v")
    trap.wait()
    assert redis_client.get(f"{prefix}:k") is None
    trap.release()
    assert client.read() == b"+OK\r\n"


def test_a_held_answer_is_late_but_its_request_was_executed(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    trap = proxy.hold_answer(match=b"SET")
    client.send(b"SET", f"{prefix}:k".encode(), b"v")
    trap.wait()
    assert redis_client.get(f"{prefix}:k") == "v"
    trap.release()
    assert client.read() == b"+OK\r\n"


def test_a_trap_takes_exactly_the_answer_of_its_request_in_a_pipeline(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    key = f"{prefix}:n".encode()
    proxy.swallow_next(match=b"INCRBY")
    client.send(b"ECHO", b"first\r\n$9\r\n")
    client.send(b"INCRBY", key, b"5")
    received = b""
    while more := client.read():
        received += more
    assert received == b"$11\r\nfirst\r\n$9\r\n\r\n"
    assert redis_client.get(key.decode()) == "5"


def test_cut_refuse_and_accept(proxy: Proxy, client: _Client) -> None:
    assert client.call(b"PING") == b"+PONG\r\n"
    proxy.cut()
    assert client.read() == b""
    eventually(lambda: proxy.connected == 0)
    with proxy.refusing(), pytest.raises(ConnectionRefusedError):
        _Client(proxy)
    again = _Client(proxy)
    assert again.call(b"PING") == b"+PONG\r\n"
    again.close()


def test_a_stalled_line_stays_open_and_answers_later(proxy: Proxy, client: _Client) -> None:
    with proxy.stalled():
        client.send(b"PING")
        with gevent.Timeout(0.05, False):
            raise AssertionError(f"answered: {client.read()!r}")
    assert client.read() == b"+PONG\r\n"


def test_a_half_open_link_says_nothing_while_new_ones_answer(proxy: Proxy, client: _Client) -> None:
    assert client.call(b"PING") == b"+PONG\r\n"
    proxy.half_open()
    client.send(b"PING")
    again = _Client(proxy)
    assert again.call(b"PING") == b"+PONG\r\n"
    with gevent.Timeout(0.05, False):
        raise AssertionError(f"answered: {client.read()!r}")
    proxy.cut_half_open()
    assert client.read() == b""
    assert again.call(b"PING") == b"+PONG\r\n"
    again.close()


def test_the_server_goes_on_with_an_orphaned_link(
    proxy: Proxy, client: _Client, prefix: str, redis_client: redis.Redis
) -> None:
    """As with a client whose machine has gone: what it waits for is given to it."""
    before = int(redis_client.info("clients")["blocked_clients"])
    client.send(b"BLPOP", f"{prefix}:list".encode(), b"60")
    eventually(lambda: redis_client.info("clients")["blocked_clients"] == before + 1)
    proxy.orphan()
    assert client.read() == b""
    assert redis_client.rpush(f"{prefix}:list", "gone with the dead") == 1
    eventually(lambda: not redis_client.exists(f"{prefix}:list"))
    proxy.cut_half_open()
    eventually(lambda: proxy.connected == 0)


def test_new_connections_follow_an_address_that_moves(
    proxy: Proxy, client: _Client, own_server: Server, redis_client: redis.Redis
) -> None:
    client.call(b"PING")
    proxy.retarget(own_server.url)
    moved = _Client(proxy)
    moved.call(b"SET", b"where", b"there")
    assert client.call(b"GET", b"where") == b"$-1\r\n"
    with own_server.client() as there:
        assert there.get("where") == "there"
    moved.close()


def test_a_server_that_was_paused_killed_or_restarted_has_its_data(own_server: Server) -> None:
    with own_server.client() as client:
        client.set("k", "v")
        own_server.pause()
        own_server.resume()
        assert client.get("k") == "v"
    own_server.kill()
    own_server.start()
    with own_server.client() as client:
        assert client.get("k") == "v"
    own_server.restart()
    with own_server.client() as client:
        assert client.get("k") == "v"


def test_the_server_configuration_for_development_works() -> None:
    conf = pathlib.Path(__file__).parents[2] / "conf" / "valkey-dev.conf"
    with Server(configuration=conf) as server, server.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "no"}


def test_a_greenlet_of_ours_that_is_left_behind_is_named() -> None:
    before = Snapshot()
    left = gevent.spawn(gevent.sleep, 60)
    left.name = "geventq-forgotten"
    try:
        with pytest.raises(AssertionError, match="geventq-forgotten"):
            before.check()
    finally:
        left.kill()


def test_a_socket_that_is_left_open_is_told() -> None:
    before = Snapshot()
    ours, theirs = gevent.socket.socketpair()
    try:
        with pytest.raises(AssertionError, match=r"left open: .*socket:"):
            before.check(patience=0.1)
    finally:
        ours.close()
        theirs.close()


@pytest.mark.unpatched
def test_the_children_of_the_next_test_are_its_own() -> None:
    """gevent's loop takes the ends of all children from the first that gevent starts."""

    def status() -> int:
        child = subprocess.Popen(["sh", "-c", "exit 3"])
        eventually(lambda: not lives(child.pid))
        gevent.sleep(0.01)  # what gevent's loop would take, it takes now
        return child.wait()

    assert gevent.subprocess.call(["sh", "-c", "exit 2"]) == 2
    assert status() == 0
    forget_children()
    assert status() == 3
    assert gevent.subprocess.call(["sh", "-c", "exit 2"]) == 2


def test_a_turned_clock_moves_stops_and_goes_on(turned_clock: TurnedClock) -> None:
    from geventq import clock

    before = clock.monotonic()
    turned_clock.advance(3600)
    assert 3600 <= clock.monotonic() - before < 3660
    turned_clock.stop()
    assert clock.monotonic() == clock.monotonic()
    stopped = clock.wall_ms()
    turned_clock.advance(1.5)
    assert clock.wall_ms() - stopped == 1500
    turned_clock.go()
    assert clock.monotonic() - before >= 3601.5
