"""The Node objects that a vector's operation talks to, played by geventq.

`context` makes the ``c`` of an operation: ``c.q`` and ``c.k`` queues, ``c.w`` a worker, ``c.j``
the job that the setup holds, ``c.clock`` the turned clock, ``c.take`` one fetch with a given lock
token.  Names and units are Node's (milliseconds); what happens is our public API, and for a
worker's single steps its scripts.
"""

from __future__ import annotations

import collections.abc
import json
import re
import typing

import redis

from geventq import Job, JobSpec, Queue, QueueEventsProducer, UnrecoverableError, Worker, clock
from geventq.codec import encode
from geventq.errors import GeventqError, LockLostError
from geventq.job import STATES
from geventq.options import StoredOptions, from_wire
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys
from geventq.store.queue_store import NewJob, QueueStore
from geventq.store.scripts import load
from geventq.worker.processor import Routes
from geventq.worker.run import outcome as outcomes
from geventq.worker.run.admission import Admission, Take
from geventq.worker.run.decide import decide
from geventq.worker.run.execution import Execution
from geventq.worker.run.settle_call import SettleCall, Settled
from geventq.worker.settings import WorkerOptions
from tests.support.javascript import UNDEFINED, evaluate
from tests.support.vectors import Vector
from tests.support.waiting import eventually

__all__ = ["Context", "Refused", "StandingClock", "code_of", "in_json"]

LOCK_MS: typing.Final = 30_000  # what the vectors were made with

# Options of the setup's worker that only the setup's own helpers would tell.
_WORKER_OPTIONS: typing.Final[dict[str, dict[str, typing.Any]]] = {
    "complete-worker-keep": {"removeOnComplete": {"count": 0}},
    "complete-keep-false-overrides-worker": {"removeOnComplete": {"count": 0}},
    "fail-max-started": {"maxStartedAttempts": 1},
}


class StandingClock(clock.Source):
    """geventq's clock at the vectors' millisecond; only `tick` moves it."""

    def __init__(self, now_ms: int) -> None:
        self.now = now_ms

    def tick(self, milliseconds: int) -> None:
        self.now += milliseconds

    def wall(self) -> float:
        return (self.now + 0.5) / 1000  # no rounding of the float reaches another millisecond


class Refused(Exception):
    """A script answered with a code of wire-format section 10."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


_SHORT: typing.Final = {
    "continueParentOnFailure": "cpof",
    "deduplication": "de",
    "failParentOnFailure": "fpof",
    "ignoreDependencyOnFailure": "idof",
    "keepLogs": "kl",
    "metadata": "tm",
    "omitContext": "omc",
    "removeDependencyOnFailure": "rdof",
}


def stored_options(node: dict[str, typing.Any] | None) -> dict[str, typing.Any]:
    """Node's job options as they are stored (wire-format section 4)."""
    node = dict(node or {})
    node.update(node.pop("telemetry", None) or {})
    if isinstance(node.get("backoff"), int | float):
        node["backoff"] = {"type": "fixed", "delay": node["backoff"]}
    short = {_SHORT.get(name, name): value for name, value in node.items()}
    return {"attempts": 0, **short}


def options_of(node: dict[str, typing.Any] | None) -> dict[str, typing.Any]:
    """The same as ours."""
    options = from_wire(stored_options(node))
    if "attempts" not in (node or {}):
        del options["attempts"]
    return options


