"""The pages on workers and deployment are followed from top to bottom, as an operator does."""

from __future__ import annotations

import collections.abc
import json
import pathlib
import re
import shlex
import signal
import socket
import typing
import urllib.request

import pytest

from geventq import Queue
from geventq.store.endpoint import Endpoint
from tests.support.guides import GUIDES, ROOT, blocks, file_of, snippets
from tests.support.programs import Program, Programs
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

CONF: typing.Final = ROOT / "conf"
DEPLOYMENT: typing.Final = (GUIDES / "deployment.md").read_text()


class Operator:
    """Somebody with an empty directory, who has one worker at a time."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self.worker: Program | None = None
        self._added = 0  # jobs, since that one has started
        self.answer: dict[str, typing.Any] = {}
        self.shown: dict[str, typing.Any] = {}

    def follow(self, text: str) -> None:
        for language, block in blocks(text):
            block = block.replace("8080", self._port)
            if language == "python" and (name := file_of(block)):
                self._programs.write(name, block)
            elif language == "toml":
                self._programs.write(block.split()[1], block)
            elif language == "json":
                self.shown = json.loads(block)
            elif language == "sh":
                for line in block.splitlines():
                    self._type(shlex.split(line))

    def _type(self, words: list[str]) -> None:
        if words[0] == "python" or words[1] == "worker":
            self.stop()
            self._added = 0
            command = words[1:] if words[0] == "python" else ["-m", "geventq", *words[1:]]
            self.worker = self._programs.start(*command)
            eventually(self._is_ready, 40, every=0.02, what=self.worker.told)
        elif words[0] == "geventq":
            self._added += words[1] == "add"
            status, _, err = self._programs.run(*words[1:])
            assert status == 0, err
        elif words[0] == "curl":
            eventually(lambda: self._ask()["ended_jobs"] == self._added)
            self.answer = self._ask()
        else:
            assert words[0] == "kill"
            assert self.worker is not None
            number = signal.Signals[f"SIG{words[1][1:]}"]
            self.worker.signal(number)
            if number == signal.SIGUSR1:
                eventually(lambda: "geventq: 0 jobs in process" in self._err())
            elif number == signal.SIGHUP:
                eventually(lambda: "the settings were read anew, and are as before" in self._err())
            else:
                assert self.worker.ends() == 0

    def _err(self) -> str:
        assert self.worker is not None
        return self.worker.err

    def _ask(self) -> dict[str, typing.Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/ready", timeout=10) as answer:
            return dict(json.load(answer))

    def _is_ready(self) -> bool:
        try:
            return bool(self._ask()["ready"])
        except OSError:
            return False

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.signal(signal.SIGTERM)
            assert self.worker.ends() == 0

    def states(self, queue: str) -> list[str]:
        _, out, _ = self._programs.run("jobs", queue, "--json")
        return [job["state"] for job in json.loads(out)]


@pytest.fixture
def operator(tmp_path: pathlib.Path) -> collections.abc.Iterator[Operator]:
    programs = Programs(tmp_path)
    yield Operator(programs)
    programs.end()


def test_workers(operator: Operator) -> None:
    operator.follow((GUIDES / "workers.md").read_text())
    assert operator.states("exports") == operator.states("mails") * 2 == ["completed"] * 2
    assert operator.answer.keys() == operator.shown.keys()
    for name in ("workers", "processes"):
        for one in operator.answer[name]:
            assert one.keys() == operator.shown[name][0].keys()
    for name in ("status", "ready", "live", "concurrency", "active_jobs", "ended_jobs", "redis"):
        assert operator.answer[name] == operator.shown[name], name


@pytest.mark.parametrize(
    ("language", "name"), [("ini", "geventq.service"), ("dockerfile", "Dockerfile")]
)
def test_what_deployment_quotes_stands_in_conf(language: str, name: str) -> None:
    (block,) = snippets(DEPLOYMENT, language)
    found = (CONF / name).read_text().splitlines()
    assert [line for line in block.splitlines() if line not in found] == []


def test_the_example_for_kubernetes_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    (block,) = snippets(DEPLOYMENT, "yaml")
    (container,) = yaml.safe_load(block)["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": 8080}
    assert container["args"] == ["myapp.tasks:process", "-q", "exports"]


def test_the_times_to_stop_are_those_of_conf() -> None:
    """And each is longer than a close takes."""
    rows = re.findall(r"^\| (\w+) \| `.*\| (\d+) s \|$", DEPLOYMENT, re.M)
    assert {who for who, _ in rows} == {"systemd", "docker", "compose", "Kubernetes"}
    assert {seconds for _, seconds in rows} == {"30"}
    assert "stop_grace_period: 30s" in (CONF / "compose.yaml").read_text()
    assert "TimeoutStopSec=30" in (CONF / "geventq.service").read_text()
    assert "--stop-timeout 30" in (CONF / "Dockerfile").read_text()


def test_a_server_with_these_settings_keeps_its_jobs(tmp_path: pathlib.Path, prefix: str) -> None:
    """Also through a crash of its process; and the worker has nothing to warn of."""
    settings = next(one for one in snippets(DEPLOYMENT, "text") if "maxmemory" in one)
    words = [word for line in settings.splitlines() for word in (f"--{line}").split()]
    programs = Programs(tmp_path)
    with Server(options=tuple(words)) as server, Queue("q", server.url, prefix) as queue:
        programs.write("tasks.py", "def process(job): ...\n")
        program = programs.geventq(
            *("worker", "tasks:process", "-q", "other", "--redis", server.url, "--json")
        )
        program.until_event("ready")
        job = queue.add("n")
        eventually(lambda: server.client().info("persistence")["aof_pending_bio_fsync"] == 0)
        server.kill()
        server.start()
        assert queue.get_job_state(job.id) == "waiting"
        programs.end()
    assert "maxmemory-policy" not in program.err


def test_the_urls_can_be_used() -> None:
    (urls,) = (one for one in snippets(DEPLOYMENT, "text") if "rediss:" in one)
    for url in urls.splitlines():
        assert "PASSWORD" not in Endpoint.of(url).describe()
