"""2.1, 2.4 on a real worker: who gets a token, and jobs that compute."""

from __future__ import annotations

import collections.abc
import functools
import time
import typing

import gevent
import gevent.event
import gevent.queue
import pytest

from geventq import CancellationToken, Job, JobSpec, Queue, clock
from geventq.cancellation import Attempt
from tests.conftest import Make
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

Seen = list[tuple[typing.Any, ...]]


class Processors:
    """Callables of every kind; each notes what it was called with, the job left out."""

    def __init__(self) -> None:
        self.seen: Seen = []

    def one(self, job: Job) -> None:
        self.seen.append(())

    def two(self, job: Job, token: CancellationToken) -> None:
        self.seen.append((token,))

    def __call__(self, job: Job, token: CancellationToken) -> None:
        self.seen.append((token,))

    def __len__(self) -> int:  # a falsy callable is a callable
        return 0


def _with_token(seen: Seen) -> list[tuple[str, typing.Any]]:
    def default(job: Job, fmt: object = "csv") -> None:
        seen.append((fmt,))

    def variadic(*args: object) -> None:
        seen.append(args[1:])

    def job_and_rest(job: Job, *rest: object) -> None:
        seen.append(rest)

    def positional(job: Job, token: object, /, *, limit: int = 5) -> None:
        seen.append((token,))

    def three(job: Job, token: object, path: str = "/tmp") -> None:
        assert path == "/tmp"
        seen.append((token,))

    def bound_first(path: str, job: Job, token: object) -> None:
        seen.append((token,))

    methods = Processors()
    methods.seen = seen
    return [
        ("a bound method", methods.two),
        ("a callable object", methods),
        ("a second parameter with a default", default),
        ("*args", variadic),
        ("a job and *args", job_and_rest),
        ("keyword-only beside", positional),
        ("a third one with a default", three),
        ("a partial", functools.partial(bound_first, "/tmp")),
        ("a partial by keyword", functools.partial(three, path="/tmp")),
    ]


def _without_token(seen: Seen) -> list[tuple[str, typing.Any]]:
    def keyword_only(job: Job, *, token: object = None) -> None:
        assert token is None
        seen.append(())

    def keywords(job: Job, **more: object) -> None:
        assert more == {}
        seen.append(())

    def bound_second(job: Job, token: object) -> None:
        assert token == "bound"
        seen.append(())

    methods = Processors()
    methods.seen = seen
    return [
        ("a bound method", methods.one),
        ("keyword-only", keyword_only),
        ("**kwargs", keywords),
        ("a partial with the token bound", functools.partial(bound_second, token="bound")),
        ("a lambda", lambda job: seen.append(())),
    ]


WITH_TOKEN: typing.Final = [name for name, _ in _with_token([])]
WITHOUT_TOKEN: typing.Final = [name for name, _ in _without_token([])]


@pytest.mark.parametrize("kind", WITH_TOKEN)
def test_a_second_positional_parameter_gets_the_token(queue: Queue, make: Make, kind: str) -> None:
    """2.1: with or without a default, however the callable is made."""
    seen: Seen = []
    told = Told(make(dict(_with_token(seen))[kind]))
    queue.add("n")
    told.wait("completed")
    assert [tuple(type(one) for one in args) for args in seen] == [(CancellationToken,)]


@pytest.mark.parametrize("kind", WITHOUT_TOKEN)
def test_without_one_no_token_is_made(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """2.1: arity 1: no token is made, checked or stored."""
    attempts: list[Attempt] = []

    class Noted(Attempt):
        __slots__ = ()

        def __init__(self, *args: typing.Any, **options: typing.Any) -> None:
            super().__init__(*args, **options)
            attempts.append(self)

    monkeypatch.setattr("geventq.worker.run.admission.Attempt", Noted)
    seen: Seen = []
    told = Told(make(dict(_without_token(seen))[kind]))
    queue.add("n")
    told.wait("completed")
    assert seen == [()]
    assert [attempt.token for attempt in attempts] == [None]


# -- 2.4: jobs that compute ------------------------------------------------------------------------


class Computing:
    """Processors that compute a millisecond at a time, checking between, until told to end."""

    def __init__(self) -> None:
        self.steps: collections.Counter[str] = collections.Counter()
        self.over = False

    def __call__(self, job: Job, token: CancellationToken) -> None:
        while not self.over:
            token.raise_if_cancelled()
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            self.steps[job.id] += 1


@pytest.mark.slow
def test_computing_jobs_leave_the_hub_its_turns_and_share_the_time(
    queue: Queue, make: Make
) -> None:
    """2.4: forty jobs compute without end; locks are renewed, requests heard, and none gets many
    times another's share.  Time limits are those of a busy machine: one turn takes 5 ms, and a
    broken pacer makes none at all (no line: 40 * 4 ms a turn; no stamp: all to one job)."""
    computing = Computing()
    worker = make(computing, concurrency=40, lock_duration=10.0, lock_renew_time=0.3)
    told = Told(worker)
    jobs = queue.add_bulk([JobSpec("n") for _ in range(40)])
    eventually(lambda: len(computing.steps) == 40)
    computing.steps.clear()
    gaps: list[float] = []
    began = clock.monotonic()
    before = time.process_time()  # of the CPU: what the machine does for others is no gap
    while clock.monotonic() - began < 1.5:
        gevent.sleep(0.001)
        gaps.append(time.process_time() - before)
        before += gaps[-1]
    steps = sorted(computing.steps[job.id] for job in jobs)
    gaps.sort()
    assert gaps[len(gaps) // 2] < 0.05, "the hub's usual gap"
    assert steps[0] > 0
    assert steps[-1] <= 4 * steps[0] + 20, "shares"
    eventually(lambda: all(one.renewed_at > began for one in engine_of(worker).slots.held.values()))
    assert told.args("lock_lost") == []
    assert worker.cancel_job(jobs[7].id, "one of them", retry=False)
    eventually(lambda: told.of(jobs[7]) == ["cancelled", "failed"])
    computing.over = True
    eventually(lambda: queue.get_job_counts()["completed"] == 39)
