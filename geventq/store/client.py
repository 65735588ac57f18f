"""The client: calls to Redis from any greenlet, on pooled connections.

Connections are pooled per hub (an unpatched program has one hub a thread) and made anew after a
fork.  A call takes one for itself, so a greenlet that is killed in mid-call costs one connection
and never gives its neighbour a wrong answer.  Each call has one deadline, whatever it waits for:
its turn for a connection, the connecting, the answer, a pause before another try.  Nothing is sent
twice here unless the caller says ``again=True``, or the server said that it did nothing: what may
be re-sent is decided by kind (cancellation.md 3.6).  No greenlets run in this module.
"""

from __future__ import annotations

import re
import typing

import gevent
import gevent.monkey
import hiredis
from gevent import get_hub

from geventq import clock
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.fork import connections as fork
from geventq.store.connection import Answer, Connection, unavailable
from geventq.store.endpoint import Endpoint
from geventq.store.limits import is_thrown, within
from geventq.store.pools import Pool, Server
from geventq.store.scripts import Script, pack
from geventq.store.threads import close_hubs_of_ended_threads

if typing.TYPE_CHECKING:
    from geventq.embedded.membership import Membership
    from geventq.store.keys import Keys

__all__ = ["CALL_TIMEOUT", "Client", "Endpoint", "checked", "pack"]

CALL_TIMEOUT: typing.Final = 10.0
"""Seconds that one call may take, unless its client says otherwise."""

_RIGHTS_KEPT: typing.Final = 10.0
"""Seconds for which it is known what a user may do: to ask costs the server some 20 us, and many
an idle worker calls a script once a second (`access.md`)."""

_TRIES: typing.Final = 3  # of a call that may be sent again
_FIRST_PAUSE: typing.Final = 0.05  # seconds; doubles

# Of a call, of a command in a script, and of that in older servers.
_UNAUTHORIZED: typing.Final = re.compile(r"^NOPERM|\bACL failure in script|can't run this command")

Argument = str | bytes | int | float
_new_guard: typing.Final = gevent.monkey.get_original("_thread", "allocate_lock")


