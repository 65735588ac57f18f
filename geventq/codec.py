"""JSON as Node.js reads and writes it (wire-format 2.6, 17.1).

Compact, UTF-8 not escaped, no NaN or infinity, no lone surrogates, not nested deeper than
`DEEPEST`.  Pure functions.
"""

from __future__ import annotations

import gc
import json
import math
import re
import typing

from geventq.checks import show

__all__ = ["DEEPEST", "decode", "encode", "encode_in_parts", "is_large", "is_sound"]

DEEPEST: typing.Final = 500
"""Lists and dicts inside each other that are written.  Reading gives up only where the
interpreter's stack does (some 900 levels), so that what was taken can be read everywhere."""

_SURROGATE: typing.Final = re.compile("[\ud800-\udfff]")
_ONE_KIND: typing.Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: typing.Final = bytes(set(range(256)) - set(b"[]{}"))
_MOST_BITS: typing.Final = 14_284  # of an int that has 4,300 digits, the most that Python writes
_SCALARS: typing.Final = {type(None), bool, int, float}
_LARGE: typing.Final = 20_000  # members: 2 ms to write, 5 to look how deep they are
_LETTERS: typing.Final = 64  # of a text that count like a member
_LARGE_TEXT: typing.Final = 200_000  # bytes: some ms to read
_LONGEST_PATH: typing.Final = 200  # characters of it in a message


def _refuse_type(value: object) -> typing.NoReturn:
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _encoder() -> typing.Callable[[object], str]:
    """`json.JSONEncoder.encode`, with its C part made once: it is made anew at each call there,
    which is half of the time for a small payload.  Without a look-out for circular values: they
    end in a `RecursionError`, as too deep ones do."""
    made = getattr(json.encoder, "c_make_encoder", None)
    if made is None:  # an interpreter without the C part
        plain = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
        )
        return plain.encode
    text = json.encoder.encode_basestring
    chunks = made(None, _refuse_type, text, None, ":", ",", False, False, False)

    def encode(value: object) -> str:
        return "".join(chunks(value, 0))

    return encode


_encode: typing.Final = _encoder()


def _refuse_constant(text: str) -> typing.NoReturn:
    raise ValueError(f"{text} is not JSON")


_decoder: typing.Final = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: typing.Final[typing.Callable[[str, int], tuple[typing.Any, int]]] = typing.cast(
    typing.Any, _decoder
).scan_once


def encode(field: str, value: object) -> bytes:
    """`value` as JSON text.

    Raises `TypeError` for what JSON has no form for and `ValueError` for NaN, infinities, lone
    surrogates, circular and too deep values.  The message begins with the path to the culprit:
    ``data['rows'][3]['price']: NaN is not JSON``.
    """
    try:
        text = _encode(value).encode()
    except (TypeError, ValueError) as error:
        raise _refusal(field, value, error) from None
    except RecursionError:
        raise _too_deep(field) from None
    if len(text) > 2 * DEEPEST and _is_too_deep(text, DEEPEST):
        raise _too_deep(field)
    return text


def encode_in_parts(field: str, value: object) -> typing.Iterator[bytes]:
    """`encode` of a large value as it comes: each part takes a few milliseconds, or is one text.
    What is raised comes with the part to blame."""
    try:
        yield from _parts(value, DEEPEST, frozenset())
    except (TypeError, ValueError) as error:
        raise _refusal(field, value, error) from None
    except RecursionError:
        raise _too_deep(field) from None


def _parts(value: object, levels: int, outside: frozenset[int]) -> typing.Iterator[bytes]:
    """A container is cut between members: small ones go together, a large one in parts.  `levels`
    are those that may still be inside each other, `outside` the ids of those it is in: what is in
    itself is known at once, not at the last level."""
    is_dict = isinstance(value, dict)
    if not is_dict and not isinstance(value, list | tuple):
        yield _encode(value).encode()
        return
    if not levels or id(value) in outside:
        raise RecursionError
    outside |= {id(value)}
    begin, end = (b"{", b"}") if is_dict else (b"[", b"]")
    separator = begin
    for key, member, few in _cut(value):
        if few is not None:
            text = _encode(few).encode()
            if _is_too_deep(text, levels):
                raise RecursionError
            yield separator + text[1:-1]
        else:
            name = _encode({key: 0}).encode()[1:-2] if is_dict else b""
            yield separator + name
            yield from _parts(member, levels - 1, outside)
        separator = b","
    yield end if separator == b"," else begin + end


def _cut(value: typing.Any) -> typing.Iterator[tuple[object, object, object]]:
    """The members of a container, as it is now: key and member of each large one, and containers
    of few, small ones."""
    is_dict = isinstance(value, dict)
    few: typing.Any = {} if is_dict else []
    weight = 0
    for key, member in _pairs(value) if is_dict else enumerate(list(value)):
        heavy = _weight(member)
        if few and weight + heavy > _LARGE:
            yield None, None, few
            few, weight = {} if is_dict else [], 0
        if heavy > _LARGE:
            yield key, member, None
            continue
        if is_dict:
            few[key] = member
        else:
            few.append(member)
        weight += heavy
    if few:
        yield None, None, few


