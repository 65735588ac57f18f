"""What the code cites stands in the repository, and the guides say what there is."""

from __future__ import annotations

import collections
import pathlib
import re
import tomllib

import pytest

from tests.support.guides import CITED, GUIDES, ROOT, citations, pages, sections

CITING = sorted(
    path
    for room in ("geventq", "tests")
    for path in (ROOT / room).rglob("*")
    if path.suffix in (".py", ".lua", ".md") and "node_modules" not in path.parts
)
#: Papers of the project that no clone has.
ELSEWHERE = re.compile(r"\b(?:api|targets|models|mission)\.md\b|\bshared/")


def test_each_citation_leads_to_a_section() -> None:
    there = {name: set(sections(guide)) for name, guide in CITED.items()}
    found = [one for path in CITING for one in citations(path)]
    assert len(found) > 200  # else they are not seen
    lost = [str(one) for one in found if one.number not in there[one.guide]]
    assert lost == []


@pytest.mark.parametrize("name", CITED)
def test_a_section_has_one_place(name: str) -> None:
    numbers = collections.Counter(sections(CITED[name]))
    assert len(numbers) > 20
    assert [number for number, times in numbers.items() if times > 1] == []


def test_nothing_is_cited_that_a_clone_has_not() -> None:
    texts = [*CITING, *pages(), ROOT / "Makefile", *(ROOT / "conf").iterdir()]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if path != pathlib.Path(__file__)
        for match in ELSEWHERE.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_and_links_of_a_page_exist(page: pathlib.Path) -> None:
    """Paths from the root in backquotes, and links to other pages."""
    text = page.read_text()
    named = re.findall(r"`((?:geventq|tests|conf)/[\w./-]*)`", text)
    linked = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link
    ]
    lost = [name for name in named if not (ROOT / name).exists()]
    lost += [link for link in linked if link and not (page.parent / link).exists()]
    assert lost == []


def test_the_guides_are_in_the_package() -> None:
    """Whoever has installed geventq has them too, in each folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["geventq"]
    packed = {path for pattern in globs for path in (ROOT / "geventq").glob(pattern)}
    assert set(GUIDES.rglob("*.md")) <= packed