class Context:
    """The ``c`` of one vector's operation."""

    def __init__(self, vector: Vector, raw: redis.Redis, url: str, turned: StandingClock) -> None:
        self.vector = vector
        self.url = url
        self.clock = turned
        self.r = raw
        self.connection = None
        self.toClose: list[typing.Any] = []
        self.bullmq = _Bullmq(self)
        self.closers: list[collections.abc.Callable[[], None]] = []
        self.sleep = lambda milliseconds: UNDEFINED

    def close(self) -> None:
        for closer in self.closers:
            closer()

    # -- what the setup left in `c` ------------------------------------------------------------

    @property
    def q(self) -> NodeQueue:
        found = re.search(r"c\.q = await c\.queue\('(\w+)'", self.vector.setup)
        prefix = re.search(r"prefix: '([^']+)'", self.vector.setup)
        queue = NodeQueue(self, found[1] if found else "q", prefix[1] if prefix else "bull")
        if re.search(r"c\.q = await c\.queue\([^)]*telemetry: TEL", self.vector.setup):
            queue.default_options = {"telemetry": {"metadata": "trace-md"}}
        return queue

    @property
    def k(self) -> NodeQueue:
        found = re.search(r"c\.k = await c\.queue\('(\w+)'", self.vector.setup)
        return NodeQueue(self, found[1] if found else "k")

    @property
    def w(self) -> NodeWorker:
        return NodeWorker(self, self._options_of_setup())

    def _options_of_setup(self) -> dict[str, typing.Any]:
        found = re.search(r"c\.w = await c\.worker\((\{.*?\})\)", self.vector.setup)
        told = evaluate(found[1]) if found else {}
        return {**told, **_WORKER_OPTIONS.get(self.vector.id, {})}

    @property
    def j(self) -> NodeJob:
        return NodeJob(self, self.q, self._job_of_setup())

    def _job_of_setup(self) -> str:
        """The job that the setup holds: the one locked with the operation's token, else a
        locked one, an active one, the last one added."""
        locks = {
            key.split(":")[2]: entry["value"]
            for key, entry in self.vector.before.items()
            if key.endswith(":lock")
        }
        for job_id, token in locks.items():
            if f"'{token}'" in self.vector.operation:
                return job_id
        active = self.vector.before.get("bull:q:active", {"value": []})["value"]
        hashes = [key.split(":")[2] for key in self.vector.before if re.search(r":\d+$", key)]
        return next(iter([*locks, *active, *sorted(hashes, key=int, reverse=True)]))

    # -- what an operation calls -----------------------------------------------------------------

    def queue(self, name: str = "q", options: dict[str, typing.Any] | None = None) -> NodeQueue:
        options = options or {}
        queue = NodeQueue(self, name, options.get("prefix", "bull"))
        if not options.get("skipMetasUpdate"):
            events = options.get("streams", {}).get("events", {})
            queue.opened(events.get("maxLen"))
        return queue

    def worker(self, options: dict[str, typing.Any] | None = None) -> NodeWorker:
        return NodeWorker(self, options or {})

    def take(self, worker: NodeWorker, token: str = "tok-1") -> typing.Any:
        job = worker.moveToActive(token)[0]
        return UNDEFINED if job is None else job

    def start_workers_of_setup(self) -> None:
        """Real ones."""
        found = re.findall(r"c\.worker\((?:\{ name: '(\w+)' \})?\)", self.vector.setup)
        for count, name in enumerate(found, 1):
            worker = Worker("q", print, self.url, name=name or None, skip_stalled_check=True)
            worker.start()
            self.closers.append(worker.close)
            eventually(lambda count=count: len(self.q.ours.get_workers()) == count)

    def client(self) -> Client:
        client = Client(Endpoint.of(self.url))
        self.closers.append(client.close)
        return client


class _Bullmq:
    """The package's own names."""

    UnrecoverableError = UnrecoverableError

    def __init__(self, context: Context) -> None:
        self._context = context

    def QueueEventsProducer(self, name: str, _: typing.Any) -> _Producer:  # noqa: N802
        return _Producer(self._context, name)


class _Producer:
    def __init__(self, context: Context, name: str) -> None:
        self._ours = QueueEventsProducer(name, context.url)
        context.closers.append(self._ours.close)

    def publishEvent(self, fields: dict[str, typing.Any], length: int = 1000) -> None:  # noqa: N802
        fields = dict(fields)
        self._ours.publish(fields.pop("eventName"), fields, length)


