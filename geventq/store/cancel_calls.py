"""The script that cancels, as Python sees it (cancellation.md 4).

Owns the arguments and replies of ``cancel.lua``, and that a call is sent again by its nonce
(3.6).  Knows neither why somebody asks nor whether he waits.  Every method yields to the hub and
raises `RedisUnavailableError` or `GeventqError`; no greenlets run here.
"""

from __future__ import annotations

import json
import typing

from geventq import backoff, clock
from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.foreign import times_in
from geventq.job import Job
from geventq.store.keys import RequestKeys
from geventq.store.scripts import load

if typing.TYPE_CHECKING:
    from geventq.store.client import Argument, Client
    from geventq.store.keys import QueueKeys

__all__ = ["Answer", "Asked", "CancelCalls"]

_AT_ONCE: typing.Final = 500  # jobs a call: what is filed, told and published takes some 20 ms


class Asked(typing.Protocol):
    """A request, as far as it is sent (`geventq.cancel_request.Request`)."""

    nonce: str
    text: str
    reason_json: str
    retry: bool
    force: bool

    def record(self) -> dict[str, typing.Any]: ...
    def message(self) -> dict[str, typing.Any]: ...


class Answer(typing.NamedTuple):
    """What the script says of one job: see its header."""

    status: str
    state: str
    worker: str


class CancelCalls:
    """The calls of one queue."""

    def __init__(self, client: Client, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    def send(
        self, request: Asked, job_ids: typing.Sequence[str], *, dry_run: bool = False
    ) -> typing.Iterator[Answer]:
        """Cancel the jobs, or with `dry_run` only tell what would happen; one answer for each,
        in order.  Sends a call whenever the answers of the one before are used up."""
        left = list(job_ids)
        while left:
            answers = self._call(request, left[:_AT_ONCE], dry_run)
            yield from answers
            del left[: len(answers)]

    def _call(self, request: Asked, job_ids: list[str], dry_run: bool) -> list[Answer]:
        while True:
            flag = "d" if dry_run else "f" if request.force else ""
            args = [*self._head(request, flag), *self._jobs(request, job_ids, flag)]
            keys = RequestKeys(self._keys, request.nonce)
            replies = self._client.script(load("cancel"), keys, args, again=True)
            answers = [Answer(*map(_text, reply)) for reply in replies]
            if answers[0].status != "changed":
                known = [answer.status != "changed" for answer in answers]
                return answers[: known.index(False)] if False in known else answers

    def _head(self, request: Asked, flag: str) -> list[Argument]:
        message = request.message() | {"prefix": self._keys.prefix, "db": self._client.database}
        more = json.dumps(message, separators=(",", ":"), ensure_ascii=False)[1:-1]
        return [
            self._keys.base,
            clock.wall_ms(),
            json.dumps(request.record(), separators=(",", ":"), ensure_ascii=False),
            request.text,
            json.dumps(self._keys.name, ensure_ascii=False),
            more,
            flag,
            "",
        ]

    def _jobs(self, request: Asked, job_ids: list[str], flag: str) -> list[Argument]:
        """Five values a job.  Who takes running jobs away has to look at them first: what comes
        next is by their own rules, as they are now."""
        if flag != "f":
            return [part for job_id in job_ids for part in (job_id, "", "", "", "f")]
        args: list[Argument] = []
        fields = ("timestamp", "attemptsMade", "atm", "opts")
        commands = [("HMGET", self._keys.base + job_id, *fields) for job_id in job_ids]
        payload: list[tuple[Argument, ...]] = [*commands]
        for job_id, found in zip(job_ids, self._client.pipeline(payload, again=True), strict=True):
            timestamp, old_made, made, opts = found
            made = old_made or made or b"0"
            args += (job_id, timestamp or b"", made, "", _then(request, made, opts or b"{}"))
        return args


def _then(request: Asked, made: bytes, opts: bytes) -> str | int | float:
    """What becomes of a job whose run is ended from outside: the script's `then_what`."""
    try:
        options = decode(opts)
        attempts_made = int(made) + 1
    except ValueError:
        return "f"
    options = options if isinstance(options, dict) else {}
    attempts = int(times_in(options.get("attempts"), 2**53) or 0)
    if request.retry and attempts_made < attempts:
        kind = options.get("backoff")
        named = isinstance(kind, dict) and kind.get("type") not in backoff.BUILT_IN
        if named:  # only its worker knows that strategy
            return 0
        error, job = GeventqError(request.text), typing.cast(Job, None)  # for strategies alone
        return backoff.next_delay(options, attempts_made, error, job) or 0
    return "x" if attempts_made >= attempts else "f"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
