"""Following a queue's event stream without missing that something was missed.

The stream is trimmed (wire-format 6), may be deleted, and after a fail-over may be another one.
A reader that is slow, or cut off, would go on behind the hole as if nothing had happened: so each
read also asks how many entries there ever were, and answers a `Gap` where some are not there any
more.  No greenlets run here.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from geventq.store.stream import Entry, Seen

__all__ = ["Batch", "EventReader", "Gap", "position"]

_START: typing.Final = b"0-0"


class Gap(typing.NamedTuple):
    """Entries behind `after` are gone unread: `missed` of them, or, with `None`, it is not known
    how many, or whether it is the same stream at all."""

    after: bytes
    missed: int | None


class Batch(typing.NamedTuple):
    """What one read saw: the gap in front of it, if there is one, and the entries."""

    gap: Gap | None
    entries: list[Entry]


class EntrySource(typing.Protocol):
    """Where the entries come from (`geventq.store.event_watch.Follower`).  Both yield."""

    def next(self, last_id: bytes) -> Seen:
        """What there is behind `last_id`, after waiting for it for some seconds."""

    def look(self, last_id: str | bytes) -> Seen:
        """What there is behind `last_id` (``"$"``: nothing) now."""


class EventReader:
    """Reads `source` on from the entry `after`; ``None`` is from now on."""

    def __init__(self, source: EntrySource, after: bytes | None) -> None:
        self._source = source
        self._last = None if after is None else b"%d-%d" % position(after)
        # How many entries there ever were up to `_last`; `None` where that is not known.
        self._count: int | None = None
        self._has_more = False  # the last page was full

    def begin(self) -> None:
        """Fix where it begins, if that is "now": all later entries are seen.  Yields then."""
        if self._last is None:
            seen = self._source.look("$")
            self._last, self._count = seen.newest, seen.added

    def read(self) -> Batch:
        """The next entries, after waiting for the first one; there may be none.  Yields."""
        self.begin()
        last = self._last
        assert last is not None
        seen = self._source.look(last) if self._has_more else self._source.next(last)
        if position(seen.newest) < position(last):  # a stream that does not know what was read
            self._last, self._count, self._has_more = _START, None, True
            return Batch(Gap(last, None), [])
        gap = self._gap(last, seen)
        self._advance(last, seen)
        return Batch(gap, seen.entries)

    def _gap(self, last: bytes, seen: Seen) -> Gap | None:
        """What was trimmed between the entry read last and the oldest that is kept."""
        if not _is_trimmed(last, seen) or seen.newest == last:
            return None
        if seen.added is None or self._count is None:
            # It began at an entry that somebody named, or it is a Redis before 7.0.
            return None if last == _START or seen.added == seen.kept else Gap(last, None)
        missed = seen.added - self._count - seen.kept
        if missed < 0:  # it began anew
            return Gap(last, None)
        return Gap(last, missed) if missed else None

    def _advance(self, last: bytes, seen: Seen) -> None:
        self._has_more = seen.is_full
        if not seen.is_full:
            self._last, self._count = seen.newest, seen.added
            return
        self._last = seen.entries[-1][0]
        if _is_trimmed(last, seen) and seen.added is not None:  # all that is kept lies behind it
            self._count = seen.added - seen.kept + len(seen.entries)
        elif self._count is not None:
            self._count += len(seen.entries)


def _is_trimmed(last: bytes, seen: Seen) -> bool:
    """Whether the entry that was read last is itself not there any more."""
    return not seen.oldest or position(seen.oldest) > position(last)


def position(entry_id: bytes) -> tuple[int, int]:
    """The id of an entry as what it is ordered by."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number or 0)
