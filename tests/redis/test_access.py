"""8, 5.2: the users of conf/users.acl can do what they are for, and nothing else."""

from __future__ import annotations

import collections.abc
import pathlib
import typing

import pytest
import redis

from geventq import (
    CancellationToken,
    GeventqError,
    Job,
    Queue,
    QueueEvents,
    Worker,
    WorkerGroup,
)
from geventq.control.bridge import publish_cancel
from tests.support.access import PASSWORD
from tests.support.servers import Server, server_binaries
from tests.support.told import Told, ended, engine_of, listens
from tests.support.waiting import eventually

SECRET = "seven horses in a row"
USERS = pathlib.Path(__file__).parents[2] / "conf" / "users.acl"


def _as(server: Server, user: str) -> str:
    return f"unix://{user}:{PASSWORD}-{user}@{server.socket_path}"


@pytest.fixture(scope="module", params=server_binaries(), ids=pathlib.Path)
def server(request: pytest.FixtureRequest) -> collections.abc.Iterator[Server]:
    """One that was started with the file as it stands."""
    server = Server(options=("--aclfile", str(USERS)), binary=request.param)
    server.url = _as(server, "admin")
    with server:
        yield server


@pytest.fixture(autouse=True)
def empty(server: Server) -> collections.abc.Iterator[redis.Redis]:
    """The administrator's client; nothing is left for the next test."""
    with server.client() as client:
        yield client
        client.flushall()


As = collections.abc.Callable[[str], Queue]


@pytest.fixture
def by(server: Server) -> collections.abc.Iterator[As]:
    """The queue as a user sees it."""
    queues: list[Queue] = []

    def by(user: str) -> Queue:
        queues.append(Queue("q", _as(server, user)))
        return queues[-1]

    yield by
    for queue in queues:
        queue.close()


@pytest.fixture
def work(server: Server) -> collections.abc.Iterator[collections.abc.Callable[..., Worker]]:
    """Starts a worker as the user `worker`."""
    workers: list[Worker] = []

    def work(process: typing.Any, **options: typing.Any) -> Worker:
        worker = Worker("q", process, _as(server, "worker"), **options)
        workers.append(worker)
        worker.start()
        return worker

    yield work
    for worker in workers:
        worker.close(0)


def patient(job: Job, token: CancellationToken) -> None:
    token.sleep(60)


