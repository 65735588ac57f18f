"""The traps that geventq/guides/legacy-code.md names, each shown; in a monkey-patched process.

What asyncio does in a job is shown in tests/unit/cancellation/test_coroutines.py.
"""

from __future__ import annotations

import collections.abc
import concurrent.futures
import contextlib
import fcntl
import gc
import importlib
import logging
import multiprocessing
import os
import pathlib
import signal
import smtplib
import sqlite3
import subprocess
import sys
import time
import types
import typing

import gevent
import gevent.server
import pytest

from geventq import CancellationToken
from geventq.cancellation import ladder
from tests.support.attempts import Run
from tests.support.databases import postgresql_dsn  # noqa: F401 - a fixture
from tests.support.guides import GUIDES, file_of, snippets
from tests.support.waiting import at_best, eventually

pytestmark = pytest.mark.patched

log = logging.getLogger(__name__)


def turns_during(call: collections.abc.Callable[[], object]) -> int:
    """How many turns another greenlet has in the middle of the call."""
    had = [0]

    def turn() -> None:
        while True:
            gevent.sleep(0.005)
            had[0] += 1

    other = gevent.spawn(turn)
    gevent.sleep(0.01)
    before = had[0]
    call()
    turns = had[0] - before
    other.kill()
    return turns


# -- what a kill looks like ------------------------------------------------------------------------


def test_except_greenletexit_is_not_reached_by_a_kill() -> None:
    """A kill is a `JobKilled`; `finally` and `except BaseException` see it."""
    steps: list[str] = []

    def process(token: CancellationToken) -> None:
        try:
            time.sleep(60)
        except gevent.GreenletExit:
            steps.append("except GreenletExit")
        except BaseException as error:
            steps.append(type(error).__name__)
            raise
        finally:
            steps.append("finally")

    run = Run(process).start()
    assert run.ask(hard=True)
    run.join()
    assert steps == ["JobKilled", "finally"]


def test_a_bare_except_in_a_loop_swallows_each_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four throws, then the job is stuck; a loop that gives up before that ends with it."""
    monkeypatch.setattr(ladder, "INTERVAL", 0.02)
    go = False

    def tries(times: float) -> collections.abc.Callable[[object], None]:
        def process(token: object) -> None:
            n = 0
            while n < times and not go:
                n += 1
                try:
                    time.sleep(60)
                except:  # noqa: E722
                    log.info("never mind")

        return process

    three = Run(tries(3)).start()
    assert three.ask(hard=True)
    assert three.join().told == []
    endless = Run(tries(float("inf"))).start()
    assert endless.ask(hard=True)
    eventually(lambda: endless.told == ["stuck"])
    go = True
    endless.greenlet.kill()


def test_a_connection_of_sqlite3_is_let_go_where_it_is_closed(tmp_path: pathlib.Path) -> None:
    """One that nobody closes stays until the collector comes by, with its transaction."""
    path = tmp_path / "old.sqlite3"

    def is_free() -> bool:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
            try:
                other.execute("begin immediate")
            except sqlite3.OperationalError:
                return False
            return True

    def closes(token: object) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("begin immediate")
            time.sleep(60)

    def leaves(token: object) -> None:
        connection = sqlite3.connect(path)
        connection.execute("begin immediate")
        time.sleep(60)

    for process in (closes, leaves):
        run = Run(process).start()
        eventually(lambda: not is_free())
        assert run.ask(hard=True)
        run.join()
        del run
        if process is leaves:
            gc.collect()
        assert is_free(), process.__name__


def test_cleanup_of_more_than_a_second_is_cut_outside_a_shield(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next throw lands in it."""
    monkeypatch.setattr(ladder, "INTERVAL", 0.05)

    def cleaned(shielded: bool) -> bool:
        done: list[bool] = []

        def process(token: CancellationToken) -> None:
            try:
                time.sleep(60)
            finally:
                if shielded:
                    with token.shield():
                        time.sleep(0.15)
                else:
                    time.sleep(0.15)
                done.append(True)

        run = Run(process).start()
        run.ask(hard=True)
        run.join()
        return bool(done)

    assert not cleaned(shielded=False)
    assert cleaned(shielded=True)


# -- what holds a kill up --------------------------------------------------------------------------


def test_an_import_inside_a_job_holds_a_kill_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.9: it would leave the module half-made; at module level nobody waits for it."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.3)\nmade = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[typing.Any] = []

    def process(token: CancellationToken) -> None:
        seen.append(importlib.import_module("slow_to_import"))
        time.sleep(60)

    run = Run(process).start()
    assert run.ask(hard=True)
    run.join()
    assert seen[0].made
    del sys.modules["slow_to_import"]


