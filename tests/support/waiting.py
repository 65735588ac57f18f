"""Waiting for what a test expects, and turning the clock instead of waiting."""

from __future__ import annotations

import collections.abc
import contextlib
import time
import typing
import unittest.mock

import gevent

from geventq import clock

__all__ = ["TurnedClock", "at_best", "eventually", "later_by_the_server", "never", "own_time"]

T = typing.TypeVar("T")


def eventually(
    condition: collections.abc.Callable[[], T],
    timeout: float = 20.0,
    *,
    every: float = 0.002,
    what: object = None,
) -> T:
    """Give the hub turns until `condition()` is truthy, and return what it returned.

    Raises `AssertionError` after `timeout` seconds of real time (a turned clock does not matter)
    with `what` (a text, or what tells it then), or else the condition's name, and its last value.
    While the system runs others in our place the time stands still, until three times as much
    has passed.  Where being soon is what is promised, see `at_best`.
    """
    began, began_own = time.perf_counter(), own_time()
    while not (value := condition()):
        taken = time.perf_counter() - began
        if taken > timeout and (own_time() - began_own > timeout or taken > 3 * timeout):
            name = what() if callable(what) else what
            name = name or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout} s: {name} (last: {value!r})")
        gevent.sleep(every)
    return value


def never(
    condition: collections.abc.Callable[[], object], during: float, *, every: float = 0.01
) -> None:
    """Assert that `condition()` stays falsy for `during` seconds.

    Only for what can not be shown by an event that comes later; prefer waiting for that event.
    """
    deadline = time.perf_counter() + during
    while time.perf_counter() < deadline:
        value = condition()
        assert not value, f"happened, but must not: {value!r}"
        gevent.sleep(every)


def own_time() -> float:
    """Seconds on a clock that stands still while this native thread is ready to run and the
    system runs others: what is measured by it is what our code took, computing or blocking.

    Where the system does not tell (it is Linux that does), like `time.perf_counter`.
    """
    try:
        with open("/proc/thread-self/schedstat") as file:
            waited = int(file.read().split()[1]) / 1e9
    except FileNotFoundError:
        waited = 0.0
    return time.perf_counter() - waited


def at_best(
    measure: collections.abc.Callable[[], T],
    fits: collections.abc.Callable[[T], bool],
    *,
    tries: int = 5,
) -> T:
    """Assert that one of a few measurements `fits`, and return it.

    For promises about time: a machine that gives its time to others may spoil any one
    measurement, while code that is too slow spoils them all.  `measure` does everything anew, and
    asserts itself what does not depend on time.  What this thread alone takes is measured best
    by `own_time`.
    """
    seen: list[T] = []
    for _ in range(tries):
        seen.append(measure())
        if fits(seen[-1]):
            return seen[-1]
    raise AssertionError(f"not once in {tries} tries: {seen}")


class TurnedClock(clock.Source):
    """A clock that a test moves: it runs on like the real one, plus what `advance` added, and
    stands still between `stop()` and `go()`.

    Only `geventq.clock` is turned.  Timers of gevent and time-outs of sockets go on in real time.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._stopped: tuple[float, float] | None = None

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once, on both clocks."""
        self._ahead += seconds

    def stop(self) -> None:
        """Let no time pass, except by `advance`."""
        self._stopped = (super().monotonic(), super().wall())

    def go(self) -> None:
        """Run again, from where the clock stood."""
        if self._stopped is not None:
            self._ahead -= super().monotonic() - self._stopped[0]
            self._stopped = None

    def monotonic(self) -> float:
        now = super().monotonic() if self._stopped is None else self._stopped[0]
        return now + self._ahead

    def wall(self) -> float:
        now = super().wall() if self._stopped is None else self._stopped[1]
        return now + self._ahead


@contextlib.contextmanager
def later_by_the_server(seconds: float) -> collections.abc.Iterator[None]:
    """Inside the block every `clock.ServerClock` of this process shows that `seconds` more have
    passed.

    A turned clock does not do that: the next heartbeat of a worker, which may come at any moment,
    asks the server, whose clock nobody has turned.
    """
    shown = clock.ServerClock.now_ms
    ahead = seconds * 1000
    with unittest.mock.patch.object(clock.ServerClock, "now_ms", lambda own: shown(own) + ahead):
        yield
