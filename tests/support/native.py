"""Native threads, also in a monkey-patched process."""

from __future__ import annotations

import typing

from gevent import monkey

from tests.support.waiting import eventually

__all__ = ["in_native_thread"]

_start_new_thread: typing.Final = monkey.get_original("_thread", "start_new_thread")


def in_native_thread(call: typing.Callable[[], object]) -> object:
    """What `call` returns in a native thread of its own; the hub turns meanwhile."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    _start_new_thread(run, ())
    eventually(lambda: outcome)
    (said,) = outcome
    if isinstance(said, BaseException):
        raise said
    return said