def test_with_popen_waits_for_a_process_in_a_session_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its `__exit__` waits, until the second throw; a process in the job's session is ended, and
    so is the wait."""
    monkeypatch.setattr(ladder, "INTERVAL", 1.0)
    started: list[subprocess.Popen[bytes]] = []

    def seconds(own_session: bool) -> float:
        def process(token: CancellationToken) -> None:
            with subprocess.Popen(["sleep", "60"], start_new_session=own_session) as one:
                started.append(one)
                time.sleep(60)

        run = Run(process).start()
        eventually(lambda: len(started) == 1)
        begun = time.perf_counter()
        run.ask(hard=True)
        run.join()
        one = started.pop()
        if own_session:
            assert one.poll() is None
            one.kill()
        one.wait()
        return time.perf_counter() - begun

    assert seconds(own_session=True) >= 1.0
    at_best(lambda: seconds(own_session=False), lambda took: took < 1.0)


def test_with_an_executor_waits_for_its_calls_unless_it_is_a_kill() -> None:
    """Its `__exit__` does: a `gevent.Timeout` takes as long as the calls do.  A pool that the
    job made stops with a kill."""

    def wait(seconds: float) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(time.sleep, seconds).result()

    begun = time.perf_counter()
    with gevent.Timeout(0.05, False):
        wait(0.3)
    assert time.perf_counter() - begun >= 0.3
    run = Run(lambda token: wait(60)).start()
    gevent.sleep(0.02)
    assert run.ask(hard=True)
    run.join(10)


def test_with_smtp_waits_for_the_answer_to_its_goodbye() -> None:
    """Of a server that does not answer: only the second throw ends that."""
    heard: list[bytes] = []

    def serve(connection: typing.Any, address: object) -> None:
        with connection, connection.makefile("rwb", buffering=0) as talk:
            talk.write(b"220 here\r\n")
            heard.extend(talk)

    server = gevent.server.StreamServer(("127.0.0.1", 0), serve)
    server.start()

    def process(token: CancellationToken) -> None:
        with smtplib.SMTP("127.0.0.1", server.server_port) as mail:
            mail.docmd("DATA")

    run = Run(process).start()
    eventually(lambda: heard)
    begun = time.perf_counter()
    assert run.ask(hard=True)
    run.join(10)
    assert time.perf_counter() - begun >= 0.9
    server.stop()
    assert [line.upper() for line in heard] == [b"DATA\r\n", b"QUIT\r\n"]


# -- what stops the whole process ------------------------------------------------------------------


@pytest.mark.slow
def test_multiprocessing_with_spawn_stops_the_hub(tmp_path: pathlib.Path) -> None:
    """Its `join()` waits in the system's own `waitpid`; with a time-out, it waits in the hub."""
    script = tmp_path / "script.py"
    script.write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "import multiprocessing, time\n"
        "from tests.redis.test_legacy_traps import turns_during\n"
        "def run(timeout):\n"
        "    process = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(1,))\n"
        "    process.start()\n"
        "    return turns_during(lambda: process.join(timeout))\n"
        "if __name__ == '__main__':\n"
        "    print(run(None) < 5, run(60) > 20)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.slow
def test_a_pool_of_multiprocessing_stops_the_hub(tmp_path: pathlib.Path) -> None:
    """Its own threads are greenlets, and wait for results in the system's `read`."""
    script, said = tmp_path / "script.py", tmp_path / "said"
    script.write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "import faulthandler, multiprocessing, gevent\n"
        "if __name__ == '__main__':\n"
        "    faulthandler.dump_traceback_later(2, exit=True)\n"
        "    multiprocessing.get_context('fork').Pool(3)\n"
        "    gevent.sleep(0.5)\n"
        "    print('it goes on', flush=True)\n"
    )
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, script], stdout=file, stderr=file, start_new_session=True
        )
    try:
        assert process.wait(60) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its children are still there
    assert "in _handle_results\n" in said.read_text()
    assert "it goes on" not in said.read_text()


def test_an_empty_pipe_of_multiprocessing_raises() -> None:
    """Its two ends are sockets that do not block, which `recv` knows nothing of."""
    one, other = multiprocessing.Pipe()
    with one, other, pytest.raises(BlockingIOError):
        one.recv()


