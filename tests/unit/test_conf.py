"""The files in conf/ are what they say: readable, whole, and consistent with each other."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import pathlib
import re
import shutil
import subprocess
import tomllib
import typing

import pytest

from geventq import cli, job_options
from geventq.commands import plan, worker_settings
from geventq.commands.console import UsageError
from geventq.commands.worker_settings import WORKER
from geventq.worker.settings import LATER, WorkerOptions
from tests.support import access
from tests.support.conf_file import NOT_OF_THE_WORKER, written

CONF = pathlib.Path(__file__).parents[2] / "conf"

# Of WorkerOptions, what makes no sense in a file: the command starts its worker itself.
NOT_IN_FILES = {"autorun"}


def _uncommented() -> str:
    text = (CONF / "geventq.toml").read_text()
    return re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)


def _options() -> dict[str, typing.Any]:
    return tomllib.loads(_uncommented())


def test_the_file_says_of_each_option_what_the_source_says() -> None:
    """Made again by ``python -m tests.support.conf_file > conf/geventq.toml``."""
    assert (CONF / "geventq.toml").read_text() == written()


def test_as_shipped_the_file_changes_nothing() -> None:
    text = (CONF / "geventq.toml").read_text()
    assert tomllib.loads(text) == {"connection": {}, "worker": {}}


def test_the_file_names_every_option_there_is_and_no_other() -> None:
    """Commented ones count; those of later stages would be refused, so they are not named."""
    built = {field.name for field in dataclasses.fields(WorkerOptions)} - LATER
    assert set(_options()["worker"]) == (built - NOT_IN_FILES) | set(NOT_OF_THE_WORKER)
    assert set(_options()["connection"]) == {"url", "prefix"}


def test_the_command_line_has_every_option_of_the_file() -> None:
    assert {setting.name for setting in WORKER} == set(_options()["worker"]) - {"processor"}


@pytest.mark.parametrize("name", sorted(LATER))
@pytest.mark.parametrize("table", ["worker", "workers"])
def test_what_is_not_supported_yet_is_not_called_unknown(
    tmp_path: pathlib.Path, table: str, name: str
) -> None:
    """In the file as in a program: the option's own check says it."""
    head, place = ("[worker]", "") if table == "worker" else ("[[workers]]", "workers[0]: ")
    file = tmp_path / "geventq.toml"
    given = cli._parser().parse_args(["worker", "--config", str(file)])
    file.write_text(f'{head}\nqueue = "q"\nprocessor = "m:f"\n{name} = 7\n')
    with pytest.raises((UsageError, ValueError), match="not supported yet") as caught:
        plan.made(given)
    assert str(caught.value).endswith(f"{place}{name}: not supported yet, got 7")
    default = {"limiter": None, "telemetry": None}.get(name, "false")
    if default:
        file.write_text(file.read_text().replace("7", default))
        plan.made(given)


