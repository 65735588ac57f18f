"""A worker in a patched process tells once that psycopg2 would stop its hub."""

from __future__ import annotations

import pytest

from tests.support.programs import Programs

SCRIPT = """
import os, sys
from geventq import Worker

def make():
    return Worker("q", lambda job: None, prefix=os.environ["GEVENTQ_PREFIX"])

for _ in range(2):
    with make():
        pass
print("psycopg2" in sys.modules)
"""
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
IMPORT = "import psycopg2\n"
CALLBACK = "from geventq import postgresql\npostgresql.wait_in_hub()\n"


@pytest.mark.parametrize(
    ("before", "warnings", "imported"),
    [
        (PATCH + IMPORT, 1, True),
        (PATCH + IMPORT + CALLBACK, 0, True),
        (PATCH, 0, False),
        (IMPORT, 0, True),
    ],
    ids=["patched", "with a callback", "not imported", "not patched"],
)
def test_a_missing_wait_callback_is_logged_once(
    programs: Programs, before: str, warnings: int, imported: bool
) -> None:
    """On the logger ``geventq``, by the first worker that starts; psycopg2 is not imported for
    it, and in an unpatched process it is the user's own affair."""
    programs.write("script.py", before + SCRIPT)
    program = programs.start("script.py")
    assert program.ends() == 0
    assert program.err.count("psycopg2 has no wait callback") == warnings
    assert len(program.err.splitlines()) == warnings
    assert program.out == f"{imported}\n"
