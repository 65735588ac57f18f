"""What a check of a token costs between yields: ``python -m tests.bench.check``."""

from __future__ import annotations

import time

import gevent

from geventq import CancellationToken


def nanoseconds_per_check(calls: int = 1_000_000) -> float:
    """The mean of ``token.check()`` on a token that is not cancelled, in ns, the loop's own cost
    taken off."""
    gevent.get_hub()  # a token is paced by the hub it is made in
    token = CancellationToken()
    gevent.sleep(0)
    turns = range(calls)
    begun = time.perf_counter()
    for _ in turns:
        pass
    empty = time.perf_counter() - begun
    check = token.check
    begun = time.perf_counter()
    for _ in turns:
        check()
    return (time.perf_counter() - begun - empty) / calls * 1e9


if __name__ == "__main__":
    print(f"check(): {nanoseconds_per_check():.0f} ns")
