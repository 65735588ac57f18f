"""The cancellation core: stdlib and gevent only, it does not know Redis.

In reading order:

- request: what is asked; how two requests merge
- attempt: one run of one job, what was asked of it, how it begins and ends
- token: what users see of it; scope: what is inside a token, and belongs to its run
- shield, pacer, callbacks, calls, coroutines, connections, databases: what a token's
  methods do
- ladder: how an attempt is killed, step by step
- tree: which greenlets are the attempt's; throws: how one of them is ended; held: what holds a
  throw back
- belongings: all that dies with a job beside its own greenlet; whose (who did it), pools, children
- frames: what a failed processor leaves behind
"""

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
