"""What jobs beside it cost a web application: real gunicorn with one gevent worker, the
application of ``tests/apps/web``, and requests at a steady pace from another process.

Fifty jobs wait for something, and each tells its progress twice a second.  The same process answers
with and without them, in turns.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import signal
import socket
import tempfile
import typing

from geventq import JobSpec, Queue
from tests.bench.figures import Figure, Metrics, Scenario
from tests.bench.lab import Lab, Side, percentile
from tests.interop.child import Child, python
from tests.support.programs import Programs
from tests.support.waiting import eventually

__all__ = ["WEB"]

_JOBS: typing.Final = 50
_PAUSE: typing.Final = 0.5  # seconds between two steps of a job
_RATE: typing.Final = 100  # requests a second
_TURNS: typing.Final = 5  # with and without, one after the other

_CONFIGURATION: typing.Final = """
from geventq.integrations.gunicorn import worker_hooks

worker_class = "gevent"
bind = "127.0.0.1:{port}"
post_worker_init, worker_exit = worker_hooks("tests.apps.web.jobs:make_worker")
"""


def web(lab: Lab, side: Side, requests: int) -> Metrics:
    """The 99th percentiles, each the median of some turns."""
    lab.client.flushall()
    quiet: list[list[float]] = []
    busy: list[list[float]] = []
    with _site(lab) as load, Queue("exports", lab.url) as queue:
        shown = queue.add("export", {"rows": 0, "pause": 0})
        order = {"paths": ["/", f"/exports/{shown.id}"], "rate": _RATE}
        load.ask(order | {"requests": 50}, timeout=60)  # everything is loaded
        for _ in range(_TURNS):
            quiet.append(load.ask(order | {"requests": requests}, timeout=120)["milliseconds"])
            queue.add_bulk([JobSpec("export", {"rows": 100_000, "pause": _PAUSE})] * _JOBS)
            eventually(lambda: queue.get_job_count("active") == _JOBS)
            busy.append(load.ask(order | {"requests": requests}, timeout=120)["milliseconds"])
            queue.cancel_jobs(state="active", reason="measured", wait=20)
    found = {
        "p50 idle": _median_of(quiet, 0.5),
        "p50": _median_of(busy, 0.5),
        "p99 idle": _median_of(quiet, 0.99),
        "p99": _median_of(busy, 0.99),
    }
    return found | {"p99 of idle": found["p99"] / found["p99 idle"]}


def _median_of(turns: list[list[float]], share: float) -> float:
    return percentile([percentile(one, share) for one in turns], 0.5)


@contextlib.contextmanager
def _site(lab: Lab) -> collections.abc.Iterator[Child]:
    """gunicorn, and the process that asks it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        programs = Programs(pathlib.Path(directory))
        programs.write("gunicorn.conf.py", _CONFIGURATION.format(port=port))
        program = programs.start(
            *("-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.apps.web.app:app"),
            APP_REDIS=lab.url,
            APP_PREFIX="bull",
        )
        try:
            eventually(lambda: _listens(port), 40, every=0.05, what=program.told)
            with python("tests.bench.gq_load", port=port) as load:
                load.hear()
                yield load
            program.signal(signal.SIGTERM)
            program.ends()
        finally:
            programs.end()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


WEB: typing.Final = Scenario(
    "web",
    f"HTTP under gunicorn, {_JOBS} jobs in the same process or none",
    web,
    1_000,
    20,
    (
        Figure("p50 idle", "ms"),
        Figure("p50", "ms"),
        Figure("p99 idle", "ms"),
        Figure("p99", "ms"),
        Figure("p99 of idle", "x", None, 1.5, of="value", at_least=False),
    ),
    sides=("geventq",),
)
