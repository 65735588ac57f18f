"""``conf/users.acl`` as it has to be, from what the scripts do:
``python -m tests.support.access > conf/users.acl``, and ``... table`` for the guide's.

Who may use a queue how: a user for each role, with the commands of the scripts that it calls and
those that it sends itself.  A server's file of users knows no comments; they stand in the guide.
"""

from __future__ import annotations

import dataclasses
import sys
import typing

from geventq.store.scripts import load

__all__ = ["PASSWORD", "ROLES", "Role", "table", "written"]

PASSWORD: typing.Final = "change-me"
"""Of each user in the file, with the user's name behind it."""

#: What every program sends: how it connects, and calls scripts.
_EVERYBODY: typing.Final = "ping select client|setname evalsha eval script|load"
_READS: typing.Final = (
    "exists hget hgetall hmget hexists llen lpos lrange mget "
    "xread xrevrange zcard zcount zrange zrevrange zrevrank zscore"
)
_READING: typing.Final = "counts get_state get_end get_jobs get_logs read_events"


@dataclasses.dataclass(frozen=True)
class Role:
    """A user: the scripts that it calls, the commands that it sends itself, its channels."""

    scripts: str
    sends: str
    channels: str = ""

    def commands(self) -> list[str]:
        """All that it needs, sorted."""
        needed = set(f"{_EVERYBODY} {self.sends}".split())
        for name in self.scripts.split():
            needed |= {one.lower() for one in load(name).commands}
        return sorted(needed)


ROLES: typing.Final = {
    "producer": Role(f"add {_READING}", f"{_READS} hset hsetnx"),
    "worker": Role(
        "settle recover renew stalled sweep record_request hand_on extend_lock add log clear_logs "
        "heartbeat reply "
        f"update_data update_progress {_READING}",
        f"{_READS} bzpopmin info xadd subscribe unsubscribe",
        "&bullmq:cancel &bullmq:cancel:*",
    ),
    "canceller": Role(
        f"cancel unfinished members {_READING}",
        f"{_READS} publish blpop time",
        "&bullmq:cancel &bullmq:cancel:*",
    ),
    "dashboard": Role(f"members {_READING}", f"{_READS} client|list info type"),
}


def written() -> str:
    """The whole text of the file.  Without the user `default` whoever connects could do all."""
    lines = ["user default off", f"user admin on >{PASSWORD}-admin ~* &* +@all"]
    for name, role in ROLES.items():
        granted = " ".join(f"+{command}" for command in role.commands())
        channels = f"resetchannels {role.channels}".strip()
        lines.append(f"user {name} on >{PASSWORD}-{name} ~bull:* {channels} -@all {granted}")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of ``access.md``: what each user needs."""
    rows = ["| user | keys | channels | scripts | commands, in scripts and by themselves |"]
    rows.append("|---|---|---|---|---|")
    for name, role in ROLES.items():
        channels = ", ".join(f"`{one[1:]}`" for one in role.channels.split()) or "none"
        scripts = ", ".join(f"`{one}`" for one in sorted(role.scripts.split()))
        commands = ", ".join(one.replace("|", " ").upper() for one in role.commands())
        rows.append(f"| `{name}` | `bull:*` | {channels} | {scripts} | {commands} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table() if sys.argv[1:] == ["table"] else written(), end="")
