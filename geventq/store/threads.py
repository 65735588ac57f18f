"""The native threads that use the store, and what their hubs leave when they end.

An unpatched program has one hub a thread, with descriptors of its own that nobody closes when the
thread ends: a server that answers each request in a new thread would have none left after some
hundreds.  Whoever meets a hub for the first time therefore closes those of ended threads.  No
greenlets run here, and nothing yields.
"""

from __future__ import annotations

import os
import typing
import weakref

from geventq import hubs

__all__ = ["close_hubs_of_ended_threads", "life_of_this_thread"]

#: Of the threads that have asked for their life.
_hubs: dict[typing.Any, weakref.ref[hubs.ThreadLife]] = {}


def life_of_this_thread() -> weakref.ref[hubs.ThreadLife]:
    """A reference that is dead when the native thread that calls has ended."""
    life = hubs.life_of_this_thread()
    _hubs[hubs.own_hub()] = life
    return life


# In a forked child all other threads have ended, and what they had is the parent's.
os.register_at_fork(after_in_child=_hubs.clear)


def close_hubs_of_ended_threads() -> None:
    """Give back the descriptors of their loops, and the threads of their resolvers."""
    for hub, life in _hubs.copy().items():  # a copy: other threads come meanwhile
        if life() is None and _hubs.pop(hub, None) is not None and hub.loop is not None:
            hub.destroy(destroy_loop=True)  # gevent allows it once the thread has ended
