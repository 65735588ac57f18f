"""7.1, 7.4: closing drains, then cancels; what was cut short stands where it stood, and nothing of
the worker is left.  What comes in between meanwhile is in tests/fault/test_closing.py."""

from __future__ import annotations

import importlib
import pathlib
import sys
import time
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import (
    Cancellation,
    CancellationToken,
    DelayedError,
    Job,
    JobKilled,
    JobSpec,
    Queue,
    Worker,
)
from tests.conftest import Make
from tests.support.servers import Server
from tests.support.told import Told, ended, stream_of
from tests.support.waiting import at_best, eventually


class Gate:
    """A processor that says that it is inside and waits for `go`."""

    def __init__(self) -> None:
        self.inside = gevent.event.Event()
        self.go = gevent.event.Event()
        self.asked: list[Cancellation] = []

    def __call__(self, job: Job, token: CancellationToken) -> str:
        self.inside.set()
        self.go.wait()
        if (said := token.check()) is not None:
            self.asked.append(said)
        return "done"


def test_close_takes_nothing_new_and_waits_for_what_runs(queue: Queue, make: Make) -> None:
    """7.1: without a time nobody is asked to stop."""
    gate = Gate()
    worker = make(gate)
    runs, waits = queue.add_bulk([JobSpec("n"), JobSpec("n")])
    gate.inside.wait()
    closing = gevent.spawn(worker.close)
    eventually(lambda: not worker.is_running)
    gevent.sleep(0.02)
    assert not closing.ready()
    gate.go.set()
    closing.join()
    assert queue.get_job_state(runs.id) == "completed"
    assert queue.get_job_state(waits.id) == "waiting"
    assert gate.asked == []


def test_after_its_time_it_cancels_with_kind_shutdown(queue: Queue, make: Make) -> None:
    """7.1: not before; the token tells the kind and the reason."""
    seen: list[tuple[float, Cancellation]] = []

    def process(job: Job, token: CancellationToken) -> None:
        said = token.wait()
        seen.append((time.perf_counter(), said))
        token.raise_if_cancelled()

    worker = make(process)
    queue.add("n")
    eventually(lambda: worker.active_jobs)
    began = time.perf_counter()
    worker.close(0.1, reason="deploy")
    ((at, said),) = seen
    assert at - began >= 0.1
    assert (said.kind, said.reason, said.retry) == ("shutdown", "deploy", True)


def test_a_later_close_brings_the_end_nearer(queue: Queue, make: Make) -> None:
    """7.1: the second of two closes cancels at once; both return."""
    gate = Gate()
    worker = make(lambda job, token: gate.inside.set() or token.sleep(60))
    queue.add("n")
    gate.inside.wait()
    first = gevent.spawn(worker.close)
    eventually(lambda: not worker.is_running)
    assert not first.ready()
    worker.close(0)
    first.join()
    assert queue.get_job_counts()["waiting"] == 1


def test_closing_goes_on_when_its_caller_is_killed(queue: Queue, make: Make) -> None:
    """7.1: whoever asked for it may time out."""
    gate = Gate()
    worker = make(gate)
    told = Told(worker)
    job = queue.add("n")
    gate.inside.wait()
    caller = gevent.spawn(worker.close)
    eventually(lambda: not worker.is_running)
    caller.kill()
    gate.go.set()
    told.wait("closed")
    assert told.of(job) == ["completed"]


def test_a_kill_follows_after_a_second_in_soft_mode_too(queue: Queue, make: Make) -> None:
    """7.1: max(kill_after, 1 s); a processor of one parameter is killed as well, and its job
    goes back."""

    def killed_after() -> float:
        killed: list[float] = []

        def process(job: Job) -> None:
            try:
                gevent.sleep(60)
            except JobKilled:
                killed.append(time.perf_counter())
                raise

        worker = make(process)
        told = Told(worker)
        job = queue.add("n")
        eventually(lambda: worker.active_jobs)
        gevent.sleep(0)  # its first turn
        began = time.perf_counter()
        worker.close(0)
        assert told.of(job) == ["cancelled"]
        assert queue.get_job_state(job.id) == "waiting"
        assert job.remove()
        return killed[0] - began

    assert at_best(killed_after, lambda seconds: seconds < 3.0) >= 0.9


