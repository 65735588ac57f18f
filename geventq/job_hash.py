"""What a job's hash says (wire-format 3), read lazily and tolerantly.

A worker makes a hundred thousand of these a second and looks at few of their fields.  Knows
neither Redis nor what is done with a job.  No greenlets run here.
"""

from __future__ import annotations

import functools
import typing

from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.foreign import number_in
from geventq.options import from_wire

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation

__all__ = ["UNREAD", "Fields", "JobHash"]

Fields = dict[bytes, bytes]


@functools.lru_cache(maxsize=512)
def _parsed_options(text: bytes) -> dict[str, typing.Any]:
    """Stored options, shared by all jobs that were added with the same ones: never changed."""
    wire = decode(text)
    if not isinstance(wire, dict):
        raise ValueError("an object is needed")
    return wire


_NO_OPTIONS: typing.Final[dict[str, typing.Any]] = {}
UNREAD: typing.Final = object()
_BITS: typing.Final = 53  # of a whole number that every reader takes for the same one
_HUGE: typing.Final = 2**_BITS


class JobHash:
    """The fields of one job, as they were when they were read.  Whoever derives from it sets its
    three attributes: a call of a constructor here is a hundredth of what a job costs."""

    __slots__ = ("_data", "_fields", "id")

    id: str
    _fields: Fields
    _data: typing.Any  # parsed once, `UNREAD` before that

    @property
    def name(self) -> str:
        return self._text(b"name") or ""

    @property
    def data(self) -> typing.Any:
        """The payload.  Raises `GeventqError` if another program stored what is not JSON."""
        if self._data is UNREAD:
            self._data = self._json(b"data", b"{}")
        return self._data

    @property
    def opts(self) -> dict[str, typing.Any]:
        """The options it was added with, as `Queue.add` names them, in seconds."""
        wire = self.wire_options
        if any(isinstance(value, dict | list) for value in wire.values()):
            wire = decode(self._fields[b"opts"])  # anew: the parsed text is shared by many jobs
        return from_wire(wire)

    @property
    def wire_options(self) -> typing.Mapping[str, typing.Any]:
        """The options as they are stored (wire-format section 4); not to be changed."""
        text = self._fields.get(b"opts")
        if not text:
            return _NO_OPTIONS
        try:
            return _parsed_options(text)
        except ValueError as error:
            raise GeventqError(f"opts of job {self.id} cannot be read: {error}") from None

    @property
    def timestamp(self) -> float:
        return self._number(b"timestamp") / 1000

    @property
    def timestamp_ms(self) -> int:
        """It, in milliseconds, as the scripts read it: it tells lives of one id apart."""
        return int(self._number(b"timestamp"))

    @property
    def delay(self) -> float:
        return self._number(b"delay") / 1000

    @property
    def priority(self) -> int:
        return int(self._number(b"priority"))

    @property
    def attempts_made(self) -> int:
        """Attempts that ended.  `attemptsMade` is an old spelling, and wins (wire-format 3)."""
        fields = self._fields
        return int(self._number(b"attemptsMade" if b"attemptsMade" in fields else b"atm"))

    @property
    def attempts_started(self) -> int:
        return int(self._number(b"ats"))

    @property
    def stalled_counter(self) -> int:
        return int(self._number(b"stc"))

    def counters(self) -> tuple[int, int, int]:
        """`attempts_made`, `attempts_started` and `stalled_counter`, at once: a worker reads them
        of every job."""
        get = self._fields.get
        try:
            if b"attemptsMade" not in self._fields:
                made, started, stalls = (
                    int(get(b"atm", 0)),
                    int(get(b"ats", 0)),
                    int(get(b"stc", 0)),
                )
                if not (made | started | stalls) >> _BITS:  # none is below 0 or too large
                    return made, started, stalls
        except ValueError:  # foreign values, which are worth more work
            pass
        return self.attempts_made, self.attempts_started, self.stalled_counter

    @property
    def progress(self) -> typing.Any:
        return self._json(b"progress", b"0")

    @property
    def return_value(self) -> typing.Any:
        """The result, `None` while there is none or if it cannot be read."""
        try:
            return self._json(b"returnvalue", b"null")
        except GeventqError:
            return None

    @property
    def failed_reason(self) -> str | None:
        return self._text(b"failedReason")

    @property
    def stacktrace(self) -> list[str]:
        """The traces of all failed attempts, oldest first."""
        try:
            traces = self._json(b"stacktrace", b"[]")
        except GeventqError:
            return []
        return [str(trace) for trace in traces] if isinstance(traces, list) else []

    @property
    def processed_on(self) -> float | None:
        return self._number(b"processedOn") / 1000 if b"processedOn" in self._fields else None

    @property
    def finished_on(self) -> float | None:
        return self._number(b"finishedOn") / 1000 if b"finishedOn" in self._fields else None

    @property
    def processed_by(self) -> str | None:
        """The `name` of the worker that took it last, if that has one."""
        return self._text(b"pb")

    @property
    def parent_key(self) -> str | None:
        return self._text(b"parentKey")

    @property
    def deduplication_id(self) -> str | None:
        return self._text(b"deid")

    @property
    def deferred_failure(self) -> str | None:
        """Why the next worker to take this job fails it without running it, if it does."""
        return self._text(b"defa")

    @property
    def cancellation(self) -> Cancellation | None:
        """The request to cancel that is recorded with the job (cancellation.md 4.3): the one that
        it has not followed yet, or that ended it.  `hard` is `False` until a worker has heard of
        a request that leaves it to the worker."""
        fields = self._fields  # a worker of another language takes no request away
        text = fields.get(b"gqc")
        has_ended = b"finishedOn" in fields
        if not text and has_ended and b"failedReason" in fields:
            text = fields.get(b"gqe")
        elif has_ended and b"returnvalue" in fields:
            return None
        if not text:
            return None
        from geventq.record import read_record  # rare, so not paid for by the others

        record = read_record(text)
        if record is None or (text is fields.get(b"gqc") and record.is_void(self.attempts_made)):
            return None
        return record.request

    def defect(self) -> str | None:
        """Why this job cannot be run: it has no name, or its data are not JSON."""
        fields = self._fields
        if not fields.get(b"name"):
            return f"the job's hash {'has no name' if fields else 'is missing'}"
        try:
            self._data = decode(fields.get(b"data") or b"{}")  # here once, and kept
        except ValueError as error:
            return self._not_json(b"data", error)
        return None

    def _text(self, field: bytes) -> str | None:
        value = self._fields.get(field)
        return None if value is None else value.decode(errors="replace")

    def _json(self, field: bytes, default: bytes) -> typing.Any:
        try:
            return decode(self._fields.get(field) or default)
        except ValueError as error:
            raise GeventqError(self._not_json(field, error)) from None

    def _not_json(self, field: bytes, error: ValueError) -> str:
        return f"{field.decode()} of job {self.id} is not JSON: {error}"

    def _number(self, field: bytes) -> float:
        """A number from 0 on as Node writes it; 0 where it is missing or something else, as the
        scripts read it."""
        value = self._fields.get(field)
        if value is None:
            return 0
        number: float | None
        try:
            number = int(value)
        except ValueError:
            number = number_in(value.decode(errors="replace"))
        return number if number is not None and 0 <= number < _HUGE else 0

    def changed(self, fields: typing.Mapping[bytes, bytes | None]) -> None:
        """These fields of its hash were written, or deleted (`None`)."""
        for field, value in fields.items():
            if value is None:
                self._fields.pop(field, None)
            else:
                self._fields[field] = value
        if b"data" in fields:
            self._data = UNREAD
