"""What is entered around each processor of a worker, and left again (cancellation.md 2.17).

The rules that a ``with`` statement does not have: leaving is shielded, a true ``__exit__``
swallows nothing, and of several errors the first one counts.  What an end means is `decide`'s
business.

Everything runs in the job's greenlet, between `Attempt.begin` and `Attempt.end`, and may yield
there.  A worker without any of these has no `Arounds`.
"""

from __future__ import annotations

import logging
import sys
import typing

from geventq.hubs import interrupt_main
from geventq.worker.callables import name_of, takes_token

if typing.TYPE_CHECKING:
    from geventq.worker.run.execution import Execution
    from geventq.worker.settings import Around

__all__ = ["Arounds"]

log = logging.getLogger("geventq")


class _Entered(typing.NamedTuple):
    """One that is to be left."""

    name: str
    manager: typing.ContextManager[object]


class Arounds:
    """The ``around`` of one worker; `given` was checked with its options."""

    def __init__(self, given: typing.Sequence[Around], queue_name: str) -> None:
        self._arounds: list[tuple[typing.Any, bool, str]] = [
            (one, takes_token(f"around[{number}]", one), name_of(one))
            for number, one in enumerate(given)
        ]
        self._queue_name = queue_name
        #: Whether one wants the token, also where the processor does not.
        self.take_token = any(takes for _, takes, _ in self._arounds)

    def run(self, execution: Execution) -> object:
        """Enter all, the first one outermost, run the processor, and leave what was entered.

        Returns the processor's result.  Raises what it raised, or what was raised on entering;
        else what was first raised on leaving.
        """
        job, attempt, route = execution.job, execution.attempt, execution.route
        entered: list[_Entered] = []
        try:
            for around, takes, name in self._arounds:
                made = around(job, attempt.token) if takes else around(job)
                entered.append(_Entered(name, _enter(name, made)))
            process = route.process
            result = process(job, attempt.token) if route.takes_token else process(job)
        except BaseException as error:
            with attempt.leaving():
                attempt.end_helpers()  # they may use what is left now
                self._leave_after(error, entered, execution)
            raise
        with attempt.leaving():
            attempt.end_helpers()
            self._leave(entered, execution)
        return result

    def _leave(self, entered: list[_Entered], execution: Execution) -> None:
        """After a result.  The first that raises has failed the job."""
        while entered:
            try:
                entered.pop().manager.__exit__(None, None, None)
            except BaseException as error:
                self._leave_after(error, entered, execution)
                raise

    def _leave_after(
        self, error: BaseException, entered: list[_Entered], execution: Execution
    ) -> None:
        """While `error` is handled, which `sys.exc_info` shows as in a ``with`` block."""
        others: list[tuple[str, BaseException]] = []
        while entered:
            name, manager = entered.pop()
            try:
                manager.__exit__(*sys.exc_info())
            except BaseException as another:  # noqa: BLE001 (told; `error` is the outcome)
                if another is not error:
                    others.append((name, another))
        while others:  # not before all are left: telling may yield
            self._tell(*others.pop(0), execution)

    def _tell(self, name: str, error: BaseException, execution: Execution) -> None:
        if isinstance(error, KeyboardInterrupt):
            interrupt_main(error)
            return
        log.error(
            "around %s: leaving it failed, after job %s had",
            name,
            execution.job_id,
            exc_info=error,
            extra={"job": execution.job_id, "queue": self._queue_name},
        )


def _enter(name: str, made: typing.Any) -> typing.ContextManager[object]:
    kind = type(made)
    if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
        raise TypeError(f"around {name}: a context manager is needed, it returned {kind.__name__}")
    made.__enter__()
    return typing.cast(typing.ContextManager[object], made)
