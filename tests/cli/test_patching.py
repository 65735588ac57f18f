"""A worker tells once, at its start, what stops its hub; and is quiet where nothing does.

In real processes: what is imported before what is the whole point.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import typing

import pytest

from tests.support.programs import Program, Programs

PATCH: typing.Final = "from gevent import monkey; monkey.patch_all()\n"
WORKERS: typing.Final = """
import os, sys
from geventq import Worker

def make():
    return Worker("q", process, prefix=os.environ["GEVENTQ_PREFIX"])

for _ in range(2):
    with make():
        pass
print(*sorted({"requests", "psycopg2", "psycopg", "MySQLdb", "grpc", "ssl"} & set(sys.modules)))
"""
QUIET: typing.Final = "def process(job): pass\n"
METHOD: typing.Final = """
import time
class Task:
    def __call__(self, job): self.go()
    def go(self): time.sleep(1)
process = lambda job: Task()(job)
"""
PARTLY: typing.Final = """
import socket, time
from gevent import monkey; monkey.patch_time()
def process(job): socket.create_connection(("h", 1)); time.sleep(1)
"""


def ended(programs: Programs, text: str) -> Program:
    programs.write("script.py", text)
    program = programs.start("script.py")
    assert program.ends() == 0, program.told()
    return program


def lines_of(programs: Programs, text: str) -> list[str]:
    """What the program logs."""
    return ended(programs, text).err.splitlines()


@pytest.mark.parametrize(
    "text",
    [
        QUIET + WORKERS,
        PATCH + QUIET + WORKERS,
        PATCH + "import requests, smtplib, subprocess, time, threading, queue\n" + QUIET + WORKERS,
        "import time, threading, subprocess, queue, socket, ssl\n" + QUIET + WORKERS,
        "import gevent, time\ndef process(job): gevent.sleep(0); time.time()\n" + WORKERS,
        PATCH + "from time import sleep\ndef process(job): sleep(1)\n" + WORKERS,
        "import threading, time\nimport requests_like\n" + PATCH + QUIET + WORKERS,
        "import time\ndef process(job): pass\ndef main(): time.sleep(0)\nmain()\n" + WORKERS,
        "import requests\nfrom geventq import Queue\nQueue('q').close()\n",
    ],
    ids=[
        *("not patched", "patched", "patched, with all kinds of imports"),
        *("not patched, with imports that nobody uses", "not patched, by gevent's own means"),
        *("patched, and then imported", "imported before, and patched through the module"),
        *("waiting outside of jobs", "a queue alone"),
    ],
)
def test_nothing_is_told_where_nothing_blocks(programs: Programs, text: str) -> None:
    """No false alarm: neither for a program by gevent's own means, nor for a producer."""
    programs.write("requests_like.py", "import time, socket\ndef get(): time.sleep(1)\n")
    assert lines_of(programs, text) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("import requests\n" + QUIET, "requests, urllib3, http.client"),
        ("import pymysql, smtplib\n" + QUIET, "pymysql, smtplib"),
        ("import psycopg2\n" + QUIET, "psycopg2"),
        ("import time\ndef process(job): time.sleep(1)\n", "time.sleep"),
        ("from time import sleep\nprocess = lambda job: sleep(1)\n", "time.sleep"),
        ("import time\ndef process(job): help(job)\ndef help(job): time.sleep(1)\n", "time.sleep"),
        ("import subprocess\ndef process(job): subprocess.run('x')\n", "subprocess.run"),
        ("def process(job):\n    import time\n    time.sleep(1)\n", "time.sleep"),
        ("def process(job):\n    from queue import Queue\n    Queue().get()\n", "queue.Queue"),
        (METHOD, "time.sleep"),
        (PARTLY, "socket.create_connection"),
    ],
)
def test_a_process_that_is_not_patched_is_told_what_will_block(
    programs: Programs, text: str, named: str
) -> None:
    """Once, by the first worker, by the names of what is imported and blocks."""
    (line,) = lines_of(programs, text + WORKERS)
    said = re.match(r"this process is not monkey-patched \((.*)\): while it waits in (.*)", line)
    assert said is not None, line
    assert said[1].startswith("socket, ssl, select, ")
    assert said[2].startswith(f"{named} no job has a turn")


