"""Running a step in the hub that owns an object, from whatever native thread calls, and
handing an interrupt to the main greenlet.

Knows nothing of cancellation.  The step runs as a callback in the hub, so it must not block.
"""

from __future__ import annotations

import typing

import gevent
from gevent import get_hub, monkey

__all__ = ["Linkable", "get_ident", "in_thread_of", "interrupt_main", "wait_for"]

T = typing.TypeVar("T")

#: The native thread's identity, also in a monkey-patched process.
get_ident: typing.Final[typing.Callable[[], int]] = monkey.get_original("_thread", "get_ident")
_allocate_lock: typing.Final = monkey.get_original("_thread", "allocate_lock")


def in_thread_of(hub: typing.Any, step: typing.Callable[[], T], *, gone: T) -> T:
    """What `step()` returns or raises, run in the thread of `hub`; `gone` if its loop has ended.

    In that thread itself the step is called directly.  Elsewhere the calling thread blocks
    until the hub has had a turn.
    """
    if hub is None or hub.thread_ident == get_ident():
        return step()
    loop = hub.loop
    if loop is None:
        return gone
    done = _allocate_lock()
    done.acquire()
    outcome: list[typing.Any] = [gone, None]

    def run() -> None:
        try:
            outcome[0] = step()
        except BaseException as error:  # raised again in the thread that asked  # noqa: BLE001
            outcome[1] = error
        finally:
            done.release()

    loop.run_callback_threadsafe(run)
    done.acquire()
    if outcome[1] is not None:
        raise outcome[1]
    return typing.cast(T, outcome[0])


def interrupt_main(error: BaseException) -> None:
    """Raise `error` in this thread's main greenlet, whose it is whomever the signal hit.  Does
    not yield."""
    hub: typing.Any = get_hub()
    hub.loop.run_callback(hub.parent.throw, error)


class Linkable(typing.Protocol):
    """An event, a greenlet."""

    def rawlink(self, callback: typing.Callable[[typing.Any], object], /) -> None:
        """Call it in the hub when it is set, or has ended; if it has, too."""


def wait_for(hub: typing.Any, event: Linkable) -> None:
    """Wait until `event`, which lives in the thread of `hub`, is set or has ended, or that
    loop has ended.

    In that thread itself it yields to the hub; any other native thread blocks: an event of
    gevent's keeps no foreign hub alive that waits for it.
    """
    if hub.thread_ident == get_ident():
        gevent.wait([typing.cast(typing.Any, event)])
        return
    done = _allocate_lock()
    done.acquire()

    def link() -> bool:
        event.rawlink(lambda _: done.release())
        return True

    if in_thread_of(hub, link, gone=False):
        done.acquire()
