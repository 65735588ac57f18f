"""Requests to cancel that come by other channels, and programs that send them (cancellation.md
5.1, 5.8).

A worker hears `bullmq:cancel` by itself.  `CancelBridge` is for channels of another name, and for
workers that listen elsewhere (to another server than the one that is published on).

Greenlet: ``geventq-bridge-<channel>``, with a connection of its own.
"""

from __future__ import annotations

import logging
import typing

from geventq import wakeups
from geventq.cancel_secret import given_secret
from geventq.cancellation.request import encoded_reason
from geventq.checks import check_known_id, check_name, check_queue_name, show
from geventq.clock import ServerClock
from geventq.codec import encode
from geventq.control.messages import CHANNEL, Call, Ignored, Message, Refused, parse
from geventq.control.proofs import Proofs
from geventq.errors import GeventqError
from geventq.fork.workers import watch
from geventq.guarded import Guarded
from geventq.hubs import in_thread_of, own_hub, wait_for
from geventq.outage import Outage
from geventq.signals import heeded
from geventq.store.endpoint import Endpoint

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.endpoint import Given

__all__ = ["CancelBridge", "Cancels", "publish_cancel"]

_TURN: typing.Final = 1.0  # seconds between two looks at whether the link lives

log = logging.getLogger("geventq")


class Cancels(typing.Protocol):
    """What a request is handed to: a `Worker`."""

    @property
    def queue_name(self) -> str: ...

    def cancel_job(
        self, job_id: str, reason: typing.Any = None, *, hard: bool, retry: bool
    ) -> object:
        """Ask the job to stop, if it runs there."""


@typing.runtime_checkable
class CancelsTaken(typing.Protocol):
    """One that may have been given jobs of which it has not heard yet: a `Worker`."""

    def cancel_when_taken(
        self, job_id: str | None, reason: typing.Any = None, *, hard: bool
    ) -> object:
        """The same for a job that it has been given, if it has."""


def publish_cancel(connection: Given, queue: str, job_id: str, reason: typing.Any = None) -> int:
    """Ask all who listen on ``bullmq:cancel`` to stop a job softly; how many listen.  Yields.

    It is the message that programs in other languages send and heed, and a hint only: it is lost
    where nobody listens, and reaches every prefix and database of the server.  `Queue.cancel_job`
    has neither fault.  `connection` is a URL, a redis-py client, or `None` for
    ``$GEVENTQ_REDIS_URL``.  Raises `ValueError` or `TypeError` for a bad argument,
    `RedisUnavailableError` and `GeventqError`.
    """
    payload = _message(check_queue_name(queue, "queue"), check_known_id("job_id", job_id), reason)
    from geventq.store.client import Client

    client = Client(Endpoint.of(connection))
    try:
        return int(client.execute("PUBLISH", CHANNEL, payload, again=True))
    finally:
        client.close()


def _message(queue: str, job_id: str, reason: typing.Any) -> bytes:
    encoded_reason(reason)
    return encode("message", {"queue": queue, "jobId": job_id, "reason": reason})


