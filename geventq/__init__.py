"""geventq: run background jobs from gevent programs, and stop them.

The public names are loaded on first use, so that ``import geventq`` costs nothing and imports
neither `redis` nor `socket`: it may stand before ``gevent.monkey.patch_all()``.

Comments of this package cite the two texts in ``guides/internals`` that it was written from:
``wire-format`` describes what BullMQ keeps in Redis, ``cancellation.md`` what happens in each race
between a request to stop and everything else.  A number alone, such as (2.8), is a section of
``cancellation.md``; in Lua, of ``wire-format``.  Comments stand without them: the number only says
where more is told.
"""

from __future__ import annotations

import importlib
import typing

__version__ = "0.1.0"

if typing.TYPE_CHECKING:  # the same names for type checkers; a test compares the two lists
    from geventq.cancel_request import CancelResult as CancelResult
    from geventq.cancellation import (
        Cancellation as Cancellation,
    )
    from geventq.cancellation import (
        CancellationToken as CancellationToken,
    )
    from geventq.cancellation import (
        LockLost as LockLost,
    )
    from geventq.cancellation import (
        detach as detach,
    )
    from geventq.control.bridge import CancelBridge as CancelBridge
    from geventq.control.bridge import publish_cancel as publish_cancel
    from geventq.control.group import MultiCallResult as MultiCallResult
    from geventq.control.group import WorkerGroup as WorkerGroup
    from geventq.control.group import WorkerInfo as WorkerInfo
    from geventq.errors import (
        DelayedError as DelayedError,
    )
    from geventq.errors import (
        GeventqError as GeventqError,
    )
    from geventq.errors import (
        JobCancelled as JobCancelled,
    )
    from geventq.errors import (
        JobKilled as JobKilled,
    )
    from geventq.errors import (
        LockLostError as LockLostError,
    )
    from geventq.errors import (
        RateLimitError as RateLimitError,
    )
    from geventq.errors import (
        RedisUnavailableError as RedisUnavailableError,
    )
    from geventq.errors import (
        UnrecoverableError as UnrecoverableError,
    )
    from geventq.errors import (
        WaitingChildrenError as WaitingChildrenError,
    )
    from geventq.errors import (
        WaitingError as WaitingError,
    )
    from geventq.events import QueueEvent as QueueEvent
    from geventq.events import QueueEvents as QueueEvents
    from geventq.events import QueueEventsProducer as QueueEventsProducer
    from geventq.job import Job as Job
    from geventq.job_log import JobLogFilter as JobLogFilter
    from geventq.job_options import JobOptions as JobOptions
    from geventq.options import JobSpec as JobSpec
    from geventq.queue import Queue as Queue
    from geventq.supervisor import Supervisor as Supervisor
    from geventq.worker import Processors as Processors
    from geventq.worker import Worker as Worker
    from geventq.worker import WorkerArguments as WorkerArguments

_HOME: typing.Final[dict[str, str]] = {
    "CancelBridge": "geventq.control.bridge",
    "CancelResult": "geventq.cancel_request",
    "Cancellation": "geventq.cancellation",
    "CancellationToken": "geventq.cancellation",
    "DelayedError": "geventq.errors",
    "GeventqError": "geventq.errors",
    "Job": "geventq.job",
    "JobCancelled": "geventq.errors",
    "JobKilled": "geventq.errors",
    "JobLogFilter": "geventq.job_log",
    "JobOptions": "geventq.job_options",
    "JobSpec": "geventq.options",
    "LockLost": "geventq.cancellation",
    "LockLostError": "geventq.errors",
    "MultiCallResult": "geventq.control.group",
    "Processors": "geventq.worker",
    "Queue": "geventq.queue",
    "QueueEvent": "geventq.events",
    "QueueEvents": "geventq.events",
    "QueueEventsProducer": "geventq.events",
    "RateLimitError": "geventq.errors",
    "RedisUnavailableError": "geventq.errors",
    "Supervisor": "geventq.supervisor",
    "UnrecoverableError": "geventq.errors",
    "WaitingChildrenError": "geventq.errors",
    "WaitingError": "geventq.errors",
    "Worker": "geventq.worker",
    "WorkerArguments": "geventq.worker",
    "WorkerGroup": "geventq.control.group",
    "WorkerInfo": "geventq.control.group",
    "detach": "geventq.cancellation",
    "publish_cancel": "geventq.control.bridge",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> typing.Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'geventq' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
