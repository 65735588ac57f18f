"""Every numbered rule of cancellation.md that is built has a test that names it."""

from __future__ import annotations

import pathlib

import pytest

from tests.support.rules import RULES, rules_of

FOUND = rules_of(pathlib.Path(__file__).parents[1])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("7.2", "7.3", "7.5")])
def test_a_rule_has_a_test_that_names_it(rule: str) -> None:
    """What is not listed: 7.2, 7.3 and 7.5 are held by processes of their own."""
    assert FOUND[rule]


def test_the_workers_rules_are_held_by_a_real_worker() -> None:
    """2 and 3 have tests of the core; the worker is what promises."""
    on_a_worker = {
        rule
        for rule, tests in FOUND.items()
        if any(test.startswith(("redis/test_worker", "fault/")) for test in tests)
    }
    missing = [rule for rule in RULES if rule[0] in "23" and rule not in on_a_worker]
    assert missing == []
