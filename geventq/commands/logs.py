"""What is logged in a process of the commands: lines of text or of JSON on standard error, with
job, queue and attempt in each.

Owns the handler, its two formats, and what becomes of errors that nobody logged where lines are
JSON.  A user's module that configures logging itself has its way, unless a format was asked for.
One greenlet a failure of a greenlet, ``geventq-log``: the hub must not log.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import sys
import threading
import time
import typing

from geventq.commands import console
from geventq.errors import RedisUnavailableError
from geventq.job_log import JobLabel, JobLogFilter

if typing.TYPE_CHECKING:
    from geventq.stacks import JobStacks

__all__ = ["errors_as_json", "log_lines", "log_plainly", "set_level"]

_LONGEST: typing.Final = 1 << 16  # characters of one text in a line of JSON
_OWN: typing.Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    *("message", "asctime", "taskName"),
    *JobLabel._fields,
}

log = logging.getLogger("geventq")
_ours: _Lines | None = None  # of this process


def log_plainly() -> None:
    """Where nothing else is configured, warnings and errors are lines on standard error."""
    logging.lastResort = _Lines(_Text(), turns=None)
    logging.lastResort.setLevel(logging.WARNING)


def log_lines(log_format: str | None, level: str | None, *, turns: int | None = None) -> None:
    """What is logged from `level` on (``info``) becomes lines on standard error.

    With a `log_format` always, else where a user's module says nothing else.  `turns` is a file
    that processes which share standard error lock while they write.
    """
    global _ours
    handler = _ours = _Lines(_Json() if log_format == "json" else _Text(), turns=turns)
    set_level(level)
    if log_format is None:
        logging.lastResort = handler
    else:
        logging.getLogger().addHandler(handler)
    if log_format == "json":
        from geventq.stacks import shape_lines  # gevent: not for the parent of several processes

        shape_lines(_stacks_as_json)
        _log_what_is_printed()


def insist(log_format: str | None, level: str | None) -> None:
    """The user's module has been imported, and may have configured logging.  Where a format was
    asked for, it is kept on standard error and output; other handlers of the user's stay.

    Loggers of ours that he has switched off by the way (``disable_existing_loggers``) are on.
    """
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            if logger.name.partition(".")[0] == "geventq":
                logger.disabled = False
            if log_format is not None:
                _leave_streams_to_us(logger)
    if log_format is not None:
        if _ours is not None and _ours not in logging.root.handlers:
            logging.root.addHandler(_ours)
        set_level(level)


def _leave_streams_to_us(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if handler is _ours or not isinstance(handler, logging.StreamHandler):
            continue
        if handler.stream in (sys.stderr, sys.stdout):
            logger.removeHandler(handler)
            logger.propagate = True


def errors_as_json() -> None:
    """What the command tells of itself is a line of JSON, like what is logged."""
    console.shape_errors(_told_as_json)


def set_level(level: str | None) -> None:
    """Log from that level on, ``debug`` and the like."""
    logging.getLogger().setLevel((level or "info").upper())


class _Lines(logging.StreamHandler[typing.TextIO]):
    """One line after the other, also where several processes write."""

    def __init__(self, formatter: logging.Formatter, *, turns: int | None) -> None:
        super().__init__(sys.stderr)
        self._turns = turns
        self.setFormatter(formatter)
        self.addFilter(JobLogFilter(outside=None))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, and nothing of another process in between."""
        with console.locked(self._turns, console.STDERR):
            super().emit(record)


class _Shape(logging.Formatter):
    """What both formats have in common."""

    def formatException(self, ei: typing.Any) -> str:  # noqa: N802 (logging's name)
        """Of an outage nothing: where in geventq it was met says nothing."""
        return "" if isinstance(ei[1], RedisUnavailableError) else super().formatException(ei)


