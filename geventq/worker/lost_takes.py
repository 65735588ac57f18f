"""Takes whose answer was lost, and the jobs that they may have taken (cancellation.md 3.6).

No job is taken before the worker has asked which ids in *active* are locked with the lock tokens it
had sent.  The server may also carry out such a call later than that, so what was not found is asked
for again for a while.  Knows takes by the numbers in their lock tokens, and outcomes only as ids
that are sent again.  No greenlets of its own: a lane calls `look`, which yields; nothing else does.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.store.lock_tokens import number_in
from geventq.worker.run.admission import Take

if typing.TYPE_CHECKING:
    from geventq.worker.run.admission import Taken
    from geventq.worker.run.settle_call import SettleCall

__all__ = ["LostTakes"]

_Numbers = tuple[int, int]  # of lock tokens: the first one, and how many
_Lost = tuple[float, _Numbers]  # when it was sent, and for what

_LATE: typing.Final = 60.0  # seconds for which a lost take may still be carried out


class Taker(typing.Protocol):
    """Whose jobs are found: as `geventq.worker.lanes.Jobs`.  None of these yields."""

    def taken(self, jobs: list[Taken], take: Take) -> None:
        """Jobs are ours."""

    def take_is_over(self, number: int) -> None:
        """It was asked for."""


class LostTakes:
    """Those of one worker's lanes.  True while there are some to be asked for."""

    def __init__(self, calls: SettleCall, lock_base: str) -> None:
        self._calls = calls
        self._lock_base = lock_base
        self._lost: list[_Lost] = []  # to be asked for
        self._late: list[_Lost] = []  # asked for, but not safely over
        self._behind: list[_Lost] = []  # found, and not begun: see `_begun_first`

    def __bool__(self) -> bool:
        return bool(self._lost)

    def __contains__(self, number: int) -> bool:
        """Whether the take whose first lock token has this number is to be asked for."""
        return bool(self._lost) and any(numbers[0] == number for _, numbers in self._lost)

    def add(self, sent_at: float, first: int, count: int) -> None:
        """A call that was sent at `sent_at` (monotonic) may have taken `count` jobs."""
        self._lost.append((sent_at, (first, count)))

    def ask_again(self) -> bool:
        """Ask again for what was lost within the last minute; whether there is any."""
        late, self._late = self._late, []
        self._lost += late
        return bool(late)

    def ask_for_those_behind(self) -> bool:
        """Outcomes were answered: jobs that wait for theirs may begin; whether there are any."""
        waited, self._behind = self._behind, []
        self._lost += waited
        return bool(waited)

    def look(self, taker: Taker, sent_again: typing.Callable[[], set[str]]) -> None:
        """Find the jobs that were taken.  `sent_again` tells the ids whose outcomes are on their
        way for a second time.  Yields; raises as a call to Redis, and nothing is forgotten."""
        lost, self._lost = self._lost, []
        sent_at = clock.monotonic()
        try:
            found = self._calls.recover(self._lock_base, [numbers for _, numbers in lost])
        except BaseException:
            self._lost = lost + self._lost
            raise
        if found and clock.monotonic() > sent_at + self._calls.lock_life:
            self._lost += lost  # others may run them by now (3.3)
            return
        # What was found is not asked for again: the answer might come after the job's end.
        numbers_found = sorted(number_in(lock_token) for _, lock_token, _ in found)
        self._late += [
            (when, rest)
            for when, numbers in lost
            if when > sent_at - _LATE
            for rest in _without(numbers_found, numbers)
        ]
        found = self._begun_first(found, sent_at, sent_again())
        if found:
            try:
                numbers_sent = tuple(numbers[0] for _, numbers in lost)
                taker.taken(found, Take(sent_at, None, numbers=numbers_sent))
            except BaseException:
                self._lost += lost
                raise
        for _, numbers in lost:
            taker.take_is_over(numbers[0])

    def _begun_first(self, found: list[Taken], sent_at: float, sent_again: set[str]) -> list[Taken]:
        """Those that may begin now.  One whose earlier run has an outcome that is sent again has
        to wait: its own end could come first, and the script would not know that one any more
        (3.6)."""
        for job_id, lock_token, _ in found if sent_again else ():
            if job_id in sent_again:
                self._behind.append((sent_at, (number_in(lock_token), 1)))
        return [taken for taken in found if taken[0] not in sent_again]


def _without(found: typing.Iterable[int], numbers: _Numbers) -> typing.Iterator[_Numbers]:
    """What is left of `numbers` without those that were `found` (in order)."""
    first, count = numbers
    end = first + count
    for number in found:
        if first <= number < end:
            if number > first:
                yield first, number - first
            first = number + 1
    if first < end:
        yield first, end - first
