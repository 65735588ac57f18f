"""2.6, 5.5: what a request says does not depend on what class its reason is of."""

from __future__ import annotations

import enum
import json

import pytest

from geventq import Cancellation
from geventq.cancel_request import Request


class Loud(str):
    """A text that shows itself as another one."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    "reason",
    [None, "", "too late", "zu spät", Loud("red"), Level.HIGH, 0, 1.5, True, ("a", 1), {1: [None]}],
    ids=repr,
)
def test_a_job_fails_with_the_text_of_its_cancellation(reason: object) -> None:
    request = Request(reason)
    assert request.text == Cancellation(reason, "remote").failed_reason()
    read = json.loads(request.reason_json)
    assert type(request.text) is type(request.reason_text) is str
    assert request.reason_text == (read if isinstance(read, str) else request.reason_json)
