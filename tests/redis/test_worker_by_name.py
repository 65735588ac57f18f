"""2.1, 2.15, 2.17: processors by job name: a mapping instead of one callable."""

from __future__ import annotations

import collections.abc
import sys
import types
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import CancellationToken, GeventqError, Job, Processors, Queue, Worker
from geventq.checks import show
from tests.conftest import Make
from tests.support.told import Told, ended
from tests.support.waiting import eventually


def export(job: Job) -> str:
    return f"export {job.id}"


def resize(job: Job, token: CancellationToken) -> str:
    assert isinstance(token, CancellationToken)
    return f"resize {job.id}"


def rest(job: Job) -> str:
    return f"rest {job.id}"


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with processors in it."""
    module = types.ModuleType("shop_jobs")
    processors = Processors()
    processors("export")(export)
    module.__dict__.update(
        processors=processors, resize=resize, plain={"export": export}, text="resize", empty={}
    )
    monkeypatch.setitem(sys.modules, "shop_jobs", module)
    return module


# -- who runs what ---------------------------------------------------------------------------------


def test_each_job_is_run_by_the_processor_of_its_name(queue: Queue, make: Make) -> None:
    make({"export": export, "resize": resize, "*": rest})
    for name, runs in (
        ("export", "export"),
        ("resize", "resize"),
        ("other", "rest"),
        ("*", "rest"),
    ):
        job = queue.add(name)
        assert ended(queue, job, "completed").return_value == f"{runs} {job.id}"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("path", ["shop_jobs:processors", "shop_jobs:plain"])
def test_a_text_may_name_a_mapping(queue: Queue, make: Make, path: str) -> None:
    make(path)
    job = queue.add("export")
    assert ended(queue, job, "completed").return_value == f"export {job.id}"


@pytest.mark.usefixtures("shop")
def test_an_entry_may_be_a_text(queue: Queue, make: Make) -> None:
    make({"export": export, "resize": "shop_jobs:resize"})
    job = queue.add("resize")
    assert ended(queue, job, "completed").return_value == f"resize {job.id}"


def test_a_name_that_is_not_known_fails_by_the_jobs_retry_rules(queue: Queue, make: Make) -> None:
    """In a rolling deploy the next worker may know it."""
    told = Told(make({"export": export, "resize": resize}))
    job = queue.add("exprot", attempts=2)
    assert ended(queue, job, "failed").failed_reason == (
        "no processor for jobs named 'exprot'; known are 'export', 'resize'"
    )
    eventually(lambda: told.of(job) == ["retrying", "failed"])
    assert isinstance(told.wait("failed")[1], GeventqError)
    ended(queue, queue.add("export"), "completed")


def test_the_next_worker_may_know_it(queue: Queue, make: Make) -> None:
    old = make({"export": export})
    told = Told(old)
    old.on("retrying", lambda job, error: old.pause())  # it is not to have the second one, too
    job = queue.add("resize", attempts=2, backoff=1.0)
    told.wait("retrying")
    old.close()
    make({"export": export, "resize": resize})
    assert ended(queue, job, "completed").return_value == f"resize {job.id}"


def test_of_many_names_the_error_shows_some(queue: Queue, make: Make) -> None:
    make({f"n{number}": export for number in range(1000)})
    reason = ended(queue, queue.add("x" * 5000), "failed").failed_reason or ""
    assert "'n19', and 980 more" in reason
    assert len(reason) < 500


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", "größe: ☃".encode(), b"a\nb\x00", b"__class__", b"n" * 5000]
)
def test_whatever_name_another_program_has_stored_is_only_a_name(
    queue: Queue, make: Make, redis_url: str, prefix: str, name: bytes
) -> None:
    """Also one that is no UTF-8: the job fails, or the rest catches it; nobody else is held up."""
    text = show(name.decode(errors="replace"))
    with redis.Redis.from_url(redis_url) as client:
        queue.pause()
        jobs = [queue.add("n") for _ in range(2)]
        for job in jobs:
            client.hset(f"{prefix}:q:{job.id}", "name", name)
    queue.resume()
    worker = make({"export": export})
    for job in jobs:
        assert text in (ended(queue, job, "failed").failed_reason or "")
    worker.close()
    make({"export": export, "*": rest})
    for job in jobs:
        job.retry()
        ended(queue, job, "completed")


def test_a_name_that_stands_in_the_mapping_is_found_whatever_it_is(
    queue: Queue, make: Make
) -> None:
    make({"größe: ☃": export, "a b": resize})
    assert ended(queue, queue.add("größe: ☃"), "completed")
    assert ended(queue, queue.add("a b"), "completed")


# -- the arity is the entry's ----------------------------------------------------------------------


def test_only_an_entry_with_two_parameters_pays_for_a_token_and_can_be_asked_softly(
    queue: Queue, make: Make
) -> None:
    """2.1: what follows from the arity is the entry's."""
    begun: dict[str, Job] = {}
    go = gevent.event.Event()

    def deaf(job: Job) -> None:
        begun["deaf"] = job
        go.wait(60)

    def hears(job: Job, token: CancellationToken) -> None:
        begun["hears"] = job
        token.sleep(60)

    worker = make({"deaf": deaf, "hears": hears}, concurrency=2)
    jobs = {name: queue.add(name) for name in ("deaf", "hears")}
    eventually(lambda: len(begun) == 2)
    assert not worker.cancel_job(jobs["deaf"].id, "softly")
    assert worker.cancel_job(jobs["hears"].id, "softly")
    ended(queue, jobs["hears"], "failed")
    go.set()
    ended(queue, jobs["deaf"], "completed")


