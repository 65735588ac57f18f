"""What a line of the benchmark's result is: a metric, and what geventq must reach; and a scenario,
which measures some of them for one side."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from tests.bench.lab import Lab, Side, percentile

__all__ = ["Figure", "Metrics", "Scenario", "latency"]

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the result: a metric, and what geventq must reach.

    A bound is either on geventq's own value (`of` is ``"value"``) or on its ratio to npm bullmq's
    (``"ratio"``); `at_least` tells which side of the bound is good.
    """

    metric: str
    unit: str
    gate: float | None = None  # the speed gate
    target: float | None = None  # the ratio to npm's to be reached
    of: typing.Literal["ratio", "value"] = "ratio"
    at_least: bool = True

    def met(self, bound: float | None, value: float) -> bool | None:
        """Whether `value` is on the good side; `None` where nothing is asked."""
        if bound is None:
            return None
        return value >= bound if self.at_least else value <= bound

    def wish(self, bound: float | None) -> str:
        """The bound in words."""
        if bound is None:
            return "-"
        unit = " x" if self.of == "ratio" else f" {self.unit}"
        return f"{'>=' if self.at_least else '<='} {bound:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    run: collections.abc.Callable[[Lab, Side, int], Metrics]
    size: int
    quick: int
    figures: tuple[Figure, ...]
    sides: tuple[Side, ...] = ("npm", "geventq")


def latency(microseconds: list[float]) -> Metrics:
    """The median and the 99th percentile."""
    return {"p50": percentile(microseconds, 0.5), "p99": percentile(microseconds, 0.99)}