@pytest.mark.parametrize("priority", [0, 5])
def test_a_job_goes_back_to_the_front_of_where_it_came_from(
    queue: Queue, make: Make, redis_client: typing.Any, prefix: str, priority: int
) -> None:
    """7.1: wait or prioritized; the next worker takes it before those that came after it, and
    listeners get `cancelled` alone."""
    gate = Gate()
    worker = make(lambda job, token: gate.inside.set() or token.sleep(60))
    told = Told(worker)
    first = queue.add("n", priority=priority)
    gate.inside.wait()
    others = [queue.add("n", priority=priority) for _ in range(2)]
    worker.close(0)
    assert told.of(first) == ["cancelled"]
    assert told.cancellation().kind == "shutdown"
    assert queue.get_job_state(first.id) == ("prioritized" if priority else "waiting")
    events = [fields["event"] for fields in stream_of(redis_client, prefix, first)]
    assert events[-2:] == ["waiting", "cancelled"]
    assert "failed" not in events
    order: list[str] = []
    make(lambda job: order.append(job.id))
    eventually(lambda: len(order) == 3)
    assert order == [first.id, *[job.id for job in others]]


def test_many_deploys_do_not_use_up_a_jobs_starts(queue: Queue, make: Make) -> None:
    """7.1: `ats` is taken back: with `max_started_attempts=1` the job still runs in the end."""
    job = queue.add("n")
    for _ in range(3):
        gate = Gate()
        worker = make(
            lambda job, token, gate=gate: gate.inside.set() or token.sleep(60),
            max_started_attempts=1,
        )
        gate.inside.wait()
        worker.close(0)
    make(lambda job: "ran", max_started_attempts=1)
    read = ended(queue, job, "completed")
    assert (read.attempts_made, read.attempts_started) == (1, 1)


@pytest.mark.parametrize(
    ("end", "state", "told_of"),
    [
        pytest.param("done", "completed", ["completed"], id="a result counts"),
        pytest.param(DelayedError(60), "delayed", [], id="a move is made"),
        pytest.param(ValueError("cut short"), "waiting", ["cancelled"], id="an error goes back"),
        pytest.param({1}, "waiting", ["cancelled"], id="a result that is not JSON is an error"),
    ],
)
def test_what_a_processor_does_of_itself_while_closing(
    queue: Queue, make: Make, end: object, state: str, told_of: list[str]
) -> None:
    """7.1, 2.5: asked with kind `shutdown`, it ends by itself."""

    def process(job: Job, token: CancellationToken) -> object:
        token.wait()
        if isinstance(end, BaseException):
            raise end
        return end

    worker = make(process)
    told = Told(worker)
    job = queue.add("n", attempts=1)
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)
    worker.close(0)
    assert queue.get_job_state(job.id) == state
    assert told.of(job) == told_of
    read = queue.get_job(job.id)
    assert read is not None
    assert read.failed_reason is None


@pytest.mark.slow
def test_only_a_shield_makes_closing_take_longer(queue: Queue, make: Make) -> None:
    """7.1: the kill that fell due after a second is thrown as the shield is left."""
    gate = Gate()
    steps: list[str] = []

    def commits(job: Job, token: CancellationToken) -> None:
        with token.shield():
            gate.inside.set()
            gate.go.wait()
            steps.append("committed")
        steps.append("not reached")

    worker = make(commits)
    job = queue.add("n")
    gate.inside.wait()
    closing = gevent.spawn(worker.close, 0)
    closing.join(1.2)
    assert not closing.ready()
    gate.go.set()
    closing.join()
    assert steps == ["committed"]
    assert queue.get_job_state(job.id) == "waiting"


@pytest.mark.parametrize("fails", [False, True])
def test_a_with_block_closes_with_close_timeout_and_with_0_after_an_error(
    queue: Queue, redis_url: str, prefix: str, fails: bool
) -> None:
    """`with` starts on entry; an error that leaves it cancels what runs."""

    def process(job: Job, token: CancellationToken) -> None:
        token.sleep(60 if fails else 0.1)

    worker = Worker("q", process, redis_url, prefix, close_timeout=60.0)
    job = queue.add("n")
    try:
        with worker:
            eventually(lambda: worker.active_jobs)
            if fails:
                raise ValueError("leaves")
    except ValueError:
        assert fails
    assert not worker.is_running
    assert queue.get_job_state(job.id) == ("waiting" if fails else "completed")


def test_no_connection_is_left(own_server: Server) -> None:
    """7.4: by the server's own list, which a named worker with running jobs filled.  Greenlets,
    native threads and descriptors are counted around every test (tests/support/leaks.py)."""
    with redis.Redis.from_url(own_server.url) as watcher:

        def others() -> int:
            clients: typing.Any = watcher.client_list()
            return sum("client|list" not in str(client["cmd"]) for client in clients)

        watcher.ping()
        with Queue("q", own_server.url) as queue:
            worker = Worker("q", lambda job, token: token.sleep(60), own_server.url, concurrency=3)
            worker.start()
            queue.add_bulk([JobSpec("n") for _ in range(3)])
            eventually(lambda: len(worker.active_jobs) == 3)
            assert others() >= 3
            worker.close(0)
        eventually(lambda: others() == 0)


