"""The request recorded in a job's hash (field ``gqc``), as the public `Cancellation`
(cancellation.md 4.3)."""

from __future__ import annotations

from geventq.cancellation import Cancellation
from geventq.codec import decode, encode

__all__ = ["cancellation_of", "record_attempt", "record_of"]


def record_of(asked: Cancellation, made: int) -> bytes:
    """The record of a request to a run that found `made` attempts made."""
    told = {
        "reason": asked.to_json()["reason"],
        "kind": asked.kind,
        "hard": asked.hard,
        "retry": asked.retry,
        "at": round(asked.requested_at * 1000),
        "by": asked.requested_by,
        "atm": made,
    }
    return encode("reason", told)


def cancellation_of(record: bytes) -> Cancellation | None:
    """The request of a record; `None` for one that another program has broken, or of a kind that
    concerns a single worker and is never recorded: the job would come back for ever."""
    try:
        told = decode(record)
        if told["kind"] in ("shutdown", "lock_lost"):
            return None
        return Cancellation(
            told.get("reason"),
            told["kind"],
            bool(told["hard"]),
            bool(told["retry"]),
            told["at"] / 1000,
            told.get("by"),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def record_attempt(record: bytes) -> int | None:
    """The number of attempts made when the request was recorded: it tells runs apart (4.4)."""
    try:
        made = decode(record)["atm"]
    except (ValueError, TypeError, KeyError):
        return None
    return made if isinstance(made, int) else None