class _Text(_Shape):
    """``2026-11-27 03:00:29 WARNING shop [queue=exports job=17 attempt=1] no such file``."""

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__)
        if shown.exc_info and isinstance(shown.exc_info[1], RedisUnavailableError):
            shown.exc_info = shown.exc_text = None
        return console.blotted(super().format(shown))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line without a traceback."""
        known = [
            f"{field}={value}"
            for field in ("queue", "job", "attempt")
            if (value := getattr(record, field)) is not None
        ]
        where = f" [{' '.join(known)}]" if known else ""
        when = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        return f"{when} {record.levelname} {record.name}{where} {record.message}"


class _Json(_Shape):
    """One object on one line, whatever the record holds."""

    def format(self, record: logging.LogRecord) -> str:
        said = self._said(record)
        try:
            text = _dumped(said)
        except (TypeError, ValueError, RecursionError):
            text = _dumped({name: _dumpable(value) for name, value in said.items()})
        return console.blotted(text)

    def _said(self, record: logging.LogRecord) -> dict[str, typing.Any]:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, typing.Any] = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(_message_of(record)),
            **{field: getattr(record, field) for field in ("queue", "job", "attempt")},
            "pid": record.process,
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            said["error"] = _cut(f"{type(error).__name__}: {_shown(error, str)}")
            said["traceback"] = _cut(self.formatException(record.exc_info))
        if record.stack_info:
            said["stack"] = _cut(record.stack_info)
        for name, value in record.__dict__.items():
            if name not in _OWN:
                said[f"extra_{name}" if name in said else name] = value
        return said


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 (the line says what is wrong)
        return f"{_shown(record.msg, str)} {_shown(record.args)} ({type(error).__name__}: {error})"


def _dumped(said: typing.Any) -> str:
    return json.dumps(said, default=_shown, allow_nan=False)


def _dumpable(value: typing.Any) -> typing.Any:
    """The value, or what it looks like where JSON cannot hold it."""
    try:
        _dumped(value)
    except (TypeError, ValueError, RecursionError):
        return _shown(value)
    return value


def _shown(value: object, show: typing.Callable[[typing.Any], str] = repr) -> str:
    try:
        return _cut(show(value))
    except Exception as error:  # of the user's own class  # noqa: BLE001
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _told_as_json(text: str, level: str = "error", **more: typing.Any) -> str:
    """What the command tells of itself, as a line like the others."""
    number = logging.getLevelNamesMapping()[level.upper()]
    fields = {"name": "geventq", "levelno": number, "levelname": level.upper(), "msg": text}
    job = dict.fromkeys(JobLabel._fields)
    return _Json().format(logging.makeLogRecord(fields | {"process": os.getpid()} | job | more))


def _stacks_as_json(jobs: typing.Sequence[JobStacks]) -> list[str]:
    lines = [_told_as_json("stacks of the running jobs", "info", jobs=len(jobs))]
    for job in jobs:
        fields = job._asdict()
        fields["job_name"] = fields.pop("name")  # which is the logger's
        lines.append(_told_as_json(f"job {job.job} runs", "info", **fields))
    return lines


def _log_what_is_printed() -> None:
    """Errors that nobody caught, and warnings, are logged: else they would stand between the
    lines."""
    import gevent

    from geventq.cancellation import tree

    def of_a_greenlet(context: object, kind: typing.Any, error: typing.Any, trace: object) -> None:
        own = None
        if context is gevent.getcurrent():  # once it has ended nobody knows what it ran, and whose
            context, own = _shown(context), contextvars.copy_context()
        exc_info = (kind, error, trace)
        tree.apart(
            *(log.error, "%s failed", context), exc_info=exc_info, context=own, name="geventq-log"
        )

    def of_a_thread(args: typing.Any) -> None:
        if args.exc_type is not SystemExit:
            exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("a thread failed: %s", args.thread, exc_info=exc_info)

    def of_nobody(args: typing.Any) -> None:
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("%s: %r", args.err_msg or "ignored", args.object, exc_info=exc_info)

    hub: typing.Any = gevent.get_hub()
    hub.print_exception = of_a_greenlet
    threading.excepthook = of_a_thread
    sys.unraisablehook = of_nobody
    logging.captureWarnings(True)