def test_a_time_limit_is_hard_for_those_that_could_not_hear_a_soft_one(
    queue: Queue, make: Make
) -> None:
    """2.15, 2.17"""
    seen: list[str] = []

    def deaf(job: Job) -> None:
        gevent.sleep(60)

    def hears(job: Job, token: CancellationToken) -> str:
        seen.append(token.wait().kind)
        return "heard"

    make({"deaf": deaf, "hears": hears}, job_timeout=0.05)
    assert ended(queue, queue.add("deaf"), "failed").failed_reason == "Job timed out after 0.05 s"
    assert ended(queue, queue.add("hears"), "completed").return_value == "heard"
    assert seen == ["timeout"]


# -- a worker's own copy, and what cannot be one ---------------------------------------------------


def test_the_mapping_is_copied_when_the_worker_is_made(queue: Queue, make: Make) -> None:
    given: dict[str, typing.Any] = {"export": export}
    make(given)
    given["export"], given["resize"] = rest, resize
    job = queue.add("export")
    assert ended(queue, job, "completed").return_value == f"export {job.id}"
    ended(queue, queue.add("resize"), "failed")


def takes_none() -> None: ...


async def asynchronous(job: Job) -> None: ...


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({}, ValueError, "process: a mapping with at least one job name is needed, got {}"),
        (Processors(), ValueError, "process: a mapping with at least one job name is needed"),
        ("shop_jobs:empty", ValueError, "process: a mapping with at least one job name is needed"),
        ({"": export}, ValueError, "process: job name: must not be empty, got ''"),
        ({5: export}, TypeError, "process: job name: text is needed, got 5"),
        ({None: export}, TypeError, "process: job name: text is needed, got None"),
        ({b"export": export}, TypeError, "process: job name: text is needed, got b'export'"),
        ({"\ud800": export}, ValueError, "process: job name: "),
        ({"a": 5}, TypeError, "process['a']: a callable is needed, got int"),
        ({"a": None}, TypeError, "process['a']: a callable is needed, got NoneType"),
        ({"a": {"b": export}}, TypeError, "process['a']: a callable is needed, got dict"),
        ({"a": Processors(b=export)}, TypeError, "process['a']: a callable is needed, got Proc"),
        ({"a": "shop_jobs:plain"}, TypeError, "process['a']: a callable is needed, got dict"),
        ({"a": "shop_jobs:text"}, TypeError, "process['a']: 'shop_jobs:text' names a text"),
        ({"a": "shop_jobs"}, ValueError, "process['a']: 'package.module:function' is needed"),
        ({"a": "shop_jobs:gone"}, ValueError, "process['a']: 'shop_jobs' has no 'gone'"),
        ({"a": "no.such:f"}, ValueError, "process['a']: there is no module 'no.such'"),
        ({"a": takes_none}, TypeError, "process['a']: at least one positional parameter"),
        ({"a": asynchronous}, TypeError, "process['a']: a plain function is needed, got a cor"),
        ([export], TypeError, "process: a callable is needed, got list"),
    ],
)
def test_what_cannot_be_one_is_refused_when_the_worker_is_made(
    given: typing.Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as refused:
        Worker("q", given)
    assert str(refused.value).startswith(message)


def test_any_mapping_will_do(queue: Queue, make: Make) -> None:
    make(types.MappingProxyType({"export": export}))
    ended(queue, queue.add("export"), "completed")


# -- Processors ------------------------------------------------------------------------------------


def test_the_decorator_makes_a_module_a_list_of_what_it_can_do(queue: Queue, make: Make) -> None:
    processors = Processors()

    @processors("export")
    @processors("report")
    def export(job: Job) -> str:
        return job.name

    @processors("*")
    def rest(job: Job, token: CancellationToken) -> str:
        return "rest"

    assert processors == {"report": export, "export": export, "*": rest}
    assert isinstance(export, collections.abc.Callable)  # type: ignore[arg-type]
    make(processors)
    for name, result in (("export", "export"), ("report", "report"), ("x", "rest")):
        assert ended(queue, queue.add(name), "completed").return_value == result


def test_a_second_processor_for_one_name_is_refused() -> None:
    processors = Processors({"resize": "shop_jobs:resize"})
    processors("export")(export)
    with pytest.raises(ValueError) as refused:
        processors("export")(resize)
    assert str(refused.value) == (
        f"job name 'export': {__name__}.export is its processor already, "
        f"{__name__}.resize cannot be it too"
    )
    with pytest.raises(ValueError, match="'resize': shop_jobs:resize is its processor already"):
        processors("resize")(resize)
    assert processors == {"resize": "shop_jobs:resize", "export": export}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("", ValueError, "job name: must not be empty"),
        (5, TypeError, "job name: text is needed, got 5"),
        (export, TypeError, r'a job name is needed, as in @processors\("export"\)'),
    ],
)
def test_what_is_no_name_is_refused_by_the_decorator(
    name: typing.Any, kind: type[Exception], message: str
) -> None:
    processors = Processors()
    with pytest.raises(kind, match=f"^{message}"):
        processors(name)
    assert not processors
