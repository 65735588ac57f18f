"""What is logged in a process of ours: on standard error, where a user's module says nothing else.

No greenlets run here.
"""

from __future__ import annotations

import logging

from geventq.commands.console import without_passwords
from geventq.errors import RedisUnavailableError

__all__ = ["log_plainly"]


class _Plainly(logging.Formatter):
    """An outage is told by one line: where in geventq it was met says nothing."""

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__)
        if record.exc_info and isinstance(record.exc_info[1], RedisUnavailableError):
            shown.exc_info = shown.exc_text = None
        return without_passwords(super().format(shown))


def log_plainly() -> None:
    """Where a user's module configures no logging, write what is logged on standard error."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Plainly())
    logging.lastResort = handler
