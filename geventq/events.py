"""The event stream of a queue: what happened to its jobs, whoever ran them.

`QueueEvents` reads ``<prefix>:<name>:events`` (wire-format 6, 12) in the greenlet that iterates it,
or in one named ``geventq-events-<queue>`` once listeners were registered; all who read one queue's
events in a hub share a connection (`geventq.store.event_watch`).  An outage is lived through: it
reconnects and goes on after the last entry it saw.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import logging
import re
import typing

import gevent

from geventq import wakeups
from geventq.checks import (
    Seconds,
    check_callable,
    check_duration,
    check_integer,
    check_name,
    check_prefix,
    check_queue_name,
    check_text,
    show,
)
from geventq.codec import decode, encode
from geventq.errors import GeventqError
from geventq.guarded import BeginAnew, Guarded, call_listeners
from geventq.hubs import own_hub, wait_for
from geventq.outage import Outage
from geventq.store.endpoint import Endpoint
from geventq.store.limits import is_thrown

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.endpoint import Given
    from geventq.store.event_reader import Batch, EventReader
    from geventq.store.event_watch import Follower

__all__ = ["QueueEvent", "QueueEvents", "QueueEventsProducer"]

log = logging.getLogger("geventq")

_ENTRY_ID: typing.Final = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
GAP: typing.Final = "gap"
# The events that tell of jobs and queues (wire-format 6, cancellation.md 5.5), and our own.
_TAKEN: typing.Final = frozenset(
    """added waiting active progress completed failed delayed stalled removed duplicated
    deduplicated debounced drained cleaned paused resumed waiting-children retries-exhausted
    cancelled gap error ioredis:close""".split()
)
_JSON: typing.Final = {("progress", "data"), ("completed", "returnvalue")}


@dataclasses.dataclass(frozen=True, slots=True)
class QueueEvent:
    """One entry: `name`, the `job_id` (`None` for events of the queue itself), the other fields
    by their wire names in `data`, and the stream's `id`."""

    name: str
    job_id: str | None
    data: dict[str, typing.Any]
    id: str


def parse_event(entry_id: bytes, flat: list[bytes]) -> QueueEvent:
    """An entry of the stream.  Where Node writes JSON, a value that is none stays text."""
    texts = [item.decode("utf-8", "replace") for item in flat]
    fields: dict[str, typing.Any] = dict(zip(texts[::2], texts[1::2], strict=True))
    name = fields.pop("event", "")
    job_id = fields.pop("jobId", None)
    for field in list(fields):
        if (name, field) in _JSON:
            try:
                fields[field] = decode(fields[field].encode())
            except ValueError:
                continue  # another program's: shown as it is
    return QueueEvent(name, job_id, fields, entry_id.decode())


