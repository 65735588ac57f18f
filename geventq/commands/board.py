"""What the demo shows: narrated lines, and below them a row for each job that moves.

On a terminal the rows stay at the bottom and are drawn again several times a second, by the
greenlet ``geventq-demo-board``.  In a pipe, or on a terminal that cannot move its cursor, each
change is a line of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import typing

import gevent

from geventq import wakeups
from geventq.commands.console import Console, safe

__all__ = ["Board", "Row"]

_EVERY: typing.Final = 0.1  # seconds between two drawings
_BAR: typing.Final = 24  # characters
_STEP: typing.Final = 0.2  # of a job, between two lines in a pipe
_COLOURS: typing.Final = {
    "runs": "36",
    "completed": "32",
    "cancelled": "33",
    "stopped": "33",
    "failed": "31",
}


class Row:
    """One job: its `state`, how much of it is `done` (0 to 1, or unknown) and a `note`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "waits"
        self.done: float | None = None
        self.note = ""


class Board:
    """Use it as a context manager.  Where the console is for JSON only, it shows nothing."""

    def __init__(self, names: typing.Iterable[str], console: Console) -> None:
        self.rows = {name: Row(name) for name in names}
        self._write = console.paint
        self._begun = time.perf_counter()
        self._live = not console.only_json and _can_draw(len(self.rows))
        self._coloured = self._live and not os.environ.get("NO_COLOR")
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self._full, self._empty = "█░" if encoding == "utf8" else "#."
        self._drawn = 0  # lines of the block that stands at the cursor
        self._stop = wakeups.Event()
        self._artist: gevent.Greenlet[..., None] | None = None

    def __enter__(self) -> Board:
        if self._live:
            self._artist = gevent.Greenlet(self._paint)
            self._artist.name = "geventq-demo-board"
            self._artist.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._artist is not None:
            self._artist.join()
            self._draw()
        self._drawn = 0

    def _paint(self) -> None:
        while not self._stop.is_set():
            self._draw()
            self._stop.wait(_EVERY)

    # -- what the story tells --------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """A line of the story, with the time since its beginning."""
        line = f"{self._seconds():6.1f} s  {text}" if text else ""
        if self._live:
            self._write(self._back() + line + "\n" + self._block())
        else:
            self._write(line + "\n")

    def set(self, name: str, state: str, note: str = "", done: float | None = None) -> None:
        """A job's state has changed."""
        row = self.rows[name]
        row.state, row.note = state, note
        if done is not None:
            row.done = done
        self._plainly(row)

    def progress(self, name: str, done: float, note: str = "") -> None:
        """A job is further than before."""
        row = self.rows[name]
        before, row.done, row.note = row.done or 0.0, done, note
        if note or int(done / _STEP) > int(before / _STEP):
            self._plainly(row)

    # -- how it looks ----------------------------------------------------------------------

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _plainly(self, row: Row) -> None:
        if not self._live:
            share = "" if row.done is None else f"{row.done:4.0%} "
            text = f"{row.name:<10} {row.state:<10} {share:<6}{row.note}".rstrip()
            self._write(f"{self._seconds():6.1f} s  {text}\n")

    def _draw(self) -> None:
        self._write(self._back() + self._block())

    def _back(self) -> str:
        """Moves the cursor to the block's first line and clears from there on."""
        return f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""

    def _block(self) -> str:
        width = shutil.get_terminal_size().columns - 1
        lines = ["", *(self._line(row, width) for row in self.rows.values())]
        self._drawn = len(lines)
        return "\n".join(lines) + "\n"

    def _line(self, row: Row, width: int) -> str:
        if row.done is not None:
            filled = round(row.done * _BAR)
            bar, share = self._full * filled + self._empty * (_BAR - filled), f"{row.done:4.0%}"
        elif row.state == "runs":  # nobody knows how far it is: something moves
            at = int(self._seconds() / _EVERY) % _BAR
            bar, share = self._empty * at + self._full + self._empty * (_BAR - at - 1), ""
        else:
            bar, share = self._empty * _BAR, ""
        head, tail = f"  {row.name:<10} ", f" {bar} {share:<5} {safe(row.note)}"
        line = f"{head}{row.state:<10}{tail}"[:width]
        colour = _COLOURS.get(row.state) if self._coloured else None
        if colour is not None and len(line) > len(head) + 10:
            begin, end = len(head), len(head) + 10
            line = f"{line[:begin]}\x1b[{colour}m{line[begin:end]}\x1b[0m{line[end:]}"
        return line


def _can_draw(rows: int) -> bool:
    return (
        sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
        and shutil.get_terminal_size().lines > rows + 3
    )
