"""``geventq top``: the listing, and the view on a real terminal."""

from __future__ import annotations

import collections.abc
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import typing

import gevent
import pytest
import redis

from geventq import Queue
from geventq.commands.top import fit, job_line, queue_lines
from geventq.commands.watching import QueueRow, RunningJob, Snapshot
from geventq.job import STATES
from tests.cli.conftest import Here
from tests.conftest import Make
from tests.support.programs import Programs
from tests.support.waiting import eventually


class Screen:
    """``geventq top`` on a terminal of the test's own, and what it has written there."""

    def __init__(self, programs: Programs, *arguments: str, rows: int, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(rows, columns)
        os.set_blocking(self._ours, False)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "geventq", "top", *arguments],
            cwd=programs.directory,
            env=programs.environment | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = ""

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def resized(self, rows: int, columns: int) -> None:
        """As a terminal does it whose window somebody drags."""
        self.resize(rows, columns)
        self._process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self) -> str:
        """All that was written so far."""
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # nothing more now, or it has ended
                part = b""
            if not part:
                return self.raw
            self.raw += part.decode(errors="replace")

    def until(self, text: str) -> None:
        eventually(lambda: text in self.read(), 40, every=0.01, what=lambda: (text, self.raw))

    def marks(self) -> int:
        """How often it has begun to write in reverse, which marks the chosen job."""
        return len(re.findall(r"\x1b\[(?:\d+;)*7m", self.read()))

    def forget(self) -> None:
        self.read()
        self.raw = ""

    def ends(self) -> int:
        eventually(lambda: (self.read(), self._process.poll() is not None)[1], 40, every=0.01)
        return int(self._process.wait())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def screen(programs: Programs) -> collections.abc.Iterator[typing.Callable[..., Screen]]:
    made: list[Screen] = []

    def make(*arguments: str, rows: int = 24, columns: int = 80) -> Screen:
        made.append(Screen(programs, *arguments, rows=rows, columns=columns))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _polite(job: typing.Any, token: typing.Any) -> None:
    job.update_progress(40)
    token.sleep(60)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [(40, " 40%"), (100, "100%"), (101, "101"), (72_000, "72000"), ("half", "half")],
)
def test_a_number_up_to_100_is_percents(progress: typing.Any, shown: str) -> None:
    """One above counts something else, rows say: no "100%" of a job that has only begun."""
    line = job_line(RunningJob("q", "1", "export", 1.0, progress, None, cancelling=False), 80)
    assert re.sub(r".* s  [#.]*", "", line).strip() == shown.strip()


# -- the listing ---------------------------------------------------------------------------------


def test_without_a_terminal_it_is_one_listing(here: Here, queue: Queue, make: Make) -> None:
    assert "no queues" in here("top")[1]
    queue.add("later", delay=60.0)
    make(_polite, name="me")
    job = queue.add("export")
    eventually(lambda: queue.get_job(job.id).progress == 40)  # type: ignore[union-attr]
    status, out, err = here("top")
    assert (status, err) == (0, "")
    assert re.search(r"^q +\d+ +1 +0 +0 +1 +0 +0$", out, re.MULTILINE), out
    assert re.search(rf"^q +{job.id} +export +\d+ s  ####\.+  40% me$", out, re.MULTILINE), out
    status, out, _ = here("top", "--json")
    told = json.loads(out)
    assert status == 0
    assert [(row["name"], row["paused"], row["counts"]["delayed"]) for row in told["queues"]] == [
        ("q", False, 1)
    ]
    (row,) = told["jobs"]
    assert (row["queue"], row["id"], row["progress"]) == ("q", job.id, 40)
    assert row["cancelling"] is False