def _pairs(value: dict[object, object]) -> typing.Iterator[tuple[object, object]]:
    """What `value.items()` are now.  Not held in pairs: the collector would look through a
    million new objects."""
    if type(value) is not dict:
        yield from list(value.items())
        return
    for key in list(value):
        if key in value:
            yield key, value[key]


def is_large(value: object) -> bool:
    """Whether to write it takes more than some milliseconds."""
    return type(value) not in _SCALARS and _weight(value) > _LARGE


def _weight(value: object) -> int:
    """Members inside of `value`, and one more for some letters; counted, level by level, till it
    is too large.  What is too deep counts as that."""
    weight = 1
    inside = [value]
    for _ in range(DEEPEST + 1):
        deeper: list[object] = []
        for one in inside:
            if isinstance(one, dict):
                members: typing.Iterable[object] = one.values()
            elif isinstance(one, list | tuple):
                members = one
            else:
                weight += len(one) // _LETTERS if isinstance(one, str) else 0
                continue
            weight += len(one)
            if weight > _LARGE:
                return weight
            for member in members:
                if type(member) is str:
                    weight += len(member) // _LETTERS
                elif type(member) not in _SCALARS:
                    deeper.append(member)
        if not deeper:
            return weight
        inside = deeper
    return _LARGE + 1


def _too_deep(field: str) -> ValueError:
    return ValueError(
        f"{field}: not JSON: nested too deeply (more than {DEEPEST} levels), or in itself"
    )


def _is_too_deep(text: bytes, levels: int) -> bool:
    """Whether JSON `text` has more than `levels`: each pass takes the innermost away."""
    if text.count(b"[") + text.count(b"{") <= levels:
        return False
    quoted = text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
    brackets = b"".join(quoted[::2]).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(levels):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def _refusal(field: str, value: object, error: Exception) -> Exception:
    """Why `value` cannot be written, with the path to the first member that is to blame."""
    path: list[str] = []
    why = _why_not(value) or _search(value, path)
    if why is None:  # it changed meanwhile, or its class lies about itself
        return type(error)(f"{field}: not JSON: {error}")
    kind, text = why
    where = "".join(path)
    if len(where) > _LONGEST_PATH:
        where = f"{where[:_LONGEST_PATH]}..."
    return kind(f"{field}{where}: {text}")


_Why = tuple[type[Exception], str]  # the class of the error, and what is wrong


def _search(value: object, path: list[str]) -> _Why | None:
    """The first member, in the order of writing, that JSON has no form for; `path` leads to it.
    Iterates, because the value may be deep."""
    inside = [_members(value)]
    while inside and len(inside) <= 2 * DEEPEST:
        for key, member in inside[-1]:
            why = _why_not_key(key)
            if why is not None:
                return why
            path.append(f"[{show(key)}]")
            why = _why_not(member)
            if why is not None:
                return why
            if isinstance(member, dict | list | tuple):
                inside.append(_members(member))
                break
            path.pop()
        else:
            inside.pop()
            if path:
                path.pop()
    return None


def _members(value: object) -> typing.Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value) if isinstance(value, list | tuple) else iter(())


def is_sound(text: str) -> bool:
    """Whether a text can be written: it holds no lone surrogate.  JSON of others may."""
    return text.isascii() or _SURROGATE.search(text) is None


def _why_not(value: object) -> _Why | None:
    """What is wrong with `value` itself, whatever it holds."""
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return ValueError, f"{name} is not JSON"
    if isinstance(value, str):
        if _SURROGATE.search(value):
            return ValueError, f"{show(value)} is not JSON: it holds a lone surrogate"
        return None
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return ValueError, "a number with more than 4,300 digits is not JSON"
    if value is None or isinstance(value, int | dict | list | tuple):
        return None
    return TypeError, f"{show(value)} ({type(value).__name__}) is not JSON"


def _why_not_key(key: object) -> _Why | None:
    if key is None or isinstance(key, str | int | float):
        why = _why_not(key)
        return None if why is None else (why[0], f"the key {why[1]}")
    return TypeError, f"the key {show(key)} ({type(key).__name__}) is not JSON"


def decode(text: bytes) -> typing.Any:
    """The value of JSON `text`.  Raises `ValueError` for anything that Node.js refuses."""
    if len(text) > _LARGE_TEXT and gc.isenabled():
        # Nothing that it makes is garbage yet, and the collector would look through all of it
        # again and again: up to half of the time, in which the hub has no turn.
        gc.disable()
        try:
            return _decode(text)
        finally:
            gc.enable()
    return _decode(text)


def _decode(text: bytes) -> typing.Any:
    try:
        plain = text.decode()
        try:
            value, end = _scan(plain, 0)  # without the two searches for white space around it
        except StopIteration:
            return _decoder.decode(plain)
        return value if end == len(plain) else _decoder.decode(plain)
    except RecursionError:
        raise ValueError("nested too deeply") from None
