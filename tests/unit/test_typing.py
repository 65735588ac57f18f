"""What editors, `help()` and type checkers see of the options is what the interpreter takes.

mypy reads programs of users here: right ones pass, and each kind of mistake is reported where it
stands.
"""

from __future__ import annotations

import inspect
import pathlib
import pydoc
import re
import subprocess
import sys
import typing

import pytest

from geventq import Job, JobOptions, Queue, Worker, WorkerArguments, cancel_request, job_options
from geventq.cancel_request import CancelOptions
from geventq.options import _CHECKS
from geventq.signatures import takes, texts
from geventq.worker import settings
from geventq.worker.settings import WorkerOptions
from geventq.worker.told import EVENTS, WorkerEvents

ROOT = pathlib.Path(__file__).parents[2]


# -- one source ----------------------------------------------------------------------------------


def test_the_names_of_the_options_are_those_that_are_checked() -> None:
    assert set(WorkerArguments.__annotations__) == set(WorkerOptions.__dataclass_fields__)
    assert set(WorkerArguments.__annotations__) == set(settings.DEFAULTS)
    assert set(JobOptions.__annotations__) == set(_CHECKS) == set(job_options.DEFAULTS)


@pytest.mark.parametrize("options", [WorkerArguments, JobOptions])
def test_each_option_says_what_it_does_its_unit_and_what_leaving_it_out_means(
    options: type,
) -> None:
    defaults = settings.DEFAULTS if options is WorkerArguments else job_options.DEFAULTS
    hints = typing.get_type_hints(options)
    for name, text in texts(options).items():
        assert text.endswith("."), name
        if hints[name] in (settings.Seconds, settings.Seconds | None):
            assert "econds" in text, name
        assert defaults[name] is not None or re.search(r"Default:\s+none|Not\s+supported", text)


def test_every_default_is_taken_as_a_value_too() -> None:
    """Also those of later stages: a program may write down what it gets anyway."""
    made = WorkerOptions.made(dict(settings.DEFAULTS))
    assert made == WorkerOptions()
    assert made.lock_renew_time == 15.0


def test_an_option_of_a_later_stage_is_refused_by_name() -> None:
    others: dict[str, object] = {name: object() for name in settings.LATER}
    assert {"limiter", "metrics", "watchdog", "isolate", "telemetry"} <= set(others)
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"^{name}: not supported yet, got "):
            WorkerOptions.made({name: value})


def test_what_a_worker_was_made_with_is_a_copy() -> None:
    """Dicts may be shared between workers, and changed afterwards."""
    keep = {"age": 5, "count": 2}
    strategies = {"mine": lambda made, error, job: 1.0}
    made = WorkerOptions.made({"remove_on_fail": keep, "backoff_strategies": strategies})
    keep["count"] = -1
    strategies.clear()
    assert made.remove_on_fail == {"age": 5, "count": 2}
    assert list(made.backoff_strategies) == ["mine"]


# -- help() --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taker", "options", "defaults"),
    [
        pytest.param(Worker, WorkerArguments, settings.DEFAULTS, id="Worker"),
        pytest.param(Queue.add, JobOptions, job_options.DEFAULTS, id="Queue.add"),
        *(
            pytest.param(cancel, CancelOptions, cancel_request.DEFAULTS, id=cancel.__qualname__)
            for cancel in (Queue.cancel_job, Queue.cancel_jobs, Job.cancel)
        ),
    ],
)
def test_help_shows_every_option_with_type_default_and_text(
    taker: typing.Any, options: type, defaults: typing.Mapping[str, object]
) -> None:
    signature = inspect.signature(taker)
    assert not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    shown = pydoc.render_doc(taker, renderer=pydoc.plaintext)
    for name, text in texts(options).items():
        parameter = signature.parameters[name]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, defaults[name])
        assert f"{name}: {parameter.annotation} = {defaults[name]!r}" in shown
        assert " ".join(text.split()) in " ".join(shown.replace("|  ", "").split())


