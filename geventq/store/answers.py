"""What the error replies of Redis mean: one table, which the answer to every call is judged by.

Three kinds (cancellation.md 3.7).  An outage that passes by itself on this server; one that may
pass only elsewhere, for another server may be the primary behind the same address by now; and all
the rest, a refusal of what was asked.  In both outages nothing was done: the server says so before
it begins, and a script that it stops there has not written yet.  Pure functions; knows no sockets.
"""

from __future__ import annotations

import enum
import re
import typing

__all__ = ["Meaning", "meaning_of"]


class Meaning(enum.Enum):
    """What an error reply says of the server that gave it."""

    REFUSED = "refused"
    """It serves, and does not do this."""

    LATER = "later"
    """It does not serve for now."""

    ELSEWHERE = "elsewhere"
    """It does not serve for now; whoever needs it connects anew, and does not ask here again."""


_MEANINGS: typing.Final = {
    "READONLY": Meaning.ELSEWHERE,
    "LOADING": Meaning.ELSEWHERE,
    "MASTERDOWN": Meaning.ELSEWHERE,
    "CLUSTERDOWN": Meaning.ELSEWHERE,
    "NOREPLICAS": Meaning.ELSEWHERE,
    "UNBLOCKED": Meaning.ELSEWHERE,  # "instance state changed (master -> replica?)", and hangs up
    "NOAUTH": Meaning.ELSEWHERE,  # it has a password, and this connection was made without
    "DENIED": Meaning.ELSEWHERE,  # "running in protected mode", and hangs up
    "BUSY": Meaning.LATER,
    "TRYAGAIN": Meaning.LATER,
    "MISCONF": Meaning.LATER,
    "OOM": Meaning.LATER,
}

# Older servers put the cause of a script's failure behind a name of their own:
# "ERR Error running script (call to f_<hash>): @user_script:7: @user_script: 7: -OOM command...".
_CODE: typing.Final = re.compile(rf"(?:^|@user_script: ?[0-9]+: ?-?)({'|'.join(_MEANINGS)})(?= |$)")
_HANGS_UP: typing.Final = (
    # With a cluster's node: "ERR max number of clients + cluster connections reached".
    "ERR max number of clients",
    # It has a password, and reads no more of a long command, as those with scripts are, than this.
    "ERR Protocol error: unauthenticated ",
)


def meaning_of(error: object) -> Meaning:
    """The meaning of an error reply."""
    text = str(error)
    if text.startswith(_HANGS_UP):
        return Meaning.ELSEWHERE
    found = _CODE.search(text)
    return Meaning.REFUSED if found is None else _MEANINGS[found[1]]
