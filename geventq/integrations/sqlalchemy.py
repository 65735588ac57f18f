"""SQLAlchemy: a session a job, whose queries a cancellation stops in the database.

Knows SQLAlchemy and the job's token, and nothing of workers.  Everything runs in the job's
greenlet; where the session is found is a `contextvars` variable, of that job alone
(cancellation.md 2.16).
"""

from __future__ import annotations

import contextlib
import contextvars
import typing

from geventq.checks import show
from geventq.errors import GeventqError
from geventq.integrations.extras import needs

with needs("sqlalchemy", "sqlalchemy"):
    import sqlalchemy.orm

if typing.TYPE_CHECKING:
    from geventq.cancellation import CancellationToken
    from geventq.job import Job

__all__ = ["current_session", "session"]

Session = sqlalchemy.orm.Session
Factory = typing.Callable[[], Session]
Around = typing.Callable[["Job", "CancellationToken"], typing.ContextManager[Session]]

#: The sessions of the running job, each with its factory, the innermost last.
_open: contextvars.ContextVar[tuple[tuple[Factory, Session], ...]] = contextvars.ContextVar(
    "geventq.sessions", default=()
)


def session(factory: Factory) -> Around:
    """An ``around`` that gives each job a session of its own, and closes it.

    ::

        Session = sessionmaker(engine)
        worker = Worker("exports", export, around=[session(Session)])

        def export(job):
            with current_session().begin(): ...

    `factory` is a `sessionmaker`, a `scoped_session` or any function that makes a session.
    Nothing is committed here: what the job has not committed is rolled back.  A cancellation
    also stops what the session runs in the database (`CancellationToken.cancels`).  Raises
    `TypeError` for what cannot be called.
    """
    if not callable(factory):
        raise TypeError(f"factory: a sessionmaker or a function is needed, got {show(factory)}")

    @contextlib.contextmanager
    def around(job: Job, token: CancellationToken) -> typing.Iterator[Session]:
        made = factory()
        if not isinstance(made, Session):
            raise TypeError(f"factory {factory!r}: a Session is needed, it returned {show(made)}")
        before = _open.set((*_open.get(), (factory, made)))
        try:
            with token.cancels(made):
                yield made
        finally:
            _open.reset(before)
            if isinstance(factory, sqlalchemy.orm.scoped_session):
                factory.remove()
            made.close()

    return around


def current_session(factory: Factory | None = None) -> Session:
    """The running job's session: that of `factory`, or the innermost one.

    Helpers of ``token.spawn`` and calls of ``token.run`` find the same one; a session serves one
    greenlet at a time.  Raises `GeventqError` where there is none.  Does not yield.
    """
    for made_by, made in reversed(_open.get()):
        if factory is None or made_by is factory:
            return made
    raise GeventqError(
        "no session here: the job's worker needs around=[session(factory)]"
        + ("" if factory is None else f" with {factory!r}")
    )
