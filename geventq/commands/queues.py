"""``geventq pause``, ``resume``, ``retry``, ``clean`` and ``workers``: of a whole queue."""

from __future__ import annotations

import argparse
import dataclasses
import typing

from geventq.checks import check_integer
from geventq.commands import settings
from geventq.commands.console import Console, safe
from geventq.commands.jobs import queue_of
from geventq.errors import GeventqError, RedisUnavailableError

if typing.TYPE_CHECKING:
    from geventq.queue import Queue

__all__ = [
    "add_arguments",
    "clean",
    "pause",
    "resume",
    "retry",
    "workers",
]

_REFUSED: typing.Final = 1


def add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
    """Give `parser` what one of the five commands reads."""
    parser.add_argument("queue", metavar="QUEUE")
    if command == "retry":
        _add_retry_arguments(parser)
    elif command == "clean":
        _add_clean_arguments(parser)
    else:
        run = {"pause": pause, "resume": resume, "workers": workers}[command]
        parser.set_defaults(run=run)


def pause(given: argparse.Namespace) -> int:
    """Let no worker take jobs of the queue."""
    with queue_of(given) as queue:
        queue.pause()
    return _paused(given, is_paused=True)


def resume(given: argparse.Namespace) -> int:
    """Undo `pause`."""
    with queue_of(given) as queue:
        queue.resume()
    return _paused(given, is_paused=False)


def _paused(given: argparse.Namespace, *, is_paused: bool) -> int:
    console = Console(given.json)
    console.data({"queue": given.queue, "paused": is_paused})
    console.line(f"{'paused' if is_paused else 'resumed'} {safe(given.queue)}")
    return 0


def _add_retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=retry)
    parser.epilog = (
        "Without ids all jobs go that had failed when the command began.  Exit status 1: a job "
        "was not found, or is not in that state."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="the jobs (all that have failed)")
    parser.add_argument(
        "--state", choices=("failed", "completed"), default="failed", help="where they are (failed)"
    )


def retry(given: argparse.Namespace) -> int:
    """Run finished jobs again: those of the ids, or all of a state."""
    console = Console(given.json)
    with queue_of(given) as queue:
        if not given.ids:
            count = queue.retry_jobs(given.state)
            console.data({"queue": given.queue, "retried": count})
            console.line(f"retried {count} {given.state} jobs of {safe(given.queue)}")
            return 0
        rows: list[dict[str, str]] = []
        try:
            for job_id in given.ids:
                rows.append({"job_id": job_id, "status": _retried(queue, job_id, given.state)})
        finally:  # an outage in its midst hides nothing that was done
            console.data(rows)
            for row in rows:
                console.line(f"{safe(row['job_id']):>12}  {row['status']}")
    return 0 if all(row["status"] == "retried" for row in rows) else _REFUSED


def _retried(queue: Queue, job_id: str, state: typing.Any) -> str:
    job = queue.get_job(job_id)
    if job is None:
        return "not_found"
    try:
        job.retry(state)
    except RedisUnavailableError:
        raise
    except GeventqError:  # gone, or elsewhere
        found = queue.get_job_state(job_id)
        return "not_found" if found == "unknown" else found
    return "retried"


def _add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    from geventq.store.clearing import CLEANED

    parser.set_defaults(run=clean)
    parser.epilog = "Of active jobs only those go that no worker holds a lock of."
    add = parser.add_argument
    add("--state", choices=CLEANED, default="completed", help="where they are (completed)")
    add("--grace", metavar="SECONDS", help="leave those that are younger (0)")
    add("--limit", metavar="N", help="the N oldest at most (all)")


def clean(given: argparse.Namespace) -> int:
    """Delete jobs of a state that are old enough."""
    grace = settings.seconds("--grace", given.grace) or 0.0
    limit = 0
    if given.limit is not None:
        limit = check_integer("--limit", settings.whole("--limit", given.limit), 1)
    failure: GeventqError | None = None
    with queue_of(given) as queue:
        try:
            gone = queue.clean(grace, limit, given.state)
        except GeventqError as error:  # what was done before it is told all the same
            failure, gone = error, list(error.results)
    console = Console(given.json)
    console.data({"queue": given.queue, "cleaned": len(gone), "ids": gone})
    console.line(f"deleted {len(gone)} {given.state} jobs of {safe(given.queue)}")
    if failure is not None:
        raise failure
    return 0


def workers(given: argparse.Namespace) -> int:
    """Show the workers of the queue on all machines, as their last heartbeats told."""
    from geventq.control.group import WorkerGroup

    console = Console(given.json)
    with WorkerGroup(given.queue, settings.url(given), settings.prefix(given)) as group:
        found = group.members()
    console.data([dataclasses.asdict(one) for one in found])
    for one in found:
        jobs = f"{one.active_jobs} of {one.concurrency}"
        console.line(f"{safe(one.name or one.id):<36}  {safe(one.node)}:{one.pid}  {jobs} jobs")
    if not found:
        console.line(f"no workers of {safe(given.queue)}")
    return 0
