"""What is published about cancellations: its form, its limits, and what of it is ignored
(cancellation.md 5.1, 5.6).

A message is a hint from anybody who may publish: nothing in it is trusted before it was checked
here.  Knows neither Redis nor jobs; no greenlets run here.
"""

from __future__ import annotations

import collections
import logging
import typing

from geventq.cancellation import Cancellation
from geventq.codec import decode, is_sound
from geventq.record import is_nonce

__all__ = ["CHANNEL", "LARGEST", "Call", "Ignored", "Message", "Refused", "channel_of", "parse"]

CHANNEL: typing.Final = "bullmq:cancel"
"""Where everybody listens."""
LARGEST: typing.Final = 64 * 1024
"""Bytes that a message may have."""
_NEWEST: typing.Final = 2**53  # of whole numbers: what JSON carries safely


log = logging.getLogger("geventq")


def channel_of(worker_id: str) -> str:
    """Where one worker alone listens."""
    return f"{CHANNEL}:{worker_id}"


class Refused(ValueError):
    """A message that is ignored; `kind` says why in a word or two."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Message(typing.NamedTuple):
    """A request to cancel one job.

    Without `nonce` it is a plain one: any program may have sent it, it reaches every prefix and
    database, and asks softly, for this run only.  With one, a record in the job's hash says the
    same.
    """

    queue: str
    job_id: str
    request: Cancellation
    nonce: str | None = None
    prefix: str | None = None
    database: int | None = None
    hard: bool | None = None
    """`None`: the worker's own mode decides."""
    kill_after: float | None = None
    attempts_made: int | None = None
    timestamp: int | None = None
    """The job's, in milliseconds."""
    is_waited_for: bool = False
    is_forced: bool = False
    """The job was taken away from its worker already."""
    signed: bytes | None = None
    """All of it, as it was sent, where it says that it is signed."""
    is_believed: bool = True
    """It is acted on, as far as its kind is, before a record was read."""


class Call(typing.NamedTuple):
    """What a group asks of one worker (5.7)."""

    queue: str
    method: str
    args: list[typing.Any]
    prefix: str
    database: int
    nonce: str
    """Of the request: one that comes again is carried out once."""
    at: int
    """When it was asked: milliseconds by the server's clock."""
    node: str | None = None
    """Whose workers are asked; `None`: all."""
    signed: bytes | None = None
    """All of it, as it was sent, where it says that it is signed."""


def parse(data: bytes) -> Message | Call:
    """What a message says.  Raises `Refused`."""
    if len(data) > LARGEST:
        raise Refused("too large", f"{len(data)} bytes, at most {LARGEST} are heard")
    try:
        told = decode(data)
    except (ValueError, RecursionError) as error:
        raise Refused("not JSON", str(error) or type(error).__name__) from None
    if not isinstance(told, dict):
        raise Refused("wrong types", "it is no object")
    queue = _member(told, "queue", str)
    if queue is None:
        raise Refused("wrong types", "queue: a text is needed")
    signed = data if "sig" in told else None
    if "call" in told:
        return _call(told, queue, signed)
    job_id = _member(told, "jobId", str)
    if not job_id:
        raise Refused("wrong types", "jobId: a text is needed")
    if told.get("nonce") is None:
        return Message(queue, job_id, _request(told, None, retry=True))
    return _with_record(told, queue, job_id, signed)


def _call(told: dict[str, typing.Any], queue: str, signed: bytes | None) -> Call:
    texts = [_member(told, name, str) for name in ("call", "prefix", "nonce")]
    args, database, at = _member(told, "args", list), _whole(told, "db"), _whole(told, "at")
    if None in texts or database is None or at is None:
        raise Refused("wrong types", "call, prefix, nonce, db, at: needed in a call")
    method, prefix, nonce = map(str, texts)
    _check_nonce(nonce)
    node = _member(told, "node", str)
    return Call(queue, method, args or [], prefix, database, nonce, at, node, signed)


def _check_nonce(nonce: object) -> None:
    if not is_nonce(nonce):
        raise Refused("wrong types", "nonce: 1 to 64 letters and digits are needed")


def _with_record(
    told: dict[str, typing.Any], queue: str, job_id: str, signed: bytes | None
) -> Message:
    _check_nonce(told["nonce"])
    prefix, database = _member(told, "prefix", str), _whole(told, "db")
    if prefix is None or database is None:
        raise Refused("wrong types", "prefix, db: needed beside a nonce")
    made, timestamp, at = _whole(told, "atm"), _whole(told, "ts"), _number(told, "at")
    if made is None or timestamp is None or at is None:
        raise Refused("wrong types", "atm, ts, at: numbers are needed beside a nonce")
    return Message(
        queue,
        job_id,
        _request(told, at / 1000, retry=_member(told, "retry", bool) is True),
        _member(told, "nonce", str),
        prefix,
        database,
        _member(told, "hard", bool),
        _number(told, "killAfter"),
        made,
        timestamp,
        _member(told, "waits", bool) is True,
        _member(told, "forced", bool) is True,
        signed,
    )


def _request(told: dict[str, typing.Any], at: float | None, *, retry: bool) -> Cancellation:
    hard = _member(told, "hard", bool) is True and at is not None
    try:
        return Cancellation(told.get("reason"), "remote", hard, retry, at, _member(told, "by", str))
    except (ValueError, TypeError) as error:
        raise Refused("wrong types", str(error)) from None


T = typing.TypeVar("T")


def _member(told: dict[str, typing.Any], name: str, kind: type[T]) -> T | None:
    """The member `name`, `None` where it is missing or null."""
    value = told.get(name)
    if value is None:
        return None
    if type(value) is not kind:
        raise Refused("wrong types", f"{name}: no {type(value).__name__} is possible")
    if isinstance(value, str) and not is_sound(value):
        raise Refused("wrong types", f"{name}: it holds a lone surrogate")
    return value


def _number(told: dict[str, typing.Any], name: str) -> float | None:
    value = told.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < _NEWEST:
        raise Refused("wrong types", f"{name}: a number from 0 on is needed")
    return float(value)


def _whole(told: dict[str, typing.Any], name: str) -> int | None:
    value = _number(told, name)
    if value is not None and value % 1:
        raise Refused("wrong types", f"{name}: a whole number is needed")
    return None if value is None else int(value)


class Ignored:
    """What was ignored, counted by its kind; the first of each is told in the log."""

    def __init__(self, whom: str, queue: str | None = None) -> None:
        self._whom = whom
        self._extra = None if queue is None else {"queue": queue}
        self.counts: collections.Counter[str] = collections.Counter()

    def note(self, kind: str, text: str) -> None:
        """A message was ignored.  Does not yield."""
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            log.warning(
                "a message to %s was ignored, and so is each like it: %s: %s",
                self._whom,
                kind,
                text,
                extra=self._extra,
            )
