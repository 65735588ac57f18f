"""``geventq top``: queues, workers and running jobs, live, with keys to cancel a job.

On a terminal it is a view of the whole screen (curses), drawn once a second; elsewhere, and with
``--json``, one plain listing.  The view keeps to the width that there is; the job that is chosen
stays chosen when others come and go.  No greenlets but the caller's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import typing
import unicodedata

from geventq import clock
from geventq.commands import settings
from geventq.commands.console import Console, safe, without_passwords
from geventq.errors import GeventqError

if typing.TYPE_CHECKING:
    import curses

    from geventq.commands.watching import RunningJob, Snapshot, Watch

__all__ = ["add_arguments", "top"]

_EVERY: typing.Final = 1.0  # seconds between two looks
_TURN: typing.Final = 0.1  # seconds until a change of the terminal's size is seen
_BAR: typing.Final = 10  # characters
_REASON: typing.Final = "cancelled by hand in geventq top"
_HELP: typing.Final = "up/down choose   c cancel   k kill   q quit"
_SHOWN: typing.Final = ("active", "waiting", "prioritized", "delayed", "failed", "completed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` what `top` reads."""
    parser.epilog = (
        "Keys: up and down choose a job, c cancels it softly, k kills it, q quits.  Where standard "
        "output is no terminal, one listing is printed."
    )
    parser.set_defaults(run=top)
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="only these (all)")


def top(given: argparse.Namespace) -> int:
    """Show the view until somebody quits, or print one listing."""
    from geventq.checks import check_prefix, check_queue_name
    from geventq.commands.watching import Watch  # and with it redis, which no worker may have yet

    names = [check_queue_name(name, "queue") for name in given.queues]
    with Watch(settings.url(given), check_prefix(settings.prefix(given)), names) as watch:
        first = watch.look()  # what cannot be reached is told before the screen is taken
        if not given.json and _has_screen():
            import curses

            curses.wrapper(lambda screen: _View(screen, watch, first).run())
            return 0
    console = Console(given.json)
    console.data(dataclasses.asdict(first))
    for line in (*queue_lines(first, 100), "", *(job_line(job, 100) for job in first.jobs)):
        console.line(line)
    return 0


def _has_screen() -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        import curses

        curses.setupterm(os.environ.get("TERM", "dumb"), sys.stdout.fileno())
    except (ImportError, curses.error):  # a Python without it, a terminal that nobody knows
        return False
    return bool(curses.tigetstr("cup"))  # it can move its cursor


# -- lines -----------------------------------------------------------------------------------


def fit(text: str, width: int) -> str:
    """`text` in exactly `width` cells of a terminal: cut, or filled up.  Wide characters take
    two cells, and marks that stand on another one none."""
    shown, used = "", 0
    for one in safe(text):
        wide = unicodedata.east_asian_width(one) in "WF"
        cells = 0 if unicodedata.combining(one) else 2 if wide else 1
        if used + cells > width:
            break
        shown, used = shown + one, used + cells
    return shown + " " * (width - used)


def queue_lines(snapshot: Snapshot, width: int) -> list[str]:
    """A heading, and a line a queue."""
    counts = "".join(f"{state.replace('ized', 'y'):>10}" for state in _SHOWN)
    room = max(4, width - len(counts) - 8)
    lines = [f"{fit('QUEUE', room)} workers{counts.upper()}"]
    for row in snapshot.queues:
        counts = "".join(f"{row.counts[state]:>10}" for state in _SHOWN)
        name = f"{row.name} (paused)" if row.paused else row.name
        lines.append(f"{fit(name, room)} {row.workers:>7}{counts}")
    if not snapshot.queues:
        lines.append("no queues")
    return [line[:width] for line in lines]


def job_heading(width: int) -> str:
    return fit(f"{'QUEUE':<12} {'ID':<14} {'NAME':<14} {'AGE':>7}  {'PROGRESS':<15} WORKER", width)


def job_line(job: RunningJob, width: int) -> str:
    """One running job."""
    state = "cancelling" if job.cancelling else job.worker or ""
    return fit(
        f"{fit(job.queue, 12)} {fit(job.id, 14)} {fit(job.name, 14)} {_age(job.seconds):>7}  "
        f"{fit(_progress(job.progress), 15)} {state}",
        width,
    ).rstrip()


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h"


def _share(progress: typing.Any) -> float | None:
    """How much of a job is done, 0 to 1, where its progress tells: a number up to 100 is
    percents; one above counts something else, and is shown as it is."""
    if isinstance(progress, bool) or not isinstance(progress, int | float):
        return None
    return max(0.0, progress / 100) if progress and progress <= 100 else None


