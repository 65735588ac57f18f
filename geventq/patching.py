"""What of this process would stop its hub, and is told at `Worker.start()`: calls that
monkey-patching did not reach, and drivers in C that know nothing of gevent.

Tells each thing once a process, on the logger ``geventq``.  Names what can be seen for certain:

- not patched: known libraries that are imported and block, and what of the standard library the
  processors call, themselves and by functions of their modules; where there is nothing of the
  kind, a line of level INFO names the modules that are not patched;
- patched too late: modules, outside the standard library, that hold a function or class from
  before the patch (``from time import sleep``);
- drivers in C that are imported and would block whoever calls them.

Imports none of them, and calls nothing of theirs.  No greenlets run here; nothing yields.
"""

from __future__ import annotations

import dis
import functools
import inspect
import logging
import sys
import types
import typing

from gevent import monkey

__all__ = ["warn_of_what_blocks"]

log = logging.getLogger("geventq")

#: The modules whose calls stop a process that is not patched.
_MODULES: typing.Final = ("socket", "ssl", "select", "time", "subprocess", "threading", "queue")
#: Functions and classes of the standard library that wait, as they are before a patch.
_WAITING: typing.Final = {
    "time": ("sleep",),
    "socket": ("socket", "create_connection", "getaddrinfo", "gethostbyname"),
    "ssl": ("SSLContext", "SSLSocket"),
    "select": ("select", "poll", "epoll"),
    "selectors": ("DefaultSelector",),
    "subprocess": ("Popen",),
    "threading": ("Lock",),
    "queue": ("SimpleQueue",),
}
#: They wait by the ones above, which they look up at each call: a late patch reaches them.
_WAITING_BY_OTHERS: typing.Final = {
    "subprocess": ("run", "call", "check_call", "check_output"),
    "threading": ("Thread", "Event", "Condition", "Semaphore", "Barrier"),
    "queue": ("Queue", "LifoQueue", "PriorityQueue"),
    "concurrent.futures": ("ThreadPoolExecutor", "wait", "as_completed"),
}
#: Libraries that wait on sockets of the standard library, or on their own; those that use others
#: first.
_LIBRARIES: typing.Final = (
    *("requests", "httpx", "boto3", "pymysql", "pymongo", "pika", "kombu", "paramiko", "ldap3"),
    *("psycopg2", "psycopg", "MySQLdb", "grpc", "urllib3", "xmlrpc.client", "smtplib", "ftplib"),
    *("imaplib", "poplib", "http.client"),
)
#: They take the originals on purpose.
_KNOW_GEVENT: typing.Final = frozenset({"gevent", "geventq", "greenlet"})

_HOW: typing.Final = (
    "Begin the program with `from gevent import monkey; monkey.patch_all()`, before all other "
    "imports, or run it by `geventq worker`."
)

_told: typing.Final[set[str]] = set()
#: Of a module that makes its members when they are asked for, only those that are there.
_members_of: typing.Final[typing.Callable[[types.ModuleType], dict[str, typing.Any]]] = vars(
    types.ModuleType
)["__dict__"].__get__


def warn_of_what_blocks(processors: typing.Iterable[typing.Callable[..., object]]) -> None:
    """Log what would stop the hub, each once a process.  Does not yield."""
    for driver, blocks, advice in _DRIVERS:
        if driver in sys.modules and monkey.is_module_patched("socket") and blocks():
            _tell(driver, f"{driver}: each call stops this process and all its jobs. {advice}")
    modules = ", ".join(_unpatched_modules())
    if modules and (blocking := _unpatched_libraries() + _unpatched_calls(processors)):
        _tell(
            "unpatched",
            "this process is not monkey-patched (%s): while it waits in %s no job has a turn, and "
            f"no cancel reaches it. {_HOW}",
            *(modules, ", ".join(blocking)),
        )
    elif modules:
        _tell(
            "unpatched modules",
            "this process is not monkey-patched (%s): jobs have to wait by gevent's own means. "
            f"{_HOW}",
            modules,
            level=logging.INFO,
        )
    if "late" not in _told and (late := _patched_too_late()):
        _tell(
            "late",
            "monkey-patching came too late for %s: while it waits there no job has a turn, and no "
            f"cancel reaches it. {_HOW}",
            ", ".join(late),
        )
    _told.add("late")  # looked at all modules: once


def _tell(what: str, text: str, *args: object, level: int = logging.WARNING) -> None:
    if what not in _told:
        _told.add(what)
        log.log(level, text, *args)


# -- not patched ----------------------------------------------------------------------------------


def _unpatched_modules() -> list[str]:
    return [one for one in _MODULES if not monkey.is_module_patched(one)]


def _unpatched_libraries() -> list[str]:
    if monkey.is_module_patched("socket"):
        return []
    return [
        one
        for one in _LIBRARIES
        if sys.modules.get(one) and not (one == "psycopg2" and _psycopg2_waits_in_hub())
    ]


