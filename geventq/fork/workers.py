"""What becomes of a worker in a forked child (cancellation.md 7.5).

gevent runs the parent's greenlets on in the child, so the engines that run are known here, and in
the child each is dead before anything else happens.  Its greenlets are buried, but for the one
that forked and those it returns to.  That takes a look at the whole heap, and most children
(gevent's `subprocess` forks too) run another program at once: so it waits until the first greenlet
is about to get a turn.

No greenlets run here, and nothing here yields.
"""

from __future__ import annotations

import logging
import os
import typing
import weakref

import greenlet
from gevent._hub_local import get_hub_if_exists

from geventq.cancellation.callbacks import at_work
from geventq.fork.burial import bury

__all__ = ["Mortal", "watch"]

log = logging.getLogger("geventq")


class Mortal(typing.Protocol):
    """What dies with a fork: a worker's engine."""

    def die(self) -> list[typing.Any]:
        """In the child: take and settle nothing any more; return its greenlets.  Must neither
        yield nor take long."""


_living: weakref.WeakSet[Mortal] = weakref.WeakSet()
_dead: list[typing.Any] = []  # greenlets that are to be buried


def watch(mortal: Mortal) -> None:
    """`mortal` begins to live."""
    _living.add(mortal)


def _in_child() -> None:
    """At the fork."""
    mortals = list(_living)
    _living.clear()
    if not mortals:
        return
    for mortal in mortals:
        _dead.extend(mortal.die())
    _dead.extend(at_work)
    if greenlet.getcurrent() is get_hub_if_exists():
        _bury_the_dead(greenlet.getcurrent())
        return
    forking = greenlet.getcurrent()

    def traced(event: typing.Any, switch: tuple[typing.Any, typing.Any]) -> None:
        """At each switch in this thread, in the greenlet that gets the turn: at the first one
        that is the hub, which wakes all others."""
        if _dead:
            if greenlet.gettrace() is traced:
                greenlet.settrace(before)
            _bury_the_dead(forking)
        if before is not None:
            before(event, switch)

    before = greenlet.settrace(traced)


def _bury_the_dead(forking: typing.Any) -> None:
    spared = {id(one) for one in _with_parents(forking)}
    buried = [one for one in _dead if id(one) not in spared and not one.dead]
    _dead.clear()
    try:
        bury(buried)
    except Exception:  # it would be thrown into the hub
        log.exception("the parent's jobs may run on in this forked process (%d)", os.getpid())


def _with_parents(one: typing.Any) -> typing.Iterator[typing.Any]:
    while one is not None:
        yield one
        one = one.parent


os.register_at_fork(after_in_child=_in_child)
