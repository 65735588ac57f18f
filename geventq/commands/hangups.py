"""SIGHUP in a process that runs workers: read the settings anew, or close, where the terminal that
the command was started from is gone.

The handler hands the signal to the hub; a greenlet ``geventq-reload`` does the rest.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import typing

import gevent

from geventq import stacks
from geventq.cancellation import tree
from geventq.commands import reload, terminal
from geventq.commands.lifeline import RELOAD, STACKS, close_workers
from geventq.systemd import Systemd

if typing.TYPE_CHECKING:
    from geventq.commands.lifeline import Lifeline
    from geventq.commands.reload import Settings
    from geventq.supervisor import Supervisor
    from geventq.worker import Worker

__all__ = ["Hangups"]


class Hangups:
    """Heeds SIGHUP in a ``with`` block, and what the parent orders by `lifeline`."""

    def __init__(
        self,
        settings: Settings,
        workers: list[Worker],
        supervisor: Supervisor | None,
        lifeline: Lifeline | None,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._supervisor = supervisor
        self._has_parent = lifeline is not None
        self._loop: typing.Any = gevent.get_hub().loop
        if lifeline is not None:
            lifeline.on_order = {RELOAD: self._read_anew, STACKS: stacks.dump}

    def __enter__(self) -> None:
        signal.signal(signal.SIGHUP, self._heard)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _heard(self, *_: object) -> None:
        """Python's handler, in whatever greenlet runs."""
        call = self._close if terminal.is_gone() else self._read_anew
        self._loop.run_callback(functools.partial(tree.apart, call, name="geventq-reload"))

    def _close(self) -> None:
        reason = "worker is closing: its terminal is gone"
        close_workers(self._workers[0], self._supervisor, reason)

    def _read_anew(self) -> None:
        systemd = None
        if not self._has_parent and any(worker.is_running for worker in self._workers):
            systemd = Systemd.from_environment()
        with contextlib.nullcontext() if systemd is None else systemd.reloading():
            self._apply()

    def _apply(self) -> None:
        reload.apply(self._settings.read_anew(quietly=self._has_parent) or (), self._workers)