class NodeQueue:
    """A Node `Queue` over ours."""

    def __init__(self, context: Context, name: str, prefix: str = "bull") -> None:
        self._context = context
        self.default_options: dict[str, typing.Any] = {}
        self.ours = Queue(name, context.url, prefix)
        context.closers.append(self.ours.close)

    def opened(self, max_length: int | None) -> None:
        if max_length is not None:
            ours = self.ours
            self.ours = Queue(ours.name, self._context.url, ours.prefix, max_events=max_length)
            self._context.closers.append(self.ours.close)
        self.ours.wait_until_ready()

    def job(self, job: Job) -> NodeJob:
        return NodeJob(self._context, self, job.id)

    def add(self, name: str, data: typing.Any = UNDEFINED, opts: typing.Any = None) -> NodeJob:
        return self.job(self.addBulk([{"name": name, "data": data, "opts": opts}])[0])

    def addBulk(self, jobs: list[dict[str, typing.Any]]) -> list[Job]:  # noqa: N802
        """By our API; what that refuses is added below its checks, by what it calls."""
        try:
            return self._add(jobs)
        except (ValueError, TypeError):
            return self.ours._store.add([self._unchecked(job) for job in jobs])

    def _unchecked(self, job: dict[str, typing.Any]) -> NewJob:
        data = job.get("data", UNDEFINED)
        options = StoredOptions(stored_options(job.get("opts")))
        return job["name"], b"{}" if data is UNDEFINED else encode("data", data), options

    def _add(self, jobs: list[dict[str, typing.Any]]) -> list[Job]:
        specs = []
        for job in jobs:
            options = {**self.default_options, **options_of(job.get("opts"))}
            data = job.get("data", UNDEFINED)
            specs.append(
                JobSpec(job["name"], options=options)
                if data is UNDEFINED
                else JobSpec(job["name"], data, options)
            )
        if len(specs) == 1:
            data = {} if specs[0].data.__class__.__name__ == "_LeftOut" else {"data": specs[0].data}
            return [self.ours.add(specs[0].name, **data, **(specs[0].options or {}))]
        return self.ours.add_bulk(specs)

    def pause(self) -> None:
        self.ours.pause()

    def resume(self) -> None:
        self.ours.resume()

    def isPaused(self) -> bool:  # noqa: N802
        return self.ours.is_paused()

    def isMaxed(self) -> bool:  # noqa: N802
        return self.ours.is_maxed()

    def getMeta(self) -> typing.Any:  # noqa: N802
        """Not part of our API."""
        fields = self._context.r.hgetall(f"bull:{self.ours.name}:meta")
        meta: dict[str, typing.Any] = {"version": fields["version"]}
        meta["maxLenEvents"] = int(fields["opts.maxLenEvents"])
        meta["paused"] = "paused" in fields
        return meta

    def remove(self, job_id: str) -> int:
        return int(self.ours.remove(job_id))

    def promoteJobs(self, opts: typing.Any = None) -> None:  # noqa: N802
        self.ours.promote_jobs()

    def retryJobs(self, opts: dict[str, typing.Any] | None = None) -> None:  # noqa: N802
        given = {name: value for name, value in (opts or {}).items() if name != "count"}
        if "timestamp" in given:
            given["until"] = given.pop("timestamp") / 1000
        self.ours.retry_jobs(**given)

    def drain(self, delayed: bool = False) -> object:
        self.ours.drain(delayed)
        return UNDEFINED

    def clean(self, grace_ms: int, limit: int, state: str = "completed") -> list[str]:
        ours: typing.Any = "waiting" if state == "wait" else state
        return self.ours.clean(grace_ms / 1000, limit, ours)

    def obliterate(self, opts: dict[str, typing.Any] | None = None) -> None:
        self.ours.obliterate(**(opts or {}))

    def trimEvents(self, length: int) -> int:  # noqa: N802
        return self.ours.trim_events(length)

    def updateJobProgress(self, job_id: str, value: typing.Any) -> None:  # noqa: N802
        NodeJob(self._context, self, job_id).updateProgress(value)

    def addJobLog(self, job_id: str, row: str, keep: int | None = None) -> int:  # noqa: N802
        return NodeJob(self._context, self, job_id).log(row)

    def getJobLogs(self, job_id: str, start: int = 0, end: int = -1, *_: bool) -> typing.Any:  # noqa: N802
        """Ours gives all rows."""
        rows = self.ours.get_job_logs(job_id)
        return {"logs": rows[start:] if end < 0 else rows[start : end + 1], "count": len(rows)}

    def getJob(self, job_id: str) -> typing.Any:  # noqa: N802
        return (
            UNDEFINED if self.ours.get_job(job_id) is None else NodeJob(self._context, self, job_id)
        )

    def getJobState(self, job_id: str) -> str:  # noqa: N802
        return self.ours.get_job_state(job_id)

    def getJobCounts(self, *states: str) -> dict[str, int]:  # noqa: N802
        counts = self.ours.get_job_counts()
        if not states:
            return counts
        counts.update(wait=counts["waiting"], paused=0)  # names of version 5
        return {state: counts[state] for state in sorted(states)}

    def count(self) -> int:
        return self.ours.count()

    def getCountsPerPriority(self, priorities: list[int]) -> dict[str, int]:  # noqa: N802
        counts = self.ours.get_counts_per_priority(priorities)
        return {str(priority): count for priority, count in counts.items()}

    def getDelayedCount(self, before_ms: int) -> int:  # noqa: N802
        """Not part of our API: due before a moment."""
        return sum(
            1
            for job in self.ours.get_delayed()
            if round((job.timestamp + job.delay) * 1000) < before_ms
        )

    def getRanges(self, states: list[str], start: int, end: int, ascending: bool) -> list[str]:  # noqa: N802
        return [job.id for job in self.ours.get_jobs(states, start, end, ascending=ascending)]

    def getJobs(  # noqa: N802
        self,
        states: list[str] | str | None = None,
        start: int = 0,
        end: int = -1,
        ascending: bool = False,
    ) -> list[Job]:
        if states is None:
            return self.ours.get_jobs(None, start, end, ascending=ascending)
        named = [states] if isinstance(states, str) else states
        ours = ["waiting" if state == "wait" else state for state in named if state != "paused"]
        return self.ours.get_jobs(ours, start, end, ascending=ascending)

    def getWorkers(self) -> list[dict[str, str]]:  # noqa: N802
        self._context.start_workers_of_setup()
        found = sorted((worker["rawname"] for worker in self.ours.get_workers()), reverse=True)
        return [{"name": self.ours.name, "rawname": name} for name in found]


