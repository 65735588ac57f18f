"""What the commands say: lines for people, JSON for programs, and never a password.

Owns standard output.  No greenlets run here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import typing

__all__ = [
    "STDERR",
    "Console",
    "Rows",
    "UsageError",
    "blotted",
    "locked",
    "safe",
    "say_error",
    "shape_errors",
    "without_passwords",
]

STDERR: typing.Final = 1  # the byte of the file of turns that stands for standard error

# With a scheme, or with none: then a colon and an at sign are what an address has.
_CREDENTIALS: typing.Final = re.compile(
    r"(?<=://)[^\s'\"]*@|(?<![^\s'\"])[^\s'\":/]*:(?!//)[^\s'\"]*@"
)
_IN_QUERY: typing.Final = re.compile(r"(?i)([?&][^=&\s'\"]*pass[^=&\s'\"]*=)[^&\s'\"]*")
_PAGE: typing.Final = 4000
_LONGEST: typing.Final = 200  # characters of a user's value in a line for people


class UsageError(Exception):
    """The command line, the environment or the configuration cannot be used (status 2)."""


def without_passwords(text: str) -> str:
    """`text` with the credentials of every URL in it blotted out, and cut to a page."""
    return blotted(text if len(text) <= _PAGE else text[:_PAGE] + "...")


def blotted(text: str) -> str:
    """`text` with the credentials of every URL in it blotted out, whole."""
    return _IN_QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def safe(text: str) -> str:
    """`text` on one line of readable length: others' names and results must not move the
    cursor of a terminal or look like a second line."""
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."


def _plainly(text: str, level: str) -> str:
    return f"geventq: {text}"


_shape: typing.Callable[[str, str], str] = _plainly


def shape_errors(shape: typing.Callable[[str, str], str]) -> None:
    """From now on ``shape(text, level)`` makes the lines that the command tells of itself."""
    global _shape
    _shape = shape


def say_error(text: str, level: str = "error") -> None:
    """One error on standard error; or a note, where `level` is ``info`` or ``warning``."""
    print(_shape(without_passwords(text), level), file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(descriptor: int | None, stream: int = 0) -> typing.Iterator[None]:
    """In this block no other process that shares the file writes to the same `stream`."""
    if descriptor is None:
        yield
        return
    # A lock of this process, on one byte; not inherited by a fork.
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, stream)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, stream)


class Console:
    """Standard output of one command.

    With `only_json` everything else that writes to standard output (a processor's `print`, a
    program that it starts) goes to standard error instead, if `claims` says that users' code
    will run.  `taking_turns` is a file that processes which share the output lock while they
    write: a pipe may mix what is longer than 4 kB.
    """

    def __init__(
        self, only_json: bool, *, claims: bool = False, taking_turns: int | None = None
    ) -> None:
        self.only_json = only_json
        self._turn = taking_turns
        self._stream: typing.TextIO | None = sys.stdout
        if only_json and claims:
            sys.stdout.flush()
            self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
            sys.stdout = sys.stderr

    def line(self, text: str) -> None:
        """A line for people; nothing if a program reads."""
        if not self.only_json:
            self.write(text)

    def data(self, value: typing.Any) -> None:
        """JSON on one line, for programs; nothing if people read."""
        if self.only_json:
            self.write(json.dumps(value, default=str))

    def rows(self) -> Rows:
        """A list of JSON, for programs, that is written as it grows."""
        return Rows(self)

    def paint(self, text: str) -> None:
        """Text for people as it is, with what moves the cursor."""
        if not self.only_json:
            self.write(text, end="")

    def write(self, text: str, end: str = "\n") -> None:
        """Text as it is, whoever reads."""
        if self._stream is None:
            return
        try:
            with locked(self._turn):
                print(text, file=self._stream, end=end, flush=True)
        except BrokenPipeError:  # as with `geventq jobs q | head`: nobody reads any more
            self._stream = None
            if sys.stdout is not sys.stderr:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (or its flush at exit fails)


class Rows:
    """One list of JSON on one line, written while it grows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before = "["

    def add(self, row: typing.Any) -> None:
        """One more; nothing if people read."""
        if self._console.only_json:
            self._console.write(self._before + json.dumps(row, default=str), end="")
            self._before = ", "

    def end(self) -> None:
        """It is whole."""
        if self._console.only_json:
            self._console.write("[]" if self._before == "[" else "]")