def _unpatched_calls(processors: typing.Iterable[typing.Any]) -> list[str]:
    """What the processors, and the functions of their modules that they name, call of `_WAITING`
    unpatched."""
    waiting = _unpatched_waiting()
    found: dict[str, None] = {}
    pending = [_function_of(process) for process in processors]
    seen: set[int] = set()
    while pending:
        function = pending.pop()
        if type(function) is not types.FunctionType or id(function) in seen:
            continue
        seen.add(id(function))
        for value in _named_in(function.__code__, function.__globals__):
            # By its type: a proxy would have to find out what it stands for.
            if id(value) in waiting:
                found[waiting[id(value)]] = None
            elif issubclass(type(value), (types.FunctionType, type)) and (
                value.__module__ == function.__module__
            ):
                pending += vars(value).values() if isinstance(value, type) else [value]
    return list(found)


def _unpatched_waiting() -> dict[int, str]:
    waiting = {}
    for table in (_WAITING, _WAITING_BY_OTHERS):
        for module, names in table.items():
            by = "threading" if module == "concurrent.futures" else module
            if module in sys.modules and not monkey.is_module_patched(by):
                for name in names:
                    waiting[id(getattr(sys.modules[module], name, None))] = f"{module}.{name}"
    waiting.pop(id(vars(sys.modules["threading"])["Lock"]), None)  # seldom waits
    waiting.pop(id(None), None)
    return waiting


def _function_of(process: typing.Any) -> object:
    while isinstance(process, functools.partial):
        process = process.func
    process = inspect.unwrap(getattr(process, "__func__", process))
    return process if inspect.isroutine(process) else type(process).__call__


def _named_in(
    code: types.CodeType, namespace: dict[str, typing.Any]
) -> typing.Iterator[typing.Any]:
    """What a function looks up: globals, members of modules, also of those that it imports."""
    imported: dict[str, typing.Any] = {}  # inside the function
    last: typing.Any = None
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            last = namespace.get(step.argval)
            yield last
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and _is_module(last):
            last = _members_of(last).get(step.argval)
            yield last
        elif step.opname == "IMPORT_NAME":
            last = sys.modules.get(step.argval)
        elif step.opname == "IMPORT_FROM":
            yield _members_of(last).get(step.argval) if _is_module(last) else None
        elif step.opname == "STORE_FAST":
            imported[step.argval] = last
        else:
            last = imported.get(step.argval) if step.opname.startswith("LOAD_FAST") else None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(constant, namespace)


def _is_module(thing: object) -> typing.TypeGuard[types.ModuleType]:
    return issubclass(type(thing), types.ModuleType)


# -- patched too late ---------------------------------------------------------------------------


def _patched_too_late() -> list[str]:
    """Modules that hold what was replaced since, and what that is."""
    originals = {}
    for source, waiting in _WAITING.items():
        if source in sys.modules and monkey.is_module_patched(source):
            for name in waiting:
                now = getattr(sys.modules[source], name, None)
                before = monkey.get_original(source, name) if now is not None else None
                if before is not now:
                    originals[id(before)] = f"{source}.{name}"
    found: dict[tuple[str, str], set[str]] = {}
    modules: list[object] = list(sys.modules.values()) if originals else []
    for module in modules:
        if not _is_module(module):
            continue
        holder = _members_of(module)
        name = str(holder.get("__name__"))
        package = name.partition(".")[0]
        if package in _KNOW_GEVENT or (package in sys.stdlib_module_names and name != "__main__"):
            continue
        held = list(holder.values())
        if any(value is monkey.get_original for value in held):
            continue  # it asked for them: a profiler's own thread, as Sentry's
        for value in held:
            if id(value) in originals:
                found.setdefault((package, originals[id(value)]), set()).add(name)
    return sorted(
        f"{package if len(names) > 1 else min(names)} ({what})"
        for (package, what), names in found.items()
    )


# -- drivers in C -------------------------------------------------------------------------------


def _psycopg2_waits_in_hub() -> bool:
    extensions = sys.modules.get("psycopg2.extensions")
    return extensions is not None and extensions.get_wait_callback() is not None


def _psycopg_waits_in_c() -> bool:
    waiting = sys.modules.get("psycopg.waiting")
    in_c = getattr(waiting, "wait_c", None)
    return in_c is not None and getattr(waiting, "wait", None) is in_c


def _grpc_is_ungevented() -> bool:
    core = sys.modules.get("grpc._cython.cygrpc")
    return core is not None and not getattr(core, "g_gevent_activated", True)


#: Its name, whether it blocks as it is in this process, and what helps.
_DRIVERS: typing.Final[tuple[tuple[str, typing.Callable[[], bool], str], ...]] = (
    (
        "psycopg2",
        lambda: not _psycopg2_waits_in_hub(),
        "It has no wait callback: call geventq.postgresql.wait_in_hub() before the worker starts.",
    ),
    (
        "psycopg",
        _psycopg_waits_in_c,
        "It was imported before monkey-patching: patch first.",
    ),
    (
        "MySQLdb",
        lambda: "MySQLdb._mysql" in sys.modules,
        "It cannot work with gevent: use PyMySQL, or call it in gevent.get_hub().threadpool.",
    ),
    (
        "grpc",
        _grpc_is_ungevented,
        "Call grpc.experimental.gevent.init_gevent() before the first channel is made.",
    ),
)
