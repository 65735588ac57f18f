"""The user's callable: found by name, and its parameters counted once (cancellation.md 2.1)."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing

from geventq.cancellation import CancellationToken
from geventq.cancellation.whose import own
from geventq.job import Job

__all__ = ["GivenProcessor", "Processor", "load_processor", "takes_token"]

GivenProcessor = (
    typing.Callable[[Job], typing.Any] | typing.Callable[[Job, CancellationToken], typing.Any]
)
"""What a user hands in: it takes the job alone, or the job and its token."""

Processor = typing.Callable[..., typing.Any]
"""The same, once `takes_token` has said which of the two it is."""


def load_processor(process: Processor | str) -> Processor:
    """The callable itself, or the one that ``"package.module:function"`` names.

    Raises `ValueError` for a malformed name, a missing module or function, and `TypeError` for
    what cannot be called.
    """
    if not isinstance(process, str):
        if not callable(process):
            raise TypeError(f"process: a callable is needed, got {type(process).__name__}")
        own(process)
        return process
    module_name, colon, path = process.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"process: 'package.module:function' is needed, got {process!r}")
    if not all(module_name.split(".")):  # a relative name, for one
        raise ValueError(f"process: there is no module {module_name!r}")
    try:
        found: typing.Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise ValueError(f"process: there is no module {module_name!r}") from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ValueError(f"process: {module_name!r} has no {path!r}") from None
    return load_processor(found) if not isinstance(found, str) else _not_callable(process)


def _not_callable(process: str) -> typing.NoReturn:
    raise TypeError(f"process: {process!r} names a text, not a callable")


def takes_token(process: Processor) -> bool:
    """Whether `process` takes a second positional parameter, with or without a default.

    Raises `TypeError` for one with no positional parameter or with more than two required ones,
    and for a coroutine or generator function: calling it runs nothing, so every job would fail.
    """
    _refuse_deferred(process)
    try:
        parameters = inspect.signature(process).parameters.values()
    except ValueError:  # a builtin without a signature: it gets the job alone
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in positional if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if keywords:
        raise TypeError(f"process: keyword-only parameters need defaults: {', '.join(keywords)}")
    if not positional and not variadic:
        raise TypeError("process: at least one positional parameter (the job) is needed, got none")
    if len(required) > 2:
        raise TypeError(
            "process: at most two required parameters (job, token) are possible, "
            f"got {len(required)}"
        )
    return variadic or len(positional) > 1


def _refuse_deferred(process: Processor) -> None:
    code: typing.Any = process
    while isinstance(code, functools.partial):
        code = code.func
    if not inspect.isroutine(code) and not isinstance(code, type):
        code = type(code).__call__
    for kind, is_one in (
        ("a coroutine", inspect.iscoroutinefunction),
        ("a generator", inspect.isgeneratorfunction),
        ("an asynchronous generator", inspect.isasyncgenfunction),
    ):
        if is_one(code):
            raise TypeError(f"process: a plain function is needed, got {kind} function")
