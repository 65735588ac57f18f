"""JSON as Node.js reads and writes it (wire-format 2.6, 17.1).

Compact, UTF-8 not escaped, no NaN or infinity, no lone surrogates.  Pure functions.
"""

from __future__ import annotations

import json
import typing

__all__ = ["decode", "encode"]

_encode: typing.Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


def _refuse_constant(text: str) -> typing.NoReturn:
    raise ValueError(f"{text} is not JSON")


_decode: typing.Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def encode(field: str, value: object) -> bytes:
    """`value` as JSON text.

    Raises `TypeError` for what JSON has no form for and `ValueError` for NaN, infinities, lone
    surrogates, circular and too deep values; the message begins with `field`.
    """
    try:
        return _encode(value).encode()
    except TypeError as error:
        raise TypeError(f"{field}: not JSON: {error}") from None
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field}: not JSON: lone surrogate {error.object[error.start]!r}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{field}: not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{field}: not JSON: nested too deeply") from None


def decode(text: bytes) -> typing.Any:
    """The value of JSON `text`.  Raises `ValueError` for anything that Node.js refuses."""
    try:
        return _decode(text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
