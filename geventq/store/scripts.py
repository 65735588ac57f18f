"""Our Lua: one file a transition, shared pieces as fragments, joined when first used.

A transition begins with a header: what it is for, then

    -- KEYS   the attributes of `QueueKeys` or `JobKeys` that it uses
    -- Also   keys that it makes from the base, if any: `<id>` the jobs, `:lock` theirs
    -- ARGV   1 what comes first  2 then  3... what is repeated
    -- Reply  what it answers
    -- Events the events that it adds, or none

The keys are filled by these names: a call passes the queue's keys, or a job's, and the script
finds each as ``keys.<name>``.  A line ``--- include: name`` brings ``fragments/name.lua`` in, with
what that one includes, once; an indented one, inside a block, where it is not in sight already.
What is rare stands inside blocks: Redis makes all functions of a script that it comes to anew in
each call, and each of them costs as much as a third of a command.

Redis does not roll a script back, and looks at each command's rights when the script comes to it.
So a call may bring one key more than the header names: then the script first asks whether its user
may run every command that stands in it, and refuses with all that he lacks before it has written
(`access.md`).  Redis and Valkey can tell from 7.0 on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import operator
import re
import typing

import hiredis

if typing.TYPE_CHECKING:
    from geventq.store.keys import Keys

__all__ = ["Script", "load", "pack"]

_INCLUDE: typing.Final = re.compile(r"( *)--- include: (\S+)")
_KEYS: typing.Final = re.compile(r"^-- KEYS +(.+(?:\n--  +.+)*)$", re.MULTILINE)
_KEY_NAME: typing.Final = re.compile(r"[a-z_]+")
_KEY: typing.Final = re.compile(r"\bkeys\.([a-z_]+)")
_BY_NAME: typing.Final = re.compile(r"\bkeys\[|pairs\(keys\)")
_CALLED: typing.Final = re.compile(r"\bp?call\([^'(\n]*'([A-Z]+)'(?: or '([A-Z]+)')?")
_COMMENT: typing.Final = re.compile(r"^\s*--(?!- ).*\n", re.MULTILINE)


# May be refused: then nobody is told, and a worker finds what is recorded (cancellation.md 5.2).
_OPTIONAL: typing.Final = frozenset(("PUBLISH",))

# What a command is asked about with, where it is not its key alone.
_ASKED_WITH: typing.Final = {
    "RENAME": "key, key",
    "TIME": "",
    "XINFO": "'STREAM', key",
    "XREAD": "'STREAMS', key, '0'",
    "ZINTER": "'1', key",
}


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

    __slots__ = ("_key_counts", "_key_names", "commands", "key_names", "name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        found = _KEYS.search(source)
        if found is None:
            raise ValueError(f"{name}.lua: the header lacks '-- KEYS'")
        self.name = name
        #: Attributes of the queue's keys, in the order in which they are sent.
        self.key_names = tuple(_KEY_NAME.findall(found[1]))
        count = len(self.key_names)
        self._key_counts = (str(count), str(count + 1))
        self._key_names = operator.attrgetter(*self.key_names, "base")  # two at least: a tuple
        body = _COMMENT.sub("", _joined(source, set()))
        #: The commands that it may come to, sorted.
        self.commands = tuple(
            sorted({one for pair in _CALLED.findall(body) for one in pair if one})
        )
        asking = _asking(self.commands, count + 1)
        keys, body = _with_keys(body, self.key_names)
        self.source = f"local keys = {keys}\n{asking}\n{body}"
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def pack(
        self,
        keys: Keys,
        args: typing.Sequence[str | bytes | int | float],
        *,
        texts_only: bool = False,
        asks: bool = False,
    ) -> bytes:
        """The packed ``EVALSHA`` call.  `texts_only`: no number is among `args`, so none is looked
        for.  `asks`: whether the user may run all its commands, before anything else.  Raises
        `AttributeError` if `keys` has not all that the header names: a job's are had by
        `QueueKeys.of_job`."""
        command = self._command("EVALSHA", self.sha, keys, args, asks)
        packed: bytes = _pack(command) if texts_only else pack(command)
        return packed

    def pack_whole(self, keys: Keys, args: typing.Sequence[str | bytes | int | float]) -> bytes:
        """The same call with the script's text, for a server that does not know it; it `asks`."""
        return pack(self._command("EVAL", self.source, keys, args, True))

    def _command(
        self,
        how: str,
        what: str,
        keys: Keys,
        args: typing.Sequence[str | bytes | int | float],
        asks: bool,
    ) -> tuple[str | bytes | int | float, ...]:
        names = self._key_names(keys)
        # The key more is as a job's, and no job's.
        names = (*names[:-1], f"{names[-1]}0") if asks else names[:-1]
        return (how, what, self._key_counts[asks], *names, *args)


