"""``geventq add`` and ``geventq jobs``, and what all commands share: exit statuses, streams."""

from __future__ import annotations

import json
import re
import shlex
import socket

import pytest

from geventq import Queue, cli
from geventq.commands import jobs
from geventq.commands.console import without_passwords
from geventq.job import STATES
from tests.cli.conftest import Here
from tests.support.programs import ROOT, Programs


def test_an_added_job_is_listed_with_its_id_name_and_state(
    programs: Programs, queue: Queue
) -> None:
    status, out, err = programs.run("add", "q", "export", '{"rows": 10}', "--json")
    assert (status, err) == (0, "")
    job_id = json.loads(out)["id"]
    job = queue.get_job(job_id)
    assert job is not None
    assert (job.name, job.data) == ("export", {"rows": 10})
    status, out, _ = programs.run("jobs", "q", "--json")
    assert status == 0
    assert json.loads(out) == [{"id": job_id, "name": "export", "state": "waiting"}]


def test_people_see_the_id(here: Here, queue: Queue) -> None:
    assert here("add", "q", "export", "--job-id", "mine") == (*(0, "added job mine to q\n", ""),)
    status, out, _ = here("jobs", "q")
    assert (status, out.split()) == (0, ["mine", "waiting", "export"])


@pytest.mark.parametrize("number", ["-1", "-1.5", "-1.5e3", "-2E-3", "-0", "-0.0", "-1e+5"])
def test_every_number_of_json_is_data(here: Here, queue: Queue, number: str) -> None:
    """Where argparse by itself looks for an option of that name."""
    assert here("add", "q", "n", number)[0] == 0
    (job,) = queue.get_jobs()
    assert job.data == json.loads(number)
    assert here("add", "q", "n", "--delay", number)[2].count("--delay") == 0  # the value is read


def test_every_option_of_add_reaches_the_job(here: Here, queue: Queue) -> None:
    options = {
        "--delay": "5",
        "--attempts": "3",
        "--backoff": '{"type": "exponential", "delay": 1.5}',
        "--timeout": "60",
        "--priority": "2",
        "--job-id": "mine",
        "--remove-on-complete": '{"age": 60}',
        "--remove-on-fail": "true",
        "--keep-logs": "5",
        "--stack-trace-limit": "1",
        "--size-limit": "1000",
    }
    given = [word for pair in options.items() for word in pair]
    assert here("add", "q", "export", "[1]", *given, "--lifo")[0] == 0
    job = queue.get_job("mine")
    assert job is not None
    assert job.opts == {
        "attempts": 3,
        "backoff": {"type": "exponential", "delay": 1.5},
        "delay": 5.0,
        "job_id": "mine",
        "keep_logs": 5,
        "lifo": True,
        "priority": 2,
        "remove_on_complete": {"age": 60},
        "remove_on_fail": True,
        "size_limit": 1000,
        "stack_trace_limit": 1,
        "timeout": 60.0,
    }
    assert job.get_state() == "delayed"


def test_states_can_be_chosen_and_an_empty_list_is_json_too(here: Here, queue: Queue) -> None:
    queue.add("now")
    queue.add("later", delay=60.0)
    _, out, _ = here("jobs", "q", "--json", "--state", "delayed")
    assert [row["name"] for row in json.loads(out)] == ["later"]
    _, out, _ = here("jobs", "q", "--json", "--state", "delayed", "--state", "waiting")
    assert [row["name"] for row in json.loads(out)] == ["later", "now"]
    assert here("jobs", "q", "--json", "--state", "failed") == (0, "[]\n", "")
    assert here("jobs", "nobody") == (0, "no jobs in nobody\n", "")


def test_a_long_list_is_cut_for_people_and_whole_for_programs(here: Here, queue: Queue) -> None:
    for number in range(103):
        queue.add(f"n{number}")
    _, out, _ = here("jobs", "q")
    assert len(out.splitlines()) == 101
    assert out.splitlines()[-1] == "... more are waiting: --limit N shows N of each state"
    assert len(json.loads(here("jobs", "q", "--json")[1])) == 103
    assert len(json.loads(here("jobs", "q", "--json", "--limit", "2")[1])) == 2


def test_a_job_cannot_write_to_the_terminal(here: Here, queue: Queue) -> None:
    """A name with an escape sequence or a line end is shown, not obeyed."""
    queue.add("a\x1b[2J\nb\u2028c")
    out = here("jobs", "q")[1]
    assert out.split(maxsplit=2)[2] == "a\\x1b[2J\\nb\\u2028c\n"


