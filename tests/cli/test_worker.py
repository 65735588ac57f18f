"""``geventq worker``: whose settings count, what is imported and when, what is printed."""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import typing

import pytest

from geventq import Queue, cli
from geventq.commands import plan, settings, worker_settings
from geventq.commands.console import UsageError
from geventq.commands.settings import Setting
from geventq.commands.worker_settings import WORKER
from tests.support.programs import Programs
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

# Three different texts for each setting: in the file, in the environment, on the command line.
TEXTS: dict[str, tuple[str, str, str]] = {
    "cancel_mode": ("soft", "hard", "soft"),
    "hints": ("trusted", "recorded-only", "trusted"),
    "remove_on_complete": ("1", "2", '{"age": 3}'),
    "remove_on_fail": ("1", "false", "true"),
    "backoff_strategies": ("a=m:f", "b=m:f,c=m:g", "d=m:f"),
    "skip_lock_renewal": ("false", "true", "false"),
    "skip_stalled_check": ("true", "no", "true"),
    "exit_when_stuck": ("false", "true", "false"),
    "log_format": ("text", "json", "text"),
    "log_level": ("debug", "warning", "error"),
}


def _in_toml(setting: Setting, text: str) -> str:
    value = setting.read(text)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def _settings(path: pathlib.Path, *arguments: str) -> dict[str, typing.Any]:
    given = cli._parser().parse_args(["worker", "--config", str(path), *arguments])
    return worker_settings.from_all(given)[1]


