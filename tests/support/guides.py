"""Reading the guides: their sections, the snippets in them, and who cites which section.

A section is a heading that begins with its number (``## 4. Any state``, ``### 4.3 The record``);
an item of a numbered list that stands right below ``## N.`` is section N.item.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import io
import pathlib
import re
import tokenize
import typing

__all__ = [
    "CITED",
    "GUIDES",
    "ROOT",
    "Citation",
    "blocks",
    "citations",
    "file_of",
    "pages",
    "sections",
    "snippets",
]

ROOT: typing.Final = pathlib.Path(__file__).resolve().parents[2]
GUIDES: typing.Final = ROOT / "geventq" / "guides"
#: The guides that the code cites by number, under the name that it gives them.
CITED: typing.Final = {
    "cancellation.md": GUIDES / "internals" / "cancellation.md",
    "wire-format": GUIDES / "internals" / "wire-format.md",
}

_HEADING: typing.Final = re.compile(r"^(#+) (?:(\d+(?:\.\d+)?)\.? )?")
_ITEM: typing.Final = re.compile(r"^(\d+)\. ")
_NUMBERS: typing.Final = r"\d+(?:\.\d+)?(?:(?:, | and |-)\d+(?:\.\d+)?)*"
_NAMED: typing.Final = re.compile(
    rf"`*(cancellation\.md|wire-format)`* (?:sections? )?({_NUMBERS})(?![\w.]*\w)"
)
#: A number alone, in brackets; a script may add the step of that operation.
_BARE: typing.Final = re.compile(r"\(([2-9]\.\d+(?:, [2-9]\.\d+)*)(?: step \d+)?\)")
_FILE: typing.Final = re.compile(r"# (\S+\.py)$", re.MULTILINE)
_SNIPPET: typing.Final = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Citation:
    """``cancellation.md 2.8`` in a comment, a docstring or a guide."""

    path: pathlib.Path
    line: int
    guide: str
    number: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.guide} {self.number}"


def pages() -> list[pathlib.Path]:
    """README and all guides."""
    return [ROOT / "README.md", *sorted(GUIDES.rglob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks as they come, each with its language."""
    return [(kind, block) for kind, block in _SNIPPET.findall(text)]


def snippets(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [block for kind, block in blocks(text) if kind == language]


def file_of(snippet: str) -> str | None:
    """The name of the file that a snippet is, from its first line (``# shop/jobs.py``), if it is
    no program by itself."""
    found = _FILE.match(snippet)
    return found and found[1]


def sections(guide: pathlib.Path) -> list[str]:
    """The numbers of its sections, as they come."""
    found: list[str] = []
    top: str | None = None  # the section whose list items count
    for line in guide.read_text().splitlines():
        if heading := _HEADING.match(line):
            top = heading[2] if heading[1] == "##" else None
            if heading[2]:
                found.append(heading[2])
        elif top and (item := _ITEM.match(line)):
            found.append(f"{top}.{item[1]}")
    return found


def citations(path: pathlib.Path) -> collections.abc.Iterator[Citation]:
    """What `path` cites.  A number alone is one of cancellation.md; in Lua, of wire-format."""
    alone = "wire-format" if path.suffix == ".lua" else "cancellation.md"
    for line, text in _prose(path):
        for found in _NAMED.finditer(text):
            for number in re.split(", | and |-", found[2]):
                yield Citation(path, line, found[1], number)
        if path.suffix != ".md":
            for found in _BARE.finditer(text):
                for number in found[1].split(", "):
                    yield Citation(path, line, alone, number)


def _prose(path: pathlib.Path) -> collections.abc.Iterator[tuple[int, str]]:
    """The comments and docstrings of a file, those of adjacent lines together, with the line."""
    text = path.read_text()
    if path.suffix == ".md":
        yield 1, " ".join(text.split())
    elif path.suffix == ".py":
        yield from _joined(_python_comments(text))
    elif path.suffix == ".lua":
        lines = enumerate(text.splitlines(), 1)
        yield from _joined(
            (number, line.partition("--")[2].strip(" -")) for number, line in lines if "--" in line
        )


def _python_comments(text: str) -> collections.abc.Iterator[tuple[int, str]]:
    """The comments, and the docstrings, those below a name included."""
    found = [
        (token.start[0], token.string.lstrip("#: "))
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.append((node.lineno, " ".join(str(node.value.value).split())))
    return iter(sorted(found))


def _joined(
    pieces: collections.abc.Iterable[tuple[int, str]],
) -> collections.abc.Iterator[tuple[int, str]]:
    begin, last, said = 0, -1, ""
    for line, piece in pieces:
        if line == last + 1:
            said = f"{said} {piece}"
        else:
            if said:
                yield begin, said
            begin, said = line, piece
        last = line
    if said:
        yield begin, said
