"""7.5: in a forked child the parent's workers are dead, and its connections are left alone."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import typing

import pytest

from geventq import Queue
from tests.support.servers import Server

ROOT = pathlib.Path(__file__).parents[2]

# The programs are patched where they say so, whatever this process is.
pytestmark = [pytest.mark.unpatched, pytest.mark.slow]  # slow all together


class Program:
    """A process that forks; child and parent say lines of JSON."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def says(self) -> dict[str, typing.Any]:
        """All its lines by ``who`` said them, when all who hold its output have ended."""
        try:
            output, _ = self._process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            raise
        assert self._process.returncode == 0, output
        lines = [json.loads(line) for line in output.splitlines()]
        said = {line.pop("who"): line for line in lines}
        assert len(said) == len(lines), output
        return said


HEAD = """
import json, os, sys, time
if sys.argv[3] == "patched":
    import gevent.monkey
    gevent.monkey.patch_all()
import gevent, gevent.event, gevent.lock, gevent.os
from geventq import Queue, QueueEvents, RedisUnavailableError, Worker
URL, PREFIX = sys.argv[1:3]
def say(who, **said):
    os.write(1, (json.dumps({"who": who, **said}) + "\\n").encode())
def turns(until):
    with gevent.Timeout(60):
        while not until():
            gevent.sleep(0.002)
def child_ends(pid):
    turns(lambda: gone(pid))
def gone(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # gevent was quicker
        return True
"""


def program(url: str, prefix: str, patched: str, source: str) -> Program:
    return Program("-c", HEAD + textwrap.dedent(source), url, prefix, patched)


both = pytest.mark.parametrize("patched", ["plain", "patched"])


# -- workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patched", "how", "where"),
    [
        ("plain", "os", "main"),
        ("plain", "gevent", "job"),
        ("plain", "multiprocessing", "main"),
        ("plain", "os", "thread"),
        ("plain", "os", "job-returns"),
        ("patched", "os", "main"),
        ("patched", "os", "job"),
        ("patched", "multiprocessing", "job"),
        ("patched", "gevent", "job-returns"),
    ],
)
def test_in_the_child_no_job_gets_a_turn_and_a_worker_begins_anew(
    redis_url: str, prefix: str, tmp_path: pathlib.Path, patched: str, how: str, where: str
) -> None:
    """7.5: whatever a job waits for and whatever wakes it in the child, it is left by the parent
    alone, whose connections and outcomes are as if nothing had been; the child's own worker has a
    new id and runs jobs, and only the job that forked goes on there, without a say."""
    file = tmp_path / "left"
    arguments = [redis_url, prefix, str(file), patched, how, where]
    said = Program("-m", "tests.apps.forker", *arguments).says()
    child, parent = said["child"], said["parent"]
    assert child["dead"] == {
        "is_running": False,
        "active_jobs": 0,
        "cancel_job": False,
        "cancel_all_jobs": 0,
    }
    assert child["own"], "the child's job ran in the child"
    assert child["new_id"]
    assert child["told"] == ["child's"], "its listeners hear of its own jobs alone"
    assert child["busy"] < 2000, "turns of the child's loop in a second"
    assert len(child["refused"]) == (4 if where.startswith("job") else 0)
    assert parent["lost"] == 0, "connections of the parent's"

    left = [line.split() for line in file.read_text().splitlines()]
    assert {int(pid) for _, pid in left} == {parent["pid"]}
    ways = [way for way, _ in left if not way.endswith("_inside")]
    assert sorted(ways) == parent["ways"], "each job was left once"
    forking = ["fork"] if where.startswith("job") else []
    with Queue("q", redis_url, prefix) as queue:
        for way in [*parent["ways"], *forking]:
            job = queue.get_job(way)
            assert job is not None
            if way == "killed":
                assert job.failed_reason is not None
            else:
                assert job.return_value == parent["pid"], way
            assert job.attempts_made == 1


@both
def test_what_a_dead_job_waited_for_goes_to_those_who_live(
    redis_url: str, prefix: str, patched: str
) -> None:
    """7.5: in the child a user's greenlet behind a job of the parent's gets the lock, the item."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        import gevent.queue
        semaphore, items = gevent.lock.Semaphore(0), gevent.queue.Queue()
        waits = {"semaphore": semaphore.acquire, "items": items.get}
        got, began = [], []
        def process(job):
            began.append(job.data)
            waits[job.data]()
        queue = Queue("q", URL, PREFIX)
        worker = Worker("q", process, URL, PREFIX, concurrency=2)
        worker.start()
        for name in waits:
            queue.add("n", name)
        turns(lambda: len(began) == 2)
        users = [gevent.spawn(lambda one=one, name=name: got.append((name, one()) and name))
                 for name, one in waits.items()]
        gevent.sleep(0)
        pid = gevent.os.fork()
        semaphore.release()
        items.put(1)
        if not pid:
            turns(lambda: len(got) == 2)
            say("child", got=sorted(got))
            os._exit(0)
        child_ends(pid)
        turns(lambda: not worker.active_jobs)
        semaphore.release()
        items.put(2)
        turns(lambda: len(got) == 2)
        worker.close()
        say("parent", got=sorted(got))
        """,
    ).says()
    assert said["child"]["got"] == said["parent"]["got"] == ["items", "semaphore"]


