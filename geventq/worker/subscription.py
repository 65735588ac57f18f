"""What a worker hears from other processes: its channels, and the records while they are silent
(cancellation.md 5.1, 5.2).

One greenlet with a connection of its own.  It subscribes, and when that is confirmed it looks at
the records of all jobs that run here; from then on a message tells of each new one.  While the
link is down it looks each second instead, and every few seconds while it is up: who asks may not
be allowed to publish.  So nothing is missed, whoever was cut off and how long.  A message to a job
is read and acted on in the hub, where it arrives; what would log, call Redis or tell listeners is
left to the greenlet.  What is heard is `run.hearing`'s business.
"""

from __future__ import annotations

import functools
import typing

from geventq import clock
from geventq.control.messages import CHANNEL, Call, Ignored, Message, Refused, channel_of, parse
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.channels import Channels
from geventq.store.scripts import load
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.renewer import LockLoser
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.hearing import Hearing

__all__ = ["Subscription"]

_TURN: typing.Final = 1.0  # seconds between two looks while the link is down
_SILENT: typing.Final = 5.0  # seconds between two looks while it is up
_REFUSED: typing.Final = 10.0  # seconds before a channel that was refused is asked for again
_BATCH: typing.Final = 1000  # jobs a look
_LIMIT: typing.Final = 5.0  # seconds for the answer to one
_HANDLED: typing.Final = ("heeded", "kept", "elsewhere")


class Subscription(Background):
    """Listens for one worker, which owns, starts and joins it.

    `held` are the jobs that it holds, by lock token.
    """

    def __init__(
        self,
        hearing: Hearing,
        loser: LockLoser,
        held: typing.Mapping[str, Execution],
        tell: Tell,
        client: Client,
        keys: QueueKeys,
        *,
        worker_id: str,
    ) -> None:
        super().__init__("subscription", "hearing of requests to cancel", keys.name, tell, client)
        self._hearing = hearing
        self._loser = loser
        self._held = held
        self._client = client
        self._keys = keys
        self._channels = Channels(client, (CHANNEL, channel_of(worker_id)))
        self._script = load("sweep")
        self.ignored = Ignored(f"the workers of queue {keys.name}", keys.name)
        #: Who carries out what a group asks of this worker; must not yield.
        self.on_call: typing.Callable[[Call], object] | None = None
        #: Whether each new request is told by a message: subscribed, and all records looked at.
        self.is_up = False
        self._looked_at = 0.0  # when the last look at all records began, by the monotonic clock

    def stop(self) -> None:
        """End the greenlet and join it.  Idempotent.  Yields."""
        self._stop.set()
        self._channels.close()
        super().stop()

    def _begin_anew(self) -> None:
        self.is_up = False
        self._channels.renew()

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self._channels.subscribe()
                self.look_at_all()
                self._outage.over()
                self.is_up = True
                while not self._stop.is_set():
                    self._turn()
            except GeventqError as error:
                self.is_up = False
                if not self._stop.is_set():
                    self._live_through(error)

    def _turn(self) -> None:
        left = self._channels.next_left(_TURN, self._heard)
        if left is not None:
            left()
        self._look_at_some()
        if self._held and clock.monotonic() - self._looked_at > _SILENT:
            self.look_at_all()

    # -- messages ----------------------------------------------------------------------------

    def _heard(self, data: bytes) -> typing.Callable[[], object] | None:
        """A message was published: a request reaches its job here and now, mostly in the hub.
        Answers what is left to do in the greenlet.  Does not yield."""
        try:
            told = parse(data)
        except Refused as refusal:
            return functools.partial(self.ignored.note, refusal.kind, str(refusal))
        if told.queue != self._keys.name:
            return None
        if not isinstance(told, Message):
            return None if self.on_call is None else functools.partial(self.on_call, told)
        if told.is_forced:  # listeners are told
            return lambda: self._became(told, self._hearing.message(told))
        became = self._hearing.message(told)
        if became not in _HANDLED:
            return lambda: self._became(told, became)
        return self._look_at_some if self._hearing.to_read else None

    def _became(self, told: Message, became: str) -> None:
        if became == "stale":
            self.ignored.note("another run", f"job {told.job_id} began anew since")
        elif became == "plain":
            self.ignored.note("no record", f"job {told.job_id}: hints are recorded-only")
        elif became not in _HANDLED:
            self.ignored.note(became, f"job {told.job_id}: what its record says counts")

    # -- records -----------------------------------------------------------------------------

    def look_at_all(self) -> None:
        """Read what is asked of all jobs that run here, unless nothing was since the last look."""
        self._looked_at = clock.monotonic()
        held = [one for one in self._held.values() if not one.settling]
        known = self._look(held[:_BATCH], self._hearing.requests_known)
        if known != self._hearing.requests_known:
            for first in range(_BATCH, len(held), _BATCH):
                self._look(held[first : first + _BATCH], -1)
            self._hearing.requests_known = known

    def _look_at_some(self) -> None:
        """Those that a message, or a take, has told of."""
        while self._hearing.to_read:
            some = self._hearing.to_read[:_BATCH]
            self._look([one for one in some if not one.is_over and not one.settling], -1)
            del self._hearing.to_read[: len(some)]

    def _look(self, executions: list[Execution], known: int) -> int:
        """Look at the jobs' records and locks; the count of requests.  Yields."""
        args: list[str | int] = [self._keys.base, known]
        for execution in executions:
            args += (execution.job_id, execution.lock_token)
        requests, told = self._client.script(
            self._script, self._keys, args, again=True, timeout=_LIMIT
        )
        for number, record, is_lost in told:
            execution = executions[number - 1]
            if self._held.get(execution.lock_token) is not execution or execution.settling:
                continue
            if is_lost:
                self._loser.lock_lost(execution)
                if record:
                    self._hearing.taken_away(execution, record)
            elif record:
                self._hearing.record(execution, record)
        return int(requests)

    # -- while the link is down ----------------------------------------------------------------

    def _live_through(self, error: GeventqError) -> None:
        """Look at the records until it is time to subscribe again.  Yields."""
        if self._outage.failed(error):
            self._tell("error", error)
        if isinstance(error, RedisUnavailableError):
            self._channels.renew()
            self._stop.wait(_TURN)
            self._try_to_look()
            return
        # It may not hear a channel: the other one is heard all the same.
        until = clock.monotonic() + _REFUSED
        while not self._stop.is_set() and clock.monotonic() < until:
            self._turn()
            self._try_to_look()

    def _try_to_look(self) -> None:
        if self._stop.is_set():
            return
        try:
            self.look_at_all()
        except GeventqError as error:
            self._outage.failed(error)  # of the same outage, which was told
