"""2.16: all belongs to the attempt.  The engine runs job after job in one greenlet, and no user
can tell.  Each test lets job 1 leave something behind and looks at it from job 2.

The queue's worker runs one job at a time, so that job 2 gets job 1's greenlet where there is
nothing against it (the first test holds that it does: the others would show nothing else).
"""

from __future__ import annotations

import collections.abc
import contextvars
import gc
import sys
import threading
import typing
import weakref

import gevent
import gevent.event
import gevent.local
import greenlet
import pytest
from gevent import monkey

import geventq
from geventq import CancellationToken, Job, Queue
from geventq.worker.run import runners
from tests.conftest import Make
from tests.support.attempts import Run
from tests.support.told import engine_of
from tests.support.waiting import eventually

Part = collections.abc.Callable[..., object]

var: contextvars.ContextVar[object] = contextvars.ContextVar("var", default="unset")


@pytest.fixture(autouse=True, scope="module")
def first_attempt() -> None:
    """What the first attempt of a process imports for all links something to its greenlet where
    threads are greenlets: that one is not used again."""
    Run(lambda token: None).start().join()


class InTurn:
    """Runs `first` in job 1 and `second` in job 2, and keeps what they returned."""

    def __init__(self, queue: Queue, make: Make, first: Part, second: Part, **options: object):
        self.returned: list[object] = []
        self.begun = 0
        self.greenlets = 0  # how many were made; their ids would tell nothing, being used again
        self.jobs: list[Job] = []
        parts = [first, second]

        def process(job: Job, token: CancellationToken) -> None:
            self.begun += 1
            part = parts[self.begun - 1]
            self.returned.append(part(token))

        self.worker = make(process, **options)
        self._queue = queue
        runners: typing.Any = engine_of(self.worker).life.runners
        make_one = runners._new

        def counted() -> object:
            self.greenlets += 1
            return make_one()

        runners._new = counted

    def run(self) -> list[object]:
        for _ in range(2):
            self.start()
            self.ended()
        return self.returned

    def start(self, **options: typing.Any) -> None:
        self.jobs.append(self._queue.add("n", **options))

    def ended(self) -> None:
        job = self.jobs[-1]
        eventually(lambda: self._queue.get_job_state(job.id) in ("completed", "failed"))


def unharmed(token: CancellationToken) -> str:
    """A job that blocks long enough for what is late to arrive."""
    gevent.sleep(0.06)
    return "unharmed"


def test_a_greenlet_is_used_again_where_nobody_can_tell(queue: Queue, make: Make) -> None:
    """2.16: without this, every other test of this file would pass for no reason."""
    turn = InTurn(queue, make, lambda token: "one", lambda token: "two")
    assert turn.run() == ["one", "two"]
    assert turn.greenlets == 1


@pytest.mark.parametrize("does", ["keeps", "kills"])
def test_who_is_watching_when_a_process_starts_its_first_worker_changes_nothing(
    does: str,
) -> None:
    """2.16: what is normal for a greenlet is measured then.  A tool holds one it has seen, or
    ends it: greenlets are used again nevertheless, those that somebody holds are not."""
    seen: list[gevent.Greenlet[..., None]] = []

    def watch(event: str, switch: tuple[object, object]) -> None:
        origin = switch[0]
        if isinstance(origin, runners.Runner) and not seen:
            seen.append(origin)
            if does == "kills":
                gevent.get_hub().loop.run_callback(origin.throw, gevent.GreenletExit())

    before = runners.untouched()
    runners.untouched.cache_clear()
    greenlet.settrace(watch)
    try:
        assert runners.untouched() == before
    finally:
        greenlet.settrace(None)
        runners.untouched.cache_clear()
    assert seen


def test_a_job_starts_in_an_empty_context(queue: Queue, make: Make) -> None:
    """2.16: it sees neither what was set where `start()` was called nor what an earlier job set;
    a value shared by all jobs could be changed by each."""

    def first(token: CancellationToken) -> object:
        seen = var.get()
        var.set("job 1")
        return seen

    mark = var.set("at start")
    try:
        turn = InTurn(queue, make, first, lambda token: var.get())
    finally:
        var.reset(mark)
    assert turn.run() == ["unset", "unset"]


def test_what_a_contextvar_held_dies_with_its_job(queue: Queue, make: Make) -> None:
    """2.16: an idle greenlet keeps nothing of the last job alive, its context neither."""

    class Session:
        pass

    def first(token: CancellationToken) -> object:
        session = Session()
        var.set(session)
        return weakref.ref(session)

    turn = InTurn(queue, make, first, unharmed)
    turn.start()
    turn.ended()
    (held,) = turn.returned
    assert isinstance(held, weakref.ref)

    def is_gone() -> bool:
        gc.collect()
        return held() is None

    eventually(is_gone, every=0.02)


