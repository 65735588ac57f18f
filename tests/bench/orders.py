"""What every geventq process of the benchmark starts with: options and orders as JSON lines on
stdin, answers on stdout, the CPU it used, and the worker that the options are about."""

from __future__ import annotations

import json
import resource
import sys
import typing

import gevent.fileobject

from geventq import Worker

__all__ = ["cpu", "hear", "make_worker", "options", "say"]

_input = gevent.fileobject.FileObject(sys.stdin.fileno(), "rb", closefd=False)


def hear() -> dict[str, typing.Any]:
    """The next line; the hub runs meanwhile."""
    line = _input.readline()
    if not line:
        raise SystemExit(0)
    message: dict[str, typing.Any] = json.loads(line)
    return message


options = hear


def say(message: dict[str, typing.Any]) -> None:
    print(json.dumps(message), flush=True)


def cpu() -> float:
    """Seconds of CPU this process used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make_worker(given: dict[str, typing.Any], process: typing.Any, **more: typing.Any) -> Worker:
    """A worker of the queue that the options name, not started."""
    return Worker(given["queue"], process, given["url"], given["prefix"], **more)
