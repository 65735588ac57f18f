"""What happens to a field: each fault is a generator that does it, yields when it is over, and
tidies up when the field works again."""

from __future__ import annotations

import collections.abc
import shutil
import signal
import time
import typing

import gevent

from tests.fault.ordeal.app import LOCK
from tests.fault.ordeal.field import Field
from tests.support.waiting import eventually

__all__ = ["FAULTS", "OF_WORKERS", "Fault"]

Fault = collections.abc.Callable[[Field], collections.abc.Iterator[None]]

#: Longer than a lock lives, with its stalled check.
BEYOND_LOCKS: typing.Final = 2 * LOCK


def worker_killed(field: Field) -> collections.abc.Iterator[None]:
    field.victim.kill()
    field.replace_victim()
    yield


def worker_stopped(field: Field) -> collections.abc.Iterator[None]:
    field.steady.signal(signal.SIGSTOP)
    gevent.sleep(BEYOND_LOCKS)
    field.steady.signal(signal.SIGCONT)
    yield


def worker_closed(field: Field) -> collections.abc.Iterator[None]:
    field.victim.signal(signal.SIGTERM)
    field.expect_status_0(field.victim)
    field.replace_victim()
    yield


def server_stopped(field: Field) -> collections.abc.Iterator[None]:
    field.server.pause()
    gevent.sleep(BEYOND_LOCKS)
    field.server.resume()
    yield


def server_restarted(field: Field) -> collections.abc.Iterator[None]:
    field.server.kill()
    gevent.sleep(0.5)
    field.server.start()
    yield


def data_lost(field: Field) -> collections.abc.Iterator[None]:
    begin = time.monotonic()
    field.server.kill()
    for path in field.server.directory.glob("appendonly*"):  # a file until Redis 7
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    field.server.start()
    field.losses.append((begin, time.monotonic()))
    yield


def memory_full(field: Field) -> collections.abc.Iterator[None]:
    begin = time.monotonic()
    field.configure(maxmemory=1)
    gevent.sleep(BEYOND_LOCKS)
    field.configure(maxmemory=0)
    yield
    field.expect_no_lost_locks(begin)


def read_only(field: Field) -> collections.abc.Iterator[None]:
    with field.client() as client:
        client.replicaof("127.0.0.1", 1)  # nobody is there: it keeps its data
        gevent.sleep(LOCK)
        client.replicaof("NO", "ONE")
    yield


def failed_over(field: Field) -> collections.abc.Iterator[None]:
    """Behind one address: new connections reach the new primary, old ones stay on the old one,
    which is read-only now.  Nothing is lost: the new one has all that was written."""
    old, new = field.server, field.new_server()
    new.start()
    with old.client() as was, new.client() as will:
        will.replicaof("127.0.0.1", was.config_get("port")["port"])
        eventually(lambda: will.info("replication")["master_link_status"] == "up", 60)
        for link in field.links.values():
            link.stall()

        def has_all() -> bool:
            wrote = was.info("replication")["master_repl_offset"]
            return bool(will.info("replication")["slave_repl_offset"] == wrote)

        gevent.sleep(0.1)  # what was on its way to the server when the line stopped
        eventually(has_all, 60)
        will.replicaof("NO", "ONE")
        was.replicaof("127.0.0.1", will.config_get("port")["port"])
    field.server = new
    for link in field.links.values():
        link.retarget(new.url)
        link.flow()
    yield
    old.remove()


def links_slow(field: Field) -> collections.abc.Iterator[None]:
    for link in field.links.values():
        link.delay = 0.1
    gevent.sleep(BEYOND_LOCKS)
    for link in field.links.values():
        link.delay = 0.0
    yield


def links_held(field: Field) -> collections.abc.Iterator[None]:
    """Nothing gets through for longer than locks live; then all of it arrives, late."""
    for link in field.links.values():
        link.stall()
    gevent.sleep(BEYOND_LOCKS)
    for link in field.links.values():
        link.flow()
    yield


def links_half_open(field: Field) -> collections.abc.Iterator[None]:
    for link in field.links.values():
        link.half_open()
    yield
    for link in field.links.values():
        link.cut_half_open()


def one_link_held(field: Field) -> collections.abc.Iterator[None]:
    """One worker hears nothing, and the other takes its jobs when their locks are over: by then
    they have stopped (3.3)."""
    field.until_begun("lasts", field.steady)
    field.links["steady"].stall()
    gevent.sleep(2 * BEYOND_LOCKS)
    field.links["steady"].flow()
    yield


def one_link_half_open(field: Field) -> collections.abc.Iterator[None]:
    """As before, but what was on its way never arrives."""
    field.until_begun("lasts", field.steady)
    field.links["steady"].half_open()
    yield
    field.links["steady"].cut_half_open()


def answers_lost(field: Field) -> collections.abc.Iterator[None]:
    """Calls are carried out, and nobody hears of it (3.6)."""
    for _ in range(25):
        for link in field.links.values():
            link.swallow_next(b"EVALSHA")
        gevent.sleep(0.1)
    for link in field.links.values():
        link.remove_traps()
    yield


def links_orphaned(field: Field) -> collections.abc.Iterator[None]:
    """The server goes on serving clients that are gone: a blocked one takes the next marker."""
    for link in field.links.values():
        link.orphan()
    yield
    for link in field.links.values():
        link.cut_half_open()


def links_cut(field: Field) -> collections.abc.Iterator[None]:
    for _ in range(5):
        for link in field.links.values():
            link.cut()
        gevent.sleep(0.2)
    yield


def links_refused(field: Field) -> collections.abc.Iterator[None]:
    for link in field.links.values():
        link.refuse()
    gevent.sleep(LOCK)
    for link in field.links.values():
        link.accept()
    yield


def server_crowded(field: Field) -> collections.abc.Iterator[None]:
    with field.client() as client:
        client.config_set("maxclients", 3)
        for link in field.links.values():
            link.cut()
        gevent.sleep(LOCK)
        client.config_set("maxclients", 10_000)
    yield


def scripts_flushed(field: Field) -> collections.abc.Iterator[None]:
    with field.client() as client:
        for _ in range(100):
            client.script_flush()
            gevent.sleep(0.01)
    yield


#: What happens to worker processes; it goes together with one of the others.
OF_WORKERS: typing.Final[tuple[Fault, ...]] = (worker_killed, worker_stopped, worker_closed)
FAULTS: typing.Final[tuple[Fault, ...]] = (
    *OF_WORKERS,
    *(server_stopped, server_restarted, data_lost, memory_full, read_only, failed_over),
    *(server_crowded, scripts_flushed),
    *(links_slow, links_held, links_half_open, links_orphaned, links_cut, links_refused),
    *(one_link_held, one_link_half_open, answers_lost),
)