def _with_keys(body: str, names: tuple[str, ...]) -> tuple[str, str]:
    """What ``keys`` is, and the script with it.  To fill a table by names costs the server more
    than a short command, so numbers stand for them where nobody goes through it, or looks a name
    up."""
    places = {name: n for n, name in enumerate(names, 1)}
    if _BY_NAME.search(body):
        by_name = ", ".join(f"{name} = KEYS[{n}]" for name, n in places.items())
        return f"{{ {by_name} }}", body

    def numbered(key: re.Match[str]) -> str:
        return f"keys[{places[key[1]]}]" if key[1] in places else key[0]

    return "KEYS", _KEY.sub(numbered, body)


def _asking(commands: tuple[str, ...], place: int) -> str:
    """The lines that refuse a call with one key more, if its user lacks one of `commands`."""
    needed = [one for one in commands if one not in _OPTIONAL]
    plain = " ".join(one for one in needed if one not in _ASKED_WITH)
    lines = [
        f"if KEYS[{place}] and redis.acl_check_cmd then",
        f"  local key, may, lacks = KEYS[{place}], redis.acl_check_cmd, ''",
        f"  for one in string.gmatch('{plain}', '%S+') do",
        "    lacks = may(one, key) and lacks or lacks .. ' +' .. string.lower(one)",
        "  end",
    ]
    for one in needed:
        if one in _ASKED_WITH:
            arguments = f"'{one}', {_ASKED_WITH[one]}".removesuffix(", ")
            lines.append(f"  lacks = may({arguments}) and lacks or lacks .. ' +{one.lower()}'")
    lines += [
        "  if lacks ~= '' then",
        "    return redis.error_reply('NOPERM it needs' .. lacks .. ' on keys like ' .. key)",
        "  end",
        "end",
    ]
    return "\n".join(lines) + "\n"


def _read(*path: str) -> str:
    folder = importlib.resources.files("geventq.store").joinpath("lua")
    return folder.joinpath(*path).read_text(encoding="utf-8")


def _joined(source: str, seen: set[str]) -> str:
    """The source with its fragments.  `seen` are those in sight at its margin; what its margin
    brings in is added."""
    lines: list[str] = []
    inside: list[tuple[int, set[str]]] = []  # by margin, what else is in sight at this place
    for line in source.splitlines():
        margin = len(line) - len(line.lstrip(" "))
        while line and inside and margin < inside[-1][0]:  # that block has ended
            inside.pop()
        found = _INCLUDE.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        indent, name = found.groups()
        known = seen.union(*[names for _, names in inside])
        if name not in known:
            in_sight = known | {name}
            fragment = _joined(_read("fragments", f"{name}.lua"), in_sight)
            lines += [f"{indent}{one}" for one in fragment.splitlines()]
            if indent:
                inside.append((margin, in_sight - known))
            else:
                seen |= in_sight
    return "\n".join(lines) + "\n"


@functools.cache
def load(name: str) -> Script:
    """The transition ``lua/<name>.lua``."""
    return Script(name, _read(f"{name}.lua"))
