"""What cancellation costs in one process: ``python -m tests.bench.check``.

Nanoseconds per question to a token that is not cancelled, alone and beside 10,000 other tokens,
and the microseconds from a request until the waiting job runs, beside 500 waiting attempts.
"""

from __future__ import annotations

import statistics
import time
import typing

import gevent
from greenlet import getcurrent

from geventq import CancellationToken
from geventq.cancellation import Attempt, Cancellation

__all__ = ["microseconds_to_wake", "nanoseconds_per_check"]


def _nanoseconds(call: typing.Callable[[], object], calls: int) -> float:
    """The mean of `call()`, the loop's own cost taken off."""
    turns = range(calls)
    begun = time.perf_counter()
    for _ in turns:
        pass
    empty = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in turns:
        call()
    return (time.perf_counter() - begun - empty) / calls * 1e9


def nanoseconds_per_check(calls: int = 1_000_000) -> float:
    """The mean of ``token.check()`` on a token that is not cancelled, in ns, the loop's own cost
    taken off."""
    gevent.get_hub()  # a token is paced by the hub it is made in
    token = CancellationToken()
    gevent.sleep(0)
    return _nanoseconds(token.check, calls)


class _Silent:
    """An observer with nothing to do."""

    home = None

    def stuck(self, attempt: Attempt, stack: str) -> None:
        """A kill was swallowed."""


def microseconds_to_wake(active: int = 500, *, hard: bool = False) -> list[float]:
    """From each request until the job that waits for it runs, one after the other, in us."""
    observer, woken = _Silent(), [0.0]

    def job(attempt: Attempt) -> None:
        attempt.begin(getcurrent(), None)
        assert attempt.token is not None
        try:
            if hard:
                gevent.sleep(3600)
            else:
                attempt.token.wait()
        except BaseException:
            woken[0] = time.perf_counter()
        else:
            woken[0] = time.perf_counter()
        attempt.end()

    attempts = [
        Attempt(str(number), with_token=True, hard=hard, kill_after=0.0, observer=observer)
        for number in range(active)
    ]
    greenlets = [gevent.spawn(job, attempt) for attempt in attempts]
    gevent.sleep(0.05)
    took = []
    for attempt, greenlet in zip(attempts, greenlets, strict=True):
        asked = time.perf_counter()
        attempt.request(Cancellation("enough"), hard=None, kill_after=None)
        greenlet.join()
        took.append((woken[0] - asked) * 1e6)
    return took


def _print_latency(what: str, took: list[float]) -> None:
    ordered = sorted(took)
    p50, p99 = statistics.median(ordered), ordered[len(ordered) * 99 // 100]
    print(f"{what}: p50 {p50:.0f} us, p99 {p99:.0f} us")


def main() -> None:
    """Print it all."""
    token = CancellationToken()
    print(f"ready(): {_nanoseconds(token.ready, 1_000_000):.0f} ns")
    print(f"wait(timeout=0): {_nanoseconds(lambda: token.wait(timeout=0), 20_000):.0f} ns")
    print(f"check(): {nanoseconds_per_check():.0f} ns")
    others = [CancellationToken() for _ in range(10_000)]
    print(f"check(), {len(others)} other tokens: {nanoseconds_per_check():.0f} ns")
    make = _nanoseconds(
        lambda: Attempt("1", with_token=False, hard=False, kill_after=0.0, observer=_Silent()),
        100_000,
    )
    print(f"making an attempt without a token: {make:.0f} ns")
    _print_latency("request -> waiting job runs, 500 active", microseconds_to_wake())
    _print_latency("request -> killed job runs, 500 active", microseconds_to_wake(hard=True))


if __name__ == "__main__":
    main()
