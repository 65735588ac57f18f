"""The names of a queue's keys (wire-format section 1)."""

from __future__ import annotations

import base64
import typing

__all__ = ["JobKeys", "Keys", "MemberKeys", "QueueKeys", "RequestKeys", "literally"]

_SUFFIXES: typing.Final = {
    "active": "active",
    "completed": "completed",
    "delayed": "delayed",
    "events": "events",
    "failed": "failed",
    "id": "id",
    "limiter": "limiter",
    "marker": "marker",
    "meta": "meta",
    "paused": "paused",
    "pc": "pc",
    "prioritized": "prioritized",
    "schedulers": "repeat",  # a word of Lua's own
    "stalled": "stalled",
    "stalled_check": "stalled-check",
    "wait": "wait",
    "waiting_children": "waiting-children",
    "workers": "gq:workers",
}


class QueueKeys:
    """Every key of one queue, made once.  ``keys.base`` is ``prefix:name:``."""

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
    schedulers: str
    stalled: str
    stalled_check: str
    wait: str
    waiting_children: str
    workers: str

    def __init__(self, prefix: str, name: str) -> None:
        self.prefix = prefix
        self.name = name
        self.base = f"{prefix}:{name}:"
        for attribute, suffix in _SUFFIXES.items():
            setattr(self, attribute, self.base + suffix)

    def of_job(self, job_id: str) -> JobKeys:
        """The queue's keys and, with them, those of one job."""
        return JobKeys(self, job_id)

    def client_name(self, suffix: str = "") -> str:
        """The name of a connection that others may look for (wire-format section 11):
        ``prefix:base64(name)`` and `suffix` (``:w:<worker name>``, ``:qe``)."""
        encoded = base64.b64encode(self.name.encode()).decode()
        return f"{self.prefix}:{encoded}{suffix}"


class _AndMore:
    """All keys of a queue, copied, and some more: a call reads a dozen of them."""

    def __init__(self, queue: QueueKeys) -> None:
        vars(self).update(vars(queue))

    if typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> str: ...


class JobKeys(_AndMore):
    """The keys of one job, and all of its queue's."""

    def __init__(self, queue: QueueKeys, job_id: str) -> None:
        super().__init__(queue)
        self.job = queue.base + job_id
        self.lock = self.job + ":lock"
        self.logs = self.job + ":logs"


class RequestKeys(_AndMore):
    """All keys of a queue, and those that keep the answers to one request for a while: the
    script's own, and the replies of workers."""

    def __init__(self, queue: QueueKeys, nonce: str) -> None:
        super().__init__(queue)
        self.answers = f"{queue.base}gq:answer:{nonce}"
        self.replies = f"{queue.base}gq:reply:{nonce}"


class MemberKeys(_AndMore):
    """All keys of a queue, and the one where a worker tells about itself."""

    def __init__(self, queue: QueueKeys, worker_id: str) -> None:
        super().__init__(queue)
        self.member = f"{queue.base}gq:worker:{worker_id}"


Keys = QueueKeys | JobKeys | RequestKeys | MemberKeys
"""What a script's keys are filled from, by the names in its header."""


def literally(text: str) -> str:
    """`text` in a pattern of Redis, standing for itself."""
    return "".join(f"\\{one}" if one in "*?[]\\^" else one for one in text)
