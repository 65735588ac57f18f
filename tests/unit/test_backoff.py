"""How long a failed job waits (wire-format 9.6)."""

from __future__ import annotations

import datetime
import typing

import pytest

from geventq.backoff import next_delay
from geventq.errors import GeventqError

JOB: typing.Any = object()
ERROR = ValueError("boom")


def delay(backoff: object, made: int = 1, random: float = 0.5, **strategies: typing.Any) -> object:
    opts = {} if backoff is None else {"backoff": backoff}
    return next_delay(opts, made, ERROR, JOB, strategies, lambda: random)


@pytest.mark.parametrize(
    "backoff",
    [
        *(None, {"type": "fixed", "delay": 0}, "soon", {"type": "fixed"}, True, [], "-5", "1_000"),
        *({"type": "fixed", "delay": text} for text in ("", "soon", "-1", "Infinity", "NaN", None)),
        *({"type": "exponential", "delay": value} for value in (True, [], {}, -1)),
    ],
)
def test_without_a_backoff_the_job_runs_again_at_once(backoff: object) -> None:
    assert delay(backoff) == 0


def test_fixed_is_the_same_each_time() -> None:
    assert [delay({"type": "fixed", "delay": 250}, made) for made in (1, 2, 9)] == [250] * 3
    assert delay(250) == 250  # a producer that did not normalise


def test_numeric_text_is_a_number() -> None:
    """3.2: JavaScript does not mind, and its producers do not notice."""
    assert delay("250") == delay({"type": "fixed", "delay": " 2.5e2 "}) == 250
    assert delay({"type": "exponential", "delay": "1000"}, 2) == 2000
    backoff = {"type": "fixed", "delay": "0x3e8", "jitter": "0.5"}
    assert delay(backoff, random=0.0) == 500


def test_exponential_doubles() -> None:
    backoff = {"type": "exponential", "delay": 1000}
    assert [delay(backoff, made) for made in (1, 2, 3, 4)] == [1000, 2000, 4000, 8000]
    assert delay(backoff, 10_000) == 2**53  # and stays a number that can be stored


@pytest.mark.parametrize(("random", "expected"), [(0.0, 500), (0.5, 750), (0.9999999, 999)])
def test_jitter_takes_its_share_at_random(random: float, expected: int) -> None:
    assert delay({"type": "fixed", "delay": 1000, "jitter": 0.5}, random=random) == expected


def test_a_named_strategy_gets_attempts_error_and_job_and_answers_seconds() -> None:
    seen: list[object] = []

    def mine(*given: object) -> float:
        seen.append(given)
        return 1.5

    assert delay({"type": "mine", "delay": 9}, 2, mine=mine) == 1500
    assert seen == [(2, ERROR, JOB)]


def test_a_negative_answer_fails_the_job_now() -> None:
    assert delay({"type": "mine"}, mine=lambda *_: -1) is None


def test_an_answer_may_be_a_timedelta() -> None:
    """All times are seconds, as a float or a timedelta."""
    assert delay({"type": "mine"}, mine=lambda *_: datetime.timedelta(seconds=2)) == 2000
    assert delay({"type": "mine"}, mine=lambda *_: datetime.timedelta(days=-1)) is None


@pytest.mark.parametrize("answer", [None, "1", True, float("nan"), float("inf"), 1e300])
def test_an_answer_that_is_no_time_is_an_error(answer: object) -> None:
    with pytest.raises(GeventqError, match="mine"):
        delay({"type": "mine"}, mine=lambda *_: answer)


def test_a_name_without_strategy_is_an_error() -> None:
    with pytest.raises(GeventqError, match="'mine'"):
        delay({"type": "mine"})
