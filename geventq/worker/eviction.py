"""One look at each start: does the server evict?

A server that frees memory by removing keys (``maxmemory-policy`` other than ``noeviction``) takes
locks and jobs, and nobody is told.  BullMQ warns of it too (wire-format 17).  One greenlet, owned
and joined by the worker, which ends when it has an answer.
"""

from __future__ import annotations

import logging
import re
import typing

from geventq.errors import GeventqError, RedisUnavailableError
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.worker.listeners import Tell

__all__ = ["EvictionCheck"]

_AGAIN: typing.Final = 1.0  # seconds until the next look, while Redis cannot be reached
_POLICY: typing.Final = re.compile(rb"^maxmemory_policy:([\w-]+)", re.MULTILINE)

log = logging.getLogger("geventq")


class EvictionCheck(Background):
    """Looks once and warns once."""

    def __init__(self, tell: Tell, client: Client, queue_name: str) -> None:
        super().__init__("eviction", "the look at the eviction policy", queue_name, tell, client)
        self._client = client
        self._queue = queue_name

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                found = _POLICY.search(self._client.execute("INFO", "memory"))
            except RedisUnavailableError:  # the other parts tell of that
                self._stop.wait(_AGAIN)
            except GeventqError:  # a user who may not ask
                return
            else:
                if found is not None and found[1] != b"noeviction":
                    self._warn(found[1].decode())
                return

    def _warn(self, policy: str) -> None:
        log.warning(
            "Redis has maxmemory-policy %s: it may remove locks and jobs of queue %s when its "
            "memory is full; set it to noeviction",
            policy,
            self._queue,
            extra={"queue": self._queue},
        )
