"""What ``geventq worker`` logs: text or lines of JSON, with job, queue and attempt in each."""

from __future__ import annotations

import json
import logging
import re
import signal
import typing

import pytest

from geventq import Queue
from geventq.commands.logs import _Json
from tests.support.programs import Program, Programs
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # all together

CHATTY = """
import logging, threading, warnings
import gevent
log = logging.getLogger("shop")
log.info("imported")


def process(job):
    log.info("begins with %s\\nand a second line", "redis://:secret@example.org/0")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("went wrong", extra={"rows": 3, "odd": object(), "nan": float("nan")})
    log.warning("%d rows", "many")
    thread = threading.Thread(target=log.warning, args=("in a thread",))
    thread.start()
    thread.join()
    gevent.spawn(bad).join()
    bad_thread = threading.Thread(target=bad)
    bad_thread.start()
    bad_thread.join()
    warnings.warn("old")
    log.error("ends")


def bad():
    raise LookupError("nobody catches this")
"""


def start(programs: Programs, *options: str, text: str = CHATTY) -> Program:
    programs.write("chatty.py", text)
    return programs.geventq("worker", "chatty:process", "-q", "q", "--json", *options)


def lines(program: Program) -> list[dict[str, typing.Any]]:
    """What is on standard error: each line a JSON object."""
    return [json.loads(line) for line in program.err.splitlines()]


@pytest.mark.parametrize("more", [[], ["--processes", "2"]], ids=["one", "processes"])
def test_lines_of_json_are_whole_and_name_the_job(
    programs: Programs, queue: Queue, more: list[str]
) -> None:
    """Whatever is logged, printed by nobody, or hangs on a record."""
    program = start(programs, "--log-format", "json", *more)
    job = queue.add("n")
    program.until_event("completed")
    eventually(lambda: any(one["message"] == "ends" for one in lines(program)))
    said = {one["message"]: one for one in lines(program)}
    inside = [one for one in lines(program) if one["job"] == job.id]
    assert all((one["queue"], one["attempt"]) == ("q", 1) for one in inside)
    assert said["imported"]["job"] is None
    assert "begins with redis://***@example.org/0\nand a second line" in said
    assert "secret" not in program.err
    wrong = said["went wrong"]
    assert wrong["error"] == "ZeroDivisionError: division by zero"
    assert wrong["traceback"].startswith("Traceback (most recent call last):\n")
    assert (wrong["rows"], wrong["nan"]) == (3, "nan")
    assert wrong["odd"].startswith("<object object at")
    assert (wrong["level"], wrong["logger"]) == ("error", "shop")
    assert any(one.startswith("%d rows ('many',) (TypeError") for one in said)
    assert said["in a thread"]["job"] == job.id
    assert said["ends"]["job"] == job.id
    uncaught = [one for one in lines(program) if "nobody catches this" in one.get("error", "")]
    assert [one["job"] for one in uncaught] == [job.id] * 2
    assert re.fullmatch(r"<Greenlet .*: bad> failed", uncaught[0]["message"])
    assert any("UserWarning: old" in one for one in said)


def test_what_the_workers_do_is_in_the_same_lines(programs: Programs, queue: Queue) -> None:
    """Unless it goes to standard output as JSON: whoever collects lines of JSON gets no others."""
    programs.write(
        "fails.py", "def process(job):\n    raise ValueError(f'no {job.attempts_made}')\n"
    )
    program = programs.geventq("worker", "fails:process", "-q", "q", "--log-format", "json")
    job = queue.add("n", attempts=2)
    eventually(lambda: '"failed"' in program.err)
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert program.out == ""
    of_job = [one for one in lines(program) if one["job"] == job.id]
    assert sorted((one["attempt"], one["event"], one["queue"]) for one in of_job) == [
        *((1, "active", "q"), (1, "retrying", "q"), (2, "active", "q"), (2, "failed", "q"))
    ]
    assert of_job[-1]["error"] == "no 1"
    others = [one["event"] for one in lines(program) if one["job"] is None and "event" in one]
    assert others == ["starting", "ready", "closing", "closed"]