def test_help_shows_the_options_that_have_a_signature_of_their_own() -> None:
    """Few options: they stand in the signature themselves, and the docstring tells each."""
    for taker in (Queue, Worker.cancel_job, Worker.close):
        text = inspect.getdoc(taker) or ""
        for name in inspect.signature(taker).parameters:
            assert name == "self" or f"`{name}`" in text, (taker, name)


def test_help_lists_every_event_with_its_arguments() -> None:
    shown = inspect.getdoc(Worker.on) or ""
    for event in EVENTS:
        listener = inspect.signature(getattr(WorkerEvents, event))
        arguments = ", ".join(map(str, list(listener.parameters.values())[1:]))
        assert f"{event}({arguments})".replace("'", "").replace("typing.", "") in shown
        assert " ".join(texts(WorkerEvents)[event].split()) in " ".join(shown.split())
    assert {name for name in vars(WorkerEvents) if name[0] != "_"} == set(EVENTS)


def test_without_the_source_only_the_texts_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where compiled files alone are shipped."""

    def no_source(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", no_source)

    @takes(JobOptions, job_options.DEFAULTS)
    def add(name: str, **options: typing.Unpack[JobOptions]) -> None:
        """Add one."""

    assert list(inspect.signature(add).parameters) == ["name", *JobOptions.__annotations__]
    assert "delay: Seconds | None = 0.0" in (add.__doc__ or "")


# -- mypy ----------------------------------------------------------------------------------------

RIGHT = """
import contextlib
import datetime
from collections.abc import Iterator

import gevent
import redis
from geventq import (
    Cancellation, CancellationToken, CancelResult, DelayedError, Job, JobCancelled, JobOptions,
    JobSpec, Processors, Queue, QueueEvent, QueueEvents, RateLimitError, Worker, WorkerArguments,
    detach,
)

minute = datetime.timedelta(minutes=1)

queue = Queue("q", "redis://localhost", timeout=5, max_connections=20,
              default_job_options={"attempts": 3, "backoff": minute})
Queue("q", timeout=minute)
Queue("q", redis.Redis())
Queue("q", redis.Redis(decode_responses=True))
Queue("q", redis.Redis.from_url("redis://localhost"))
QueueEvents("q", redis.Redis())
job: Job = queue.add("n", {"rows": [1]}, delay=minute, timeout=2, attempts=3, priority=1,
                     backoff={"type": "exponential", "delay": minute, "jitter": 0.5},
                     remove_on_complete={"age": minute, "count": 5}, remove_on_fail=True)
queue.add("n", delay=1.5, backoff=5, remove_on_fail=100, job_id=None)
queue.add("n")
options: JobOptions = {"delay": 5.0, "lifo": True}
options["job_id"] = "mine"
queue.add("n", None, **options)
queue.add_bulk([JobSpec("n"), JobSpec("n", {}, {"delay": minute}), JobSpec("n", 1, options)])
queue.retry_jobs("completed", until=1.0)
queue.clean(minute, limit=0, state="failed")
queue.drain(delayed=True)
queue.obliterate(force=True)
job.wait_until_finished(minute)
job.change_delay(minute)
job.extend_lock(minute)
job.move_to_delayed(minute)
job.retry("completed")
result: CancelResult = queue.cancel_job(job.id, {"why": 1}, hard=True, kill_after=minute,
                                        retry=False, wait=minute, cascade=False, force=False)
if result.status == "stopped":
    print(result.state, result.stage, result.seconds)
job.cancel("enough", wait=5)
queue.cancel_jobs(["1", "2"], wait=5)
queue.cancel_jobs(name="n", state="waiting", where=lambda job: job.data, dry_run=True)


def plain(job: Job) -> int:
    job.update_progress(50)
    return 1


def with_token(job: Job, token: CancellationToken) -> None:
    token.raise_if_cancelled()
    if token.wait(minute) or token.wait(timeout=0):
        raise JobCancelled(token.get())
    token.sleep(minute)
    size: int = token.run(len, "text", timeout=minute)
    with token.shield(minute), token.shield(max=5):
        token.link(minute).check()
    token.on_cancel(print, size).undo()
    token.spawn(print, 1).join()
    length: int = detach(len, "text").get()
    print(length)
    raise DelayedError(minute)


