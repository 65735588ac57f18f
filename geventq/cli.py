"""The command ``geventq``: run workers, add, list and cancel jobs, see to queues, watch the demo.

Owns the parser and the exit statuses: 0 done, 1 refused, 2 usage, 3 Redis could not be reached.
Errors go to stderr without a traceback and without a password; what the commands do is
`geventq.commands`' business.  They are imported when `main` has seen to the signals: a worker
that is ended while it starts ends with status 0 too.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import signal
import sys
import typing

from greenlet import getcurrent

from geventq import __version__
from geventq.commands.console import UsageError, say_error, without_passwords
from geventq.commands.ending import ending

__all__ = ["add_worker_arguments", "carry_out", "main"]

REFUSED: typing.Final = 1
USAGE: typing.Final = 2
UNREACHABLE: typing.Final = 3


def main(arguments: typing.Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; argparse raises `SystemExit` with 2.

    ``worker`` ends the process itself, once it has imported the user's module.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["worker"]:
        ending.leave_on_signals()
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a job's name need not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    given = parser.parse_args(words)
    if given.run is None:
        parser.print_usage(sys.stderr)
        return USAGE
    return carry_out(given)


def carry_out(given: argparse.Namespace) -> int:
    """Call ``given.run(given)``; the exit status.  What goes wrong is told on stderr.  A worker,
    which runs users' code, ends the process here."""
    status = _status(given)
    if ending.is_ours:
        ending.end(status)
    return status


def _status(given: argparse.Namespace) -> int:
    from geventq.errors import GeventqError, RedisUnavailableError

    try:
        return int(given.run(given))
    except RedisUnavailableError as error:
        return _failed(error, UNREACHABLE)
    except (UsageError, ValueError, TypeError) as error:
        return _failed(error, USAGE)
    except (GeventqError, OSError) as error:
        return _failed(error, REFUSED)


def _interrupted(number: int, frame: object) -> None:
    """Ends the command as shells say it.  Not a KeyboardInterrupt: gevent prints those.

    Python calls it in whatever greenlet runs.  A job of the demo would take the exception for its
    own failure, so it is the main greenlet's, at the hub's next turn."""
    leave, greenlet = SystemExit(128 + number), getcurrent()
    if greenlet.parent is None:  # the main greenlet itself; the hub may not even exist
        raise leave
    import gevent  # whoever started that greenlet has imported it

    hub: typing.Any = gevent.get_hub()
    hub.loop.run_callback(hub.handle_system_error, SystemExit, leave)


def _failed(error: Exception, status: int) -> int:
    say_error(str(error) or type(error).__name__)
    return status


class _Parser(argparse.ArgumentParser):
    """Names no password in what it says about a wrong command line, and takes every number of
    JSON for a number, -1.5e3 too, where argparse looks for an option."""

    def __init__(self, *args: typing.Any, **options: typing.Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> typing.NoReturn:
        super().error(without_passwords(message))


class _FreeOrder(_Parser):
    """Ids may stand before, between and behind the options: argparse by itself takes those for
    all that stand together first."""

    _is_within = False

    def parse_known_args(  # type: ignore[override]
        self,
        args: typing.Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._is_within:  # what the call below is made of
            return super().parse_known_args(args, namespace)
        self._is_within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_within = False


class _Command(_FreeOrder):
    """One of the commands.  What it takes is asked for when it is the one that was given: nobody
    waits for what the others import."""

    def __init__(
        self,
        *args: typing.Any,
        complete: typing.Callable[[argparse.ArgumentParser], None],
        **options: typing.Any,
    ) -> None:
        super().__init__(*args, **options)
        self._complete: typing.Callable[[argparse.ArgumentParser], None] | None = complete

    def parse_known_args(  # type: ignore[override]
        self,
        args: typing.Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        complete, self._complete = self._complete, None
        if complete is not None:
            complete(self)
        return super().parse_known_args(args, namespace)


_NEGATIVE: typing.Final = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


_COMMANDS: typing.Final = {
    "demo": "watch jobs run and be cancelled",
    "worker": "run the jobs of a queue",
    "add": "add a job",
    "jobs": "list the jobs of a queue",
    "cancel": "cancel jobs, wherever they are",
    "retry": "run failed jobs again",
    "clean": "delete old jobs",
    "top": "watch queues and running jobs, and cancel them",
    "pause": "let no worker take jobs of a queue",
    "resume": "undo pause",
    "workers": "show the workers of a queue",
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="geventq", description="Run background jobs, and stop them.")
    parser.add_argument("--version", action="version", version=f"geventq {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Command)
    for name, what in _COMMANDS.items():
        complete = functools.partial(_complete, name)
        commands.add_parser(
            name, help=what, description=what, allow_abbrev=False, complete=complete
        )
    return parser


def _complete(name: str, parser: argparse.ArgumentParser) -> None:
    """Give the parser of a command its arguments, and what runs it."""
    from geventq.commands import settings

    settings.add_common_arguments(parser)
    if name == "demo":
        parser.set_defaults(run=_demo)
    elif name == "worker":
        from geventq.commands import worker, worker_settings

        worker_settings.add_arguments(parser)
        parser.set_defaults(run=worker.run)
    elif name in ("add", "jobs"):
        from geventq.commands import jobs

        jobs.add_arguments(name, parser)
    elif name == "cancel":
        from geventq.commands import asking

        asking.add_arguments(parser)
    elif name == "top":
        from geventq.commands import top

        top.add_arguments(parser)
    else:
        from geventq.commands import queues

        queues.add_arguments(name, parser)


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``worker``, for who starts one from a program of his own; what they give
    is for `carry_out`."""
    from geventq.commands import settings, worker_settings

    settings.add_common_arguments(parser)
    worker_settings.add_arguments(parser)


def _demo(given: argparse.Namespace) -> int:
    from geventq.commands import settings, worker
    from geventq.commands.logs import log_plainly
    from geventq.demo import run

    log_plainly()
    url = os.environ["GEVENTQ_REDIS_URL"] = settings.url(given)
    worker.check_reachable(url)
    return run(url, settings.prefix(given), only_json=given.json)
