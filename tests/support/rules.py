"""Which tests hold which numbered rule of cancellation.md: ``python -m tests.support.rules``.

The rules are the numbered headings of the guide that have none below them.  A test names those
that it holds at the beginning of its docstring (``2.7: a kill after...``); a module's or a class's
docstring names rules for the tests in it that name none.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import re
import typing

from tests.support.guides import CITED, sections

__all__ = ["RULES", "rules_of"]


def _rules(numbers: list[str]) -> tuple[str, ...]:
    divided = {number.partition(".")[0] for number in numbers if "." in number}
    return tuple(number for number in numbers if number not in divided)


#: All rules of the guide, in its order.
RULES: typing.Final = _rules(sections(CITED["cancellation.md"]))

_NAMES: typing.Final = re.compile(r"((?:\d(?:\.\d+)?(?:, |-| and |(?=[: ])))+)(?::| )")


def rules_of(tests: pathlib.Path) -> dict[str, list[str]]:
    """The names of the tests under `tests`, by rule."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        module = ast.parse(path.read_text())
        shared = _named(ast.get_docstring(module))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for rule in _named(ast.get_docstring(node)) or shared:
                    found[rule].append(f"{path.relative_to(tests)}::{node.name}")
    return found


def _named(docstring: str | None) -> list[str]:
    head = _NAMES.match(docstring or "")
    if head is None:
        return []
    named: list[str] = []
    for part in re.split(r", | and ", head[1].rstrip(" :")):
        first, _, last = part.partition("-")
        named += _between(first, last) if last else [first]
    return [rule for rule in named if rule in RULES]


def _between(first: str, last: str) -> list[str]:
    return list(RULES[RULES.index(first) : RULES.index(last) + 1])


def main() -> None:
    found = rules_of(pathlib.Path(__file__).parents[1])
    for rule in RULES:
        print(f"{rule}\n" + "".join(f"    {test}\n" for test in found[rule] or ["(none)"]))


if __name__ == "__main__":
    main()
