"""The cancellation core: stdlib and gevent only, it does not know Redis."""

from geventq.cancellation.attempt import Attempt, AttemptObserver, request_all
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
    "request_all",
]
