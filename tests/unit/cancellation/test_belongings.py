"""What dies with a killed job beside its greenlets: threads, pools, child processes; what is
spared, and what holds a throw back (cancellation.md 2.9, 2.12).

Threads are greenlets only in a monkey-patched process: each scenario here plays in one of its own
and prints what it saw.
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import typing

import gevent
import gevent.subprocess
import pytest

from geventq import JobKilled, detach
from geventq.cancellation import whose
from tests.support.attempts import Run
from tests.support.programs import lives
from tests.support.waiting import eventually

PREAMBLE = """
from gevent import monkey
monkey.patch_all()
import concurrent.futures, functools, logging, multiprocessing.pool, os, sys, threading, time
import gevent
from tests.support.attempts import Run
from tests.support.waiting import eventually

log = []

def sleeper(name):
    try:
        gevent.sleep(60)
    except BaseException as error:
        log.append(f"{name}: {type(error).__name__}")
        raise

def turns():
    # of the hub, so many however slow the machine is
    for _ in range(40):
        gevent.sleep(0.001)

def killed(process):
    run = Run(process, hard=True).start()
    turns()
    assert run.ask()
    run.join()
    assert type(run.error).__name__ == "JobKilled", run.error
    turns()
    return run
"""


def played(script: str, path: pathlib.Path | None = None) -> None:
    """Run a scenario; it ends without a word on stderr."""
    paths = [str(path)] if path else []
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def installed(path: pathlib.Path, name: str, source: str) -> None:
    """A distribution of one module, installed under `path`."""
    place = path / "site-packages"
    meta = place / f"{name}-1.0.dist-info"
    meta.mkdir(parents=True)
    (place / f"{name}.py").write_text(textwrap.dedent(source))
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (meta / "RECORD").write_text(f"{name}.py,,\n")


JOBS = """
    import threading
    import gevent

    def beat(log):
        log.append("beat")
        threading.Timer(0.01, beat, (log,)).start()

    def process(log):
        beat(log)
        threading.Thread(target=gevent.sleep, args=(60,)).start()
        gevent.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["a folder", "an installed distribution", "a package of a system's packager"]
)
def test_what_the_jobs_code_starts_dies_whatever_its_target(
    tmp_path: pathlib.Path, place: str
) -> None:
    """2.12: a timer that renews itself, a thread whose target is a library's: who starts decides;
    job code that is installed is job code."""
    if place == "a folder":
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS))
        tmp = tmp_path
    elif place == "an installed distribution":
        installed(tmp_path, "jobs", JOBS)
        tmp = tmp_path / "site-packages"
    else:
        tmp = tmp_path / "dist-packages"
        (tmp / "jobs" / "deep").mkdir(parents=True)
        (tmp / "jobs" / "__init__.py").write_text("from jobs.deep.work import process\n")
        (tmp / "jobs" / "deep" / "work.py").write_text("from jobs.beats import process\n")
        (tmp / "jobs" / "beats.py").write_text(textwrap.dedent(JOBS))
    played(
        """
        import jobs
        from geventq.worker.processor import Routes
        Routes("jobs:process")
        before = threading.active_count()
        killed(lambda token: jobs.process(log))
        eventually(lambda: threading.active_count() == before)
        beats = len(log)
        turns()
        assert beats >= 1 and len(log) == beats, log
        """,
        tmp,
    )


def test_whose_code_a_processor_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.12: whichever way it is given: the code behind it is the job's."""
    source = """
        class Exporter:
            def run(self, job): ...
            def __call__(self, job): ...
            @classmethod
            def make(cls, job): ...
            @staticmethod
            def still(job): ...

        def plain(job): ...
    """
    given = {
        "m1": lambda module: module.plain,
        "m2": lambda module: module.Exporter(),
        "m3": lambda module: module.Exporter().run,
        "m4": lambda module: module.Exporter.make,
        "m5": lambda module: module.Exporter.still,
        "m6": lambda module: functools.partial(functools.partial(module.plain), fmt=1),
        "m7": lambda module: functools.wraps(module.plain)(lambda job: None),
        "m8": lambda module: functools.partial(module.Exporter()),
    }
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    for name, of in given.items():
        installed(tmp_path, name, source)
        path = str(tmp_path / "site-packages" / f"{name}.py")
        assert whose.is_library(path)
        whose.own(of(importlib.import_module(name)))
        assert not whose.is_library(path), name
    whose.own(print)
    whose.own(functools.reduce)
    assert whose.is_library(functools.__file__)


