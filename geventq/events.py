"""The event stream of a queue: what happened to its jobs, whoever ran them.

`QueueEvents` reads ``<prefix>:<name>:events`` (wire-format 6, 12) on a connection of its own, in
the greenlet that iterates it, or in one named ``geventq-events-<queue>`` once listeners were
registered.  An outage is lived through: it reconnects and goes on after the last entry it saw.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import logging
import re
import typing

import gevent
import gevent.event

from geventq.checks import (
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
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    from geventq.store.client import Client
    from geventq.store.stream import Stream

__all__ = ["QueueEvent", "QueueEvents", "QueueEventsProducer"]

log = logging.getLogger("geventq")

_BLOCK: typing.Final = 10.0  # seconds that one read waits at most (wire-format 12)
_ENTRY_ID: typing.Final = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
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

    `last_event_id` is where to begin: ``"$"`` is now, ``"0"`` the oldest entry kept, and the `id`
    of an event the one after it.  Raises `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        name: str,
        connection: object = None,
        prefix: str = "bull",
        last_event_id: str = "$",
    ) -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self._connection = connection
        self._last_id = _check_event_id("last_event_id", last_event_id)
        self._listeners: dict[str, list[typing.Callable[[QueueEvent], object]]] = {}
        self._stop = gevent.event.Event()
        self._client: Client | None = None
        self._stream: Stream | None = None
        self._is_read = False
        self._listening: Guarded | None = None
        self.ready = gevent.event.Event()
        """Set once it reads: every later event is seen."""

    def on(self, event: str, listener: typing.Callable[[QueueEvent], object]) -> typing.Any:
        """Call `listener` with each `QueueEvent` named `event`, in one greenlet, in order.

        The first listener starts the reading.  What a listener raises goes to the log.  Raises
        `ValueError` for a connection that cannot be used.
        """
        if not callable(listener):
            raise TypeError(f"listener: a callable is needed, got {show(listener)}")
        listeners = self._listeners.setdefault(check_name("event", event), [])
        if self._listening is None:
            iter(self)  # raises here, not in the greenlet
            outage = Outage("telling the events", self.name, self._stop)
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
        stream = self._stream = self._stream or self._open()
        return self._events(stream)

    def _refuse_second_reader(self) -> None:
        listening = self._listening
        listens = listening is not None and listening.greenlet is not gevent.getcurrent()
        if self._is_read or listens:
            raise GeventqError(f"the events of queue {self.name} are being read already")

    def _open(self) -> Stream:
        from geventq.store.client import Client, Endpoint
        from geventq.store.keys import QueueKeys
        from geventq.store.stream import Stream

        keys = QueueKeys(self.prefix, self.name)
        self._client = Client(Endpoint.of(self._connection))
        return Stream(self._client, keys, block=_BLOCK, name=keys.client_name(":qe"))

    def _events(self, stream: Stream) -> typing.Iterator[QueueEvent]:
        self._refuse_second_reader()
        self._is_read = True
        outage = Outage("reading the events", self.name, self._stop)
        try:
            while not self._stop.is_set():
                try:
                    batch = self._read(stream)
                except GeventqError as error:
                    if not self._stop.is_set():
                        outage.failed(error)
                        outage.pause()
                    continue
                outage.over()
                for event in batch:
                    self._last_id = event.id
                    yield event
                    if self._stop.is_set():
                        return
        finally:
            self._is_read = False

    def _read(self, stream: Stream) -> list[QueueEvent]:
        if self._last_id == "$":  # a fixed id, so that nothing is missed between two reads
            self._last_id = stream.newest_id().decode()
        self.ready.set()
        return [parse_event(*entry) for entry in stream.after(self._last_id)]

    def close(self) -> None:
        """End the iteration and the connection.  Idempotent.  Yields to the hub."""
        self._stop.set()
        if self._stream is not None:
            self._stream.close()
        if self._client is not None:
            self._client.close()
        listening = self._listening
        if listening is not None and listening.greenlet is not gevent.getcurrent():
            listening.join()

    def __enter__(self) -> QueueEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_event_id(field: str, value: object) -> str:
    text = check_name(field, value)
    if text != "$" and not _ENTRY_ID.fullmatch(text):
        raise ValueError(f"{field}: '$', '0' or the id of an event is needed, got {show(text)}")
    return text


class QueueEventsProducer:
    """Publishes events of your own into a queue's stream."""

    def __init__(self, name: str, connection: object = None, prefix: str = "bull") -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self._key = f"{self.prefix}:{self.name}:events"
        self._connection = connection
        self._client: Client | None = None

    def publish(
        self, name: str, fields: typing.Mapping[str, typing.Any], max_events: int = 1000
    ) -> str:
        """Append an event and return its id; values that are not text are sent as JSON.

        The stream is trimmed to about `max_events` (wire-format 6).  Raises `ValueError` or
        `TypeError` for a bad argument.  Yields to the hub.
        """
        pairs = ["event", check_name("name", name)]
        for field, value in _check_fields(fields).items():
            pairs += (field, value)
        check_integer("max_events", max_events, 0)
        reply = self._opened().execute("XADD", self._key, "MAXLEN", "~", max_events, "*", *pairs)
        return typing.cast(str, reply.decode())

    def _opened(self) -> Client:
        from geventq.store.client import Client, Endpoint

        if self._client is None:
            self._client = Client(Endpoint.of(self._connection))
        return self._client

    def close(self) -> None:
        """Close the connection.  Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None


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
