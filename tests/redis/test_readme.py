"""What README and the guides show is run here as it stands there: snippets and commands."""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import typing

import gevent
import pytest

from geventq import CancellationToken, Job, Queue
from tests.conftest import Make
from tests.support.guides import GUIDES, file_of, pages, snippets
from tests.support.told import ended
from tests.support.waiting import eventually

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found is not None, title
    return found[1]


def snippets_of(title: str) -> list[str]:
    return snippets(section(title), "python")


@pytest.fixture
def run(tmp_path: pathlib.Path) -> collections.abc.Callable[[list[str]], str]:
    """Runs a command as a new user would: nothing set, a home of its own; its output."""
    environment = {key: value for key, value in os.environ.items() if "GEVENTQ" not in key}
    environment |= {"GEVENTQ_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def run(command: list[str]) -> str:
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


def test_the_first_job_and_its_cancellation(
    run: collections.abc.Callable[[list[str]], str],
) -> None:
    (program,) = snippets_of("The first job, and its cancellation")
    promised = re.search(r"failed_reason\)  # (.*)", program)
    assert promised is not None
    assert run([sys.executable, "-W", "error", "-c", program]).strip() == promised[1]


class Patterns(typing.NamedTuple):
    """The processors of the section, and what the functions that they call have done."""

    names: dict[str, typing.Any]
    done: list[object]


@pytest.fixture
def patterns() -> Patterns:
    done: list[object] = []
    names: dict[str, typing.Any] = {
        "handle": lambda item: (gevent.sleep(0.001), done.append(item)),
        "download": lambda url, **options: (gevent.sleep(60 if url == "slow" else 0), url)[1],
        "step_one": lambda data: (gevent.sleep(0.05), data)[1],
        "step_two": lambda first: "both steps",
        "weigh": lambda node: (gevent.sleep(node.get("seconds", 0)), 1)[1],
        "work": lambda job: gevent.sleep(60),
        "roll_back_or_commit": lambda: (gevent.sleep(0.05), done.append("rolled back")),
    }
    for snippet in snippets_of("The four patterns"):
        exec(compile(snippet, "README.md", "exec"), names)
    return Patterns(names, done)


@pytest.mark.parametrize(
    ("pattern", "data"),
    [
        ("chunks", {"items": list(range(10_000))}),
        ("blocking", {"url": "slow"}),
        ("either", {"url": "slow"}),
        ("steps", {}),
        ("tree", {"root": {"seconds": 0.05, "children": [{"children": []}]}}),
    ],
)
def test_each_pattern_is_cancelled_softly(
    queue: Queue, make: Make, patterns: Patterns, pattern: str, data: object
) -> None:
    worker = make(patterns.names[pattern])
    job = queue.add("n", data)
    eventually(lambda: worker.active_jobs)
    gevent.sleep(0)  # so that the processor has had its first turn
    assert worker.cancel_job(job.id, "enough")
    read = ended(queue, job, "failed")
    assert read.failed_reason == "Job cancelled: enough"
    assert len(patterns.done) < 10_000


@pytest.mark.parametrize(
    ("pattern", "data", "result"),
    [
        ("chunks", {"items": [1, 2, 3]}, None),
        ("blocking", {"url": "fast"}, "fast"),
        ("either", {"url": "fast"}, "fast"),
        ("steps", {}, "both steps"),
        ("tree", {"root": {"children": [{"children": []}, {"children": []}]}}, 3),
    ],
)
def test_each_pattern_ends_by_itself(
    queue: Queue, make: Make, patterns: Patterns, pattern: str, data: object, result: object
) -> None:
    make(patterns.names[pattern])
    job = queue.add("n", data)
    read = ended(queue, job, "completed")
    assert read.return_value == result


def test_the_shielded_block_is_not_cut(queue: Queue, make: Make, patterns: Patterns) -> None:
    started = []

    def commit(job: Job, token: CancellationToken) -> object:
        started.append(job.id)
        return patterns.names["commit"](job, token)

    worker = make(commit)
    job = queue.add("n")
    eventually(lambda: started)
    assert worker.cancel_job(job.id, "it hangs", hard=True)
    eventually(lambda: queue.get_job_state(job.id) == "failed")
    assert patterns.done == ["rolled back"]


#: The sections of README whose snippets have tests of their own above.
_RUN_ABOVE: typing.Final = ("The first job, and its cancellation", "The four patterns")


def _others() -> list[typing.Any]:
    """The snippets of README's other sections, and those of the guides."""
    above = [text for title in _RUN_ABOVE for text in snippets_of(title)]
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in pages()
        for number, text in enumerate(snippets(page.read_text(), "python"), 1)
        if text not in above and not file_of(text)  # those are run in tests/cli/test_guides.py
    ]


@pytest.mark.slow
@pytest.mark.parametrize("program", _others())
def test_a_snippet_of_a_guide_is_a_whole_program(
    run: collections.abc.Callable[[list[str]], str], program: str
) -> None:
    """It ends by itself, without a warning, and prints what its comments behind `print` say."""
    promised = re.findall(r"^print\(.*\)  # (.*)$", program, re.M)
    assert run([sys.executable, "-W", "error", "-c", program]).splitlines() == promised


def test_the_commands_of_the_guide_of_cancellation(
    run: collections.abc.Callable[[list[str]], str],
) -> None:
    """One after the other, on one server: the last shows what the others did."""
    (block,) = snippets((GUIDES / "cancellation.md").read_text(), "sh")
    shown = [run([sys.executable, "-m", *shlex.split(line)]) for line in block.splitlines()]
    assert [job["state"] for job in json.loads(shown[-1])] == ["failed"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language(page: pathlib.Path) -> None:
    """What names none would be left out above."""
    fences = re.findall(r"^```(.*)", page.read_text(), re.M)
    assert all(fences[::2])
    assert not any(fences[1::2])