@both
@pytest.mark.parametrize("how", ["os.fork", "gevent.os.fork"])
def test_a_child_of_run_is_stopped_by_signals_as_any_process(
    redis_url: str, prefix: str, patched: str, how: str
) -> None:
    """7.5, 7.2: the handlers of `run` are the parent's; it runs on, and its job completes."""
    said = program(
        redis_url,
        prefix,
        patched,
        f"""
        import signal
        def process(job):
            pid = {how}()
            if not pid:
                os.kill(os.getpid(), signal.SIGTERM)
                gevent.sleep(20)  # only if it is not stopped
                say("child")
                os._exit(0)
            child_ends(pid)
            return worker.is_running
        queue = Queue("q", URL, PREFIX)
        job = queue.add("n")
        worker = Worker("q", process, URL, PREFIX)
        worker.on("completed", lambda job, result: (say("parent", runs=result), worker.close()))
        worker.run()
        """,
    ).says()
    assert said == {"parent": {"runs": True}}


@both
def test_sys_exit_in_the_child_of_a_job_ends_the_child(
    redis_url: str, prefix: str, patched: str
) -> None:
    """7.5: not a failure of the job: the process was asked to end, with a status."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        def process(job):
            pid = os.fork()
            if not pid:
                sys.exit(3)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        queue = Queue("q", URL, PREFIX)
        with Worker("q", process, URL, PREFIX):
            status = queue.add("n").wait_until_finished(20)
        say("parent", status=status)
        """,
    ).says()
    assert said == {"parent": {"status": 3}}


@both
def test_what_is_around_a_job_that_forks_is_left_in_both(
    redis_url: str, prefix: str, patched: str
) -> None:
    """7.5, 2.17: as a ``with`` block would be; the outcome is the parent's."""
    source = """
        import contextlib
        @contextlib.contextmanager
        def around(job, token):
            mine = os.getpid()
            yield
            token.sleep(0)
            if os.getpid() != mine:
                say("child", left=True)
                os._exit(0)
            say("parent", left=True)
        def process(job):
            pid = os.fork()
            if pid:
                child_ends(pid)
            return "done"
        with Queue("q", URL, PREFIX) as queue:
            with Worker("q", process, URL, PREFIX, around=[around]):
                say("job", result=queue.add("n").wait_until_finished(30))
    """
    said = program(redis_url, prefix, patched, source).says()
    assert said == {
        "child": {"left": True},
        "parent": {"left": True},
        "job": {"result": "done"},
    }


@both
def test_of_a_job_whose_helper_forks_the_helper_alone_goes_on(
    redis_url: str, prefix: str, patched: str
) -> None:
    """7.5: the job waits for its helper, which ends in the child: the job does not hear of it."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        def helper():
            pid = gevent.os.fork()
            if pid:
                child_ends(pid)
            else:
                ended.append(gevent.spawn_later(0.05, end_child))
        def end_child():
            say("child", ended=ended[0] is gevent.getcurrent())
            os._exit(0)
        ended = []
        def process(job, token):
            try:
                token.spawn(helper).join()
            finally:
                say("parent" if os.getpid() == parent else "job in the child")
        parent = os.getpid()
        queue = Queue("q", URL, PREFIX)
        with Worker("q", process, URL, PREFIX):
            queue.add("n").wait_until_finished(20)
        """,
    ).says()
    assert said == {"child": {"ended": True}, "parent": {}}


