"""The worker as a program sees it: what it is told, what it is asked, and its events.

Owns the options, the listeners, and while it runs the one `Engine` there is, with its `Closing`.
Checks what it is given, and does nothing with jobs itself; callable from any native thread.  No
greenlets run in this module.
"""

from __future__ import annotations

import logging
import platform
import typing
import uuid
import weakref

from gevent import getcurrent

from geventq import clock, wakeups
from geventq.cancellation import Cancellation, request_all
from geventq.cancellation.request import encoded_reason
from geventq.checks import (
    Seconds,
    check_flag,
    check_integer,
    check_kill,
    check_name,
    check_prefix,
    check_queue_name,
    check_seconds,
    check_text,
    check_worker_name,
)
from geventq.hubs import get_ident, in_thread_of, own_hub, wait_for
from geventq.patching import warn_of_what_blocks
from geventq.signals import heeded
from geventq.signatures import takes
from geventq.stacks import JobStacks, printed_on_signal
from geventq.store.endpoint import Endpoint
from geventq.systemd import telling
from geventq.vigil import Condition
from geventq.worker.listeners import Listeners
from geventq.worker.processor import GivenProcessors, Routes
from geventq.worker.settings import DEFAULTS, WorkerArguments, WorkerOptions
from geventq.worker.told import Event, QuietEvent, tells

if typing.TYPE_CHECKING:
    from geventq.job import Job
    from geventq.store.endpoint import Given
    from geventq.worker.closing import Closing
    from geventq.worker.engine import Engine
    from geventq.worker.manual import ManualJobs
    from geventq.worker.run.execution import Execution
    from geventq.worker.run.hearing import Kept

__all__ = ["Worker"]

_ONE: typing.Final = "taken by hand"

log = logging.getLogger("geventq")


def _nothing() -> None:
    """Where a `weakref` to something stands at other times."""


