"""From the command to the first job, beside ``celery worker -P gevent`` and ``rq worker``.

Each has a virtual environment of its own in ``.cache/peers``, which is made when it is first asked
for, and is started once before it counts, so that nothing has to be compiled.  The job waits in
the queue when the worker starts.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing

from tests.bench.figures import Figure, Metrics, Scenario
from tests.bench.lab import Lab, Side, percentile
from tests.support.waiting import eventually

__all__ = ["STARTUP"]

_ROOT: typing.Final = pathlib.Path(__file__).resolve().parents[2]
_JOBS: typing.Final = pathlib.Path(__file__).parent / "peers"
_ENVIRONMENTS: typing.Final = _ROOT / ".cache" / "peers"


class Peer(typing.NamedTuple):
    """A worker's program, and how a job comes into its queue; `{url}` is the server."""

    requirements: tuple[str, ...]
    add: str
    """A program in Python."""
    command: tuple[str, ...]
    """What follows ``python -m``."""


PEERS: typing.Final = {
    "geventq": Peer(
        ("gevent==26.9.0", "redis[hiredis]==8.1.0"),
        "import geventq; geventq.Queue('startup', '{url}').add('first')",
        ("geventq", "worker", "first_job:told", "-q", "startup", "--redis", "{url}"),
    ),
    "rq": Peer(
        ("rq==3.0.0", "redis[hiredis]==8.1.0"),
        "import redis, rq, first_job;"
        "rq.Queue(connection=redis.Redis.from_url('{url}')).enqueue(first_job.told)",
        ("rq.cli", "worker", "--url", "{url}"),
    ),
    "celery": Peer(
        ("celery==5.7.0", "gevent==26.9.0", "redis[hiredis]==8.1.0", "packaging"),
        "import celery_app; celery_app.told.delay()",
        ("celery", "-A", "celery_app", "worker", "-P", "gevent"),
    ),
}


def startup(lab: Lab, side: Side, starts: int) -> Metrics:
    """The medians of some starts of each, in turns, and what ours is of theirs.

    With a single start, a peer whose environment has not been made is left out."""
    there = [name for name in PEERS if starts > 1 or _python(name).exists()]
    for name in there:
        _make_environment(name)
        _seconds_to_first_job(lab, name)
    took: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(starts):
        for name in there or ("geventq",):
            took[name].append(_seconds_to_first_job(lab, name))
    found = {name: percentile(one, 0.5) for name, one in took.items()}
    ours = found["geventq"]
    return {**found, "of rq": ours / found["rq"], "of celery": ours / found["celery"]}


def _python(name: str) -> pathlib.Path:
    return _ENVIRONMENTS / name / "bin" / "python"


def _make_environment(name: str) -> None:
    """Blocks for some seconds the first time."""
    directory, python = _ENVIRONMENTS / name, _python(name)
    made = directory / "made-of"
    wanted = "\n".join(PEERS[name].requirements)
    if made.exists() and made.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*install, *PEERS[name].requirements], check=True)
    made.write_text(wanted)


def _seconds_to_first_job(lab: Lab, name: str) -> float:
    """One start: from the command to the job's first line."""
    peer, python = PEERS[name], str(_python(name) if _python(name).exists() else sys.executable)
    lab.client.flushall()
    with tempfile.TemporaryDirectory() as directory:
        told = pathlib.Path(directory) / "told"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (_JOBS, _ROOT))),
            "PYTHONPYCACHEPREFIX": str(_ENVIRONMENTS / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
            "BENCH_REDIS": lab.url,
            "BENCH_TOLD": str(told),
        }
        add = [python, "-c", peer.add.format(url=lab.url)]
        subprocess.run(add, env=environment, cwd=directory, check=True)
        command = [python, "-m", *(word.format(url=lab.url) for word in peer.command)]
        began = time.monotonic_ns()
        with (
            open(pathlib.Path(directory) / "log", "w+") as log,
            subprocess.Popen(
                command, env=environment, cwd=directory, stdout=log, stderr=log
            ) as process,
        ):
            try:
                eventually(told.exists, 60, every=0.01, what=lambda: f"{name}: {_read(log)}")
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
        return (int(told.read_text()) - began) / 1e9


def _read(log: typing.TextIO) -> str:
    log.seek(0)
    return log.read()


STARTUP: typing.Final = Scenario(
    "startup",
    "from the command to the first job, a worker of each",
    startup,
    7,
    1,
    (
        Figure("geventq", "s"),
        Figure("rq", "s"),
        Figure("celery", "s"),
        Figure("of rq", "x", None, 1.0, of="value", at_least=False),
        Figure("of celery", "x", None, 0.5, of="value", at_least=False),
    ),
    sides=("geventq",),
)
