"""``geventq cancel``: ask for jobs to be cancelled, and say what came of each.

Owns how the words of the command line become one call of `Queue.cancel_jobs`, and the exit
status.  What a request does is `geventq.cancel_request`'s business.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing

from geventq.commands import settings
from geventq.commands.console import Console, UsageError, safe
from geventq.commands.jobs import STATES, queue_of
from geventq.errors import GeventqError

if typing.TYPE_CHECKING:
    from geventq.cancel_request import CancelResult
    from geventq.queue import Queue

__all__ = ["add_arguments", "cancel"]

_REFUSED: typing.Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` what `cancel` reads."""
    parser.epilog = (
        "A job that does not run fails at once; one that runs is asked, wherever its worker is. "
        "Exit status: 0 done; 1 if a job was not found, was over already or was refused, and with "
        "--wait if one completed or still runs; 2 wrong usage; 3 Redis could not be reached."
    )
    add = parser.add_argument
    add("queue", metavar="QUEUE")
    add("ids", nargs="*", metavar="ID", help="the jobs; or choose them by the filters")
    add("--all", action="store_true", help="every job that has not ended")
    add("--name", metavar="NAME", help="those of this name")
    add("--state", choices=STATES, help="those in this state")
    add("--reason", metavar="TEXT", help="why; the job's failure says so")
    add(
        "--hard",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also kill a running job, wherever it sits; --no-hard never; else its worker decides",
    )
    add("--kill-after", metavar="SECONDS", help="seconds that it has until then; means --hard")
    add("--wait", metavar="SECONDS", help="wait so long for the end of running jobs")
    add("--retry", action="store_true", help="stop this run only; the job's retry rules apply")
    add(
        "--force",
        action="store_true",
        help="take running jobs away from their worker, whether it is alive or not",
    )
    add("--dry-run", action="store_true", help="tell what would happen; change nothing")


def cancel(given: argparse.Namespace) -> int:
    """Cancel jobs, and show one result each, in the order of the ids."""
    if given.ids and (given.all or given.name is not None or given.state is not None):
        raise UsageError("cancel: ids make no sense together with --all, --name or --state")
    if not (given.ids or given.all or given.name is not None or given.state is not None):
        raise UsageError("cancel: ids, or one of --all, --name and --state, are needed")
    options = _options(given)
    results: typing.Sequence[CancelResult | None] = ()
    failure: GeventqError | None = None
    with queue_of(given) as queue:
        try:
            results = _ask(queue, given, options)
        except GeventqError as error:  # what was done before it is told all the same
            failure, results = error, error.results or ()
    _show(given, results, failed=failure is not None)
    if failure is not None:
        raise failure
    asked_is_done = given.wait is None or given.dry_run
    good = {"cancelled", "stopped", *(["requested"] if asked_is_done else [])}
    return 0 if all(one is not None and one.status in good for one in results) else _REFUSED


def _options(given: argparse.Namespace) -> dict[str, typing.Any]:
    """The options of `Queue.cancel_jobs`."""
    return {
        "reason": given.reason,
        "hard": given.hard,
        "kill_after": settings.seconds("--kill-after", given.kill_after),
        "wait": settings.seconds("--wait", given.wait),
        "retry": given.retry,
        "force": given.force,
        "dry_run": given.dry_run,
    }


def _ask(
    queue: Queue, given: argparse.Namespace, options: dict[str, typing.Any]
) -> list[CancelResult]:
    if given.ids:
        return queue.cancel_jobs(given.ids, **options)
    if given.name is None and given.state is None:
        return queue.cancel_jobs(where=lambda job: True, **options)
    return queue.cancel_jobs(name=given.name, state=given.state, **options)


def _show(
    given: argparse.Namespace, results: typing.Sequence[CancelResult | None], *, failed: bool
) -> None:
    """A result is missing where a job had to be left as it is, or nobody knows."""
    console = Console(given.json)
    rows: list[dict[str, typing.Any]] = []
    for number, result in enumerate(results):
        if result is not None:
            rows.append(dataclasses.asdict(result))
            console.line(_line(result, dry_run=given.dry_run))
        elif given.ids:
            rows.append({"job_id": given.ids[number], "status": "unknown"})
            console.line(f"{safe(given.ids[number]):>12}  unknown")
    console.data(rows)
    if not (rows or failed):
        console.line(f"no jobs to cancel in {safe(given.queue)}")


def _line(result: CancelResult, *, dry_run: bool) -> str:
    """One result for people; where a stuck job sits follows in lines of its own."""
    words = [f"{safe(result.job_id):>12}", f"{result.status:<10}"]
    if dry_run:
        words.append("(dry run)")
    if result.status != "not_found":
        words.append(f"was {result.state}")
    if result.worker:
        words.append(f"on {safe(result.worker)}")
    if result.stage:
        words.append(result.stage)
    if result.seconds is not None:
        words.append(f"after {result.seconds:.1f} s")
    lines = ["  ".join(words).rstrip()]
    lines += ["    " + safe(line) for line in (result.stack or "").splitlines()]
    return "\n".join(lines)
