"""The worker's two calls as Python sees them: settle-and-take, and the search for lost takes.

Owns the arguments and replies of ``settle.lua`` and ``recover.lua`` (wire-format 9.4-9.8), and
what their codes mean.  Holds no state of a worker, and sends nothing twice: its callers decide
that (cancellation.md 3.6).  Every call yields to the hub.
"""

from __future__ import annotations

import json
import typing

from geventq import clock
from geventq.store.scripts import load
from geventq.worker.run.admission import Taken

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.outcome import Outcome

__all__ = [
    "JOB_LOST",
    "LATER",
    "LOCK_GONE",
    "MORE",
    "OURS",
    "PENDING_CHILDREN",
    "SAFETY",
    "UNREADABLE",
    "Code",
    "SettleCall",
    "SettleReply",
    "Settled",
    "Unheard",
    "refusal",
]

Settled = tuple["Execution", "Outcome"]


class Unheard(typing.NamedTuple):
    """An outcome was not carried out: it was decided without this request, recorded with the job
    meanwhile (2.5)."""

    record: bytes


Code = int | str | Unheard
"""What became of one outcome: a number of settle.lua, why it could not be carried out, or what it
was decided without."""

SAFETY: typing.Final = 0.9  # of a lock's life: past that it is ours no more (3.3)

# What the script answers for one outcome (wire-format 10).
OURS: typing.Final = (0, 1)  # settled now, or by the call whose answer was lost
LOCK_GONE: typing.Final = (-2, -6)  # expired, or another's
JOB_LOST: typing.Final = (*LOCK_GONE, -1)  # or it is no more, and its lock with it
LATER: typing.Final = 2  # nothing was done: send it again
PENDING_CHILDREN: typing.Final = (-4, -9)
MORE: typing.Final = -1
UNREADABLE: typing.Final = -21  # nothing was written, and the lock is still there
_REFUSALS: typing.Final = {
    -1: "its hash is gone",
    -2: "its lock is gone",
    -3: "it was not active any more",
    -4: "it has unfinished children",
    -6: "its lock is another's",
    -9: "it has failed children",
    -20: "its key holds no hash",
    UNREADABLE: "the script cannot read it",
}


def refusal(job_id: str, code: Code) -> str:
    """Why the outcome of a job was refused, as a sentence."""
    if isinstance(code, Unheard):
        why = "it does not know of a request to cancel"
    else:
        why = code if isinstance(code, str) else _REFUSALS.get(code, f"code {code}")
    return f"the outcome of job {job_id} was refused: {why}"


class SettleReply(typing.NamedTuple):
    """What one call of ``settle.lua`` answered.

    `codes` stand in the order of the outcomes, a text where one could not be carried out;
    `broken` are ids that were not taken and why; `next_ms` is when the next delayed job is due
    (0: none), or `MORE`: the data of those that were taken fill a call.  `taken_ms`, `place` and
    `requests` are `Take`'s.
    """

    codes: list[Code]
    jobs: list[Taken]
    broken: list[tuple[str, str]]
    next_ms: int
    taken_ms: bytes
    place: str
    requests: int


