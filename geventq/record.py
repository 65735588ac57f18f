"""A request to cancel as it is kept in a job's hash (cancellation.md 4.3, 4.4).

The field ``gqc`` holds the request to a job's run, ``gqe`` the one that ended a job which did not
run.  Both are JSON objects; the scripts read and merge them, so a reason is in there as the text
of its JSON, which no script ever encodes anew.  Pure functions.
"""

from __future__ import annotations

import re
import typing

from geventq.cancellation import Cancellation
from geventq.checks import MAX_SECONDS
from geventq.codec import decode, encode, is_sound
from geventq.foreign import times_in

__all__ = ["UNREADABLE", "Record", "is_nonce", "read_record", "record_of"]

UNREADABLE: typing.Final = "*"
"""Stands for what a record holds and nobody can read: an outcome is decided with it as well."""
_NONCE: typing.Final = re.compile(r"[0-9a-zA-Z-]{1,64}", re.ASCII)

#: Kinds that concern a single worker, and are never recorded: the job would come back for ever.
_OF_ONE_WORKER: typing.Final = ("shutdown", "lock_lost")
_HUGE: typing.Final = 2**53 - 1
_MOST: typing.Final = 8  # requests that are named in a record, and that stand in it


class Record(typing.NamedTuple):
    """What a record says."""

    request: Cancellation
    """Its `hard` is `False` where the worker's own mode decides."""
    hard: bool | None
    """`None`: the worker's own mode decides."""
    kill_after: float | None
    """Seconds between the request's arrival at the worker and the kill; `None`: the worker's."""
    leaves_grace: bool | None
    """One of the requests that ask for a kill leaves the grace to the worker; `None`: one does that
    leaves the kill itself to the worker's mode."""
    attempts_made: int | None
    """As the request has found them: they tell a job's runs apart."""
    timestamp: int | None
    """The job's, in milliseconds: it tells jobs with one id apart."""
    nonces: tuple[str, ...]
    """Of the requests that are merged in it, the newest last."""
    is_waited_for: bool
    """Somebody waits for the end, and is told of the stages on the way."""
    signed: tuple[bytes, ...]
    """Requests that are merged in it, whole and with their signatures: what it says itself is
    proven by none (cancellation.md 8)."""

    def is_void(self, attempts_made: int) -> bool:
        """Whether it was for an earlier run than the one that finds `attempts_made`, and nobody
        has cleared it since (4.4)."""
        return self.request.retry and self.attempts_made not in (None, attempts_made)


def record_of(
    request: Cancellation, attempts_made: int, timestamp_ms: int, nonces: list[str]
) -> bytes:
    """The record of a request to the run that found `attempts_made`, which its worker knows;
    `nonces` are those of the requests from elsewhere in it."""
    told = {
        **members_of(request),
        "hard": request.hard,
        "kill_after": None,
        "default_grace": True,
        "nonce": nonces[-1] if nonces else "",
        "waits": False,
        "atm": attempts_made,
        "ts": timestamp_ms,
        "at": round(request.requested_at * 1000),
        "nonces": nonces[-_MOST:],
    }
    return encode("reason", told)


def members_of(request: Cancellation) -> dict[str, typing.Any]:
    """What of a request is the same in each record."""
    return {
        "v": 1,
        "reason": encode("reason", request.to_json()["reason"]).decode(),
        "kind": request.kind,
        "retry": request.retry,
        "by": request.requested_by,
    }


def read_record(text: bytes) -> Record | None:
    """What a record says; `None` for one that another program has broken, or of a kind that is
    never recorded."""
    try:
        told = decode(text)
        if told["kind"] in _OF_ONE_WORKER:
            return None
        reason = told.get("reason")
        if "v" in told:  # else it is of geventq 0.1, which kept the reason as it is
            reason = decode(reason.encode())
        hard, kill_after, nonces = told["hard"], told.get("kill_after"), told.get("nonces") or []
        grace = told.get("default_grace", kill_after is None)
        request = Cancellation(
            reason,
            told["kind"],
            hard is True,
            told["retry"] is True,
            _moment(told["at"]),
            _sent_by(told.get("by")),
        )
        return Record(
            request,
            hard if isinstance(hard, bool) else None,
            times_in(kill_after, MAX_SECONDS) if isinstance(kill_after, int | float) else None,
            None if grace == "mode" else bool(grace),
            _whole(told.get("atm")),
            _whole(told.get("ts")),
            _nonces_in(list(nonces)),
            told.get("waits") is True,
            tuple(str(one).encode() for one in list(told.get("signed") or ())[-_MOST:]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def is_nonce(value: object) -> typing.TypeGuard[str]:
    """Whether it can name a request: it becomes part of keys, and scripts have to read it."""
    return isinstance(value, str) and _NONCE.fullmatch(value) is not None


def _nonces_in(nonces: list[object]) -> tuple[str, ...]:
    read = tuple(one if is_nonce(one) else UNREADABLE for one in nonces[-_MOST:])
    return read if len(nonces) <= _MOST else (UNREADABLE, *read)


def _sent_by(value: object) -> str | None:
    return value if isinstance(value, str) and is_sound(value) else None


def _whole(value: object) -> int | None:
    number = times_in(value, _HUGE) if isinstance(value, int | float) else None
    return None if number is None else int(number)


def _moment(value: object) -> float:
    """Seconds since the epoch, of milliseconds.  Raises `ValueError`."""
    number = times_in(value, _HUGE) if isinstance(value, int | float) else None
    if number is None:
        raise ValueError("at: a moment is needed")
    return number / 1000
