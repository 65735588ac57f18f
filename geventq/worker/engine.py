"""What a worker is while it runs: its parts, from its start to the end of its close.

Makes the parts, starts, ends and buries them from one list, and tells none of them what to do:
jobs are led by `run.life`, and taken and settled by the lanes.  The close begins elsewhere
(`geventq.worker.closing`); no greenlet runs in this module.
"""

from __future__ import annotations

import typing

from geventq import clock
from geventq.cancellation import Attempt
from geventq.clock import ServerClock
from geventq.control.proofs import Proofs
from geventq.fork import workers as fork
from geventq.hubs import own_hub
from geventq.stacks import JobStacks
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys
from geventq.store.queue_store import QueueStore
from geventq.vigil import Condition
from geventq.worker.eviction import EvictionCheck
from geventq.worker.idle import IdleWait
from geventq.worker.lanes import Lanes
from geventq.worker.member import GroupMember
from geventq.worker.renewer import Renewer
from geventq.worker.run.demand import OwnMode
from geventq.worker.run.giving_up import GivingUp
from geventq.worker.run.hearing import Hearing
from geventq.worker.run.life import JobLife
from geventq.worker.run.settle_call import SettleCall
from geventq.worker.run.slots import Slots
from geventq.worker.stages import Stages
from geventq.worker.stalled import StalledChecker
from geventq.worker.subscription import Subscription

if typing.TYPE_CHECKING:
    from geventq.worker.listeners import Listeners
    from geventq.worker.member import GroupTarget
    from geventq.worker.processor import Routes
    from geventq.worker.settings import WorkerOptions

__all__ = ["Engine", "Part", "Setup"]


class Setup(typing.NamedTuple):
    """What a worker gives to its engine."""

    queue_name: str
    prefix: str
    endpoint: Endpoint
    worker_id: str
    worker_name: str  # empty for one without a name
    options: WorkerOptions
    routes: Routes
    listeners: Listeners
    worker: GroupTarget  # whom the queue's group may ask
    no_slot: typing.Callable[[], None]  # called when stuck jobs hold every slot


class Part(typing.Protocol):
    """Something that begins and ends with the engine."""

    def start(self) -> None:
        """Begin.  Must not yield."""

    def stop(self) -> None:
        """End, and join the greenlets.  Idempotent.  May yield."""

    def disown(self) -> typing.Iterable[typing.Any]:
        """In a forked child, where all of it is the parent's (7.5): do nothing any more.  Returns
        its greenlets, which are not ended.  Must not yield."""


