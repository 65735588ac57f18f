"""What a failed processor's frames hold is released in the job's greenlet, inside its attempt
(cancellation.md 2.13)."""

from __future__ import annotations

import collections.abc
import sys
import traceback
import typing

import gevent
import pytest
from gevent.event import Event

from geventq.cancellation import frames
from tests.support.attempts import Run

Raise = collections.abc.Callable[[], object]


def _fails(number: int = 0) -> None:
    raise ValueError(number)


def _with_context() -> None:
    try:
        _holds()
    except ValueError:
        _fails(1)


def _with_cause() -> None:
    try:
        _holds()
    except ValueError as error:
        cause = error
    raise KeyError("k") from cause


def _suppressed() -> None:
    try:
        _holds()
    except ValueError:
        raise KeyError("k") from None


def _in_a_group() -> None:
    try:
        _holds()
    except ValueError as error:
        raise BaseExceptionGroup("g", [KeyError("other"), error]) from None


def _in_a_group_of_groups() -> None:
    try:
        _in_a_group()
    except BaseExceptionGroup as error:
        group = error
        for _ in range(3000):  # deeper than the stack: walked, not descended
            group = BaseExceptionGroup("g", [group])
    raise RuntimeError("r") from group


class _Carries(Exception):
    """With what it was about."""


def _as_an_argument() -> None:
    generator = _holding()
    next(generator)
    raise _Carries("no", generator)


def _as_an_attribute() -> None:
    error = _Carries("no")
    error.rows = _holding()  # type: ignore[attr-defined]
    next(error.rows)  # type: ignore[attr-defined]
    raise KeyError("k") from error


def _in_run() -> None:
    token.run(_holds)


token: typing.Any = None
held: list[str] = []
where: list[object] = []
waits = Event()


def _holding() -> collections.abc.Iterator[int]:
    try:
        yield 1
    finally:
        where.append(gevent.getcurrent())
        waits.wait()
        held.append("released")


def _holds() -> None:
    generator = _holding()
    next(generator)
    _fails()


@pytest.fixture(autouse=True)
def fresh() -> None:
    held.clear()
    where.clear()
    waits.set()


@pytest.mark.parametrize(
    "raises",
    [
        *(_holds, _with_context, _with_cause, _suppressed, _in_a_group, _in_a_group_of_groups),
        *(_in_run, _as_an_argument, _as_an_attribute),
    ],
)
def test_whatever_way_an_error_holds_its_frames_they_are_released_there(raises: Raise) -> None:
    """2.13: a half-used generator's `finally` has run, in the job's greenlet, when the attempt is
    over; the trace still tells its lines."""

    def process(given: typing.Any) -> None:
        global token
        token = given
        raises()

    run = Run(process).start().join()
    assert held == ["released"] and where == [run.greenlet]
    assert run.error is not None
    assert "raises()" in "".join(traceback.format_tb(run.error.__traceback__))


def test_the_attempt_goes_on_meanwhile() -> None:
    """2.13: the time limit, a request and a kill reach what is being released."""
    waits.clear()
    seen: list[object] = []

    def holding() -> collections.abc.Iterator[int]:
        try:
            yield 1
        finally:
            try:
                gevent.sleep(60)
            except BaseException as error:  # raised further, it could only be printed
                seen.append(type(error).__name__)

    def process(token: typing.Any) -> None:
        generator = holding()
        next(generator)
        _fails()

    run = Run(process, timeout=0.05, hard=True).start().join()
    assert seen == ["JobKilled"] and isinstance(run.error, ValueError)
    assert run.attempt.was_thrown and run.attempt.strongest
    assert run.attempt.strongest.kind == "timeout"


def test_frames_that_run_are_left_as_they_are() -> None:
    """2.13: an error that was caught further up, and is told where its frames still run."""
    kept = "kept"
    try:
        _fails()
    except ValueError as error:
        frames.release(error)
    assert kept == "kept"


def test_generators_that_run_or_fail_as_they_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2.13: the one is left, of the other Python's own hook is told."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(type(one.exc_value)))

    def fails() -> collections.abc.Iterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("closing")

    def runs() -> collections.abc.Iterator[int]:
        frames.release(ValueError(here))
        yield 1

    here = runs()
    assert next(here) == 1
    failing = fails()
    next(failing)
    frames.release(ValueError(failing, fails()))
    assert told == [KeyError]


def test_an_error_that_is_its_own_context_is_walked_once() -> None:
    error, other = ValueError(), KeyError()
    error.__cause__, other.__context__ = other, error
    error.__context__ = other
    frames.release(error)


class Hostile(Exception):
    """Answers nothing that is asked of it."""

    def __getattribute__(self, name: str) -> typing.NoReturn:
        raise RuntimeError(name)

    def _refuse(self) -> typing.NoReturn:
        raise RuntimeError("refused")

    __traceback__ = __cause__ = __context__ = __class__ = property(_refuse)  # type: ignore[assignment]


def test_an_error_that_refuses_to_be_looked_at_is_released_too() -> None:
    """2.13: an attempt whose end raises would never end."""

    def process(token: typing.Any) -> None:
        try:
            _holds()
        except ValueError:
            raise Hostile from None

    Run(process).start().join()
    assert held == ["released"]
