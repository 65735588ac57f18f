"""``manage.py geventq_worker``: the command ``geventq worker`` with Django set up.

Django imports half of its parts before it finds a command, so a process that is not
monkey-patched is replaced by one that is patched first.  Owns that, and nothing of workers: the
arguments and all that follows are those of `geventq.cli`.  Greenlets: those of the worker.
"""

from __future__ import annotations

import argparse
import os
import sys
import typing

from django.core.management.base import BaseCommand, CommandError
from gevent import monkey

from geventq import cli
from geventq.commands import worker
from geventq.commands.ending import ending

__all__ = ["Command"]

_AROUND: typing.Final = "geventq.integrations.django:around"
#: Options of the interpreter that have a value of their own.
_WITH_VALUE: typing.Final = ("-X", "-W")


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """Takes the options of ``geventq worker``; ``around`` begins with `django.around`."""

    help = (
        "Run the jobs of a queue, as `geventq worker` does, with Django set up: `manage.py "
        "geventq_worker myapp.jobs:processors -q exports`.  The process starts itself anew, "
        "monkey-patched; each job's database connections are closed when it ends."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Those of ``geventq worker``."""
        cli.add_worker_arguments(parser)

    def run_from_argv(self, argv: list[str]) -> None:
        """As Django calls it from ``manage.py``.  Replaces a process that is not patched."""
        ending.leave_on_signals()
        if not monkey.is_module_patched("socket"):
            _start_patched()
        super().run_from_argv(argv)

    def handle(self, *args: object, **options: typing.Any) -> None:
        """Run the worker until it is told to close; the exit status is its own."""
        if not monkey.is_module_patched("socket"):  # by `call_command`
            raise CommandError(
                "this process is not monkey-patched: run `manage.py geventq_worker`, which sees "
                "to it, or call this in a process that was started by `python -m gevent.monkey`"
            )
        given = argparse.Namespace(run=worker.run, outermost=[_AROUND], **options)
        status = cli.carry_out(given)
        if status:
            sys.exit(status)


def _start_patched() -> typing.NoReturn:
    """Become the same command in a process that is patched before it imports anything else."""
    script = sys.argv[0]
    spec = sys.modules["__main__"].__spec__
    if spec is not None:  # python -m django
        package = spec.name.removesuffix(".__main__")
        target = ["--module", package]
    else:
        target = [script]
        # `python manage.py` finds what lies beside the script, `-m` what lies in this directory.
        paths = [os.path.dirname(os.path.abspath(script)), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    words = [sys.executable, *_interpreter_options(), "-m", "gevent.monkey", *target]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*words, *sys.argv[1:]])


def _interpreter_options() -> list[str]:
    """What stands between ``python`` and the script, as ``-X dev``."""
    options: list[str] = []
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word.startswith(("-m", "-c")):
            break
        options.append(word)
        if word in _WITH_VALUE:
            options.append(next(words))
    return options
