"""How often a child died, how long to wait before its next life, and when to give it up.

The one way of counting of `geventq.supervisor` and of ``geventq worker --processes``, whose parent
starts no gevent: knows neither greenlets nor processes.
"""

from __future__ import annotations

import collections
import typing

from geventq import clock

__all__ = ["SOUND", "Deaths"]

SOUND: typing.Final = 30.0
"""Seconds of life after which a death begins a new series."""
_FIRST: typing.Final = 0.5  # seconds before the next life; doubles with each death of a series
_LONGEST: typing.Final = 30.0


class Deaths:
    """The deaths of one child.  `max_restarts` of them within `within` seconds are followed by
    another life, one more is not; with `None` all are."""

    def __init__(self, max_restarts: int | None = None, within: float = 60.0) -> None:
        self._max_restarts = max_restarts
        self._within = within
        self._series = 0
        self._times: collections.deque[float] = collections.deque()  # those that still count
        self._longest = _LONGEST
        if max_restarts is not None:
            # The pauses alone must not keep a child that cannot live from ever being given up.
            self._longest = min(_LONGEST, within / 2 / (max_restarts + 1))

    def died(self, lived: float) -> float | None:
        """It died, after `lived` seconds; how many to wait before its next life, `None` to give
        it up."""
        self._series = 1 if lived > SOUND else self._series + 1
        if self._max_restarts is not None and self._are_too_many(self._max_restarts):
            return None
        return min(self._longest, _FIRST * 2.0 ** min(self._series - 1, 10))

    @property
    def counted(self) -> int:
        """How many count now, if they are limited."""
        return len(self._times)

    def _are_too_many(self, most: int) -> bool:
        now = clock.monotonic()
        self._times.append(now)
        while self._times[0] < now - self._within:
            self._times.popleft()
        return len(self._times) > most
