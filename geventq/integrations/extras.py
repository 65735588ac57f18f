"""What an integration says where the package that it is for is not installed."""

from __future__ import annotations

import contextlib
import typing

__all__ = ["needs"]


@contextlib.contextmanager
def needs(package: str, extra: str) -> typing.Iterator[None]:
    """A block that imports `package`, which geventq's `extra` brings: if it is missing, the
    `ImportError` says so.  One that is there and fails says what it says."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"geventq.integrations.{extra} needs {package}: pip install 'geventq[{extra}]'",
            name=error.name,
        ) from error