def test_a_worker_starts_anew_after_its_close(queue: Queue, make: Make) -> None:
    """With another `id`, and as able as before."""
    worker = make(lambda job: "ran")
    before = worker.id
    worker.close()
    job = queue.add("n")
    worker.start()
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert worker.id != before


def test_a_hanging_listener_is_killed_in_the_end(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """7.1: where a time was given, closing takes no longer than that and a while; the log shows
    where the listener sits.  7.4: its greenlet is gone (tests/support/leaks.py)."""
    monkeypatch.setattr("geventq.worker.closing._LISTENERS", 0.1)
    inside = gevent.event.Event()

    def hangs(job: Job, result: object) -> None:
        while True:
            try:
                inside.set()
                gevent.event.Event().wait()
            except ValueError:  # what is thrown is none
                continue

    worker = make(lambda job: "done")
    worker.on("completed", hangs)
    queue.add_bulk([JobSpec("n") for _ in range(3)])
    inside.wait()
    eventually(lambda: queue.get_job_counts()["completed"] == 3)
    with gevent.Timeout(20):
        worker.close(0)
    (record,) = [one for one in caplog.records if "hangs and is killed" in one.getMessage()]
    assert "in hangs" in record.getMessage()


def test_a_hanging_listener_is_not_killed_inside_an_import(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """2.9, 7.1: the module would be half-made for whoever imports it next."""
    monkeypatch.setattr("geventq.worker.closing._LISTENERS", 0.1)
    (tmp_path / "slow_to_import.py").write_text(
        "import gevent\nSTEPS = ['begun']\ngevent.sleep(1)\nSTEPS.append('made')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inside = gevent.event.Event()

    def imports(job: Job, result: object) -> None:
        inside.set()
        importlib.import_module("slow_to_import")
        gevent.event.Event().wait()

    worker = make(lambda job: "done")
    worker.on("completed", imports)
    queue.add("n")
    inside.wait()
    try:
        with gevent.Timeout(20):
            worker.close(0)
        assert sys.modules["slow_to_import"].STEPS == ["begun", "made"]
    finally:
        sys.modules.pop("slow_to_import", None)


def test_without_a_time_the_last_listener_is_waited_for(queue: Queue, make: Make) -> None:
    """7.1: a slow listener hears everything, `closed` included."""
    go = gevent.event.Event()
    worker = make(lambda job: "done")
    worker.on("completed", lambda job, result: go.wait())
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    closing = gevent.spawn(worker.close)
    gevent.sleep(0.05)
    assert not closing.ready()
    go.set()
    closing.join()
    heard = [event for event, _ in told.events if event != "drained"]
    assert heard[-3:] == ["completed", "closing", "closed"]


def test_a_listener_of_closed_may_start_the_worker_anew(queue: Queue, make: Make) -> None:
    """As a supervisor does; the events of its new life come once each and in order."""
    worker = make(lambda job: "done")
    again = [1]

    def restart() -> None:
        if again:
            again.pop()
            worker.start()

    worker.on("closed", restart)
    told = Told(worker)
    worker.close()
    told.wait("ready")
    jobs = queue.add_bulk([JobSpec("n", number) for number in range(20)])
    eventually(lambda: len(told.args("completed")) == 20)
    assert [job.id for job, _ in told.args("completed")] == [job.id for job in jobs]
    worker.close()
    assert not worker.is_running


def test_a_hanging_active_listener_is_killed_like_the_job_it_holds_up(
    queue: Queue, make: Make
) -> None:
    """7.1: it runs in the job's greenlet, so the ladder reaches it; the processor does not run
    (2.8) and the job goes back."""
    inside = gevent.event.Event()
    ran: list[str] = []

    def hangs(job: Job) -> None:
        inside.set()
        gevent.event.Event().wait()

    worker = make(lambda job: ran.append(job.id))
    worker.on("active", hangs)
    told = Told(worker)
    job = queue.add("n")
    inside.wait()
    with gevent.Timeout(20):
        worker.close(0)
    assert (ran, told.of(job)) == ([], ["cancelled"])
    assert queue.get_job_state(job.id) == "waiting"


@pytest.mark.parametrize("reason", [5, None, b"bytes", "caf\udce9", {"a": 1}])
def test_a_reason_is_checked_at_the_door(queue: Queue, make: Make, reason: typing.Any) -> None:
    """2.3: not where the running jobs are cancelled, in a greenlet that nobody waits for."""
    worker = make(lambda job: "done")
    with pytest.raises((TypeError, ValueError), match=r"^reason: "):
        worker.close(0, reason)
    job = queue.add("n")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
