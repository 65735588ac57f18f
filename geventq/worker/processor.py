"""What runs a job: one callable, or the one that a mapping has for the job's name.

Looked up, checked and copied once, when the worker is made; a job costs one look into a dict
then, and nothing where all run by one callable.  No greenlets run here.
"""

from __future__ import annotations

import collections.abc
import typing

from geventq.cancellation import CancellationToken
from geventq.cancellation.whose import own
from geventq.checks import check_name, show
from geventq.errors import GeventqError
from geventq.job import Job
from geventq.worker.callables import name_of, named, takes_token

__all__ = ["GivenProcessor", "GivenProcessors", "Processor", "Processors", "Route", "Routes"]

GivenProcessor = (
    typing.Callable[[Job], typing.Any] | typing.Callable[[Job, CancellationToken], typing.Any]
)
"""What a user hands in: it takes the job alone, or the job and its token."""

GivenProcessors = GivenProcessor | str | collections.abc.Mapping[str, GivenProcessor | str]
"""One for all jobs, or one for each name; a text names it as ``"package.module:function"``."""

Processor = typing.Callable[..., typing.Any]
"""A processor, once `takes_token` has said which of the two kinds it is."""

REST: typing.Final = "*"
"""The name in a mapping that stands for all others."""

_SHOWN: typing.Final = 20  # names in an error

P = typing.TypeVar("P", bound=GivenProcessor)


class Processors(dict[str, GivenProcessor | str]):
    """Processors by job name, for a `Worker`: a dict with a decorator.

    ::

        processors = Processors()

        @processors("export")
        def export(job): ...

        worker = Worker("exports", processors)

    ``"*"`` catches the names that are not in it.  The worker copies it when it is made.
    """

    def __call__(self, name: str) -> typing.Callable[[P], P]:
        """A decorator that makes a function the processor of the jobs with this name.

        Raises `ValueError` for a name that has one, and `ValueError` or `TypeError` for what is
        no name.
        """
        if callable(name):
            raise TypeError(f'a job name is needed, as in @processors("export"), got {show(name)}')
        check_name("job name", name)

        def keep(process: P) -> P:
            if name in self:
                has = self[name]
                shown = has if isinstance(has, str) else name_of(has)
                raise ValueError(
                    f"job name {name!r}: {shown} is its processor already, "
                    f"{name_of(process)} cannot be it too"
                )
            self[name] = process
            return process

        return keep


class Route(typing.NamedTuple):
    """What runs a job."""

    process: Processor
    takes_token: bool
    """It has a second parameter (cancellation.md 2.1)."""


class Routes:
    """What runs the jobs of one worker.

    Raises `ValueError` for a malformed text, a module or function that is not there, and an empty
    or badly named mapping, and `TypeError` for what is not callable or takes something else.
    """

    def __init__(self, process: GivenProcessors) -> None:
        given: typing.Any = named("process", process) if isinstance(process, str) else process
        #: What runs every job; `None` where its name tells.
        self.only: Route | None = None
        self._by_name: dict[str, Route] = {}
        if isinstance(given, collections.abc.Mapping):
            for name, one in given.items():
                check_name("process: job name", name)
                self._by_name[name] = _route(f"process[{name!r}]", one)
            if not self._by_name:
                raise ValueError("process: a mapping with at least one job name is needed, got {}")
        else:
            self.only = _route("process", process if isinstance(given, str) else given)

    def of(self, name: str) -> Route:
        """What runs the jobs with this name.  For one that is not known that is a function which
        raises: such a job fails, and the next worker that takes it may know it."""
        if self.only is not None:
            return self.only
        found = self._by_name.get(name)
        return found or self._by_name.get(REST) or self._refusal(name)

    def processors(self) -> list[Processor]:
        """All of them."""
        routes = [self.only] if self.only is not None else self._by_name.values()
        return [route.process for route in routes]

    def _refusal(self, name: str) -> Route:
        known = [repr(one) for one in self._by_name]
        if len(known) > _SHOWN:
            known[_SHOWN:] = [f"and {len(known) - _SHOWN} more"]
        text = f"no processor for jobs named {show(name)}; known are {', '.join(known)}"

        def refuse(job: Job) -> typing.NoReturn:
            raise GeventqError(text)

        return Route(refuse, takes_token=False)


def _route(option: str, process: typing.Any) -> Route:
    if isinstance(process, str):
        path, process = process, named(option, process)
        if isinstance(process, str):
            raise TypeError(f"{option}: {path!r} names a text, not a callable")
    if isinstance(process, collections.abc.Mapping) or not callable(process):
        raise TypeError(f"{option}: a callable is needed, got {type(process).__name__}")
    own(process)
    hint = "; asyncio code runs in one, by token.run_coroutine"
    return Route(process, takes_token(option, process, hint))
