"""The suite in parts that run at once, on as few as two cores: ``make test``, ``make test-fast``.

    python -m tests.support.parts {whole,fast} [arguments for pytest]

Most of what tests do is to wait, for locks that lapse and for processes that start and end.  The
fast suite has more parts than run at once, so that all cores have work to the end.  While the parts
run their progress is shown, each line behind the part's name; what a part has to say of failures
comes in one piece when it ends.  The last lines say how each part has ended.  The exit status is 1
if one failed.
"""

from __future__ import annotations

import concurrent.futures
import glob
import os
import pathlib
import subprocess
import sys
import typing

__all__ = ["SUITES", "main"]

ROOT: typing.Final = pathlib.Path(__file__).resolve().parents[2]
_IN_BOTH: typing.Final = ("tests/fault", "tests/redis", "tests/unit")
#: What users have in patched processes, and some in others.
_INTEGRATIONS: typing.Final = tuple(
    f"tests/apps/test_{name}.py" for name in ("flask", "sentry", "sqlalchemy", "django")
)
_PATCHED: typing.Final = ("-m", "gevent.monkey", "--module", "pytest", "-q", "-m", "not unpatched")
_PLAIN: typing.Final = ("-m", "pytest", "-q", "-m", "not patched")
_FAST: typing.Final = (
    *("-m", "pytest", "-q", "-m"),
    "not patched and not slow and not interop and not database",
)

#: What each part of a suite runs; patterns stand for files.  Together they leave none out: a test
#: says so.
SUITES: typing.Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "whole": {
        "plain": (*_PLAIN, *_IN_BOTH),
        "patched": (*_PATCHED, *_INTEGRATIONS, *_IN_BOTH),
        "programs": (*_PLAIN, "tests/apps", "tests/cli", "tests/interop"),
    },
    "fast": {
        "fault": (*_FAST, "tests/fault", "tests/interop"),
        "redis": (*_FAST, "tests/redis/test_[a-q]*.py"),
        "worker": (*_FAST, "tests/redis/test_w*.py"),
        "others": (*_FAST, "tests/redis/test_[r-v]*.py"),
        "programs": (*_FAST, "tests/cli", "tests/apps"),
        "unit": (*_FAST, "tests/unit"),
    },
}
_NO_TESTS: typing.Final = 5  # how pytest says that nothing was chosen


class Ending(typing.NamedTuple):
    """How a part has ended."""

    status: int
    said: str
    """The last thing that it said: pytest's own summary."""


def expanded(words: typing.Iterable[str]) -> list[str]:
    """The words, with the files in the place of their patterns."""
    found = []
    for word in words:
        is_pattern = word.startswith("tests/") and "*" in word
        found += sorted(glob.glob(word, root_dir=ROOT)) if is_pattern else [word]
    return found


def run(name: str, words: list[str]) -> Ending:
    """Run one part to its end; blocks the native thread."""
    held: list[str] = []
    command = [sys.executable, *expanded(words)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip().endswith("%]"):
                print(f"{name:8} {line}", end="", flush=True)
            else:
                held.append(line)
    ending = Ending(process.returncode, held[-1].strip() if held else "")
    if ending.status not in (0, _NO_TESTS):
        print(f"\n----- {name}: {' '.join(command)}\n{''.join(held)}", end="", flush=True)
    return ending


def main(suite: str, arguments: list[str]) -> int:
    """All parts, and what became of them."""
    parts = {name: [*words, *arguments] for name, words in SUITES[suite].items()}
    # Twice as many as there are cores: while some wait, others may work.
    at_once = min(len(parts), 2 * (os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
        try:
            found = list(threads.map(run, parts, parts.values()))
        except KeyboardInterrupt:  # the parts have it from the terminal, too
            return 130
    print()
    for name, end in zip(parts, found, strict=True):
        print(f"{name:8} {end.said.strip('= ')}")
    return int({end.status for end in found} - {_NO_TESTS} != {0})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
