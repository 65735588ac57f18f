"""All workers of a queue, on whatever machines: who they are, and asking something of them
(cancellation.md 5.7).

Owns what may be asked and what is answered.  A worker's side of it is `geventq.worker.member`; how
it travels is `geventq.store.members`' business.  No greenlets run here: the caller waits.
"""

from __future__ import annotations

import dataclasses
import typing
import uuid

from geventq import clock
from geventq.cancel_secret import given_secret
from geventq.cancellation.request import encoded_reason
from geventq.checks import (
    Seconds,
    check_duration,
    check_integer,
    check_known_id,
    check_name,
    check_prefix,
    check_queue_name,
    show,
)
from geventq.codec import decode, encode
from geventq.control.messages import LARGEST, channel_of
from geventq.errors import GeventqError, RedisUnavailableError
from geventq.store.endpoint import Endpoint

if typing.TYPE_CHECKING:
    from geventq.store.endpoint import Given
    from geventq.store.members import Members

__all__ = ["MultiCallResult", "WorkerGroup", "WorkerInfo"]

_ASK_AGAIN: typing.Final = 0.25  # seconds until those are asked again who did not listen
_LEAST: typing.Final = 1.0  # seconds that a call to Redis may take, however short the time is
_PATIENCE: typing.Final = 5.0  # seconds for the replies, unless the caller says otherwise
_ONE: typing.Final = "store"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker, as its last heartbeat told."""

    id: str
    name: str | None
    queue_name: str
    node: str
    """The host's name, unless the worker was given another one."""
    pid: int
    concurrency: int
    active_jobs: int
    """How many jobs it holds now; where 10,000 are active in the queue, at the last heartbeat."""


@dataclasses.dataclass(frozen=True, slots=True)
class MultiCallResult:
    """What the workers answered, by their ids, and who did not answer in time: that one has died
    since its last heartbeat, is cut off, or its hub is blocked, and may still do what was asked."""

    replies: dict[str, typing.Any]
    missing: list[str]

    @property
    def ok(self) -> bool:
        """Whether all have answered."""
        return not self.missing


