"""Attempts without a worker: what the engine does around a processor, and no more; and a
processor that outlives its kills."""

from __future__ import annotations

import contextlib
import typing

import gevent
from greenlet import getcurrent

from geventq.cancellation import Attempt, Cancellation

__all__ = ["Run", "survive"]


class Run:
    """One processor under one attempt, in a greenlet of its own.

    ``process(token)`` is the processor.  `told` lists what the observer was told, `error` and
    `result` what came out.
    """

    def __init__(
        self,
        process: typing.Callable[..., typing.Any],
        *,
        with_token: bool = True,
        hard: bool = False,
        kill_after: float = 0.0,
        timeout: float | None = None,
    ) -> None:
        self.told: list[str] = []
        self.stack = ""
        self.error: BaseException | None = None
        self.result: object = None
        self._process, self._timeout = process, timeout
        self.attempt = Attempt(
            "17", with_token=with_token, hard=hard, kill_after=kill_after, observer=self
        )
        self.greenlet = gevent.Greenlet(self._run)
        self.greenlet.name = "test-job"

    @property
    def token(self) -> typing.Any:
        return self.attempt.token

    def start(self) -> Run:
        """Give the processor its first turn."""
        self.greenlet.start()
        gevent.sleep(0)
        return self

    def ask(
        self,
        reason: object = "enough",
        *,
        kind: str = "user",
        hard: bool | None = None,
        kill_after: float | None = None,
        retry: bool = True,
    ) -> bool:
        return self.attempt.request(
            Cancellation(reason, kind, retry=retry), hard=hard, kill_after=kill_after
        )

    def join(self, timeout: float = 20.0) -> Run:
        self.greenlet.join(timeout)
        assert self.greenlet.ready(), "the job goes on"
        return self

    def _run(self) -> None:
        attempt = self.attempt
        attempt.begin(getcurrent(), self._timeout)
        try:
            arguments = () if attempt.token is None else (attempt.token,)
            self.result = self._process(*arguments)
        except BaseException as error:
            attempt.release(error)
            self.error = error
        attempt.end()
        attempt.reap()

    # -- the observer ---------------------------------------------------------------------

    home = None

    def stuck(self, attempt: Attempt, stack: str) -> None:
        self.told.append("stuck")
        self.stack = stack


def survive(go: gevent.event.Event) -> None:
    """Swallow whatever is thrown until `go` is set."""
    while not go.is_set():
        with contextlib.suppress(BaseException):
            go.wait()