@pytest.mark.slow
def test_a_stranger_gets_in_nowhere(server: Server) -> None:
    """8: the file turns off the user that needs no password."""
    with (
        redis.Redis(unix_socket_path=server.socket_path) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.get("bull:q:meta")


def test_a_producer_adds_and_waits_for_ends(
    by: As, work: collections.abc.Callable[..., Worker]
) -> None:
    """8: and a worker works, with all that a job can do to itself."""

    def process(job: Job, token: CancellationToken) -> typing.Any:
        job.update_progress({"done": 1})
        job.log("half way")
        job.update_data({"seen": True})
        if job.attempts_made == 0 and job.name == "again":
            raise ValueError("once more")
        return job.name == "child" or by("worker").add("child").id

    errors: list[BaseException] = []
    producer = by("producer")
    jobs = [
        producer.add("now"),
        producer.add("later", delay=0.05),
        producer.add("first", priority=2),
        producer.add("again", attempts=2, backoff=0.05),
        producer.add("gone", remove_on_complete=True),
    ]
    worker = work(process, stalled_interval=0.1, lock_duration=6.0, lock_renew_time=0.1)
    worker.on("error", errors.append)
    for job in jobs:
        assert job.wait_until_finished(timeout=30)
    assert producer.get_job_state(jobs[0].id) == "completed"
    assert errors == []


def test_one_who_cancels_reaches_every_state(
    by: As, work: collections.abc.Callable[..., Worker]
) -> None:
    """8, 5.1: what waits, what runs, by record and by message; with its receipt."""
    producer, canceller = by("producer"), by("canceller")
    delayed, prioritized = producer.add("n", delay=60), producer.add("n", priority=3)
    assert all(canceller.cancel_jobs([delayed.id, prioritized.id], "no"))
    worker = work(patient)
    listens(worker)
    for options in ({}, {"hard": True}, {"force": True}):
        job = producer.add("n")
        eventually(lambda: worker.active_jobs)
        assert canceller.cancel_job(job.id, "no", wait=30, **options).status == "stopped"
        eventually(lambda: not worker.active_jobs)
    ended(canceller, job, "failed")


def test_one_who_cancels_can_send_bare_messages(
    server: Server, by: As, work: collections.abc.Callable[..., Worker]
) -> None:
    """8, 5.8: `publish_cancel` needs the right to publish, which neither producers nor
    dashboards have."""
    job = by("producer").add("n")
    worker = work(patient)
    eventually(lambda: worker.active_jobs and engine_of(worker).subscription.is_up)
    for user in ("producer", "dashboard"):
        with pytest.raises(GeventqError, match="NOPERM"):
            publish_cancel(_as(server, user), "q", job.id)
    assert publish_cancel(_as(server, "canceller"), "q", job.id, "no") == 1
    ended(by("dashboard"), job, "failed")


def test_one_who_cancels_asks_the_group(
    server: Server, by: As, work: collections.abc.Callable[..., Worker]
) -> None:
    """8, 5.7: a worker joins it, and answers; with the secret, where the workers have one."""
    worker = work(patient, cancel_secret=SECRET)
    with WorkerGroup("q", _as(server, "canceller"), cancel_secret=SECRET) as group:
        eventually(group.members)
        assert group.multi_call("ping").replies == {worker.id: "pong"}
        by("producer").add("n")
        eventually(lambda: worker.active_jobs)
        assert group.cancel_all_jobs("no") == 1
    job = by("producer").add("n")
    eventually(lambda: worker.active_jobs)
    with pytest.raises(GeventqError, match="only with the cancel_secret"):
        by("canceller").cancel_job(job.id, force=True)


def test_a_dashboard_sees_all_and_changes_nothing(server: Server, by: As) -> None:
    """8: it may read."""
    job = by("producer").add("n", {"rows": 1}, delay=60)
    dashboard = by("dashboard")
    assert dashboard.get_job_counts()["delayed"] == 1
    assert [one.id for one in dashboard.get_delayed()] == [job.id]
    assert dashboard.get_job_state(job.id) == "delayed"
    assert not dashboard.is_paused()
    dashboard.get_workers()
    with WorkerGroup("q", _as(server, "dashboard")) as group:
        assert group.members() == []  # what `geventq workers` shows
    with QueueEvents("q", _as(server, "dashboard"), last_event_id="0-0") as events:
        assert next(iter(events)).name in ("added", "delayed")


@pytest.mark.parametrize(
    ("user", "forbidden"),
    [
        ("producer", lambda queue, job: queue.cancel_job(job.id)),
        ("producer", lambda queue, job: job.remove()),
        ("producer", lambda queue, job: job.promote()),
        ("canceller", lambda queue, job: queue.retry_jobs()),
        ("dashboard", lambda queue, job: queue.add("n")),
        ("dashboard", lambda queue, job: queue.cancel_job(job.id)),
        ("dashboard", lambda queue, job: job.promote()),
        ("dashboard", lambda queue, job: queue.pause()),
        ("worker", lambda queue, job: queue.cancel_job(job.id)),
    ],
)
def test_what_a_user_is_not_for_is_refused_and_changes_nothing(
    empty: redis.Redis, by: As, user: str, forbidden: typing.Callable[[Queue, Job], object]
) -> None:
    """8: with an error that says so."""
    job = by("producer").add("n", delay=60)
    before = {key: empty.dump(key) for key in empty.scan_iter()}
    queue = by(user)
    read = queue.get_job(job.id)
    assert read is not None
    with pytest.raises(GeventqError, match=r"NOPERM|permission|can't run"):
        forbidden(queue, read)
    assert {key: empty.dump(key) for key in empty.scan_iter()} == before


@pytest.mark.parametrize("user", ["producer", "worker", "dashboard"])
def test_who_may_not_cancel_leaves_a_running_job_alone(
    empty: redis.Redis, by: As, user: str
) -> None:
    """8: a request to it needs fewer commands, and one of them is the canceller's all the same."""
    job = by("producer").add("n")
    assert empty.rename("bull:q:wait", "bull:q:active")
    empty.set(f"bull:q:{job.id}:lock", "another's")
    before = {key: empty.dump(key) for key in empty.scan_iter()}
    with pytest.raises(GeventqError, match=r"NOPERM|permission|can't run"):
        by(user).cancel_job(job.id)
    assert {key: empty.dump(key) for key in empty.scan_iter()} == before


@pytest.mark.parametrize("user", ["producer", "worker", "canceller", "dashboard"])
def test_no_user_sees_other_keys(server: Server, user: str) -> None:
    """8: only the prefix; nor does it rule the server."""
    with redis.Redis.from_url(_as(server, user)) as client:
        for command in (
            ("HGET", "app:users", "1"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("channels", ["resetchannels", "resetchannels &bullmq:cancel"])
def test_a_worker_that_may_not_hear_stops_its_jobs_all_the_same(
    empty: redis.Redis,
    by: As,
    work: collections.abc.Callable[..., Worker],
    channels: str,
) -> None:
    """5.2: by the records, which it looks at each second; told once."""
    empty.execute_command("ACL", "SETUSER", "worker", *channels.split())
    try:
        worker = work(patient)
        told = Told(worker)
        job = by("producer").add("n")
        eventually(lambda: worker.active_jobs)
        assert by("canceller").cancel_job(job.id, "no", wait=30).status == "stopped"
        assert "No permissions" in str(told.wait("error")[0]) or "NOPERM" in str(told.args("error"))
        assert len(told.args("error")) == 1
    finally:
        empty.execute_command("ACL", "SETUSER", "worker", "&bullmq:cancel", "&bullmq:cancel:*")


def test_one_who_may_not_publish_cancels_all_the_same(
    empty: redis.Redis, by: As, work: collections.abc.Callable[..., Worker]
) -> None:
    """5.1: a refused message undoes nothing; the worker reads the record at its next renewal."""
    empty.execute_command("ACL", "SETUSER", "canceller", "resetchannels")
    try:
        worker = work(patient, lock_duration=3.0, lock_renew_time=0.3)
        job = by("producer").add("n")
        eventually(lambda: worker.active_jobs)
        assert by("canceller").cancel_job(job.id, "no", wait=30).status == "stopped"
    finally:
        empty.execute_command("ACL", "SETUSER", "canceller", "&bullmq:cancel", "&bullmq:cancel:*")