LIBRARY = """
    import concurrent.futures, threading
    import gevent

    pool = None

    def exporter(log):
        def run():
            while True:
                gevent.sleep(0.01)
                log.append("exported")
        threading.Thread(target=run, daemon=True).start()

    def shared():
        global pool
        if pool is None:
            pool = concurrent.futures.ThreadPoolExecutor(1)
        return pool
"""


def test_what_a_library_starts_lives(tmp_path: pathlib.Path) -> None:
    """2.12: a telemetry's exporter that the first job wakes up, a pool that a library makes at its
    first use, whoever's callable they run."""
    installed(tmp_path, "library", LIBRARY)
    played(
        """
        import library

        def process(token):
            library.exporter(log)
            library.shared().submit(int)
            gevent.sleep(60)

        killed(process)
        seen = len(log)
        eventually(lambda: len(log) > seen)
        assert library.shared().submit(int, "7").result(timeout=60) == 7
        """,
        tmp_path / "site-packages",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "instrumentation",
    [
        """
        def start(self, *args, **kwargs):
            return original(self, *args, **kwargs)
        """,
        """
        def start(*args):
            return original(*args)
        """,
        """
        def traced(wrapped, instance, args):
            return wrapped(*args)
        def start(self):
            return traced(functools.partial(original, self), self, ())
        """,
    ],
)
@pytest.mark.parametrize("place", ["installed", "the program's own"])
def test_an_instrumentation_that_stands_in_does_not_count(
    tmp_path: pathlib.Path, instrumentation: str, place: str
) -> None:
    """2.12: Sentry's and OpenTelemetry's functions stand between the job and `Thread.start`, and
    around `Thread.run`; so may one of the program's own, which makes nobody's threads the job's."""
    source = (
        "import functools, threading\n"
        "original, run = threading.Thread.start, threading.Thread.run\n"
        + textwrap.dedent(instrumentation)
        + "def traced_run(self):\n    return run(self)\n"
        + "threading.Thread.start, threading.Thread.run = start, traced_run\n"
    )
    if place == "installed":
        installed(tmp_path, "traces", source)
    else:
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "traces.py").write_text(source)
    played(
        """
        import traces

        def process(token):
            threading.Thread(target=sleeper, args=("thread",)).start()
            gevent.sleep(60)

        killed(process)
        assert log == ["thread: SystemExit"], log
        pool = concurrent.futures.ThreadPoolExecutor(1)
        killed(lambda token: (pool.submit(int), gevent.sleep(60)))
        assert pool.submit(int, "7").result(timeout=60) == 7
        """,
        tmp_path / "site-packages" if place == "installed" else tmp_path,
    )


def test_a_thread_killed_before_its_first_turn_leaves_nothing() -> None:
    """2.12: started in the turn of the kill, by the job or by a thread of its."""
    played(
        """
        def deep():
            threading.Thread(target=sleeper, args=("deep",)).start()

        def process(token):
            token.cancel()
            threading.Thread(target=deep).start()

        for _ in range(100):
            run = Run(process, hard=True).start()
            run.join()
        def beats(token):
            while True:
                threading.Thread(target=log.append, args=("ran",)).start()
        for turns in range(60):
            run = Run(beats, hard=True).start()
            for _ in range(turns):
                gevent.sleep(0)
            run.ask()
            run.join()
        eventually(lambda: not threading._limbo, what=lambda: threading._limbo)
        eventually(lambda: threading.active_count() == 1, what=threading.enumerate)
        """
    )