class WorkerGroup:
    """The workers of the queue `queue_name`; asks all of them, or those of one node.

    A worker joins when it starts and leaves when it has closed; one that dies is a member for half
    a minute at most.  `connection`, `prefix`, `timeout` and `max_connections` are those of a
    `Queue`.  Usable from any greenlet of any native thread, and after a fork.  Does not touch the
    network.  `cancel_secret` is what calls are signed with: workers with a secret carry out those
    that pause or cancel only so (`None`: ``$GEVENTQ_CANCEL_SECRET``, else they are not signed).
    Raises `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        queue_name: str,
        connection: Given = None,
        prefix: str = "bull",
        *,
        timeout: Seconds = 10.0,
        max_connections: int = 50,
        cancel_secret: str | None = None,
    ) -> None:
        self.queue_name = check_queue_name(queue_name)
        self.prefix = check_prefix(prefix)
        self.timeout = check_duration("timeout", timeout)
        self.max_connections = check_integer("max_connections", max_connections, 1)
        self._secret = given_secret(cancel_secret)
        self._connection = Endpoint.given(connection)
        # One at most, under `_ONE`: native threads may come together.
        self._opened: dict[str, Members] = {}

    # -- what one may ask --------------------------------------------------------------------

    def members(self) -> list[WorkerInfo]:
        """The workers whose heartbeat is fresh.  Raises `RedisUnavailableError`.  Yields."""
        return self._look()[1]

    def cancel_job(self, job_id: str, reason: typing.Any = None, node: str | None = None) -> int:
        """Ask the worker that runs the job to stop it, as its own `cancel_job` does: with its own
        mode, and so that the job's attempts may run it again.  Of the workers on `node`, or all;
        how many requests took effect.

        0: it does not run there, or its worker did not answer in 5 s; `multi_call` tells who did
        not.  A job that waits is not found: that is `Queue.cancel_job`.  Raises `TypeError` or
        `ValueError` for a bad argument, `RedisUnavailableError` and `GeventqError`.  Yields.
        """
        return self._count("cancel_job", (job_id, reason), node)

    def cancel_all_jobs(self, reason: typing.Any = None, node: str | None = None) -> int:
        """`cancel_job` for every job that runs on `node`, or on all."""
        return self._count("cancel_all_jobs", (reason,), node)

    def multi_call(
        self, method: str, *args: typing.Any, timeout: Seconds = _PATIENCE
    ) -> MultiCallResult:
        """Ask something of every worker, and wait `timeout` seconds for their replies.

        * ``"ping"``: ``"pong"``;
        * ``"cancel_job", job_id, reason=None``: whether it took effect;
        * ``"cancel_all_jobs", reason=None``: how many requests took effect;
        * ``"pause"``, ``"resume"``: `True`, when it is done; it is the worker that takes no jobs;
        * ``"stats"``: a dict: the members of `WorkerInfo`, and ``is_paused``, ``stuck_jobs``,
          ``uptime`` in seconds.

        Raises `ValueError` for an unknown method, `TypeError` or `ValueError` for bad arguments;
        `RedisUnavailableError`; and `GeventqError` if a worker refused, which names those that did
        not answer as well, with the replies of the others in `results`.  Yields.
        """
        arguments = _checked(method, args)
        return self._call(method, arguments, None, check_duration("timeout", timeout))

    def _count(self, method: str, args: tuple[typing.Any, ...], node: str | None) -> int:
        if node is not None:
            check_name("node", node)
        replies = self._call(method, _checked(method, args), node, _PATIENCE).replies
        return sum(count for count in replies.values() if isinstance(count, int))

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Nothing: a group listens to nobody.  A `Supervisor` calls it."""

    def close(self) -> None:
        """Close the connections; a call that comes later opens new ones.  Idempotent."""
        opened = self._opened.pop(_ONE, None)
        if opened is not None:
            opened.close()

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- asking ------------------------------------------------------------------------------

    @property
    def _members(self) -> Members:
        opened = self._opened.get(_ONE)
        if opened is None:
            from geventq.store.client import Client
            from geventq.store.keys import QueueKeys
            from geventq.store.members import Members

            client = Client(
                Endpoint.of(self._connection),
                timeout=self.timeout,
                max_connections=self.max_connections,
            )
            made = Members(client, QueueKeys(self.prefix, self.queue_name))
            opened = self._opened.setdefault(_ONE, made)
        return opened

    def _look(self, timeout: float | None = None) -> tuple[int, list[WorkerInfo]]:
        now, found = self._members.fresh(timeout)
        members = [_info(one.id, self.queue_name, one.active_jobs, one.told) for one in found]
        return now, members

    def _call(
        self, method: str, args: list[typing.Any], node: str | None, timeout: float
    ) -> MultiCallResult:
        deadline = clock.monotonic() + timeout
        now, members = self._look(min(self.timeout, max(timeout, _LEAST)))
        asked = [one.id for one in members if node in (None, one.node)]
        if not asked:
            return MultiCallResult({}, [])
        nonce = uuid.uuid4().hex
        payload = self._message(method, args, node, nonce, now)
        if len(payload) > LARGEST:
            raise ValueError(f"args: a call has {LARGEST} bytes at most, got {len(payload)}")
        try:
            replies = self._collect(nonce, payload, asked, deadline)
        except RedisUnavailableError as error:
            error.may_be_done = True  # by those who have heard it
            raise
        return _result(asked, replies)

    def _message(
        self, method: str, args: list[typing.Any], node: str | None, nonce: str, now: int
    ) -> bytes:
        message = {
            "queue": self.queue_name,
            "prefix": self.prefix,
            "db": self._members.database,
            "call": method,
            "args": args,
            "nonce": nonce,
            "at": now,
        }
        if node is not None:  # so that it cannot be sent on to others
            message["node"] = node
        text = encode("message", message)
        return text if self._secret is None else self._secret.signed(text)

    def _collect(
        self, nonce: str, payload: bytes, asked: list[str], deadline: float
    ) -> dict[str, dict[str, typing.Any]]:
        """Ask, and gather what is answered until all have, or the time is over.  Those are asked
        again who did not listen: they may have begun a moment ago, or be about to listen again."""
        unheard = {channel_of(one): payload for one in asked}
        awaited, replies = set(asked), dict[str, dict[str, typing.Any]]()
        with self._members.replies(nonce) as answers:
            while awaited:
                if unheard:
                    left = min(self.timeout, max(_LEAST, deadline - clock.monotonic()))
                    for channel in self._members.publish(unheard, left):
                        del unheard[channel]
                until = min(deadline, clock.monotonic() + _ASK_AGAIN) if unheard else deadline
                while awaited and (data := answers.next(until)) is not None:
                    worker_id, reply = _read(data)
                    if worker_id in awaited:
                        awaited.remove(worker_id)
                        replies[worker_id] = reply
                if clock.monotonic() >= deadline:
                    break
        return replies


