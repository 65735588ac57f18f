"""Where an attempt failed, as text, and what a job keeps of its attempts' traces (wire-format 3).

No Redis, no greenlets.
"""

from __future__ import annotations

import json
import traceback
import typing

from geventq.errors import JobCancelled

__all__ = ["kept_traces", "printable_text"]

_LONGEST: typing.Final = 2**20  # characters of a text that are kept
_TRACES: typing.Final = 100  # that are kept of a job that does not say how many
_TRACE_BYTES: typing.Final = 256 * 1024  # of them together


def kept_traces(before: list[str], error: BaseException, limit: int | None) -> str:
    """The traces of earlier attempts and that of `error`, as JSON, the newest last, cut to the
    job's `limit`, or where it has none, to what a hash should carry from attempt to attempt."""
    if limit == 0:
        return "[]"
    try:
        trace = _trace_of(error).rstrip("\n")
    except BaseException as broken:  # noqa: BLE001 (a user's attributes; groups nested too deeply)
        trace = f"{type(error).__name__} (its trace failed: {type(broken).__name__})"
    traces = [*before, trace][-(limit or _TRACES) :]
    texts = [json.dumps(printable_text(one), ensure_ascii=False) for one in traces]
    if limit is None:
        texts = _newest(texts, trace)
    return f"[{','.join(texts)}]"


def _trace_of(error: BaseException) -> str:
    """As Python prints it.  Hundreds of cancellations may end at once, so theirs lacks the marks
    below its lines, for each of which Python parses the line anew, and no file is looked at for
    having changed: that is most of the work."""
    chained = error.__cause__ or error.__context__ or getattr(error, "__notes__", None)
    if not isinstance(error, JobCancelled) or chained:
        return "".join(traceback.format_exception(error))
    frames = traceback.StackSummary(
        traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    )
    text = ["Traceback (most recent call last):\n", *frames.format()]
    text.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
    return "".join(text)


def _newest(texts: list[str], trace: str) -> list[str]:
    """As many of the traces (as JSON) as fit, the newest ones; of `trace`, the last of them, its
    end at least, which tells most."""
    room, first = _TRACE_BYTES, len(texts)
    while first and (room := room - len(texts[first - 1].encode()) - 1) >= 0:
        first -= 1
    if first < len(texts):
        return texts[first:]
    return [json.dumps(printable_text("... " + trace[-_TRACE_BYTES // 6 :]))]


def printable_text(text: str) -> str:
    """`text` as it can be sent: lone surrogates are shown as escapes, the end of a text that is
    senselessly long is cut off."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()