def test_a_kill_does_not_cut_the_start_of_an_executors_thread() -> None:
    """2.12: else the executor does not know its own thread, and waits for it at the exit."""
    played(
        """
        import geventq.cancellation.held
        held = []
        starts_for_others = geventq.cancellation.held._starts_for_others
        def noted(greenlet):
            found = starts_for_others(greenlet)
            held.append(found)
            return found
        geventq.cancellation.held._starts_for_others = noted

        for turns in range(1, 12):  # the kill arrives after so many turns of the hub
            pool = concurrent.futures.ThreadPoolExecutor(1, f"pool-{turns}-")
            run = Run(lambda token: (pool.submit(int), gevent.sleep(60)), hard=True)
            run.greenlet.start()
            for _ in range(turns):
                gevent.sleep(0)
            run.ask()
            run.join()
            threads = [one for one in threading.enumerate() if one.name.startswith("pool-")]
            assert set(threads) <= pool._threads, (turns, threads)
            assert pool.submit(int, "7").result(timeout=60) == 7
            pool.shutdown()
        assert any(held), "no kill arrived at the start of a thread: this shows nothing"
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "queue"),
    [
        ("concurrent.futures.ThreadPoolExecutor(1)", "pool.submit(call, n)"),
        ("concurrent.futures.ThreadPoolExecutor(1)", "pool.map(call, [n])"),
        ("multiprocessing.pool.ThreadPool(1)", "pool.apply_async(call, (n,))"),
        ("multiprocessing.pool.ThreadPool(1)", "pool.map_async(call, [n])"),
        ("multiprocessing.pool.ThreadPool(1)", "pool.imap(call, [n])"),
        ("multiprocessing.pool.ThreadPool(1)", "pool.imap_unordered(func=call, iterable=[n])"),
        ("multiprocessing.pool.ThreadPool(1)", "pool.starmap_async(call, [(n,)])"),
    ],
)
def test_calls_that_a_killed_job_queued_are_not_begun(make: str, queue: str) -> None:
    """2.12: in a pool made outside the running call goes to its end, those behind it are not
    begun, and the pool serves others; one made in the job stops with its running call."""
    played(
        f"""
        go = threading.Event()

        def call(n):
            log.append(f"begun {{n}}")
            try:
                go.wait(60)
            finally:
                log.append(f"ended {{n}}")

        def fill(pool):
            for n in range(3):
                {queue}
            gevent.sleep(60)

        pool = {make}
        killed(lambda token: fill(pool))
        assert log == ["begun 0"], log
        go.set()
        turns()
        assert log == ["begun 0", "ended 0"], log
        done = []
        getattr(pool, "submit", None) and pool.submit(done.append, 1)
        hasattr(pool, "submit") or pool.apply_async(done.append, (1,))
        eventually(lambda: done)

        go.clear()
        log.clear()
        before = threading.active_count()
        killed(lambda token: fill({make}))
        eventually(lambda: threading.active_count() == before, what=threading.enumerate)
        assert log == ["begun 0", "ended 0"], log
        pool.shutdown() if hasattr(pool, "submit") else pool.terminate()
        """
    )


def test_a_job_that_waits_for_its_own_pool_ends() -> None:
    """2.12: the `with` block of a killed job joins the pool's threads, which die in that turn."""
    played(
        """
        def process(token):
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                pool.submit(sleeper, "call").result()

        killed(process)
        assert log == ["call: SystemExit"], log
        """
    )


def test_gevents_own_executor_begins_no_call_of_a_killed_job() -> None:
    """2.12: its threads are native ones; what they have begun goes to its end."""
    played(
        """
        import gevent.threadpool
        native_sleep = monkey.get_original("time", "sleep")
        pool = gevent.threadpool.ThreadPoolExecutor(1)

        def process(token):
            for n in range(3):
                pool.submit(lambda: (log.append(1), native_sleep(2.0)))
            gevent.sleep(60)

        killed(process)
        assert pool.submit(int, "7").result(timeout=60) == 7
        assert len(log) == 1, log
        pool.shutdown()
        """
    )


SLOW = """
    import time
    time.sleep(0.3)
    VALUE = 42
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["the job", "a helper", "a thread", "run", "a callback"])
@pytest.mark.parametrize("where", ["in the module", "waiting for it"])
def test_an_import_is_not_cut(tmp_path: pathlib.Path, who: str, where: str) -> None:
    """2.9: whoever imports, or waits for another's import: a kill, the limit of a callback or of
    `run` comes when the module is whole."""
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    played(
        f"""
        import geventq.cancellation.callbacks
        geventq.cancellation.callbacks.LIMIT = 0.1
        logging.getLogger("geventq").addHandler(logging.NullHandler())
        who, waits = {who!r}, {where == "waiting for it"!r}

        def use():
            import slow
            log.append(slow.VALUE)
            gevent.sleep(60)

        def process(token):
            if who == "the job":
                use()
            elif who == "a helper":
                token.spawn(use)
            elif who == "a thread":
                threading.Thread(target=use).start()
            elif who == "run":
                token.run(use, timeout=0.05)
            else:
                token.on_cancel(use)
            gevent.sleep(60)

        if waits:
            def first():
                import slow
            gevent.spawn(first)
        run = Run(process, hard=True).start()
        gevent.sleep(0.02)
        run.ask()
        run.join()
        eventually(lambda: log == [42], what=lambda: log)
        import slow
        assert slow.VALUE == 42
        """,
        tmp_path,
    )


def test_an_import_holds_a_kill_back_only_for_so_long(tmp_path: pathlib.Path) -> None:
    """2.9: the usual cap, then the throw."""
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(3600)\n")
    played(
        """
        logging.getLogger("geventq").addHandler(logging.NullHandler())
        from geventq.cancellation import held
        held.CAP = 0.2

        def process(token):
            import endless

        killed(process)
        """,
        tmp_path,
    )


def test_each_import_has_its_own_cap(tmp_path: pathlib.Path) -> None:
    """2.9: what a greenlet imported some time ago takes nothing from its next import."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text("import sys\nsys.gates[__name__].wait()\n")
    played(
        """
        from geventq import clock
        from geventq.cancellation import held
        from tests.support.waiting import TurnedClock

        sys.gates = {"first": threading.Event(), "second": threading.Event()}

        def both():
            import first
            import second

        with clock.turned(TurnedClock()) as turned:
            greenlet = gevent.spawn(both)
            eventually(lambda: "first" in sys.modules)
            assert held.is_held(greenlet)  # looked at, and then no more
            turned.advance(31)
            sys.gates["first"].set()
            eventually(lambda: "second" in sys.modules)
            assert held.is_held(greenlet)
            turned.advance(4)
            assert held.is_held(greenlet)
            for _ in range(7):
                turned.advance(4)
                late = held.is_held(greenlet)
            assert not late
        sys.gates["second"].set()
        greenlet.join()
        """,
        tmp_path,
    )


def test_what_an_import_has_started_is_held_with_it(tmp_path: pathlib.Path) -> None:
    """2.9: a helper's import that waits for a thread of its module goes to its end."""
    (tmp_path / "starts.py").write_text(
        "import threading, time\n"
        "thread = threading.Thread(target=time.sleep, args=(0.3,))\n"
        "thread.start()\nthread.join()\nVALUE = 42\n"
    )
    played(
        """
        def use():
            import starts
            log.append(starts.VALUE)

        killed(lambda token: (gevent.spawn(use), gevent.sleep(60)))
        eventually(lambda: log == [42])
        """,
        tmp_path,
    )


# -- child processes, here without monkey-patching -------------------------------------------------


def _sleeping(pids: list[int], *command: str, **options: typing.Any) -> typing.Any:
    process = gevent.subprocess.Popen(command or ["sleep", "60"], **options)
    pids.append(process.pid)
    return process


def _killed(process: typing.Callable[[typing.Any], object], pids: list[int]) -> Run:
    run = Run(process, hard=True).start()
    eventually(lambda: pids)
    assert run.ask()
    return run.join()


@pytest.mark.parametrize("by", ["job", "child greenlet", "helper"])
def test_child_processes_end_with_the_job(by: str) -> None:
    """2.12: whichever of the job's greenlets started them, before the attempt is over."""
    pids: list[int] = []

    def process(token: typing.Any) -> None:
        if by == "job":
            _sleeping(pids).wait()
        elif by == "helper":
            token.spawn(_sleeping, pids)
        else:
            gevent.spawn(_sleeping, pids)
        gevent.sleep(60)

    run = _killed(process, pids)
    assert isinstance(run.error, JobKilled)
    assert not any(map(lives, pids))


@pytest.mark.parametrize("how", ["Popen", "run"])
def test_a_shells_own_children_end_with_it(how: str, tmp_path: pathlib.Path) -> None:
    """2.12: what a killed job's shell runs is not left to nobody, also where the job's own
    cleanup kills the shell first, as `subprocess.run` does."""
    fifo = tmp_path / "pids"
    script = f"sleep 60 & echo $! $$ > {fifo}; sleep 60; true"
    pids: list[int] = []

    def process(token: typing.Any) -> None:
        if how == "run":
            gevent.subprocess.run(script, shell=True, capture_output=True)
        else:
            gevent.subprocess.Popen(script, shell=True).wait()

    run = Run(process, hard=True).start()
    eventually(lambda: fifo.exists() and fifo.read_text())
    pids += map(int, fifo.read_text().split())
    eventually(lambda: len(_children_of(pids[1])) == 2)
    pids += _children_of(pids[1])
    run.ask()
    run.join()
    assert not any(map(lives, pids))


def _children_of(pid: int) -> list[int]:
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in children.read_text().split()] if children.exists() else []


