"""Wire vectors: loading one into a server, dumping the server, and telling the difference.

A vector is what npm bullmq's one operation made of a keyspace (``tests/vectors``, or the folder
that ``$GEVENTQ_VECTORS`` names, in the same format).  Values that nobody promises are left out
of the comparison: stream ids, the text of traces, the library's name in ``meta``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import typing

import redis

__all__ = ["ALSO", "AREAS", "OWN", "Vector", "differences", "dump", "load", "read_all"]

AREAS: typing.Final = (
    *("meta", "add", "active", "complete", "fail", "requeue", "lock", "stalled", "pause"),
    *("delayed", "update", "priority", "remove", "retry", "getters", "events", "life"),
    *("clean", "drain", "obliterate"),
)
"""The areas that are replayed; the others come with their features."""

ALSO: typing.Final = ("flow-clean-child", "sched-drain-keeps")
"""Vectors of other areas whose operation is there already."""

OWN: typing.Final = pathlib.Path(__file__).parent.parent / "vectors"
_JSON_FIELDS: typing.Final = {"opts", "parent", "data", "progress", "returnvalue"}

_SINCE_MS: typing.Final = 1500  # between setting an expiry and looking at it, on a slow machine

Keyspace = dict[str, dict[str, typing.Any]]


@dataclasses.dataclass(frozen=True)
class Vector:
    """One vector; `told` is the whole JSON object."""

    id: str
    area: str
    title: str
    told: dict[str, typing.Any]

    @property
    def before(self) -> Keyspace:
        return typing.cast(Keyspace, self.told["before"])

    @property
    def after(self) -> Keyspace:
        return typing.cast(Keyspace, self.told["after"])

    @property
    def operation(self) -> str:
        return self.told["operation"] or ""

    @property
    def setup(self) -> str:
        return self.told["setup"] or ""

    def left_out(self) -> str | None:
        """Why this vector is not replayed, or `None`."""
        if self.id in _OTHERWISE:
            return _OTHERWISE[self.id]
        if self.id in ALSO:
            return None
        changed = {
            key
            for key in self.before.keys() | self.after.keys()
            if self.before.get(key) != self.after.get(key)
        }
        for topic, in_operation, in_setup, in_keys in _LATER:
            if (
                re.search(in_operation, self.operation)
                or (in_setup and re.search(in_setup, self.setup))
                or (in_keys and any(re.search(in_keys, key) for key in changed))
                or self.id in _LATER_BY_NAME.get(topic, ())
            ):
                return f"{topic} come with the rest of the wire"
        return None


# Three more vectors hold what the API refuses or words otherwise, and are replayed below its
# checks: `add-reserved-id`, `add-opts-number-and-array-hazards` and `fail-empty-message`.
_OTHERWISE: typing.Final = {
    "take-missing-hash": "an id without a hash is reported and dropped, no stub is made",
    "drain-scheduler-job-waiting": "it holds a defect: a job without a hash stays, a run is lost",
}

# Topic, and what gives it away: in the operation, in the setup (a worker's options; what the
# setup stored is in `before` and does not matter), in the keys that changed.
_LATER: typing.Final = (
    ("parents", r"\bparent: ?\{|\bparent\b|[fF]low|Children|Dependenc", None, ":dependencies$"),
    ("deduplication", "[dD]edup", None, r":(de|dn):"),
    ("schedulers", "Scheduler|repeat", None, ":repeat"),
    ("rate limits", "RateLimit|rateLimit", r"limiter: ?\{|setGlobalRateLimit", ":limiter$"),
    ("global concurrency", "GlobalConcurrency", None, None),
    ("metrics", "[mM]etrics", "metrics: ?\\{", ":metrics:"),
    ("worker telemetry", "worker\\([^)]*telemetry", "worker\\([^)]*telemetry", None),
)
# What only the setup's own helpers would tell.
_LATER_BY_NAME: typing.Final = {
    "worker telemetry": ("fail-telemetry-writes-tm",),
    "metrics": ("fail-metrics", "complete-metrics-first"),
}


def read_all(folder: pathlib.Path | None = None) -> list[Vector]:
    """All vectors of `AREAS`, and those of `ALSO`, in the order of the index."""
    folder = folder or pathlib.Path(os.environ.get("GEVENTQ_VECTORS") or OWN)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    found = []
    for entry in index["vectors"]:
        if entry["area"] in AREAS or entry["id"] in ALSO:
            text = (folder / "vectors" / entry["file"]).read_text(encoding="utf-8")
            found.append(Vector(entry["id"], entry["area"], entry["title"], json.loads(text)))
    return found


def load(client: redis.Redis, keyspace: Keyspace) -> None:
    """Make the server hold exactly `keyspace`."""
    client.flushall()
    for key, entry in keyspace.items():
        _load_key(client, key, entry["type"], entry["value"])
        if "pttl_about" in entry:
            client.pexpire(key, entry["pttl_about"])


def _load_key(client: redis.Redis, key: str, kind: str, value: typing.Any) -> None:
    if kind == "string":
        client.set(key, value)
    elif kind == "list":
        client.rpush(key, *value)
    elif kind == "set":
        client.sadd(key, *value)
    elif kind == "hash":
        client.hset(key, mapping=value)
    elif kind == "zset":
        for member, score in value:
            client.execute_command("ZADD", key, score, member)  # as text: all digits count
    elif kind == "stream":
        for pairs in value or [[["x", "x"]]]:
            client.execute_command("XADD", key, "*", *[item for pair in pairs for item in pair])
        if not value:  # a stream that was emptied still exists
            client.execute_command("XTRIM", key, "MAXLEN", 0)
    else:
        raise AssertionError(f"unknown type {kind} of {key}")


def dump(client: redis.Redis, match: str = "*") -> Keyspace:
    """The keys that match, all by default, in the form of a vector."""
    found: Keyspace = {}
    for key in sorted(client.scan_iter(match, count=1000)):
        kind = client.type(key)
        entry: dict[str, typing.Any] = {"type": kind, "value": _dump_key(client, key, kind)}
        left = client.pttl(key)
        if left >= 0:
            entry["pttl_about"] = left
        found[key] = entry
    return found


def _dump_key(client: redis.Redis, key: str, kind: str) -> typing.Any:
    if kind == "string":
        return client.get(key)
    if kind == "list":
        return client.lrange(key, 0, -1)
    if kind == "set":
        return sorted(client.smembers(key))
    if kind == "hash":
        return client.hgetall(key)
    # Through a script, because it hands scores on as the text that the server prints.
    command = {
        "zset": "'ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'",
        "stream": "'XRANGE', KEYS[1], '-', '+'",
    }
    rows = client.eval(f"return redis.call({command[kind]})", 1, key)
    return _pairs(rows) if kind == "zset" else [_pairs(row[1]) for row in rows]


def _pairs(flat: list[str]) -> list[list[str]]:
    return [[flat[at], flat[at + 1]] for at in range(0, len(flat), 2)]


def differences(expected: Keyspace, actual: Keyspace) -> list[str]:
    """What differs, a line a key; empty if nothing does."""
    found = []
    wanted, got = _promised(expected), _promised(actual)
    for key in sorted(wanted.keys() | got.keys()):
        left, right = wanted.get(key), got.get(key)
        left_ms, right_ms = ((entry or {}).pop("pttl_about", 0) for entry in (left, right))
        if not 0 <= left_ms - right_ms <= _SINCE_MS or bool(left_ms) != bool(right_ms):
            found.append(f"{key}: expected to live {left_ms} ms, found {right_ms} ms")
        if left != right:
            found.append(f"{key}:\n    expected {left}\n    found    {right}")
    return found


def _promised(keyspace: Keyspace) -> Keyspace:
    """`keyspace` in the parts that every implementation has to write alike."""
    promised = {key: dict(entry) for key, entry in keyspace.items()}
    for key, entry in list(promised.items()):
        if entry["type"] == "hash":
            entry["value"] = fields = {
                name: _promised_field(name, text) for name, text in entry["value"].items()
            }
            if key.endswith(":meta"):
                fields.pop("version", None)
                if not fields:
                    del promised[key]
    return promised


def _promised_field(name: str, text: str) -> typing.Any:
    if name == "stacktrace":
        return len(json.loads(text))  # each has its own frames
    if name in _JSON_FIELDS:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return _through_lua(value) if name == "opts" else value
    return text


def _through_lua(value: typing.Any) -> typing.Any:
    """Options as they come out of the JSON encoder of the server, where Node's went through: an
    empty list is an object, null is nothing, 14 digits are left (wire-format 2.5, 2.7)."""
    if isinstance(value, dict):
        return {key: _through_lua(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_through_lua(item) for item in value] or {}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(f"{value:.14g}")
    return value