class CancelBridge:
    """Hears messages ``{"queue", "jobId", "reason"}`` on `channel` and hands each to those of
    `workers` that work its queue; without `workers` it publishes them on ``bullmq:cancel``, where
    all workers listen.

    It asks softly, and for the run that is under way: ``worker.cancel_job(job_id, reason,
    hard=False, retry=True)``.  `workers` is looked at for each message: it may grow and shrink.
    `connection` is what is listened on: a URL, a redis-py client, or `None` for
    ``$GEVENTQ_REDIS_URL``.  With a `cancel_secret` (`None`: ``$GEVENTQ_CANCEL_SECRET``) the
    signature of a message that has one is verified: a right one is published on as it came, so
    that a worker believes it too; a wrong, old or repeated one is ignored.  What is ignored is
    logged once a kind, and counted in `ignored`.  Raises `ValueError` or `TypeError` for a bad
    argument.
    """

    def __init__(
        self,
        connection: Given = None,
        channel: str = CHANNEL,
        workers: typing.Iterable[Cancels] | Cancels | None = None,
        *,
        cancel_secret: str | None = None,
    ) -> None:
        self.channel = check_name("channel", channel)
        secret = given_secret(cancel_secret)
        self._proofs = None if secret is None else Proofs(secret, ServerClock())
        self.ignored = Ignored(f"the bridge of channel {channel}")
        self._connection = Endpoint.given(connection)
        self._workers = _checked_workers(workers)
        self._ear: _Ear | None = None  # from start() to the end of close()

    @property
    def is_running(self) -> bool:
        return self._ear is not None

    def start(self) -> None:
        """Start to listen, and return when what is published is heard, or Redis could not be
        reached for the first time (it is tried again).  Idempotent.  Yields."""
        ear = self._ear
        if ear is None:
            ear = self._ear = _Ear(Endpoint.of(self._connection), self.channel, self._heard)
            watch(self)
        wait_for(ear.hub, ear.tried)

    def join(self) -> None:
        """Block until it is closed; at once if it was not started.  Yields."""
        ear = self._ear
        if ear is not None:
            wait_for(ear.hub, ear.task.done)

    def run(self) -> None:
        """Start, and block until closed.  In the main thread SIGTERM and SIGINT close it.
        Yields."""
        with heeded(lambda _: self.close()) as signals:
            self.start()
            if signals.came:
                self.close()
            self.join()

    def close(self) -> None:
        """Listen no more.  Idempotent.  Yields."""
        ear, self._ear = self._ear, None
        if ear is not None:
            in_thread_of(ear.hub, ear.leave, gone=None)
            wait_for(ear.hub, ear.task.done)
            ear.client.close()

    def die(self) -> list[typing.Any]:
        """In a forked child: what listens is the parent's (cancellation.md 7.5)."""
        ear, self._ear = self._ear, None
        return [] if ear is None else [ear.task.greenlet]

    def __enter__(self) -> CancelBridge:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the greenlet -----------------------------------------------------------------------

    def _heard(self, client: Client, data: bytes) -> None:
        try:
            told = parse(data)
        except Refused as refusal:
            self.ignored.note(refusal.kind, str(refusal))
            return
        if isinstance(told, Call):
            self.ignored.note("a call", "it is for one worker, which hears it by itself")
            return
        payload = None  # as it came, where that is proven
        if self._proofs is not None and told.signed is not None:
            doubt = self._proofs.doubt(told)
            if doubt is not None:
                self.ignored.note(doubt, f"job {told.job_id} of queue {told.queue}")
                return
            payload = told.signed
        if self._workers is not None:
            self._hand_over(told)
        elif self.channel != CHANNEL:
            payload = payload or _message(told.queue, told.job_id, told.request.reason)
            client.execute("PUBLISH", CHANNEL, payload, again=True)

    def _hand_over(self, told: Message) -> None:
        for worker in list(self._workers or ()):
            if worker.queue_name == told.queue:
                job_id, reason = told.job_id, told.request.reason
                try:
                    took = worker.cancel_job(job_id, reason, hard=False, retry=True)
                    if not took and isinstance(worker, CancelsTaken):
                        worker.cancel_when_taken(job_id, reason, hard=False)
                except Exception:
                    log.exception("%r cannot cancel job %s of queue %s", worker, *told[1::-1])


class _Ear:
    """The subscription, and the greenlet that reads it."""

    def __init__(
        self, endpoint: Endpoint, channel: str, heard: typing.Callable[[Client, bytes], None]
    ) -> None:
        from geventq.store.channels import Channels
        from geventq.store.client import Client

        self.hub: typing.Any = own_hub()
        self.tried = wakeups.Event()
        self.client = Client(endpoint)
        self._channels = Channels(self.client, (channel,))
        self._heard = heard
        self._stop = wakeups.Event()
        self._outage = Outage(f"the bridge of channel {channel}", None, self._stop, self.client)
        self.task = Guarded(self._listen, f"bridge-{channel}", self._outage)
        self.task.start()

    def leave(self) -> None:
        """In the hub's thread.  Does not yield."""
        self._stop.set()
        self._channels.close()
        self.tried.set()

    def _listen(self) -> None:
        try:
            self._channels.renew()
            self._channels.subscribe()
            self._outage.over()
            self.tried.set()
            while not self._stop.is_set():
                push = self._channels.next(_TURN)
                if push is not None:
                    self._heard(self.client, push)
        except GeventqError:
            if not self._stop.is_set():
                raise
        finally:
            self.tried.set()


def _checked_workers(
    workers: typing.Iterable[Cancels] | Cancels | None,
) -> typing.Iterable[Cancels] | None:
    if workers is None:
        return None
    if _cancels(workers):
        return [typing.cast(Cancels, workers)]
    if isinstance(workers, str | bytes) or not isinstance(workers, typing.Iterable):
        raise TypeError(f"workers: an iterable of Workers is needed, got {show(workers)}")
    kept = workers if isinstance(workers, typing.Collection) else list(workers)
    for number, one in enumerate(kept):
        if not _cancels(one):
            raise TypeError(f"workers[{number}]: a Worker is needed, got {show(one)}")
    return kept


def _cancels(one: object) -> bool:
    return isinstance(getattr(one, "queue_name", None), str) and hasattr(one, "cancel_job")
