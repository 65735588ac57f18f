"""The request recorded in a job's hash (field ``gqc``), as the public `Cancellation`
(cancellation.md 4.3)."""

from __future__ import annotations

from geventq.cancellation import Cancellation
from geventq.codec import decode

__all__ = ["cancellation_of", "record_attempt"]


def cancellation_of(record: bytes) -> Cancellation | None:
    """The request of a record; `None` for one that another program has broken."""
    try:
        told = decode(record)
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
