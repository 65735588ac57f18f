"""The shape of the package: who imports whom, and what is long.

    python -m tests.support.structure [path of a checkout]

Imports count wherever they stand, in functions and in blocks for type checkers too: whoever reads
a module has to know what it names.
"""

from __future__ import annotations

import ast
import collections
import collections.abc
import dataclasses
import pathlib
import sys
import typing

__all__ = ["Module", "Package", "circles"]

_CHECKER: typing.Final = "TYPE_CHECKING"
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
#: Public, in spite of their names.
_OF_TUPLES: typing.Final = {"_asdict", "_fields", "_make", "_replace"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import of another module of the package."""

    line: int
    module: str
    name: str | None  # what is taken from it
    for_checkers: bool


class Module:
    """One module, by its dotted name."""

    def __init__(self, name: str, path: pathlib.Path) -> None:
        self.name = name
        self.path = path
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def __repr__(self) -> str:
        return self.name

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def functions(self) -> collections.abc.Iterator[tuple[int, str]]:
        """Lines and names of its functions and methods."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                yield node.end_lineno - node.lineno + 1, node.name

    def classes(self) -> collections.abc.Iterator[tuple[int, int, str]]:
        """Methods, public methods and names of its classes; an overload counts once."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                names = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                yield len(names), sum(name[0] != "_" for name in names), node.name

    def imported_packages(self) -> set[str]:
        """The top names of all its imports, in functions too; those for type checkers as well."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
        return found

    def private_uses(self) -> list[str]:
        """Where it takes a private member that no class of its own has, or a private name of
        another module of the package.  A member of the same name here hides one there."""
        own = _own_privates(self.tree)
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                if (
                    is_private
                    and node.attr not in own | _OF_TUPLES
                    and not self._is_own(node.value)
                ):
                    found.append(f"{self.path.name}:{node.lineno}: {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geventq"):
                found += [
                    f"{self.path.name}:{node.lineno}: {node.module} {alias.name}"
                    for alias in node.names
                    if alias.name.startswith("_") and not alias.name.startswith("__")
                ]
        return found

    def _is_own(self, value: ast.expr) -> bool:
        """Whether that is the object itself, or nothing of geventq's."""
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "super":
            return True
        return isinstance(value, ast.Name) and (
            value.id in ("self", "cls") or value.id in self._foreign()
        )

    def _foreign(self) -> set[str]:
        """Names that stand for modules from outside the package."""
        return {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if not alias.name.startswith("geventq.")
        }


def _own_privates(tree: ast.Module) -> set[str]:
    """Names of private members that the module's classes define, and of its own functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, _Definition):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {one.id for one in node.targets if isinstance(one, ast.Name)}
    return found


class Package:
    """The modules of one checkout, and their imports of each other."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.modules = {
            name: Module(name, path)
            for path in sorted(root.rglob("*.py"))
            if (name := _dotted(root, path)) != root.name
        }
        self.imports = {name: list(self._imports(one)) for name, one in self.modules.items()}

    def graph(self, *, for_checkers: bool = True) -> dict[str, set[str]]:
        """Which modules each one imports."""
        return {
            name: {one.module for one in found if for_checkers or not one.for_checkers} - {name}
            for name, found in self.imports.items()
        }

    def _imports(self, module: Module) -> collections.abc.Iterator[Import]:
        pending: list[tuple[ast.AST, bool]] = [(module.tree, False)]
        while pending:
            node, checked = pending.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith(_CHECKER):
                pending += [(one, True) for one in node.body]
                pending += [(one, checked) for one in node.orelse]
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._named(node.lineno, alias.name, None, checked)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}:{node.lineno}: imports are written out"
                for alias in node.names:
                    yield from self._named(node.lineno, node.module or "", alias.name, checked)
            else:
                pending += [(one, checked) for one in ast.iter_child_nodes(node)]

    def _named(
        self, line: int, module: str, name: str | None, checked: bool
    ) -> collections.abc.Iterator[Import]:
        if f"{module}.{name}" in self.modules:
            yield Import(line, f"{module}.{name}", None, checked)
        elif module in self.modules or (module == self.root.name and name != "__version__"):
            yield Import(line, module, name, checked)


def _dotted(root: pathlib.Path, path: pathlib.Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that can all reach each other."""
    reached = {name: _reachable(graph, name) for name in graph}
    found: list[list[str]] = []
    for name in sorted(graph):
        if name in reached[name] and not any(name in circle for circle in found):
            found.append(sorted(one for one in reached[name] if name in reached.get(one, ())))
    return found


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    pending = [start]
    while pending:
        for name in graph.get(pending.pop(), set()) - seen:
            seen.add(name)
            pending.append(name)
    return seen


def main() -> None:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
    package = Package(root.resolve() / "geventq")
    for title, graph in (
        ("when it runs", package.graph(for_checkers=False)),
        ("for type checkers too", package.graph()),
    ):
        found = circles(graph)
        print(f"import circles {title}: {len(found)}")
        for circle in found:
            print(f"    {len(circle)}: {' '.join(one.partition('.')[2] for one in circle)}")
    print("\nlines  longest function")
    modules = list(package.modules.values())
    for module in sorted(modules, key=lambda one: -one.lines):
        longest = max(module.functions(), default=(0, ""))
        print(f"{module.lines:5}  {longest[0]:4} {longest[1]:28} {module.name}")
    every = [(*one, module.name) for module in modules for one in module.classes()]
    print("\nmethods  public  class")
    for methods, public, name, where in sorted(every, reverse=True)[:8]:
        print(f"{methods:7}  {public:6}  {name} ({where})")
    names = collections.Counter(name for _, _, name, _ in every)
    print(f"\nclasses of one name: {sorted(name for name, times in names.items() if times > 1)}")
    private = [use for module in modules for use in module.private_uses()]
    print(f"private members of other modules' classes: {len(private)}")
    print("".join(f"    {use}\n" for use in private), end="")


if __name__ == "__main__":
    main()