def test_a_process_that_is_not_patched_and_waits_by_gevents_means_is_told_quietly(
    programs: Programs,
) -> None:
    """Once, at level INFO, by the names of the modules that are not patched."""
    logs = "import logging; logging.basicConfig(format='%(levelname)s %(message)s', level='INFO')\n"
    (line,) = lines_of(programs, logs + QUIET + WORKERS)
    assert line.startswith("INFO this process is not monkey-patched (socket, ssl, select, time, ")
    assert lines_of(programs, logs + PATCH + QUIET + WORKERS) == []


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ("from time import sleep\n", "__main__ (time.sleep)"),
        ("import old\n", "old (subprocess.Popen), old (threading.Lock)"),
    ],
)
def test_a_process_that_is_patched_too_late_is_told_what_holds_the_originals(
    programs: Programs, before: str, named: str
) -> None:
    """By the module, and what it took from the standard library before the patch."""
    programs.write("old.py", "from subprocess import Popen\nfrom threading import Lock\n")
    (line,) = lines_of(programs, before + PATCH + QUIET + WORKERS)
    assert line.startswith(f"monkey-patching came too late for {named}: while it waits"), line


def test_requests_that_was_imported_before_the_patch_is_named(programs: Programs) -> None:
    """urllib3 took `SSLContext`; gevent warns of it as well, in its own words."""
    lines = lines_of(programs, "import requests\n" + PATCH + QUIET + WORKERS)
    (line,) = [line for line in lines if "geventq" in line]
    assert "came too late for urllib3 (ssl.SSLContext): " in line


@pytest.mark.parametrize("library", ["profiler", "sentry_sdk"])
def test_a_library_that_asks_gevent_for_the_originals_is_not_told(
    programs: Programs, library: str
) -> None:
    """For a native thread of its own, as Sentry's profilers do."""
    if library != "profiler" and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    programs.write(
        "profiler.py",
        "from gevent.monkey import get_original\nsleep = get_original('time', 'sleep')\n",
    )
    assert lines_of(programs, f"{PATCH}import {library}\n" + QUIET + WORKERS) == []


C_DRIVERS: typing.Final = {
    "psycopg2": (PATCH + "import psycopg2\n", "geventq.postgresql.wait_in_hub()"),
    "psycopg": ("import psycopg\n" + PATCH, "imported before monkey-patching"),
    "MySQLdb": (PATCH + "import MySQLdb\n", "use PyMySQL"),
    "grpc": (PATCH + "import grpc\n", "grpc.experimental.gevent.init_gevent()"),
}


@pytest.mark.parametrize("driver", C_DRIVERS)
def test_a_driver_in_c_that_stops_the_hub_is_told_once(programs: Programs, driver: str) -> None:
    """With what helps."""
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    before, advice = C_DRIVERS[driver]
    lines = lines_of(programs, before + QUIET + WORKERS)
    (line,) = [line for line in lines if line.startswith(f"{driver}: each call stops")]
    assert advice in line


@pytest.mark.parametrize(
    "before",
    [
        "import psycopg2\nfrom geventq import postgresql\npostgresql.wait_in_hub()\n",
        "import psycopg\n",
        "import pymysql\npymysql.install_as_MySQLdb()\n",
        "import grpc, grpc.experimental.gevent\ngrpc.experimental.gevent.init_gevent()\n",
    ],
    ids=["psycopg2", "psycopg", "PyMySQL as MySQLdb", "grpc"],
)
def test_a_driver_that_waits_in_the_hub_is_not_told(programs: Programs, before: str) -> None:
    module = before.split()[1].strip(",")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    assert lines_of(programs, PATCH + before + QUIET + WORKERS) == []


def test_proxies_and_lazy_modules_are_left_as_they_are(programs: Programs) -> None:
    """A worker that starts outside of any context finds Flask's `current_app` in the code."""
    programs.write(
        "lazy.py",
        "def __getattr__(name):\n"
        "    raise AttributeError if name == '__path__' else SystemExit('was asked for ' + name)\n"
        "class Proxy:\n"
        "    def __getattribute__(self, name): raise SystemExit('was asked for ' + name)\n"
        "proxy = Proxy()\n",
    )
    uses = "import lazy\nfrom lazy import proxy\ndef process(job): return proxy.x, lazy.sleep\n"
    for before in ("", PATCH):
        assert lines_of(programs, before + uses + WORKERS) == []


def test_nothing_is_imported_to_find_out(programs: Programs) -> None:
    program = ended(programs, PATCH + QUIET + WORKERS)
    assert program.out == "ssl\n"  # gevent's patch itself


def test_the_worker_command_has_nothing_to_tell(programs: Programs) -> None:
    """It patches before it imports the user's module, and lets psycopg2 wait in the hub."""
    programs.write(
        "tasks.py",
        "from time import sleep\nimport requests, psycopg2, pymysql\n"
        "def process(job): sleep(0.01)\n",
    )
    programs.write(
        "add.py", "from geventq import Queue\nQueue('q').add('n').wait_until_finished(30)\n"
    )
    worker = programs.geventq("worker", "tasks:process", "-q", "q", "--json")
    worker.until_event("ready")
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0
    assert "patch" not in worker.err
    assert "each call stops" not in worker.err
