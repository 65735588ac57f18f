"""Where a geventq worker spends its CPU: ``python -m tests.bench.profile drain -c 100``.

Drains a queue of no-op jobs in a process that is sampled (`tests.bench.sampler`), and prints the
groups, the hottest lines, and the functions with what they call.
"""

from __future__ import annotations

import argparse
import collections
import linecache
import time
import typing

from tests.bench.lab import Lab
from tests.bench.sampler import group_of

Result = dict[str, typing.Any]


def drain(lab: Lab, *, jobs: int, concurrency: int, sample: bool = True) -> Result:
    """Drain `jobs` jobs once; microseconds per job, and the samples."""
    queue = lab.load(jobs)
    given = {"queue": queue, "concurrency": concurrency, "sample": sample}
    with lab.process("geventq", "drain", **given) as worker:
        worker.hear()
        with lab.server_work() as work:
            start = time.perf_counter()
            worker.say({"go": True})
            seconds = lab.until_finished(queue, jobs) - start
            answer = worker.ask({"stop": True})
    return {
        "rate": jobs / seconds,
        "client_us": answer["cpu"] / jobs * 1e6,
        "server_us": work[0].cpu / jobs * 1e6,
        "lua_us": work[0].scripts / jobs * 1e6,
        "calls": work[0].calls / jobs,
        "samples": answer["samples"],
    }


def groups(result: Result) -> dict[str, float]:
    """Microseconds of client CPU per job by group, the largest first."""
    samples = result["samples"]
    sums: collections.Counter[str] = collections.Counter()
    for file, _function, line, count in samples["leaves"]:
        sums[group_of(file, line)] += count
    each = result["client_us"] / max(1, samples["count"])
    return {name: count * each for name, count in sums.most_common()}


def report(result: Result, lines: int) -> str:
    """The whole story as text."""
    samples = result["samples"]
    total = max(1, samples["count"])
    each = result["client_us"] / total
    text = [
        f"{result['rate']:,.0f} jobs/s while sampled, {total} samples",
        f"client {result['client_us']:.1f} us a job",
        f"server {result['server_us']:.1f} us a job, of it {result['lua_us']:.1f} in scripts",
        f"{result['calls']:.3f} calls of a script a job",
        "",
        "groups                              us/job   share",
    ]
    for name, microseconds in groups(result).items():
        text.append(f"{name:34} {microseconds:7.2f} {microseconds / result['client_us']:7.1%}")
    text += ["", "lines                               us/job"]
    for file, function, line, count in samples["leaves"][:lines]:
        place = f"{_short(file)}:{line} {function}"
        source = linecache.getline(file, line).strip()
        text.append(f"{count * each:7.2f}  {place:58} {source[:70]}")
    own: collections.Counter[tuple[str, str]] = collections.Counter()
    for file, function, _line, count in samples["leaves"]:
        own[file, function] += count
    text += ["", "functions                    own us/job   with callees"]
    for file, function, count in samples["within"][:lines]:
        place = f"{_short(file)} {function}"
        text.append(f"{own[file, function] * each:7.2f} {count * each:7.2f}  {place}")
    return "\n".join(text)


def _short(file: str) -> str:
    for mark in ("/site-packages/", "/geventq/", "/lib/python"):
        if mark in file:
            return file.rpartition(mark)[2]
    return file


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("what", choices=["drain"])
    parser.add_argument("-c", "--concurrency", type=int, default=100)
    parser.add_argument("-n", "--jobs", type=int, default=60_000)
    parser.add_argument("--lines", type=int, default=30, help="how many lines to print")
    parser.add_argument("--server", help="path of the server to use")
    given = parser.parse_args()
    with Lab(given.server) as lab:
        print(report(drain(lab, jobs=given.jobs, concurrency=given.concurrency), given.lines))


if __name__ == "__main__":
    main()
