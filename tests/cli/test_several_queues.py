"""``geventq worker --config FILE`` with ``[[workers]]`` tables: several queues in one process."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import signal
import typing

import pytest

from geventq import JobSpec, Queue, cli
from geventq.commands import plan, worker_settings
from geventq.commands.console import UsageError
from tests.support.programs import Program, Programs
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

TABLES = """
[worker]
processor = "tasks:process"
concurrency = 3

[[workers]]
queue = "a"

[[workers]]
queue = "b"
processor = "others:send"
concurrency = 5
"""
OTHERS = "import os\ndef send(job):\n    return f'sent by {os.getpid()}'\n"


@pytest.fixture
def queues(redis_url: str, prefix: str) -> collections.abc.Iterator[tuple[Queue, Queue]]:
    with Queue("a", redis_url, prefix) as a, Queue("b", redis_url, prefix) as b:
        yield a, b


def start(programs: Programs, *options: str, text: str = TABLES, count: int = 2) -> Program:
    """Start the command and wait until `count` workers are ready."""
    programs.write("others.py", OTHERS)
    programs.write("geventq.toml", text)
    program = programs.geventq("worker", "--config", "geventq.toml", "--json", *options)
    program.until_event("ready", count)
    return program


def of_queues(events: list[dict[str, typing.Any]]) -> list[str]:
    return sorted(one["queue"] for one in events)


def test_each_queue_has_its_processor_its_options_and_its_lines(
    programs: Programs, queues: tuple[Queue, Queue]
) -> None:
    program = start(programs)
    begun = {one["queue"]: one for one in program.events("starting")}
    assert {name: (one["processor"], one["concurrency"]) for name, one in begun.items()} == {
        "a": ("tasks:process", 3),
        "b": ("others:send", 5),
    }
    a, b = (queue.add("quick") for queue in queues)
    done = {one["queue"]: one for one in program.until_event("completed", 2)}
    assert (done["a"]["id"], done["a"]["result"]) == (a.id, program.pid)
    assert (done["b"]["id"], done["b"]["result"]) == (b.id, f"sent by {program.pid}")
    assert {one["pid"] for one in program.events()} == {program.pid}


def test_each_may_have_a_prefix_of_its_own(programs: Programs, redis_url: str, prefix: str) -> None:
    """Two applications' queues of one name are two queues; what is given for all counts for all."""
    text = f"""
[connection]
prefix = "{prefix}"

[worker]
processor = "tasks:process"

[[workers]]
queue = "a"
prefix = "{prefix}-other"

[[workers]]
queue = "a"
"""
    programs.environment["GEVENTQ_PREFIX"] = ""
    program = start(programs, text=text)
    with Queue("a", redis_url, prefix) as one, Queue("a", redis_url, f"{prefix}-other") as other:
        jobs = [one.add("quick", job_id="mine"), other.add("quick", job_id="theirs")]
        assert {told["id"] for told in program.until_event("completed", 2)} == {"mine", "theirs"}
        assert [job.get_state() for job in jobs] == ["completed", "completed"]
        assert one.get_job("theirs") is other.get_job("mine") is None
        other.obliterate(force=True)


def test_a_prefix_that_is_given_counts_for_all_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "geventq.toml"
    path.write_text(WHOLE + "prefix = 'x'\n" + WHOLE)

    def prefixes(*more: str) -> tuple[str, list[str | None]]:
        made = plan.made(cli._parser().parse_args(["worker", "--config", str(path), *more]))
        return made.prefix, [one.prefix for one in made.workers]

    monkeypatch.delenv("GEVENTQ_PREFIX", raising=False)
    assert prefixes() == ("bull", ["x", None])
    assert prefixes("--prefix", "y") == ("y", [None, None])
    monkeypatch.setenv("GEVENTQ_PREFIX", "z")
    assert prefixes() == ("z", [None, None])


def test_an_outage_of_the_server_of_all_is_logged_once(
    programs: Programs, own_server: Server, prefix: str
) -> None:
    """By whichever of them meets it, and so is its end; jobs run in each of them again."""
    programs.environment["GEVENTQ_REDIS_URL"] = own_server.url
    program = start(programs, text=TABLES.replace("others:send", "tasks:process"))
    own_server.kill()
    server = f"Redis at {own_server.socket_path}"
    eventually(lambda: f"{server} failed, trying again: " in program.err)
    own_server.start()
    eventually(lambda: f"{server} works again after " in program.err)
    for name in ("a", "b"):
        with Queue(name, own_server.url, prefix) as queue:
            queue.add("quick")
    program.until_event("completed", 2)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    lines = program.err.splitlines()
    assert len([one for one in lines if "failed, trying again" in one]) == 1, program.err
    assert len([one for one in lines if "works again" in one]) == 1, program.err


