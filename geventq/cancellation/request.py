"""What a cancellation says: the request, how two of them merge, and the text a job fails with.

Plain values.  This module knows neither gevent nor Redis, and no greenlet runs in it.
"""

from __future__ import annotations

import dataclasses
import json
import typing

from geventq import clock
from geventq.checks import seconds_text, show
from geventq.codec import decode, encode

__all__ = [
    "KINDS",
    "LARGEST_REASON",
    "Cancellation",
    "LockLost",
    "encoded_reason",
    "failed_reason",
]

LARGEST_REASON: typing.Final = 16 * 1024
"""Bytes of JSON that a reason may have: it may have to be recorded (cancellation.md 5.6)."""

#: Which request decides the outcome when several meet (cancellation.md 2.2).
KINDS: typing.Final[dict[str, int]] = {
    "shutdown": 0,
    "timeout": 1,
    "parent": 2,
    "remote": 2,
    "user": 2,
    "lock_lost": 3,
}


@dataclasses.dataclass(frozen=True, slots=True)
class LockLost:
    """The reason of a cancellation whose cause is a lost lock.

    Three things have this name.  A lost lock, noticed by the worker, is a cancellation of *kind*
    ``lock_lost``, whose *reason* is ``LockLost(job_id)``; the worker tells its listeners so by the
    event ``lock_lost``.  `LockLostError` is an ordinary error: it is raised in a processor that
    goes on after that, where it writes to its job (progress, data, logs), and the write is
    refused.
    """

    job_id: str

    def __str__(self) -> str:
        return f"the lock of job {self.job_id} was lost"

    def to_json(self) -> dict[str, str]:
        """The form it has on the wire: ``{"lockLost": job_id}``."""
        return {"lockLost": self.job_id}


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Cancellation:
    """One request to stop a job.  Always truthy, whatever the reason is.

    `reason` is what the caller gave: `None`, text or any JSON value, of which a copy is kept;
    `requested_at` is in seconds since the epoch (`None`: now); `requested_by` names whoever asked,
    if known.  Raises `ValueError` or `TypeError` for an unknown kind and for a reason that is not
    JSON.
    """

    reason: typing.Any = None
    kind: str = "user"
    hard: bool = False
    retry: bool = True
    requested_at: float = 0.0
    requested_by: str | None = None

    def __init__(
        self,
        reason: typing.Any = None,
        kind: str = "user",
        hard: bool = False,
        retry: bool = True,
        requested_at: float | None = None,
        requested_by: str | None = None,
    ) -> None:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(sorted(KINDS))}, not {show(kind)}")
        if reason is not None and not (type(reason) is str and _is_short_text(reason)):
            reason = _kept(reason)
        # Every cancel makes one: a third of its cost would be the usual way to set frozen fields.
        _set_reason(self, reason)
        _set_kind(self, kind)
        _set_hard(self, hard)
        _set_retry(self, retry)
        _set_requested_at(self, clock.wall() if requested_at is None else requested_at)
        _set_requested_by(self, requested_by)

    def __hash__(self) -> int:
        # The reason may be a dict; equality still compares it.
        return hash((self.kind, self.hard, self.retry, self.requested_at, self.requested_by))

    def __str__(self) -> str:
        if isinstance(self.reason, LockLost):
            return f"Job cancelled: {self.reason}"
        return self.failed_reason()

    @classmethod
    def timed_out(cls, seconds: float, *, hard: bool = False) -> Cancellation:
        """The request made by a time limit of `seconds`."""
        return cls(f"timed out after {seconds_text(seconds)} s", "timeout", hard)

    def failed_reason(self) -> str:
        """The text a job fails with (cancellation.md 2.6)."""
        return failed_reason(self.reason, self.kind)

    def merged(self, later: Cancellation) -> Cancellation:
        """This request with what is stronger in a `later` one; `self` itself if nothing is.

        Outcome and text follow the request that decides the outcome: the higher kind, then
        the one that forbids a retry, of equals the first.  Hardness is added either way.
        """
        mine = (KINDS[self.kind], not self.retry)
        theirs = (KINDS[later.kind], not later.retry)
        base = later if theirs > mine else self
        hard, retry = self.hard or later.hard, self.retry and later.retry
        if base is self and hard == self.hard and retry == self.retry:
            return self
        return dataclasses.replace(base, hard=hard, retry=retry)

    def to_json(self) -> dict[str, typing.Any]:
        """A dict of JSON values; `from_json` reads it."""
        return {
            "reason": _plain(self.reason),
            "kind": self.kind,
            "hard": self.hard,
            "retry": self.retry,
            "requestedAt": self.requested_at,
            "requestedBy": self.requested_by,
        }

    @classmethod
    def from_json(cls, record: typing.Mapping[str, typing.Any]) -> Cancellation:
        """The request that `to_json` wrote.  Raises `ValueError` for any other shape."""
        try:
            kind, hard, retry = record["kind"], record["hard"], record["retry"]
            at, by = record["requestedAt"], record.get("requestedBy")
            reason = record.get("reason")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a cancellation: {record!r}") from error
        sound = (
            isinstance(kind, str)
            and isinstance(hard, bool)
            and isinstance(retry, bool)
            and isinstance(at, (int, float))
            and (by is None or isinstance(by, str))
        )
        if not sound:
            raise ValueError(f"not a cancellation: {record!r}")
        if kind == "lock_lost" and isinstance(reason, dict) and set(reason) == {"lockLost"}:
            reason = LockLost(str(reason["lockLost"]))
        return cls(reason, kind, hard, retry, float(at), by)