@pytest.mark.slow
def test_a_child_that_ignores_sigterm_is_killed_two_seconds_later() -> None:
    """2.12: asked first, so that it may clean up; then killed."""
    pids: list[int] = []

    def process(token: typing.Any) -> None:
        child = gevent.subprocess.Popen(
            ["sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"],
            stdout=gevent.subprocess.PIPE,
        )
        child.stdout.readline()
        pids.append(child.pid)
        try:
            child.wait()
        finally:
            said.append(child)

    said: list[typing.Any] = []
    _killed(process, pids)
    assert not lives(pids[0])
    with said[0].stdout as output:
        assert output.readline() == b"asked\n"
    assert said[0].wait() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["start_new_session", "preexec_fn", "detach", "another job"])
def test_who_shall_outlive_the_job_does(how: str) -> None:
    """2.12: a session of its own, and `detach`, exempt; another job's are another job's."""
    pids: list[int] = []
    inside: list[int] = []
    other = Run(lambda token: (_sleeping(pids), token.wait())) if how == "another job" else None
    if other is not None:
        other.start()
        eventually(lambda: pids)

    def process(token: typing.Any) -> None:
        if how == "start_new_session":
            _sleeping(pids, start_new_session=True)
        elif how == "preexec_fn":
            _sleeping(pids, preexec_fn=os.setsid)
        elif how == "detach":
            detach(_sleeping, pids).join()
        inside.append(1)
        gevent.sleep(60)

    _killed(process, inside)
    gevent.sleep(0.05)
    assert [lives(pid) for pid in pids] == [True]
    os.kill(pids[0], signal.SIGKILL)
    if other is not None:
        other.ask()
        other.join()
    eventually(lambda: not lives(pids[0]))