def raises(job: Job, token: CancellationToken) -> None:
    raise JobCancelled(token.get())


def waits(job: Job, token: CancellationToken) -> str | None:
    token.sleep(minute)
    number: int = token.run(divmod, 7, 2, timeout=minute)[0]
    text: str = token.spawn(str, number).get() or ""
    with token.shield(minute), token.shield(max=0.5):
        child: CancellationToken = token.link(timeout=minute)
    asked: Cancellation | None = child.wait(timeout=minute)
    asked = token.get(timeout=minute)
    token.on_cancel(print, text).undo()
    if asked is None:
        return token.wait().kind
    return token.get_nowait().kind


detached: gevent.Greenlet[[int, int], tuple[int, int]] = detach(divmod, 7, 2)
remainder: int = detach(len, "abc").get() or 0


def untyped(job, token=None):
    raise RateLimitError(0.5)


class Exporter:
    def run(self, job: Job, token: CancellationToken) -> None: ...

    def __call__(self, job: Job) -> None: ...


def with_default(job: Job, fmt: str = "csv") -> None: ...


def backoff(made: int, error: BaseException, job: Job) -> datetime.timedelta:
    return minute


for process in (plain, untyped):
    Worker("q", process)
Worker("q", with_token)
Worker("q", Exporter())
Worker("q", Exporter().run)
Worker("q", "tasks:process")
Worker("q", {"plain": plain, "token": with_token, "named": "tasks:process", "*": untyped})
processors = Processors({"named": "tasks:process"})


@processors("export")
def export(job: Job, token: CancellationToken) -> int:
    return 1


@processors("resize")
def resize(job: Job) -> None: ...


processors["object"] = Exporter()
rows: int = export(job, CancellationToken())
Worker("q", processors)


@contextlib.contextmanager
def timing(job: Job) -> Iterator[None]:
    yield


class Lease(contextlib.AbstractContextManager["Lease"]):
    def __init__(self, job: Job, token: CancellationToken) -> None: ...

    def __exit__(self, *error: object) -> None: ...


Worker("q", plain, around=[timing, Lease, lambda job: contextlib.nullcontext()])
Worker("q", lambda job: job.data)
Worker("q", lambda job, token: token.check())
worker = Worker(
    "q", plain, None, "bull", "name", concurrency=5, node="here", close_timeout=minute,
    lock_duration=minute, lock_renew_time=5, stalled_interval=minute, max_stalled_count=2,
    max_started_attempts=3, drain_delay=minute, remove_on_complete=True,
    remove_on_fail={"age": minute}, backoff_strategies={"mine": backoff}, job_timeout=minute,
    cancel_mode="hard", kill_after=minute, autorun=False, skip_lock_renewal=True,
    skip_stalled_check=True, exit_when_stuck=True, max_connections=5,
)
shared: WorkerArguments = {"concurrency": 5, "cancel_mode": "soft"}
Worker("q", plain, **shared)
worker.cancel_job(job.id, {"why": "so"}, hard=True, kill_after=minute, retry=False)
worker.cancel_all_jobs(kill_after=1)
worker.close(minute)
worker.close(0, "reason")


def failed(job: Job, error: BaseException) -> None: ...


def cancelled(job: Job, cancellation: Cancellation) -> str:
    return cancellation.kind


worker.on("active", lambda job: print(job.name))
worker.on("progress", lambda job, value: print(value))
worker.on("completed", lambda job, result: print(job.id, result))
worker.on("failed", failed)
worker.on("retrying", failed)
worker.on("cancelled", cancelled)
worker.on("lock_lost", cancelled)
worker.on("stuck", lambda job, stack: print(stack.upper()))
worker.on("stalled", lambda job_id: print(job_id.upper()))
worker.on("error", lambda error: print(error.args))
for listener in (worker.pause, worker.resume):
    worker.on("ready", listener)
worker.on("drained", lambda: None)
worker.on("no_slot", lambda: None)
worker.on("closed", print)
worker.off("failed", failed)


def heard(event: QueueEvent) -> None:
    print(event.name, event.job_id, event.data["prev"], event.id)


