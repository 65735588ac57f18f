"""What grows in processes that go on and on: samples of memory, descriptors and greenlets."""

from __future__ import annotations

import statistics
import typing

__all__ = ["growing"]

#: What a figure may be above its earlier level, in parts and beside that, and what it is about.
_LIMITS: typing.Final = {
    "memory": (0.10, 8_000),  # kB
    "descriptors": (0.0, 8),
    "greenlets": (0.0, 8),
    "threads": (0.0, 4),
}
_FEWEST: typing.Final = 6


def growing(samples: list[dict[str, int]]) -> list[str]:
    """Which figures are higher in the last third of the samples than in the second one, in words.

    The first third is the time in which a process comes to its size.  Fewer than six samples
    tell nothing.
    """
    if len(samples) < _FEWEST:
        return []
    third = len(samples) // 3
    found = []
    for name, (share, more) in _LIMITS.items():
        values = [one[name] for one in samples]
        before = statistics.median(values[third:-third])
        after = statistics.median(values[-third:])
        if after > before * (1 + share) + more:
            found.append(f"{name}: {before:g} -> {after:g} in {len(samples)} samples: {values}")
    return found
