"""Users' callables: found by name, and their parameters counted once (cancellation.md 2.1).

Knows neither jobs nor what is done with a callable; every message begins with the option that
named it.  No greenlets run here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing

__all__ = ["name_of", "named", "takes_token"]

AnyCallable = typing.Callable[..., typing.Any]


def named(option: str, path: str) -> typing.Any:
    """What ``"package.module:name"`` names; its module is imported.

    Raises `ValueError` for a malformed text and for a module or name that is not there.
    """
    module_name, colon, inside = path.partition(":")
    if not colon or not module_name or not inside:
        raise ValueError(f"{option}: 'package.module:function' is needed, got {path!r}")
    if not all(module_name.split(".")):  # a relative name, for one
        raise ValueError(f"{option}: there is no module {module_name!r}")
    try:
        found: typing.Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise ValueError(f"{option}: there is no module {module_name!r}") from None
    for name in inside.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ValueError(f"{option}: {module_name!r} has no {inside!r}") from None
    return found


def name_of(function: AnyCallable) -> str:
    """What messages call it: ``module.name``."""
    while isinstance(function, functools.partial):
        function = function.func
    bare: typing.Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{bare.__module__}.{bare.__qualname__}"


def takes_token(option: str, function: AnyCallable, hint: str = "") -> bool:
    """Whether `function` takes a second positional parameter, with or without a default.

    Raises `TypeError` for one with no positional parameter or with more than two required ones,
    and for a coroutine or generator function: calling it runs nothing.  `hint` says then what
    may have been meant.
    """
    _refuse_deferred(option, function, hint)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature: it gets the job alone
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in positional if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if keywords:
        raise TypeError(f"{option}: keyword-only parameters need defaults: {', '.join(keywords)}")
    if not positional and not variadic:
        raise TypeError(
            f"{option}: at least one positional parameter (the job) is needed, got none"
        )
    if len(required) > 2:
        raise TypeError(
            f"{option}: at most two required parameters (job, token) are possible, "
            f"got {len(required)}"
        )
    return variadic or len(positional) > 1


def _refuse_deferred(option: str, function: AnyCallable, hint: str) -> None:
    code: typing.Any = function
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
            raise TypeError(f"{option}: a plain function is needed, got {kind} function{hint}")