def test_people_see_the_queue_in_each_line(programs: Programs, queues: tuple[Queue, Queue]) -> None:
    programs.write("others.py", OTHERS)
    programs.write("geventq.toml", TABLES)
    program = programs.geventq("worker", "--config", "geventq.toml")
    for queue in queues:
        job = queue.add("quick")
        program.until_out(f"completed quick {job.id}")
    for line in program.out.splitlines():
        assert line.split()[1] in ("a", "b"), line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_all_of_them_and_a_second_one_at_once(
    programs: Programs, queues: tuple[Queue, Queue], number: signal.Signals
) -> None:
    """7.2: exit status 0; the jobs go back."""
    text = TABLES.replace("others:send", "tasks:process")
    program = start(programs, text=text)
    for queue in queues:
        queue.add("polite")
    program.until_event("active", 2)
    program.signal(number)
    program.until_event("closing", 2)
    assert not program.events("closed")
    program.signal(number)
    assert program.ends() == 0
    assert of_queues(program.events("cancelled")) == of_queues(program.events("closed"))
    assert [queue.get_job_counts()["waiting"] for queue in queues] == [1, 1]


def test_each_has_its_own_time_for_closing(programs: Programs, queues: tuple[Queue, Queue]) -> None:
    """7.2: `close_timeout` of the table; the other one's jobs end by themselves."""
    text = TABLES.replace('"others:send"', '"tasks:process"\nclose_timeout = 0.05')
    program = start(programs, text=text)
    until = programs.directory / "go"
    queues[0].add("waits", {"until": str(until)})
    queues[1].add("polite")
    program.until_event("active", 2)
    program.signal(signal.SIGTERM)
    assert of_queues(program.until_event("cancelled")) == ["b"]
    until.touch()
    assert program.ends() == 0
    assert of_queues(program.events("completed")) == ["a"]


def test_processes_run_all_of_them_each(programs: Programs, queues: tuple[Queue, Queue]) -> None:
    """And one that was killed is replaced with all its workers; a signal ends all."""
    program = start(programs, "--processes", "2", count=4)
    pids = {one["pid"] for one in program.events("ready")}
    assert len(pids) == 2
    assert of_queues(program.events("ready")) == ["a", "a", "b", "b"]
    os.kill(min(pids), signal.SIGKILL)
    ready = program.until_event("ready", 6)
    assert len({one["pid"] for one in ready}) == 3
    assert of_queues(ready) == ["a"] * 3 + ["b"] * 3
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert of_queues(program.events("closed")) == ["a", "a", "b", "b"]


def test_a_worker_without_a_slot_ends_the_process_with_1(
    programs: Programs, queues: tuple[Queue, Queue]
) -> None:
    """2.10: with `exit_when_stuck` who supervises the process gets it back."""
    programs.write(
        "stuck.py",
        """
import gevent
def process(job):
    while True:
        try:
            gevent.sleep(60)
        except BaseException:
            pass
""",
    )
    text = """
[[workers]]
queue = "a"
processor = "stuck:process"
cancel_mode = "hard"
job_timeout = 0.1
exit_when_stuck = true

[[workers]]
queue = "b"
processor = "others:send"
"""
    program = start(programs, text=text)
    queues[0].add_bulk([JobSpec("stuck")] * 5)
    assert of_queues(program.until_event("no_slot")) == ["a"]
    assert program.ends(60) == 1
    assert set(of_queues(program.events("closed"))) == {"a", "b"}
    assert len(program.events("ready")) == 2, "none was started again"


