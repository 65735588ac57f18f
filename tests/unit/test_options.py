"""Job options: refused before anything is written, and stored as Node reads them."""

from __future__ import annotations

import datetime
import json
import typing

import pytest

from geventq import JobSpec, Queue
from geventq.options import from_wire, job_options

NAN, INFINITY = float("nan"), float("inf")


def stored(**options: typing.Any) -> dict[str, typing.Any]:
    wire = json.loads(job_options(options).text)
    assert wire.pop("attempts") == options.get("attempts", 0)
    return typing.cast(dict[str, typing.Any], wire)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("delay", "5", TypeError),
        ("delay", True, TypeError),
        ("delay", NAN, ValueError),
        ("delay", INFINITY, ValueError),
        ("delay", -1, ValueError),
        ("delay", datetime.timedelta(seconds=-1), ValueError),
        pytest.param("delay", 10**400, ValueError, id="delay-400-digits"),
        pytest.param("delay", 10**5000, ValueError, id="delay-5000-digits"),
        ("priority", 1.5, TypeError),
        ("priority", True, TypeError),
        ("priority", -1, ValueError),
        ("priority", 2**21, ValueError),
        ("attempts", "3", TypeError),
        ("attempts", -1, ValueError),
        ("lifo", 1, TypeError),
        ("backoff", "fixed", TypeError),
        ("backoff", -1, ValueError),
        ("backoff", {"delay": 1}, ValueError),
        ("backoff", {"type": "fixed"}, ValueError),
        ("backoff", {"type": "", "delay": 1}, ValueError),
        ("backoff", {"type": "fixed", "delay": 1, "jiter": 0.5}, ValueError),
        ("backoff", {"type": "fixed", "delay": 1, "jitter": 1.5}, ValueError),
        ("backoff", {"type": "fixed", "delay": 1, "jitter": NAN}, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", -2.0, ValueError),
        ("remove_on_complete", "yes", TypeError),
        ("remove_on_complete", -1, ValueError),
        ("remove_on_complete", 1.5, TypeError),
        ("remove_on_fail", {"age": -1}, ValueError),
        ("remove_on_fail", {"count": True}, TypeError),
        ("remove_on_fail", {"ages": 1}, ValueError),
        ("remove_on_fail", {"limit": 0, "age": 1}, ValueError),
        ("keep_logs", -1, ValueError),
        ("size_limit", "1", TypeError),
        ("stack_trace_limit", -1, ValueError),
        ("timestamp", "now", TypeError),
        ("timestamp", datetime.timedelta(1), TypeError),
    ],
)
def test_a_bad_value_is_refused_with_option_and_value(
    option: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=option):
        job_options({option: value})


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        "0",
        "17",
        "-5",
        "a:b",
        "a:b:c",
        "0:1",
        "wait",
        "meta",
        "stalled-check",
        "repeat",
        "\ud800",
    ],
)
def test_ids_that_are_the_queues_own_or_malformed_are_refused(job_id: str) -> None:
    with pytest.raises(ValueError, match="job_id"):
        job_options({"job_id": job_id})


@pytest.mark.parametrize(
    "job_id", ["a", "007", "1.5", "waiting", "-0", "é", "a b", "1" * 500 + "x"]
)
def test_other_ids_are_taken(job_id: str) -> None:
    assert job_options({"job_id": job_id}).job_id == job_id


def test_an_id_is_text() -> None:
    with pytest.raises(TypeError, match="job_id"):
        job_options({"job_id": 17})


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'retries': unknown option .* attempts"):
        job_options({"retries": 3})


@pytest.mark.parametrize(
    "option",
    [
        {"deduplication": {"id": "d"}},
        {"parent": {"id": "1", "queue": "q"}},
        {"fail_parent_on_failure": True},
    ],
)
def test_options_of_later_stages_are_refused_rather_than_ignored(
    option: dict[str, typing.Any],
) -> None:
    with pytest.raises(ValueError, match="not supported yet"):
        job_options(option)


@pytest.mark.parametrize("name", ["", "a:b", "\ud800"])
def test_queue_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match="queue name"):
        Queue(name)


def test_default_options_are_checked_when_the_queue_is_made() -> None:
    with pytest.raises(ValueError, match="attempts"):
        Queue("q", default_job_options={"attempts": -1})
    with pytest.raises(ValueError, match="job_id"):
        Queue("q", default_job_options={"job_id": "same"})


# -- what is stored ------------------------------------------------------------------------------


def test_seconds_become_milliseconds() -> None:
    assert stored(delay=1.5) == {"delay": 1500}
    assert stored(delay=0.1 + 0.2) == {"delay": 300}  # no digits of binary fractions
    assert stored(delay=1.5007) == {"delay": 1500.7}
    assert stored(delay=datetime.timedelta(minutes=1)) == {"delay": 60_000}
    assert stored(timeout=2) == {"timeout": 2000}
    assert stored(timestamp=1_750_000_000.5) == {"timestamp": 1_750_000_000_500}


def test_backoff_of_a_number_is_fixed() -> None:
    assert stored(backoff=5.0) == {"backoff": {"type": "fixed", "delay": 5000}}
    assert stored(backoff={"type": "exponential", "delay": 1, "jitter": 0.5}) == {
        "backoff": {"type": "exponential", "delay": 1000, "jitter": 0.5}
    }
    assert stored(backoff={"type": "mine"}) == {"backoff": {"type": "mine"}}


def test_removal_policies_keep_their_seconds() -> None:
    assert stored(remove_on_complete=True, remove_on_fail={"age": 3600, "count": 10}) == {
        "removeOnComplete": True,
        "removeOnFail": {"age": 3600, "count": 10},
    }


def test_none_is_an_option_left_out() -> None:
    assert stored(delay=None, job_id=None) == {}


def test_own_options_go_over_the_defaults() -> None:
    options = job_options({"attempts": 1}, {"attempts": 5, "delay": 2})
    assert json.loads(options.text) == {"attempts": 1, "delay": 2000}
    assert json.loads(job_options({"attempts": None}, {"attempts": 5}).text) == {"attempts": 0}


def test_stored_options_are_read_back_by_our_names() -> None:
    given = {
        "attempts": 3,
        "backoff": {"type": "exponential", "delay": 1.5},
        "delay": 2.0,
        "job_id": "x",
        "keep_logs": 5,
        "timeout": 0.5,
        "remove_on_fail": {"age": 60},
        "telemetry": {"metadata": "trace", "omit_context": True},
    }
    assert from_wire(json.loads(job_options(given).text)) == given
    assert from_wire({"custom": {"a": 1}, "delay": "soon"}) == {
        "attempts": 0,
        "custom": {"a": 1},
        "delay": "soon",
    }


def test_numeric_text_of_others_is_read_as_numbers() -> None:
    """3.2: what a processor computes with."""
    wire = {"attempts": "3", "kl": " 5 ", "delay": "1500", "timeout": "soon", "priority": "high"}
    assert from_wire({**wire, "backoff": {"type": "fixed", "delay": "250"}}) == {
        "attempts": 3,
        "keep_logs": 5,
        "delay": 1.5,
        "timeout": "soon",
        "priority": "high",
        "backoff": {"type": "fixed", "delay": 0.25},
    }
    assert from_wire({"backoff": "250"}) == {"attempts": 0, "backoff": 0.25}
    assert from_wire({"backoff": 250, "attempts": "x"}) == {"attempts": "x", "backoff": 0.25}


def test_data_left_out_differs_from_none() -> None:
    assert repr(JobSpec("n").data) == "LEFT_OUT"
    assert JobSpec("n", None).data is None
