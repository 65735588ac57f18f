"""Every rule of geventq/guides/internals/cancellation.md has a test that names it."""

from __future__ import annotations

import pathlib

import pytest

from tests.support.rules import RULES, rules_of

FOUND = rules_of(pathlib.Path(__file__).parents[1])


def test_the_rules_are_read_from_the_guide() -> None:
    assert RULES[:3] == ("1", "2.1", "2.2")
    assert {"2.16", "3.7", "4.4", "6", "7.5"} <= set(RULES)
    assert not {"2", "3", "4", "7"} & set(RULES)  # what is divided is named by its parts


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_test_that_names_it(rule: str) -> None:
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
