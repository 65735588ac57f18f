"""Drains of this checkout beside those of another one: ``python -m tests.bench --against DIR``.

Each checkout runs its own `tests.bench.gq_drain` in this interpreter, against one server, in turns
whose order changes.  All is taken from outside, from the first tenth of the jobs to the last one,
so that neither a start nor what the other checkout can tell matters: it may be of any age.

``--count`` counts instead of timing: instructions of worker and server in user mode, both under
valgrind's cachegrind.  Whatever else runs on the machine hardly changes those.
"""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import statistics
import tempfile
import time
import typing

import gevent

from geventq import JobSpec, Queue
from tests.bench.lab import Lab
from tests.interop.child import ROOT, python
from tests.support.servers import Server

__all__ = ["counted", "timed"]

# Of each scenario the concurrency, and how many jobs: to time, to count.
_SIZES: typing.Final = {
    "drain100": (100, 30_000, (1_000, 4_000)),
    "drain1": (1, 6_000, (200, 1_000)),
}
_HEAD: typing.Final = f"{'':28}{'other':>10}{'here':>12}{'ratio':>8}"
_UNITS: typing.Final = {"rate": "jobs/s", "server": "us/job", "lua": "us/job", "client": "us/job"}

Metrics = dict[str, float]


def timed(
    lab: Lab, other: pathlib.Path, names: typing.Iterable[str], rounds: int, *, quick: bool
) -> str:
    """A table of the medians of `rounds` drains each, for those of `names` that are drains."""
    text = [_HEAD]
    for name in _chosen(names):
        concurrency, jobs, _ = _SIZES[name]
        jobs //= 20 if quick else 1
        found: dict[pathlib.Path, list[Metrics]] = {other: [], ROOT: []}
        for number in range(rounds):
            for root in (other, ROOT) if number % 2 == 0 else (ROOT, other):
                found[root].append(_drain(lab, root, concurrency, jobs))
        for metric, unit in _UNITS.items():
            theirs, ours = (
                statistics.median(one[metric] for one in found[root]) for root in (other, ROOT)
            )
            text.append(_line(f"{name} {metric}, {unit}", theirs, ours))
    return "\n".join(text)


def counted(binary: str, other: pathlib.Path, names: typing.Iterable[str]) -> str:
    """A table of the instructions of one job, with `binary` for a server.  Needs valgrind."""
    text = [_HEAD]
    for name in _chosen(names):
        concurrency, _, (few, many) = _SIZES[name]
        found: dict[pathlib.Path, Metrics] = {}
        for root in (other, ROOT):
            low, high = (_count(binary, root, concurrency, jobs) for jobs in (few, many))
            found[root] = {side: (high[side] - low[side]) / (many - few) for side in low}
        for side in found[ROOT]:
            line = _line(f"{name} {side}, instr./job", found[other][side], found[ROOT][side])
            text.append(line)
    return "\n".join(text)


def _chosen(names: typing.Iterable[str]) -> list[str]:
    return [name for name in _SIZES if name in set(names)]


def _line(what: str, theirs: float, ours: float) -> str:
    return f"  {what:26}{theirs:>10,.1f}{ours:>12,.1f}{ours / theirs:>8.3f}"


def _drain(lab: Lab, root: pathlib.Path, concurrency: int, jobs: int) -> Metrics:
    queue = lab.load(jobs)
    given = {"url": lab.url, "prefix": "bull", "queue": queue, "concurrency": concurrency}
    with python("tests.bench.gq_drain", root=root, **given) as worker:
        worker.hear(timeout=60)
        worker.say({"go": True})
        lab.until_finished(queue, jobs // 10)
        with lab.server_work() as work:
            before = lab.left(queue)["completed"]
            begun, cpu = time.perf_counter(), _cpu(worker.pid)
            seconds = lab.until_finished(queue, jobs) - begun
            cpu = _cpu(worker.pid) - cpu
        worker.ask({"stop": True})
    each = 1e6 / (jobs - before)
    return {
        "rate": (jobs - before) / seconds,
        "server": work[0].cpu * each,
        "lua": work[0].scripts * each,
        "client": cpu * each,
    }


def _cpu(pid: int) -> float:
    """Seconds that a process has had a processor."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _count(binary: str, root: pathlib.Path, concurrency: int, jobs: int) -> Metrics:
    """All instructions of a worker that drains `jobs` jobs, and of its server."""
    with tempfile.TemporaryDirectory(prefix="geventq-count-") as folder:
        place = pathlib.Path(folder)
        server = _filled(binary, place, jobs)
        try:
            under = _valgrind(place / "client")
            given = {"url": server.url, "prefix": "bull", "queue": "q", "concurrency": concurrency}
            with python("tests.bench.gq_drain", root=root, under=under, **given) as worker:
                worker.hear(timeout=120)
                worker.say({"go": True})
                with server.client() as client:
                    while client.zcard("bull:q:completed") < jobs:
                        gevent.sleep(0.25)
                worker.ask({"stop": True}, timeout=120)
            server.stop()
        finally:
            server.remove()
        return {side: _instructions(place / side) for side in ("server", "client")}


def _filled(binary: str, place: pathlib.Path, jobs: int) -> Server:
    """A counted server with `jobs` jobs, which were added to one that is not counted."""
    program = place / "counted"
    command = shlex.join([*_valgrind(place / "server"), binary])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    plain = Server(binary=binary)
    counting = Server(binary=str(program), options=("--hz", "1", "--dynamic-hz", "no"))
    try:
        plain.start()
        with Queue("q", plain.url) as queue:
            queue.add_bulk([JobSpec("job", {"n": 1})] * jobs)
        with plain.client() as client:
            client.save()
        shutil.copy(plain.directory / "dump.rdb", counting.directory)
        counting.start()
    except BaseException:
        counting.remove()
        raise
    finally:
        plain.remove()
    return counting


def _valgrind(log: pathlib.Path) -> list[str]:
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    return [*tool, f"--log-file={log}"]


def _instructions(log: pathlib.Path) -> int:
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
    assert found is not None, log.read_text()
    return int(found[1].replace(",", ""))