def test_os_system_file_locks_and_pipes_by_name_stop_the_hub(tmp_path: pathlib.Path) -> None:
    """What the system alone waits in; `subprocess`, a loop and the hub's threads do not."""
    held, pipe = tmp_path / "lock", tmp_path / "pipe"
    held.touch()
    os.mkfifo(pipe)

    @contextlib.contextmanager
    def locked() -> collections.abc.Iterator[typing.IO[str]]:
        command = ["flock", str(held), "sh", "-c", "echo got; sleep 0.3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            with held.open() as file:
                yield file

    def lock() -> None:
        with locked() as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def try_again() -> None:
        with locked() as file:
            while True:
                try:
                    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.01)

    def read() -> None:
        with subprocess.Popen(["sh", "-c", f"sleep 0.3; echo > {pipe}"]):
            pipe.read_text()

    def read_in_thread() -> None:
        with subprocess.Popen(["sh", "-c", f"sleep 0.3; echo > {pipe}"]):
            gevent.get_hub().threadpool.apply(pipe.read_text)

    for blocking, instead in (
        (lambda: os.system("sleep 0.3"), lambda: subprocess.call("sleep 0.3", shell=True)),
        (lock, try_again),
        (read, read_in_thread),
    ):
        at_best(lambda call=blocking: turns_during(call), lambda turns: turns < 15)
        at_best(lambda call=instead: turns_during(call), lambda turns: turns > 20)


def test_an_alarm_hits_whoever_runs() -> None:
    """The handler runs in the greenlet that has its turn, and what it raises ends that one."""
    hit: list[str] = []

    class TooLongError(Exception):
        pass

    def too_long(number: int, frame: types.FrameType | None) -> None:
        raise TooLongError

    def asks() -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            time.sleep(0.4)
        except TooLongError:
            hit.append("who set it")

    def computes() -> None:
        try:
            while True:
                sum(range(1000))
                gevent.sleep(0)
        except TooLongError:
            hit.append("a bystander")

    before = signal.signal(signal.SIGALRM, too_long)
    bystander = gevent.spawn(computes)
    gevent.spawn(asks).join()
    bystander.kill()
    signal.signal(signal.SIGALRM, before)
    assert hit == ["a bystander"]


# -- psycopg 3's pool ------------------------------------------------------------------------------


def _billing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> typing.Any:
    """The guide's ``billing.py``."""
    monkeypatch.setenv("BILLING_DSN", dsn)
    page = (GUIDES / "legacy-code.md").read_text()
    (text,) = [one for one in snippets(page, "python") if file_of(one) == "billing.py"]
    module = types.ModuleType("billing")
    exec(text, vars(module))
    return module


@pytest.mark.database
def test_a_kill_in_psycopgs_pool_loses_a_connection_unless_it_is_shielded(
    postgresql_dsn: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who was killed as it waited for a connection is handed the next one all the same, which is
    never seen again.  The guide's way loses none."""
    psycopg_pool = pytest.importorskip("psycopg_pool")
    billing = _billing(postgresql_dsn, monkeypatch)
    billing.pool.open(wait=True)
    first = billing.pool.getconn()

    def killed(process: collections.abc.Callable[[CancellationToken], object]) -> Run:
        run = Run(process).start()
        eventually(lambda: billing.pool.get_stats().get("requests_waiting"))
        assert run.ask(hard=True)
        return run

    def plainly(token: CancellationToken) -> None:
        with billing.pool.connection() as connection:
            connection.execute("select 1")

    run = killed(lambda token: billing.total(None, token))
    billing.pool.putconn(first)  # which the shield waits for
    run.join()
    first = billing.pool.getconn(timeout=10)
    killed(plainly).join()
    billing.pool.putconn(first)
    with pytest.raises(psycopg_pool.PoolTimeout):
        billing.pool.getconn(timeout=0.2)
    first.close()
    billing.pool.close()


@pytest.mark.database
def test_the_guides_way_with_psycopgs_pool_ends_the_query(
    postgresql_dsn: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Softly and hard, again and again, and the one connection there is comes back each time."""
    pytest.importorskip("psycopg_pool")
    billing = _billing(postgresql_dsn, monkeypatch)
    billing.pool.open(wait=True)
    for turn in range(20):
        run = Run(lambda token: billing.total(None, token)).start()
        gevent.sleep(turn * 0.001)
        run.ask(hard=turn % 2 == 0)
        run.join()
        assert run.result is None
        connection = billing.pool.getconn(timeout=10)
        assert connection.execute("select 7").fetchone() == (7,)
        connection.rollback()
        billing.pool.putconn(connection)
    billing.pool.close()
