"""What the processes of an ordeal write down: one line an observation, in one file a process.

A line is ``<monotonic ns> <pid> <tag> <JSON>``, written by one system call, so that a process that
is killed leaves whole lines.  The clock is the machine's: lines of several processes compare.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
import typing

__all__ = ["Line", "Record", "Records"]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One observation.  `at` is in seconds on the machine's monotonic clock."""

    at: float
    pid: int
    tag: str
    what: typing.Any


class Record:
    """The file of this process."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._file = os.open(
            folder / f"{os.getpid()}.record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )

    def write(self, tag: str, what: typing.Any = None) -> None:
        text = f"{time.monotonic_ns()} {os.getpid()} {tag} {json.dumps(what)}\n"
        os.write(self._file, text.encode())

    def close(self) -> None:
        os.close(self._file)


class Records:
    """What all processes have written into `folder` so far."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._read: dict[pathlib.Path, int] = {}  # bytes of each file that are in `_lines`
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """All lines; those of one process are in their order.  Reads what is new."""
        for path in self._folder.glob("*.record"):
            start = self._read.get(path, 0)
            with open(path, "rb") as file:
                file.seek(start)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            self._lines += map(_line, whole.decode().splitlines())
        return self._lines

    def forget(self) -> None:
        """Drop what was written until now."""
        self.lines()
        self._lines = []


def _line(text: str) -> Line:
    at, pid, tag, what = text.split(" ", 3)
    return Line(int(at) / 1e9, int(pid), tag, json.loads(what))
