"""The request recorded in a job's hash (field ``gqc``), as the public `Cancellation`
(cancellation.md 4.3)."""

from __future__ import annotations

from geventq.cancellation import Cancellation
from geventq.codec import decode

__all__ = ["cancellation_of"]


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
