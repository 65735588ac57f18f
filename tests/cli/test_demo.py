"""``geventq demo``, seen in a pipe, on a terminal, by a program, and when something is wrong.

All of them run at the same time: each takes some ten seconds, in which it mostly waits.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import fcntl
import json
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest
import redis

from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

# Each breaks one promise of geventq, as the demo's job sees it.
SABOTAGE = {
    "export": """
def deaf(job, token):
    for percent in range(1, 101):
        demo.gevent.sleep(0.03)
        job.update_progress(percent)
    return 100
demo.JOBS["export"] = deaf
""",
    "payment": """
def unprotected(job, token):
    demo.gevent.sleep(2)
    for percent in range(10, 101, 10):
        demo.gevent.sleep(0.2)
        job.update_progress(percent)
demo.JOBS["payment"] = unprotected
""",
    "mail": """
demo._OPTIONS.clear()  # no second attempt
""",
}

HIT = """
import os, signal, sys
from geventq import cli, demo
def hit(job, token):
    os.kill(os.getpid(), signal.SIGINT)
    demo.gevent.sleep(60)
demo.JOBS["thumbnail"] = hit
sys.exit(cli.main(["demo"]))
"""


@dataclasses.dataclass
class Runs:
    """The demos under way."""

    pipe: Program
    as_json: Program
    wrong: dict[str, Program]
    half_read: subprocess.Popen[bytes]
    terminal: subprocess.Popen[bytes]
    screen: int
    begun: float


@pytest.fixture(scope="module")
def runs(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[Runs]:
    directory = tmp_path_factory.mktemp("demo")
    programs = Programs(directory, GEVENTQ_REDIS_URL=redis_url, GEVENTQ_PREFIX="demo-test")
    wrong = {}
    for name, text in SABOTAGE.items():
        script = (
            f"import sys\nfrom geventq import cli, demo\n{text}\nsys.exit(cli.main(['demo']))\n"
        )
        programs.write(f"{name}.py", script)
        wrong[name] = programs.start(f"{name}.py")
    screen, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    terminal = subprocess.Popen(
        [sys.executable, "-m", "geventq", "demo"],
        cwd=directory,
        env=programs.environment
        | {"GEVENTQ_PREFIX": "demo-screen", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    half_read = subprocess.Popen(
        [sys.executable, "-m", "geventq", "demo"],
        cwd=directory,
        env=programs.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Runs(
            programs.geventq("demo"),
            programs.geventq("demo", "--json"),
            wrong,
            half_read,
            terminal,
            screen,
            time.monotonic(),
        )
    finally:
        programs.end()
        for process in (terminal, half_read):
            process.kill()
            process.communicate()
        os.close(screen)


def _all_written(descriptor: int) -> str:
    """Everything written to a terminal until its last writer has closed it."""
    written = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # EIO: nobody has it open any more
            part = b""
        if not part:
            return written.decode()
        written += part


class _Screen:
    """As much of a terminal as the demo uses; anything else in its output fails."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0
        self.shots: list[list[str]] = []

    def feed(self, text: str) -> None:
        for part in re.split(r"(\x1b\[\d*[A-Za-z]|\r\n)", text):
            if part == "\r\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
                self.row -= int(up[1])
                assert self.row >= 0
            elif part == "\x1b[J":
                self.shots.append(list(self.lines))
                del self.lines[self.row + 1 :]
                self.lines[self.row] = ""
            elif not re.fullmatch(r"\x1b\[\d+m", part):
                assert "\x1b" not in part
                assert "\n" not in part
                self.lines[self.row] += part


def test_on_a_terminal_progress_is_live(runs: Runs) -> None:
    """Bars move in their places, the story stands above them, exit status 0."""
    screen = _Screen()
    screen.feed(_all_written(runs.screen))
    assert runs.terminal.wait(40) == 0
    assert len(screen.shots) > 30
    bars = {
        line[24:48]
        for shot in screen.shots
        for line in shot
        if line.startswith("  export ") and len(line) > 48
    }
    assert len(bars) > 5
    assert all(set(bar) <= set("█░") for bar in bars)
    final = "\n".join(screen.lines)
    for name in ("thumbnail", "mail", "export", "download", "payment", "report", "elsewhere"):
        rows = re.findall(rf"^  {name} .*[█░]", final, flags=re.MULTILINE)
        assert len(rows) == 1, final
    assert re.search(r"s  cancel export, softly", final)
    assert "All as it should be." in final
    assert all(len(line) <= 90 for shot in screen.shots for line in shot if "█" in line)