def test_a_worker_without_a_name_is_told_by_its_node_and_process(
    here: Here, queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """A job that somebody holds who is in no group has nothing there."""
    make(_polite, node="north")
    job, other = queue.add("export"), queue.add("export")
    eventually(lambda: queue.get_job(job.id).progress == 40)  # type: ignore[union-attr]
    redis_client.lmove(f"{prefix}:q:wait", f"{prefix}:q:active", "RIGHT", "LEFT")
    redis_client.set(f"{prefix}:q:{other.id}:lock", "gq:0-0:1")
    rows = json.loads(here("top", "--json")[1])["jobs"]
    told = {row["id"]: row["worker"] for row in rows}
    assert told == {job.id: f"north:{os.getpid()}", other.id: None}
    assert f"north:{os.getpid()}" in here("top")[1]


def test_only_queues_of_the_prefix_are_found(
    here: Here, queue: Queue, prefix: str, redis_url: str
) -> None:
    """A prefix stands for itself, not for a pattern; others' keys are no queues."""
    queue.add("n")
    with Queue("other", redis_url, f"{prefix}:not") as other:
        other.add("n")
        assert [row["name"] for row in json.loads(here("top", "--json")[1])["queues"]] == ["q"]
        found = json.loads(here("top", "--json", "--prefix", f"{prefix[:-1]}?")[1])
        assert found["queues"] == []
    named = json.loads(here("top", "q", "empty", "--json")[1])
    assert [row["name"] for row in named["queues"]] == ["empty", "q"]


@pytest.mark.parametrize("width", [1, 20, 79, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Names are cut, in cells: wide characters take two; none moves the cursor."""
    name = "\x1b[2J\n" + "写" * 60
    counts = dict.fromkeys(STATES, 123_456)
    snapshot = Snapshot([QueueRow(name, True, 3, counts)], [])
    job = RunningJob(name, name, name, 1e6, {"a": name}, name, cancelling=False)
    for line in (*queue_lines(snapshot, width), job_line(job, width)):
        assert "\x1b" not in line
        assert "\n" not in line
        assert len(fit(line, width).rstrip()) == len(line.rstrip())


# -- the view ------------------------------------------------------------------------------------


def test_a_job_is_chosen_and_cancelled_softly(
    queue: Queue, make: Make, screen: typing.Callable[..., Screen]
) -> None:
    """5.1: and only that one; before one is chosen a key cancels nothing."""
    make(_polite, concurrency=3)
    jobs = [queue.add("export", job_id=f"job-{number}") for number in range(3)]
    eventually(lambda: queue.get_job_count("active") == 3)
    shown = screen()
    shown.until("job-2")
    shown.press("c")
    shown.until("choose a job first")
    shown.press("\x1bOB\x1bOB")  # down, down
    shown.press("c")
    shown.until("requested")
    job = queue.get_active(0, 2)
    eventually(lambda: queue.get_job_count("failed") == 1, what=job)
    (failed,) = queue.get_failed()
    assert failed.id == "job-1"
    assert failed.failed_reason == "Job cancelled: cancelled by hand in geventq top"
    assert [one.get_state() for one in jobs].count("active") == 2
    shown.press("q")
    assert shown.ends() == 0
    assert "\x1b[?1049l" in shown.raw  # the terminal is as it was


def test_a_job_that_looks_at_nothing_is_killed(
    queue: Queue, make: Make, screen: typing.Callable[..., Screen]
) -> None:
    """2.5: softly it goes on, hard it ends."""
    make(lambda job, token: gevent.sleep(60), kill_after=0.1)
    job = queue.add("deaf", job_id="deaf-1")
    eventually(job.is_active)
    shown = screen("q")
    shown.until("deaf-1")
    shown.press("\x1bOB")
    shown.press("c")
    shown.until("cancel deaf-1: requested")
    assert job.is_active()
    shown.press("k")
    eventually(job.is_failed)


@pytest.mark.slow
def test_the_choice_stays_on_its_job(
    queue: Queue, make: Make, screen: typing.Callable[..., Screen]
) -> None:
    """Jobs above it end: what is cancelled is what was chosen, not what stands there now."""
    make(_polite, concurrency=3)
    for number in range(3):
        queue.add("n", job_id=f"job-{number}")
    eventually(lambda: queue.get_job_count("active") == 3)
    shown = screen()
    shown.until("job-2")
    shown.press("\x1bOB\x1bOB")
    eventually(lambda: shown.marks() >= 1, 40, every=0.01)
    queue.cancel_job("job-0", wait=30)
    shown.forget()
    # Its row, and its age, are drawn anew a second: some looks later job-0 is not there.
    eventually(lambda: shown.marks() >= 5, 40, every=0.01)
    shown.press("c")
    eventually(lambda: {one.id for one in queue.get_failed()} == {"job-0", "job-1"})


def test_it_follows_the_size_of_the_terminal_and_new_jobs(
    queue: Queue, make: Make, screen: typing.Callable[..., Screen]
) -> None:
    make(_polite, concurrency=3)
    queue.add("n", job_id="first")
    shown = screen(rows=24, columns=80)
    shown.until("first")
    for rows, columns in ((10, 40), (2, 5), (30, 120)):
        shown.forget()
        shown.resized(rows, columns)
        shown.until("up")
    queue.add("n", job_id="second")
    shown.until("second")
    shown.press("q")
    assert shown.ends() == 0
    assert "Traceback" not in shown.raw


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(
    queue: Queue, screen: typing.Callable[..., Screen], number: signal.Signals
) -> None:
    queue.add("n")
    shown = screen()
    shown.until("quit")
    shown._process.send_signal(number)
    assert shown.ends() == 128 + number
    assert "\x1b[?1049l" in shown.raw
    assert "Traceback" not in shown.raw
