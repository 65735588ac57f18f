"""Fault after fault on one field, and the table of what came of them."""

from __future__ import annotations

import collections
import collections.abc
import pathlib
import time
import typing

import gevent

from tests.fault.ordeal.faults import Fault
from tests.fault.ordeal.field import PATIENCE, Field
from tests.fault.ordeal.verdict import COLUMNS, judge

__all__ = ["Rounds"]

#: Log records that all processes together may write for one fault.
_MOST_TOLD: typing.Final = 200


class Rounds:
    """One field, its faults, and their sums.  A context manager; its processes end with it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.field = Field(folder)
        self.violations: list[str] = []
        self._counts: dict[str, collections.Counter[str]] = {}
        self._slowest: dict[str, float] = {}
        #: How often what has been seen: the tags of the records, and the events that were told.
        self.seen: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Rounds:
        try:
            self.field.start()
        except BaseException:
            self.field.end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.field.end()

    def go(self, rounds: collections.abc.Sequence[tuple[Fault, ...]]) -> None:
        """Let the faults happen; those of one entry at the same time.  Then calm, and judge."""
        field = self.field
        self.field.until_both_work(time.monotonic())
        phases: list[tuple[float, str]] = []
        for together in rounds:
            name = " + ".join(one.__name__.replace("_", " ") for one in together)
            phases.append((time.monotonic(), name))
            works = self._one(together, name)
            print(f"{time.monotonic() - phases[-1][0]:6.1f} s {name}", flush=True)
            if not works:
                break
        field.calm()
        verdict = judge(field.records.lines(), field.stored(), field.left(), phases, field.losses)
        for line in field.records.lines():
            self.seen[line.what[1] if line.tag == "told" else line.tag] += 1
        for name, counts in verdict.counts.items():
            self._counts.setdefault(name, collections.Counter()).update(counts)
        self.violations += verdict.violations

    def _one(self, together: tuple[Fault, ...], name: str) -> bool:
        field = self.field
        told = {process: process.told() for process in field.processes}
        running = [fault(field) for fault in together]
        gevent.joinall([gevent.spawn(next, one) for one in running], raise_error=True)
        took = field.until_both_work(time.monotonic())
        for one in running:
            for _ in one:
                raise AssertionError("a fault yields once")
        self._slowest[name] = max(took or PATIENCE, self._slowest.get(name, 0.0))
        more = sum(process.told() - told.get(process, 0) for process in field.processes)
        self._counts.setdefault(name, collections.Counter())["log lines"] += more
        if more > _MOST_TOLD:
            self.violations.append(f"{name}: {more} lines in the log")
        self.violations += [f"{name}: {one}" for one in field.complaints()]
        return took is not None

    def sampled(self) -> dict[str, dict[str, int]]:
        """What the processes that live through all of it hold, now that all is calm."""
        lives = (self.field.steady, self.field.producer)
        return {process.role: self.field.sample(process) for process in lives}

    def begin_anew(self) -> None:
        """Forget what was judged, and go on."""
        self.field.forget()
        self.field.go_on()

    def close(self) -> None:
        """Close the workers."""
        self.field.close()
        self.violations += self.field.complaints()

    def table(self) -> str:
        """The sums, a line a fault."""
        columns = (*COLUMNS, "log lines")
        width = max(len(name) for name in self._counts)
        head = "".join(f"{one:>13}" for one in (*columns, "works after"))
        lines = [f"{'':{width}}{head}"]
        for name, counts in self._counts.items():
            shown = "".join(f"{counts[one]:13}" for one in columns)
            lines.append(f"{name:{width}}{shown}{self._slowest.get(name, 0.0):11.1f} s")
        return "\n".join(lines)
