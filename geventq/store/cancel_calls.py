"""The script that cancels, as Python sees it (cancellation.md 4).

Owns the arguments and replies of ``cancel.lua``, and that a call is sent again by its nonce
(3.6).  With a secret each job gets its own message, signed: so the job is looked at first, for
what binds the message to the run.  Knows neither why somebody asks nor whether he waits.  Every
method yields to the hub and raises `RedisUnavailableError` or `GeventqError`; no greenlets run
here.
"""

from __future__ import annotations

import typing

from geventq import backoff, clock
from geventq.codec import decode, encode
from geventq.errors import GeventqError
from geventq.foreign import times_in
from geventq.job import Job
from geventq.store.client import checked
from geventq.store.keys import RequestKeys
from geventq.store.scripts import load, pack

if typing.TYPE_CHECKING:
    from geventq.cancel_secret import CancelSecret
    from geventq.store.client import Argument, Client
    from geventq.store.keys import QueueKeys

__all__ = ["Answer", "Asked", "CancelCalls"]

_AT_ONCE: typing.Final = 500  # jobs a call: what is filed, told and published takes some 20 ms
_SIGNED_BYTES: typing.Final = 2**20  # of signed messages in one


class Asked(typing.Protocol):
    """A request, as far as it is sent (`geventq.cancel_request.Request`)."""

    nonce: str
    text: str
    reason_json: str
    reason_text: str
    hard: bool | None
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

    def __init__(self, client: Client, keys: QueueKeys, secret: CancelSecret | None) -> None:
        self._client = client
        self._keys = keys
        self._secret = secret

    def send(
        self, request: Asked, job_ids: typing.Sequence[str], *, dry_run: bool = False
    ) -> typing.Iterator[Answer]:
        """Cancel the jobs, or with `dry_run` only tell what would happen; one answer for each,
        in order.  Sends a call whenever the answers of the one before are used up."""
        left = list(job_ids)
        most = _AT_ONCE
        if self._secret is not None:
            most = max(1, min(most, _SIGNED_BYTES // (len(request.reason_json) + 1000)))
        while left:
            answers = self._call(request, left[:most], dry_run)
            yield from answers
            del left[: len(answers)]

    def _call(self, request: Asked, job_ids: list[str], dry_run: bool) -> list[Answer]:
        while True:
            flag = ("f" if request.force else "") + ("d" if dry_run else "")
            flag += "k" if request.hard else ""
            flag += "r" if request.retry else ""
            looks = not dry_run and (request.force or self._secret is not None)
            args = (
                self._looked_at(request, job_ids, flag)
                if looks
                else [*self._head(request, flag), *self._unseen(job_ids)]
            )
            keys = RequestKeys(self._keys, request.nonce)
            replies = self._client.script(load("cancel"), keys, args, again=True)
            answers = [Answer(*map(_text, reply)) for reply in replies]
            if answers[0].status != "changed":
                known = [answer.status != "changed" for answer in answers]
                return answers[: known.index(False)] if False in known else answers

    def _head(self, request: Asked, flag: str) -> list[Argument]:
        return [
            self._keys.base,
            str(clock.wall_ms()),
            _json(request.record()),
            request.text,
            _json(self._keys.name),
            f'{_json(self._message(request))[1:-1]},"reason":{request.reason_json}',
            flag,
            "" if self._secret is None else self._secret.key,
            request.nonce,
            request.reason_text,
        ]

    def _message(self, request: Asked) -> dict[str, typing.Any]:
        return request.message() | {"prefix": self._keys.prefix, "db": self._client.database}

    @staticmethod
    def _unseen(job_ids: list[str]) -> list[Argument]:
        return [part for job_id in job_ids for part in (job_id, "", "", "", "f")]

    def _looked_at(self, request: Asked, job_ids: list[str], flag: str) -> list[Argument]:
        """The arguments for jobs as they are now: what comes after a job that is taken away is by
        its own rules, and a signature is for one run alone."""
        fields = ("timestamp", "attemptsMade", "atm", "opts")
        payload = [pack(("HMGET", self._keys.base + job_id, *fields)) for job_id in job_ids]
        replies = self._client.call(
            b"".join([*payload, pack(("TIME",))]), len(payload) + 1, again=True
        )
        at, time = None, replies.pop()
        if self._secret:
            seconds, microseconds = checked([time])[0]
            at = int(seconds) * 1000 + int(microseconds) // 1000
        args = self._head(request, flag)
        for job_id, found in zip(job_ids, replies, strict=True):
            # A key that holds no hash is the script's to tell of.
            timestamp, old_made, made, opts = found if isinstance(found, list) else [None] * 4
            made = next(one for one in (old_made, made, b"0") if one is not None)
            then = _then(request, made, opts or b"{}") if request.force else "f"
            signed = b"" if at is None else self._signed(request, job_id, timestamp, made, at)
            args += (job_id, timestamp or b"", made, signed, then)
        return args

    def _signed(
        self, request: Asked, job_id: str, timestamp: bytes | None, made: bytes, at: int
    ) -> bytes:
        """The message about one job.  The reason is in it as it was encoded once for all."""
        told = {
            "queue": self._keys.name,
            "jobId": job_id,
            "atm": _whole(made),
            "ts": _whole(timestamp or b"0"),
            "at": at,
            **self._message(request),
        }
        assert self._secret is not None
        text = f'{_json(told)[:-1]},"reason":{request.reason_json}}}'
        return self._secret.signed(text.encode())


def _then(request: Asked, made: bytes, opts: bytes) -> str | int | float:
    """What becomes of a job whose run is ended from outside: the script's `then_what`."""
    try:
        options = decode(opts)
        attempts_made = _whole(made) + 1
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


def _whole(text: bytes) -> int:
    """As the script reads it, where another program has stored what is none."""
    return int(times_in(text.decode(errors="replace"), 2**53 - 1) or 0)


def _json(value: object) -> str:
    return encode("request", value).decode()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
