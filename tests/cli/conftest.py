"""Programs of the command line in a directory of the test's own, on the shared server."""

from __future__ import annotations

import collections.abc
import pathlib

import pytest

from tests.support.programs import Programs


@pytest.fixture
def programs(
    tmp_path: pathlib.Path, redis_url: str, prefix: str
) -> collections.abc.Iterator[Programs]:
    """`$GEVENTQ_REDIS_URL` and `$GEVENTQ_PREFIX` name the test's part of the shared server."""
    made = Programs(tmp_path, GEVENTQ_REDIS_URL=redis_url, GEVENTQ_PREFIX=prefix)
    yield made
    made.end()
