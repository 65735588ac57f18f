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

__all__ = ["Script", "load"]

_INCLUDE: typing.Final = re.compile(r"^--- include: ([a-z_]+)$", re.MULTILINE)
_KEY_COUNT: typing.Final = re.compile(r"^-- key count: (\d+)$", re.MULTILINE)
_COMMENT: typing.Final = re.compile(r"^\s*--(?!- ).*\n", re.MULTILINE)


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
        pack: typing.Any = hiredis.pack_command
        packed: bytes = pack(("EVALSHA", self.sha, self.key_count, *keys, *args))
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