class Engine:
    """Made and started by `Worker.start`; ended by a `Closing`.  Everything in here runs in the
    hub that it was made in."""

    def __init__(self, setup: Setup, slots: Slots) -> None:
        self.hub: typing.Any = own_hub()
        self.options = options = setup.options
        self.worker_id = setup.worker_id
        self.slots = slots
        self.listeners = setup.listeners
        self._tell = tell = setup.listeners.emit
        self._keys = keys = QueueKeys(setup.prefix, setup.queue_name)
        self._client = client = Client(setup.endpoint)  # never waits for callers
        self._calls_of_jobs = Client(setup.endpoint, max_connections=options.max_connections)
        self._server = setup.endpoint.describe()
        self._worker_name = setup.worker_name
        self._server_clock = ServerClock()
        secret = options.cancel_secret
        self._proofs = None if secret is None else Proofs(secret, self._server_clock)
        self._store = QueueStore(self._calls_of_jobs, keys, secret)
        self.lanes = self._make_lanes()
        self.stages = Stages(tell, client, keys, worker_id=setup.worker_id)
        self.giving_up = self._make_giving_up(setup)
        self.hearing = self._make_hearing()
        self.life = self._make_life(setup)
        self.idle_wait = self._make_idle_wait()
        self.renewer = self._make_renewer()
        self.subscription = self._make_subscription()
        self.member = self._make_member(setup)
        self.stalled_checker = self._make_stalled_checker()  # none or one
        self.subscription.on_call = self.member.called
        self.lanes.jobs, self.life.settler = self.life, self.lanes
        self.life.idle_wait, self.life.lock_keeper = self.idle_wait, self.renewer
        #: In the order of their start and of their end.
        self.parts: list[Part] = [
            *(self.lanes, self.life.runners, self.idle_wait, self.renewer),
            *self.stalled_checker,
            EvictionCheck(tell, client, keys.name),
            *(self.member, self.subscription, self.giving_up, self.life, self.stages),
        ]
        self._mortal: fork.Mortal | None = None  # kept alive by what runs here

    # -- the parts ---------------------------------------------------------------------------

    def _make_lanes(self) -> Lanes:
        calls = SettleCall(
            self._client,
            self._keys,
            lock_duration=self.options.lock_duration,
            worker_name=self._worker_name,
        )
        return Lanes(calls, self.slots, self._tell, self._keys.name, self.worker_id)

    def _make_giving_up(self, setup: Setup) -> GivingUp:
        return GivingUp(
            self.slots,
            QueueStore(self._client, self._keys),
            self._tell,
            worker_id=self.worker_id,
            is_hard=self.options.cancel_mode == "hard",
            may_be_more=self.lanes.may_be_more,
            no_slot=setup.no_slot,
            stages=self.stages,
        )

    def _make_hearing(self) -> Hearing:
        return Hearing(
            self.slots,
            self.giving_up,
            self.stages,
            self._proofs,
            queue=self._keys.name,
            prefix=self._keys.prefix,
            database=self._client.database,
            trusts=self.options.hints == "trusted",
            own_mode=OwnMode(self.options.cancel_mode == "hard", self.options.kill_after),
        )

    def _make_life(self, setup: Setup) -> JobLife:
        return JobLife(
            setup.routes,
            self._store,
            self.options,
            self.slots,
            self.listeners,
            self.giving_up,
            self.hearing,
            worker_name=self._worker_name,
        )

    def _make_subscription(self) -> Subscription:
        return Subscription(
            self.hearing,
            self.giving_up,
            self.slots.held,
            self._tell,
            self._client,
            self._keys,
            worker_id=self.worker_id,
        )

    def _make_member(self, setup: Setup) -> GroupMember:
        return GroupMember(
            setup.worker,
            self.slots,
            self.subscription.ignored,
            self._server_clock,
            self._proofs,
            self._tell,
            self._client,
            self._keys,
            worker_id=self.worker_id,
        )

    def _make_idle_wait(self) -> IdleWait:
        return IdleWait(
            self.slots,
            self.lanes.may_be_more,
            self.listeners.emit,
            self._client,
            self._keys,
            worker_name=self._worker_name,
            drain_delay=self.options.drain_delay,
        )

    def _make_renewer(self) -> Renewer:
        options = self.options
        assert options.lock_renew_time is not None  # its default was filled in
        return Renewer(
            self.slots.held,
            self.giving_up,
            self.hearing,
            self._round_over,
            self.listeners.emit,
            self._client,
            self._keys,
            lock_duration=options.lock_duration,
            renew_time=options.lock_renew_time,
            renews=not options.skip_lock_renewal,
        )

    def _make_stalled_checker(self) -> list[StalledChecker]:
        options = self.options
        if options.skip_stalled_check:
            return []
        checker = StalledChecker(
            self.listeners.emit,
            self._client,
            self._keys,
            interval=options.stalled_interval,
            max_stalled=options.max_stalled_count,
        )
        return [checker]

    def _round_over(self) -> None:
        """What was lost is looked for as often as locks are renewed."""
        self.lanes.recover_late()
        self.life.find_lost()

    # -- how it is ---------------------------------------------------------------------------

    def condition(self) -> Condition:
        """How the worker is.  Does not yield."""
        return Condition(
            queue=self._keys.name,
            worker=self.worker_id,
            server=self._server,
            status=self._status(),
            concurrency=self.slots.concurrency,
            active_jobs=len(self.slots.running),
            stuck_jobs=self.slots.running.stuck,
            ended_jobs=self.slots.running.ended,
        )

    def _status(self) -> str:
        slots = self.slots
        if not slots.is_open:
            return "closing"
        if self.lanes.is_cut_off or self.idle_wait.is_cut_off:
            return "outage" if self.lanes.has_answer else "starting"
        if slots.are_all_stuck:
            return "stuck"
        if slots.is_paused:
            return "paused"
        return "ready" if self.lanes.has_answer else "starting"

    def running_jobs(self, current: typing.Any) -> list[JobStacks]:
        """The jobs that run; see `Attempt.stacks`.  From any native thread; does not yield."""
        now = clock.wall()
        found = []
        for run in self.slots.running:
            job = getattr(run, "job", None)
            if job is not None:  # asked by another native thread, it may be over by now
                began = job.processed_on or now
                found.append(
                    JobStacks(
                        *(self._keys.name, job.id, job.name, run.attempts_made + 1),
                        seconds=max(0.0, now - began),
                        stage=run.attempt.stage,
                        stacks=run.attempt.stacks(current),
                    )
                )
        return found

    def ping(self, timeout: float) -> None:
        """Raise `GeventqError` unless the server answers within `timeout` seconds.  Yields."""
        self._client.execute("PING", timeout=timeout)

    # -- begin and end -----------------------------------------------------------------------

    def start(self, mortal: fork.Mortal) -> None:
        """Start the parts; `mortal` is who dies with this at a fork.  Does not yield."""
        self._mortal = mortal
        fork.watch(mortal)
        self.listeners.start(self._hold_back)
        for part in self.parts:
            part.start()
        self.listeners.emit("ready")
        self.lanes.may_be_more()

    def _hold_back(self, is_behind: bool) -> None:
        """The listeners are too far behind for more jobs, or have caught up."""
        self.slots.is_held_back = is_behind
        if not is_behind:
            self.lanes.may_be_more()

    def steps_to_stop(self) -> list[typing.Callable[[], None]]:
        """End the parts when the last outcome is delivered, and let those go who wait for a job's
        end: no listener, who is heard out next, shall wait for a job of this worker.  Each step
        may be made again, and yields."""
        return [*(part.stop for part in self.parts), self._store.let_go]

    def resize(self, concurrency: int) -> None:
        """Run so many jobs at once.  In the hub's thread; does not yield."""
        self.slots.concurrency = concurrency
        self.giving_up.look_at_slots()
        self.lanes.may_be_more()
        self.member.changed()

    def disconnect(self) -> None:
        """Close the connections, when the listeners have heard all: they may use their jobs."""
        self._store.close()
        self._client.close()

    def disown(self) -> list[typing.Any]:
        """In a forked child: everything is the parent's.  Returns all greenlets of ours."""
        greenlets = self.slots.disown()
        for part in self.parts:
            greenlets += part.disown()
        return greenlets + self.listeners.disown()

    def is_inside(self, greenlet: typing.Any) -> bool:
        """Whether `greenlet` belongs to a job that runs here, or runs listeners: who waits in it
        for the close would wait for itself."""
        if self.listeners.is_inside(greenlet) or greenlet in self.life.runners.alive:
            return True
        attempt = Attempt.of(greenlet)
        if attempt is None or attempt.ended:
            return False
        observer: object = attempt.observer
        return observer is self.life