def test_text_is_the_default_and_names_the_job_too(programs: Programs, queue: Queue) -> None:
    program = start(programs)
    job = queue.add("n", attempts=2)
    program.until_event("completed")
    eventually(lambda: "ends" in program.err)
    found = program.err.splitlines()
    assert any(line.endswith(" INFO shop imported") for line in found)
    assert any(
        line.endswith(f" ERROR shop [queue=q job={job.id} attempt=1] ends") for line in found
    )
    assert "secret" not in program.err


def test_the_users_own_configuration_has_its_way(programs: Programs, queue: Queue) -> None:
    """Unless a format was asked for."""
    own = "import logging\nlogging.basicConfig(format='MINE %(message)s')\n" + CHATTY
    for more, mine in (([], True), (["--log-format", "text"], False)):
        program = start(programs, *more, text=own)
        queue.add("n")
        program.until_event("completed")
        eventually(lambda program=program: "ends" in program.err)  # type: ignore[misc]
        assert ("MINE ends" in program.err) == mine
        program.kill()


DICT_CONFIG = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "formatters": {"mine": {"format": "MINE %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "mine"},
        "file": {"class": "logging.FileHandler", "filename": "mine.log", "formatter": "mine"},
    },
    "root": {"handlers": ["console", "file"], "level": "WARNING"},
    "loggers": {"shop": {"handlers": ["console", "file"], "propagate": False, "level": "INFO"}},
})
"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_format_that_was_asked_for_stays(programs: Programs, queue: Queue, asked: bool) -> None:
    """Whatever the module configures for standard error; its files are its own.  And geventq is
    heard, which such a configuration switches off by default."""
    more = ["--log-format", "json"] if asked else []
    calm = CHATTY.replace('    log.warning("%d rows", "many")\n', "")
    heard = "    logging.getLogger('geventq').warning('heard')\n\n\ndef bad():"
    text = DICT_CONFIG + calm.replace("def bad():", heard)
    program = start(programs, *more, text=text)
    queue.add("n")
    program.until_event("completed")
    eventually(lambda: "heard" in program.err)
    assert ("MINE ends" in program.err) != asked
    if asked:
        messages = [json.loads(line)["message"] for line in program.err.splitlines()[1:]]
        assert messages.count("ends") == messages.count("heard") == 1
    written = (programs.directory / "mine.log").read_text()
    assert "MINE ends" in written
    assert "MINE heard" in written


def test_what_is_below_the_level_is_not_logged(programs: Programs, queue: Queue) -> None:
    program = start(programs, "--log-level", "error")
    queue.add("n")
    program.until_event("completed")
    eventually(lambda: "ends" in program.err)
    assert "imported" not in program.err
    assert "in a thread" not in program.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--log-format", "xml"], "invalid choice: 'xml'"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
        (["--config", "wrong.toml"], "log_format: 'text' or 'json' is needed, got 5"),
    ],
)
def test_an_unknown_format_is_usage(programs: Programs, arguments: list[str], said: str) -> None:
    programs.write("wrong.toml", "[worker]\nlog_format = 5\n")
    status, out, err = programs.run("worker", "tasks:process", "-q", "q", *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_what_the_command_tells_is_a_line_of_json_too(programs: Programs) -> None:
    program = start(programs, "--log-format", "json", "--redis", "redis://:secret@127.0.0.1:1")
    assert program.ends() == 3
    line = lines(program)[-1]
    assert "127.0.0.1:1" in line["message"]
    assert line["level"] == "error"
    assert "secret" not in program.err


class _Hostile:
    def __repr__(self) -> str:
        raise ValueError("no")


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value",
    [_Hostile(), CIRCLE, {1: {(2, 3): 4}}, float("inf"), "\ud800", b"\xff", "x" * 100_000],
    ids=["hostile", "circle", "keys", "infinite", "surrogate", "bytes", "long"],
)
def test_no_extra_breaks_a_line(value: object) -> None:
    fields = {"msg": "m", "queue": None, "job": None, "attempt": None, "one": value, "time": value}
    line = _Json().format(logging.makeLogRecord(fields))
    assert "\n" not in line
    said = json.loads(line)
    assert said["message"] == "m"
    assert "one" in said
    assert "extra_time" in said