def test_in_a_pipe_it_is_plain_lines_in_the_order_of_the_story(runs: Runs) -> None:
    assert runs.pipe.ends(30) == 0
    out, err = runs.pipe.out, runs.pipe.err
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    told = (
        r"export +runs +40%",
        r"cancel export, softly",
        r"export +cancelled +4\d%  Job cancelled: the user left the page",
        r"kill download",
        r"download +cancelled +Job cancelled: it hangs",
        r"kill payment",
        r"payment +runs +100%",
        r"payment +cancelled +100%  Job cancelled: no answer from the shop",
        r"break report's lock",
        r"report +stopped",
        r"report +(waits|runs) .*the stalled check has brought it back",
        r"report +runs +[4-9]\d%",
        r"report +completed +100%  went on at",
        r"  ok +thumbnail +completed  640x480",
        r"  ok +mail +completed  sent at the second attempt",
        r"  ok +export +failed ",
        r"  ok +download +failed ",
        r"  ok +payment +failed ",
        r"  ok +report +completed  went on at",
        r"  ok +elsewhere +failed +Job cancelled: asked from another process",
        r"All as it should be\.",
    )
    at = 0
    for text in told:
        found = re.compile(text).search(out, at)
        assert found, f"{text} is not told (in its place):\n{out}"
        at = found.end()


def test_a_cancel_reaches_the_second_process(runs: Runs) -> None:
    """5.1: which is another one, and is gone when the demo has ended."""
    assert runs.pipe.ends(30) == 0
    told = re.search(
        r"elsewhere +runs .*in process (\d+)\n(.*\n)*.*cancel elsewhere: it runs in process \1,"
        r"(.*\n)*.*elsewhere is stopped, \d\.\d{3} s after it was asked",
        runs.pipe.out,
    )
    assert told, runs.pipe.out
    assert int(told[1]) != runs.pipe.pid
    assert not pathlib.Path(f"/proc/{told[1]}").exists()


def test_for_a_program_it_is_json_and_nothing_else(runs: Runs) -> None:
    assert runs.as_json.ends(30) == 0
    rows = json.loads(runs.as_json.out)
    assert [row["job"] for row in rows] == [
        *("thumbnail", "mail", "export", "download", "payment", "report", "elsewhere"),
    ]
    assert all(row["ok"] for row in rows)


def test_a_reader_that_leaves_early_does_not_end_the_story(runs: Runs) -> None:
    """``geventq demo | head -1``"""
    process = runs.half_read
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"geventq demo")
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(40) == 0


@pytest.mark.parametrize("name", SABOTAGE)
def test_an_outcome_that_is_wrong_is_told_and_ends_with_1(runs: Runs, name: str) -> None:
    """A job that cancellation does not stop, a commit that is cut, a retry that does not come."""
    program = runs.wrong[name]
    assert program.ends(120) == 1
    assert re.search(rf"^  WRONG +{name} ", program.out, flags=re.MULTILINE), program.told()
    assert program.out.count("WRONG") == 1
    assert program.out.endswith("NOT as it should be.\n")


def test_it_takes_some_seconds_and_leaves_nothing_in_redis(runs: Runs, redis_url: str) -> None:
    programs = [runs.pipe, runs.as_json, *runs.wrong.values()]
    eventually(lambda: not any(one.is_running for one in programs), timeout=120)
    runs.half_read.wait(60)
    assert time.monotonic() - runs.begun < 120
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("demo-test:*", count=1000)) == []


def test_a_ctrl_c_that_hits_a_job_ends_the_demo(tmp_path: pathlib.Path) -> None:
    """Python calls a signal's handler in whatever greenlet runs: here it is that of a job, which
    would fail by it, and the story go on."""
    programs = Programs(tmp_path)
    programs.write("hit.py", HIT)
    try:
        program = programs.start("hit.py")
        assert program.ends(20) == 130
        assert program.err == ""
        assert "What became of each" not in program.out
    finally:
        programs.end()


def test_without_a_server_the_demo_starts_its_own(tmp_path: pathlib.Path) -> None:
    """The first thing a newcomer types: no address anywhere.  Ended early, it ends with 130."""
    import signal

    programs = Programs(tmp_path)
    try:
        program = programs.geventq("demo")
        program.until_out("on embedded:")
        program.until_out("export     runs")
        program.signal(signal.SIGINT)
        assert program.ends() == 130
        assert program.err == ""
    finally:
        programs.end()
