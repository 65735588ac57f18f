"""Whether the terminal that a command was started from has hung up.

SIGHUP asks a daemon to read its settings anew; the same signal tells a program that the terminal
it was started from is gone.  No greenlets run here.
"""

from __future__ import annotations

import os
import signal
import typing

__all__ = ["is_gone"]


def _answers() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


# With nohup(1) nobody wants to hear of it.
_matters: typing.Final = _answers() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def is_gone() -> bool:
    """Whether there was one when this process began, and is none any more."""
    return _matters and not _answers()
