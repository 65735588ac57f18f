"""The jobs of the application, and the worker that each web process runs."""

from __future__ import annotations

import json
import os
import time
import typing

import gevent
import redis

from geventq import CancellationToken, Job, Queue, Worker

URL = os.environ.get("APP_REDIS", "redis://127.0.0.1:6379/0")
PREFIX = os.environ.get("APP_PREFIX", "bull")
queue = Queue("exports", connection=URL, prefix=PREFIX)


def note(event: str, job: Job) -> None:
    """For the tests: what ran when, told to somebody who survives this process."""
    told = {"event": event, "job": job.id, "pid": os.getpid(), "at": time.time()}
    _journal().rpush(f"{PREFIX}:journal", json.dumps(told))


_made: list[tuple[int, redis.Redis]] = []


def _journal() -> typing.Any:
    if not _made or _made[0][0] != os.getpid():
        _made[:] = [(os.getpid(), redis.Redis.from_url(URL))]
    return _made[0][1]


def export(job: Job, token: CancellationToken) -> dict[str, int]:
    """Write rows, one after the other; stop where it is told to, if it is not deaf."""
    note("begins", job)
    pause = gevent.sleep if job.data.get("deaf") else token.sleep
    try:
        for row in range(job.data["rows"]):
            pause(job.data["pause"])
            job.update_progress(row + 1)
    finally:
        note("ends", job)
    return {"rows": job.data["rows"]}


def compute(job: Job) -> None:
    """Hold the process up, without ever letting go."""
    note("begins", job)
    while True:
        pass


def make_worker() -> Worker:
    return Worker(
        "exports",
        {"export": export, "compute": compute},
        connection=URL,
        prefix=PREFIX,
        concurrency=int(os.environ.get("APP_CONCURRENCY", "50")),
        lock_duration=float(os.environ.get("APP_LOCK", "30")),
        stalled_interval=float(os.environ.get("APP_LOCK", "30")),
        close_timeout=json.loads(os.environ.get("APP_CLOSE", "null")),
        kill_after=float(os.environ.get("APP_KILL_AFTER", "0")),
    )


def nothing() -> object:
    """A factory with a mistake."""
    return object()


def exits() -> object:
    """Another one: as old settings do that miss a variable."""
    raise SystemExit("APP_LICENCE is not set")