@both
def test_a_grandchild_begins_anew_as_well(redis_url: str, prefix: str, patched: str) -> None:
    """7.5: for a child that runs a worker of its own and forks, the same holds."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        ids = []
        queue = Queue("q", URL, PREFIX)
        worker = Worker("q", lambda job: ids.append(worker.id) or os.getpid(), URL, PREFIX)
        def works():
            worker.start()
            mine = queue.add("n").wait_until_finished(20) == os.getpid()
            worker.pause()
            return mine
        def generation(name, deeper):
            mine, pid = works(), deeper and gevent.os.fork()
            if deeper and not pid:
                assert not worker.is_running
                worker.resume()
                generation(*deeper)
            if pid:
                child_ends(pid)
            worker.resume()
            say(name, mine=mine, again=works(), ids=len(set(ids)), jobs=len(ids))
            worker.close()
            sys.exit()
        generation("parent", ("child", ("grandchild", None)))
        """,
    ).says()
    assert said == {
        "parent": {"mine": True, "again": True, "ids": 1, "jobs": 2},
        "child": {"mine": True, "again": True, "ids": 2, "jobs": 3},
        "grandchild": {"mine": True, "again": True, "ids": 3, "jobs": 4},
    }


# -- queues and events -------------------------------------------------------------------------


@both
def test_adds_under_way_at_the_fork_are_the_parents(
    own_server: Server, prefix: str, patched: str
) -> None:
    """7.5: the interleaving: one add is sent, forty wait in a batch, the server answers nothing;
    fork.  In the child all raise at once, and what the queue adds next has connections of its
    own; in the parent all are stored, once."""
    said = program(
        own_server.url,
        prefix,
        patched,
        f"""
        import signal
        queue = Queue("q", URL, PREFIX)
        queue.add("warm")
        os.kill({own_server.pid}, signal.SIGSTOP)
        stored, raised = [], []
        def add(number):
            try:
                stored.append(queue.add("n", number).id)
            except RedisUnavailableError:
                raised.append(number)
        adds = [gevent.spawn(add, number) for number in range(41)]
        gevent.sleep(0.01)
        pid = gevent.os.fork()
        if not pid:
            turns(lambda: len(raised) == 41)
            os.kill({own_server.pid}, signal.SIGCONT)
            own = queue.add("child")
            say("child", stored=len(stored), count=queue.count(), own=own.name)
            os._exit(0)
        gevent.joinall(adds)
        child_ends(pid)
        say("parent", stored=len(stored), raised=len(raised), count=queue.count())
        """,
    ).says()
    assert said["child"]["stored"] == 0
    assert said["child"]["own"] == "child"
    assert said["parent"] == {"stored": 41, "raised": 0, "count": 43}


@both
def test_parent_and_child_both_read_the_events_on(
    redis_url: str, prefix: str, patched: str
) -> None:
    """7.5: the child's iteration goes on from where it was, on a connection of its own, and the
    parent misses nothing."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        queue, events = Queue("q", URL, PREFIX), QueueEvents("q", URL, PREFIX)
        seen = []
        def read():
            for event in events:
                if event.name == "added":
                    seen.append(event.job_id)
        reader = gevent.spawn(read)
        turns(events.ready.is_set)
        queue.add("n", job_id="before")
        turns(lambda: seen == ["before"])
        pid = gevent.os.fork()
        if not pid:
            queue.add("n", job_id="after")
        turns(lambda: len(seen) == 2)
        say("parent" if pid else "child", seen=seen)
        if pid:
            child_ends(pid)
        os._exit(0)
        """,
    ).says()
    assert said == {"parent": {"seen": ["before", "after"]}, "child": {"seen": ["before", "after"]}}


@both
def test_a_supervisor_of_the_parent_starts_nobody_again_in_the_child(
    redis_url: str, prefix: str, patched: str
) -> None:
    """Its worker, its bridge and a child with a `run` of its own are the parent's; a supervisor
    that is started in the child begins anew."""
    said = program(
        redis_url,
        prefix,
        patched,
        """
        from geventq import CancelBridge, Supervisor
        class Runner:
            ends = gevent.event.Event()
            turns = []
            def run(self):
                while not self.ends.wait(0.01):
                    self.turns.append(os.getpid())
            def close(self):
                self.ends.set()
        worker, runner = Worker("q", lambda job: None, URL, PREFIX), Runner()
        bridge = CancelBridge(URL, PREFIX + ":c", [worker])
        supervisor = Supervisor([worker, bridge, runner])
        supervisor.start()
        turns(lambda: runner.turns)
        pid = os.fork()
        if pid == 0:
            gevent.sleep(0.3)
            say("child", running=[one.is_running for one in (supervisor, worker, bridge)],
                turned=os.getpid() in runner.turns)
            supervisor.start()
            turns(lambda: os.getpid() in runner.turns)
            say("again", running=[one.is_running for one in (supervisor, worker, bridge)])
            supervisor.close(0)
            os._exit(0)
        child_ends(pid)
        say("parent", running=[one.is_running for one in (supervisor, worker, bridge)])
        supervisor.close()
        """,
    ).says()
    assert said["child"] == {"running": [False] * 3, "turned": False}
    assert said["again"]["running"] == said["parent"]["running"] == [True] * 3
