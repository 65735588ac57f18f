"""Real processes of the command line and of users' scripts, each in a directory of its own.

Their output goes to files, which a test reads while they run: nobody has to empty a pipe.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import typing

from tests.support.waiting import eventually

__all__ = ["ROOT", "Program", "Programs", "lives"]

ROOT: typing.Final = pathlib.Path(__file__).resolve().parents[2]


def lives(pid: int) -> bool:
    """Whether the process has not ended; one that waits for its parent to look has."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before, or while it was read
        return False


class Program:
    """One process; `out` and `err` are what it has written so far."""

    def __init__(
        self, process: subprocess.Popen[bytes], out: pathlib.Path, err: pathlib.Path
    ) -> None:
        self._process = process
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def events(self, event: str | None = None) -> list[dict[str, typing.Any]]:
        """The JSON lines written so far, of one kind or all.  A line that is not JSON fails."""
        found = [
            json.loads(line) for line in self.out.splitlines(keepends=True) if line[-1] == "\n"
        ]
        return [one for one in found if event in (None, one["event"])]

    def until_event(self, event: str, count: int = 1, timeout: float = 40.0) -> list[typing.Any]:
        """Wait for `count` JSON lines of that kind."""

        def told() -> list[typing.Any]:
            assert self.is_running or len(self.events(event)) >= count, self.told()
            found = self.events(event)
            return found if len(found) >= count else []

        return eventually(told, timeout, every=0.01, what=f"{count} x {event}")

    def until_out(self, text: str, timeout: float = 40.0) -> None:
        """Wait until it has written `text` to standard output."""

        def told() -> bool:
            assert self.is_running or text in self.out, self.told()
            return text in self.out

        eventually(told, timeout, every=0.01, what=text)

    def told(self) -> str:
        return f"{self._process.args}: {self._process.poll()}\n{self.out}\n{self.err}"

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ends(self, timeout: float = 40.0) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        eventually(lambda: not self.is_running, timeout, every=0.01, what=self.told)
        return int(self._process.wait())

    def kill(self) -> None:
        if self.is_running:
            self._process.kill()
        self._process.wait()


class Programs:
    """Starts programs in `directory`; `end` kills those that still run."""

    def __init__(self, directory: pathlib.Path, **environment: str) -> None:
        self.directory = directory
        unset = ("GEVENTQ_", "XDG_STATE_HOME")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        self.environment = kept | {
            "PYTHONPATH": str(ROOT),
            "GEVENTQ_HOME": str(directory / "home"),
            **environment,
        }
        self._started: list[Program] = []

    def write(self, name: str, text: str) -> pathlib.Path:
        """A file of the user."""
        path = self.directory / name
        path.write_text(text)
        return path

    def start(self, *command: str, **environment: str) -> Program:
        """Start a Python process with these arguments."""
        number = len(self._started)
        out, err = self.directory / f"{number}.out", self.directory / f"{number}.err"
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.directory,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C on the terminal is pytest's
            )
        program = Program(process, out, err)
        self._started.append(program)
        return program

    def geventq(self, *arguments: str, **environment: str) -> Program:
        """Start a command."""
        return self.start("-m", "geventq", *arguments, **environment)

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a command to its end: exit status, standard output, standard error."""
        program = self.geventq(*arguments, **environment)
        status = program.ends()
        assert "Traceback" not in program.err, program.err
        return status, program.out, program.err

    def end(self) -> None:
        for program in self._started:
            program.kill()
