"""A Ctrl-C that nobody heeds is raised in whatever runs: in a lane, a runner, the hub, a packer.
The main greenlet gets it, and no job is lost or left behind."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import sys
import typing

import gevent
import gevent.event
import pytest

from geventq import JobSpec, Queue
from geventq.store.client import Client
from geventq.store.scripts import load
from tests.conftest import Make
from tests.support.told import Told, engine_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def test_ctrl_c_that_hits_a_lane_loses_nothing(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.6, 7.2: Ctrl-C, where nobody heeds it, raises in whatever greenlet runs: here in a lane,
    after the server has carried its call out.  The main greenlet gets it; the lane goes on, and
    asks what became of its call."""
    script_of = Client.script
    hit: list[int] = []

    def interrupted(
        self: Client, which: typing.Any, keys: typing.Any, args: typing.Any, **more: typing.Any
    ) -> object:
        reply = script_of(self, which, keys, args, **more)
        if which is load("settle") and not hit and "c" in args:
            hit.append(1)
            raise KeyboardInterrupt
        return reply

    worker = make(lambda job: "done")
    told = Told(worker)
    worker.pause()
    job = queue.add("n")
    monkeypatch.setattr(Client, "script", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.resume()
        gevent.sleep(20)
    monkeypatch.undo()
    eventually(lambda: all(not lane.dead for lane in engine_of(worker).lanes.greenlets))
    eventually(lambda: told.of(job) == ["completed"])
    assert told.of(job) == ["completed"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_that_hits_a_run_after_its_processor_leaves_no_job_behind(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """7.1, 7.2: it is raised where the outcome is made (or a defect of ours is): the job would be
    active for ever, and close(0) would wait for it.  It goes back, and runs again."""
    from geventq.worker.run import life

    decide = life.decide
    ran: list[str] = []
    hit: list[int] = []

    def interrupted(*args: typing.Any) -> object:
        if not hit:
            hit.append(1)
            raise error
        return decide(*args)

    monkeypatch.setattr(life, "decide", interrupted)
    worker = make(lambda job: ran.append(job.id))
    worker.on("error", lambda error: None)
    worker.pause()
    job = queue.add("n")
    with contextlib.suppress(KeyboardInterrupt):  # from here on it may come
        worker.resume()
        eventually(lambda: queue.get_job_state(job.id) == "completed")
    eventually(lambda: queue.get_job_state(job.id) == "completed")
    assert ran == [job.id, job.id]
    with gevent.Timeout(20):
        worker.close(0)


def test_ctrl_c_in_the_hub_holds_up_no_job(queue: Queue, make: Make) -> None:
    """7.2: it hits the hub between the first turns of two jobs."""
    turns: list[str] = []

    class Interrupting(collections.deque[typing.Any]):
        def popleft(self) -> typing.Any:
            if len(self) == 2 and "hit" not in turns:
                turns.append("hit")
                raise KeyboardInterrupt
            return super().popleft()

    class Fake:
        dead = False
        has_begun = False

        def switch(self) -> None:
            self.has_begun = True
            turns.append("turn")

    from geventq.worker.run.runners import _switch_into

    gevent.get_hub().loop.run_callback(_switch_into, Interrupting([Fake(), Fake()]))
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(1)
    eventually(lambda: turns == ["turn", "hit", "turn"])


@pytest.mark.parametrize("where", ["Admission.executions", "Runners.dispatch", "JobLife.settled"])
def test_ctrl_c_that_hits_the_handling_of_an_answer_loses_nothing(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """3.6, 7.2: jobs were taken, or outcomes accepted, and the lane that was told is interrupted:
    every job runs once, every outcome is told once, and close(0) waits for nobody."""
    from geventq.worker.run import admission, life, runners

    owners = {"Admission": admission, "Runners": runners, "JobLife": life}
    kind, name = where.split(".")
    owner = getattr(owners[kind], kind)
    original = getattr(owner, name)
    hit: list[int] = []

    def interrupted(*args: typing.Any, **options: typing.Any) -> object:
        if not hit:
            hit.append(1)
            raise KeyboardInterrupt
        return original(*args, **options)

    ran: list[str] = []
    worker = make(lambda job: ran.append(job.id), concurrency=8)
    told = Told(worker)
    worker.pause()
    jobs = queue.add_bulk([JobSpec("n") for _ in range(4)])
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.resume()
        gevent.sleep(20)
    eventually(lambda: queue.get_job_counts()["completed"] == 4)
    eventually(lambda: all(told.of(job) == ["completed"] for job in jobs))
    assert sorted(ran) == sorted(job.id for job in jobs)
    assert not engine_of(worker).slots.held
    with gevent.Timeout(20):
        worker.close(0)


def test_ctrl_c_that_hits_the_first_step_of_a_run_does_not_lose_it() -> None:
    """7.2, 2.16: a greenlet that waits for its next job was given one, and is interrupted as it
    wakes up."""
    from geventq.worker.run.runners import Runners, untouched

    ran: list[object] = []
    failed: list[object] = []

    class Over:
        was_thrown = False

    class Given:
        attempt = Over()

    runners = Runners(ran.append, lambda *args: failed.append(args), "q", untouched=untouched())
    runners._new().start()
    eventually(lambda: runners.idle)
    runner = runners.idle.pop()
    given = typing.cast(typing.Any, Given())
    runner.has_begun = False
    runner.execution = given
    with pytest.raises(KeyboardInterrupt):
        gevent.get_hub().loop.run_callback(runner.throw, KeyboardInterrupt())
        gevent.sleep(1)
    assert (ran, failed) == ([given], [])
    runners.stop()
    runner.join()


_INTERRUPTED: typing.Final = """
import signal, time
from geventq.store.scripts import pack

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGVTALRM, interrupt)
deadline = time.monotonic() + 60
hits = 0
while hits < 100 and time.monotonic() < deadline:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        while True:
            pack(("SET", "a", *range(100), 0.5))
    except KeyboardInterrupt:
        hits += 1
print("survived" if hits == 100 else hits)
"""


def test_ctrl_c_while_a_command_is_packed_does_not_crash_the_process() -> None:
    """7.2: hiredis packs numbers by a call that may raise, and does not look whether it did."""
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "survived\n")
