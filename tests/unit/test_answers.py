"""3.7: what the error replies of Redis mean, as servers of several versions word them."""

from __future__ import annotations

import pytest

from geventq.store.answers import Meaning, meaning_of

ELSEWHERE = [
    "READONLY You can't write against a read only replica.",
    "READONLY You can't write against a read only replica. script: 5f2a, on @user_script:12.",
    "ERR Error running script (call to f_5f): @user_script:7: @user_script: 7: -READONLY You can't",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "NOREPLICAS Not enough good replicas to write.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "NOAUTH Authentication required.",
    "ERR Protocol error: unauthenticated multibulk length",
    "ERR Protocol error: unauthenticated bulk length",
    "DENIED Redis is running in protected mode because protected mode is enabled and no password",
    "ERR max number of clients reached",
    "ERR max number of clients + cluster connections reached",
]
LATER = [
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "ERR Error running script (call to f_5f): @user_script:7: @user_script: 7: -OOM command not",
]
REFUSED = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOSCRIPT No matching script. Please use EVAL.",  # is loaded, and sent again
    "BUSYGROUP Consumer Group name already exists",
    "NOPERM User u has no permissions to run the 'evalsha' command",
    "ERR Protocol error: invalid bulk length",
    "ERR the key of job READONLY holds a string",
    "ERR OOM",
    "",
]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        *((text, Meaning.ELSEWHERE) for text in ELSEWHERE),
        *((text, Meaning.LATER) for text in LATER),
        *((text, Meaning.REFUSED) for text in REFUSED),
    ],
)
def test_what_a_reply_means(text: str, meaning: Meaning) -> None:
    """3.7: outages like a lost connection, and those after which a connection is not used again."""
    assert meaning_of(text) is meaning
