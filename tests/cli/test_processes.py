"""``geventq worker --processes N``: a parent that keeps N workers alive and passes on the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import typing

import pytest

from geventq import JobSpec, Queue
from tests.support.programs import ROOT, Program, Programs, lives
from tests.support.waiting import eventually, never

pytestmark = pytest.mark.slow  # all together

SHORT = ("--lock-duration", "1", "--stalled-interval", "0.2")


def start(programs: Programs, *options: str, count: int = 2) -> Program:
    """Start the command and wait until all its workers are ready."""
    program = programs.geventq(
        *("worker", "tasks:process", "-q", "q", "--json", "--processes", str(count)), *options
    )
    program.until_event("ready", count)
    return program


def workers(program: Program) -> set[int]:
    return {one["pid"] for one in program.events("ready")}


def until_all_ended(pids: typing.Iterable[int]) -> None:
    for pid in pids:
        eventually(lambda pid=pid: not lives(pid), what=f"end of {pid}")  # type: ignore[misc]


def busy(
    programs: Programs, queue: Queue, program: Program, count: int
) -> typing.Callable[[], None]:
    """Give `count` processes one job each; returns what lets these jobs end."""
    until = programs.directory / "go"
    for _ in range(count):
        queue.add("waits", {"until": str(until)})
    program.until_event("active", count)
    return until.touch


def test_each_process_runs_jobs(programs: Programs, queue: Queue) -> None:
    program = start(programs, count=3)
    go = busy(programs, queue, program, 3)
    go()
    done = program.until_event("completed", 3)
    assert {one["result"] for one in done} == workers(program)
    assert len(workers(program)) == 3
    assert program.pid not in workers(program)


def test_their_lines_do_not_mix(programs: Programs, queue: Queue) -> None:
    """A pipe takes no more than 4 kB as a whole; each line is JSON all the same."""
    programs.write("wordy.py", "def process(job):\n    return 'x' * 30_000\n")
    queue.add_bulk([JobSpec("wordy")] * 300)
    command = ["-m", "geventq", "worker", "wordy:process", "-q", "q", "--json", "--processes", "3"]
    with subprocess.Popen(
        [sys.executable, *command, "-c", "10"],
        cwd=programs.directory,
        env=programs.environment,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            done: set[int] = set()
            completed = 0
            while completed < 300:
                said = json.loads(process.stdout.readline())
                if said["event"] == "completed":
                    completed += 1
                    done.add(said["pid"])
                    assert len(said["result"]) == 30_000
            assert len(done) > 1
            process.terminate()
            assert process.wait(40) == 0
        finally:
            process.kill()


def test_the_parent_is_a_process_that_can_be_forked() -> None:
    """What it has read and checked has started no hub and no thread, and imported no redis."""
    program = """
import sys, threading
from geventq import cli
from geventq.commands import plan
given = cli._parser().parse_args(["worker", "m:f", "-q", "q", "--processes", "2"])
plan.made(given)
from gevent._hub_local import get_hub_if_exists
print(get_hub_if_exists(), threading.active_count(), "redis" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "None 1 False\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_jobs_end_in_all_processes(
    programs: Programs, queue: Queue, number: signal.Signals
) -> None:
    """7.2: exit status 0 when all have closed."""
    program = start(programs)
    go = busy(programs, queue, program, 2)
    program.signal(number)
    program.until_event("closing", 2)
    never(lambda: not program.is_running, 0.1)
    go()
    assert program.ends() == 0
    assert len(program.events("completed")) == len(program.events("closed")) == 2
    until_all_ended(workers(program))


def test_a_second_signal_means_at_once(programs: Programs, queue: Queue) -> None:
    """7.2: close_timeout 0; the jobs go back."""
    program = start(programs)
    busy(programs, queue, program, 2)
    program.signal(signal.SIGTERM)
    program.until_event("closing", 2)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert [one["cancellation"]["kind"] for one in program.events("cancelled")] == ["shutdown"] * 2
    assert queue.get_job_counts()["waiting"] == 2


def test_the_close_timeout_holds_in_every_process(programs: Programs, queue: Queue) -> None:
    program = start(programs, "--close-timeout", "0.1")
    queue.add("polite")
    program.until_event("active")
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert queue.get_job_counts()["waiting"] == 1


def test_a_signal_to_the_whole_group_counts_once(programs: Programs, queue: Queue) -> None:
    """A terminal's Ctrl-C and systemd's KillMode=control-group reach parent and children: that
    is one wish to close, not two."""
    program = start(programs)
    queue.add("polite")
    queue.add("polite")
    program.until_event("active", 2)
    os.killpg(program.pid, signal.SIGINT)
    program.until_event("closing", 2)
    never(lambda: program.events("cancelled"), 0.2)  # a polite job would end at once
    os.killpg(program.pid, signal.SIGINT)
    assert program.ends() == 0
    assert len(program.events("cancelled")) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_is_replaced(
    programs: Programs, queue: Queue, number: signal.Signals
) -> None:
    """Whether it crashed or somebody ended it; the new one runs jobs."""
    program = start(programs)
    (victim, *_) = workers(program)
    os.kill(victim, number)
    program.until_event("ready", 3)
    how = "was ended by SIGKILL" if number == signal.SIGKILL else "ended with status 0"
    assert f"worker process {victim} {how}; another one starts in 0.5 s" in program.err
    go = busy(programs, queue, program, 2)
    go()
    program.until_event("completed", 2)
    assert workers(program) >= {one["result"] for one in program.events("completed")}
    program.signal(signal.SIGTERM)
    assert program.ends() == 0


