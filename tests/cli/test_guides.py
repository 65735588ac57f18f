"""The guides are followed from top to bottom, as a reader does: their files are written, their
commands are run."""

from __future__ import annotations

import collections.abc
import json
import pathlib
import re
import shlex
import socket
import typing
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.support.guides import GUIDES, blocks, file_of
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


class Reader:
    """Somebody with an empty directory and two terminals."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.told: list[str] = []
        """What each command that ends by itself has said."""

    def follow(self, page: str) -> None:
        """Do what the page says, one block after the other."""
        for language, text in blocks((GUIDES / page).read_text()):
            if language == "python" and (name := file_of(text)):
                path = self._programs.directory / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text.replace(":8000", f":{self.port}"))
            elif language == "sh":
                for line in text.splitlines():
                    self._type(shlex.split(line))

    def _type(self, words: list[str]) -> None:
        if words[:2] == ["geventq", "worker"]:
            self._programs.geventq(*words[1:]).until_out("ready")
        elif words[0] == "geventq":
            self.told.append(self.run(*words[1:]))
        elif words[0] == "python" and "geventq_worker" in words:
            self._programs.start(*words[1:]).until_out("ready")
        elif words[0] == "python":
            program = self._programs.start(*words[1:])
            assert program.ends() == 0, program.told()
        elif words[0] == "curl":
            self.told.append(self._curl(words[1:]))
        else:
            self.serve(*words)

    def run(self, *arguments: str) -> str:
        """A command to its end, which is a good one; what it said."""
        status, out, err = self._programs.run(*arguments)
        assert status == 0, err
        return out

    def serve(self, module: str, *arguments: str) -> Program:
        """Start a web server, and wait until it listens."""
        program = self._programs.start("-m", module, *arguments)
        eventually(self._listens, 40, every=0.05, what=program.told)
        return program

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _curl(self, words: list[str]) -> str:
        options = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        path = urllib.parse.urlsplit(words[-1]).path
        return self.ask(path, options.get("-X"), options.get("-d"))

    def ask(self, path: str, method: str | None = None, data: str | None = None) -> str:
        """One request to the server of the page."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data and data.encode(), method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def jobs(self, queue: str = "exports") -> dict[str, typing.Any]:
        """The jobs of the page's queue, by id."""
        return {job["id"]: job for job in json.loads(self.run("jobs", queue, "--json"))}


@pytest.fixture
def reader(tmp_path: pathlib.Path) -> collections.abc.Iterator[Reader]:
    programs = Programs(tmp_path)
    yield Reader(programs)
    programs.end()


def test_getting_started(reader: Reader) -> None:
    reader.follow("getting-started.md")
    assert len(reader.told) == 4
    found = reader.jobs()
    assert found["2"]["state"] == "failed"
    eventually(lambda: reader.jobs()["1"]["state"] == "completed")


def test_the_command_line(reader: Reader) -> None:
    """And none of the commands is left out."""
    reader.follow("commands.md")
    page = (GUIDES / "commands.md").read_text()
    for command in re.findall(r"^    (\w+) ", reader.run("--help"), re.M):
        assert re.search(rf"^\|.*`{command}\b", page, re.M), command


def test_gunicorn(reader: Reader) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    reader.follow("gunicorn.md")
    first, shown, second, cancelled = map(json.loads, reader.told)
    assert (first["id"], second["id"]) == ("1", "2")
    assert shown["state"] in ("waiting", "active", "completed")
    assert cancelled["status"] in ("stopped", "cancelled")
    eventually(lambda: json.loads(reader.ask("/exports/1"))["result"] == {"rows": 3}, every=0.05)
    assert json.loads(reader.ask("/exports/2"))["state"] == "failed"


def test_django(reader: Reader) -> None:
    pytest.importorskip("django")
    reader.follow("frameworks.md")
    eventually(
        lambda: [job["state"] for job in reader.jobs("orders").values()] == ["completed"] * 2
    )
    assert sorted(reader.jobs("orders")) == ["1", "outbox-1"]


def test_an_asgi_application(reader: Reader) -> None:
    pytest.importorskip("uvicorn")
    reader.follow("other-hosts.md")
    server = reader.serve("uvicorn", "asgi:app", "--port", str(reader.port))
    added = json.loads(reader.ask("/", "POST"))
    assert json.loads(reader.ask(f"/{added['id']}")) == {"state": "waiting"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        reader.ask("/")
    assert json.loads(reader.ask(f"/{added['id']}", "DELETE")) == {"status": "cancelled"}
    assert reader.jobs()[added["id"]]["state"] == "failed"
    assert "Traceback" not in server.err, server.err
