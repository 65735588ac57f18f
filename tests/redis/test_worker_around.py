"""2.17: what is entered around each processor: the order, whom a kill reaches and whom it does
not, and what becomes of the job when entering or leaving fails."""

from __future__ import annotations

import collections.abc
import contextlib
import contextvars
import logging
import sys
import types
import typing

import gevent
import gevent.event
import pytest
from greenlet import GreenletExit

from geventq import CancellationToken, DelayedError, Job, JobKilled, Queue, Worker
from geventq.cancellation import attempt as attempts
from tests.conftest import Make
from tests.support.locks import Locks
from tests.support.told import Told, ended, engine_of
from tests.support.waiting import eventually, never

Step = collections.abc.Callable[[], object]
LONG: typing.Final = 60.0


class Around:
    """Notes when it is entered and left, and with what; does there what it was made for."""

    def __init__(
        self,
        seen: list[str],
        name: str,
        on_entry: Step = lambda: None,
        on_exit: Step = lambda: None,
    ) -> None:
        self._seen, self._name = seen, name
        self._on_entry, self._on_exit = on_entry, on_exit

    def __call__(self, job: Job) -> Around:
        return self

    def __enter__(self) -> None:
        self._seen.append(f"{self._name} begins")
        self._on_entry()
        self._seen.append(f"{self._name} is entered")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> object:
        assert sys.exc_info() == (kind, error, trace)
        said = "" if error is None else f" by {type(error).__name__}"
        self._seen.append(f"{self._name} is left{said}")
        value = self._on_exit()
        self._seen.append(f"{self._name} ends")
        return value


class Gate:
    """A step that a test waits for, and lets go on."""

    def __init__(self) -> None:
        self.reached = gevent.event.Event()
        self.opened = gevent.event.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.opened.wait(LONG)

    def wait(self) -> None:
        assert self.reached.wait(20)


def raising(error: BaseException) -> Step:
    def step() -> object:
        raise error

    return step


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def process(seen: list[str]) -> collections.abc.Callable[[Job], str]:
    def process(job: Job) -> str:
        seen.append("runs")
        return "done"

    return process


@pytest.fixture
def hangs(seen: list[str]) -> collections.abc.Callable[[Job], None]:
    def hangs(job: Job) -> None:
        seen.append("runs")
        gevent.sleep(LONG)

    return hangs


# -- order, and who sees what ----------------------------------------------------------------------


