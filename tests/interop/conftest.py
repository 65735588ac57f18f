"""The two sides: geventq in this process, npm bullmq in children."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import typing

import pytest
import redis

from geventq import Job, Queue, Worker
from tests.interop.child import Child, install_node_modules, node

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session", autouse=True)
def npm() -> None:
    """npm bullmq, installed once; without Node the tests are skipped, in CI they fail."""
    if missing := install_node_modules():
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


class Sides:
    """One queue, seen from both sides.  What is made here is closed at the end."""

    name = "q"

    def __init__(self, url: str, prefix: str, stack: contextlib.ExitStack) -> None:
        self.url = url
        self.prefix = prefix
        self._stack = stack

    # -- geventq ---------------------------------------------------------------------------

    def queue(self, **options: typing.Any) -> Queue:
        queue = Queue(self.name, connection=self.url, prefix=self.prefix, **options)
        self._stack.callback(queue.close)
        return queue

    def worker(
        self, process: collections.abc.Callable[..., typing.Any], **options: typing.Any
    ) -> Worker:
        """A geventq worker, started."""
        worker = Worker(self.name, process, connection=self.url, prefix=self.prefix, **options)
        worker.start()
        self._stack.callback(worker.close, timeout=0)
        return worker

    def client(self) -> redis.Redis:
        """A plain client; close it."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    # -- npm -------------------------------------------------------------------------------

    def node(self, script: str, **options: typing.Any) -> Child:
        """A Node script that is ready: queue, worker, events or wait."""
        child = self._stack.enter_context(
            node(script, url=self.url, prefix=self.prefix, queue=self.name, **options)
        )
        child.hear_ready()
        return child

    def node_worker(
        self, *, pause_ms: int = 0, quiet: bool = False, **options: typing.Any
    ) -> Child:
        return self.node("worker", worker=options, pauseMs=pause_ms, quiet=quiet)


@pytest.fixture
def sides(redis_url: str, prefix: str) -> collections.abc.Iterator[Sides]:
    with contextlib.ExitStack() as stack:
        yield Sides(redis_url, prefix, stack)


class NodeQueue:
    """A Node Queue, called by method name: `queue("getJobCounts")`."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def __call__(self, method: str, *args: typing.Any) -> typing.Any:
        return self._answer({"call": method, "args": list(args)})

    def of_job(self, job_id: str, method: str, *args: typing.Any) -> typing.Any:
        return self._answer({"job": job_id, "call": method, "args": list(args)})

    def _answer(self, order: dict[str, typing.Any]) -> typing.Any:
        answer = self._child.ask(order)
        assert "error" not in answer, f"{order}: {answer['error']}"
        return answer["result"]

    def add(
        self, name: str, data: object = None, /, **options: typing.Any
    ) -> dict[str, typing.Any]:
        return typing.cast("dict[str, typing.Any]", self("add", name, data, options))


@pytest.fixture
def node_queue(sides: Sides) -> NodeQueue:
    return NodeQueue(sides.node("queue"))


class Ran:
    """A processor that remembers its runs, and returns the job's data."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __call__(self, job: Job) -> typing.Any:
        self.jobs.append(job)
        return job.data

    @property
    def ids(self) -> list[str]:
        return [job.id for job in self.jobs]


@pytest.fixture
def echo() -> Ran:
    return Ran()
