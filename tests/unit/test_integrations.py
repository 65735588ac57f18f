"""An integration without the package that it is for says which extra brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
try:
    importlib.import_module("geventq.integrations.{extra}")
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("django", "django"),
        ("flask", "flask"),
        ("sqlalchemy", "sqlalchemy"),
        ("sentry", "sentry_sdk"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(extra: str, package: str) -> None:
    program = PROGRAM.format(extra=extra, package=package)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == (
        f"geventq.integrations.{extra} needs {package}: pip install 'geventq[{extra}]'\n"
    ), done.stderr


def test_one_that_fails_by_itself_says_what_it_says() -> None:
    """Not that it is missing."""
    program = PROGRAM.format(extra="flask", package="werkzeug")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert "No module named 'werkzeug" in done.stdout, done.stderr
