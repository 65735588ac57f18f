"""What other programs stored, read as Node.js reads it.

Every producer may write a queue's options, and JavaScript does not mind ``attempts: "3"``.
Pure functions; knows nothing of Redis.
"""

from __future__ import annotations

import math
import re
import typing

__all__ = ["number_in", "times_in"]

_DECIMAL: typing.Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OTHER_BASE: typing.Final = re.compile(r"0(?:[xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)")
_INFINITE: typing.Final = re.compile(r"([+-]?)Infinity")
_SPACE: typing.Final = " \t\n\v\f\r\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_LONGEST: typing.Final = 400  # characters that a number can have
_MOST_BITS: typing.Final = 1023  # of a whole number that is no infinity for JavaScript


def number_in(value: object) -> int | float | None:
    """The number that a JSON value is for JavaScript (ECMAScript's ``Number(value)``), `None` for
    what is none: ``"3"``, ``" 1e3 "`` and ``"0x10"`` are numbers, ``"3 times"`` is not.  Nor is a
    bool: who wrote one did not mean a number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return None if math.isnan(value) else value
    number = _number_in_text(value.strip(_SPACE)) if isinstance(value, str) else value
    if isinstance(number, int) and number.bit_length() > _MOST_BITS:
        return math.inf if number > 0 else -math.inf
    return number if isinstance(number, int | float) else None


def _number_in_text(text: str) -> int | float | None:
    if not text:
        return 0
    if len(text) > _LONGEST:
        return None
    if _DECIMAL.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() else number
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    infinite = _INFINITE.fullmatch(text)
    return float(f"{infinite[1]}inf") if infinite else None


def times_in(value: object, most: float) -> int | float | None:
    """A number from 0 to `most`, `None` for anything else."""
    number = number_in(value)
    return number if number is not None and 0 <= number <= most else None
