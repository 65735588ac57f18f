"""The public names: what type checkers see is what the interpreter finds."""

from __future__ import annotations

import ast
import importlib
import pathlib

import pytest

import geventq

# Every public name that exists by now is importable from `geventq`.
EXPECTED = {
    "CancelBridge",
    "Cancellation",
    "CancellationToken",
    "DelayedError",
    "GeventqError",
    "Job",
    "JobCancelled",
    "JobKilled",
    "JobOptions",
    "JobSpec",
    "LockLost",
    "LockLostError",
    "MultiCallResult",
    "Queue",
    "QueueEvent",
    "QueueEvents",
    "QueueEventsProducer",
    "RateLimitError",
    "RedisUnavailableError",
    "Supervisor",
    "UnrecoverableError",
    "WaitingChildrenError",
    "WaitingError",
    "Worker",
    "WorkerArguments",
    "WorkerGroup",
    "WorkerInfo",
    "detach",
    "publish_cancel",
}


def _seen_by_type_checkers() -> dict[str, str]:
    source = pathlib.Path(geventq.__file__).read_text()
    block = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )
    return {
        alias.asname or alias.name: statement.module or ""
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    assert _seen_by_type_checkers() == geventq._HOME


def test_the_public_names_are_those_of_the_api() -> None:
    assert set(geventq._HOME) >= EXPECTED
    assert set(geventq.__all__) == {"__version__", *geventq._HOME}
    assert dir(geventq) == sorted(geventq.__all__)


@pytest.mark.parametrize("name", sorted(geventq._HOME))
def test_a_public_name_can_be_imported(name: str) -> None:
    home = importlib.import_module(geventq._HOME[name])
    assert getattr(geventq, name) is getattr(home, name)
    assert name in getattr(home, "__all__", [name])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Wroker'"):
        geventq.Wroker  # noqa: B018
