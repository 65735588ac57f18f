"""What dies with a killed job, and what does not (cancellation.md 2.12)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import typing

import gevent
import pytest

from geventq import JobKilled, detach
from geventq.cancellation.scope import callbacks_at_work
from tests.support.attempts import Run
from tests.support.waiting import eventually


class Sleeper:
    """Sleeps until something is thrown, and notes what."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __call__(self) -> None:
        try:
            gevent.sleep(60)
        except BaseException as error:
            self.log.append(f"{self.name}: {type(error).__name__}")
            raise


def test_children_and_grandchildren_die_in_the_same_turn_the_job_first() -> None:
    """2.12: a grandchild whose parent has ended is found too; the job gets `JobKilled` first."""
    log: list[str] = []

    def parent() -> None:
        gevent.spawn(Sleeper(log, "grandchild"))

    def process(token: typing.Any) -> None:
        gevent.spawn(parent)
        gevent.spawn(Sleeper(log, "child"))
        Sleeper(log, "job")()

    run = Run(process, hard=True).start()
    gevent.sleep(0.01)
    run.ask()
    gevent.sleep(0)
    assert log[0] == "job: JobKilled"
    assert sorted(log[1:]) == ["child: GreenletExit", "grandchild: GreenletExit"]
    assert isinstance(run.join().error, JobKilled)


def test_detached_and_raw_greenlets_live_on() -> None:
    """2.12: `geventq.detach` exempts; `spawn_raw` is not announced."""
    log: list[str] = []
    kept: list[typing.Any] = []

    def nursery() -> None:
        kept.append(gevent.spawn(Sleeper(log, "child of a detached one")))
        Sleeper(log, "detached")()

    def process(token: typing.Any) -> None:
        kept.append(detach(nursery))
        kept.append(gevent.spawn_raw(Sleeper(log, "raw")))
        Sleeper(log, "job")()

    run = Run(process, hard=True).start()
    gevent.sleep(0.01)
    run.ask()
    run.join()
    gevent.sleep(0.01)
    assert log == ["job: JobKilled"] and len(kept) == 3
    gevent.killall(kept)


def test_other_jobs_and_what_an_earlier_job_left_are_spared() -> None:
    """2.12, 2.16: the mark is new for each attempt, also in the same greenlet."""
    log: list[str] = []
    left: list[typing.Any] = []
    first = Run(lambda token: left.append(gevent.spawn(Sleeper(log, "left"))))
    second = Run(lambda token: Sleeper(log, "second")(), hard=True)
    other = Run(lambda token: Sleeper(log, "other")()).start()
    greenlet = gevent.spawn(lambda: (first._run(), second._run()))
    gevent.sleep(0.01)
    second.ask()
    greenlet.join()
    gevent.sleep(0.01)
    assert log == ["second: JobKilled"]
    gevent.killall([*left, other.greenlet])


def test_a_greenlet_that_had_no_turn_yet_never_gets_one() -> None:
    """2.12: spawned in the turn of the kill."""
    log: list[str] = []

    def process(token: typing.Any) -> None:
        token.cancel()
        gevent.spawn_later(0.05, log.append, "ran")
        gevent.sleep(60)

    Run(process, hard=True).start().join()
    gevent.sleep(0.1)
    assert log == []


def test_a_shield_of_the_job_covers_its_helpers() -> None:
    """2.12: nobody is killed before the shield is left."""
    log: list[str] = []

    def process(token: typing.Any) -> None:
        helper = token.spawn(lambda: gevent.sleep(0.05) or log.append("helper's work"))
        with token.shield():
            helper.join()
            log.append("commit")

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert log == ["helper's work", "commit"] and isinstance(run.error, JobKilled)


def test_a_request_made_by_a_job_does_not_mark_what_it_starts() -> None:
    """2.12: callbacks that one job's request starts for another are not the first one's."""
    log: list[str] = []
    other = Run(lambda token: (token.on_cancel(gevent.sleep, 0.05), token.wait())).start()

    def process(token: typing.Any) -> None:
        other.ask()
        Sleeper(log, "job")()

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert not run.attempt.belongings().greenlets()
    other.join()
    eventually(lambda: not callbacks_at_work(other.token))


PATCHED = """
    from gevent import monkey
    monkey.patch_all()
    import concurrent.futures, threading, sys
    import gevent
    from tests.support.attempts import Run

    log = []
    pool = concurrent.futures.ThreadPoolExecutor(1)

    def thread():
        try:
            gevent.sleep(60)
        except BaseException as error:
            log.append(type(error).__name__)
            raise

    def process(token):
        threading.Thread(target=thread).start()
        pool.submit(gevent.sleep, 0.02)
        gevent.sleep(60)

    run = Run(process, hard=True).start()
    gevent.sleep(0.05)
    run.ask()
    run.join()
    gevent.sleep(0.05)
    assert log == ["SystemExit"], log
    assert pool.submit(int, "7").result(timeout=60) == 7
    pool.submit(lambda: log.append(gevent.getcurrent().spawn_tree_locals)).result(timeout=60)
    assert "geventq.attempt" not in log[1], log
    pool.shutdown()
    print("fine")
"""


def test_patched_threads_die_and_an_executors_workers_live() -> None:
    """2.12: `SystemExit` to threads of the job, nothing printed; threads whose target is the
    standard library's serve the process, and their later children are not ours."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PATCHED)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.parametrize("track", ["false"])
def test_without_gevents_spawn_tree_jobs_still_die(track: str) -> None:
    """2.12: GEVENT_TRACK_GREENLET_TREE off: the job itself is killed."""
    script = """
        import gevent
        from tests.support.attempts import Run
        run = Run(lambda token: (gevent.spawn(int), gevent.sleep(60)), hard=True).start()
        run.ask()
        run.join()
        print(type(run.error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"GEVENT_TRACK_GREENLET_TREE": track, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("JobKilled\n", "")
