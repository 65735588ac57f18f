"""SQLAlchemy around each job: a session of its own on a real PostgreSQL, whose query a
cancellation stops."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import psycopg2.extensions
import pytest

from geventq import CancellationToken, GeventqError, Job, Queue, postgresql
from tests.conftest import Make
from tests.support.databases import postgresql_dsn, postgresql_runs  # noqa: F401 - a fixture
from tests.support.told import Told, ended
from tests.support.waiting import eventually

sqlalchemy = pytest.importorskip("sqlalchemy")

from sqlalchemy.orm import Session, scoped_session, sessionmaker  # noqa: E402

from geventq.integrations.sqlalchemy import current_session, session  # noqa: E402

pytestmark = pytest.mark.database

Factory = typing.Any


@pytest.fixture
def factory(postgresql_dsn: str) -> collections.abc.Iterator[Factory]:  # noqa: F811
    """Sessions of a small pool; queries wait in the hub."""
    postgresql.wait_in_hub()
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        connect_args=dict(part.split("=") for part in postgresql_dsn.split()),
        pool_size=25,
    )
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table if not exists rows (job text, who int)"))
        connection.execute(sqlalchemy.text("truncate rows"))
    yield sessionmaker(engine)
    engine.dispose()
    psycopg2.extensions.set_wait_callback(None)


def insert(job: Job, who: int = 0) -> None:
    current_session().execute(
        sqlalchemy.text("insert into rows values (:job, :who)"), {"job": job.id, "who": who}
    )


def rows(factory: Factory) -> list[tuple[str, int]]:
    with factory() as other:
        found = other.execute(sqlalchemy.text("select job, who from rows order by job, who"))
        return [(row[0], row[1]) for row in found]


def checked_out(factory: Factory) -> int:
    return int(factory.kw["bind"].pool.checkedout())


def test_a_job_has_a_session_and_commits_by_itself(
    queue: Queue, make: Make, factory: Factory
) -> None:
    sessions: list[Session] = []

    def process(job: Job) -> None:
        sessions.append(current_session())
        assert current_session() is sessions[-1]
        insert(job)
        if job.name == "commits":
            current_session().commit()

    make(process, around=[session(factory)])
    kept, dropped = queue.add("commits"), queue.add("forgets")
    ended(queue, kept, "completed")
    ended(queue, dropped, "completed")
    assert rows(factory) == [(kept.id, 0)]
    assert sessions[0] is not sessions[1]
    assert checked_out(factory) == 0


def test_what_a_failing_job_wrote_is_rolled_back(
    queue: Queue, make: Make, factory: Factory
) -> None:
    def process(job: Job) -> None:
        with current_session().begin():
            insert(job)
            raise ValueError("own")

    make(process, around=[session(factory)])
    ended(queue, queue.add("n"), "failed")
    assert rows(factory) == []
    assert checked_out(factory) == 0


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancellation_stops_the_query_in_the_database(
    queue: Queue,
    make: Make,
    factory: Factory,
    postgresql_dsn: str,  # noqa: F811
    hard: bool,
) -> None:
    """2.11: by the session's own connection; the pool has good ones afterwards."""
    text = f"select pg_sleep(60), '{queue.prefix}'"

    def process(job: Job, token: CancellationToken) -> None:
        insert(job)
        current_session().execute(sqlalchemy.text(text))

    worker = make(process, around=[session(factory)])
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: postgresql_runs(postgresql_dsn, text) == 1)
    assert worker.cancel_job(job.id, "enough", hard=hard)
    ended(queue, job, "failed")  # with the driver's error, or killed: whichever is there first
    assert told.cancellation().reason == "enough"
    eventually(lambda: postgresql_runs(postgresql_dsn, text) == 0)
    assert rows(factory) == []
    assert checked_out(factory) == 0


def test_twenty_jobs_at_once_never_share_a_session(
    queue: Queue, make: Make, factory: Factory
) -> None:
    turns = gevent.event.Event()

    def process(job: Job) -> int:
        insert(job, job.data["who"])
        turns.wait(20)
        found = current_session().execute(sqlalchemy.text("select who from rows")).scalars().all()
        assert found == [job.data["who"]]  # what others have not committed is not seen
        backend = current_session().execute(sqlalchemy.text("select pg_backend_pid()")).scalar()
        current_session().rollback()
        return int(backend)

    worker = make(process, around=[session(factory)], concurrency=20)
    jobs = [queue.add("n", {"who": number}) for number in range(20)]
    eventually(lambda: len(worker.active_jobs) == 20)
    turns.set()
    backends = {ended(queue, job, "completed").return_value for job in jobs}
    assert len(backends) == 20


def test_helpers_of_the_job_find_the_same_session(
    queue: Queue, make: Make, factory: Factory
) -> None:
    def process(job: Job, token: CancellationToken) -> None:
        mine = current_session()
        assert token.run(current_session) is mine
        assert token.spawn(current_session).get() is mine

    make(process, around=[session(factory)])
    ended(queue, queue.add("n"), "completed")


def test_a_scoped_session_is_the_jobs_and_is_removed(
    queue: Queue, make: Make, factory: Factory
) -> None:
    """As older code has it; its scope is the greenlet here."""
    scoped = scoped_session(factory, scopefunc=gevent.getcurrent)

    def process(job: Job) -> None:
        assert scoped() is current_session()
        insert(job)
        scoped.commit()

    make(process, around=[session(scoped)])
    job = queue.add("n")
    ended(queue, job, "completed")
    assert rows(factory) == [(job.id, 0)]
    assert scoped.registry.registry == {}


def test_of_two_databases_each_has_its_session(queue: Queue, make: Make, factory: Factory) -> None:
    other = sessionmaker(factory.kw["bind"])

    def process(job: Job) -> None:
        assert current_session() is current_session(other)
        assert current_session(factory) is not current_session(other)

    make(process, around=[session(factory), session(other)])
    ended(queue, queue.add("n"), "completed")


def test_without_one_it_is_told_what_is_needed(queue: Queue, make: Make, factory: Factory) -> None:
    with pytest.raises(GeventqError, match=r"no session here: .* around=\[session\(factory\)\]"):
        current_session()
    make(lambda job: current_session(sessionmaker()), around=[session(factory)])
    reason = ended(queue, queue.add("n"), "failed").failed_reason or ""
    assert reason.startswith("no session here: the job's worker needs around=[session(factory)] w")


def test_a_factory_that_makes_no_session_fails_the_job(queue: Queue, make: Make) -> None:
    make(lambda job: None, around=[session(typing.cast(typing.Any, dict))])
    reason = ended(queue, queue.add("n"), "failed").failed_reason
    assert reason == "factory <class 'dict'>: a Session is needed, it returned {}"
    with pytest.raises(TypeError, match=r"^factory: a sessionmaker or a function is needed, got 5"):
        session(typing.cast(typing.Any, 5))
