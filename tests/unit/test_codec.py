"""JSON as Node reads and writes it."""

from __future__ import annotations

import collections
import datetime
import json
import time
import typing

import pytest

from geventq.codec import DEEPEST, decode, encode, encode_in_parts, is_large

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


def nested(levels: int, leaf: object) -> object:
    """`leaf` inside `levels` lists and dicts in turn."""
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


MANY: typing.Final = 50_000


@pytest.mark.parametrize(
    "value",
    [
        list(range(MANY)),
        tuple(range(MANY)),
        {str(number): number for number in range(MANY)},
        {1: list(range(MANY)), None: [], False: {"k": list(range(MANY))}, 1.5: "x"},
        [1, "é", {}, [], {"a": list(range(MANY)), "b": (1, 2)}, list(range(MANY)), [[]], None],
        [[list(range(40)) for _ in range(40)] for _ in range(40)],
        {"text": 'é"' * MANY * 100, "texts": ["x" * 1000] * 3000},
        "x" * MANY * 100,
        [{}] * MANY,
        nested(DEEPEST - 1, list(range(MANY))),
        collections.OrderedDict((str(number), [number]) for number in range(MANY)),
    ],
)
def test_a_large_value_comes_in_parts_that_make_the_same_text(value: object) -> None:
    assert is_large(value)
    assert b"".join(encode_in_parts("data", value)) == encode("data", value)


@pytest.mark.parametrize(
    "value", [None, 1, "x" * 1000, {"a": [1] * 1000}, [[{}] * 100] * 10, [], {}]
)
def test_a_small_value_is_not_large(value: object) -> None:
    assert not is_large(value)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ({"rows": [*range(MANY), {"price": NAN}]}, ValueError, "data['rows'][50000]['price']: NaN"),
        ([{"at": datetime.date(2026, 1, 1)}] * MANY, TypeError, "data[0]['at']: "),
        ({"rows": list(range(MANY)), (1, 2): 3}, TypeError, "data: the key (1, 2)"),
        ({(1, 2): list(range(MANY))}, TypeError, "data: the key (1, 2)"),
        (["x" * MANY * 100, "\ud800"], ValueError, "data[1]: '\\ud800'"),
        (nested(DEEPEST, list(range(MANY))), ValueError, "nested too deeply"),
        ([list(range(MANY)), nested(DEEPEST, 1)], ValueError, "nested too deeply"),
        ([*CIRCULAR, *range(MANY)], ValueError, "nested too deeply"),
    ],
)
def test_a_large_value_is_refused_as_a_small_one_is(
    value: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as plain:
        encode("data", value)
    with pytest.raises(error) as parts:
        list(encode_in_parts("data", value))
    assert str(parts.value) == str(plain.value)
    assert text in str(parts.value)


def _in_itself(branches: int) -> dict[str, object]:
    value: dict[str, object] = {}
    value |= {str(number): value for number in range(branches)}
    return value


@pytest.mark.parametrize(
    "value",
    [CIRCULAR, _in_itself(2), [*CIRCULAR, *range(MANY)], nested(100_000, 1)],
    ids=["in itself", "twice in itself", "with much beside", "deep"],
)
def test_what_has_no_end_is_refused_without_going_there(value: object) -> None:
    """3.1: to look at it 500 times, as large as it seems, would take seconds."""
    began = time.thread_time()
    assert is_large(value)
    with pytest.raises(ValueError, match="nested too deeply"):
        list(encode_in_parts("data", value))
    assert time.thread_time() - began < 0.5


def test_a_value_that_changes_while_it_is_written_is_written_as_it_is_by_then() -> None:
    value = {"first": list(range(MANY)), "second": list(range(MANY)), "third": 3}
    parts = encode_in_parts("data", value)
    written = next(parts)
    del value["second"]
    assert decode(written + b"".join(parts)) == value
