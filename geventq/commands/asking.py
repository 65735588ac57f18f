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
from geventq.errors import GeventqError, RedisUnavailableError

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
    parser.set_defaults(run=cancel)
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
    shown, options = _Shown(given), _options(given)
    with queue_of(given) as queue, shown:
        for asked in _asked(queue, given, options):
            shown.add(asked)
    if shown.failure is not None:
        raise shown.failure
    return 0 if shown.is_good else _REFUSED


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


class _Asked(typing.NamedTuple):
    """What came of one call."""

    ids: typing.Sequence[str]
    """Of the jobs, where they were known before."""
    results: typing.Sequence[CancelResult | None]
    failure: GeventqError | None = None


def _asked(
    queue: Queue, given: argparse.Namespace, options: dict[str, typing.Any]
) -> typing.Iterator[_Asked]:
    """Calls and what came of them, up to an outage; jobs that had to be left as they are stop
    nothing."""
    try:
        if given.ids:
            yield _call(queue, given.ids, options)
        elif given.name is not None:
            yield _call(queue, None, {**options, "name": given.name, "state": given.state})
        else:
            yield from _all_of(queue, given.state, options)
    except GeventqError as error:  # between two calls
        yield _Asked((), (), error)


def _call(queue: Queue, ids: typing.Sequence[str] | None, options: dict[str, typing.Any]) -> _Asked:
    try:
        return _Asked(ids or (), queue.cancel_jobs(ids, **options))
    except GeventqError as error:  # what was done all the same is told
        return _Asked(ids or (), error.results or (), error)


def _all_of(
    queue: Queue, state: str | None, options: dict[str, typing.Any]
) -> typing.Iterator[_Asked]:
    """Page by page, by their ids alone: the queue may be long, and its jobs large.

    Nobody is waited for before all were asked.  A job that a worker has taken since its page was
    read is waited for with those that run, but not where its run may be followed by another one,
    which the second request would stop as well.
    """
    running: dict[str, CancelResult | None] = {}  # and what came of asking already
    waits = options["wait"] is not None and not options["dry_run"]
    at_once = {**options, "wait": None}
    for place, page in queue.unfinished_ids(state):
        if place == "active":
            running |= dict.fromkeys(page)
            continue
        asked = _call(queue, page, at_once)
        pairs = list(zip(page, asked.results, strict=False))
        if waits and not options["retry"]:
            running |= {
                job_id: one for job_id, one in pairs if one is not None and one.stage == "sent"
            }
            pairs = [pair for pair in pairs if pair[0] not in running]
        yield _Asked([one for one, _ in pairs], [one for _, one in pairs], asked.failure)
        if isinstance(asked.failure, RedisUnavailableError):
            return
    if running:
        asked = _call(queue, list(running), options)
        results = [
            _ended(running[job_id], now)
            for job_id, now in zip(running, asked.results, strict=False)
        ]
        yield asked._replace(results=results)


def _ended(first: CancelResult | None, now: CancelResult | None) -> CancelResult | None:
    """What came of a job that was asked, and had ended when it was to be waited for."""
    if first is None or now is None or now.status != "finished":
        return now
    how: typing.Any = "completed" if now.state == "completed" else "stopped"
    return dataclasses.replace(first, status=how, stage=None)


class _Shown:
    """What is printed, while it comes: a context, at whose end it is whole.

    A result is missing where a job had to be left as it is, or nobody knows.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        asked_is_done = given.wait is None or given.dry_run
        self._good = {"cancelled", "stopped", *(["requested"] if asked_is_done else [])}
        self._given = given
        self._console = Console(given.json)
        self._rows = self._console.rows()
        self._is_empty = True
        self.is_good = True
        self.failure: GeventqError | None = None

    def add(self, asked: _Asked) -> None:
        """One call's."""
        self.failure = self.failure or asked.failure
        for number, result in enumerate(asked.results):
            if result is not None:
                self.is_good = self.is_good and result.status in self._good
                self._show(dataclasses.asdict(result), _line(result, dry_run=self._given.dry_run))
            elif asked.ids:
                job_id = asked.ids[number]
                row = {"job_id": job_id, "status": "unknown"}
                self._show(row, f"{safe(job_id):>12}  unknown")

    def _show(self, row: dict[str, typing.Any], line: str) -> None:
        self._is_empty = False
        self._rows.add(row)
        self._console.line(line)

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self._is_empty:
            return  # a wrong argument: nothing was asked
        self._rows.end()
        if self._is_empty and self.failure is None:
            self._console.line(f"no jobs to cancel in {safe(self._given.queue)}")


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
