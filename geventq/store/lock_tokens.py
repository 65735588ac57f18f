"""Lock tokens of workers that listen for requests to cancel: ``gq:<worker id>:<n>``.

By its form others know whom to tell (cancellation.md 5.1), and who runs a job; scripts read it by
`fragments/listener.lua`.  Each take has numbers of its own, so that no two runs have one token.
"""

from __future__ import annotations

import re
import typing

__all__ = ["beginning_for", "number_in", "worker_in"]

_FORM: typing.Final = re.compile(r"gq:(.+):([0-9]+)", re.DOTALL)


def beginning_for(worker_id: str) -> str:
    """What all lock tokens of a worker begin with; a number follows."""
    return f"gq:{worker_id}:"


def number_in(lock_token: str) -> int:
    """The number of a token that `beginning_for` begins."""
    return int(lock_token.rpartition(":")[2])


def worker_in(lock_token: str) -> str | None:
    """The id of the worker that has the lock; `None` for a token of another form: that of Node's
    workers, of an older version, or of a job that was taken by hand."""
    found = _FORM.fullmatch(lock_token)
    return None if found is None else found[1]