def _progress(progress: typing.Any) -> str:
    share = _share(progress)
    if share is not None:
        filled = round(share * _BAR)
        return "#" * filled + "." * (_BAR - filled) + f" {share:4.0%}"
    if progress in (None, 0):
        return ""
    return progress if isinstance(progress, str) else json.dumps(progress, ensure_ascii=False)


# -- the live view ---------------------------------------------------------------------------


class _View:
    """The screen, the job that is chosen, and what the last key brought."""

    def __init__(self, screen: curses.window, watch: Watch, first: Snapshot) -> None:
        self._screen = screen
        self._watch = watch
        self._now = first
        self._chosen: tuple[str, str] | None = None  # queue and id
        self._at = 0  # its place, where the one that takes it over is found
        self._first = 0  # of the jobs that are on the screen
        self._said = ""

    def run(self) -> None:
        """Until somebody quits.  Keys are heard while the hub turns."""
        import curses

        with contextlib.suppress(curses.error):  # a terminal whose cursor cannot be hidden
            curses.curs_set(0)
        self._screen.nodelay(True)
        look_at = clock.monotonic() + _EVERY
        while True:
            self._draw()
            while (key := self._key()) == -1 and clock.monotonic() < look_at:
                self._wait()
            if key == ord("q"):
                return
            self._pressed(key)
            if clock.monotonic() >= look_at:
                self._look()
                look_at = clock.monotonic() + _EVERY

    def _key(self) -> int:
        return self._screen.getch()

    def _wait(self) -> None:
        import gevent.socket

        with contextlib.suppress(TimeoutError):
            gevent.socket.wait_read(sys.stdin.fileno(), _TURN)

    def _look(self) -> None:
        """An outage is told on the screen; the next look may succeed."""
        try:
            self._now = self._watch.look()
        except GeventqError as error:
            self._said = without_passwords(str(error))
            return
        self._choose_again()

    def _choose_again(self) -> None:
        """The same job, or the one that stands where it stood."""
        keys = [(job.queue, job.id) for job in self._now.jobs]
        if self._chosen in keys:
            self._at = keys.index(self._chosen)
        else:
            self._at = max(0, min(self._at, len(keys) - 1))
            self._chosen = None

    def _pressed(self, key: int) -> None:
        import curses

        step = {curses.KEY_UP: -1, curses.KEY_DOWN: 1, ord("p"): -1, ord("n"): 1}.get(key)
        if step is not None and self._now.jobs:
            at = self._at if self._chosen is None else self._at + step
            self._at = max(0, min(at, len(self._now.jobs) - 1))
            job = self._now.jobs[self._at]
            self._chosen = (job.queue, job.id)
        elif key in (ord("c"), ord("k")):
            self._cancel(hard=key == ord("k"))

    def _cancel(self, *, hard: bool) -> None:
        """Only a job that somebody chose: none that has just come to its place."""
        if self._chosen is None:
            self._said = "choose a job first: up, down"
            return
        queue, job_id = self._chosen
        try:
            result = self._watch.queue(queue).cancel_job(job_id, _REASON, hard=hard)
        except GeventqError as error:
            self._said = without_passwords(str(error))
            return
        self._said = f"{'kill' if hard else 'cancel'} {safe(job_id)}: {result.status}"
        self._look()

    def _draw(self) -> None:
        import curses

        height, width = self._screen.getmaxyx()
        width -= 1  # the last cell of a line moves the cursor on
        self._screen.erase()
        queues = queue_lines(self._now, width)
        shown = max(2, min(len(queues), height // 3))
        lines = [*queues[:shown], "", job_heading(width)]
        room = max(0, height - len(lines) - 2)
        self._first = max(0, min(self._first, self._at), self._at - room + 1)
        for number, line in enumerate(lines):
            self._put(number, line, curses.A_BOLD if line.startswith("QUEUE") else 0)
        for number, job in enumerate(self._now.jobs[self._first : self._first + room]):
            is_chosen = (job.queue, job.id) == self._chosen
            self._put(
                len(lines) + number,
                fit(job_line(job, width), width) if is_chosen else job_line(job, width),
                curses.A_REVERSE if is_chosen else 0,
            )
        self._put(height - 2, fit(self._said, width), curses.A_BOLD)
        self._put(height - 1, fit(_HELP, width), 0)
        self._screen.refresh()

    def _put(self, row: int, text: str, how: int) -> None:
        import curses

        # The terminal has just become smaller, or is tiny: the next turn draws again.
        with contextlib.suppress(curses.error):
            self._screen.addstr(row, 0, text, how)