def test_the_command_line_wins_over_the_table_and_that_over_what_they_share(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "geventq.toml"
    path.write_text(TABLES)

    def concurrencies(*more: str) -> list[int]:
        given = cli._parser().parse_args(["worker", "--config", str(path), *more])
        return [one["concurrency"] for one in worker_settings.from_all(given).workers]

    assert concurrencies() == [3, 5]
    monkeypatch.setenv("GEVENTQ_CONCURRENCY", "7")
    assert concurrencies() == [7, 7]
    assert concurrencies("-c", "9") == [9, 9]


WHOLE = '[[workers]]\nqueue = "a"\nprocessor = "m:f"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE + WHOLE + "speed = 5", "workers[1].speed: unknown, got 5; known are"),
        (WHOLE + "limiter = 5", "workers[0]: limiter: not supported yet, got 5"),
        (WHOLE + "processes = 2", "workers[0].processes: all workers live in each process"),
        (WHOLE + "health_port = 80", "workers[0].health_port: all workers live in each process"),
        (WHOLE + "log_format = 'json'", "workers[0].log_format: all workers live in each process"),
        (WHOLE + WHOLE + "concurrency = '5'", "workers[1]: concurrency: a whole number"),
        (WHOLE + "close_timeout = -1", "workers[0]: close_timeout: seconds must not"),
        (WHOLE + "name = 'two words'", "workers[0]: name"),
        (WHOLE + "prefix = 5", "workers[0]: prefix: text is needed, got 5"),
        (WHOLE + "prefix = ''", "workers[0]: prefix: must not be empty"),
        (WHOLE + "backoff_strategies = 5", "workers[0]: backoff_strategies: a table"),
        ("[[workers]]\nqueue = 'a'", "workers[0]: processor and queue are needed"),
        (WHOLE + "[[workers]]\nprocessor = 'm:f'", "workers[1]: processor and queue are"),
        ("[[workers]]\nprocessor = 'm:f'\nqueue = 5", "workers[0]: queue: text is needed, got 5"),
        ("[[workers]]\nprocessor = 'm:f'\nqueue = 'a:b'", "workers[0]: queue: must not contain"),
        ("[[workers]]\nprocessor = 5\nqueue = 'a'", "workers[0]: processor: text is needed"),
        ("[workers]\nqueue = 'a'", "workers: [[workers]] tables are needed"),
        ("workers = [1]", "workers: [[workers]] tables are needed"),
        ("[[worker]]\nqueue = 'a'", "worker: a table is needed"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(
    tmp_path: pathlib.Path, text: str, said: str
) -> None:
    path = tmp_path / "geventq.toml"
    path.write_text(text)
    given = cli._parser().parse_args(["worker", "--config", str(path)])
    with pytest.raises(UsageError) as raised:
        plan.made(given)
    assert str(raised.value).startswith(f"--config: {path}: ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("more", "environment", "said"),
    [
        (["m:f"], {}, "MODULE:FUNCTION: makes no sense beside the [[workers]] of"),
        (["-q", "q"], {}, "-q: makes no sense"),
        ([], {"GEVENTQ_QUEUE": "q"}, "$GEVENTQ_QUEUE: makes no sense"),
        ([], {"GEVENTQ_PROCESSOR": "m:f"}, "$GEVENTQ_PROCESSOR: makes no sense"),
    ],
)
def test_a_queue_of_the_command_line_beside_tables_is_usage(
    programs: Programs, more: list[str], environment: dict[str, str], said: str
) -> None:
    programs.write("geventq.toml", TABLES)
    program = programs.geventq("worker", "--config", "geventq.toml", *more, **environment)
    assert program.ends() == 2
    assert said in program.err
    assert "Traceback" not in program.err


def test_what_cannot_be_imported_is_told_with_its_place(programs: Programs) -> None:
    """Status 2, and nothing has started."""
    programs.write("geventq.toml", TABLES)
    status, out, err = programs.run("worker", "--config", "geventq.toml")
    assert (status, out) == (2, "")
    assert "--config: geventq.toml: workers[1]: process: there is no module 'others'" in err


def test_it_is_told_by_each_of_several_processes_too(
    programs: Programs, queues: tuple[Queue, Queue]
) -> None:
    """Where nobody ever worked, none is started again."""
    programs.write("geventq.toml", TABLES)
    status, _, err = programs.run(
        *("worker", "--config", "geventq.toml", "--processes", "2"),
    )
    assert status == 2
    assert "workers[1]: process: there is no module 'others'" in err


def test_a_worker_that_cannot_live_ends_the_process(
    programs: Programs, queues: tuple[Queue, Queue]
) -> None:
    """Given up by the supervisor: status 1 and the reason; the other worker was closed."""
    programs.write(
        "others.py",
        "import geventq.supervisor\n"
        "from geventq import Worker, deaths\n"
        "deaths._FIRST = 0.01\n"
        "start = Worker.start\n"
        "def failing(worker):\n"
        "    if worker.queue_name == 'b':\n"
        "        raise OSError('no such device')\n"
        "    start(worker)\n"
        "Worker.start = failing\n"
        "def send(job): ...\n",
    )
    programs.write("geventq.toml", TABLES)
    program = programs.geventq("worker", "--config", "geventq.toml", "--json")
    assert program.ends() == 1
    assert "Worker of queue b died 6 times within 60 s and is given up" in program.err
    assert "OSError: no such device" in program.err
    assert of_queues(program.events("closed")) == ["a"]
    eventually(lambda: not program.is_running)