_set_reason, _set_kind, _set_hard, _set_retry, _set_requested_at, _set_requested_by = (
    vars(Cancellation)[field.name].__set__ for field in dataclasses.fields(Cancellation)
)
_kept_reason: typing.Final = vars(Cancellation)["reason"].__get__


class _KeptJson(typing.NamedTuple):
    """A reason that could be changed, as it was given."""

    text: bytes


def _reason_of(cancellation: Cancellation) -> typing.Any:
    """Each reader has a copy of his own: a job that changes what its token shows changes neither
    what it fails with nor what others are told."""
    kept = _kept_reason(cancellation, Cancellation)
    return decode(kept.text) if type(kept) is _KeptJson else kept


# Set by `pickle` and `copy` alone.
Cancellation.reason = property(_reason_of, _set_reason)  # type: ignore[misc]


def failed_reason(reason: typing.Any, kind: str) -> str:
    """The text that a job fails with which was cancelled for that reason (cancellation.md 2.6)."""
    if reason is None or reason == "":
        return "Job cancelled"
    if isinstance(reason, str):
        return f"Job {reason}" if kind == "timeout" else f"Job cancelled: {reason}"
    return f"Job cancelled: {json.dumps(_plain(reason), ensure_ascii=False)}"


def _plain(reason: typing.Any) -> typing.Any:
    return reason.to_json() if isinstance(reason, LockLost) else reason


def encoded_reason(reason: object) -> bytes:
    """A reason as JSON.  Raises `TypeError` or `ValueError` for what is not JSON, or too long."""
    text = encode("reason", reason)
    if len(text) > LARGEST_REASON:
        raise ValueError(
            f"reason: at most {LARGEST_REASON} bytes of JSON are possible, got {len(text)}"
        )
    return text


def _is_short_text(text: str) -> bool:
    """Most reasons are text that can be sent and is not long, of which nothing need be copied."""
    if len(text) > LARGEST_REASON // 7:  # six bytes a character at most, and the quotes
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kept(reason: typing.Any) -> typing.Any:
    """The reason as it will be written: what was checked is what is used, whatever its owner does
    to it afterwards.  A tuple becomes a list, a key of a dict text."""
    if isinstance(reason, LockLost | _KeptJson):
        return reason
    try:
        text = encoded_reason(reason)
        value = decode(text)
        return _KeptJson(text) if isinstance(value, dict | list) else value
    except (TypeError, ValueError) as error:
        why = str(error).removeprefix("reason: ")
        if why.startswith("at most"):
            raise
        rule = f"reason: None, text or a JSON value is needed, got {show(reason)}: {why}"
        raise type(error)(rule) from None
