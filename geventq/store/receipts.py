"""How a job that was asked to stop has ended, as the event stream tells (cancellation.md 5.4).

Who waits is registered before the request is sent, so that no end is missed; all who wait in one
hub share the reader of `geventq.store.job_ends`, and nothing is polled.  No greenlets run here.
"""

from __future__ import annotations

import typing

from gevent import getcurrent

from geventq import clock
from geventq.cancel_request import CancelResult
from geventq.cancellation import Attempt
from geventq.errors import GeventqError
from geventq.job import Life
from geventq.store.job_ends import Waiter

if typing.TYPE_CHECKING:
    from geventq.cancel_request import Stage
    from geventq.store.past_ends import End, Fields

__all__ = ["Receipt", "refuse_own_job"]

#: How a run ends that is followed by another one.
_MOVED: typing.Final = (b"waiting", b"delayed", b"waiting-children")
#: What follows the end of a run that was asked to stop, in the same moment.
_ANSWERED: typing.Final = (b"cancelled", b"cancel-ignored")
#: The stages that it tells.
_STAGES: typing.Final[dict[bytes, Stage]] = {
    b"seen": "seen",
    b"grace": "grace",
    b"thrown": "thrown",
    b"stuck": "stuck",
}


class Receipt(Waiter):
    """One who waits for the end of what he has asked for."""

    __slots__ = (
        "_asked_at",
        "_has_left",
        "_is_answered",
        "_made",
        "_nonce",
        "_retry",
        "seconds",
        "stack",
        "stage",
    )

    def __init__(self, nonce: str, *, retry: bool) -> None:
        super().__init__(Life(None))
        self._nonce = nonce.encode()
        self._retry = retry
        self._asked_at = clock.monotonic()
        self._made: bytes | None = None  # attempts, as first seen
        self._has_left = False  # its worker, and nothing has told why yet
        self._is_answered = False  # the stream has told how its run ended
        self.stage: Stage = "sent"
        self.stack: str | None = None
        self.seconds: float | None = None

    def heed(self, fields: Fields) -> None:
        event = fields.get(b"event")
        if self._has_left and event == b"stalled":
            self._has_left = False  # that ends no run (4.4): whoever takes the job next does
        else:
            self.heard_all()
        if event in (b"cancel-stage", b"cancel-refused"):
            if fields.get(b"nonce") == self._nonce and not self._is_answered:
                self.stage = typing.cast("Stage", fields.get(b"stage", b"seen").decode())
                stack = fields.get(b"stack")
                self.stack = self.stack if stack is None else stack.decode("utf-8", "replace")
        elif self._nonce in fields.get(b"refused", b"").split():
            self.stage = "refused"
        elif event in _ANSWERED and self.answer.ready():
            if not self._is_answered and self.stage != "refused":
                self.stage = _STAGES.get(fields.get(b"stage", b""), self.stage)
            self._is_answered = True
        elif event in _MOVED and self._retry and fields.get(b"prev", b"active") == b"active":
            self._has_left = True
        else:
            super().heed(fields)
            if self.answer.ready():
                self._note_time()

    def heard_all(self) -> None:
        if self._has_left:
            self._has_left = False
            self._settled("stopped")

    def goes_on(self, attempts_made: bytes) -> None:
        if self._made is None:
            self._made = attempts_made
        elif self._retry and attempts_made != self._made:  # its end is no longer in the stream
            self._settled("stopped")

    def _settled(self, how: str) -> None:
        self.end((how, b""))
        self._note_time()

    def _note_time(self) -> None:
        if self.seconds is None:
            self.seconds = clock.monotonic() - self._asked_at

    def result(self, before: CancelResult, deadline: float) -> CancelResult:
        """What came of the request, at its end or at `deadline` (monotonic).  Yields."""
        self.answer.wait(max(0.0, deadline - clock.monotonic()))
        if not self.answer.ready():
            return CancelResult(
                status="requested",
                job_id=before.job_id,
                state=before.state,
                worker=before.worker,
                stage=self.stage,
                stack=self.stack,
            )
        # Raises what ended all waiting: the queue was closed.
        how = typing.cast("End", self.answer.get())[0]
        return CancelResult(
            status="completed" if how == "completed" else "stopped",
            job_id=before.job_id,
            state=before.state,
            worker=before.worker,
            stage=self.stage,
            stack=self.stack,
            seconds=self.seconds,
        )


def refuse_own_job(job_ids: typing.Container[str], home: object) -> None:
    """Raises `GeventqError` for a job that would wait for its own end; `home` is where those of
    `job_ids` are stored."""
    attempt = Attempt.of(getcurrent())
    if attempt is None or attempt.ended or attempt.observer.home != home:
        return
    if attempt.job_id in job_ids:
        raise GeventqError(f"job {attempt.job_id} cannot wait for its own cancellation")