def test_a_kill_while_a_child_is_being_started_leaves_none() -> None:
    """2.12: the kill lands at any turn of `Popen`'s making: between its fork and its return."""
    for turns in range(1, 13):
        marker = f"60.{os.getpid()}{turns:03}"

        def process(token: typing.Any, marker: str = marker) -> None:
            gevent.subprocess.Popen(["sleep", marker]).wait()

        run = Run(process, hard=True)
        run.greenlet.start()
        for _ in range(turns):
            gevent.sleep(0)
        run.ask()
        run.join()
        eventually(lambda marker=marker: not _running_with(marker))  # type: ignore[misc]


def _running_with(argument: str) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words:
            found.append(path.parent.name)
    return found


def test_a_job_that_ends_by_itself_leaves_its_children() -> None:
    """2.12: only a kill takes them along."""
    pids: list[int] = []
    Run(lambda token: _sleeping(pids)).start().join()
    gevent.sleep(0.05)
    assert lives(pids[0])
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: not lives(pids[0]))


CHILDREN = """
import gc, multiprocessing
from tests.support.programs import lives
from tests.support.waiting import at_best

def runs(child):
    return lives(child.pid)

def killed_with(count, process):
    # the children of a job that is killed when it has so many, before it takes a second throw
    def killed():
        run = Run(process, hard=True).start()
        eventually(lambda: len(multiprocessing.active_children()) >= count)
        gevent.sleep(0.1)
        children = multiprocessing.active_children()
        begun = time.monotonic()
        assert run.ask()
        run.join()
        assert type(run.error).__name__ == "JobKilled", run.error
        return time.monotonic() - begun, children

    return at_best(killed, lambda seen: seen[0] < 0.9)[1]
"""


