"""What a worker makes of stored options, whoever wrote them."""

from __future__ import annotations

import json
import logging
import math
import typing

import pytest

from geventq.foreign import number_in
from geventq.worker.run.policy import Policies, RunPolicy

KEEP_TEN: typing.Final = [10, -1, 1000]


def policy(**opts: typing.Any) -> RunPolicy:
    return Policies(10, None, "q").of(json.dumps(opts).encode())


# What `Number(text)` says in Node.js 20.
@pytest.mark.parametrize(
    ("value", "number"),
    [
        *(("3", 3), (" 3\n", 3), ("\u00a03\ufeff", 3), ("-2", -2), ("+2.50", 2.5), (".5", 0.5)),
        *(("1.", 1), ("1e3", 1000), ("1E-1", 0.1), ("007", 7), ("-0", 0), ("", 0), (" ", 0)),
        *(
            ("0x1F", 31),
            ("0b11", 3),
            ("0o17", 15),
            ("Infinity", math.inf),
            ("-Infinity", -math.inf),
        ),
        *((3, 3), (2.5, 2.5), ("1e400", math.inf), ("9007199254740993", 2**53)),
        *(("3 times", None), ("1_000", None), ("1,5", None), ("inf", None), ("nan", None)),
        *(
            ("infinity", None),
            ("-0x10", None),
            ("٣", None),
            ("1e", None),
            (".", None),
            ("--1", None),
        ),
        *((True, None), (None, None), ([3], None), ({}, None), ("9" * 5000, None)),
    ],
)
def test_a_number_is_what_javascript_takes_for_one(value: object, number: object) -> None:
    """3.2: numeric text is read as JavaScript reads it."""
    assert number_in(value) == number


def test_numeric_text_in_every_option() -> None:
    """3.2: a producer in JavaScript does not notice that what it passes is text."""
    read = policy(
        attempts="3",
        timeout="1500",
        stackTraceLimit="2",
        removeOnComplete="100",
        removeOnFail={"age": "3600", "count": " 5 ", "limit": "7"},
    )
    assert (read.attempts, read.attempts_given, read.timeout, read.stack_limit) == (3, 3, 1.5, 2)
    assert (read.keep_completed, read.keep_failed) == ([100, -1, 1000], [5, 3600, 7])


@pytest.mark.parametrize("bad", ["soon", True, [], {"a": 1}, "3 times", "NaN", -1, "-1", "1_0"])
@pytest.mark.parametrize("option", ["attempts", "timeout", "stackTraceLimit", "backoff"])
def test_what_cannot_be_read_is_the_default_with_one_warning(
    option: str, bad: object, caplog: pytest.LogCaptureFixture
) -> None:
    """3.2: such a job runs, as it does in Node.js."""
    if option == "backoff" and isinstance(bad, dict):
        bad = {"type": "fixed", "delay": "soon"}
    policies = Policies(None, None, "q")
    with caplog.at_level(logging.WARNING, "geventq"):
        for job_id in ("a", "b"):  # two texts
            read = policies.of(json.dumps({option: bad, "jobId": job_id}).encode())
            assert (read.attempts, read.timeout, read.stack_limit) == (1, None, None)
    assert [record.message.count(option) for record in caplog.records] == [1]
    assert "queue q" in caplog.text


@pytest.mark.parametrize(
    ("option", "keep"),
    [
        (True, [0, -1, 1000]),
        (False, None),
        ({}, None),
        (None, KEEP_TEN),
        ("", KEEP_TEN),  # 0 in JavaScript, which would delete it
        (" ", KEEP_TEN),
        ("true", KEEP_TEN),
        (2.5, KEEP_TEN),
        ([], KEEP_TEN),
        ("Infinity", KEEP_TEN),
        ({"count": "many"}, KEEP_TEN),
        ({"count": "many", "age": 5}, [-1, 5, 1000]),
        ({"count": 3, "age": "-5"}, [3, -1, 1000]),
        ({"count": 3, "limit": "all"}, [3, -1, 1000]),
        ({"count": 3, "limit": -1}, [3, -1, 1000]),
        ({"count": True}, KEEP_TEN),
        ({"limit": 3}, None),
    ],
)
def test_removal_policies_of_others(option: object, keep: object) -> None:
    """3.2: member by member; where nothing can be read, the worker's own."""
    assert policy(removeOnComplete=option).keep_completed == keep


@pytest.mark.parametrize("text", [b"{", b"[]", b"5", b"null", b"\xff"])
def test_options_that_are_no_object_are_refused_by_name(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^opts: "):
        Policies(None, None, "q").of(text)


def test_attempts_may_be_a_fraction_or_endless_as_in_node() -> None:
    assert policy(attempts=2.5).attempts == 2.5
    assert policy(attempts="Infinity").attempts == math.inf
