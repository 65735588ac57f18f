"""What the frames of a failed processor hold is released in the job's greenlet (cancellation.md
2.13).

An error keeps the frames that it came through alive, with all their variables: half-used
generators whose `finally` may wait, connections, locks.  Let go anywhere else, they would end in
a greenlet of geventq and hold it up.

No greenlet of its own; `release` runs in the job's, as part of the attempt, and may yield there.
"""

from __future__ import annotations

import contextlib
import sys
import types
import typing

__all__ = ["release"]


# An error of the user's may have made its own of these, which may raise: they are not asked.
_trace_of: typing.Final = vars(BaseException)["__traceback__"].__get__
_context_of: typing.Final = vars(BaseException)["__context__"].__get__
_cause_of: typing.Final = vars(BaseException)["__cause__"].__get__
_members_of: typing.Final = vars(BaseExceptionGroup)["exceptions"].__get__
_arguments_of: typing.Final = vars(BaseException)["args"].__get__
_attributes_of: typing.Final = vars(BaseException)["__dict__"].__get__


def release(error: BaseException) -> None:
    """Let go what the frames of `error` hold, of what it came from, and of its group's members.

    The traceback keeps its lines and loses its variables.  Frames that still run stay as they
    are.  A half-used generator that the error itself carries, as an argument or an attribute, is
    closed: else whoever is told of the error last would end it.  What the release itself raises
    ends where it was raised, as in any destructor.  Raises what is thrown at the greenlet
    meanwhile; may yield.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        _clear(_trace_of(one))
        _close_generators(one)
        pending.extend(_behind(one))


def _clear(trace: types.TracebackType | None) -> None:
    while trace is not None:
        frame = trace.tb_frame
        with contextlib.suppress(RuntimeError):  # it still runs
            frame.clear()
            # Who has looked at them, Sentry for one, has made a copy: this brings it up to date.
            _ = frame.f_locals
        trace = trace.tb_next


def _close_generators(error: BaseException) -> None:
    """Those that it carries.  One that runs cannot be closed, and is somebody's."""
    for held in (*_arguments_of(error), *_attributes_of(error).values()):
        if type(held) is types.GeneratorType and held.gi_frame is not None and not held.gi_running:
            try:
                held.close()
            except Exception as raised:  # noqa: BLE001 (as Python tells of a destructor's)
                _tell(raised, held)


def _tell(raised: Exception, held: object) -> None:
    told = types.SimpleNamespace(
        exc_type=type(raised),
        exc_value=raised,
        exc_traceback=raised.__traceback__,
        err_msg="Exception ignored in",
        object=held,
    )
    sys.unraisablehook(typing.cast(typing.Any, told))


def _behind(error: BaseException) -> typing.Iterator[BaseException]:
    for other in (_context_of(error), _cause_of(error)):
        if other is not None:
            yield other
    if issubclass(type(error), BaseExceptionGroup):
        yield from _members_of(error)