def _getters(state: str) -> dict[str, typing.Any]:
    """``getWaiting`` and ``getWaitingCount``, ``getWaitingChildren``..."""
    name = state.title().replace("-", "")

    def page(queue: NodeQueue, start: int = 0, end: int = -1) -> list[Job]:
        return typing.cast(
            list[Job], getattr(queue.ours, f"get_{state.replace('-', '_')}")(start, end)
        )

    def count(queue: NodeQueue) -> int:
        return queue.ours.get_job_count(state)

    return {f"get{name}": page, f"get{name}Count": count}


for _state in STATES:
    for _name, _getter in _getters(_state).items():
        if not hasattr(NodeQueue, _name):
            setattr(NodeQueue, _name, _getter)


class NodeWorker:
    """A Node `Worker` that is driven by hand."""

    def __init__(self, context: Context, options: dict[str, typing.Any]) -> None:
        self.context = context
        self.options = options
        self.keys = QueueKeys("bull", "q")
        self.client = context.client()
        self.calls = SettleCall(
            self.client,
            self.keys,
            lock_duration=LOCK_MS / 1000,
            worker_name=options.get("name", ""),
        )
        ours = WorkerOptions(
            remove_on_complete=options.get("removeOnComplete"),
            remove_on_fail=options.get("removeOnFail"),
            max_started_attempts=options.get("maxStartedAttempts"),
        )
        store = QueueStore(self.client, self.keys)
        self.admission = Admission(
            store,
            ours,
            worker_name="",
            routes=Routes(print),
            all_tokens=False,
            overseer=typing.cast(typing.Any, self),
        )

    def getBackend(self) -> NodeWorker:  # noqa: N802
        return self

    def moveToActive(self, token: str) -> list[typing.Any]:  # noqa: N802
        return self.exchange(token, 1, [])[1]

    def exchange(
        self, token: str, room: int, settled: list[Settled]
    ) -> tuple[list[int], list[typing.Any]]:
        """One call of the worker's script: the codes, and Node's answer about what was taken."""
        reply = self.calls.settle(settled, room, token)
        if not reply.jobs:
            # Node's worker hears how long a rate limit lasts; ours does not know them yet.
            limited_ms = self.client.execute("PTTL", self.keys.limiter)
            limited = any(outcome.kind == outcomes.WAIT for _, outcome in settled)
            return reply.codes, [None, 0, max(0, limited_ms) if limited else 0, reply.next_ms]
        job_id = reply.jobs[0][0]
        return reply.codes, [NodeJob(self.context, self.context.q, job_id), job_id, 0, 0]

    def execution(self, job_id: str, token: str) -> Execution:
        """The run of a job that the setup has taken."""
        flat = self.client.execute("HGETALL", self.keys.base + job_id) or []
        return self.admission.execution((job_id, token, flat), Execution, Take(0.0, None))

    def settle(self, execution: Execution, outcome: outcomes.Outcome, fetch: bool) -> typing.Any:
        # After an immediate retry Node's call takes nothing (wire-format 9.6).
        room = 1 if fetch and outcome.kind != outcomes.RETRY else -1
        codes, answer = self.exchange(execution.lock_token, room, [(execution, outcome)])
        if codes[0] != 0:
            raise Refused(codes[0])
        if outcome.kind == outcomes.RETRY:
            return UNDEFINED
        return answer if room == 1 else []

    def extendJobLocks(self, ids: list[str], tokens: list[str], duration: int) -> list[str]:  # noqa: N802
        pairs = [item for pair in zip(ids, tokens, strict=True) for item in pair]
        args = [self.keys.base, duration, *pairs]
        answers, *_ = self.client.script(load("renew"), self.keys, args)
        return [job_id for job_id, answer in zip(ids, answers, strict=True) if not answer]

    def startStalledCheckTimer(self) -> None:  # noqa: N802
        interval = self.options.get("stalledInterval", 30_000)
        most = self.options.get("maxStalledCount", 1)
        self.client.script(
            load("stalled"),
            self.keys,
            [self.keys.base, clock.wall_ms(), interval, most, "begin", 0],
        )

    def close(self) -> None:
        """The client is closed with the context."""