with QueueEvents("q") as events:
    events.on("completed", heard)
    for event in events:
        heard(event)
"""

#: A line that is wrong, and what has to be said of it.
WRONG = {
    'queue.add("n", delya=5)': "delya",
    'queue.add("n", delay="5")': '"delay"',
    'queue.add("n", attempts=1.5)': '"attempts"',
    'queue.add("n", backoff={"type": "fixed", "dely": 1})': "backoff",
    'queue.add("n", backoff={"delay": 1})': "backoff",
    'queue.add("n", remove_on_fail={"ages": 1})': "remove_on_fail",
    'queue.add("n", remove_on_fail="yes")': '"remove_on_fail"',
    'queue.add("n", lifo=1)': '"lifo"',
    "queue.add(5)": '"add" of "Queue"',
    'JobSpec("n", {}, {"dlay": 1})': '"JobSpec"',
    'JobSpec("n", {}, {"delay": "1"})': '"JobSpec"',
    'Queue("q", default_job_options={"attempt": 1})': '"default_job_options"',
    'Queue("q", timeout="5")': '"timeout"',
    'Queue("q", 6379)': '"Queue"',
    'Queue("q", ("localhost", 6379))': '"Queue"',
    'Worker("q", process, 6379)': '"Worker"',
    'Queue("q", max_connections=1.5)': '"max_connections"',
    'Queue("q", max_connection=5)': "max_connection",
    'queue.retry_jobs("delayed")': '"retry_jobs"',
    'queue.clean(0, state="wait")': '"clean"',
    'queue.clean("1")': '"clean"',
    'queue.obliterate("yes")': '"obliterate"',
    "queue.retry_jobs(until=minute)": '"until"',
    'job.retry("active")': '"retry"',
    "queue.cancel_job(job.id, wiat=5)": "wiat",
    'queue.cancel_job(job.id, wait="5")': '"wait"',
    'queue.cancel_job(job.id, hard="yes")': '"hard"',
    'queue.cancel_job(job.id).status == "stoped"': "comparison",
    "queue.cancel_jobs(where=5)": '"where"',
    "job.cancel(force=1)": '"force"',
    'job.wait_until_finished("5")': '"wait_until_finished"',
    'Worker("q", process, concurency=5)': "concurency",
    'Worker("q", process, concurrency="5")': '"concurrency"',
    'Worker("q", process, concurrency=minute)': '"concurrency"',
    'Worker("q", process, lock_duration="30 s")': '"lock_duration"',
    'Worker("q", process, cancel_mode="hrad")': '"cancel_mode"',
    'Worker("q", process, hints="all")': '"hints"',
    'Worker("q", process, cancel_secret=5)': '"cancel_secret"',
    'Queue("q", cancel_secret=b"seven horses")': '"cancel_secret"',
    'Worker("q", process, exit_when_stuck="yes")': '"exit_when_stuck"',
    'Worker("q", process, backoff_strategies={"a": 5})': "Callable",
    'Worker("q", process, backoff_strategies={"a": lambda: 1})': "lambda",
    'Worker("q")': '"process"',
    'Worker("q", 5)': '"Worker"',
    'Worker("q", takes_nothing)': '"Worker"',
    'Worker("q", takes_three)': '"Worker"',
    'Worker("q", {"a": takes_three})': "Dict entry",
    'Worker("q", {5: process})': "Dict entry",
    'Processors()("a")(takes_three)': '"P"',
    "Processors()(process)": '"__call__"',
    'Worker("q", process, around=[takes_nothing])': "List item",
    'Worker("q", process, around=[process])': "List item",
    'Worker("q", process, around=process)': '"around"',
    'worker.on("complete", lambda job, result: None)': '"on"',
    'worker.on("completed", lambda job: None)': '"on" of "Worker"',
    'worker.on("completed", takes_nothing)': '"on"',
    'worker.on("failed", lambda job, error: error.cod)': '"on" of "Worker"',
    'worker.on("cancelled", lambda job, request: request.reasn)': '"on" of "Worker"',
    'worker.on("stuck", lambda job, stack: stack + 1)': '"on" of "Worker"',
    'worker.on("ready", lambda job: None)': '"on" of "Worker"',
    'worker.off("complete", takes_nothing)': '"off"',
    "worker.cancel_job(5)": '"cancel_job"',
    'worker.cancel_job("1", kill_after="5")': '"kill_after"',
    'worker.cancel_job("1", wait=5)': "wait",
    'worker.cancel_job("1", None, True)': '"cancel_job"',
    'worker.close("5")': '"close"',
    'detach(takes_three, job, "1", 2)': '"detach"',
    "detach(takes_nothing).get() + 1": "+",
    "CancellationToken().get().reasn": "reasn",
    "CancellationToken().wait(5).kind": '"kind"',
    'CancellationToken().sleep("5")': '"sleep"',
    "CancellationToken().run(takes_nothing, timeout=None) + 1": "+",
}

BEFORE_WRONG = """
import datetime
from geventq import CancellationToken, Job, JobSpec, Processors, Queue, Worker, detach

