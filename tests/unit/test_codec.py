"""JSON as Node reads and writes it."""

from __future__ import annotations

import datetime
import json
import typing

import pytest

from geventq.codec import DEEPEST, decode, encode

NAN = float("nan")
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
    ("value", "error", "text"),
    [
        (NAN, ValueError, "data: NaN is not JSON"),
        ({"rows": [0, {}, 2, {"price": NAN}]}, ValueError, "data['rows'][3]['price']: NaN is"),
        ({"deep": [float("-inf")]}, ValueError, "data['deep'][0]: -Infinity is not JSON"),
        ([[1], (float("inf"),)], ValueError, "data[1][0]: Infinity is not JSON"),
        ("\ud800", ValueError, "data: '\\ud800' is not JSON: it holds a lone surrogate"),
        ({"a": ["caf\udce9"]}, ValueError, "data['a'][0]: 'caf\\udce9' is not JSON"),
        ({"a": {"\udfff": 1}}, ValueError, "data['a']: the key '\\udfff' is not JSON"),
        (CIRCULAR, ValueError, "data: not JSON: nested too deeply"),
        ({"a": {1, 2}}, TypeError, "data['a']: {1, 2} (set) is not JSON"),
        ([b"bytes"], TypeError, "data[0]: b'bytes' (bytes) is not JSON"),
        (datetime.datetime(2026, 1, 1), TypeError, "(datetime) is not JSON"),
        ({"x": {(1, 2): 3}}, TypeError, "data['x']: the key (1, 2) (tuple) is not JSON"),
        ({"x": {NAN: 3}}, ValueError, "data['x']: the key NaN is not JSON"),
        ([[], 10**5000], ValueError, "data[1]: a number with more than 4,300 digits is not"),
    ],
)
def test_what_json_cannot_say_is_refused_by_path_and_value(
    value: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as refused:
        encode("data", value)
    assert str(refused.value).startswith("data")
    assert text in str(refused.value)
    assert encode("data", {"after": 1}) == b'{"after":1}'  # nothing is left of a refused one


def test_a_long_path_is_cut() -> None:
    deep: typing.Any = NAN
    for _ in range(400):
        deep = {"member": deep}
    with pytest.raises(ValueError, match=r"NaN is not JSON$") as refused:
        encode("data", deep)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("leaf", [1, '"[{\\', {"]": "["}])
def test_one_limit_of_nesting(leaf: typing.Any) -> None:
    """3.3: what is written can be read, however deep; brackets in texts do not count."""
    depth = DEEPEST - isinstance(leaf, dict)
    deep = leaf
    for level in range(depth):
        deep = [deep] if level % 2 else {'"[\\': deep, "more": "[" * 10}
    assert decode(encode("data", deep)) == deep
    for more in ([deep], {"a": deep}, [0, [deep]]):
        with pytest.raises(ValueError, match=r"^data: not JSON: nested too deeply \(more than 500"):
            encode("data", more)
    assert encode("data", [[]] * 10 * DEEPEST)  # many are not deep


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
