"""What a forked child does about its parent's connections (cancellation.md 7.5).

gevent runs the parent's greenlets on in the child, on sockets that both share: one that waits for
an answer would take it from the parent, and one that sends would put its commands between the
parent's.  So in the child each watched socket becomes, under its old number, one that is at its
end: whoever uses it there finds a lost connection, and the parent's connection hears nothing, not
even a close.

What holds connections compares `generation` with the one it was made in, and makes new ones.  No
greenlets run here, and nothing here yields.
"""

from __future__ import annotations

import _socket
import os
import typing
import weakref

if typing.TYPE_CHECKING:
    import gevent.socket

__all__ = ["generation", "watch"]

generation = 0
"""How many forks lie between this process and the first one that used geventq.  Read it as an
attribute of this module."""

_sockets: weakref.WeakSet[gevent.socket.socket] = weakref.WeakSet()


def watch(sock: gevent.socket.socket, since: int) -> None:
    """`sock` was made in generation `since`; put it away at a fork, for as long as it is open.

    Raises `ConnectionError`, with `sock` closed, if a fork has happened since: then it is the
    parent's.
    """
    if since != generation:
        sock.close()
        raise ConnectionError("this process was forked while the connection was made")
    _sockets.add(sock)


def _put_away() -> None:
    """In the child, before anything else can run there."""
    global generation
    generation += 1
    inherited = [sock for sock in _sockets if sock.fileno() >= 0]
    _sockets.clear()
    if not inherited:
        return
    # Not of the `socket` module: that may be patched, and make a hub in this thread.
    end, other = _socket.socketpair()
    other.close()
    end.setblocking(False)
    for sock in inherited:
        os.dup2(end.fileno(), sock.fileno(), inheritable=False)
    end.close()


os.register_at_fork(after_in_child=_put_away)