minute = datetime.timedelta(minutes=1)
queue = Queue("q")
job = queue.add("n")


def process(job: Job) -> None: ...


def takes_nothing() -> None: ...


def takes_three(job: Job, one: int, two: int) -> None: ...


worker = Worker("q", process)
"""


def _readme() -> str:
    """The snippets of README as one program: with the functions that they call, and with types
    for the parameters, else mypy looks at nothing in them."""
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(snippets) >= 3
    called = "handle download step_one step_two weigh work roll_back_or_commit".split()
    given = [f"def {name}(*args: object, **options: object) -> int: return 0" for name in called]
    typed = "".join(snippets)
    for name, kind in (("job", "Job"), ("node", "typing.Any"), ("token", "CancellationToken")):
        typed = re.sub(rf"^(def .*\b{name})\b", rf"\1: {kind}", typed, flags=re.M)
    # The stubs of gevent look for one class of all that is waited for, and find `object`.
    typed = re.sub(r"(gevent\.wait\(.*)$", r"\1  # type: ignore[type-var]", typed, flags=re.M)
    before = ["import typing", "from geventq import CancellationToken, Job", *given]
    return "\n".join([*before, typed])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """What mypy says of the three programs: line and text, by file."""
    directory = tmp_path_factory.mktemp("typed")
    wrong = BEFORE_WRONG + "".join(f"{line}\n" for line in WRONG)
    for name, text in (("right", RIGHT), ("readme", _readme()), ("wrong", wrong)):
        (directory / f"{name}.py").write_text(text)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--cache-dir", str(directory / "cache")),
            *("--config-file=", "--strict", "--allow-incomplete-defs", "--allow-untyped-defs"),
            *("--allow-untyped-calls", "--disable-error-code=func-returns-value"),
            *("--show-error-codes", "--no-pretty", "--hide-error-context", "--no-error-summary"),
            *("right.py", "readme.py", "wrong.py"),
        ],
        cwd=directory,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, list[tuple[int, str]]] = {"right": [], "readme": [], "wrong": []}
    report = re.compile(r"^(\w+)\.py:(\d+): (?:error|note): (.*)$", re.M)
    for file, line, text in report.findall(done.stdout):
        found[file].append((int(line), text))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("program", ["right", "readme"])
def test_a_right_program_passes(said: dict[str, list[tuple[int, str]]], program: str) -> None:
    assert said[program] == []


@pytest.mark.slow
@pytest.mark.parametrize("line", WRONG)
def test_each_kind_of_mistake_is_reported(
    said: dict[str, list[tuple[int, str]]], line: str
) -> None:
    number = BEFORE_WRONG.count("\n") + 1 + list(WRONG).index(line)
    texts_there = [text for at, text in said["wrong"] if at == number]
    assert texts_there, f"nothing said of: {line}"
    assert any(WRONG[line] in text for text in texts_there), texts_there


@pytest.mark.slow
def test_nothing_else_is_reported(said: dict[str, list[tuple[int, str]]]) -> None:
    first = BEFORE_WRONG.count("\n") + 1
    assert {at for at, _ in said["wrong"]} == set(range(first, first + len(WRONG)))
