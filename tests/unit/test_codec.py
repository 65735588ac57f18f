"""JSON as Node reads and writes it."""

from __future__ import annotations

import datetime
import json
import typing

import pytest

from geventq.codec import decode, encode

CIRCULAR: list[typing.Any] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, True], "b": 'é/"\u2028'}, '{"a":[1,null,true],"b":"é/\\"\u2028"}'),
        ("text", '"text"'),
        (None, "null"),
        (1e21, "1e+21"),
        ((1, 2), "[1,2]"),
        ({1: "one"}, '{"1":"one"}'),
    ],
)
def test_it_is_compact_and_not_escaped(value: object, text: str) -> None:
    assert encode("data", value) == text.encode()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        ({"deep": [float("-inf")]}, ValueError),
        ("\ud800", ValueError),
        ({"\udfff": 1}, ValueError),
        (CIRCULAR, ValueError),
        ({1, 2}, TypeError),
        (b"bytes", TypeError),
        (datetime.datetime(2026, 1, 1), TypeError),
        ({(1, 2): 3}, TypeError),
    ],
)
def test_what_json_cannot_say_is_refused_by_name(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^data: not JSON"):
        encode("data", value)
    assert encode("data", {"after": 1}) == b'{"after":1}'  # nothing is left of a refused one


def test_deep_values_are_refused_and_not_fatal() -> None:
    deep: list[typing.Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        encode("data", deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        decode(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"{", b"", b"\xff", b"{'a':1}"])
def test_what_node_refuses_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_it_is_what_the_standard_library_says() -> None:
    value = {"n": [0, -1, 1.5, 1e-7, 2**53], "s": "\x00\x1f\\", "o": {"": {}}}
    assert json.loads(encode("data", value)) == value == decode(encode("data", value))
