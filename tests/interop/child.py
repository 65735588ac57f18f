"""Child processes that are spoken to in JSON lines: Node scripts, and workers in Python.

A child gets its options as the first line of its standard input, further orders as further lines,
and answers in lines on its standard output.  What it writes to standard error is kept for the
message of a failure.  Every wait yields to the hub, so a geventq worker may run beside it.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import typing

import gevent
from gevent import subprocess as gsubprocess

__all__ = ["NODE_MODULES", "Child", "install_node_modules", "node", "python"]

ROOT: typing.Final = pathlib.Path(__file__).resolve().parents[2]
_INTEROP: typing.Final = ROOT / "tests" / "interop"
NODE_MODULES: typing.Final = _INTEROP / "node_modules"

Message = dict[str, typing.Any]


def install_node_modules() -> str | None:
    """Install npm bullmq where it is missing; returns why it cannot be, or `None`.

    Blocks for some seconds the first time.
    """
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if (NODE_MODULES / "bullmq" / "package.json").exists():
        return None
    if shutil.which("npm") is None:
        return "npm is not installed"
    # No lock file: one made by npm 11 is refused by `npm ci` over optional platform packages.
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=_INTEROP, capture_output=True, text=True)
    if done.returncode:
        return f"npm install failed: {done.stderr[-2000:]}"
    (NODE_MODULES / ".stamp").touch()  # what the Makefile looks at
    return None


def node(script: str | pathlib.Path, **options: typing.Any) -> Child:
    """A Node script of `tests/interop/node` (by name, without ``.mjs``), or any one by path."""
    path = script if isinstance(script, pathlib.Path) else _INTEROP / "node" / f"{script}.mjs"
    # node: warnings of its own must not look like ours
    return Child(["node", "--no-warnings", str(path)], options)


def python(
    module: str,
    *,
    root: pathlib.Path = ROOT,
    under: typing.Sequence[str] = (),
    **options: typing.Any,
) -> Child:
    """A Python module, run by this interpreter from the root of the project, or of another
    checkout of it; `under` is a command that runs the interpreter."""
    return Child([*under, sys.executable, "-m", module], options, root)


class Child:
    """One child process.  Use it as a context manager: leaving it closes the child."""

    def __init__(self, command: list[str], options: Message, root: pathlib.Path = ROOT) -> None:
        self._name = pathlib.Path(command[-1]).stem
        self._process = gsubprocess.Popen(
            command,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._errors: collections.deque[bytes] = collections.deque(maxlen=200)
        self._unheard: list[Message] = []
        self._reader = gevent.Greenlet(self._read_errors)
        self._reader.name = f"child-{self._name}-errors"
        self._reader.start()
        self.say(options)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def errors(self) -> str:
        """What the child wrote to standard error."""
        return b"".join(self._errors).decode(errors="replace")

    def _read_errors(self) -> None:
        self._errors.extend(self._process.stderr)

    def say(self, message: Message) -> None:
        """Send one line."""
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout: float = 40.0) -> Message:
        """The next line.  Raises `AssertionError` with the child's errors if none comes."""
        if self._unheard:
            return self._unheard.pop(0)
        line = b""
        with gevent.Timeout(timeout, False):
            line = self._process.stdout.readline()
        if not line:
            self._reader.join(1.0 if self._process.poll() is not None else 0.0)
            raise AssertionError(f"{self._name} said nothing within {timeout} s:\n{self.errors}")
        message: Message = json.loads(line)
        return message

    def hear_until(
        self, wanted: collections.abc.Callable[[Message], object], timeout: float = 40.0
    ) -> list[Message]:
        """The lines up to the first that is `wanted`, that one included."""
        heard: list[Message] = []
        with gevent.Timeout(timeout, AssertionError(f"{self._name}: not within {timeout} s")):
            while not heard or not wanted(heard[-1]):
                heard.append(self.hear(timeout))
        return heard

    def hear_ready(self) -> None:
        """Wait until it is ready.  What it said before, because there was work at once, is heard
        afterwards."""
        *self._unheard, _ = self.hear_until(lambda message: message.get("ready"))

    def ask(self, message: Message, timeout: float = 40.0) -> Message:
        """Send one line, and return the next one that comes."""
        self.say(message)
        return self.hear(timeout)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def close(self, timeout: float = 40.0) -> int:
        """End its input, which ends the child; returns its exit status.  Idempotent."""
        if not self._process.stdin.closed:
            with gevent.Timeout(timeout, False):
                with contextlib.suppress(BrokenPipeError):  # it has ended before
                    self._process.stdin.close()
                self._process.wait()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()
        return int(self._process.returncode)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