class Result(dict[str, int]):
    """JSON, and weakly referable."""


@pytest.mark.parametrize("end", ["returns", "fails", "is cancelled"])
def test_an_idle_worker_keeps_nothing_of_its_last_job(queue: Queue, make: Make, end: str) -> None:
    """2.16: its result, its error and its token die when all have heard of them."""
    held: list[weakref.ref[typing.Any]] = []
    heard: list[str] = []

    def process(job: Job, token: CancellationToken) -> object:
        held.append(weakref.ref(token))
        if end == "is cancelled":
            token.cancel("enough")
            token.raise_if_cancelled()
        if end == "fails":
            error = ValueError("bad")
            held.append(weakref.ref(error))
            raise error
        result = Result(a=1)
        held.append(weakref.ref(result))
        return result

    worker = make(process)
    for event in ("completed", "failed"):
        worker.on(event, lambda job, what: heard.append(job.id))
    queue.add("n")
    eventually(lambda: heard)
    gc.disable()  # reference counts alone: nothing waits for the collector
    try:
        eventually(lambda: [one() for one in held] == [None] * len(held))
    finally:
        gc.enable()


def test_locals_of_a_greenlet_are_new(queue: Queue, make: Make) -> None:
    """2.16: `gevent.local`, and `threading.local` where it is patched, start empty."""
    spaces: list[typing.Any] = [gevent.local.local()]
    if monkey.is_module_patched("threading"):
        spaces.append(threading.local())

    def first(token: CancellationToken) -> None:
        for space in spaces:
            space.user = "job 1"

    turn = InTurn(queue, make, first, lambda token: [hasattr(one, "user") for one in spaces])
    assert turn.run()[1] == [False] * len(spaces)


def test_attributes_of_a_greenlet_are_new(queue: Queue, make: Make) -> None:
    """2.16: libraries keep a job's own things (a trace's span) as attributes of its greenlet."""

    def first(token: CancellationToken) -> None:
        current: typing.Any = gevent.getcurrent()
        current.span, current.name = "job 1", "mine"
        current.spawn_tree_locals["user"] = "job 1"

    def second(token: CancellationToken) -> object:
        current: typing.Any = gevent.getcurrent()
        return (
            hasattr(current, "span"),
            current.name == "mine",
            "user" in current.spawn_tree_locals,
            sys.exc_info(),
        )

    assert InTurn(queue, make, first, second).run()[1] == (False, False, False, (None,) * 3)


def test_an_error_of_an_earlier_job_is_not_in_sys_exc_info(queue: Queue, make: Make) -> None:
    """2.16: nor is it the context of the next job's error."""

    def first(token: CancellationToken) -> object:
        raise KeyError("job 1")

    turn = InTurn(queue, make, first, lambda token: 1)
    turn.start()
    turn.ended()
    turn.returned.append("failed")
    turn.start()
    turn.ended()
    assert turn.returned == ["failed", 1]


def kept_greenlet(kept: list[typing.Any]) -> None:
    kept.append(gevent.getcurrent())


def kept_switch(kept: list[typing.Any]) -> None:
    kept.append(typing.cast(typing.Any, gevent.getcurrent()).throw)


def kept_weakly(kept: list[typing.Any]) -> None:
    kept.append(weakref.ref(gevent.getcurrent()))


def kept_weak_set(kept: list[typing.Any]) -> None:
    kept.append(weakref.WeakSet([gevent.getcurrent()]))


def _kill_kept(kept: typing.Any) -> None:
    """What a user may do with what he kept: kill whom it leads to."""
    if isinstance(kept, weakref.ref):
        kept = kept()
    elif isinstance(kept, weakref.WeakSet):
        kept = next(iter(kept), None)
    if callable(kept) and not isinstance(kept, gevent.Greenlet):
        gevent.get_hub().loop.run_callback(kept, gevent.GreenletExit())
    elif kept is not None:
        kept.kill(block=False)


@pytest.mark.parametrize(
    "keep", [kept_greenlet, kept_switch, kept_weakly, kept_weak_set], ids=lambda keep: keep.__name__
)
def test_a_greenlet_that_is_still_known_is_not_the_next_jobs(
    queue: Queue, make: Make, keep: Part
) -> None:
    """2.16: whoever kept job 1's greenlet, in whatever way, and kills it in job 2 hits nobody."""
    kept: list[typing.Any] = []
    turn = InTurn(queue, make, lambda token: keep(kept), unharmed)
    turn.start()
    turn.ended()
    turn.start()
    eventually(lambda: turn.begun == 2)
    _kill_kept(kept[0])
    turn.ended()
    assert turn.returned[1] == "unharmed"