def test_a_job_whose_process_was_killed_runs_again(programs: Programs, queue: Queue) -> None:
    """7.2: the stalled check brings it back."""
    program = start(programs, *SHORT)
    go = busy(programs, queue, program, 1)
    first = program.events("active")[0]["pid"]
    os.kill(first, signal.SIGKILL)
    second = program.until_event("active", 2)[1]
    assert second["pid"] != first
    go()
    assert program.until_event("completed")[0]["result"] == second["pid"]


def test_one_that_keeps_dying_is_replaced_more_and_more_slowly(programs: Programs) -> None:
    programs.write("dying.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    program = programs.geventq("worker", "dying:f", "-q", "q", "--processes", "2")
    eventually(lambda: "starts in 1 s" in program.err)
    assert program.err.index("starts in 0.5 s") < program.err.index("starts in 1 s")
    program.signal(signal.SIGTERM)  # nobody is there, or somebody who imports
    program.ends()


def test_a_parent_that_is_killed_takes_its_workers_along(programs: Programs, queue: Queue) -> None:
    """They notice, and close as after a first SIGTERM."""
    program = start(programs)
    go = busy(programs, queue, program, 2)
    program.signal(signal.SIGKILL)
    assert program.ends() == -signal.SIGKILL
    eventually(lambda: len(program.events("closing")) == 2)
    assert all(lives(pid) for pid in workers(program))
    go()
    until_all_ended(workers(program))
    assert len(program.events("completed")) == 2


def test_a_worker_hears_its_parent_although_a_job_has_killed_all_greenlets(
    programs: Programs, queue: Queue
) -> None:
    """What is thrown at the greenlet that waits for orders does not end the waiting: neither an
    order nor the parent's end is missed."""
    programs.write(
        "killing.py",
        "import gc, gevent\n"
        "def process(job):\n"
        "    every = [one for one in gc.get_objects() if isinstance(one, gevent.Greenlet)]\n"
        "    found = [one for one in every if one.name.startswith('geventq-parent')]\n"
        "    assert found\n"
        "    gevent.killall(found)\n",
    )
    program = programs.geventq(
        *("worker", "killing:process", "-q", "q", "--json", "--processes", "2")
    )
    program.until_event("ready", 2)
    queue.add("n")
    program.until_event("completed")
    program.signal(signal.SIGKILL)
    program.ends()
    until_all_ended(workers(program))
    assert len(program.events("closing")) == 2


def test_every_worker_notices_the_parents_end_by_itself(programs: Programs, queue: Queue) -> None:
    """No child holds the parent's ends of the pipes, not those of older siblings either: else
    the older would notice when the younger has closed.  One of them has been replaced."""
    program = start(programs, count=3)
    os.kill(max(workers(program)), signal.SIGKILL)
    program.until_event("ready", 4)
    go = busy(programs, queue, program, 3)
    program.signal(signal.SIGKILL)
    program.ends()
    eventually(lambda: len(program.events("closing")) == 3)
    go()
    until_all_ended(workers(program))


def test_a_wrong_command_line_is_told_once_or_twice_but_not_for_ever(programs: Programs) -> None:
    programs.write("broken.py", "def f(:\n")
    status, out, err = programs.run("worker", "broken:f", "-q", "q", "--processes", "2")
    assert (status, out) == (2, "")
    assert "importing 'broken' failed: SyntaxError" in err
    assert "another one starts" not in err


def test_what_worked_before_is_tried_again(programs: Programs, queue: Queue) -> None:
    """A module that broke since, as in the midst of a deployment: the others work on, and a
    replacement starts when it is whole again."""
    program = start(programs)
    whole = (programs.directory / "tasks.py").read_text()
    programs.write("tasks.py", "def f(:\n")
    os.kill(min(workers(program)), signal.SIGKILL)
    eventually(lambda: "ended with status 2; another one starts in 1 s" in program.err)
    programs.write("tasks.py", whole)
    program.until_event("ready", 3)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0


def test_a_signal_while_the_processes_start_ends_them_all(programs: Programs) -> None:
    """Nobody has a worker yet: there is nothing to close."""
    programs.write(
        "slow.py", "import os, time\nopen(f'importing-{os.getpid()}', 'w')\ntime.sleep(60)\n"
    )
    program = programs.geventq("worker", "slow:f", "-q", "q", "--processes", "2")
    found = programs.directory.glob
    eventually(lambda: len(list(found("importing-*"))) == 2)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    until_all_ended(int(path.name.rpartition("-")[2]) for path in found("importing-*"))
    assert program.err == ""


def test_a_process_that_is_killed_while_closing_is_told(programs: Programs, queue: Queue) -> None:
    """Not all have closed: status 1."""
    program = start(programs)
    go = busy(programs, queue, program, 2)
    program.signal(signal.SIGTERM)
    program.until_event("closing", 2)
    (victim, *_) = workers(program)
    os.kill(victim, signal.SIGKILL)
    go()
    assert program.ends() == 1
    assert f"worker process {victim} was ended by SIGKILL while closing" in program.err
