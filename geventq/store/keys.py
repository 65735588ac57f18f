"""The names of a queue's keys (wire-format section 1)."""

from __future__ import annotations

import base64
import typing

__all__ = ["QueueKeys"]

_SUFFIXES: typing.Final = (
    "wait",
    "active",
    "prioritized",
    "delayed",
    "waiting-children",
    "completed",
    "failed",
    "paused",
    "stalled",
    "stalled-check",
    "meta",
    "id",
    "pc",
    "marker",
    "events",
    "limiter",
    "repeat",
)


class QueueKeys:
    """Every key of one queue, made once.  ``keys.base`` is ``prefix:name:``."""

    __slots__ = (
        "active",
        "base",
        "completed",
        "delayed",
        "events",
        "failed",
        "id",
        "limiter",
        "marker",
        "meta",
        "name",
        "paused",
        "pc",
        "prefix",
        "prioritized",
        "repeat",
        "stalled",
        "stalled_check",
        "wait",
        "waiting_children",
    )

    active: str
    completed: str
    delayed: str
    events: str
    failed: str
    id: str
    limiter: str
    marker: str
    meta: str
    paused: str
    pc: str
    prioritized: str
    repeat: str
    stalled: str
    stalled_check: str
    wait: str
    waiting_children: str

    def __init__(self, prefix: str, name: str) -> None:
        self.prefix = prefix
        self.name = name
        self.base = f"{prefix}:{name}:"
        for suffix in _SUFFIXES:
            setattr(self, suffix.replace("-", "_"), self.base + suffix)

    def job(self, job_id: str) -> str:
        """The key of a job's hash."""
        return self.base + job_id

    def lock(self, job_id: str) -> str:
        """The key of a job's lock."""
        return f"{self.base}{job_id}:lock"

    def client_name(self, suffix: str = "") -> str:
        """The name of a connection that others may look for (wire-format section 11):
        ``prefix:base64(name)`` and `suffix` (``:w:<worker name>``, ``:qe``)."""
        encoded = base64.b64encode(self.name.encode()).decode()
        return f"{self.prefix}:{encoded}{suffix}"
