"""Fixtures for every test: a server, a key prefix, and a check for what was left behind."""

from __future__ import annotations

import collections.abc
import gc
import importlib.resources
import logging
import os
import time
import typing
import uuid

import pytest
import redis
from gevent import monkey

from geventq import Queue, Worker, clock
from geventq.patching import warn_of_what_blocks
from geventq.store.scripts import load
from geventq.worker import subscription
from tests.support.leaks import Snapshot, forget_children
from tests.support.locks import Locks
from tests.support.programs import ROOT
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.timeouts import (  # noqa: F401 - hooks, found by their names
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
)
from tests.support.waiting import TurnedClock

Make = collections.abc.Callable[..., Worker]

# Tests start programs by the hundred: what these import is compiled once, and kept apart.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".cache" / "bytecode"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs the other kind of process says so, also where `-m` leaves it in."""
    patched = monkey.is_module_patched("socket")
    if item.get_closest_marker("patched") and not patched:
        pytest.skip("needs a monkey-patched process: python -m gevent.monkey --module pytest")
    if item.get_closest_marker("unpatched") and patched:
        pytest.skip("needs a process that is not monkey-patched")


def pytest_collection_finish() -> None:
    """What is there before the first test is no test's: thousands of tests, as objects, are kept
    from the collector and from the look for what a test left, which goes through all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def told_what_blocks() -> None:
    """A test process imports all that blocks; that it is told so once is none of the tests'
    business, but for those that start processes of their own."""
    logging.disable()
    warn_of_what_blocks([lambda: time.sleep(0)])
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True, scope="session")
def messages_are_not_made_up_for() -> None:
    """Workers look at the records by themselves only where a test says so: else that would hide a
    message or a renewal that told nothing (5.2)."""
    subscription._SILENT = 600.0  # type: ignore[misc]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> collections.abc.Iterator[None]:
    """Fails a test that leaves greenlets of ours, native threads, or open files and sockets.

    7.4: after `close()` nothing of ours is left.  First of all fixtures, so that it looks last.
    """
    before = Snapshot()
    yield
    try:
        before.check()
    finally:
        forget_children()


@pytest.fixture(scope="session")
def redis_url() -> collections.abc.Iterator[str]:
    """The server that tests share: ``$GEVENTQ_REDIS_URL``, else a Valkey of our own, without
    persistence.  Never flush it; keep to your `prefix`."""
    if url := os.environ.get("GEVENTQ_REDIS_URL"):
        yield url
        return
    with Server() as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str) -> collections.abc.Iterator[redis.Redis]:
    """A plain redis-py client, decoding, to look at keys from outside; it blocks its thread."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def prefix(redis_url: str) -> collections.abc.Iterator[str]:
    """A key prefix of the test's own; its keys are removed at the end."""
    name = f"t{uuid.uuid4().hex[:12]}"
    yield name
    with redis.Redis.from_url(redis_url) as client:
        for keys in _batches(client.scan_iter(match=f"{name}:*", count=1000)):
            client.unlink(*keys)


def _batches(keys: collections.abc.Iterator[bytes]) -> collections.abc.Iterator[list[bytes]]:
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == 500:
            yield batch
            batch = []
    if batch:
        yield batch


@pytest.fixture
def queue(redis_url: str, prefix: str) -> collections.abc.Iterator[Queue]:
    """The queue ``q`` under the test's own prefix."""
    with Queue("q", redis_url, prefix) as queue:
        yield queue


@pytest.fixture
def make(redis_url: str, prefix: str) -> collections.abc.Iterator[Make]:
    """Makes and starts workers of that queue: ``make(process, **options)``; closed at the end."""
    workers: list[Worker] = []

    def make(process: typing.Any, **options: typing.Any) -> Worker:
        worker = Worker("q", process, redis_url, prefix, **options)
        workers.append(worker)
        worker.start()
        return worker

    yield make
    for worker in workers:
        worker.close(0)


@pytest.fixture
def locks(redis_client: redis.Redis, prefix: str) -> Locks:
    """The locks of that queue's jobs, from outside."""
    return Locks(redis_client, prefix)


@pytest.fixture
def own_server() -> collections.abc.Iterator[Server]:
    """A running server for this test alone: stop, kill, restart, pause it; its data survive."""
    with Server(persistent=True) as server:
        yield server


@pytest.fixture
def proxy(redis_url: str, redis_client: redis.Redis) -> collections.abc.Iterator[Proxy]:
    """A TCP proxy in front of the shared server; see `tests.support.proxy`.

    The server knows all scripts, whichever tests ran before: the answer to the request that a
    trap waits for is never NOSCRIPT.
    """
    for file in (importlib.resources.files("geventq.store") / "lua").iterdir():
        if file.name.endswith(".lua"):
            redis_client.script_load(load(file.name.removesuffix(".lua")).source)
    with Proxy(redis_url) as running:
        yield running


@pytest.fixture
def through(proxy: Proxy, prefix: str) -> collections.abc.Iterator[Make]:
    """Makes workers whose connections go through the proxy; not started."""
    workers: list[Worker] = []

    def make(process: typing.Any, **options: typing.Any) -> Worker:
        worker = Worker("q", process, proxy.url, prefix, **options)
        worker.on("error", lambda error: None)
        workers.append(worker)
        return worker

    yield make
    proxy.flow()
    for worker in workers:
        worker.close(0)


@pytest.fixture
def turned_clock() -> collections.abc.Iterator[TurnedClock]:
    """geventq's clock, in the test's hand."""
    with clock.turned(TurnedClock()) as source:
        assert isinstance(source, TurnedClock)
        yield source
