"""Reading a job from its hash: lazily, and tolerant of what others wrote (wire-format 3)."""

from __future__ import annotations

import typing

import pytest

from geventq.errors import GeventqError
from geventq.job import Job

STORE: typing.Any = type("Store", (), {"queue_name": "q"})()


def job(**fields: str | bytes) -> Job:
    encoded = {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in fields.items()
    }
    return Job(STORE, "7", encoded)


WHOLE = {"name": "n", "data": '{"a":1}', "opts": '{"attempts":2,"delay":1500,"kl":3}'}


def test_the_whole_hash() -> None:
    read = job(
        **WHOLE,
        timestamp="1750000000500",
        delay="1500",
        priority="4",
        processedOn="1750000001000",
        finishedOn="1750000002000",
        atm="1",
        ats="2",
        stc="3",
        pb="worker é",
        returnvalue='{"ok":true}',
        failedReason="boom",
        stacktrace='["first","second"]',
        progress="42",
        defa="stalled",
        parentKey="bull:p:1",
        deid="d",
    )
    assert (read.id, read.name, read.data, read.queue_name) == ("7", "n", {"a": 1}, "q")
    assert read.opts == {"attempts": 2, "delay": 1.5, "keep_logs": 3}
    assert (read.timestamp, read.delay, read.priority) == (1_750_000_000.5, 1.5, 4)
    assert (read.processed_on, read.finished_on) == (1_750_000_001.0, 1_750_000_002.0)
    assert (read.attempts_made, read.attempts_started, read.stalled_counter) == (1, 2, 3)
    assert (read.processed_by, read.return_value, read.failed_reason) == (
        "worker é",
        {"ok": True},
        "boom",
    )
    assert (read.stacktrace, read.progress) == (["first", "second"], 42)
    assert (read.deferred_failure, read.parent_key, read.deduplication_id) == (
        "stalled",
        "bull:p:1",
        "d",
    )
    assert read.defect() is None
    assert repr(read) == "<Job 7 'n' of 'q'>"


def test_a_fresh_hash_has_defaults() -> None:
    read = job(**WHOLE)
    assert (read.attempts_made, read.attempts_started, read.progress) == (0, 0, 0)
    assert read.return_value is read.failed_reason is read.processed_on is read.finished_on is None
    assert read.stacktrace == []
    assert read.cancellation is None


def test_missing_or_empty_parts_read_as_node_reads_them() -> None:
    read = job(name="n", data="", opts="")
    assert (read.data, read.opts, read.defect()) == ({}, {"attempts": 0}, None)


def test_an_old_spelling_of_the_attempts_wins() -> None:
    assert job(**WHOLE, attemptsMade="3", atm="1").attempts_made == 3


@pytest.mark.parametrize(
    "number", ["", "x", "1e999", "nan", "--1", "-1", "9" * 400, "9" * 5000, "9007199254740993"]
)
def test_numbers_that_are_none_read_as_zero(number: str) -> None:
    read = job(**WHOLE, timestamp=number, atm=number, ats=number, stc=number, processedOn=number)
    assert (read.timestamp, read.timestamp_ms, read.processed_on) == (0, 0, 0)
    assert read.counters() == (0, 0, 0) == (read.attempts_made, read.attempts_started, 0)


def test_numbers_are_read_as_the_scripts_read_them() -> None:
    read = job(**WHOLE, timestamp="2.9", atm="0x10", ats=" 7 ", stc="1e3")
    assert read.timestamp_ms == 2
    assert read.counters() == (16, 7, 1000)


def test_options_of_any_depth_and_size_can_be_looked_at() -> None:
    deep = '{"a":' * 800 + "1" + "}" * 800
    huge = "9" * 400
    read = job(**{**WHOLE, "opts": f'{{"x":{deep},"delay":{huge},"backoff":{{"delay":{huge}}}}}'})
    assert read.opts["delay"] == float("inf") == read.opts["backoff"]["delay"]
    read.opts["x"]["a"] = 5
    assert read.opts["x"]["a"] != 5


def test_unreadable_results_and_traces_read_as_none() -> None:
    read = job(**WHOLE, returnvalue="{", stacktrace="[")
    assert read.return_value is None
    assert read.stacktrace == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "hash is missing"),
        ({"atm": "1"}, "no name"),
        ({**WHOLE, "data": "{"}, "data of job 7 is not JSON"),
        ({**WHOLE, "data": "NaN"}, "data of job 7 is not JSON"),
        ({**WHOLE, "data": b"\xff"}, "data of job 7 is not JSON"),
    ],
)
def test_a_broken_hash_is_told_and_not_run(fields: dict[str, typing.Any], text: str) -> None:
    assert text in (job(**fields).defect() or "")


def test_reading_broken_data_raises_and_the_rest_can_be_read() -> None:
    read = job(**{**WHOLE, "data": "{"})
    with pytest.raises(GeventqError, match="data of job 7"):
        read.data  # noqa: B018
    assert read.name == "n"


def test_data_are_parsed_once() -> None:
    read = job(**WHOLE)
    assert read.data is read.data


def test_a_broken_record_is_no_cancellation() -> None:
    assert job(**WHOLE, gqc="{").cancellation is None


@pytest.mark.parametrize(
    "step",
    [
        lambda job: job.extend_lock(5),
        lambda job: job.move_to_completed(1),
        lambda job: job.move_to_failed("boom"),
        lambda job: job.move_to_delayed(1),
        lambda job: job.move_to_wait(),
    ],
)
def test_only_a_worker_can_settle_a_job(step: typing.Callable[[Job], object]) -> None:
    with pytest.raises(GeventqError, match="not taken by a worker here"):
        step(job(**WHOLE))


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (lambda job: job.update_progress(float("nan")), ValueError),
        (lambda job: job.update_data({1, 2}), TypeError),
        (lambda job: job.log(5), TypeError),
        (lambda job: job.log("\ud800"), ValueError),
        (lambda job: job.change_delay(-1), ValueError),
        (lambda job: job.change_priority(True), TypeError),
        (lambda job: job.change_priority(2**21), ValueError),
        (lambda job: job.retry("waiting"), ValueError),
        (lambda job: job.clear_logs(-1), ValueError),
        (lambda job: job.wait_until_finished(-1), ValueError),
    ],
)
def test_bad_arguments_are_refused_without_a_call(
    step: typing.Callable[[Job], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        step(job(**WHOLE))  # the store has no methods: a call would be an AttributeError