class QueueEvents:
    """Iterate it, or register listeners with `on`.

    Where events are gone that it has not read (its program was slow or cut off, and the stream is
    trimmed; or the stream was deleted), an event ``gap`` stands in their place: its `id` is that
    of the last one read before, ``data["missed"]`` is how many, `None` if that is not known.

    `last_event_id` is where to begin: ``"$"`` is now, ``"0"`` the oldest entry kept, and the `id`
    of an event the one after it.  `timeout` is the seconds that one call to Redis may take (10.0),
    `max_connections` how many connections the calls of this process may hold (50); waiting for
    events ends by `close` alone.  Raises `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        name: str,
        connection: Given = None,
        prefix: str = "bull",
        last_event_id: str = "$",
        *,
        timeout: Seconds = 10.0,
        max_connections: int = 50,
    ) -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self.timeout = check_duration("timeout", timeout)
        self.max_connections = check_integer("max_connections", max_connections, 1)
        self._connection = Endpoint.given(connection)
        self._after = _check_event_id("last_event_id", last_event_id)
        self._listeners: dict[str, list[typing.Callable[[QueueEvent], object]]] = {}
        self._stop = wakeups.Event()
        self._client: Client | None = None
        self._follower: Follower | None = None
        self._reader: EventReader | None = None
        self._unread: collections.deque[QueueEvent] = collections.deque()  # read, not given out
        self._is_read = False
        self._hub: typing.Any = None  # that of the listeners' greenlet
        self._listening: Guarded | None = None
        self.ready = wakeups.Event()
        """Set once it reads: every later event is seen."""

    def on(self, event: str, listener: typing.Callable[[QueueEvent], object]) -> typing.Any:
        """Call `listener` with each `QueueEvent` named `event`, in one greenlet, in order.

        The first listener starts the reading.  What a listener raises goes to the log.  Raises
        `ValueError` for a connection that cannot be used.
        """
        check_callable("listener", listener)
        listeners = self._listeners.setdefault(check_name("event", event), [])
        if self._listening is None:
            iter(self)  # raises here, not in the greenlet
            outage = Outage("telling the events", self.name, self._stop)
            self._hub = own_hub()
            self._listening = Guarded(self._listen, f"events-{self.name}", outage)
            self._listening.start()
        listeners.append(listener)
        return listener

    def _listen(self) -> None:
        """The task of the listeners' greenlet; begun anew, it goes on behind the last event."""
        if self._stop.is_set():
            return
        for event in self:
            listeners = list(self._listeners.get(event.name, ()))
            if call_listeners(listeners, (event,), self._failed):
                raise BeginAnew

    def _failed(self, error: BaseException) -> None:
        extra = {"queue": self.name}
        log.error("a listener of queue %s failed", self.name, exc_info=error, extra=extra)

    def __iter__(self) -> typing.Iterator[QueueEvent]:
        """Events as they come, until `close()`.  The iteration yields to the hub.

        Raises `GeventqError` once it is closed, and while it is being iterated or listeners are
        served: each event is given out once.
        """
        if self._stop.is_set():
            raise GeventqError(f"the events of queue {self.name} are closed")
        self._refuse_second_reader()
        if self._reader is None:
            self._reader = self._open()
        return self._events(self._reader)

    def _refuse_second_reader(self) -> None:
        listening = self._listening
        listens = listening is not None and listening.greenlet is not gevent.getcurrent()
        if self._is_read or listens:
            raise GeventqError(f"the events of queue {self.name} are being read already")

    def _open(self) -> EventReader:
        from geventq.store.client import Client
        from geventq.store.event_reader import EventReader
        from geventq.store.event_watch import Follower
        from geventq.store.keys import QueueKeys

        self._client = Client(
            Endpoint.of(self._connection),
            timeout=self.timeout,
            max_connections=self.max_connections,
        )
        self._follower = Follower(self._client, QueueKeys(self.prefix, self.name))
        return EventReader(self._follower, None if self._after == "$" else self._after.encode())

    def _events(self, reader: EventReader) -> typing.Iterator[QueueEvent]:
        self._refuse_second_reader()
        self._is_read = True
        outage = Outage("reading the events", self.name, self._stop, self._client)
        try:
            while not self._stop.is_set():
                while self._unread:
                    yield self._unread.popleft()
                    if self._stop.is_set():
                        return
                try:
                    reader.begin()
                    self.ready.set()
                    batch = reader.read()
                except GeventqError as error:
                    if is_thrown(error):
                        raise
                    if not self._stop.is_set():
                        outage.failed(error)
                        outage.pause()
                    continue
                self._unread.extend(_told(batch))
                outage.over()
        finally:
            self._is_read = False
            outage.rest()

    def close(self) -> None:
        """End the iteration and the connection, from whatever native thread.  Waits for a listener
        that is being called.  Idempotent.  Yields to the hub."""
        self._stop.set()
        if self._follower is not None:
            self._follower.close()
        if self._client is not None:
            self._client.close()
        listening = self._listening
        if listening is not None and listening.greenlet is not gevent.getcurrent():
            wait_for(self._hub, listening.done)

    def __enter__(self) -> QueueEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _told(batch: Batch) -> list[QueueEvent]:
    """What one read saw, as events."""
    events = [parse_event(*entry) for entry in batch.entries]
    if batch.gap is not None:
        after, missed = batch.gap
        events.insert(0, QueueEvent(GAP, None, {"missed": missed}, after.decode()))
    return events


def _check_event_id(field: str, value: object) -> str:
    text = check_name(field, value)
    if text != "$" and not _ENTRY_ID.fullmatch(text):
        raise ValueError(f"{field}: '$', '0' or the id of an event is needed, got {show(text)}")
    return text


class QueueEventsProducer:
    """Publishes events of your own into a queue's stream."""

    def __init__(
        self,
        name: str,
        connection: Given = None,
        prefix: str = "bull",
        *,
        timeout: Seconds = 10.0,
        max_connections: int = 50,
    ) -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self.timeout = check_duration("timeout", timeout)
        self.max_connections = check_integer("max_connections", max_connections, 1)
        self._key = f"{self.prefix}:{self.name}:events"
        self._connection = Endpoint.given(connection)
        self._client: Client | None = None

    def publish(
        self, name: str, fields: typing.Mapping[str, typing.Any], max_events: int = 1000
    ) -> str:
        """Append an event and return its id; values that are not text are sent as JSON.

        The stream is trimmed to about `max_events` (wire-format 6).  Raises `ValueError` or
        `TypeError` for a bad argument, and for the name of an event that tells of a job or a
        queue: those who wait for the job would take it for true.  Yields to the hub.
        """
        pairs = ["event", _check_own_name("name", name)]
        for field, value in _check_fields(fields).items():
            pairs += (field, value)
        check_integer("max_events", max_events, 0)
        reply = self._opened().execute("XADD", self._key, "MAXLEN", "~", max_events, "*", *pairs)
        return typing.cast(str, reply.decode())

    def _opened(self) -> Client:
        from geventq.store.client import Client

        if self._client is None:
            self._client = Client(
                Endpoint.of(self._connection),
                timeout=self.timeout,
                max_connections=self.max_connections,
            )
        return self._client

    def close(self) -> None:
        """Close the connection.  Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _check_own_name(field: str, value: object) -> str:
    name = check_name(field, value)
    if name in _TAKEN or name.startswith("cancel-"):
        raise ValueError(f"{field}: an event of geventq or BullMQ has that name, got {show(name)}")
    return name


def _check_fields(fields: object) -> dict[str, str]:
    """The fields of an event of one's own, as text."""
    texts = {}
    if not isinstance(fields, collections.abc.Mapping):
        raise TypeError(f"fields: a mapping is needed, got {show(fields)}")
    for field, value in fields.items():
        check_name("fields", field)
        if field == "event":
            raise ValueError("fields: 'event' is the name itself and cannot be a field")
        name = f"fields[{field!r}]"
        text = value if isinstance(value, str) else encode(name, value).decode()
        texts[field] = check_text(name, text)
    return texts
