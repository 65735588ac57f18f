"""Where a gevent process spends its CPU time, by sampling.

cProfile loses its way at greenlet switches, so a timer of CPU time asks, some hundred times a
second, which line runs.  Time in C functions (packing, parsing, JSON, switching) shows as the time
of the line that calls them.  Python 3.11 handles signals where functions begin, after calls and at
the ends of loops, so a sample may be a few bytecodes late; the sums are right.
"""

from __future__ import annotations

import collections
import linecache
import re
import signal
import types
import typing

__all__ = ["GROUPS", "Sampler", "group_of"]

INTERVAL: typing.Final = 0.001  # seconds of CPU; the kernel's tick may make it longer

Place = tuple[str, str, int]  # file, function, line

# What a line does, by its text, the first that matches.
GROUPS: typing.Final = (
    ("JSON", re.compile(r"\b(loads|dumps|decode|encode|scan_once|raw_decode|iterencode)\b")),
    ("packing", re.compile(r"\bpack(_command)?\b|\.join\(")),
    ("parsing", re.compile(r"\b(gets|feed)\(")),
    ("socket", re.compile(r"\b(recv|recv_into|send|sendall|write)\(")),
    ("greenlets", re.compile(r"\b(switch|spawn|throw|gr_context|getcurrent|get_hub)\b")),
)


def group_of(file: str, line: int) -> str:
    """The group of the line: what it calls, else the part of the program it stands in."""
    text = linecache.getline(file, line)
    if "/json/" in file:
        return "JSON"
    for name, pattern in GROUPS:
        if pattern.search(text):
            return name
    if "/gevent/" in file:
        return "greenlets"
    if "/geventq/" in file:
        return "geventq/" + file.rpartition("/geventq/")[2]
    return "other Python"


class Sampler:
    """Samples this process between `start()` and `stop()`; main thread only."""

    def __init__(self) -> None:
        self._leaves: collections.Counter[Place] = collections.Counter()
        self._within: collections.Counter[tuple[str, str]] = collections.Counter()
        self._count = 0

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, signum: int, frame: types.FrameType | None) -> None:
        self._count += 1
        seen: set[tuple[str, str]] = set()
        if frame is not None:
            self._leaves[_place(frame)] += 1
        while frame is not None:
            seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self._within.update(seen)

    def result(self) -> dict[str, typing.Any]:
        """JSON-able: `count`, `leaves` (file, function, line, samples), `within` (file, function,
        samples in it or below it)."""
        return {
            "count": self._count,
            "leaves": [[*place, count] for place, count in self._leaves.most_common()],
            "within": [[*place, count] for place, count in self._within.most_common(60)],
        }


def _place(frame: types.FrameType) -> Place:
    code = frame.f_code
    return code.co_filename, code.co_qualname, frame.f_lineno or code.co_firstlineno
