"""The first job of a worker that has just been started: it says when it began.

For any of the peers: this module imports none of them.  The clock is that of the whole machine.
"""

from __future__ import annotations

import os
import time

__all__ = ["told"]


def told(job: object = None) -> None:
    """Leave the moment, in nanoseconds, in the file that the benchmark has named."""
    now = time.monotonic_ns()
    unfinished = os.environ["BENCH_TOLD"] + ".unfinished"
    with open(unfinished, "w") as file:
        file.write(str(now))
    os.rename(unfinished, os.environ["BENCH_TOLD"])
