"""``embedded:``, a private server for the processes that name the same directory.

Owns the membership of this process in such directories, and sees to it that a member finds a
server that answers: the keeper process (`geventq.embedded.keeper`) owns that.  Must not know
redis-py, connections or queues.  No greenlets of its own: whoever joins waits, and while it waits
the hub turns, in monkey-patched and in unpatched processes.

A member holds a shared flock on ``members.lock``.  The kernel drops it when the process ends,
however it ends, so that nobody has to be told who has left.  A forked child would share it, and
keep its parent's membership for as long as it lives itself: it closes its copy, and joins when it
uses the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import typing

import gevent
import gevent.monkey
import gevent.socket

from geventq import clock
from geventq.embedded import keeper, launch
from geventq.embedded.directory import choose_socket, directory_of, socket_in
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork

__all__ = ["Membership", "enter", "join"]

JOIN_TIMEOUT: typing.Final = 30.0  # seconds; the time that a server takes to load does not count
_PROBE_TIMEOUT: typing.Final = 1.0


class _Forked(Exception):
    """This greenlet runs on in a forked child: what it had begun is its parent's."""


class _Entry:
    """This process in one directory; `users` memberships share it."""

    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


# By real path.  Only touched with `_guard` held, which nobody keeps while the hub turns; it must
# stop other native threads, hence not a patched lock.
_entries: dict[str, _Entry] = {}
_guard = gevent.monkey.get_original("_thread", "allocate_lock")()
# Descriptors of joins under way, which become members or hold the start lock.
_joining: set[int] = set()


def _after_fork_in_child() -> None:
    """A child must not hold what its parent will release."""
    global _guard
    _guard = gevent.monkey.get_original("_thread", "allocate_lock")()
    for entry in _entries.values():
        os.close(entry.descriptor)
    _entries.clear()
    while _joining:
        os.close(_joining.pop())


os.register_at_fork(after_in_child=_after_fork_in_child)


class Membership:
    """One use of an embedded server.  The process is a member until its last use is closed, or
    it ends; a use that is only forgotten counts until the process ends.  In a forked child it is
    closed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.socket_path = ""
        """Where the server answered last."""
        self._generation = fork.generation
        self._closed = False

    def find_server(self) -> str:
        """The path of a socket on which the server answers.

        Starts the server if there is none, waits for one that is being started or stopped, and
        starts it again if it has died, so that calling it before each connection is right, and
        cheap (one ``PING``).  Who gives up waiting stays a member, and a server that still reads
        its data goes on with that.  Yields to the hub.

        Raises `GeventqError` if no server program is found or the directory cannot be used,
        `RedisUnavailableError` if the server does not start.
        """
        try:
            self.socket_path = _ensure(self.directory)
        except _Forked:
            raise RedisUnavailableError("embedded: the process was forked meanwhile") from None
        return self.socket_path

    def close(self) -> None:
        """Leave; when nobody is left the server stops, with its data on disk.  Does not wait for
        that, and does nothing the second time."""
        with _guard:
            if self._closed:
                return
            self._closed = True
            if self._generation == fork.generation:
                _release(self.directory)

    def __enter__(self) -> Membership:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Membership of {self.directory}{' (closed)' if self._closed else ''}>"


def enter(url: str) -> Membership:
    """Become a member of the directory that `url` names; `Membership.find_server` comes next.
    Waits for a server that is being stopped.  Yields to the hub.

    Raises `ValueError` for a malformed `url`, `GeventqError` if the directory cannot be used,
    `RedisUnavailableError` if the former server does not end.
    """
    directory = directory_of(url)
    while True:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            _enter(directory)
            return Membership(directory)
        except OSError as error:
            if isinstance(error, RedisUnavailableError):
                raise
            raise GeventqError(f"embedded: {directory} cannot be used: {error}") from error
        except _Forked:
            continue


def join(url: str) -> Membership:
    """`enter`, with a server that answers.  Raises what that and `Membership.find_server` do; then
    the process is no member."""
    while True:
        since = fork.generation
        membership = enter(url)
        try:
            membership.find_server()
        except BaseException:
            if since != fork.generation:
                continue  # a forked child begins anew
            membership.close()
            raise
        return membership


# -- membership ------------------------------------------------------------------------------


def _enter(directory: str) -> None:
    """Count one more user; the first takes the shared lock.  Yields to the hub while a keeper
    stops the server: whoever comes then waits, and starts it anew."""
    with _guard:
        if entry := _entries.get(directory):
            entry.users += 1
            return
    with _held_open(_open_lock(directory, keeper.MEMBERS_LOCK)) as descriptor:
        _lock_in_turn(descriptor, fcntl.LOCK_SH, f"the server in {directory} does not end")
        with _guard:
            entry = _entries.get(directory)
            if entry is None:  # else another greenlet of ours was quicker
                _joining.discard(descriptor)
                entry = _entries[directory] = _Entry(descriptor)
            entry.users += 1


def _release(directory: str) -> None:
    """Count one user less; with `_guard` held.  Closing is leaving."""
    entry = _entries[directory]
    entry.users -= 1
    if not entry.users:
        del _entries[directory]
        os.close(entry.descriptor)


@contextlib.contextmanager
def _held_open(descriptor: int) -> typing.Iterator[int]:
    """Close `descriptor` at the end, or at a fork in the child; unless it was taken out of
    `_joining`."""
    since = fork.generation
    _joining.add(descriptor)
    try:
        yield descriptor
    finally:
        if since == fork.generation and descriptor in _joining:
            _joining.discard(descriptor)
            os.close(descriptor)


def _open_lock(directory: str, name: str) -> int:
    return os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT, 0o600)


def _lock_in_turn(descriptor: int, how: int, failure: str) -> None:
    """Take the lock without ever blocking the hub's thread."""
    patience = _Patience(failure)
    while True:
        try:
            return fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            patience.wait()