def late_timeout() -> None:
    gevent.Timeout(0.03).start()


def late_kill() -> None:
    gevent.spawn_later(0.03, gevent.getcurrent().kill)  # type: ignore[attr-defined]


def late_end_of_a_helper() -> None:
    helper: typing.Any = gevent.spawn_later(0.03, lambda: 1)
    helper.link(gevent.getcurrent().switch)


def late_link_of_an_event() -> None:
    event: gevent.event.Event = gevent.event.Event()
    event.rawlink(gevent.getcurrent().switch)
    gevent.spawn_later(0.03, event.set)


def a_link_to_the_greenlet() -> None:
    current: typing.Any = gevent.getcurrent()
    current.link(lambda _: None)


@pytest.mark.parametrize(
    "leave",
    [late_timeout, late_kill, late_end_of_a_helper, late_link_of_an_event, a_link_to_the_greenlet],
    ids=lambda leave: leave.__name__,
)
def test_what_comes_late_never_reaches_the_next_job(queue: Queue, make: Make, leave: Part) -> None:
    """2.16: job 1 ends at once; what it started falls due while job 2 sleeps."""
    turn = InTurn(queue, make, lambda token: leave(), unharmed)
    assert turn.run()[1] == "unharmed"
    assert turn.greenlets == 2


def test_who_links_to_a_jobs_greenlet_later_hears_its_end(queue: Queue, make: Make) -> None:
    """2.16: linked when job 1 is over and the greenlet idle, and then forgotten by the linker."""
    ended: list[str] = []

    def first(token: CancellationToken) -> None:
        current: typing.Any = gevent.getcurrent()
        geventq.detach(link_soon, current)

    def link_soon(greenlet: typing.Any) -> None:
        gevent.sleep(0.02)
        greenlet.link(lambda _: ended.append("job 1"))

    turn = InTurn(queue, make, first, lambda token: eventually(lambda: list(ended)))
    turn.start()
    turn.ended()
    gevent.sleep(0.05)
    turn.start()
    turn.ended()
    assert turn.returned[1] == ["job 1"]


def test_a_request_to_an_attempt_that_is_over_does_not_reach_the_next(
    queue: Queue, make: Make
) -> None:
    """2.16: job 1's token is kept and cancelled, hard by the worker's mode, in job 2."""
    kept: list[CancellationToken] = []
    turn = InTurn(queue, make, kept.append, unharmed, cancel_mode="hard")
    turn.start()
    turn.ended()
    turn.start()
    eventually(lambda: turn.begun == 2)
    assert kept[0].cancel("too late") is False
    assert turn.worker.cancel_job(turn.jobs[0].id, "too late", hard=True) is False
    turn.ended()
    assert turn.returned[1] == "unharmed"


def test_a_callback_of_an_earlier_job_is_not_called_for_the_next(queue: Queue, make: Make) -> None:
    """2.16: job 1 left an `on_cancel` behind; job 2, in the same greenlet, is cancelled."""
    called: list[str] = []

    def first(token: CancellationToken) -> None:
        token.on_cancel(called.append, "job 1's")

    def second(token: CancellationToken) -> None:
        token.on_cancel(called.append, "job 2's")
        assert token.cancel()
        eventually(lambda: called)

    turn = InTurn(queue, make, first, second)
    turn.run()
    assert turn.greenlets == 1
    assert called == ["job 2's"]


def test_a_time_limit_ends_with_its_job(queue: Queue, make: Make) -> None:
    """2.16: the limit of job 1 would fall due in job 2."""
    turn = InTurn(queue, make, lambda token: 1, unharmed, job_timeout=0.04)
    turn.start()
    turn.ended()
    turn.start(timeout=60.0)
    turn.ended()
    assert turn.returned[1] == "unharmed"


def test_what_an_earlier_job_left_running_lives_on(queue: Queue, make: Make) -> None:
    """2.16: detached or just spawned by job 1, it is not killed with job 2."""
    left: list[typing.Any] = []
    lived: list[str] = []
    go = gevent.event.Event()

    def work(name: str) -> None:
        go.wait()
        lived.append(name)

    def first(token: CancellationToken) -> None:
        left.append(geventq.detach(work, "detached"))
        left.append(gevent.spawn(work, "spawned"))

    turn = InTurn(queue, make, first, lambda token: gevent.sleep(60))
    turn.start()
    turn.ended()
    turn.start()
    eventually(lambda: turn.begun == 2)
    assert turn.worker.cancel_job(turn.jobs[1].id, "kill", hard=True)
    turn.ended()
    go.set()
    gevent.joinall(left)
    assert sorted(lived) == ["detached", "spawned"]
