"""How the process of ``geventq worker`` ends (cancellation.md 7.2): status 0 whenever a signal
comes, and within 2 s of `closed` whatever its jobs have left behind."""

from __future__ import annotations

import signal
import time

import pytest

from geventq import JobSpec, Queue
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

WORKER = ("worker", "tasks:process", "-q", "q", "--json")

# -- signals -------------------------------------------------------------------------------------

# Runs `main` as the command does, and sends a SIGTERM at the N-th import after its first line.
AT_AN_IMPORT = """
import os, signal, sys
from geventq import cli

class Finder:
    left = int(sys.argv.pop(1))

    def find_spec(self, *names):
        Finder.left -= 1
        if Finder.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
cli.ending.leave_on_signals()
sys.exit(cli.main())
"""


def _all_end_with_0(started: list[Program]) -> None:
    for program in started:
        assert program.ends(90) == 0, program.told()
        assert "Traceback" not in program.err
        assert program.err == ""


def test_a_signal_at_any_import_of_the_start(programs: Programs) -> None:
    """7.2: from the first line of `main` on, in the midst of geventq's imports and of
    gevent's; and one that never comes."""
    programs.write("start.py", AT_AN_IMPORT)
    points = [*range(1, 30, 7), *range(40, 220, 30)]
    started = [programs.start("start.py", str(point), *WORKER) for point in points]
    _all_end_with_0(started)
    assert not any(program.out for program in started[:4])
    late = programs.start("start.py", "100000", *WORKER)
    late.until_event("ready")
    late.signal(signal.SIGTERM)
    _all_end_with_0([late])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
            "except BaseException:\n    pass\ntime.sleep(60)\n",
            id="where everything is caught",
        ),
        pytest.param(
            "class Late:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        time.sleep(60)\nLate()\ntime.sleep(60)\n",
            id="in a destructor",
        ),
        pytest.param(
            "import gevent\n"
            "hub = gevent.get_hub()\n"
            "hub.loop.run_callback(os.kill, os.getpid(), signal.SIGTERM)\ngevent.sleep(60)\n",
            id="in the hub",
        ),
        pytest.param(
            "import gevent\ngevent.spawn(os.kill, os.getpid(), signal.SIGTERM).join()\n"
            "gevent.sleep(60)\n",
            id="in a greenlet",
        ),
        pytest.param(
            "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
            "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n",
            id="with a thread that lives on",
        ),
    ],
)
@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one", "two processes"])
def test_a_signal_while_the_users_module_is_imported(
    programs: Programs, text: str, more: tuple[str, ...]
) -> None:
    """7.2: status 0, at once, and nothing on standard error, wherever the signal hits.  In a
    worker process it ends that one; the parent is asked too."""
    programs.write("slow.py", f"import os, signal, time\n{text}")
    program = programs.geventq("worker", "slow:f", "-q", "q", *more)
    if more:
        eventually(lambda: "ended with status 0" in program.err)
        program.signal(signal.SIGTERM)
        assert program.ends() == 0
        assert "Traceback" not in program.err
    else:
        _all_end_with_0([program])


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one", "two processes"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_two_signals_one_soon_after_the_other(
    programs: Programs, queue: Queue, busy: bool, more: tuple[str, ...]
) -> None:
    """7.2: the second one meets a worker that closes, has closed, or a process that is about to
    end."""
    gaps = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
    for gap in gaps:
        program = programs.geventq(*WORKER, "--close-timeout", "0.02", *more)
        program.until_event("ready", 2 if more else 1)
        if busy:
            queue.add("polite")
            program.until_event("active")
        program.signal(signal.SIGTERM)
        time.sleep(gap)
        if program.is_running:
            program.signal(signal.SIGTERM)
        _all_end_with_0([program])


def test_a_signal_to_a_process_that_is_about_to_end(programs: Programs) -> None:
    """7.2: at `closed`, as the handlers change, while threads are waited for, and by an exit
    function: it is ignored."""
    programs.write(
        "late.py",
        """
import atexit, os, signal, threading, time
from geventq import Worker
from geventq import signals

def again(what):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with open("ended", "a") as file:
        file.write(what + " ")

restore = signals._restore
def restored(**how):
    again("before")
    restore(**how)
    again("after")
signals._restore = restored
atexit.register(again, "atexit")
threading._register_atexit(again, "threads")
init = Worker.__init__
def made(self, *args, **options):
    init(self, *args, **options)
    self.on("closed", lambda: again("closed"))
Worker.__init__ = made

def process(job): ...
""",
    )
    program = programs.geventq("worker", "late:process", "-q", "q", "--json")
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    _all_end_with_0([program])
    heard = (programs.directory / "ended").read_text().split()
    assert heard == ["closed", "before", "after", "threads", "atexit"]


# -- stuck jobs ----------------------------------------------------------------------------------

STUCK = """
import gevent

def process(job):
    while True:
        try:
            gevent.sleep(60)
        except BaseException:
            pass
"""
SHORT = ("--cancel-mode", "hard", "--job-timeout", "0.1", "--exit-when-stuck")


def test_a_worker_without_a_slot_ends_with_1(programs: Programs, queue: Queue) -> None:
    """2.10: with `exit_when_stuck` its supervisor gets the process back, and says why."""
    programs.write("tasks.py", STUCK)
    program = programs.geventq(*WORKER, *SHORT)
    program.until_event("ready")
    queue.add_bulk([JobSpec("stuck")] * 5)
    program.until_event("no_slot")
    assert program.ends(60) == 1
    assert program.events("closed")
    assert len(program.events("stuck")) == 2  # its own slot, and the one in its place