def _read(data: bytes) -> tuple[str, dict[str, typing.Any]]:
    """Whose reply it is; nobody's if it cannot be read: that worker is missing."""
    try:
        reply = decode(data)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and isinstance(reply.get("worker"), str):
        return reply["worker"], reply
    return "", {}


def _result(asked: list[str], replies: dict[str, dict[str, typing.Any]]) -> MultiCallResult:
    results = {one: replies[one].get("result") for one in asked if one in replies}
    refused = [f"worker {one}: {said['error']}" for one, said in replies.items() if "error" in said]
    missing = [one for one in asked if one not in replies]
    if refused:
        error = GeventqError("; ".join(refused + [f"worker {one}: no answer" for one in missing]))
        error.results = [results[one] for one in asked if one in replies]
        raise error
    return MultiCallResult(results, missing)


def _info(worker_id: str, queue_name: str, active_jobs: int, told: dict[str, str]) -> WorkerInfo:
    return WorkerInfo(
        id=worker_id,
        name=told.get("name") or None,
        queue_name=queue_name,
        node=told.get("node", ""),
        pid=_number(told, "pid"),
        concurrency=_number(told, "concurrency"),
        active_jobs=_number(told, "active") if active_jobs < 0 else active_jobs,
    )


def _number(told: dict[str, str], name: str) -> int:
    """What another version may have left out, or told otherwise, is 0."""
    text = told.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


# -- the arguments of each method ----------------------------------------------------------------


def _cancels_job(job_id: str, reason: typing.Any = None) -> list[typing.Any]:
    return [check_known_id("job_id", job_id), _reason(reason)]


def _cancels_all(reason: typing.Any = None) -> list[typing.Any]:
    return [_reason(reason)]


def _takes_nothing() -> list[typing.Any]:
    return []


def _reason(reason: typing.Any) -> typing.Any:
    encoded_reason(reason)
    return reason


_METHODS: typing.Final[dict[str, typing.Callable[..., list[typing.Any]]]] = {
    "ping": _takes_nothing,
    "cancel_job": _cancels_job,
    "cancel_all_jobs": _cancels_all,
    "pause": _takes_nothing,
    "resume": _takes_nothing,
    "stats": _takes_nothing,
}
_PARAMETERS: typing.Final = {"cancel_job": "job_id, reason=None", "cancel_all_jobs": "reason=None"}


def _checked(method: str, args: tuple[typing.Any, ...]) -> list[typing.Any]:
    check = _METHODS.get(method) if isinstance(method, str) else None
    if check is None:
        raise ValueError(f"method: one of {', '.join(_METHODS)} is needed, got {show(method)}")
    least, most = {"cancel_job": (1, 2), "cancel_all_jobs": (0, 1)}.get(method, (0, 0))
    if not least <= len(args) <= most:
        raise TypeError(
            f"args: {method}({_PARAMETERS.get(method, '')}) is called so, got {show(args)}"
        )
    return check(*args)
