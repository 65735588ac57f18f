"""What a failed attempt's trace tells (wire-format 3)."""

from __future__ import annotations

import json
import re
import traceback
import typing

import pytest

from geventq import JobCancelled, JobKilled
from geventq.cancellation import Cancellation
from geventq.worker.run.traces import kept_traces

MARKS: typing.Final = re.compile(r"^ +[~^]+\n", re.MULTILINE)  # what Python puts below a line


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("kind", [JobCancelled, JobKilled])
def test_the_trace_of_a_cancellation_is_pythons_without_the_marks(kind: type[JobCancelled]) -> None:
    error = raised(kind(Cancellation({"ü": 1})))
    (trace,) = json.loads(kept_traces([], error, None))
    assert f"{trace}\n" == MARKS.sub("", "".join(traceback.format_exception(error)))
    assert "test_traces.py" in trace


def test_one_with_a_cause_or_a_note_is_told_as_python_does() -> None:
    error = raised(JobCancelled(Cancellation("no")), ValueError("why"))
    noted = raised(JobCancelled(Cancellation("no")))
    noted.add_note("a note")
    for one in (error, noted):
        (trace,) = json.loads(kept_traces([], one, None))
        assert f"{trace}\n" == "".join(traceback.format_exception(one))
