"""The cancellation core: stdlib and gevent only, it does not know Redis.

`Attempt` is what the engine drives, `CancellationToken` what a processor gets, `Cancellation`
what was said.  cancellation.md sections 1 and 2 describe the behaviour, rule by rule.
"""

from __future__ import annotations

from geventq.cancellation.attempt import Attempt, AttemptObserver
from geventq.cancellation.request import Cancellation, LockLost
from geventq.cancellation.token import CancellationToken
from geventq.cancellation.tree import detach

__all__ = [
    "Attempt",
    "AttemptObserver",
    "Cancellation",
    "CancellationToken",
    "LockLost",
    "detach",
]