def test_a_process_without_a_slot_is_replaced(programs: Programs, queue: Queue) -> None:
    """2.10: by the parent of several; the other one works on."""
    programs.write("tasks.py", STUCK)
    program = programs.geventq(*WORKER, *SHORT, "--processes", "2")
    program.until_event("ready", 2)
    queue.add_bulk([JobSpec("stuck")] * 2)
    program.until_event("active", 2)
    queue.add_bulk([JobSpec("stuck")] * 4)
    program.until_event("no_slot")
    eventually(lambda: "ended with status 1; another one starts" in program.err, timeout=60)
    program.until_event("ready", 3)


# -- within 2 s of `closed` ----------------------------------------------------------------------

LEFT = {
    "a call of an executor": """
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(4)
def leave():
    executor.submit(time.sleep, 60)
""",
    "a thread that is no daemon": """
import geventq
def leave():
    geventq.detach(lambda: threading.Thread(target=time.sleep, args=(60,)).start()).join()
""",
    "a thread started at import": """
threading.Thread(target=time.sleep, args=(60,)).start()
def leave(): ...
""",
    "a call in the hub's thread pool": """
sleep = monkey.get_original("time", "sleep")
def leave():
    gevent.get_hub().threadpool.spawn(sleep, 60)
""",
    "a native thread": """
start = monkey.get_original("_thread", "start_new_thread")
sleep = monkey.get_original("time", "sleep")
def leave():
    start(sleep, (60,))
""",
    "a greenlet": """
import geventq
def leave():
    geventq.detach(gevent.sleep, 60)
""",
    "a greenlet that holds the hub": """
import geventq
sleep = monkey.get_original("time", "sleep")
def hold():
    import atexit
    threading._register_atexit(sleep, 60)  # in the main thread, which hears of nothing then
def leave():
    hold()
""",
    "a process of multiprocessing": """
import multiprocessing
import geventq
def leave():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(8,))
    geventq.detach(child.start).join()
    assert child.is_alive()
""",
    "a process that multiprocessing has spawned": """
import multiprocessing
import geventq
def leave():
    child = multiprocessing.get_context("spawn").Process(target=os.system, args=("sleep 8",))
    geventq.detach(child.start).join()
    assert child.is_alive()
""",
    "an exit function that waits": """
def leave():
    atexit.register(gevent.sleep, 60)
""",
    "exit functions that wait": """
def leave():
    for _ in range(2):
        atexit.register(gevent.sleep, 60)
""",
    "an exit function that raises": """
def fail():
    raise SystemExit(5)
def leave():
    atexit.register(fail)
""",
}
MODULE = """
import atexit, os, threading, time
import gevent
from gevent import monkey

def flush():
    with open("flushed", "a") as file:
        file.write(f"{os.getpid()} ")

atexit.register(flush)
%s
def process(job):
    leave()
"""


@pytest.mark.parametrize("left", LEFT)
def test_what_a_job_has_left_does_not_keep_the_process(
    programs: Programs, queue: Queue, left: str
) -> None:
    """7.2: exit functions run all the same (Sentry sends its last events there), once."""
    programs.write("tasks.py", MODULE % LEFT[left])
    program = programs.geventq(*WORKER)
    program.until_event("ready")
    queue.add("leaves")
    program.until_event("completed")
    program.signal(signal.SIGTERM)
    program.until_event("closed")
    closed = time.monotonic()
    assert program.ends() == 0, program.told()
    assert time.monotonic() - closed < 20  # of 60
    flushed = (programs.directory / "flushed").read_text().split()
    assert flushed.count(str(program.pid)) == 1


def test_an_exit_function_that_holds_the_main_thread_is_cut(
    programs: Programs, queue: Queue
) -> None:
    """7.2: nobody can throw into a call of C; native threads end the process."""
    text = "sleep = monkey.get_original('time', 'sleep')\natexit.register(sleep, 60)\n"
    programs.write("tasks.py", MODULE % (text + "def leave(): ..."))
    program = programs.geventq(*WORKER)
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    program.until_event("closed")
    closed = time.monotonic()
    assert program.ends() == 0
    assert time.monotonic() - closed < 20  # of 60


def test_a_thread_that_ends_soon_is_waited_for(programs: Programs, queue: Queue) -> None:
    """As Python waits for threads that are no daemons, but not for ever."""
    text = """
def late():
    time.sleep(0.3)
    open("late", "w").close()
def leave():
    threading.Thread(target=late).start()
threading.Thread(target=late).start()
"""
    programs.write("tasks.py", MODULE % text)
    program = programs.geventq(*WORKER)
    program.until_event("ready")
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert (programs.directory / "late").exists()
    assert (programs.directory / "flushed").exists()


def test_a_worker_that_cannot_start_ends_too(programs: Programs) -> None:
    """Its module has started a thread, and Redis is not there."""
    programs.write("tasks.py", MODULE % (LEFT["a thread started at import"]))
    program = programs.geventq(*WORKER, "--redis", "redis://127.0.0.1:1")
    begun = time.monotonic()
    assert program.ends() == 3
    assert time.monotonic() - begun < 30
    assert (programs.directory / "flushed").exists()


def test_more_than_one_process_ends_so(programs: Programs, queue: Queue) -> None:
    """7.2: each child, and the parent after them."""
    programs.write("tasks.py", MODULE % LEFT["a call of an executor"])
    program = programs.geventq(*WORKER, "--processes", "2")
    program.until_event("ready", 2)
    for _ in range(10):
        queue.add("leaves")
    program.until_event("completed", 10)
    program.signal(signal.SIGTERM)
    program.until_event("closed", 2)
    closed = time.monotonic()
    assert program.ends() == 0
    assert time.monotonic() - closed < 20  # of 60
    pids = {str(one["pid"]) for one in program.events("ready")}
    assert set((programs.directory / "flushed").read_text().split()) == pids
