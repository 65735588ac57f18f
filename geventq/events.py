"""The event stream of a queue: what happened to its jobs, whoever ran them.

`QueueEvents` reads ``<prefix>:<name>:events`` (wire-format 6, 12) on a connection of its own, in
the greenlet that iterates it, or in one named ``geventq-events-<queue>`` once listeners were
registered.  An outage is lived through: it reconnects and goes on after the last entry it saw.
"""

from __future__ import annotations

import dataclasses
import logging
import typing

import gevent
import gevent.event

from geventq.checks import check_name, check_prefix, check_queue_name
from geventq.codec import decode
from geventq.errors import GeventqError
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    from geventq.store.link import Link

__all__ = ["QueueEvent", "QueueEvents", "QueueEventsProducer"]

log = logging.getLogger("geventq")

_BLOCK_MS: typing.Final = 10_000  # one XREAD waits at most this long (wire-format 12)
_GRACE: typing.Final = 5.0
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

    `last_event_id` is where to begin: ``"$"`` is now, ``"0"`` the oldest entry kept.  Raises
    `ValueError` or `TypeError` for a bad argument.
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
        self._last_id = check_name("last_event_id", last_event_id)
        self._listeners: dict[str, list[typing.Callable[[QueueEvent], object]]] = {}
        self._stop = gevent.event.Event()
        self._link: Link | None = None
        self._greenlet: typing.Any = None
        self.ready = gevent.event.Event()
        """Set once it reads: every later event is seen."""

    def on(self, event: str, listener: typing.Callable[[QueueEvent], object]) -> typing.Any:
        """Call `listener` with each `QueueEvent` named `event`, in one greenlet, in order."""
        if not callable(listener):
            raise TypeError(f"listener: a callable is needed, got {type(listener).__name__}")
        self._listeners.setdefault(check_name("event", event), []).append(listener)
        if self._greenlet is None:
            self._greenlet = gevent.Greenlet(self._listen)
            self._greenlet.name = f"geventq-events-{self.name}"
            self._greenlet.start()
        return listener

    def _listen(self) -> None:
        for event in self:
            for listener in list(self._listeners.get(event.name, ())):
                try:
                    listener(event)
                except Exception:
                    log.exception(
                        "a listener of queue %s failed", self.name, extra={"queue": self.name}
                    )

    def __iter__(self) -> typing.Iterator[QueueEvent]:
        """Events as they come, until `close()`.  Yields to the hub."""
        outage = Outage("reading the events", self.name, self._stop)
        while not self._stop.is_set():
            try:
                batch = self._read()
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

    def _read(self) -> list[QueueEvent]:
        from geventq.store.connection import Endpoint, checked, pack
        from geventq.store.keys import QueueKeys
        from geventq.store.link import Link

        keys = QueueKeys(self.prefix, self.name)
        if self._link is None or self._link.closed:
            name = keys.client_name(":qe")
            self._link = Link.open(Endpoint.of(self._connection), name=name)
            if self._stop.is_set():  # `close` came while it was being opened
                self._link.close()
                return []
        if self._last_id == "$":  # a fixed id, so that nothing is missed between two reads
            newest = checked(
                self._link.call(pack(("XREVRANGE", keys.events, "+", "-", "COUNT", 1)), 1, _GRACE)
            )[0]
            self._last_id = newest[0][0].decode() if newest else "0-0"
        self.ready.set()
        command = (
            "XREAD",
            "BLOCK",
            _BLOCK_MS,
            "COUNT",
            1000,
            "STREAMS",
            keys.events,
            self._last_id,
        )
        reply = checked(self._link.call(pack(command), 1, _BLOCK_MS / 1000 + _GRACE))[0]
        if not reply:
            return []
        return [parse_event(entry_id, flat) for entry_id, flat in reply[0][1] if flat is not None]

    def close(self) -> None:
        """End the iteration and the connection.  Idempotent.  Yields to the hub."""
        self._stop.set()
        if self._link is not None:
            self._link.close()
        if self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.join()

    def __enter__(self) -> QueueEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class QueueEventsProducer:
    """Publishes events of your own into a queue's stream."""

    def __init__(self, name: str, connection: object = None, prefix: str = "bull") -> None:
        self.name = check_queue_name(name)
        self.prefix = check_prefix(prefix)
        self._connection = connection
        self._client: typing.Any = None

    def publish(
        self, name: str, fields: typing.Mapping[str, typing.Any], max_events: int = 1000
    ) -> str:
        """Append an event and return its id; values that are not text are sent as text.

        The stream is trimmed to about `max_events` (wire-format 6).  Yields to the hub.
        """
        from geventq.store.connection import Client, Endpoint
        from geventq.store.keys import QueueKeys

        check_name("name", name)
        if "event" in fields:
            raise ValueError("fields: 'event' is the name itself and cannot be a field")
        if self._client is None:
            self._client = Client(Endpoint.of(self._connection))
        args = ["event", name]
        for field, value in fields.items():
            args += (check_name("fields", field), value if isinstance(value, str) else str(value))
        key = QueueKeys(self.prefix, self.name).events
        reply = self._client.execute("XADD", key, "MAXLEN", "~", max_events, "*", *args)
        return typing.cast(str, reply.decode())

    def close(self) -> None:
        """Close the connection.  Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None
