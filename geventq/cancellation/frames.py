"""What the frames of a failed processor hold is released in the job's greenlet (cancellation.md
2.13).

An error keeps the frames that it came through alive, with all their variables: half-used
generators whose `finally` may wait, connections, locks.  Let go anywhere else, they would end in
a greenlet of geventq and hold it up.

No greenlet of its own; `release` runs in the job's, as part of the attempt, and may yield there.
"""

from __future__ import annotations

import contextlib
import types
import typing

__all__ = ["release"]


def release(error: BaseException) -> None:
    """Let go what the frames of `error` hold, of what it came from, and of its group's members.

    The traceback keeps its lines and loses its variables.  Frames that still run stay as they
    are.  What the release itself raises ends where it was raised, as in any destructor.  Raises
    what is thrown at the greenlet meanwhile; may yield.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        _clear(one.__traceback__)
        pending.extend(_behind(one))


def _clear(trace: types.TracebackType | None) -> None:
    while trace is not None:
        with contextlib.suppress(RuntimeError):  # it still runs
            trace.tb_frame.clear()
        trace = trace.tb_next


def _behind(error: BaseException) -> typing.Iterator[BaseException]:
    if error.__context__ is not None:
        yield error.__context__
    if error.__cause__ is not None:
        yield error.__cause__
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
