"""Running a step in the hub that owns an object, from whatever native thread calls, and
handing an interrupt to the main greenlet.

Knows nothing of cancellation.  The step runs as a callback in the hub, so it must not block.  A
thread that has ended gives its hub no turn any more, and says nothing: whoever waits looks, by what
`own_hub` has noted there.
"""

from __future__ import annotations

import typing
import weakref

import gevent
from gevent import get_hub, monkey

__all__ = [
    "Linkable",
    "ThreadLife",
    "get_ident",
    "has_ended",
    "in_thread_of",
    "interrupt_main",
    "life_of_this_thread",
    "own_hub",
    "wait_for",
]

T = typing.TypeVar("T")

#: The native thread's identity, also in a monkey-patched process.
get_ident: typing.Final[typing.Callable[[], int]] = monkey.get_original("_thread", "get_ident")
_allocate_lock: typing.Final = monkey.get_original("_thread", "allocate_lock")

_LOOK: typing.Final = 0.5  # seconds between two looks whether the other thread has ended


class ThreadLife:
    """Something that a native thread holds to its end.  Ids of threads are used again."""

    __slots__ = ("__weakref__",)


_of_thread: typing.Final = monkey.get_original("threading", "local")()
_lives: typing.Final[weakref.WeakKeyDictionary[object, weakref.ref[ThreadLife]]] = (
    weakref.WeakKeyDictionary()
)


def life_of_this_thread() -> weakref.ref[ThreadLife]:
    """A reference that is dead when the native thread that calls has ended."""
    life = getattr(_of_thread, "life", None)
    if life is None:
        life = _of_thread.life = ThreadLife()
    return weakref.ref(life)


def own_hub() -> typing.Any:
    """The hub of the native thread that calls.  Other threads that wait for something of it see
    when this one has ended."""
    hub = get_hub()
    _lives[hub] = life_of_this_thread()
    return hub


def _is_here(hub: typing.Any) -> bool:
    """Whether `hub` is that of the thread that calls."""
    return hub.thread_ident == get_ident() and not has_ended(hub)


def has_ended(hub: typing.Any) -> bool:
    """Whether the thread of `hub` has ended, as far as is known."""
    life = _lives.get(hub)
    return life is not None and life() is None


def _await(done: typing.Any, hub: typing.Any) -> None:
    """Block until `done` is released in the thread of `hub`, or that has ended."""
    while not done.acquire(True, _LOOK):
        if hub.loop is None or has_ended(hub):
            return


def in_thread_of(hub: typing.Any, step: typing.Callable[[], T], *, gone: T) -> T:
    """What `step()` returns or raises, run in the thread of `hub`; `gone` if that has ended, or its
    loop.

    In that thread itself the step is called directly.  Elsewhere the calling thread blocks
    until the hub has had a turn.
    """
    if hub is None or _is_here(hub):
        return step()
    loop = hub.loop
    if loop is None or has_ended(hub):
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
    _await(done, hub)
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
    """Wait until `event`, which lives in the thread of `hub`, is set or has ended, or that thread
    or its loop has ended.

    In that thread itself it yields to the hub; any other native thread blocks: an event of
    gevent's keeps no foreign hub alive that waits for it.
    """
    if _is_here(hub):
        gevent.wait([typing.cast(typing.Any, event)])
        return
    done = _allocate_lock()
    done.acquire()

    def link() -> bool:
        event.rawlink(lambda _: done.release())
        return True

    if in_thread_of(hub, link, gone=False):
        _await(done, hub)
