"""A time limit per test that also reaches a test whose main greenlet waits in the hub.

pytest-timeout's own signal handler raises in whatever greenlet runs; in a gevent program that is
mostly the hub, which prints the exception and goes on waiting.  Here the exception is thrown into
the greenlet that runs the test, and every greenlet's stack is shown.
"""

from __future__ import annotations

import signal
import sys
import typing

import gevent
import gevent.util
import greenlet
import pytest

__all__ = ["pytest_timeout_cancel_timer", "pytest_timeout_set_timer"]


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: typing.Any) -> bool | None:
    """Called by pytest-timeout; a true answer means that the timer is set."""
    if not settings.timeout or settings.timeout <= 0:
        return None
    test = greenlet.getcurrent()
    text = f"Timeout (>{settings.timeout}s): {item.nodeid}"

    def expired(signum: int, frame: object) -> None:
        gevent.util.print_run_info(file=sys.stderr)
        if greenlet.getcurrent() is test:
            pytest.fail(text)
        error = pytest.fail.Exception(text)
        gevent.get_hub().loop.run_callback(test.throw, error)

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True