class SettleCall:
    """The calls of one queue, for locks that live `lock_duration` seconds."""

    def __init__(
        self, client: Client, keys: QueueKeys, *, lock_duration: float, worker_name: str
    ) -> None:
        self._client = client
        self._keys = keys
        self._lock_ms = str(round(lock_duration * 1000))
        self.client = client
        #: Seconds from the sending of a take for which its locks are surely ours (3.3).
        self.lock_life = lock_duration * SAFETY
        self._worker_name = worker_name
        self._settle, self._recover = load("settle"), load("recover")

    def settle(
        self,
        batch: typing.Sequence[Settled],
        room: int = -1,
        lock_token: str = "",
        first: int | None = None,
        *,
        timeout: float | None = None,
    ) -> SettleReply:
        """Settle a batch and take up to `room` jobs (-1: do not look for any), within `timeout`
        seconds (`None`: the client's).

        The jobs' lock tokens are `lock_token` with the numbers from `first` on behind it, or,
        without `first`, `lock_token` itself.
        """
        now_ms = str(clock.wall_ms())
        known = min([execution.take.requests for execution, _ in batch], default=-1)
        args: list[str | bytes] = [
            *(self._keys.base, now_ms, str(room), lock_token),
            *("" if first is None else str(first), self._lock_ms, self._worker_name),
            "" if known < 0 else str(known),
        ]
        mates: typing.Mapping[str, str] | None = None  # of one worker all have the same
        shared: tuple[object, ...] = ()
        value: str | bytes | None = None
        alike = at = 0
        for execution, outcome in batch:
            more = self._more(execution, outcome, mates is None) if outcome.more else ""
            mates = mates or outcome.mates
            what = (outcome.kind, outcome.ended_ms, outcome.attempts_made, more)
            if outcome.value is value and what == shared:  # `is`: values may be large
                alike += 1
                args[at] = str(alike)
            else:
                shared, value, alike, at = what, outcome.value, 1, len(args)
                made = str(outcome.attempts_made)
                args += ("1", outcome.kind, str(outcome.ended_ms), value, made, more)
            args += (execution.job_id, execution.lock_token)
        codes, broken, next_ms, told, requests, *jobs = self._client.script(
            self._settle, self._keys, args, timeout=timeout, texts_only=True
        )
        return SettleReply(
            [_code(code) for code in codes] if codes else [0] * len(batch),
            _taken(jobs) if jobs else [],
            [(_text(job_id), _text(why)) for job_id, why in broken] if broken else [],
            next_ms,
            now_ms.encode(),
            _place(told) if told else "",
            int(requests),
        )

    def _more(self, execution: Execution, outcome: Outcome, with_mates: bool) -> str:
        """The rare rest of an outcome.  Of one that is sent again it tells whether its lock can
        have lapsed by now: then another may have ended the job (3.6)."""
        more = outcome.more or {}
        if "atm0" in more:
            more["lapsed"] = clock.monotonic() > execution.renewed_at + self.lock_life
        if with_mates and outcome.mates:
            more = {**more, "mates": outcome.mates}
        return json.dumps(more, separators=(",", ":"))

    def recover(
        self,
        lock_token: str,
        numbers: typing.Iterable[tuple[int, int]] = (),
        *,
        timeout: float | None = None,
    ) -> list[Taken]:
        """The active jobs that are locked with `lock_token`, or, where `numbers` are given, with
        `lock_token` and a number of one of these ranges (first, how many) behind it; their
        locks live anew from now on.  Sent again by itself: asking twice changes nothing."""
        sent = [number for pair in numbers for number in pair]
        found: dict[str, Taken] = {}  # by id: the parts of a long list overlap
        start = 0
        while start >= 0:
            args: list[str | int] = [self._keys.base, lock_token, self._lock_ms, start, *sent]
            jobs, start = self._client.script(
                self._recover, self._keys, args, again=True, timeout=timeout
            )
            found.update({taken[0]: taken for taken in _taken(jobs)})
        return list(found.values())


def _place(event_id: bytes) -> str:
    """The id of an event of the stream, so that texts sort as the ids do."""
    milliseconds, _, number = _text(event_id).partition("-")
    return f"{milliseconds:0>15}-{number:0>9}"


def _taken(jobs: list[typing.Any]) -> list[Taken]:
    flat = iter(jobs)
    return [  # without a call of `_text`: these are many
        (
            job_id.decode("utf-8", "replace"),
            lock_token.decode("utf-8", "replace"),
            fields if type(fields) is list else fields.split(b"\0"),
        )
        for job_id, lock_token, fields in zip(flat, flat, flat, strict=True)
    ]


def _code(code: int | bytes | list[bytes]) -> Code:
    if isinstance(code, int):
        return code
    return Unheard(code[0]) if isinstance(code, list) else _text(code)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
