"""Flask around each job: an application context of its own."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest

from geventq import Job, Queue
from tests.conftest import Make
from tests.support.told import ended
from tests.support.waiting import eventually

flask = pytest.importorskip("flask")

from geventq.integrations.flask import app_context  # noqa: E402


@pytest.fixture
def app() -> typing.Any:
    made = flask.Flask("shop")
    made.config["GREETING"] = "hello"
    return made


def test_a_job_has_the_application_and_its_configuration(
    queue: Queue, make: Make, app: typing.Any
) -> None:
    make(lambda job: flask.current_app.config["GREETING"], around=[app_context(app)])
    assert ended(queue, queue.add("n"), "completed").return_value == "hello"


def test_twenty_jobs_at_once_never_share_g(queue: Queue, make: Make, app: typing.Any) -> None:
    """2.16: nor does a job find what an earlier one left."""
    turns = gevent.event.Event()

    def process(job: Job) -> list[object]:
        before = flask.g.get("user", "nobody")
        flask.g.user = job.data["user"]
        turns.wait(20)
        gevent.sleep(0)
        return [before, flask.g.user]

    worker = make(process, around=[app_context(app)], concurrency=20)
    jobs = [queue.add("n", {"user": number}) for number in range(20)]
    eventually(lambda: len(worker.active_jobs) == 20)
    gevent.sleep(0)
    turns.set()
    jobs += [queue.add("n", {"user": number}) for number in range(20, 40)]
    for job in jobs:
        assert ended(queue, job, "completed").return_value == ["nobody", job.data["user"]]


@pytest.mark.parametrize(
    ("kind", "seen"), [("good", "NoneType"), ("bad", "ZeroDivisionError"), ("slow", "JobKilled")]
)
def test_the_context_is_left_with_what_the_job_raised(
    queue: Queue, make: Make, app: typing.Any, kind: str, seen: str
) -> None:
    torn: list[str] = []
    begun = gevent.event.Event()

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        torn.append(type(error).__name__)

    def slow(job: Job) -> None:
        begun.set()
        gevent.sleep(60)

    processors: dict[str, collections.abc.Callable[[Job], typing.Any]] = {
        "good": lambda job: None,
        "bad": lambda job: 1 / 0,
        "slow": slow,
    }
    worker = make(processors, around=[app_context(app)])
    job = queue.add(kind)
    if kind == "slow":
        assert begun.wait(20)
        assert worker.cancel_job(job.id, hard=True)
    ended(queue, job, "completed" if kind == "good" else "failed")
    assert torn == [seen]
    with pytest.raises(RuntimeError, match="application context"):
        _ = flask.current_app.name


def test_the_proxy_of_the_current_application_is_the_application(
    queue: Queue, make: Make, app: typing.Any
) -> None:
    """Where a worker is made inside a context, as in a command of Flask's."""
    with app.app_context():
        around = app_context(flask.current_app)
    make(lambda job: flask.current_app.name, around=[around])
    assert ended(queue, queue.add("n"), "completed").return_value == "shop"


@pytest.mark.parametrize("given", [None, "shop:app", object(), flask.Flask])
def test_what_is_no_application_is_refused(given: typing.Any) -> None:
    with pytest.raises(TypeError, match=r"^app: a Flask application is needed, got "):
        app_context(given)
