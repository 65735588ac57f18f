"""A worker as a member of its queue's group: its heartbeat, and what the group asks of it
(cancellation.md 5.7).

One greenlet with no connection of its own: a call each ten seconds, and one for each reply.  What
is asked is carried out where it is heard, and answered here.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import typing

from geventq import clock, wakeups
from geventq.codec import encode
from geventq.control.proofs import LIFE
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.members import HEARTBEAT, Members
from geventq.worker.background import Background

if typing.TYPE_CHECKING:
    from geventq.clock import ServerClock
    from geventq.control.messages import Call, Ignored
    from geventq.control.proofs import Proofs
    from geventq.store.client import Client
    from geventq.store.keys import QueueKeys
    from geventq.worker.listeners import Tell
    from geventq.worker.run.hearing import Kept
    from geventq.worker.run.slots import Slots

__all__ = ["GroupMember", "GroupTarget"]

_LIMIT: typing.Final = 5.0  # seconds for the answer to a call
_LAST: typing.Final = 0.5  # the same while closing
_TURN: typing.Final = 1.0  # seconds until the next try, while Redis cannot be reached
_GUARDED: typing.Final = ("cancel_job", "cancel_all_jobs", "pause", "resume")
_REMEMBERED: typing.Final = 1000  # the newest calls, each of which counts once
_TAKES: typing.Final = 2.0  # seconds that a reply waits for the takes under way

log = logging.getLogger("geventq")


class GroupTarget(typing.Protocol):
    """The `Worker`, as a group may ask it.  Nothing yields."""

    @property
    def name(self) -> str | None: ...
    @property
    def node(self) -> str: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def is_paused(self) -> bool: ...
    def cancel_job(self, job_id: str, reason: typing.Any = None, *, retry: bool) -> bool: ...
    def cancel_all_jobs(self, reason: typing.Any = None, *, retry: bool) -> int: ...
    def cancel_when_taken(
        self,
        job_id: str | None,
        reason: typing.Any = None,
        *,
        over: typing.Callable[[], object],
    ) -> Kept | None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class _Later(typing.NamedTuple):
    """A call that is answered when the takes under way were."""

    nonce: str
    result: int
    """How many requests took effect at once; of `cancel_job` a bool."""
    kept: Kept
    until: float
    """When it is answered by what is known then."""


class GroupMember(Background):
    """Joins when it starts, leaves when it stops.  A user of Redis who may not write that is no
    member, which is logged once; his worker works all the same."""

    def __init__(
        self,
        worker: GroupTarget,
        slots: Slots,
        ignored: Ignored,
        server_clock: ServerClock,
        proofs: Proofs | None,
        tell: Tell,
        client: Client,
        keys: QueueKeys,
        *,
        worker_id: str,
    ) -> None:
        super().__init__("member", "the heartbeat of a worker", keys.name, tell, client)
        self._worker = worker
        self._slots = slots
        self._ignored = ignored
        self._server_clock = server_clock
        self._proofs = proofs
        self._members = Members(client, keys)
        self._keys = keys
        self._worker_id = worker_id
        self._wake = wakeups.Event()
        self._due = self._began = clock.monotonic()
        self._is_member = False
        self._nonces: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._replies: collections.deque[tuple[str, bytes]] = collections.deque()
        self._later: dict[str, _Later] = {}  # by nonce
        self._methods: dict[str, typing.Callable[..., typing.Any]] = {
            "ping": lambda: "pong",
            "cancel_job": self._cancel_job,
            "cancel_all_jobs": self._cancel_all_jobs,
            "pause": self._pause,
            "resume": self._resume,
            "stats": self._stats,
        }

    def stop(self) -> None:
        """Leave, end the greenlet and join it.  Idempotent.  Yields."""
        self._stop.set()
        self._wake.set()
        super().stop()

    def changed(self) -> None:
        """What the heartbeat tells has changed.  Does not yield."""
        self._due = clock.monotonic()
        self._wake.set()

    # -- in the greenlet -----------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if clock.monotonic() >= self._due:
                    self._beat()
                self._answer_later(clock.monotonic())
                self._answer()
            except RedisUnavailableError:  # the other parts tell of that
                self._is_member = False
                self._stop.wait(_TURN)
                continue
            except GeventqError as error:  # a user who may not write this
                self._outage.failed(error)
                self._replies.clear()
                self._due = clock.monotonic() + HEARTBEAT
            due = min([self._due, *(one.until for one in self._later.values())])
            self._wake.wait(max(0.0, due - clock.monotonic()))
        self._leave()

    def _beat(self) -> None:
        told: dict[str, str | int] = {
            "name": self._worker.name or "",
            "node": self._worker.node,
            "pid": os.getpid(),
            "concurrency": self._worker.concurrency,
            "active": len(self._slots.running),
        }
        began = clock.monotonic()
        self._due = began + HEARTBEAT
        try:
            keys = "" if self._proofs is None else self._proofs.keys
            now = self._members.beat(self._worker_id, told, keys, timeout=_LIMIT)
        except RedisUnavailableError:
            self._due = began
            raise
        except GeventqError:
            raise
        except BaseException:  # thrown at it in mid-call: it may be a member, and is to say so
            self._due, self._is_member = began, True
            raise
        self._is_member = True
        self._server_clock.told(now, began)
        self._outage.over()

    def _answer_later(self, now: float) -> None:
        """What has waited for takes until `now` waits no longer."""
        for one in [one for one in self._later.values() if one.until <= now]:
            one.kept.drop()
            self._takes_are_over(one.nonce)

    def _answer(self) -> None:
        while self._replies:
            nonce, data = self._replies[0]
            self._members.reply(nonce, data, timeout=_LIMIT)
            self._replies.popleft()

    def _leave(self) -> None:
        """Without this it would be a member until its heartbeat is stale."""
        if not self._is_member:
            return
        self._answer_later(float("inf"))
        try:
            for nonce, data in self._replies:
                self._members.reply(nonce, data, timeout=_LAST)
            self._members.leave(self._worker_id, timeout=_LAST)
        except GeventqError as error:
            log.info("worker %s could not leave its group: %s", self._worker_id, error)
        self._is_member = False

    # -- what is asked -------------------------------------------------------------------------

    def called(self, call: Call) -> None:
        """Carry it out, and have it answered.  Does not yield."""
        if call.prefix != self._keys.prefix or call.database != self._members.database:
            return
        if call.nonce in self._nonces:  # asked again, and answered
            return
        if call.node not in (None, self._worker.node):
            return
        age = self._server_clock.now_ms() - call.at
        if age > LIFE:
            self._ignored.note("too old", f"a call that was made {age / 1000:.0f} s ago")
            return
        self._nonces[call.nonce] = None
        while len(self._nonces) > _REMEMBERED:
            self._nonces.popitem(last=False)
        answer = self._carried_out(call)
        if not self._waits_for_takes(call, answer):
            self._reply(call.nonce, answer)
        self._wake.set()

    def _reply(self, nonce: str, answer: dict[str, typing.Any]) -> None:
        self._replies.append((nonce, encode("reply", {"worker": self._worker_id, **answer})))

    def _waits_for_takes(self, call: Call, answer: dict[str, typing.Any]) -> bool:
        """Who asks sees a job in *active* before its worker has heard of it: what is to be
        cancelled may be in the answers to the takes under way."""
        result = answer.get("result")
        if call.method == "cancel_job" and result is False:
            args = call.args
        elif call.method == "cancel_all_jobs" and result is not None:
            args = [None, *call.args]
        else:
            return False
        over = functools.partial(self._takes_are_over, call.nonce)
        kept = self._worker.cancel_when_taken(*args, over=over)
        if kept is None:
            return False
        self._later[call.nonce] = _Later(call.nonce, result, kept, clock.monotonic() + _TAKES)
        return True

    def _takes_are_over(self, nonce: str) -> None:
        one = self._later.pop(nonce, None)
        if one is not None:
            took = one.kept.took
            result = took > 0 if isinstance(one.result, bool) else one.result + took
            self._reply(nonce, {"result": result})
            self._wake.set()

    def _carried_out(self, call: Call) -> dict[str, typing.Any]:
        method = self._methods.get(call.method)
        if method is None:
            return {"error": f"it knows no {call.method}"}
        doubt = self._doubt(call)
        if doubt is not None:
            self._ignored.note(doubt, f"{call.method}, asked by a group")
            return {
                "error": f"{call.method} was refused: it needs the workers' cancel_secret ({doubt})"
            }
        try:
            return {"result": method(*call.args)}
        except Exception as error:  # noqa: BLE001 (told to who asked)
            return {"error": f"{type(error).__name__}: {error}"}

    def _doubt(self, call: Call) -> str | None:
        """Why a worker with a secret does not carry it out (8)."""
        if self._proofs is None or call.method not in _GUARDED:
            return None
        return self._proofs.doubt(call)

    def _cancel_job(self, job_id: str, reason: typing.Any = None) -> bool:
        return self._worker.cancel_job(job_id, reason, retry=True)

    def _cancel_all_jobs(self, reason: typing.Any = None) -> int:
        return self._worker.cancel_all_jobs(reason, retry=True)

    def _pause(self) -> bool:
        self._worker.pause()
        return True

    def _resume(self) -> bool:
        self._worker.resume()
        return True

    def _stats(self) -> dict[str, typing.Any]:
        return {
            "id": self._worker_id,
            "name": self._worker.name,
            "queue_name": self._keys.name,
            "node": self._worker.node,
            "pid": os.getpid(),
            "concurrency": self._worker.concurrency,
            "active_jobs": len(self._slots.running),
            "stuck_jobs": self._slots.running.stuck,
            "is_paused": self._worker.is_paused,
            "uptime": round(clock.monotonic() - self._began, 3),
        }
