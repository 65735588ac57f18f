"""Our Lua: one file a transition, shared pieces as fragments, joined when first used.

A transition begins with a header (``-- KEYS``, ``-- ARGV``, ``-- Reply``, ``-- Events``) and
names its number of keys in ``-- key count: N``, which every call is checked against.  A line
``--- include: name`` brings ``fragments/name.lua`` in, once, with what that one includes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re
import typing

import hiredis

__all__ = ["Script", "load", "pack"]

_INCLUDE: typing.Final = re.compile(r"^--- include: ([a-z_]+)$", re.MULTILINE)
_KEY_COUNT: typing.Final = re.compile(r"^-- key count: (\d+)$", re.MULTILINE)
_COMMENT: typing.Final = re.compile(r"^\s*--(?!- ).*\n", re.MULTILINE)


_pack: typing.Final[typing.Any] = hiredis.pack_command  # wrongly typed there
_TEXTS: typing.Final = {str, bytes}


def pack(command: tuple[str | bytes | int | float, ...]) -> bytes:
    """A command as it is sent.  Numbers become text here: hiredis (3.5) ends the process when a
    signal's handler raises, as Ctrl-C does, while it does that."""
    if not _TEXTS.issuperset(map(type, command)):
        command = tuple([one if type(one) in _TEXTS else _text(one) for one in command])
    packed: bytes = _pack(command)
    return packed


def _text(value: typing.Any) -> str | bytes:
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a command holds texts and numbers, got {type(value).__name__}")
    return repr(value)


class Script:
    """One transition, ready to be sent."""

    __slots__ = ("key_count", "name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        found = _KEY_COUNT.search(source)
        if found is None:
            raise ValueError(f"{name}.lua: the header lacks '-- key count: N'")
        self.name = name
        self.key_count = int(found[1])
        self.source = _COMMENT.sub("", _joined(source, set()))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def pack(
        self, keys: typing.Sequence[str], args: typing.Sequence[str | bytes | int | float]
    ) -> bytes:
        """The packed ``EVALSHA`` call.  Raises `ValueError` if the number of keys is off."""
        if len(keys) != self.key_count:
            raise ValueError(f"{self.name}.lua takes {self.key_count} keys, got {len(keys)}")
        packed: bytes = pack(("EVALSHA", self.sha, str(self.key_count), *keys, *args))
        return packed


def _read(*path: str) -> str:
    folder = importlib.resources.files("geventq.store").joinpath("lua")
    return folder.joinpath(*path).read_text(encoding="utf-8")


def _joined(source: str, seen: set[str]) -> str:
    def fragment(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        return _joined(_read("fragments", f"{name}.lua"), seen)

    return _INCLUDE.sub(fragment, source)


@functools.cache
def load(name: str) -> Script:
    """The transition ``lua/<name>.lua``."""
    return Script(name, _read(f"{name}.lua"))
