"""The demo's second process: a worker that knows nothing of the first but the queue's name.

Runs until its standard input ends, which is when the first process closes it or is gone,
however that ended.  Greenlets: those of the `Worker`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import typing

import gevent
import gevent.socket

from geventq import clock
from geventq.cancellation import CancellationToken
from geventq.commands.logs import log_plainly
from geventq.job import Job
from geventq.worker import Worker

__all__ = ["process", "running"]

_ENDS_WITHIN: typing.Final = 5.0  # seconds, when it is told to


def process(job: Job, token: CancellationToken) -> str:
    """Counts up to 90 %, and waits for the first process to cancel it."""
    for percent in range(1, 91):
        token.sleep(0.1)
        job.update_progress(percent)
    token.sleep(60)
    return "never reached"


@contextlib.contextmanager
def running(queue: str, url: str, prefix: str) -> typing.Iterator[int]:
    """A process with a worker of `queue`, as long as the block; its pid.  Yields to the hub."""
    second = subprocess.Popen(
        [sys.executable, "-m", __name__, queue, prefix],
        env=os.environ | {"GEVENTQ_REDIS_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the first one
    )
    assert second.stdin is not None
    try:
        yield second.pid
    finally:
        second.stdin.close()
        deadline = clock.monotonic() + _ENDS_WITHIN
        while second.poll() is None and clock.monotonic() < deadline:
            gevent.sleep(0.01)
        second.kill()
        second.wait()


def _main(queue: str, prefix: str) -> None:
    log_plainly()
    with Worker(queue, process, None, prefix, close_timeout=0.0):
        gevent.socket.wait_read(sys.stdin.fileno())


if __name__ == "__main__":
    _main(*sys.argv[1:])
