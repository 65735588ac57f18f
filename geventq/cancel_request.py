"""Asking for jobs to be cancelled, in whatever state, from any process: what one may say, and
what one is told.

Owns the options of `Queue.cancel_job` and their checks, and `CancelResult`.  Carrying it out is
`geventq.store.cancelling`'s business.  No greenlets run here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import typing

from geventq.cancellation.request import encoded_reason, failed_reason
from geventq.checks import Seconds, check_flag, check_kill, check_seconds
from geventq.codec import decode

__all__ = [
    "DEFAULTS",
    "CancelOptions",
    "CancelResult",
    "Request",
    "new_nonce",
]


class CancelOptions(typing.TypedDict, total=False):
    """How `Queue.cancel_job` asks.  `Seconds` are a number or a `datetime.timedelta`."""

    hard: bool | None
    """Also kill a running job, wherever it sits.  `None` leaves that to its worker."""
    kill_after: Seconds | None
    """Seconds between the moment its worker hears of the request and the kill; means `hard`.
    `None` leaves it to the worker."""
    retry: bool
    """Stop only the run that is under way: the job's own retry rules say what follows.  Without
    it the job is over, until somebody retries it by hand."""
    wait: Seconds | None
    """Seconds to wait for the end of a running job, and to be told of it.  `None`: do not wait."""
    cascade: bool
    """Cancel its unfinished children, too."""
    force: bool
    """Do not wait for its worker, dead or alive: a running job is taken away from it, and a
    result of it will be refused; with `hard`, a worker that lives kills it, too.  Where workers
    have a `cancel_secret`, only for who has it."""


DEFAULTS: typing.Final[typing.Mapping[str, object]] = {
    "hard": None,
    "kill_after": None,
    "retry": False,
    "wait": None,
    "cascade": True,
    "force": False,
}

Status = typing.Literal["cancelled", "requested", "stopped", "completed", "finished", "not_found"]
Stage = typing.Literal["sent", "seen", "grace", "thrown", "stuck", "refused"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """What came of asking for one job to be cancelled; true if it will not go on, or was asked.

    `status` is one of

    * ``"cancelled"``: it was not running, and will not run unless somebody retries it;
    * ``"requested"``: it is running, and the request is stored and sent;
    * ``"stopped"``: its worker confirmed the end (`wait=`), or it was taken away from it
      (`force=True`);
    * ``"completed"``: it finished first (`wait=`);
    * ``"finished"``: it was over before;  ``"not_found"``: there is no such job.
    """

    status: Status
    job_id: str
    state: str
    """Where it was before, as `Queue.get_job_state` says it."""
    worker: str | None = None
    """Who runs it: the worker's id where its lock token tells, else its `name`."""
    stage: Stage | None = None
    """How far stopping it has come, of a job that was running: where it has stopped, how far that
    had to go.  ``"refused"``: it was asked softly, because its worker wants the kill signed
    (`cancel_secret`)."""
    stack: str | None = None
    """Where a stuck job sits."""
    seconds: float | None = None
    """From the request to its end, with `wait=`."""
    cascade: tuple[CancelResult, ...] = ()
    """The same of its children."""

    def __bool__(self) -> bool:
        return self.status in ("cancelled", "requested", "stopped")


def new_nonce() -> str:
    """What tells one request from every other."""
    return os.urandom(16).hex()


@functools.cache
def _asker(pid: int) -> str:
    """Who asks, as workers and the record are told."""
    return f"{platform.node()}:{pid}"


class Request:
    """What a caller asks, checked: the same for each of the jobs he asks it of.

    Raises `ValueError` or `TypeError` for what cannot be asked, before anything is written.
    """

    def __init__(self, reason: typing.Any = None, **options: typing.Unpack[CancelOptions]) -> None:
        for option in options:
            if option not in DEFAULTS:
                raise TypeError(f"{option}: unknown option; known are {', '.join(DEFAULTS)}")
        text = encoded_reason(reason)  # once, so that what is checked is what is sent
        hard, kill_after = check_kill(options.get("hard"), options.get("kill_after"))
        wait = options.get("wait")
        self.wait = None if wait is None else check_seconds("wait", wait)
        check_flag("cascade", options.get("cascade", True))
        self.force = check_flag("force", options.get("force", False))
        retry = check_flag("retry", options.get("retry", False))
        reason = reason if type(reason) is str else decode(text)  # as it is read, whatever it is
        self.reason_json = text.decode()
        self.reason_text = reason if type(reason) is str else self.reason_json
        """As events tell it."""
        self.hard = hard
        self.kill_after = kill_after
        self.retry = retry
        self.by = _asker(os.getpid())
        self.nonce = new_nonce()
        self.text = failed_reason(reason, "remote")
        """What a job fails with that it ends (cancellation.md 2.6)."""

    def record(self) -> dict[str, typing.Any]:
        """The members of its record that are the same for each job (4.3)."""
        return {
            "v": 1,
            "reason": self.reason_json,
            "kind": "remote",
            "hard": self.hard,
            "kill_after": self.kill_after,
            "default_grace": self.kill_after is None
            and ("mode" if self.hard is None else self.hard),
            "retry": self.retry,
            "by": self.by,
            "nonce": self.nonce,
            "waits": self.wait is not None,
        }

    def message(self) -> dict[str, typing.Any]:
        """The same of its messages (5.1); the reason stands apart."""
        told = {
            "nonce": self.nonce,
            "hard": self.hard,
            "killAfter": self.kill_after,
            "retry": self.retry,
            "by": self.by,
            "waits": self.wait is not None,
        }
        return told | {"forced": True} if self.force else told
