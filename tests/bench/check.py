"""What one ``token.check()`` costs between yields: ``python -m tests.bench.check``.

Bursts of calls shorter than the 4 ms after which a check gives the hub a turn; the loop's own cost
is measured in the same way and taken off.  Needs no Redis.
"""

from __future__ import annotations

import collections.abc
import itertools
import statistics
import time
import typing

import gevent

from geventq.cancellation import Attempt

__all__ = ["nanoseconds_per_check"]

_BURST: typing.Final = 5_000
_OTHERS: typing.Final = 10_000  # attempts alive beside the one that checks


class _Deaf:
    """Observes attempts, and does nothing."""

    def requested(self, attempt: Attempt) -> None: ...

    def thrown(self, attempt: Attempt) -> None: ...

    def stuck(self, attempt: Attempt, stack: str) -> None: ...


def _attempt(job_id: str) -> Attempt:
    return Attempt(job_id, with_token=True, hard=False, kill_after=0.0, observer=_Deaf())


def _checking(check: collections.abc.Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, _BURST):
        check()
    return time.perf_counter_ns() - start


def _looping() -> int:
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, _BURST):
        pass
    return time.perf_counter_ns() - start


def nanoseconds_per_check(calls: int) -> float:
    """The median over bursts of `calls` checks in all, of a token that is not cancelled, while
    10,000 other attempts are alive.  Yields between the bursts."""
    others = [_attempt(str(number)) for number in range(_OTHERS)]
    mine = _attempt("mine")
    assert mine.token is not None
    found: list[float] = []

    def process() -> None:
        assert mine.token is not None
        mine.begin(gevent.getcurrent(), None)
        check = mine.token.check
        for _ in range(max(1, calls // _BURST)):
            gevent.sleep(1e-9)  # a turn of the hub's loop, which starts the 4 ms anew
            found.append((_checking(check) - _looping()) / _BURST)
        mine.end()

    greenlet = gevent.Greenlet(process)
    greenlet.name = "bench-check"
    greenlet.start()
    greenlet.get()
    assert len(others) == _OTHERS
    return statistics.median(found)


def main() -> None:
    print(f"{nanoseconds_per_check(2_000_000):.0f} ns a check()")


if __name__ == "__main__":
    main()