class NodeJob:
    """A Node `Job`: the data as they were read, and its methods."""

    def __init__(self, context: Context, queue: NodeQueue, job_id: str) -> None:
        self._context = context
        self._queue = queue
        self._ours = queue.ours.get_job(job_id) or Job(queue.ours._store, job_id, {})
        self.id = job_id

    @property
    def data(self) -> typing.Any:
        return self._ours.data

    @property
    def name(self) -> str:
        return self._ours.name

    @property
    def attemptsMade(self) -> int:  # noqa: N802
        return self._ours.attempts_made

    @property
    def deferredFailure(self) -> str | None:  # noqa: N802
        return self._ours.deferred_failure

    # -- settled by a worker

    def moveToCompleted(self, value: typing.Any, token: str, fetch: bool = True) -> typing.Any:  # noqa: N802
        worker = self._context.w
        execution = worker.execution(self.id, token)
        result = None if value is UNDEFINED else value
        outcome = decide(execution, result, None, clock.wall_ms(), {})
        return worker.settle(execution, outcome, fetch)

    def moveToFailed(self, error: BaseException, token: str, fetch: bool = False) -> typing.Any:  # noqa: N802
        worker = self._context.w
        execution = worker.execution(self.id, token)
        outcome = decide(execution, None, error, clock.wall_ms(), {})
        if not str(error):  # below our API, which says the class's name then
            outcome.value = ""
        return worker.settle(execution, outcome, fetch)

    def moveToDelayed(self, due_ms: int, token: str) -> None:  # noqa: N802
        worker = self._context.w
        execution, now_ms = worker.execution(self.id, token), clock.wall_ms()
        outcome = outcomes.move(execution, now_ms, (due_ms - now_ms) / 1000)
        worker.settle(execution, outcome, False)

    def moveToWait(self, token: str) -> int:  # noqa: N802
        worker = self._context.w
        execution = worker.execution(self.id, token)
        outcome = outcomes.move(execution, clock.wall_ms(), None)
        codes, answer = worker.exchange(token, -1, [(execution, outcome)])
        if codes[0] != 0:
            raise Refused(codes[0])
        return typing.cast(int, answer[2])

    def extendLock(self, token: str, duration: int) -> int:  # noqa: N802
        try:
            self._queue.ours._store.extend_lock(self.id, token, duration)
        except GeventqError:
            return 0
        return 1

    # -- asked for by anybody

    def promote(self) -> None:
        self._ours.promote()

    def changeDelay(self, delay_ms: int) -> None:  # noqa: N802
        self._ours.change_delay(delay_ms / 1000)

    def changePriority(self, opts: dict[str, typing.Any]) -> None:  # noqa: N802
        self._ours.change_priority(opts.get("priority", 0), opts.get("lifo", False))

    def remove(self, opts: typing.Any = None) -> None:
        self._ours.remove()

    def retry(self, state: str = "failed", opts: dict[str, bool] | None = None) -> None:
        opts = opts or {}
        self._ours.retry(
            state,
            reset_attempts_made=opts.get("resetAttemptsMade", False),
            reset_attempts_started=opts.get("resetAttemptsStarted", False),
        )

    def updateProgress(self, value: typing.Any) -> None:  # noqa: N802
        self._ours.update_progress(value)

    def updateData(self, value: typing.Any) -> None:  # noqa: N802
        self._ours.update_data(value)

    def log(self, row: str) -> int:
        return self._ours.log(row)

    def clearLogs(self, keep: int | None = None) -> None:  # noqa: N802
        self._ours.clear_logs(keep or 0)

    def getState(self) -> str:  # noqa: N802
        return self._ours.get_state()

    def isCompleted(self) -> bool:  # noqa: N802
        return self._ours.is_completed()

    def isFailed(self) -> bool:  # noqa: N802
        return self._ours.is_failed()

    def isActive(self) -> bool:  # noqa: N802
        return self._ours.is_active()

    def isWaiting(self) -> bool:  # noqa: N802
        return self._ours.is_waiting()

    def isDelayed(self) -> bool:  # noqa: N802
        return self._ours.is_delayed()


def code_of(error: GeventqError) -> tuple[int, ...]:
    """The codes of wire-format section 10 that our API tells as this error."""
    if isinstance(error, LockLostError):
        return (-2, -6)
    return (-1,) if "does not exist" in str(error) else (-3,)


def in_json(value: typing.Any) -> typing.Any:
    """A result as the vectors tell it; jobs are compared in the keyspace, not here."""
    if isinstance(value, (NodeJob, Job)):
        return "<job>"
    if isinstance(value, dict) and ("$job" in value or "attemptsStarted" in value):
        return "<job>"
    if value is UNDEFINED or value is None or isinstance(value, (NodeQueue, NodeWorker)):
        return "<undefined>"
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if isinstance(value, dict):
        return {key: in_json(item) for key, item in value.items()}
    return json.loads(json.dumps(value))
