"""Whose doing it is that a thread starts, a pool is made, a call is queued: the job's, or that of
a library the process shares (cancellation.md 2.12).

Told by the code that does it: the nearest frame above the call.  Code in the standard library or
in an installed distribution serves the whole process, unless the distribution is that of the
processors themselves (`own`).  An instrumentation's function that stands in for the call, like
Sentry's for `Thread.start`, does not count.

Pure looks at frames and paths.  `own` reads what is installed; nothing else here does I/O.
"""

from __future__ import annotations

import functools
import glob
import inspect
import os
import re
import site
import sys
import sysconfig
import types
import typing

__all__ = ["callers_self", "is_jobs_doing", "is_library", "own"]

#: The files of the distributions that processors come from.
_own_files: typing.Final[set[str]] = set()


_PLACES: typing.Final = r"/(?:site|dist)-packages/"
_COMPREHENSIONS: typing.Final = frozenset({"<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>"})


def own(process: typing.Callable[..., typing.Any]) -> None:
    """What `process`, a processor, does is a job's doing, and so is what its distribution does,
    where it is an installed one.  Does not yield."""
    for path in _files_of(process):
        if _is_library_file(path) and path not in _own_files:
            _own_files.update(_files_beside(path))


def _files_of(process: typing.Any) -> set[str]:
    while isinstance(process, functools.partial):
        process = process.func
    process = inspect.unwrap(getattr(process, "__func__", process))
    if not inspect.isroutine(process) and not isinstance(process, type):
        process = type(process)
    module = sys.modules.get(getattr(process, "__module__", None) or "")
    code = getattr(process, "__code__", None)
    paths = {getattr(module, "__file__", None), getattr(code, "co_filename", None)}
    return {os.path.realpath(path) for path in paths if path and not path.startswith("<")}


def _files_beside(path: str) -> set[str]:
    """The files of the distribution that brought `path`; none for the standard library's."""
    if path.startswith(_standard_library()) and not _is_installed(path):
        return set()
    import importlib.metadata  # imports socket: not before a program is monkey-patched

    for distribution in importlib.metadata.distributions():
        if os.path.basename(path) in (distribution.read_text("RECORD") or ""):
            files = distribution.files or ()
            located = {os.path.realpath(str(distribution.locate_file(one))) for one in files}
            if path in located:
                return located
    return _package_of(path)  # put there by hand, or by a system's packager


def _package_of(path: str) -> set[str]:
    """The modules of the top-level package that `path` lies in."""
    _, place, inside = re.split(rf"({_PLACES})", path, maxsplit=1)
    if os.sep not in inside:
        return {path}
    top = path[: path.index(place) + len(place)] + inside.partition(os.sep)[0]
    return {
        os.path.realpath(one) for one in glob.iglob(f"{glob.escape(top)}/**/*.py", recursive=True)
    }


def is_jobs_doing(thing: object) -> bool:
    """Whether it is a job's code, and not a library's, that does what is being done to `thing`.

    Called inside the call.  Frames with `thing` among their arguments lead to it.  The outermost
    of them that is a method of it, or a library's, stands in for the call, with all below; the
    frame above that tells.
    """
    frame = teller = _above(thing)
    while frame is not None and (_takes(frame, thing) or _is_wrapper(frame)):
        if _is_wrapper(frame) or _is_method(frame, thing) or is_library(frame.f_code.co_filename):
            teller = frame.f_back
        frame = frame.f_back
    return teller is None or not is_library(teller.f_code.co_filename)


def callers_self(thing: object) -> typing.Iterator[object]:
    """The objects whose methods lead to what is being done to `thing`, innermost first, as long
    as they stand in one file."""
    frame = _above(thing)
    while frame is not None and _takes(frame, thing):
        frame = frame.f_back
    path = None if frame is None else frame.f_code.co_filename
    while frame is not None and frame.f_code.co_filename == path:
        if frame.f_code.co_argcount:
            yield frame.f_locals.get(frame.f_code.co_varnames[0])
        frame = frame.f_back


def _above(thing: object) -> types.FrameType | None:
    """The innermost frame that has `thing` among its arguments, above those of this module."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not _takes(frame, thing):
        frame = frame.f_back
    return frame


def _takes(frame: types.FrameType, thing: object) -> bool:
    code = frame.f_code
    plain = code.co_argcount + code.co_kwonlyargcount
    starred = bool(code.co_flags & inspect.CO_VARARGS)
    names = code.co_varnames[: plain + starred]
    given = frame.f_locals
    if code.co_name in _COMPREHENSIONS:  # in a method, whose `self` it has borrowed
        names, plain, starred = code.co_freevars, len(code.co_freevars), False
    return any(given.get(name) is thing for name in names[:plain]) or (
        starred and any(one is thing for one in given.get(names[plain]) or ())
    )


def _is_method(frame: types.FrameType, thing: object) -> bool:
    return any(
        getattr(getattr(type(thing), name, None), "__code__", None) is frame.f_code
        for name in dir(type(thing))
    )


def _is_wrapper(frame: types.FrameType) -> bool:
    """Of `wrapt`, with which OpenTelemetry and others put themselves in between."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "wrapt"


def is_library(path: str) -> bool:
    """Whether the code of this file serves the whole process."""
    return _is_library_file(path) and os.path.realpath(path) not in _own_files


@functools.lru_cache(maxsize=1024)
def _is_library_file(path: str) -> bool:
    if path.startswith("<"):
        return path.startswith("<frozen")  # others were typed in, or compiled by the job
    path = os.path.realpath(path)
    return _is_installed(path) or path.startswith(_standard_library())


def _is_installed(path: str) -> bool:
    return re.search(_PLACES, path) is not None


@functools.cache
def _standard_library() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]}
    roots.update(site.getsitepackages())
    return tuple(os.path.realpath(root) + os.sep for root in roots if root)