@pytest.mark.parametrize("name", sorted(LATER))
def test_what_is_not_supported_yet_is_said_of_a_flag_and_a_variable(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flag = "--" + name.replace("_", "-")
    for more in ([flag], [flag, "7"], [f'{flag}={{"max":1}}']):
        given = cli._parser().parse_args(["worker", "m:f", "-q", "q", *more])
        with pytest.raises(ValueError, match=f"^{name}: not supported yet, got "):
            plan.made(given)
    monkeypatch.setenv(f"GEVENTQ_{name.upper()}", "7")
    with pytest.raises(ValueError, match=f"^{name}: not supported yet, got 7"):
        plan.made(cli._parser().parse_args(["worker", "m:f", "-q", "q"]))


def test_what_is_not_supported_yet_is_not_in_the_help() -> None:
    for command, names in (("worker", LATER), ("add", job_options.LATER)):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
            cli._parser().parse_args([command, "--help"])
        assert "--concurrency" in out.getvalue() or "--delay" in out.getvalue()
        for name in names:
            assert "--" + name.replace("_", "-") not in out.getvalue()


@pytest.mark.parametrize("name", sorted(job_options.LATER))
def test_what_is_not_supported_yet_is_said_of_a_job(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    value = '{"queue":"q","id":"1"}' if name in ("parent", "deduplication") else "true"
    given = cli._parser().parse_args(["add", "q", "n", flag, value])
    with pytest.raises(ValueError, match=f"^{name}: not supported yet, got "):
        given.run(given)


def test_the_command_accepts_the_whole_file(tmp_path: pathlib.Path) -> None:
    """Each example is one that a worker can be made with."""
    (tmp_path / "all.toml").write_text(_uncommented())
    given = argparse.Namespace(
        config=str(tmp_path / "all.toml"),
        processor=None,
        **{setting.name: None for setting in WORKER},
    )
    options = worker_settings.from_all(given).shared
    for name in NOT_OF_THE_WORKER:
        del options[name]
    assert options.pop("backoff_strategies") == {"mine": "myapp.tasks:backoff"}
    assert options.pop("around") == ["myapp.hooks:timing"]
    WorkerOptions(**options)


def test_the_command_accepts_the_example_of_several_workers(tmp_path: pathlib.Path) -> None:
    text = (CONF / "geventq.toml").read_text()
    _, example = text.split("several queues in one process")
    lines = [line[4:] for line in example.splitlines() if line.startswith("#   ")]
    (tmp_path / "several.toml").write_text("\n".join(lines))
    given = argparse.Namespace(
        config=str(tmp_path / "several.toml"),
        processor=None,
        **{setting.name: None for setting in WORKER},
    )
    workers = worker_settings.from_all(given).workers
    assert [one.pop("queue") for one in workers] == ["exports", "mails"]
    for options in workers:
        assert options.pop("processor").startswith("myapp.")
        WorkerOptions(**options)


def test_what_the_file_calls_a_default_is_the_default() -> None:
    """Where the comment does not say "none", the value shown is what a worker does without it."""
    comments = re.split(r"\n\n+", (CONF / "geventq.toml").read_text())
    shown = 0
    for comment in comments:
        for name, value in re.findall(r"^# (\w+) = (.+)$", comment, flags=re.MULTILINE):
            if name in WorkerOptions.__dataclass_fields__ and "Default:" not in comment:
                shown += 1
                default = WorkerOptions.__dataclass_fields__[name].default
                assert tomllib.loads(f"x = {value}")["x"] == default, name
    assert shown > 5


def test_systemd_waits_longer_than_the_worker_needs_to_close() -> None:
    """7.1: `close(t)` returns after t + max(kill_after, 1 s) + 4 s."""
    unit = (CONF / "geventq.service").read_text()
    close_timeout = float(re.search(r"--close-timeout (\d+)", unit)[1])  # type: ignore[index]
    stop = float(re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[1])  # type: ignore[index]
    assert stop > close_timeout + 1 + 4
    assert "KillSignal=SIGTERM" in unit
    assert "KillMode=mixed" in unit


def test_systemd_takes_the_unit(tmp_path: pathlib.Path) -> None:
    """By its own check, with a program that is there in the place of the user's."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze(1)")
    unit = (CONF / "geventq.service").read_text().replace("/srv/myapp/.venv/bin/geventq", "/bin/sh")
    (tmp_path / "geventq.service").write_text(unit)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "geventq.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "\nType=notify\n" in unit
    assert "\nExecReload=/bin/kill -HUP $MAINPID\n" in unit


def test_a_container_waits_longer_than_the_worker_needs_to_close() -> None:
    """7.1; and its Redis keeps what it is given."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((CONF / "compose.yaml").read_text())["services"]
    worker, server = services["worker"], services["redis"]
    close_timeout = float(worker["environment"]["GEVENTQ_CLOSE_TIMEOUT"])
    assert float(worker["stop_grace_period"].removesuffix("s")) > close_timeout + 1 + 4
    assert worker["init"] is True
    assert (CONF / worker["build"]["context"] / worker["build"]["dockerfile"]).is_file()
    options = server["command"]
    for name, value in (("--maxmemory-policy", "noeviction"), ("--appendonly", "yes")):
        assert options[options.index(name) + 1] == value
    for name in worker["environment"]:
        assert name == "GEVENTQ_REDIS_URL" or name in {one.variable for one in WORKER}


@pytest.mark.parametrize(
    "name",
    [
        *("geventq.toml", "geventq.service", "gunicorn.conf.py", "valkey-dev.conf"),
        *("Dockerfile", "compose.yaml"),
    ],
)
def test_the_files_are_commented(name: str) -> None:
    first = (CONF / name).read_text().splitlines()[0]
    assert first.startswith("# ")


def test_the_users_may_do_what_the_scripts_do() -> None:
    """Made again by ``python -m tests.support.access > conf/users.acl``, and ``... table``."""
    assert (CONF / "users.acl").read_text() == access.written()
    guide = CONF.parent / "geventq" / "guides" / "internals" / "access.md"
    assert access.table() in guide.read_text()