@pytest.mark.parametrize("setting", WORKER, ids=lambda setting: setting.name)
def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    setting: Setting, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown for each setting that there is."""
    in_file, in_environment, on_line = TEXTS.get(setting.name, ("11", "12", "13"))
    path = tmp_path / "geventq.toml"
    path.write_text(f"[worker]\n{setting.name} = {_in_toml(setting, in_file)}\n")
    assert _settings(path) == {setting.name: setting.read(in_file)}
    monkeypatch.setenv(setting.variable, in_environment)
    assert _settings(path) == {setting.name: setting.read(in_environment)}
    if setting.is_secret:  # every user of the machine can read a command line
        with pytest.raises(SystemExit):
            _settings(path, setting.flag, on_line)
        return
    if in_file in ("true", "false"):
        flag = setting.flag if on_line == "true" else setting.flag.replace("--", "--no-")
        arguments = [flag]
    else:
        arguments = [setting.flag, on_line]
    assert _settings(path, *arguments) == {setting.name: setting.read(on_line)}


def test_the_server_and_the_prefix_are_found_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GEVENTQ_REDIS_URL", raising=False)
    nothing = argparse.Namespace(redis=None, prefix=None)
    given = argparse.Namespace(redis="redis://line", prefix="line")
    assert (settings.url(nothing), settings.prefix(nothing)) == ("embedded:", "bull")
    assert (settings.url(nothing, "redis://f"), settings.prefix(nothing, "f")) == ("redis://f", "f")
    monkeypatch.setenv("GEVENTQ_REDIS_URL", "redis://env")
    monkeypatch.setenv("GEVENTQ_PREFIX", "env")
    assert settings.url(nothing, "redis://f") == "redis://env"
    assert settings.prefix(nothing, "f") == "env"
    assert (settings.url(given, "redis://f"), settings.prefix(given, "f")) == (
        *("redis://line", "line"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[worker]\nconcurency = 5", "worker.concurency: unknown, got 5; known are"),
        ("[worker]\nlimiter = 5", "limiter: not supported yet, got 5"),
        ("[wroker]\n", "wroker: unknown"),
        ("[connection]\npassword = 'secret'", "connection.password: unknown, got a secret"),
        ("[worker]\ncancel_secrets = 'secret'", "worker.cancel_secrets: unknown, got a secret"),
        ("[worker]\ncancel_secret = 'tom'", "cancel_secret: at least 4 characters are needed"),
        ("[worker]\ncancel_secret = 5", "cancel_secret: text is needed, got a int"),
        ("[connection]\nurl = 5", "connection.url: text is needed, got 5"),
        ("worker = 5", "worker: a table is needed"),
        ("[worker]\nconcurrency = '5'", "concurrency: a whole number is needed, got '5'"),
        ("[worker]\nconcurrency = true", "concurrency: a whole number is needed, got True"),
        ("[worker]\nclose_timeout = -1", "close_timeout: seconds must not be negative, got -1"),
        ("[worker]\nlock_renew_time = 29", "lock_renew_time: at most 0.8 * lock_duration"),
        ("[worker]\nprocesses = 0", "processes: at least 1 is needed, got 0"),
        ("[worker]\nbackoff_strategies = 5", "backoff_strategies: a table is needed, got 5"),
        ("[worker]\nbackoff_strategies = {a = 5}", "backoff_strategies.a: text is needed, got 5"),
        ("[worker", "geventq.toml: "),
    ],
)
def test_a_wrong_file_is_refused_with_field_and_value(
    tmp_path: pathlib.Path, text: str, said: str
) -> None:
    """Before anything of the user is imported."""
    path = tmp_path / "geventq.toml"
    path.write_text(text)
    given = cli._parser().parse_args(["worker", "m:f", "-q", "q", "--config", str(path)])
    with pytest.raises((UsageError, ValueError, TypeError)) as raised:
        plan.made(given)
    assert said in str(raised.value)
    assert "'secret'" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "MODULE:FUNCTION and -q QUEUE are needed"),
        (["tasks:process", "-q", "a:b"], "queue: must not contain ':'"),
        (["tasks:process", "-q", "q", "-c", "many"], "--concurrency: a whole number is needed"),
        (["tasks:process", "-q", "q", "-c", "0"], "concurrency: at least 1 is needed, got 0"),
        (["tasks:process", "-q", "q", "--kill-after", "inf"], "kill_after: a finite number"),
        (["tasks:process", "-q", "q", "--remove-on-fail", "x"], "--remove-on-fail: JSON is needed"),
        (["tasks:process", "-q", "q", "--config", "none.toml"], "none.toml: [Errno 2] No such"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_imported(
    arguments: list[str], said: str
) -> None:
    given = cli._parser().parse_args(["worker", *arguments])
    with pytest.raises((UsageError, ValueError, TypeError)) as raised:
        plan.made(given)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks:process"], "MODULE:FUNCTION and -q QUEUE are needed"),
        (["tasks", "-q", "q"], "'package.module:function' is needed, got 'tasks'"),
        (["tasks:", "-q", "q"], "'package.module:function' is needed, got 'tasks:'"),
        (["nowhere:f", "-q", "q"], "there is no module 'nowhere'"),
        (["tasks.sub:f", "-q", "q"], "there is no module 'tasks.sub'"),
        (["tasks:nothing", "-q", "q"], "'tasks' has no 'nothing'"),
        (["tasks:__name__", "-q", "q"], "names a text, not a callable"),
        (["broken:f", "-q", "q"], "importing 'broken' failed: SyntaxError"),
        (["needy:f", "-q", "q"], "No module named 'nee'"),
        (["raising:f", "-q", "q"], "raising.py, line 2"),
        (["leaving:f", "-q", "q"], "importing 'leaving' failed: SystemExit: 0"),
        (["wide:f", "-q", "q"], "at most two required parameters"),
        (["tasks:process", "-q", "q", "--cancel-mode", "odd"], "invalid choice: 'odd'"),
        (["tasks:process", "-q", "q", "--config", "wrong.toml"], "worker.speed: unknown, got 5"),
        (["tasks:process", "-q", "q", "--redis", "http://:secret@h"], "well-formed: http://h"),
        (["tasks:process", "-q", "q", "--backoff-strategies", "a=tasks:b"], "'tasks' has no 'b'"),
    ],
)
def test_a_worker_that_cannot_start_is_usage(
    programs: Programs, arguments: list[str], said: str
) -> None:
    """Exit status 2 and the reason; what the user's module raises is shown with its place."""
    programs.write("broken.py", "def f(:\n")
    programs.write("needy.py", "import nee\n")
    programs.write("raising.py", "import os\nos.environ['NOT_SET_ANYWHERE']\n")
    programs.write("leaving.py", "raise SystemExit(0)\n")
    programs.write("wide.py", "def f(a, b, c): ...\n")
    programs.write("wrong.toml", "[worker]\nspeed = 5\n")
    status, out, err = programs.run("worker", *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_a_variable_that_cannot_be_read_is_usage(programs: Programs) -> None:
    status, _, err = programs.run(
        "worker", "tasks:process", "-q", "q", GEVENTQ_SKIP_STALLED_CHECK="maybe"
    )
    assert status == 2
    assert "$GEVENTQ_SKIP_STALLED_CHECK: true or false is needed, got 'maybe'" in err


def test_a_redis_that_cannot_be_reached_is_status_3(programs: Programs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"redis://:secret@127.0.0.1:{port}"
        for more in ([], ["--processes", "2"]):
            status, out, err = programs.run(
                *("worker", "tasks:process", "-q", "q", "--redis", url, *more)
            )
            assert (status, out) == (3, "")
            assert f"127.0.0.1:{port}" in err
            assert "secret" not in err


def test_json_is_all_that_standard_output_holds(programs: Programs, queue: Queue) -> None:
    """What a job prints, or a program that it starts, goes to standard error."""
    programs.write(
        "loud.py",
        """
import os, sys
print("at import")
def process(job, token):
    print("in the job")
    os.system("echo from a program")
    return {"done": [1]}
""",
    )
    worker = programs.geventq("worker", "loud:process", "-q", "q", "--json")
    worker.until_event("ready")
    job = queue.add("loud")
    (completed,) = worker.until_event("completed")
    assert (completed["id"], completed["name"], completed["result"]) == (
        *(job.id, "loud", {"done": [1]}),
    )
    assert [one["event"] for one in worker.events()] == ["starting", "ready", "active", "completed"]
    for text in ("at import", "in the job", "from a program"):
        assert text in worker.err


def test_people_see_what_runs_and_what_is_cancelled(programs: Programs, queue: Queue) -> None:
    worker = programs.geventq("worker", "tasks:process", "-q", "q", "-c", "7")
    worker.until_out("ready")
    first, second = queue.add("quick"), queue.add("polite", timeout=0.05)
    worker.until_out("cancelled")
    worker.until_out("failed")
    worker.until_out("completed")
    out = " ".join(worker.out.split())
    assert "q starting tasks:process, concurrency 7, " in out
    assert f"q active quick {first.id}" in out
    assert f"q completed quick {first.id} {worker.pid}" in out
    assert f"q cancelled polite {second.id} Job timed out after 0.05 s, soft, timeout" in out
    assert f"q failed polite {second.id} Job timed out after 0.05 s" in out


def test_quiet_tells_only_what_goes_wrong(programs: Programs, queue: Queue) -> None:
    worker = programs.geventq("worker", "tasks:process", "-q", "q", "--json", "--quiet")
    worker.until_event("ready")
    queue.add("quick")
    queue.add("nothing of that name")
    assert "nothing of that name" in worker.until_event("failed")[0]["error"]
    assert not worker.events("active") + worker.events("completed")


def test_the_process_is_patched_before_the_users_module_is_imported(
    programs: Programs, queue: Queue
) -> None:
    programs.write(
        "early.py",
        """
from gevent import monkey
import psycopg2.extensions
seen = [monkey.is_module_patched("socket"), bool(psycopg2.extensions.get_wait_callback())]
def process(job):
    return seen
""",
    )
    worker = programs.geventq("worker", "early:process", "-q", "q", "--json")
    worker.until_event("ready")
    queue.add("look")
    assert worker.until_event("completed")[0]["result"] == [True, True]


def test_without_any_address_it_serves_the_embedded_server(programs: Programs) -> None:
    """A `Queue` in a processor meets the same server."""
    del programs.environment["GEVENTQ_REDIS_URL"]
    programs.write(
        "adding.py",
        """
import os
from geventq import Queue
def process(job):
    with Queue("q", prefix=os.environ["GEVENTQ_PREFIX"]) as queue:
        return [os.environ["GEVENTQ_REDIS_URL"], queue.get_job(job.id).name]
""",
    )
    worker = programs.geventq("worker", "adding:process", "-q", "q", "--json")
    worker.until_event("ready")
    assert worker.events("starting")[0]["redis"] == "embedded:"
    assert programs.run("add", "q", "me")[0] == 0
    assert worker.until_event("completed")[0]["result"] == ["embedded:", "me"]


def test_named_back_offs_come_from_the_users_module(programs: Programs, queue: Queue) -> None:
    programs.write(
        "flaky.py",
        """
def process(job):
    if job.attempts_made == 0:
        raise ValueError("once")
    return "twice"
def soon(attempts_made, error, job):
    return 0.01
""",
    )
    worker = programs.geventq(
        *("worker", "flaky:process", "-q", "q", "--json"),
        *("--backoff-strategies", "mine=flaky:soon"),
    )
    worker.until_event("ready")
    queue.add("x", attempts=2, backoff={"type": "mine"})
    assert worker.until_event("completed")[0]["result"] == "twice"
    assert worker.events("retrying")[0]["error"] == "once"


def test_a_reader_that_left_does_not_stop_the_worker(programs: Programs, queue: Queue) -> None:
    """``geventq worker ... | head -1``: the jobs run on."""
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "geventq", "worker", "tasks:process", "-q", "q"],
        cwd=programs.directory,
        env=programs.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        job = queue.add("quick")
        eventually(lambda: queue.get_job_state(job.id) == "completed", timeout=15)
        process.terminate()
        assert process.wait(40) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]
