"""Monkey-patching of a process of ours.

gevent asks before and after each module whether a package has a plugin for that, and each time
all packages are looked through: where many are installed this takes longer than all the rest of a
worker's start.  Here they are looked through once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import typing

from gevent import monkey

__all__ = ["patch_all"]


def patch_all() -> None:
    """`gevent.monkey.patch_all`, plugins included.  For a process that has one thread."""
    with _one_look_for_plugins():
        monkey.patch_all()


@contextlib.contextmanager
def _one_look_for_plugins() -> typing.Iterator[None]:
    look = importlib.metadata.entry_points
    found = look()
    importlib.metadata.entry_points = found.select
    try:
        yield
    finally:
        importlib.metadata.entry_points = look