def test_the_first_one_is_outermost(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17"""
    make(process, around=[Around(seen, "a"), Around(seen, "b")])
    assert ended(queue, queue.add("n"), "completed").return_value == "done"
    assert seen == [
        *("a begins", "a is entered", "b begins", "b is entered", "runs"),
        *("b is left", "b ends", "a is left", "a ends"),
    ]


def test_all_run_in_the_jobs_greenlet_and_context(queue: Queue, make: Make) -> None:
    """2.17, 2.16: and what they set there is the next job's business no more."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="empty")
    seen: list[tuple[str, object]] = []

    @contextlib.contextmanager
    def around(job: Job) -> collections.abc.Iterator[None]:
        seen.append((variable.get(), gevent.getcurrent()))
        variable.set(job.id)
        yield
        seen.append((variable.get(), gevent.getcurrent()))

    def process(job: Job) -> None:
        seen.append((variable.get(), gevent.getcurrent()))

    make(process, around=[around])
    for _ in range(2):
        job = queue.add("n")
        ended(queue, job, "completed")
        assert [value for value, _ in seen] == ["empty", job.id, job.id]
        assert len({id(greenlet) for _, greenlet in seen}) == 1
        seen.clear()


@pytest.mark.parametrize(
    "error", [ValueError("own"), DelayedError(60), GreenletExit(), SystemExit(1), KeyError("x")]
)
def test_they_see_what_the_processor_raises(
    queue: Queue, make: Make, seen: list[str], error: BaseException
) -> None:
    """2.17: and what becomes of the job is what becomes of it without them."""
    make(lambda job: raising(error)(), around=[Around(seen, "a"), Around(seen, "b")])
    job = queue.add("n")
    if isinstance(error, DelayedError):
        ended(queue, job, "delayed")
    else:
        assert ended(queue, job, "failed").failed_reason == (str(error) or "GreenletExit")
    kind = type(error).__name__
    assert seen[-4:] == [f"b is left by {kind}", "b ends", f"a is left by {kind}", "a ends"]


def test_a_true_exit_swallows_nothing(queue: Queue, make: Make, seen: list[str]) -> None:
    """2.17: neither an error nor, below, a cancellation; whoever stands outside sees it too."""
    inner = Around(seen, "b", on_exit=lambda: True)
    make(lambda job: 1 / 0, around=[Around(seen, "a"), inner, contextmanager_that_swallows])
    assert ended(queue, queue.add("n"), "failed").failed_reason == "division by zero"
    assert seen[-4:] == [
        *("b is left by ZeroDivisionError", "b ends"),
        *("a is left by ZeroDivisionError", "a ends"),
    ]


@contextlib.contextmanager
def contextmanager_that_swallows(job: Job) -> collections.abc.Iterator[None]:
    with contextlib.suppress(BaseException):
        yield


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancellation_is_seen_and_cannot_be_swallowed(
    queue: Queue, make: Make, seen: list[str], hard: bool
) -> None:
    """2.17"""
    gate = Gate()

    def process(job: Job, token: CancellationToken) -> None:
        gate.reached.set()
        if hard:
            gevent.sleep(LONG)
        token.sleep(LONG)

    worker = make(
        process, around=[Around(seen, "a"), contextmanager_that_swallows, Around(seen, "b")]
    )
    told = Told(worker)
    job = queue.add("n")
    gate.wait()
    assert worker.cancel_job(job.id, "enough", hard=hard)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert told.cancellation().hard == hard
    kind = "JobKilled" if hard else "JobCancelled"
    assert seen[-4:] == [f"b is left by {kind}", "b ends", f"a is left by {kind}", "a ends"]


def test_the_frames_of_what_was_raised_are_there_to_be_looked_at(queue: Queue, make: Make) -> None:
    """2.13, 2.17: they are released when all was left, in the job's greenlet."""
    seen: list[object] = []

    class Held:
        def __del__(self) -> None:
            seen.append(("released", gevent.getcurrent()))

    @contextlib.contextmanager
    def around(job: Job) -> collections.abc.Iterator[None]:
        try:
            yield
        except ValueError as error:
            assert error.__traceback__ is not None
            frames = [error.__traceback__]
            while frames[-1].tb_next is not None:
                frames.append(frames[-1].tb_next)
            seen.append(sorted(frames[-1].tb_frame.f_locals))
            seen.append(gevent.getcurrent())
            raise

    def process(job: Job) -> None:
        held = Held()  # noqa: F841
        raise ValueError("own")

    make(process, around=[around])
    ended(queue, queue.add("n"), "failed")
    names, greenlet, released = seen
    assert names == ["Held", "held", "job"]
    assert released == ("released", greenlet)


# -- entering belongs to the attempt ---------------------------------------------------------------


@pytest.mark.parametrize(("place", "left"), [(0, []), (1, ["0 is left by JobKilled", "0 ends"])])
def test_a_kill_reaches_one_that_is_being_entered(
    queue: Queue, make: Make, seen: list[str], process: typing.Any, place: int, left: list[str]
) -> None:
    """2.17: what was entered is left again; the others, and the processor, never begin."""
    gate = Gate()
    steps: list[Step] = [lambda: None] * 3
    steps[place] = gate
    worker = make(
        process, around=[Around(seen, str(number), step) for number, step in enumerate(steps)]
    )
    job = queue.add("n")
    gate.wait()
    assert worker.cancel_job(job.id, "enough", hard=True)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert seen[seen.index(f"{place} begins") + 1 :] == left


def test_the_time_limit_reaches_one_that_is_being_entered(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17, 2.15: it counts from the first one's first step."""
    make(process, around=[Around(seen, "a"), Around(seen, "b", Gate())])
    job = queue.add("n", timeout=0.05)
    assert ended(queue, job, "failed").failed_reason == "Job timed out after 0.05 s"
    assert seen == ["a begins", "a is entered", "b begins", "a is left by JobKilled", "a ends"]


def test_one_that_fails_on_entry_fails_the_job(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17: by the job's retry rules."""
    told = Told(
        make(
            process, around=[Around(seen, "a"), Around(seen, "b", raising(OSError("no database")))]
        )
    )
    job = queue.add("n", attempts=2)
    assert ended(queue, job, "failed").failed_reason == "no database"
    eventually(lambda: told.of(job) == ["retrying", "failed"])
    assert "runs" not in seen
    assert seen[:5] == ["a begins", "a is entered", "b begins", "a is left by OSError", "a ends"]


def test_an_import_that_fails_on_entry_fails_the_job_and_no_other(
    queue: Queue, make: Make, seen: list[str]
) -> None:
    def around(job: Job) -> typing.ContextManager[object]:
        if job.name == "bad":
            import no_such_module  # type: ignore[import-not-found]  # noqa: F401
        return contextlib.nullcontext()

    make(lambda job: None, around=[around])
    bad, good = queue.add("bad"), queue.add("good")
    assert ended(queue, bad, "failed").failed_reason == "No module named 'no_such_module'"
    ended(queue, good, "completed")


def test_a_job_that_is_cancelled_before_its_first_turn_enters_none(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17, 2.8"""
    worker = make(process, around=[Around(seen, "a")], cancel_mode="hard")
    worker.on("active", lambda job: worker.cancel_job(job.id, "not at all"))
    job = queue.add("n")
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: not at all"
    assert seen == []


# -- leaving is shielded ---------------------------------------------------------------------------


def test_a_request_after_the_processors_return_is_false(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17: soft or hard, whoever asks, and nothing is thrown."""
    gate = Gate()
    worker = make(process, around=[Around(seen, "a"), Around(seen, "b", on_exit=gate)])
    job = queue.add("n", timeout=0.05)
    gate.wait()
    assert not worker.cancel_job(job.id, "late", hard=True)
    assert not worker.cancel_job(job.id, "late", hard=False)
    assert worker.cancel_all_jobs("late", hard=True) == 0
    never(lambda: "b ends" in seen, 0.1)  # the time limit is over as well
    gate.opened.set()
    assert ended(queue, job, "completed").return_value == "done"
    assert seen[-4:] == ["b is left", "b ends", "a is left", "a ends"]


def test_a_request_from_afar_meanwhile_is_too_late_as_well(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17, 2.5: the result counts."""
    gate = Gate()
    told = Told(make(process, around=[Around(seen, "a", on_exit=gate)], cancel_mode="hard"))
    job = queue.add("n")
    gate.wait()
    assert queue.cancel_job(job.id, "late").status == "requested"
    gate.opened.set()
    assert ended(queue, job, "completed").cancellation is None
    eventually(lambda: told.of(job) == ["completed"])


def test_a_kill_whose_grace_was_not_over_is_not_thrown_into_the_leaving(
    queue: Queue, make: Make, seen: list[str]
) -> None:
    """2.17: the request took effect, and the result came first."""
    begun, gate = Gate(), Gate()

    def process(job: Job, token: CancellationToken) -> str:
        begun()
        return "done"

    worker = make(process, around=[Around(seen, "a", on_exit=gate)])
    job = queue.add("n")
    begun.wait()
    assert worker.cancel_job(job.id, "soon", kill_after=0.05)
    begun.opened.set()
    gate.wait()
    never(lambda: "a ends" in seen, 0.15)
    gate.opened.set()
    assert ended(queue, job, "completed").return_value == "done"


def test_a_killed_job_is_not_thrown_at_again_while_it_leaves(
    queue: Queue, make: Make, seen: list[str], hangs: typing.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.17, 2.10: the rethrows' clock stands still."""
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.05)
    gate = Gate()
    worker = make(hangs, around=[Around(seen, "a", on_exit=gate)])
    told = Told(worker)
    job = queue.add("n")
    eventually(lambda: "runs" in seen)
    assert worker.cancel_job(job.id, "enough", hard=True)
    gate.wait()
    never(lambda: "a ends" in seen, 0.3)
    gate.opened.set()
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert seen[-2:] == ["a is left by JobKilled", "a ends"]
    eventually(lambda: told.of(job) == ["cancelled", "failed"])


def test_calls_of_the_token_go_to_their_end_in_the_leaving(queue: Queue, make: Make) -> None:
    """2.17, 2.9: they are inside a shield."""
    seen: list[object] = []
    begun = Gate()

    @contextlib.contextmanager
    def around(job: Job, token: CancellationToken) -> collections.abc.Iterator[None]:
        try:
            yield
        finally:
            token.sleep(0.01)
            seen.append(token.run(lambda: (gevent.sleep(0.01), "to its end")[1]))
            seen.append(token.reason)

    def process(job: Job, token: CancellationToken) -> None:
        begun.reached.set()
        token.sleep(LONG)

    worker = make(process, around=[around])
    job = queue.add("n")
    begun.wait()
    assert worker.cancel_job(job.id, "enough")
    ended(queue, job, "failed")
    assert seen == ["to its end", "enough"]


@pytest.mark.parametrize("fails", [False, True])
def test_helpers_of_the_job_have_ended_when_it_is_left(
    queue: Queue, make: Make, seen: list[str], fails: bool
) -> None:
    """2.17, 2.13: they may use what was entered.  What a leaving spawns ends as well."""
    spawned: list[gevent.Greenlet[..., object]] = []

    def process(job: Job, token: CancellationToken) -> None:
        spawned.append(token.spawn(gevent.sleep, LONG))
        if fails:
            raise ValueError("own")

    @contextlib.contextmanager
    def around(job: Job, token: CancellationToken) -> collections.abc.Iterator[None]:
        try:
            yield
        finally:
            seen.append("alive" if not spawned[0].ready() else "ended")
            spawned.append(token.spawn(gevent.sleep, LONG))

    make(process, around=[around])
    ended(queue, queue.add("n"), "failed" if fails else "completed")
    assert seen == ["ended"]
    assert all(helper.ready() for helper in spawned)


def test_the_lock_is_renewed_while_it_is_left(
    queue: Queue, make: Make, seen: list[str], process: typing.Any, locks: Locks
) -> None:
    """2.17, 3.1"""
    gate = Gate()
    make(process, around=[Around(seen, "a", on_exit=gate)], lock_duration=9, lock_renew_time=0.1)
    job = queue.add("n")
    gate.wait()
    for _ in range(3):
        locks.shorten(job.id, 6.0)
        eventually(lambda: locks.left(job.id) > 8.0)
    gate.opened.set()
    ended(queue, job, "completed")


def test_a_lock_that_is_lost_meanwhile_is_told_and_nothing_is_written(
    queue: Queue, make: Make, seen: list[str], process: typing.Any, locks: Locks
) -> None:
    """2.17, 3.4: and nothing is thrown into the leaving."""
    gate = Gate()
    worker = make(
        process,
        around=[Around(seen, "a", on_exit=gate)],
        lock_duration=9,
        lock_renew_time=0.1,
        cancel_mode="hard",
    )
    told = Told(worker)
    job = queue.add("n")
    gate.wait()
    locks.give_away(job.id)
    told.wait("lock_lost")
    never(lambda: "a ends" in seen, 0.1)
    gate.opened.set()
    eventually(lambda: "a ends" in seen)
    worker.close()
    assert told.of(job) == ["lock_lost"]
    assert queue.get_job_state(job.id) == "active"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaving has a twentieth of a second, and a throw is repeated as often."""
    monkeypatch.setattr(attempts, "LEAVING", 0.05)
    monkeypatch.setattr("geventq.cancellation.ladder.INTERVAL", 0.05)


def test_there_are_thirty_seconds_to_leave() -> None:
    assert attempts.LEAVING == 30.0


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("arity", [1, 2])
def test_a_leaving_that_hangs_is_killed_when_its_time_is_up(
    queue: Queue,
    make: Make,
    seen: list[str],
    process: typing.Any,
    arity: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2.17: nothing could end the job else.  It has timed out; the others are left."""

    def with_token(job: Job, token: CancellationToken) -> str:
        return str(process(job))

    told = Told(
        make(
            process if arity == 1 else with_token,
            around=[Around(seen, "a"), Around(seen, "b", on_exit=Gate())],
        )
    )
    job = queue.add("n")
    assert ended(queue, job, "failed").failed_reason == "Job timed out after 0.05 s"
    assert seen[-3:] == ["b is left", "a is left by JobKilled", "a ends"]
    assert told.cancellation().kind == "timeout"
    assert "a shield outlasted its cap" in caplog.text


@pytest.mark.usefixtures("short")
def test_a_killed_job_whose_leaving_hangs_keeps_its_reason(
    queue: Queue, make: Make, seen: list[str], hangs: typing.Any
) -> None:
    """2.17"""
    worker = make(hangs, around=[Around(seen, "a"), Around(seen, "b", on_exit=Gate())])
    job = queue.add("n")
    eventually(lambda: "runs" in seen)
    assert worker.cancel_job(job.id, "enough", hard=True)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert seen[-3:] == ["b is left by JobKilled", "a is left by JobKilled", "a ends"]


@pytest.mark.usefixtures("short")
def test_a_leaving_that_swallows_its_kills_is_stuck(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17, 2.10: its slot is another's."""
    go = gevent.event.Event()

    def immortal() -> None:
        while not go.is_set():
            with contextlib.suppress(JobKilled):
                go.wait(LONG)

    worker = make(process, around=[Around(seen, "a", on_exit=lambda: go.is_set() or immortal())])
    told = Told(worker)
    job = queue.add("n")
    told.wait("stuck")
    assert told.of(job) == ["stuck"]
    go.set()
    eventually(lambda: "a ends" in seen)
    ended(queue, queue.add("n"), "completed")


def test_a_close_waits_for_those_that_leave(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17, 7.1: the job has its result, and does not go back."""
    gate = Gate()
    worker = make(process, around=[Around(seen, "a", on_exit=gate)])
    job = queue.add("n")
    gate.wait()
    closing = gevent.spawn(worker.close, 0)
    eventually(lambda: not worker.is_running)
    never(closing.ready, 0.1)
    gate.opened.set()
    closing.get(timeout=20)
    assert queue.get_job_state(job.id) == "completed"


def test_a_close_inside_a_leaving_does_not_wait_for_itself(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    workers: list[Worker] = []
    around = Around(seen, "a", on_exit=lambda: workers[0].close())
    workers.append(make(process, around=[around]))
    job = queue.add("n")
    ended(queue, job, "completed")
    eventually(lambda: not workers[0].is_running)


# -- one that raises on leaving --------------------------------------------------------------------


def test_one_that_raises_on_leaving_fails_a_job_that_had_succeeded(
    queue: Queue, make: Make, seen: list[str], process: typing.Any
) -> None:
    """2.17: whoever stands outside sees the error."""
    inner = Around(seen, "b", on_exit=raising(OSError("the disk is full")))
    make(process, around=[Around(seen, "a"), inner])
    assert ended(queue, queue.add("n"), "failed").failed_reason == "the disk is full"
    assert seen[-3:] == ["b is left", "a is left by OSError", "a ends"]


@pytest.mark.parametrize(
    "error", [GreenletExit("out"), SystemExit("out"), gevent.Timeout(1, "out")]
)
def test_so_it_does_whatever_it_raises(
    queue: Queue, make: Make, seen: list[str], process: typing.Any, error: BaseException
) -> None:
    make(process, around=[Around(seen, "a", on_exit=raising(error))])
    assert ended(queue, queue.add("n"), "failed").failed_reason == str(error)


def test_after_a_failure_it_is_only_logged(
    queue: Queue, make: Make, seen: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """2.17: the first error counts."""
    arounds = [
        Around(seen, "a"),
        Around(seen, "b", on_exit=raising(KeyError("later"))),
        Around(seen, "c", on_exit=raising(OSError("first"))),
    ]
    make(lambda job: "done", around=arounds)
    job = queue.add("n")
    assert ended(queue, job, "failed").failed_reason == "first"
    assert seen[-4:] == ["c is left", "b is left by OSError", "a is left by OSError", "a ends"]
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "tests.redis.test_worker_around.Around" in record.getMessage()
    assert job.id in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


def test_after_a_kill_it_is_only_logged(
    queue: Queue,
    make: Make,
    seen: list[str],
    hangs: typing.Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2.17"""
    worker = make(hangs, around=[Around(seen, "a", on_exit=raising(OSError("the disk is full")))])
    job = queue.add("n")
    eventually(lambda: "runs" in seen)
    worker.cancel_job(job.id, "enough", hard=True)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert [one.exc_info[1].args for one in caplog.records if one.exc_info] == [
        ("the disk is full",)
    ]


def test_one_that_raises_the_same_error_again_is_told_once(
    queue: Queue, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Again(contextlib.AbstractContextManager[None]):
        def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
            if error is not None:
                raise error

    make(lambda job: 1 / 0, around=[lambda job: Again()])
    assert ended(queue, queue.add("n"), "failed").failed_reason == "division by zero"
    assert not caplog.records


# -- the token ------------------------------------------------------------------------------------


def test_one_with_a_second_parameter_gets_the_token_of_the_processor(
    queue: Queue, make: Make
) -> None:
    """2.17"""
    seen: list[object] = []

    def around(job: Job, token: CancellationToken) -> typing.ContextManager[object]:
        seen.append(token)
        return contextlib.nullcontext()

    def process(job: Job, token: CancellationToken) -> None:
        seen.append(token)

    make(process, around=[around])
    ended(queue, queue.add("n"), "completed")
    assert seen[0] is seen[1]
    assert isinstance(seen[0], CancellationToken)


def test_it_gets_one_where_the_processor_has_none_and_soft_requests_stay_false(
    queue: Queue, make: Make, hangs: typing.Any, seen: list[str]
) -> None:
    """2.17: a hard one sets it."""
    tokens: list[CancellationToken] = []

    def around(job: Job, token: CancellationToken) -> typing.ContextManager[object]:
        tokens.append(token)
        return contextlib.nullcontext()

    worker = make(hangs, around=[around])
    job = queue.add("n")
    eventually(lambda: "runs" in seen)
    assert not worker.cancel_job(job.id, "softly")
    assert not tokens[0].cancel("softly")
    assert tokens[0].check() is None
    assert worker.cancel_job(job.id, "enough", hard=True)
    assert ended(queue, job, "failed").failed_reason == "Job cancelled: enough"
    assert tokens[0].reason == "enough"


def test_its_time_limit_kills_as_without(
    queue: Queue, make: Make, hangs: typing.Any, seen: list[str]
) -> None:
    """2.17, 2.15: nobody could hear a soft one."""

    def around(job: Job, token: CancellationToken) -> typing.ContextManager[object]:
        return contextlib.nullcontext()

    make(hangs, around=[around])
    job = queue.add("n", timeout=0.05)
    assert ended(queue, job, "failed").failed_reason == "Job timed out after 0.05 s"


def test_without_any_nothing_is_made_for_it(queue: Queue, make: Make) -> None:
    worker = make(lambda job: None, around=())
    assert engine_of(worker).life._arounds is None


# -- what makes no sense ---------------------------------------------------------------------------


def plain(job: Job) -> typing.ContextManager[object]:
    return contextlib.nullcontext()


def takes_none() -> typing.ContextManager[object]:
    return contextlib.nullcontext()


def takes_three(job: Job, token: object, more: object) -> typing.ContextManager[object]:
    return contextlib.nullcontext()


def undecorated(job: Job) -> collections.abc.Iterator[None]:
    yield


async def asynchronous(job: Job) -> None: ...


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (plain, "around: a list of callables is needed, got <function plain"),
        ("myapp.hooks:timing", "around: a list of callables is needed, got 'myapp"),
        (["myapp.hooks:timing"], r"around\[0\]: a callable is needed, got 'myapp"),
        ([plain, None], r"around\[1\]: a callable is needed, got None"),
        ([takes_none], r"around\[0\]: at least one positional parameter \(the job\) is needed"),
        ([plain, takes_three], r"around\[1\]: at most two required parameters .* got 3"),
        ([undecorated], r"got a generator function; decorate it with @contextlib\.contextmanager"),
        ([asynchronous], r"around\[0\]: a plain function is needed, got a coroutine function"),
    ],
)
def test_what_cannot_be_one_is_refused_when_the_worker_is_made(
    around: typing.Any, message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}" if message[0] != "g" else message):
        Worker("q", lambda job: None, around=around)


@pytest.mark.parametrize("returned", [None, 5, contextlib.nullcontext])
def test_one_that_returns_no_context_manager_fails_the_job_and_is_named(
    queue: Queue, make: Make, seen: list[str], returned: object
) -> None:
    """And what was entered before it is left."""

    def broken(job: Job) -> typing.Any:
        return returned

    make(lambda job: None, around=[Around(seen, "a"), broken])
    assert ended(queue, queue.add("n"), "failed").failed_reason == (
        f"around {__name__}.{broken.__qualname__}: a context manager is needed, "
        f"it returned {type(returned).__name__}"
    )
    assert seen[-2:] == ["a is left by TypeError", "a ends"]


def test_the_list_is_copied_when_the_worker_is_made(
    queue: Queue, make: Make, seen: list[str]
) -> None:
    arounds = [Around(seen, "a")]
    make(lambda job: None, around=arounds)
    arounds.clear()
    ended(queue, queue.add("n"), "completed")
    assert seen[0] == "a begins"