@takes(WorkerArguments, DEFAULTS)
class Worker:
    """Runs the jobs of one queue.

    `process` is a callable of one parameter (the job) or two (the job and a
    `CancellationToken`), its name as ``"package.module:function"``, or a mapping from job names
    to such, in which ``"*"`` stands for all other names (`Processors`).  `connection` is a URL, a
    redis-py client whose settings are taken, or `None`: ``$GEVENTQ_REDIS_URL``, else
    ``redis://127.0.0.1:6379/0``.  `prefix` is the first part of every key, `name` what Node's
    getWorkers() and a job's `processed_by` show.  Does not touch the network.  Raises
    `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        queue_name: str,
        process: GivenProcessors,
        connection: Given = None,
        prefix: str = "bull",
        name: str | None = None,
        **options: typing.Unpack[WorkerArguments],
    ) -> None:
        check_queue_name(queue_name)
        check_prefix(prefix)
        if name is not None:
            check_worker_name(name)
        self.options = WorkerOptions.made(options)
        self.queue_name = queue_name
        self.prefix = prefix
        self.name = name
        self.node = self.options.node or platform.node()
        self.id = str(uuid.uuid4())
        self._routes = Routes(process)
        self._connection = Endpoint.given(connection)
        self._concurrency = self.options.concurrency
        self._listeners = Listeners(queue_name)
        # Both from start() to the end of close(), and never one without the other.
        self._engine: Engine | None = None
        self._closing: Closing | None = None
        # One whose engine has ended, and whose listeners still hear: the worker may start anew.
        self._leaving: typing.Callable[[], Closing | None] = _nothing
        self._herald: typing.Callable[[], object] | None = None  # told of each close beforehand
        self._started = False  # ever: the next start gets a new id
        self._closes = 0  # calls of close(), for a start that is under way
        self._paused = False
        # Who wait because of a pause, each in his hub, with what is set when it or the worker ends.
        self._held_up: list[tuple[typing.Any, wakeups.Event]] = []
        # One at most, under `_ONE`: of native threads that come together one sets the default.
        self._by_hand: dict[str, ManualJobs] = {}
        if self.options.autorun:
            self.start()

    # -- what one may ask --------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether it takes jobs, or would if it were not paused."""
        return self._engine is not None and self._engine.slots.is_open

    @property
    def is_paused(self) -> bool:
        return self._paused

    @property
    def active_jobs(self) -> list[Job]:
        """The jobs that run now."""
        engine = self._engine
        if engine is None:
            return []
        # Asked by another native thread, a run may be over by now.
        jobs = (getattr(run, "job", None) for run in engine.slots.running)
        return [job for job in jobs if job is not None]

    @property
    def concurrency(self) -> int:
        """How many jobs run at once.  May be set while running: fewer takes effect as jobs end."""
        return self._concurrency

    @concurrency.setter
    def concurrency(self, value: int) -> None:
        self._concurrency = check_integer("concurrency", value, 1)
        engine = self._engine
        if engine is not None:
            in_thread_of(engine.hub, lambda: engine.resize(value), gone=None)

    @typing.overload
    def on(
        self, event: typing.Literal["active"], listener: typing.Callable[[Job], object]
    ) -> typing.Callable[[Job], object]: ...
    @typing.overload
    def on(
        self,
        event: typing.Literal["progress", "completed"],
        listener: typing.Callable[[Job, typing.Any], object],
    ) -> typing.Callable[[Job, typing.Any], object]: ...
    @typing.overload
    def on(
        self,
        event: typing.Literal["failed", "retrying"],
        listener: typing.Callable[[Job, BaseException], object],
    ) -> typing.Callable[[Job, BaseException], object]: ...
    @typing.overload
    def on(
        self,
        event: typing.Literal["cancelled", "lock_lost"],
        listener: typing.Callable[[Job, Cancellation], object],
    ) -> typing.Callable[[Job, Cancellation], object]: ...
    @typing.overload
    def on(
        self, event: typing.Literal["stuck"], listener: typing.Callable[[Job, str], object]
    ) -> typing.Callable[[Job, str], object]: ...
    @typing.overload
    def on(
        self, event: typing.Literal["stalled"], listener: typing.Callable[[str], object]
    ) -> typing.Callable[[str], object]: ...
    @typing.overload
    def on(
        self, event: typing.Literal["error"], listener: typing.Callable[[BaseException], object]
    ) -> typing.Callable[[BaseException], object]: ...
    @typing.overload
    def on(
        self, event: QuietEvent, listener: typing.Callable[[], object]
    ) -> typing.Callable[[], object]: ...
    @tells
    def on(self, event: str, listener: typing.Callable[..., object]) -> typing.Any:
        """Call `listener` at each `event`, and return it.  Does not yield.

        Listeners run one after the other, in the order of the events, in one greenlet of their
        own; a slow one delays later events, never the worker.  What one raises is told as an
        `error`.  Raises `ValueError` for an unknown event.
        """
        return self._listeners.on(event, listener)

    def off(self, event: Event, listener: typing.Callable[..., object]) -> bool:
        """Undo one `on`; `False` if there was none.  Raises `ValueError` for an unknown event."""
        return self._listeners.off(event, listener)

    # -- start and close -----------------------------------------------------------------------

    def start(self) -> None:
        """Start taking jobs and return.  Idempotent, also from several greenlets; after a close
        it begins anew, with a new `id`.  Yields to the hub.

        Raises `ValueError` or `TypeError` if `connection` cannot be used; nothing was started
        then.
        """
        while self._closing is not None and self._closing.begun:
            self._wait_closed(self._closing)
        if self._engine is not None:
            return
        warn_of_what_blocks(self._routes.processors())
        from geventq.worker.closing import Closing
        from geventq.worker.engine import Engine, Setup
        from geventq.worker.run.runners import untouched
        from geventq.worker.run.slots import Slots

        endpoint = Endpoint.of(self._connection)
        closes = self._closes
        untouched()  # yields the first time: another start or a close may come in between
        if self._engine is not None or self._closes != closes:
            return
        if self._started:
            self.id = str(uuid.uuid4())
        setup = Setup(
            queue_name=self.queue_name,
            prefix=self.prefix,
            endpoint=endpoint,
            worker_id=self.id,
            worker_name=self.name or "",
            options=self.options,
            routes=self._routes,
            listeners=self._listeners,
            worker=self,
            no_slot=self._out_of_slots,
        )
        engine = Engine(setup, Slots(self._concurrency, is_paused=self._paused))
        self._closing = Closing(engine, self.queue_name, self._closes_now, self._ended)
        self._engine, self._started = engine, True
        engine.start(mortal=self)

    def _out_of_slots(self) -> None:
        """Stuck jobs hold every slot (cancellation.md 2.10)."""
        if self.options.exit_when_stuck and self._closing is not None:
            self._closing.begin(self.options.close_timeout, "stuck jobs hold every slot")

    def _closes_now(self) -> None:
        if self._herald is not None:
            self._herald()

    def before_closing(self, call: typing.Callable[[], object] | None) -> None:
        """`call` whenever it begins to close, in the hub's thread and before anything else
        happens; it must not yield.  One at a time; `None`: nobody.  For hosts of workers."""
        self._herald = call

    def conditions(self) -> list[Condition]:
        """How it is, for hosts of workers: a list of one.  Does not yield."""
        if self._engine is not None:
            return [self._engine.condition()]
        status = "closed" if self._started else "starting"
        return [Condition(self.queue_name, self.id, "", status, self._concurrency, 0, 0, 0)]

    def running_jobs(self, current: typing.Any = None) -> list[JobStacks]:
        """Its jobs with their stacks, for hosts of workers.  Does not yield."""
        return [] if self._engine is None else self._engine.running_jobs(current)

    def ping(self, server: str, timeout: float = 2.0) -> None:
        """Ask `server`, that of its condition: raise `RedisUnavailableError` unless it answers
        within `timeout` seconds.  Yields."""
        if self._engine is not None and self._engine.condition().server == server:
            self._engine.ping(timeout)

    def _ended(self, closing: Closing) -> None:
        """Nothing of the engine is left."""
        if self._closing is closing:
            self._engine = self._closing = None
            self._leaving = weakref.ref(closing)

    def die(self) -> list[typing.Any]:
        """In a forked child, where what runs is the parent's (cancellation.md 7.5): the worker is
        as one that was never started.  Returns the greenlets; for `geventq.fork` alone."""
        engine, closing = self._engine, self._closing
        self._engine = self._closing = None
        self._leaving = _nothing
        self._held_up = []
        greenlets: list[typing.Any] = []
        if engine is not None and closing is not None:
            greenlets = [*closing.disown(), *engine.disown()]
        return greenlets

    def __repr__(self) -> str:
        return f"<Worker {self.id} of {self.queue_name!r}>"

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(self.options.close_timeout if kind is None else 0)

    def run(self) -> None:
        """Start, and block until closed.  In the main thread the first SIGTERM or SIGINT closes
        with `close_timeout`, a second one with 0 (cancellation.md 7.2).  Under systemd
        (``Type=notify``) it is told there of the start, the end and each second.  SIGUSR1 prints
        the stacks of the running jobs to stderr, unless the program has a handler for it.  Yields.
        """
        with telling(self), printed_on_signal(self), heeded(self._signalled) as signals:
            self.start()
            if signals.came:  # while there was nothing to close yet
                self._signalled(signals.came)
            self.join()

    def join(self) -> None:
        """Block until it is closed, whoever closes it; at once if it was not started.  Yields."""
        closing = self._closing or self._still_heard()
        if closing is not None:
            self._wait_closed(closing)

    def is_inside(self) -> bool:
        """Whether a job or a listener of this worker calls: its close cannot be waited for there.
        Does not yield."""
        return self._engine is not None and self._engine.is_inside(getcurrent())

    def _signalled(self, times: int) -> None:
        """A signal, the `times`-th: in a greenlet that gevent spawns for it."""
        if self._closing is not None:
            timeout = self.options.close_timeout if times == 1 else 0.0
            self._closing.begin(timeout, "worker is closing: signal")

    def close(self, timeout: Seconds | None = None, reason: str = "worker is closing") -> None:
        """Take no new jobs, wait for the running ones, and end all greenlets and connections.

        After `timeout` seconds (0: at once; default `None`: never) the running jobs are cancelled
        with kind ``shutdown``, for `reason`, and go back to where they came from (cancellation.md
        7.1).  Idempotent; a later call may shorten the time.  Inside a listener or a processor it
        begins closing and returns.  Yields.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        encoded_reason(check_text("reason", reason))
        self._closes += 1
        by_hand = self._by_hand.pop(_ONE, None)
        if by_hand is not None:
            by_hand.close()
        self._wake_paused()
        closing = self._closing or self._still_heard()
        if closing is None:
            return
        engine = closing.engine
        in_thread_of(engine.hub, lambda: closing.begin(timeout, reason), gone=None)
        if not engine.is_inside(getcurrent()):
            self._wait_closed(closing)

    def _still_heard(self) -> Closing | None:
        """The closing whose engine has ended while listeners still hear; to them it is over."""
        closing = self._leaving()
        if closing is None or closing.done.is_set():
            return None
        return None if closing.engine.is_inside(getcurrent()) else closing

    def _wait_closed(self, closing: Closing) -> None:
        hub = closing.engine.hub
        wait_for(hub, closing.done)
        if not closing.done.is_set():
            self._lost(closing)
        elif hub.thread_ident == get_ident():
            closing.join()

    def _lost(self, closing: Closing) -> None:
        """Its thread has ended under it: jobs that ran there come back as stalled ones."""
        log.error(
            "the thread in which worker %s ran has ended before it was closed: close it there",
            self.id,
            extra={"queue": self.queue_name, "worker": self.id},
        )
        self._ended(closing)

    # -- pause -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more jobs; those that run go on.  Idempotent.  Does not yield."""
        if not self._paused:
            self._paused = True
            if self._engine is not None:
                self._engine.slots.is_paused = True
            self._listeners.emit("paused")
            self._may_be_more()  # what it was woken for is somebody else's now

    def resume(self) -> None:
        """Take jobs again.  Idempotent.  Does not yield."""
        if self._paused:
            self._paused = False
            if self._engine is not None:
                self._engine.slots.is_paused = False
            self._wake_paused()
            self._listeners.emit("resumed")
            self._may_be_more()

    def _wake_paused(self) -> None:
        """Let those go on who wait in `get_next_job` because of a pause."""
        for hub, end in list(self._held_up):
            if hub.loop is not None:
                hub.loop.run_callback_threadsafe(end.set)

    def _hold_up(self) -> None:
        """Wait for the end of a pause, `drain_delay` at most."""
        held_up = self._held_up
        one = (own_hub(), wakeups.Event())
        held_up.append(one)
        try:
            if self._paused:  # else another thread has resumed it just now
                one[1].wait(self.options.drain_delay)
        finally:
            held_up.remove(one)

    def _may_be_more(self) -> None:
        engine = self._engine
        if engine is not None:
            in_thread_of(engine.hub, engine.lanes.may_be_more, gone=None)

    # -- cancel ------------------------------------------------------------------------------

    def cancel_job(
        self,
        job_id: str,
        reason: typing.Any = None,
        *,
        hard: bool | None = None,
        kill_after: Seconds | None = None,
        retry: bool = True,
    ) -> bool:
        """Ask the job `job_id`, which runs here, to stop, or kill it; whether that took effect.

        `reason` is text or any JSON value; the job fails with it, and its token shows it.  `hard`
        kills the job's greenlet where it sits, `kill_after` seconds after the token was set (0:
        at the next turn of the hub); default `None`: as the worker's `cancel_mode` and
        `kill_after` say, and `kill_after` alone means hard.  `retry`: whether the job's own
        attempts may run it again.

        `False` promises that this call had no effect: the job does not run here, has ended, was
        cancelled before with nothing weaker, or takes no token and was asked softly.  `True` does
        not promise a failure: a result that came first counts.  From any native thread; does not
        yield in the worker's own.  Raises `TypeError` or `ValueError` for a bad argument: an id
        that is `None` by mistake must not reach all jobs.
        """
        return bool(self._cancel(check_text("job_id", job_id), reason, hard, kill_after, retry))

    def cancel_all_jobs(
        self,
        reason: typing.Any = None,
        *,
        hard: bool | None = None,
        kill_after: Seconds | None = None,
        retry: bool = True,
    ) -> int:
        """`cancel_job` for every job that runs here; how many requests took effect."""
        return self._cancel(None, reason, hard, kill_after, retry)

    def _cancel(
        self,
        job_id: str | None,
        reason: typing.Any,
        hard: bool | None,
        kill_after: Seconds | None,
        retry: bool,
    ) -> int:
        request, hard, grace = self._request(reason, hard, kill_after, retry)
        engine = self._engine
        if engine is None:
            return 0
        running = engine.slots.running
        if engine.hub.thread_ident == get_ident():
            return running.cancel(job_id, request, hard, grace)
        return in_thread_of(
            engine.hub, lambda: running.cancel(job_id, request, hard, grace), gone=0
        )

    def _request(
        self, reason: typing.Any, hard: bool | None, kill_after: Seconds | None, retry: bool
    ) -> tuple[Cancellation, bool, float | None]:
        hard, grace = check_kill(hard, kill_after)
        check_flag("retry", retry)
        if hard is None:
            hard = self.options.cancel_mode == "hard"
        request = Cancellation(reason, "user", hard=hard, retry=retry, requested_by=self.id)
        return request, hard, grace

    def cancel_when_taken(
        self,
        job_id: str | None,
        reason: typing.Any = None,
        *,
        hard: bool | None = None,
        over: typing.Callable[[], object] | None = None,
    ) -> Kept | None:
        """`cancel_job` (with `None`: `cancel_all_jobs`) of what Redis may have given to this worker
        already, of which it has not heard yet.  For who asks from afar and sees the job in *active*
        (cancellation.md 5.3).

        `over` is called in the worker's hub when every call that may bring it was answered; `None`
        if there is no such call.  Raises and yields as `cancel_job`.
        """
        request, hard, grace = self._request(reason, hard, None, True)
        engine = self._engine
        if engine is None:
            return None

        def ask(execution: Execution) -> int:
            return request_all([execution.attempt], request, hard=hard, kill_after=grace)

        def keep() -> Kept | None:
            running = engine.slots.running
            if job_id is not None and running.find(job_id):  # it came between the two calls
                running.cancel(job_id, request, hard, grace)
                return None
            return engine.hearing.keep(job_id, ask, over)

        return in_thread_of(engine.hub, keep, gone=None)

    # -- jobs taken by hand --------------------------------------------------------------------

    def get_next_job(self, token: str, *, block: bool = True) -> Job | None:
        """Take a job to be settled by hand, with ``job.move_to_completed`` and the like; `None` if
        there is none.  Yields.

        `token` is the lock token that it gets, for `lock_duration` seconds: `job.extend_lock`
        prolongs it.  The worker need not be started; one that takes jobs by itself neither
        renews, counts, cancels nor gives back such a job.  While there is none, or the worker is
        paused, it waits `drain_delay` for one, unless `block` is false or the worker is closed; an
        outage that ends before that ends nothing, and for each answer there is a second at least.
        All who wait in one hub share a connection.
        Raises `ValueError` or `TypeError` for a bad argument, and `RedisUnavailableError`; a job
        that was taken by a call whose answer was lost is found by the next call with the same
        token.
        """
        check_name("token", token)
        check_flag("block", block)
        deadline = clock.monotonic() + (self.options.drain_delay if block else 0.0)
        if self._paused and block:
            self._hold_up()
        if self._paused:
            return None
        by_hand = self._by_hand.get(_ONE)
        if by_hand is None:
            by_hand = self._by_hand.setdefault(_ONE, self._make_by_hand())
        return by_hand.next(token, deadline)

    def _make_by_hand(self) -> ManualJobs:
        from geventq.store.keys import QueueKeys
        from geventq.worker.manual import ManualJobs

        return ManualJobs(
            Endpoint.of(self._connection),
            QueueKeys(self.prefix, self.queue_name),
            self.options,
            worker_name=self.name or "",
            tell=self._listeners.tell,
        )
