"""psycopg2 in a gevent process: its queries wait in the hub instead of stopping it.

psycopg2 waits inside libpq, in C, where no monkey-patching reaches; but it lets a program wait
for it (``psycopg2.extensions.set_wait_callback``, "Support for coroutine libraries" in its
documentation).  Does not know workers or tokens; no greenlets run here.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import typing

__all__ = ["wait_in_hub"]

log = logging.getLogger("geventq")


def wait_in_hub() -> bool:
    """Let all connections of psycopg2 in this process wait in the hub; whether they do so now.

    Imports psycopg2.  Does nothing if it is not installed, or if somebody else set a callback.
    """
    if importlib.util.find_spec("psycopg2") is None:
        return False
    try:
        from psycopg2 import extensions
    except ImportError as error:  # installed, but its libraries are not: nobody can use it
        log.warning("psycopg2 is installed but cannot be imported: %s", error)
        return False
    if extensions.get_wait_callback() is None:
        extensions.set_wait_callback(_wait)
    return True


def _wait(connection: typing.Any) -> None:
    """Called by psycopg2 wherever it has to wait for the server.  Yields to the hub.

    What is thrown here, a kill above all, leaves an answer under way: psycopg2 then closes the
    connection, and the server is told to stop the query.
    """
    try:
        _wait_until_done(connection)
    except BaseException:
        from geventq.cancellation import databases  # imports socket: not before monkey-patching

        extensions = sys.modules["psycopg2.extensions"]
        if connection.info.transaction_status == extensions.TRANSACTION_STATUS_ACTIVE:
            databases.cancel_psycopg2_soon(connection)
        raise


def _wait_until_done(connection: typing.Any) -> None:
    from gevent.socket import wait_read, wait_write  # imports socket: not before monkey-patching

    extensions = sys.modules["psycopg2.extensions"]
    while (state := connection.poll()) != extensions.POLL_OK:
        # Asked for anew each time: libpq may try one address after the other.
        if state == extensions.POLL_READ:
            wait_read(connection.fileno())
        elif state == extensions.POLL_WRITE:
            wait_write(connection.fileno())
        else:
            raise extensions.OperationalError(f"unexpected state of the connection: {state!r}")
