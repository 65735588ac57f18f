"""What ``geventq worker`` prints of its workers' events.  No greenlets run here but the workers'
own, which call."""

from __future__ import annotations

import json
import logging
import os
import time
import typing

from geventq.commands.console import Console, safe

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.job import Job
    from geventq.worker import Worker

__all__ = ["Report"]

log = logging.getLogger("geventq.worker")


class Report:
    """Tells what the worker runs and what it cancels: a line, or a JSON object, an event."""

    def __init__(
        self, console: Console, worker: Worker, *, with_pid: bool, logs: bool = False
    ) -> None:
        self._console = console
        self._worker = worker
        self._with_pid = with_pid
        self._logs = logs  # so that all that the process says is in the lines of its log

    def listen(self, quiet: bool) -> None:
        """Listen to the worker's events; with `quiet` not to those of jobs that go well."""
        on = self._worker.on
        if not quiet:
            on("active", lambda job: self._job("active", job))
            on("completed", lambda job, result: self._job("completed", job, result=result))
        on("failed", lambda job, error: self._job("failed", job, error=_said(error)))
        on("retrying", lambda job, error: self._job("retrying", job, error=_said(error)))
        on("cancelled", lambda job, request: self._cancelled("cancelled", job, request))
        on("lock_lost", lambda job, request: self._cancelled("lock_lost", job, request))
        on("stuck", lambda job, stack: self._job("stuck", job, stack=stack))
        on(
            "stalled",
            lambda job_id: self.say("stalled", f"job {job_id} had lost its worker", id=job_id),
        )
        on("no_slot", lambda: self.say("no_slot", "stuck jobs hold every slot"))
        on("ready", lambda: self.say("ready"))
        on("closing", lambda: self.say("closing"))
        on("closed", lambda: self.say("closed"))

    def starting(self, processor: str, address: str) -> None:
        """The first line: what will run, and for which server."""
        concurrency = self._worker.concurrency
        self.say(
            "starting",
            f"{processor}, concurrency {concurrency}, {address}",
            processor=processor,
            concurrency=concurrency,
            redis=address,
        )

    def _job(self, event: str, job: Job, **detail: typing.Any) -> None:
        shown = next(iter(detail.values()), "")
        if not isinstance(shown, str):
            shown = json.dumps(shown, ensure_ascii=False, default=str)
        if event == "stuck":
            shown = "alive although it was killed; its stack is in the log"
        counts = event in ("completed", "failed", "retrying")
        self._about(event, job, shown, counts, **detail)

    def _cancelled(self, event: str, job: Job, request: Cancellation) -> None:
        how = "hard" if request.hard else "soft"
        counts = event == "cancelled" and request.kind != "shutdown"  # then the job goes back
        text = f"{request}, {how}, {request.kind}"
        self._about(event, job, text, counts, cancellation=request.to_json())

    def _about(self, event: str, job: Job, text: str, counts: bool, **detail: typing.Any) -> None:
        """One event of a job; `counts`: its attempt is among those made by now."""
        attempt = max(1, job.attempts_made) if counts else job.attempts_made + 1
        which = f"{job.name} {job.id}" + (f" attempt {attempt}" if attempt > 1 else "")
        self.say(event, f"{which}  {text}", id=job.id, name=job.name, attempt=attempt, **detail)

    def say(self, event: str, text: str = "", **fields: typing.Any) -> None:
        """One event: `text` for people, `fields` for programs."""
        queue, pid, now = self._worker.queue_name, os.getpid(), time.time()
        if self._logs:
            job = {"job": fields.pop("id", None), "attempt": fields.pop("attempt", None)}
            if "name" in fields:  # which is the logger's
                job["job_name"] = fields.pop("name")
            said = f"{event} {text}".strip()
            log.info("%s", said, extra={"event": event, "queue": queue, **job, **fields})
            return
        who = f"[{pid}] " if self._with_pid else ""
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        self._console.line(f"{clock} {who}{safe(queue)}  {event:<9} {safe(text)}".rstrip())
        self._console.data({"event": event, "queue": queue, "pid": pid, "at": now, **fields})


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
