"""Flask: each job inside an application context.

Knows Flask and the job's context manager, and nothing of workers.  Everything runs in the job's
greenlet; a Flask context is a `contextvars` variable, and each job starts in an empty context
(cancellation.md 2.16).
"""

from __future__ import annotations

import typing

from geventq.checks import show
from geventq.integrations.extras import needs

with needs("flask", "flask"):
    import flask

if typing.TYPE_CHECKING:
    from geventq.job import Job

__all__ = ["app_context"]


def app_context(app: flask.Flask) -> typing.Callable[[Job], typing.ContextManager[object]]:
    """An ``around`` that pushes an application context of `app` for each job.

    ::

        worker = Worker("exports", export, around=[app_context(app)])

    `flask.g` and `flask.current_app` are the job's, and functions of
    ``teardown_appcontext`` get what the job raised, also the `JobKilled` of a cancellation.
    Raises `TypeError` for what is no application.
    """
    if not isinstance(app, flask.Flask):
        raise TypeError(f"app: a Flask application is needed, got {show(app)}")
    own = getattr(app, "_get_current_object", None)  # of a proxy, which jobs could not resolve
    application: flask.Flask = app if own is None else own()

    def around(job: Job) -> typing.ContextManager[object]:
        return application.app_context()

    return around