def played_with_children(script: str) -> None:
    played(CHILDREN + textwrap.dedent(script))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_multiprocessing_has_started_ends_with_the_job(method: str) -> None:
    """2.12: a process by whichever method, before the attempt is over; a daemon too."""
    played_with_children(
        f"""
        start = multiprocessing.get_context("{method}").Process

        def process(token):
            for daemon in (False, True):
                start(target=time.sleep, args=(60,), daemon=daemon).start()
            gevent.sleep(60)

        assert not any(map(runs, killed_with(2, process)))
        """
    )


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("imported", ["before", "in the job"])
def test_a_process_pool_ends_with_the_job_that_made_it(imported: str) -> None:
    """2.12: its processes, what it has queued, and the `with` block that waits for them."""
    played_with_children(
        f"""
        if "{imported}" == "before":
            import concurrent.futures.process

        def process(token):
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                list(pool.map(time.sleep, [60] * 9))

        before = threading.active_count()
        for _ in range(3):
            assert not any(map(runs, killed_with(2, process)))
            eventually(lambda: not multiprocessing.active_children())
        eventually(lambda: not gc.collect() and threading.active_count() == before)
        """
    )


@pytest.mark.slow
@pytest.mark.slow
def test_a_process_pool_made_outside_outlives_the_job_that_began_it() -> None:
    """2.12: its processes start with the first call, whoever's that is, and serve others after."""
    played_with_children(
        """
        pool = concurrent.futures.ProcessPoolExecutor(2)
        children = killed_with(1, lambda token: pool.submit(time.sleep, 0.5).result())
        assert all(map(runs, children))
        assert pool.submit(int, "7").result(timeout=60) == 7
        pool.shutdown()
        """
    )


def test_a_process_that_was_closed_is_nobodys_any_more() -> None:
    """2.12: `Process.close` leaves an object that answers nothing."""
    played_with_children(
        """
        def process(token):
            closed = multiprocessing.Process(target=int)
            closed.start()
            closed.join()
            closed.close()
            for _ in range(2):
                multiprocessing.Process(target=time.sleep, args=(60,)).start()
            gevent.sleep(60)

        assert not any(map(runs, killed_with(2, process)))
        """
    )


@pytest.mark.slow
def test_children_that_have_ended_are_let_go() -> None:
    """2.12: a job may run thousands; only those that run are kept."""

    def process(token: typing.Any) -> int:
        for _ in range(90):
            gevent.subprocess.Popen(["true"]).wait()
        return len(run.attempt.belongings()._processes)

    run = Run(process)
    run.start().join(60)
    assert isinstance(run.result, int) and run.result < 80