class _Patience:
    """Short waits, growing, in which the hub turns, up to `JOIN_TIMEOUT` seconds in all."""

    def __init__(self, failure: str) -> None:
        self._failure = failure
        self._generation = fork.generation
        self._pause = 0.002
        self.renew()

    def renew(self) -> None:
        """There is progress: begin to count anew."""
        self._deadline = clock.monotonic() + JOIN_TIMEOUT

    def wait(self) -> None:
        """Raises `RedisUnavailableError` at the end of the time, `_Forked` in a child."""
        if clock.monotonic() > self._deadline:
            raise RedisUnavailableError(f"embedded: {self._failure} within {JOIN_TIMEOUT:g} s")
        gevent.sleep(self._pause)
        self._pause = min(self._pause * 1.5, 0.05)
        self.check()

    def check(self) -> None:
        """Raises `_Forked` in a child; to be called after each turn of the hub."""
        if self._generation != fork.generation:
            raise _Forked


# -- the server ------------------------------------------------------------------------------


def _ensure(directory: str) -> str:
    """The path of a socket that answers, with a keeper behind it."""
    socket_path = socket_in(directory)
    if socket_path and _state(socket_path) == "ready" and _is_held(directory, keeper.KEEPER_LOCK):
        return socket_path
    since = fork.generation
    with _held_open(_open_lock(directory, keeper.START_LOCK)) as descriptor:
        _lock_in_turn(
            descriptor, fcntl.LOCK_EX, f"another process did not finish to start {directory}"
        )
        try:
            return _ensure_alone(directory)
        finally:
            if since == fork.generation:  # a child has closed its copy
                # Unlocked, not only closed: a child of `subprocess` has a copy until it execs.
                fcntl.flock(descriptor, fcntl.LOCK_UN)


def _ensure_alone(directory: str) -> str:
    """The same, with the start lock held: nobody else starts a keeper now."""
    patience = _Patience(f"the server in {directory} did not answer (see {launch.LOG} there)")
    started = False
    while True:
        socket_path = socket_in(directory)
        state = _state(socket_path) if socket_path else "silent"
        patience.check()
        kept = _is_held(directory, keeper.KEEPER_LOCK)
        if state == "ready" and kept:
            assert socket_path is not None
            return socket_path
        if state == "loading":
            patience.renew()
        # A server without a keeper, whose keeper was killed, gets a new one as it runs on.
        if not kept:
            if started and state == "silent":
                raise RedisUnavailableError(f"embedded: {launch.why_it_ended(directory)}")
            started = True
            _start_keeper(directory, socket_path or choose_socket(directory))
        else:
            patience.wait()


def _start_keeper(directory: str, socket_path: str) -> None:
    """Returns when the keeper holds its lock.  Yields to the hub."""
    patience = _Patience(f"the keeper of {directory} did not start")
    pid = launch.start_keeper(directory, socket_path)
    while not launch.has_ended(pid):
        patience.wait()


def _state(socket_path: str) -> str:
    """What the server says: ``ready``, ``loading`` (its data, from disk) or ``silent``."""
    try:
        with gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM) as line:
            line.settimeout(_PROBE_TIMEOUT)
            line.connect(socket_path)
            line.sendall(b"PING\r\n")
            answer = line.recv(64)
    except OSError:
        return "silent"
    if answer.startswith(b"-LOADING"):
        return "loading"
    return "ready" if answer.startswith(b"+PONG") else "silent"


def _is_held(directory: str, name: str) -> bool:
    """Whether a process holds that lock; shared, so that two who look do not see each other."""
    descriptor = _open_lock(directory, name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
