"""Options where one types them: what a `TypedDict` says of each, shown by `help()`.

Editors and type checkers read ``**options: Unpack[JobOptions]`` themselves, and the text below
each key of the `TypedDict` with it.  `help()` and `inspect.signature` see nothing but
``**options``: `takes` gives them the names, types, defaults and texts from the same place.  The
texts are read from the module's source; where that is not shipped, only they are missing.

Knows no option and nothing of what they do; no greenlets run here.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing

__all__ = ["Described", "described", "takes", "texts"]

T = typing.TypeVar("T", bound=typing.Callable[..., typing.Any])

_WIDTH: typing.Final = 88


class Described(typing.NamedTuple):
    """One option: its type as it is written, what `help()` says of it, and its default."""

    type: str
    text: str
    default: object


@functools.cache
def texts(owner: type) -> typing.Mapping[str, str]:
    """The text that stands below each field or method of a class in its source, by name."""
    found: dict[str, str] = {}
    body = _body(owner)
    for statement, below in itertools.zip_longest(body, body[1:]):
        if isinstance(statement, ast.FunctionDef):
            found[statement.name] = ast.get_docstring(statement) or ""
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _text_of(below)
    return found


def _body(owner: type) -> list[ast.stmt]:
    """The statements of a class; of its own lines alone, for a worker's start waits for this."""
    try:
        source = inspect.getsource(sys.modules[owner.__module__])
    except (OSError, TypeError):
        return []
    lines = re.search(rf"^class {owner.__name__}\b.*\n(?:[ \t)].*\n|\n)*", source, re.MULTILINE)
    found = None if lines is None else ast.parse(lines[0]).body[0]
    return found.body if isinstance(found, ast.ClassDef) else []


def _text_of(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return inspect.cleandoc(str(statement.value.value))
    return ""


def described(
    options: type, defaults: typing.Mapping[str, object]
) -> typing.Mapping[str, Described]:
    """What the `TypedDict` named `options` says of each of its keys."""
    of = texts(options)
    return {
        name: Described(_shown(one), of.get(name, ""), defaults[name])
        for name, one in options.__annotations__.items()
    }


def _shown(annotation: object) -> str:
    """A type as its author wrote it: short names instead of what they stand for."""
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    return str(text).replace("typing.", "")


def takes(options: type, defaults: typing.Mapping[str, object]) -> typing.Callable[[T], T]:
    """Decorates a function that ends with ``**options: Unpack[options]``, or a class whose
    constructor does: its signature shows each option, its docstring says what each does."""
    known = described(options, defaults)

    def complete(taker: T) -> T:
        is_class = isinstance(taker, type)
        function: typing.Any = getattr(taker, "__init__") if is_class else taker  # noqa: B009
        function.__signature__ = _signature(function, known)
        if taker.__doc__ is not None:  # it is, under ``python -OO``
            taker.__doc__ = f"{inspect.cleandoc(taker.__doc__)}\n\n{_told(known)}"
        return taker

    return complete


def _signature(
    function: types.FunctionType, known: typing.Mapping[str, Described]
) -> inspect.Signature:
    bare = inspect.signature(function)
    own = [one for one in bare.parameters.values() if one.kind is not one.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return bare.replace(
        parameters=[
            *own,
            *(
                inspect.Parameter(name, keyword, default=one.default, annotation=one.type)
                for name, one in known.items()
            ),
        ]
    )


def _told(known: typing.Mapping[str, Described]) -> str:
    blocks = [
        f"{name}: {one.type} = {one.default!r}\n" + _wrapped(one.text)
        for name, one in known.items()
    ]
    return "Options (`Seconds` are a number or a `datetime.timedelta`):\n\n" + textwrap.indent(
        "\n\n".join(blocks), "    "
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