def test_the_states_that_the_command_knows_are_those_of_the_queue() -> None:
    assert set(jobs.STATES) == set(STATES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: geventq"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["add", "q"], "required: NAME"),
        (["add", "q", "n", "{"], "data: JSON is needed"),
        (["add", "q", "n", "[" * 100_000], "data: JSON is needed"),
        (["add", "q", "n", "NaN"], "data"),
        (["add", "a:b", "n"], "queue name: must not contain ':'"),
        (["add", "q", ""], "name: must not be empty"),
        (["add", "q", "n", "--delay", "soon"], "--delay: seconds as a number are needed"),
        (["add", "q", "n", "--delay", "-1"], "delay: seconds must not be negative, got -1"),
        (["add", "q", "n", "--delay", "nan"], "delay: a finite number of seconds"),
        (["add", "q", "n", "--priority", "1.5"], "--priority: a whole number is needed"),
        (["add", "q", "n", "--job-id", "12"], "job_id: must not be an integer"),
        (["add", "q", "n", "--backoff", '{"typ": 1}'], "backoff['typ']: unknown option"),
        (["add", "q", "n", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["jobs", "q", "--state", "done"], "invalid choice: 'done'"),
        (["jobs", "q", "--limit", "0"], "--limit: at least 1 is needed"),
        (["jobs", "q", "--prefix", "a b"], "prefix: must be printable ASCII"),
        (["jobs", "q", "--redis", "http://u:secret@h"], "connection: the URL must be"),
        (["jobs", "q", "--redis", "u:secret@h"], "connection: the URL must be"),
        (["jobs", "q", "--redis", "redis://:secret/x@h:1"], "connection: the path must be"),
        (["jobs", "q", "--redis", "redis://:secret@h:x"], "connection: the URL must be"),
        (["jobs", "q", "redis://u:secret@h/0"], "unrecognized arguments: redis://***@h/0"),
        (["jobs", "q", "u:secret@h"], "unrecognized arguments: ***@h"),
    ],
)
def test_a_wrong_command_line_is_usage(
    here: Here, queue: Queue, arguments: list[str], said: str
) -> None:
    """Exit status 2, the reason on standard error, nothing written, no password shown."""
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "secret" not in err
    assert queue.get_jobs() == []


def test_a_redis_that_cannot_be_reached_is_status_3(programs: Programs) -> None:
    """Host and port are named, the password is not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        port = taken.getsockname()[1]
        url = f"redis://user:secret@127.0.0.1:{port}/0"
        for command in (["jobs", "q", "--json"], ["add", "q", "n"], ["demo"]):
            status, out, err = programs.run(*command, "--redis", url)
            assert (status, out) == (3, "")
            assert f"127.0.0.1:{port}" in err
            assert "secret" not in err


def test_what_redis_refuses_is_status_1(programs: Programs, queue: Queue, prefix: str) -> None:
    import redis

    with redis.Redis.from_url(programs.environment["GEVENTQ_REDIS_URL"]) as client:
        client.set(f"{prefix}:q:wait", "no list")
    status, out, err = programs.run("jobs", "q", "--state", "waiting")
    assert (status, out) == (1, "")
    assert "WRONGTYPE" in err


@pytest.mark.parametrize(
    "name", ["README.md", "geventq/guides/commands.md", "conf/geventq.toml", "conf/geventq.service"]
)
def test_the_command_lines_in_the_documents_are_right(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:# {3}| {4}|)geventq (\w.*)$|bin/geventq (.*)$", text, re.M)
    shown = [first or second for first, second in lines]
    assert shown
    for line in shown:
        given = cli._parser().parse_args(shlex.split(line.replace("[", "").replace("]", "")))
        assert given.run is not None


def test_help_names_every_command(programs: Programs) -> None:
    status, out, _ = programs.run("--help")
    assert status == 0
    for command in ("demo", "worker", "add", "jobs"):
        assert f"\n    {command} " in out


def test_a_reader_that_leaves_early_is_no_error(programs: Programs, queue: Queue) -> None:
    """``geventq jobs q | head -1``"""
    import subprocess
    import sys

    for number in range(100):
        queue.add(f"{'x' * 100}{number}")
    done = subprocess.run(
        f"{sys.executable} -m geventq jobs q | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=programs.directory,
        env=programs.environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at redis://u:p@h:1/0 and", "at redis://***@h:1/0 and"),
        ("rediss://:p/a@ss@h", "rediss://***@h"),
        ("unix:///s?db=1&password=p&x=1", "unix:///s?db=1&password=***&x=1"),
        ("'user:p@h:1'", "'***@h:1'"),
        (":p@h", "***@h"),
        ("a: mail me@example.org", "a: mail me@example.org"),
    ],
)
def test_passwords_are_blotted_out(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
