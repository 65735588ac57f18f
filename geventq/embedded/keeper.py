"""The process that keeps an embedded server: ``python -I -S keeper.py DIRECTORY SOCKET BINARY``.

Owns the server of one directory, from its start until nobody uses it.  Must not know geventq,
gevent or any other package: it is started as a plain script, so that it stays small and outlives
the process that happened to come first.  No greenlets run here.

Who is alive is told by the kernel alone, through flocks on files in the directory, which end with
their process however it dies; process ids, which are used again, decide nothing:

    members.lock   shared, by each member; exclusive, by the keeper while it stops the server
    keeper.lock    exclusive, by the keeper
    server.lock    exclusive, by the server, which inherits the descriptor
    start.lock     exclusive, by the member that starts a keeper (not used here)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
import types
import typing

__all__ = ["KEEPER_LOCK", "MEMBERS_LOCK", "SERVER_LOCK", "START_LOCK"]

MEMBERS_LOCK: typing.Final = "members.lock"
KEEPER_LOCK: typing.Final = "keeper.lock"
SERVER_LOCK: typing.Final = "server.lock"
START_LOCK: typing.Final = "start.lock"

POLL: typing.Final = 0.1  # seconds between two looks at who is left
STOP_TIMEOUT: typing.Final = 10.0  # seconds a server may take to write its data
PROBE_TIMEOUT: typing.Final = 1.0  # a joiner that looks whether we live holds our lock so briefly


def main(directory: str, socket_path: str, binary: str) -> int:
    """Start or adopt the server, keep it while there are members, stop it.  The process that was
    started returns at once, with status 0 if its child has become the keeper."""
    os.umask(0o077)
    os.chdir(directory)
    ours = _open(KEEPER_LOCK)
    if not _wait(lambda: _try_lock(ours), PROBE_TIMEOUT):
        return 1  # there is a keeper
    # The lock goes to the child, so it is held without a gap; the starter gets no zombie.
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    members, server = _open(MEMBERS_LOCK), _open(SERVER_LOCK)
    pid = _start_or_adopt(server, socket_path, binary)
    if pid is None:
        return 1
    try:
        _keep(members, server)
    finally:
        _stop(pid, server)
        _remove_socket(members, socket_path)
    return 0


def _terminated(signum: int, frame: types.FrameType | None) -> typing.NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server is being stopped already
    raise SystemExit(0)


def _keep(members: int, server: int) -> None:
    """Return when the last member has left, or the server has died; in the first case nobody can
    join any more before this process has ended."""
    while not _try_lock(members):
        if not _is_locked(server):
            _say("the server has died; the next to join starts it again")
            return
        time.sleep(POLL)


def _start_or_adopt(server: int, socket_path: str, binary: str) -> int | None:
    """The process id of the server: a new one, or the one whose keeper was killed."""
    if not _is_locked(server):
        return _start(socket_path, binary)
    if pid := _pid_of_server(socket_path):
        _say(f"goes on with the running server (pid {pid})")
        return pid
    # It is on its way out, after a keeper that was killed while it stopped the server.
    if _wait(lambda: not _is_locked(server), STOP_TIMEOUT):
        return _start(socket_path, binary)
    _say("a former server neither answers nor ends")
    return None


def _start(socket_path: str, binary: str) -> int:
    lock = _open(SERVER_LOCK)
    if not _wait(lambda: _try_lock(lock), PROBE_TIMEOUT):
        raise SystemExit("the server's lock is held, though nobody should hold it")
    os.set_inheritable(lock, True)
    arguments = [
        *(binary, "--port", "0", "--unixsocket", socket_path, "--unixsocketperm", "700"),
        *("--dir", os.getcwd(), "--pidfile", os.path.abspath("server.pid")),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--always-show-logo", "no"),
    ]
    pid = os.posix_spawn(binary, arguments, os.environ, setsigdef=[signal.SIGHUP])
    os.close(lock)
    return pid


def _pid_of_server(socket_path: str) -> int | None:
    """Ask the server itself: a number in a file may be somebody else's by now."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(STOP_TIMEOUT)
            line.connect(socket_path)
            line.sendall(b"INFO server\r\n")
            received = b""
            while b"process_id:" not in received or not received.endswith(b"\r\n"):
                more = line.recv(65536)
                if not more:
                    return None
                received += more
    except OSError:
        return None
    return int(received.partition(b"process_id:")[2].partition(b"\r\n")[0])


def _stop(pid: int, server: int) -> None:
    """Stop the server; its data are on disk when it has ended."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if not _is_locked(server):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        _wait(lambda: not _is_locked(server), STOP_TIMEOUT)
    with contextlib.suppress(ChildProcessError):  # an adopted server is not our child
        os.waitpid(pid, os.WNOHANG)


def _remove_socket(members: int, socket_path: str) -> None:
    """Remove the socket, unless the directory was replaced and the path is another server's."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(MEMBERS_LOCK).st_ino == os.fstat(members).st_ino:
            os.unlink(socket_path)


def _open(name: str) -> int:
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(descriptor: int) -> bool:
    """Whether somebody else holds the lock exclusively."""
    if not _try_lock(descriptor, fcntl.LOCK_SH):
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _wait(condition: typing.Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _say(text: str) -> None:
    print(f"{os.getpid()}: geventq keeper: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
