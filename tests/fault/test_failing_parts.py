"""A part of the worker meets a failure that is no outage: it goes on."""

from __future__ import annotations

import typing

import gevent
import gevent.event
import pytest

from geventq import Queue
from geventq.store.client import Client
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", ["renew", "stalled", "settle"])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_part_of_the_worker_outlives_a_failure_of_whatever_kind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, script: str, error: Exception
) -> None:
    """3.1: the resolver cannot start a thread, memory is short: a renewer that dies of it would
    leave every lock to its fate, silently."""
    script_of = Client.script
    failed: list[str] = []

    def fails(self: Client, which: typing.Any, *args: typing.Any, **options: typing.Any) -> object:
        if which is load(script) and len(failed) < 2:
            failed.append(script)
            raise error
        return script_of(self, which, *args, **options)

    monkeypatch.setattr(Client, "script", fails)
    go = gevent.event.Event()
    worker = make(
        lambda job: go.wait(), lock_duration=6.0, lock_renew_time=0.2, stalled_interval=0.05
    )
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: len(failed) == 2)
    eventually(lambda: worker.active_jobs)
    engine = engine_of(worker)
    gevent.sleep(0.3)
    for part in (engine.lanes, engine.renewer, *engine.stalled_checker):
        assert all(not greenlet.dead for greenlet in part.disown())
    go.set()
    eventually(lambda: told.of(job) == ["completed"])
    assert told.args("error")


def test_the_idle_wait_outlives_a_failure_of_whatever_kind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose idle wait has died would sleep for ever."""
    open_connection = Client.open_connection
    failed: list[int] = []

    def fails(self: Client, *, name: str | None = None, limit: float | None = None) -> object:
        if name is not None and not failed:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        return open_connection(self, name=name, limit=limit)

    monkeypatch.setattr(Client, "open_connection", fails)
    worker = make(lambda job: "done", drain_delay=60.0)
    worker.on("error", lambda error: None)
    eventually(lambda: failed)
    eventually(lambda: len(queue.get_workers()) == 1)
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
