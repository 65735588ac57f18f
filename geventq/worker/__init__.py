"""The worker: takes jobs, runs them as greenlets, renews their locks, settles what became of
them."""

from geventq.worker.settings import WorkerArguments
from geventq.worker.worker import Worker

__all__ = ["Worker", "WorkerArguments"]
