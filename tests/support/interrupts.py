"""Raising a Ctrl-C at one line after the other of chosen functions, as a signal's handler does."""

from __future__ import annotations

import functools
import sys
import types
import typing

__all__ = ["Interrupter"]


class Interrupter:
    """While it is armed, the `number`-th line that runs in a watched function, or in one of ours
    that it calls, raises `KeyboardInterrupt`; `lines` counts those that have run.

    Tracing is per greenlet, so a watched function is traced from its first line to its last, also
    where the hub or another greenlet calls it.
    """

    def __init__(self) -> None:
        self.lines = 0
        self._number = 0
        self._files: set[str] = set()

    def watch(self, owner: typing.Any, name: str) -> typing.Callable[..., typing.Any]:
        """What to put in the place of ``owner.name``."""
        original = getattr(owner, name)
        self._files.add(original.__code__.co_filename)

        @functools.wraps(original)
        def watched(*args: typing.Any, **options: typing.Any) -> typing.Any:
            if not self._number:
                return original(*args, **options)
            sys.settrace(self._traced)
            try:
                return original(*args, **options)
            finally:
                sys.settrace(None)

        return watched

    def arm(self, number: int) -> None:
        """Raise at line `number`, once."""
        self.lines, self._number = 0, number

    @property
    def has_hit(self) -> bool:
        """Whether it was raised since `arm`."""
        return not self._number

    def disarm(self) -> None:
        """Raise no more."""
        self._number = 0

    def _traced(self, frame: types.FrameType, event: str, arg: object) -> typing.Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line" and self._number:
            self.lines += 1
            if self.lines == self._number:
                self._number = 0
                raise KeyboardInterrupt
        return self._traced