class Client:
    """Calls to one Redis endpoint.

    Each call ends within `timeout` seconds in which no byte moves, all its tries together.
    `max_connections` bounds what all clients of this process have connected to that server
    (`geventq.store.pools`); `None` is for what a worker needs for itself, which never waits for
    callers.  May be used from any greenlet of any native thread.  Every method that calls Redis
    yields to the hub and raises `RedisUnavailableError` (outage) or `GeventqError` (refused).  Of
    an embedded server the process is a member from the first call to `close`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float = CALL_TIMEOUT,
        max_connections: int | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._max_connections = max_connections
        self._server = self._make_server()
        self._pools: dict[object, Pool] = {}  # by hub
        self._rights: dict[str, float] = {}  # by script: until when the user is known to have them
        self._membership: Membership | None = None
        # Stops other native threads, so not a patched lock; nobody holds it while the hub turns.
        self._guard = _new_guard()
        self._generation = fork.generation
        self._closed = False
        self._keeps = True  # connections stay open between calls

    @property
    def database(self) -> int:
        """The number of the database that calls go to."""
        return int(self.endpoint.settings.get("db") or 0)

    @property
    def address(self) -> str:
        """Where the server is, for people: see `Endpoint.describe`."""
        return self.endpoint.describe()

    def execute(
        self, *command: Argument, again: bool = False, timeout: float | None = None
    ) -> Answer:
        """Run one command and return its reply (texts as bytes)."""
        return checked(self.call(pack(command), 1, again=again, timeout=timeout))[0]

    def pipeline(
        self,
        commands: typing.Sequence[tuple[Argument, ...]],
        *,
        again: bool = False,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Run several commands in one round trip; the first error reply is raised."""
        if not commands:
            return []
        payload = b"".join([pack(command) for command in commands])
        return checked(self.call(payload, len(commands), again=again, timeout=timeout))

    def script(
        self,
        script: Script,
        keys: Keys,
        args: typing.Sequence[Argument],
        *,
        again: bool = False,
        timeout: float | None = None,
        texts_only: bool = False,
    ) -> Answer:
        """Run a script by its hash; where the server does not know it, by its text.
        `texts_only`: there is no number among `args`.  A user who may not run all of its commands
        is refused before it has written anything."""
        limit = self.timeout if timeout is None else timeout
        began = clock.monotonic()
        asks = began >= self._rights.get(script.name, 0.0)
        payload = script.pack(keys, args, texts_only=texts_only, asks=asks)
        answer = self.call(payload, 1, again=again, timeout=limit)[0]
        if isinstance(answer, hiredis.HiredisError):
            if str(answer).startswith("NOSCRIPT"):  # nothing ran, so it may be sent again
                # Loaded to stay, and sent whole: another may flush the scripts in between.
                payload = pack(("SCRIPT", "LOAD", script.source)) + script.pack_whole(keys, args)
                left = limit - (clock.monotonic() - began)
                answer = self.call(payload, 2, again=again, timeout=left)[1]
            self._check_script(script, keys, answer)
        if asks:
            self._rights[script.name] = began + _RIGHTS_KEPT
        return answer

    def _check_script(self, script: Script, keys: Keys, answer: Answer) -> None:
        """Raise a refusal; one for want of rights names who lacks them, for what."""
        if isinstance(answer, hiredis.HiredisError) and _UNAUTHORIZED.search(str(answer)):
            user = self.endpoint.settings.get("username")
            whom = "this user" if user is None else f"the user {user!r}"
            raise GeventqError(
                f"Redis refused {whom} the script {script.name} on {keys.base}*: {answer}"
            )
        checked([answer])

    def call(
        self, payload: bytes, count: int, *, again: bool = False, timeout: float | None = None
    ) -> list[Answer]:
        """Send packed commands and return their replies, refusals in their places; an outage
        among them is raised.  With `again` it is sent up to three times."""
        limit = self.timeout if timeout is None else timeout
        deadline = clock.monotonic() + limit
        may_be_done = False
        pause = _FIRST_PAUSE
        for tries_left in range(_TRIES - 1 if again else 0, -1, -1):
            try:
                return self._call_once(payload, count, limit, deadline)
            except RedisUnavailableError as error:
                if is_thrown(error):
                    raise
                may_be_done = error.may_be_done = may_be_done or error.may_be_done
                limit = deadline - clock.monotonic() - pause
                if not tries_left or self._closed or limit <= 0:
                    raise
            gevent.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def open_connection(self, *, name: str | None = None, limit: float | None = None) -> Connection:
        """A connection outside the pools, made within `limit` seconds.  Whoever asks for it closes
        it."""
        self._check_process()
        endpoint = self.endpoint
        limit = self.timeout if limit is None else max(0.001, limit)  # the time may be over
        text = f"Redis at {endpoint.describe()} cannot be used: no connection within"
        with within(limit, f"{text} {limit:.3g} s"):
            path = None if endpoint.embedded is None else self._joined(endpoint.embedded)
            return Connection.open(endpoint, limit=limit, name=name, path=path)

    def _joined(self, url: str) -> str:
        """The socket of the embedded server, which is started again if it has died."""
        membership = self._membership
        if membership is None:
            membership = self._entered(url)
        return membership.find_server()

    def _entered(self, url: str) -> Membership:
        """A membership that stays until `close`, also while the server does not answer."""
        from geventq.embedded import membership as embedded  # only where it is used

        since = fork.generation
        entered = embedded.enter(url)
        if since != fork.generation:  # what was to be sent is for the parent to send
            entered.close()
            raise unavailable("the process was forked before it had a connection to Redis", False)
        with self._guard:
            if self._membership is None and not self._closed:
                self._membership = entered
            member = self._membership
        if member is not entered:
            entered.close()  # one is enough
        if member is None:
            raise GeventqError("this client is closed")
        return member

    def _call_once(self, payload: bytes, count: int, limit: float, deadline: float) -> list[Answer]:
        pool = self._pool()
        connection = pool.take()
        if connection is not None:
            try:
                return self._call_on(connection, pool, payload, count, limit)
            except RedisUnavailableError as error:
                stays = not connection.closed  # the server is the right one, and refuses
                if stays or is_thrown(error) or error.may_be_done or clock.monotonic() >= deadline:
                    raise
                # Nothing was done, and behind the address there may be another server by now, or
                # this one again.
                pool.close()
                if self._server is not None:
                    self._server.forsake_idle()
        connection = self._connected(pool, deadline)
        limit = max(0.001, deadline - clock.monotonic())
        return self._call_on(connection, pool, payload, count, limit)

    def _call_on(
        self, connection: Connection, pool: Pool, payload: bytes, count: int, limit: float
    ) -> list[Answer]:
        try:
            return connection.call(payload, count, limit)
        finally:
            if connection.closed:
                pool.lose(connection)
            else:
                pool.put(connection)
                if self._closed or not self._keeps:  # closed meanwhile, or never to be
                    pool.close()

    def _connected(self, pool: Pool, deadline: float) -> Connection:
        """A connection of this call's own, for which it may have to wait."""
        server = self._server
        if server is None:
            return self.open_connection(limit=deadline - clock.monotonic())
        place = server.admit(pool, deadline)
        if place.connection is not None:
            return place.connection
        try:
            connection = self.open_connection(limit=deadline - clock.monotonic())
        except BaseException:
            server.not_opened(place)
            raise
        server.opened(place, connection)
        return connection

    def _pool(self) -> Pool:
        if self._generation != fork.generation:
            self._check_process()
        if self._closed:
            self._refuse_if_closed()
        hub = get_hub()
        pool = self._pools.get(hub)
        if pool is None:
            self._forget_ended_threads()
            pool = self._pools[hub] = Pool(self._server)
        return pool

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise GeventqError("this client is closed")

    def _forget_ended_threads(self) -> None:
        """The connections of a hub refer to it, so it would stay for ever after its thread's
        end."""
        for hub, pool in self._pools.copy().items():  # a copy: other threads come meanwhile
            if pool.thread() is None:
                self._pools.pop(hub, None)
                pool.close()
        if self._server is not None:
            self._server.forget_ended_threads()
        close_hubs_of_ended_threads()

    def _make_server(self) -> Server | None:
        if self._max_connections is None:
            return None
        server = Server.of(self.endpoint)
        server.add_client(self, self._max_connections)
        return server

    def _check_process(self) -> None:
        """In a forked child, begin anew: the connections are lost there, and the membership is
        closed."""
        if self._generation == fork.generation:
            return
        self._generation = fork.generation
        # A program that forks with the plain `os.fork` need not know that gevent is at work: its
        # resolver's threads are the parent's, and looking up a host would wait for them for ever.
        gevent.reinit()
        self._guard = _new_guard()  # a thread of the parent may have held it
        self._membership = None
        self._server = self._make_server()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.disown()

    def afterwards(self) -> Client:
        """A client for calls that come after this one's close: nobody will close it, so each call
        has a connection of its own."""
        client = Client(self.endpoint, timeout=self.timeout, max_connections=self._max_connections)
        client._keeps = False
        return client

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends.  Idempotent."""
        self._check_process()
        with self._guard:
            self._closed = True
            membership, self._membership = self._membership, None
        for pool in self._pools.copy().values():
            pool.close()
        if self._server is not None:
            self._server.remove_client(self)
        if membership is not None:
            membership.close()


def checked(answers: list[Answer]) -> list[Answer]:
    """Raise the first error among `answers` as a `GeventqError`, else return them."""
    for answer in answers:
        if isinstance(answer, hiredis.HiredisError):
            raise GeventqError(f"Redis refused: {answer}")
    return answers
