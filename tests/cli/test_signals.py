"""Closing by signal (cancellation.md 7.2), in real processes: the command and users' scripts."""

from __future__ import annotations

import signal
import time
import typing

import pytest

from geventq import Queue
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually, never

SCRIPT = """
import json, os, signal, sys, threading
import gevent
from geventq import Worker
from tasks import process

def say(event, **more):
    print(json.dumps({"event": event, "pid": os.getpid(), **more}), flush=True)

def listen(worker):
    worker.on("ready", lambda: say("ready"))
    worker.on("active", lambda job: say("active", id=job.id))
    worker.on("closing", lambda: say("closing"))
    worker.on("completed", lambda job, result: say("completed", id=job.id))
    worker.on("cancelled", lambda job, said: say("cancelled", id=job.id, kind=said.kind))
    return worker

def make(**options):
    prefix = os.environ["GEVENTQ_PREFIX"]
    return listen(Worker("q", process, prefix=prefix, **options))

options = json.loads(sys.argv[1])
"""
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
RUN = "make(**options).run()\nsay('after')\n"

Start = typing.Callable[..., Program]


def _command(programs: Programs, **options: typing.Any) -> Program:
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return programs.geventq("worker", "tasks:process", "-q", "q", "--json", *words)


def _script(programs: Programs, text: str, **options: typing.Any) -> Program:
    import json

    programs.write("script.py", text)
    return programs.start("script.py", json.dumps(options))


def _unpatched(programs: Programs, **options: typing.Any) -> Program:
    return _script(programs, SCRIPT + RUN, **options)


def _patched(programs: Programs, **options: typing.Any) -> Program:
    return _script(programs, PATCH + SCRIPT + RUN, **options)


@pytest.fixture(
    params=[
        pytest.param(_command, id="command"),
        pytest.param(_unpatched, id="unpatched"),
        pytest.param(_patched, id="patched"),
    ]
)
def start(programs: Programs, request: pytest.FixtureRequest) -> Start:
    """Starts a worker of one of the three kinds and waits until it is ready."""

    def start(**options: typing.Any) -> Program:
        program = request.param(programs, **options)
        program.until_event("ready")
        return typing.cast(Program, program)

    return start


pytestmark = pytest.mark.slow  # all together

both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@both
def test_the_first_signal_lets_running_jobs_end(
    start: Start, programs: Programs, queue: Queue, number: signal.Signals
) -> None:
    """7.2: no new job is taken, the running one completes, exit status 0."""
    program = start(close_timeout=30)
    until = programs.directory / "go"
    job = queue.add("waits", {"until": str(until)})
    program.until_event("active")
    program.signal(number)
    program.until_event("closing")
    later = queue.add("quick")
    until.touch()
    assert program.ends() == 0
    assert queue.get_job_state(job.id) == "completed"
    assert queue.get_job_state(later.id) == "waiting"
    assert program.err == ""


def test_after_close_timeout_jobs_are_cancelled_and_go_back(start: Start, queue: Queue) -> None:
    """7.1, 7.2: kind shutdown, state waiting as before the take; it was no attempt."""
    program = start(close_timeout=0.1, concurrency=2)
    jobs = [queue.add("polite", attempts=3), queue.add("stubborn", priority=5)]
    program.until_event("active", 2)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert {one["id"] for one in program.events("cancelled")} == {job.id for job in jobs}
    states = []
    for given in jobs:
        job = queue.get_job(given.id)
        assert job is not None
        states.append(job.get_state())
        assert (job.attempts_made, job.attempts_started, job.failed_reason) == (0, 0, None)
    assert states == ["waiting", "prioritized"]


@both
def test_the_second_signal_cancels_at_once(
    start: Start, queue: Queue, number: signal.Signals
) -> None:
    """7.2: without a close_timeout the first one would wait for ever."""
    program = start()
    job = queue.add("polite")
    program.until_event("active")
    program.signal(signal.SIGTERM)
    program.until_event("closing")
    never(lambda: program.events("cancelled"), 0.1)
    program.signal(number)
    assert program.ends() == 0
    assert queue.get_job_state(job.id) == "waiting"


