"""``geventq add`` and ``geventq jobs``: put jobs into a queue, and look at them."""

from __future__ import annotations

import argparse
import json
import time
import typing

from geventq import job_options
from geventq.checks import seconds_text, show
from geventq.commands import settings
from geventq.commands.console import Console, UsageError, safe

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.queue import Queue

__all__ = ["ADD", "STATES", "add", "add_arguments", "listing", "queue_of"]

# As they are listed: what runs, what is to run, what is over.
STATES: typing.Final = (
    *("active", "waiting", "prioritized", "delayed", "waiting-children"),
    *("completed", "failed"),
)

ADD: typing.Final = tuple(
    settings.table_of(
        job_options.JobOptions,
        job_options.DEFAULTS,
        {*job_options.LATER, "telemetry", "timestamp"},  # which programs set, nobody by hand
    )
)
"""The settings of ``geventq add``."""

_LATER: typing.Final = settings.later(job_options.LATER)

_PAGE: typing.Final = 100  # jobs a state that are shown to people


def add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
    """Give `parser` what one of the two commands reads."""
    parser.add_argument("queue", metavar="QUEUE")
    if command == "add":
        parser.set_defaults(run=add)
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("data", nargs="?", metavar="JSON", help="its data ({})")
        settings.add_arguments(parser, (*ADD, *_LATER))
    else:
        parser.set_defaults(run=listing)
        parser.add_argument(
            "--state", action="append", choices=STATES, help="only these; may be repeated"
        )
        parser.add_argument(
            "--limit", metavar="N", help="of each state (100; with --json all of them)"
        )


def queue_of(given: argparse.Namespace) -> Queue:
    """The queue that the command line names."""
    from geventq.queue import Queue

    return Queue(given.queue, settings.url(given), settings.prefix(given))


def add(given: argparse.Namespace) -> int:
    """Add one job and show its id."""
    from geventq.options import LEFT_OUT

    data: typing.Any = LEFT_OUT
    if given.data is not None:
        try:
            data = settings.read_json(given.data)
        except UsageError as error:
            raise UsageError(f"data: {error}, got {show(given.data)}") from None
    options = settings.from_command_line(given, (*ADD, *_LATER))
    with queue_of(given) as queue:
        job = queue.add(given.name, data, **options)
    console = Console(given.json)
    console.data({"id": job.id})
    console.line(f"added job {safe(job.id)} to {safe(given.queue)}")
    return 0


def listing(given: argparse.Namespace) -> int:
    """List jobs, state after state, each once."""
    from geventq.checks import check_integer

    limit = None if given.json else _PAGE
    if given.limit is not None:
        limit = check_integer("--limit", settings.whole("--limit", given.limit), 1)
    console = Console(given.json)
    rows: list[dict[str, typing.Any]] = []
    with queue_of(given) as queue:
        seen: set[str] = set()
        for state in dict.fromkeys(given.state or STATES):
            jobs = queue.get_jobs(state, 0, -1 if limit is None else limit)
            for job in jobs[:limit]:
                if job.id not in seen:  # it may have moved on between two looks
                    seen.add(job.id)
                    rows.append({"id": job.id, "name": job.name, "state": state})
                    console.line(_row(job, state))
            if limit is not None and len(jobs) > limit:
                console.line(f"... more are {state}: --limit N shows N of each state")
    console.data(rows)
    if not rows:
        console.line(f"no jobs in {safe(given.queue)}")
    return 0


def _row(job: Job, state: str) -> str:
    """One job for people: what it is, how far it is, how it ended."""
    words = [f"{safe(job.id):>12}", f"{state:<16}", f"{safe(job.name):<20}"]
    if job.attempts_made:
        words.append(f"attempt {job.attempts_made}")
    if state == "active":
        if job.processed_on:
            words.append(f"for {max(0.0, time.time() - job.processed_on):.0f} s")
        if job.progress not in (None, 0):
            shown = job.progress if isinstance(job.progress, str) else json.dumps(job.progress)
            words.append("progress " + safe(shown))
    elif state == "failed":
        words.append(safe(job.failed_reason or ""))
    elif state == "completed":
        words.append(safe(json.dumps(job.return_value, ensure_ascii=False)))
    elif state == "delayed" and job.delay:
        words.append(f"delay {seconds_text(job.delay)} s")
    return "  ".join(words).rstrip()
