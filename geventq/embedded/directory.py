"""The directory of an embedded server: what a URL names, and where in it the server listens.

Owns the forms of ``embedded:`` URLs and the choice of a socket's path, which systems allow a
hundred bytes; a directory with a longer name holds a file that names a socket elsewhere.  Must
not know who uses the server (`geventq.embedded.membership`) nor how it is started
(`geventq.embedded.launch`).  Nothing here yields.
"""

from __future__ import annotations

import os
import pathlib
import stat
import tempfile
import typing
import urllib.parse

from geventq.errors import GeventqError

__all__ = ["choose_socket", "directory_of", "socket_in"]

LONGEST_SOCKET: typing.Final = 100  # bytes; systems take 104 to 108, with the closing NUL
SOCKET: typing.Final = "geventq.sock"
ELSEWHERE: typing.Final = "socket"  # the file that names a socket outside the directory


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


def socket_in(directory: str) -> str | None:
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


def choose_socket(directory: str) -> str:
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