def test_what_kill_9_leaves_is_brought_back(start: Start, programs: Programs, queue: Queue) -> None:
    """7.2: by the stalled check of another worker, when the lock has run out."""
    program = start(lock_duration=2.0, stalled_interval=0.2)
    until = programs.directory / "go"
    job = queue.add("waits", {"until": str(until)})
    program.until_event("active")
    program.signal(signal.SIGKILL)
    assert program.ends() == -signal.SIGKILL
    assert queue.get_job_state(job.id) == "active"
    until.touch()
    other = _command(programs, stalled_interval=0.2)
    assert other.until_event("completed")[0]["id"] == job.id
    found = queue.get_job(job.id)
    assert found is not None
    assert (found.get_state(), found.stalled_counter) == ("completed", 1)


def test_an_idle_worker_ends_at_once(start: Start, queue: Queue) -> None:
    """7.2: it sits in a blocking call of a minute and a half."""
    program = start(drain_delay=90.0)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0


def test_a_signal_before_the_worker_runs_ends_the_command(programs: Programs) -> None:
    """7.2: while the user's module is imported there is nothing to close."""
    programs.write("slow.py", "import time\nopen('importing', 'w')\ntime.sleep(60)\n")
    program = programs.geventq("worker", "slow:f", "-q", "q")
    eventually((programs.directory / "importing").exists)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert (program.out, program.err) == ("", "")


def test_a_signal_while_the_worker_starts_is_not_lost(programs: Programs) -> None:
    """7.2: the handler runs at the first turn of the hub, in the midst of `start`."""
    text = (
        SCRIPT
        + """
start = Worker.start
def signalled(self):
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(0.05)  # the handler runs now
    start(self)
Worker.start = signalled
"""
    )
    program = _script(programs, text + RUN)
    assert program.ends() == 0
    assert program.events("after")


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_a_users_own_handlers_work_again_after_run(programs: Programs, patch: str) -> None:
    """7.2: also where two workers ran, in greenlets, and the first of them ended earlier."""
    program = _script(
        programs,
        patch
        + SCRIPT
        + """
def mine(*_):
    say("mine")
    sys.exit(7)
signal.signal(signal.SIGTERM, mine)
first, second = make(), make()
runs = [gevent.spawn(first.run), gevent.spawn(second.run)]
while not (first.is_running and second.is_running):
    gevent.sleep(0.01)
first.close()
runs[0].join()
say("one left")
runs[1].join()
say("none left")
while True:
    gevent.sleep(1)
""",
    )
    program.until_event("one left")
    program.signal(signal.SIGTERM)
    program.until_event("none left")
    assert not program.events("mine")
    program.signal(signal.SIGTERM)
    assert program.ends() == 7
    assert len(program.events("mine")) == 1


@both
def test_a_signal_that_comes_twice_is_one_also_when_the_worker_has_closed_meanwhile(
    start: Start, number: signal.Signals
) -> None:
    """7.2: supervisors do so; a script ends after `run` with status 0."""
    for gap in (0.0, 0.01, 0.03, 0.05, 0.07, 0.1, 0.2):
        program = start()
        program.signal(number)
        time.sleep(gap)
        if program.is_running:
            program.signal(number)
        assert program.ends() == 0
        assert program.err == ""


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_after_a_moment_a_signal_ends_the_program_as_ever(programs: Programs, patch: str) -> None:
    """7.2: a program that goes on after `run`, for long, can be ended."""
    program = _script(programs, patch + SCRIPT + RUN + "while True:\n    gevent.sleep(0.1)\n")
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    program.until_event("after")
    began = time.perf_counter()
    while program.is_running and time.perf_counter() - began < 60:
        program.signal(signal.SIGTERM)
        time.sleep(0.05)
    assert time.perf_counter() - began > 1.5
    assert program.ends() == -signal.SIGTERM


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_run_outside_the_main_thread_installs_no_handlers(
    programs: Programs, queue: Queue, patch: str
) -> None:
    """7.2: SIGTERM does what it did before; here it ends the process."""
    program = _script(
        programs,
        patch
        + SCRIPT
        + """
from gevent import monkey
start = monkey.get_original("_thread", "start_new_thread")
start(lambda: make(**options).run(), ())
sleep = monkey.get_original("time", "sleep")
while True:
    sleep(0.05)
""",
    )
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    assert program.ends() == -signal.SIGTERM
    assert not program.events("closing")


def test_a_patched_thread_is_not_the_main_thread(programs: Programs) -> None:
    """7.2: although it is a greenlet in it."""
    program = _script(
        programs,
        PATCH
        + SCRIPT
        + """
thread = threading.Thread(target=lambda: make(**options).run())
thread.start()
thread.join()
""",
    )
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    assert program.ends() == -signal.SIGTERM
    assert not program.events("closing")
