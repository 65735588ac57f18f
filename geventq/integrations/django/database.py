"""Connections that end with their job, and jobs that are added when a transaction commits.

Knows Django, and the queue as its users do.  Everything here runs in the greenlet that calls.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import typing

from gevent import monkey

from geventq.cancellation.connections import stopper
from geventq.checks import show
from geventq.errors import GeventqError
from geventq.integrations.extras import needs
from geventq.options import LEFT_OUT
from geventq.queue import Queue

with needs("django", "django"):
    from django.db import connections, transaction

if typing.TYPE_CHECKING:
    from geventq.cancellation import CancellationToken
    from geventq.job import Job
    from geventq.job_options import JobOptions

__all__ = ["add_on_commit", "around"]


_log = logging.getLogger("geventq")

_OWNER: typing.Final = "geventq_job"  # the attribute of a connection that says whose it is
_STOPS_WITHIN: typing.Final = 5.0  # seconds that a database gets to stop a killed job's query


@contextlib.contextmanager
def around(job: Job, token: CancellationToken) -> typing.Iterator[None]:
    """For ``Worker(around=[django.around])``: all of the job's database connections are closed
    when it ends, and a query that a kill interrupts ends in the database too.

    A soft cancellation interrupts no query: ``with token.cancels(connection):`` does.

    In a monkey-patched process they are thread-locals of that job alone.  In one that is not, all
    jobs would share them, with their transactions, and so the job fails with a `GeventqError`.
    ``manage.py geventq_worker`` does both by itself.
    """
    if not monkey.is_module_patched("threading"):
        raise GeventqError(
            "geventq.integrations.django.around: this process is not monkey-patched, so that all "
            "jobs would share one database connection; start it as `manage.py geventq_worker`, or "
            "through `python -m gevent.monkey`"
        )
    mine = [connections[alias] for alias in connections]
    for connection in mine:
        if (owner := vars(connection).get(_OWNER)) is not None:  # before anything is closed
            raise GeventqError(
                f"geventq.integrations.django.around: job {owner} has the same database "
                "connection: Django was imported before this process was monkey-patched"
            )
    with contextlib.ExitStack() as entered:
        entered.callback(connections.close_all)
        for connection in mine:
            vars(connection)[_OWNER] = job.id
            entered.callback(vars(connection).pop, _OWNER)
            ends_with_job = functools.partial(_execute, token, connection)
            entered.enter_context(connection.execute_wrapper(ends_with_job))
        yield


def _execute(
    token: CancellationToken,
    connection: typing.Any,
    execute: typing.Callable[..., typing.Any],
    *query: typing.Any,
) -> typing.Any:
    """One query (Django calls this in its place).  What kills the job while it runs closes the
    connection, of which the server would only learn at the query's end."""
    stop = stopper(connection)
    try:
        return execute(*query)
    except Exception:
        raise
    except BaseException:
        with token.shield(_STOPS_WITHIN):
            try:
                stop()
            except Exception:  # noqa: BLE001 - what stopped the job is what it has to end with
                _log.exception("a killed job's query may run on in the database")
        raise


def add_on_commit(
    queue: Queue,
    name: str,
    data: typing.Any = LEFT_OUT,
    *,
    using: str | None = None,
    **options: typing.Unpack[JobOptions],
) -> None:
    """Add a job to `queue` when the current transaction of the database `using` commits; at once
    where there is none.

    `data` and `options` are those of `Queue.add`, and are checked and copied now: what is wrong
    with them raises here.  If the transaction is rolled back nothing is added.  Between the commit
    and the add the process may die, or Redis be away (`RedisUnavailableError` to whoever commits):
    where no job may be missing, keep an outbox table (see the guide).  Yields.
    """
    if not isinstance(queue, Queue):
        raise TypeError(f"queue: a Queue is needed, got {show(queue)}")
    transaction.on_commit(queue.prepared(name, data, **options), using=using)
