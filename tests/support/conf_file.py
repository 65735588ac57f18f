"""``conf/geventq.toml`` as it has to be: ``python -m tests.support.conf_file > conf/geventq.toml``.

What an option does is told once, in `WorkerArguments`; here stand the order of the file, its
headings, and an example for each option that has no default to show.
"""

from __future__ import annotations

import json
import re
import textwrap
import typing

from geventq.signatures import described
from geventq.worker.settings import DEFAULTS, WorkerArguments

__all__ = ["NOT_OF_THE_WORKER", "written"]

_HEAD: typing.Final = """\
# geventq worker configuration: every option, its unit and its default.
#
#   geventq worker myapp.tasks:process -q exports --config conf/geventq.toml
#
# With [[workers]] tables, as at the end, it needs no more:
#
#   geventq worker --config conf/geventq.toml
#
# Precedence: command line, then environment variables, then this file, then the defaults. The
# option `lock_duration` is --lock-duration on the command line and $GEVENTQ_LOCK_DURATION in the
# environment, and so is every other one; `url` is --redis and $GEVENTQ_REDIS_URL. What this file
# does not know it refuses. All times are seconds and may have a fraction. A line that is commented
# out shows the default, or an example where the comment says "none": then leave the line out.

[connection]

# Where Redis is: redis://, rediss://, unix:// or embedded:  ($GEVENTQ_REDIS_URL wins over it).
# Default: none; the command line then uses "embedded:", a private server in $GEVENTQ_HOME, else
# in $XDG_STATE_HOME/geventq, else in ~/.local/state/geventq.
# url = "redis://127.0.0.1:6379/0"

# The first part of every key. Node.js BullMQ uses "bull" too: the same prefix shares the queues.
# prefix = "bull"

[worker]
"""

#: What the file has beside the options of a `Worker`, with its text and an example or default.
NOT_OF_THE_WORKER: typing.Final = {
    "processor": (
        (
            'The processor, "package.module:function", or a mapping from job names to processors, '
            '"package.module:processors"; and the queue it serves. Usually both are given on the '
            "command line. Default: none."
        ),
        "myapp.tasks:process",
    ),
    "queue": ("", "exports"),
    "name": (
        (
            "A name for this worker, shown to Node's getWorkers() and recorded as the job's "
            "processed_by: printable ASCII without spaces. Default: none."
        ),
        "exports-1",
    ),
    "processes": (
        (
            "Worker processes, each with that concurrency; more than one use more than one "
            "processor. A process that died is replaced; on SIGTERM all close."
        ),
        1,
    ),
    "health_port": (
        (
            "Answer GET /live (the hub turns) and GET /ready (Redis answers, jobs are taken) "
            "there, with 200 or 503: PORT, on 127.0.0.1, or HOST:PORT. With several processes the "
            "parent answers for all. Default: none."
        ),
        "127.0.0.1:8080",
    ),
    "log_format": (
        (
            'How log lines on standard error look, with job, queue and attempt in each: "text" or '
            '"json", one object a line, whatever the user\'s module configures. Default: none, '
            "text where the user's module configures nothing."
        ),
        "json",
    ),
    "log_level": (
        'What is logged at least: "debug", "info", "warning" or "error". Default: none, info.',
        "info",
    ),
}

_TAIL: typing.Final = """
# --- several queues in one process ------------------------------------------------------------

# [[workers]] tables: one process runs them all, --processes N all of them in each. Each names a
# queue and a processor, and may have a prefix of its own and every option of [worker], where what
# they share stands; MODULE:FUNCTION and -q are not given then. One that dies is started again; if
# it keeps dying, the process ends with status 1. Default: none.
#
#   [[workers]]
#   queue = "exports"
#   processor = "myapp.exports:process"
#   concurrency = 20
#
#   [[workers]]
#   queue = "mails"
#   processor = "myapp.mails:send"
#   cancel_mode = "hard"
"""

_GROUPS: typing.Final = {
    "what runs": "processor queue name node concurrency processes around",
    "health and logs": "health_port log_format log_level",
    "closing": "close_timeout exit_when_stuck",
    "cancellation": "cancel_mode kill_after job_timeout hints cancel_secret",
    "locks and stalled jobs": "lock_duration lock_renew_time skip_lock_renewal stalled_interval "
    "max_stalled_count skip_stalled_check max_started_attempts",
    "taking jobs, and connections": "drain_delay max_connections",
    "what is kept": "remove_on_complete remove_on_fail",
    "retries": "backoff_strategies",
}

_EXAMPLES: typing.Final[dict[str, object]] = {
    "node": "app-7",
    "close_timeout": 20.0,
    "job_timeout": 300.0,
    "cancel_secret": "change me: openssl rand -hex 32",
    "lock_renew_time": 15.0,
    "max_started_attempts": 10,
    "remove_on_complete": {"age": 3600.0, "count": 1000},
    "remove_on_fail": {"age": 604800.0},
    "backoff_strategies": {"mine": "myapp.tasks:backoff"},
    "around": ["myapp.hooks:timing"],
}

#: What only the file has to say of an option.
_MORE: typing.Final = {
    "cancel_secret": "Not on the command line, where every user of the machine can read it; who "
    "has it in this file must keep the file from others.",
    "close_timeout": "With systemd, TimeoutStopSec must be larger by 5 s + kill_after (see "
    "conf/geventq.service).",
    "around": 'Each is named as "package.module:name"; on the command line: '
    "--around myapp.hooks:timing,... Default: none.",
    "backoff_strategies": 'Each is named as "package.module:function"; on the command line: '
    "--backoff-strategies mine=myapp.tasks:backoff,... Default: none.",
}


def written() -> str:
    """The whole text of the file."""
    parts = [_HEAD]
    for title, names in _GROUPS.items():
        parts.append(f"# --- {title} ".ljust(92, "-") + "\n")
        parts += [_entry(name) for name in names.split()]
    return "\n".join(parts).replace("\n\n# queue", "\n# queue") + _TAIL


def _entry(name: str) -> str:
    if name in NOT_OF_THE_WORKER:
        text, value = NOT_OF_THE_WORKER[name]
    else:
        one = described(WorkerArguments, DEFAULTS)[name]
        text = " ".join(one.text.split()).replace(" a dict ", " a table ")
        text = f"{text} {_MORE.get(name, '')}".strip()
        value = _EXAMPLES.get(name, one.default)
    wrapped = textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in [*wrapped, f"{name} = {_toml(value)}"])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return re.sub(r"^(True|False)$", lambda found: found[0].lower(), json.dumps(value))


if __name__ == "__main__":
    print(written(), end="")
