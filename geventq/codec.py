"""JSON as Node.js reads and writes it (wire-format 2.6, 17.1).

Compact, UTF-8 not escaped, no NaN or infinity, no lone surrogates.  Pure functions.
"""

from __future__ import annotations

import json
import typing

__all__ = ["decode", "encode"]


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
        raise ValueError(f"{field}: not JSON: nested too deeply, or in itself") from None


def decode(text: bytes) -> typing.Any:
    """The value of JSON `text`.  Raises `ValueError` for anything that Node.js refuses."""
    try:
        plain = text.decode()
        try:
            value, end = _scan(plain, 0)  # without the two searches for white space around it
        except StopIteration:
            return _decoder.decode(plain)
        return value if end == len(plain) else _decoder.decode(plain)
    except RecursionError:
        raise ValueError("nested too deeply") from None
