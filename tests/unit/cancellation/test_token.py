"""The token: asking, working, links, and fairness of checks (cancellation.md 2.3, 2.4, 2.13)."""

from __future__ import annotations

import contextvars
import datetime
import gc
import time
import typing
import weakref

import gevent
import gevent.event
import pytest

from geventq import CancellationToken, GeventqError, JobCancelled, JobKilled
from geventq.cancellation.scope import disown
from tests.support.attempts import Run
from tests.support.native import in_native_thread
from tests.support.waiting import eventually

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


def test_it_is_an_async_result() -> None:
    """Wait, get, ready, rawlink, gevent.wait and iwait as on any AsyncResult."""
    token, linked = CancellationToken(), []
    assert isinstance(token, gevent.event.AsyncResult)
    assert token.wait(timeout=0) is None and not token.ready()
    with pytest.raises(gevent.Timeout):
        token.get(timeout=0)
    token.rawlink(linked.append)
    task = gevent.spawn(gevent.sleep, 60)
    gevent.spawn(token.cancel, "enough").join()
    assert gevent.wait([task, token], count=1) == [token]
    assert next(gevent.iwait([task, token])) is token
    task.kill()
    assert token.get(timeout=0) is token.wait(timeout=0) is token.value is token.check()
    assert token.get().reason == "enough" and token.get().kind == "user" and linked == [token]


def test_a_token_of_ones_own() -> None:
    """`CancellationToken()` works without a job."""
    token, called = CancellationToken(), []
    assert str(token) == repr(token) == "<CancellationToken 'not cancelled'>"
    assert token.check() is None and not token.cancelled and token.reason is None
    token.raise_if_cancelled()
    token.on_cancel(called.append, 1)
    assert token.run(divmod, 7, 2) == (3, 1)
    with token.shield():
        token.sleep(0)
    assert token.spawn(lambda: 5).get() == 5
    assert token.cancel("a") and not token.cancel("b")
    with pytest.raises(JobCancelled, match="a"):
        token.raise_if_cancelled()
    with pytest.raises(JobCancelled):
        token.sleep(60)
    with token.shield():
        token.sleep(0.001)
        assert token.run(int, "3") == 3
    eventually(lambda: called == [1])


def test_a_token_made_in_another_thread_is_checked_here() -> None:
    """2.4: in other threads a check never yields; here it does."""
    token = typing.cast(CancellationToken, in_native_thread(CancellationToken))
    turned: list[int] = []
    gevent.spawn(turned.append, 1)
    begun = time.monotonic()
    while not turned and time.monotonic() < begun + 20:
        token.check()
    assert turned


def test_a_check_in_another_thread_does_not_yield() -> None:
    """2.4: nor does it make a hub there."""
    token = CancellationToken()

    def check() -> object:
        from gevent._hub_local import get_hub_if_exists

        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            assert token.check() is None
        return get_hub_if_exists()

    assert in_native_thread(check) is None


def test_a_check_in_the_hub_does_not_yield() -> None:
    """2.4: there it would be an error."""
    token, checked = CancellationToken(), []

    def check() -> None:
        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            checked.append(token.check())

    gevent.get_hub().loop.run_callback(check)
    gevent.sleep(0.05)
    assert checked and not any(checked)


def test_a_loop_of_checks_can_be_cancelled() -> None:
    """2.4: a tight loop gives the hub its turns; a kill reaches it too."""

    def compute(token: typing.Any) -> None:
        while token.check() is None:
            pass

    def deaf(token: typing.Any) -> None:
        while True:
            token.check()

    for process, hard in ((compute, False), (deaf, True)):
        run = Run(process, hard=hard).start()
        gevent.sleep(0.02)
        assert run.ask()
        run.join()


@pytest.mark.slow
def test_a_hundred_computing_jobs_share_the_time_and_leave_the_hub_its_turns() -> None:
    """2.4: the hub gets a turn every 10 ms, and no job gets many times the others' share."""
    token, stop = CancellationToken(), []
    shares = [0] * 100

    def compute(number: int) -> None:
        while not stop:
            shares[number] += 1
            token.check()

    gaps: list[float] = []

    def tick() -> None:
        until = time.perf_counter() + 2.0
        before = time.process_time()  # of the CPU: what the machine does for others is no gap
        while time.perf_counter() < until:
            gevent.sleep(0.001)
            now = time.process_time()
            gaps.append(now - before)
            before = now
        stop.append(True)

    jobs = [gevent.spawn(compute, number) for number in range(100)]
    gc.collect()
    gc.disable()  # a collection would be a gap, and take long after many tests
    try:
        gevent.spawn(tick).join()
    finally:
        gc.enable()
    gevent.joinall(jobs)
    gaps.sort()
    assert gaps[len(gaps) * 99 // 100] < 0.010
    assert gaps[-1] < 0.020
    assert min(shares) > 0 and max(shares) < 6 * (sum(shares) / 100)


def test_run_ends_the_call_before_it_raises() -> None:
    """2.13: the child is killed and joined before `JobCancelled`."""
    order = []

    def call() -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.03)
            order.append("cleaned up")

    def process(token: typing.Any) -> None:
        try:
            token.run(call)
        except JobCancelled:
            order.append("raised")
            raise

    run = Run(process).start()
    run.ask()
    assert isinstance(run.join().error, JobCancelled) and order == ["cleaned up", "raised"]


def test_a_result_of_the_same_turn_wins() -> None:
    """2.13: the call ends and the request comes in one turn: the result counts."""
    go = gevent.event.Event()

    def process(token: typing.Any) -> object:
        return token.run(lambda: go.wait() and "result")

    run = Run(process).start()
    gevent.sleep(0)
    go.set()
    run.ask()
    assert run.join().result == "result"


def test_run_hands_on_errors_and_its_timeout() -> None:
    """What the call raises is raised; its own `timeout` is `gevent.Timeout`."""
    token, ended = CancellationToken(), []

    def call() -> None:
        try:
            gevent.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ZeroDivisionError):
        token.run(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        token.run(exit, 3)
    with pytest.raises(gevent.Timeout):
        token.run(call, timeout=0.01)
    assert ended == [True]
    with pytest.raises(ValueError, match="timeout"):
        token.run(call, timeout=-1)


def test_run_and_spawn_see_a_copy_of_the_callers_context() -> None:
    """2.13: gevent itself gives an empty one."""
    token = CancellationToken()
    VARIABLE.set("the caller's")

    def look() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("changed")
        return seen

    assert token.run(look) == token.spawn(look).get() == VARIABLE.get() == "the caller's"
    VARIABLE.set("none")


def test_sys_exit_in_a_helper_ends_the_helper_alone() -> None:
    """2.6: out of a greenlet it would be raised in the main one, and end the process."""
    helper = CancellationToken().spawn(exit, 3)
    with pytest.raises(GeventqError, match=r"sys\.exit\(3\)"):
        helper.get()
    gevent.sleep(0.01)  # where it would be thrown


@pytest.mark.slow
def test_a_call_that_swallows_the_kill_is_stuck() -> None:
    """2.13: as in 2.10; and `JobCancelled` is not raised before it has ended."""
    release = gevent.event.Event()

    def swallow() -> None:
        while not release.is_set():
            try:
                release.wait()
            except gevent.GreenletExit:
                continue

    run = Run(lambda token: token.run(swallow)).start()
    run.ask()
    eventually(lambda: "stuck" in run.told)
    assert "swallow" in run.stack and not run.greenlet.ready()
    release.set()
    assert isinstance(run.join().error, JobCancelled)


def test_a_kill_inside_run_ends_the_call_without_cutting_its_cleanup() -> None:
    """2.12, 2.13: the job's kill and the tree's are one for the call."""
    order = []

    def call() -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.05)
            order.append("cleaned up")

    run = Run(lambda token: token.run(call), hard=True).start()
    gevent.sleep(0)
    run.ask()
    run.join()
    assert order == ["cleaned up"] and isinstance(run.error, JobCancelled)


def test_helpers_end_with_the_processor() -> None:
    """2.13: killed and joined before the outcome is sent."""
    order = []

    def helper() -> None:
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.02)
            order.append("helper")

    def process(token: typing.Any) -> str:
        token.spawn(helper)
        gevent.sleep(0.01)
        return "result"

    run = Run(process).start().join()
    assert run.result == "result" and order == ["helper"]
    with pytest.raises(GeventqError, match="ended"):
        run.token.spawn(helper)


def test_a_helper_in_a_shield_is_waited_for() -> None:
    """2.9, 2.13: its kill is thrown as it leaves the shield."""
    order = []

    def helper(token: typing.Any) -> None:
        with token.shield():
            gevent.sleep(0.05)
            order.append("committed")
        order.append("never")

    def process(token: typing.Any) -> None:
        token.spawn(helper, token)
        gevent.sleep(0.01)

    Run(process).start().join()
    assert order == ["committed"]


def test_a_link_is_cancelled_with_its_parent_and_not_the_other_way() -> None:
    """A child token."""
    parent = CancellationToken()
    child, other = parent.link(), parent.link()
    grandchild = child.link()
    assert child.cancel("child only") and grandchild.cancelled
    assert not parent.cancelled and not other.cancelled
    parent.cancel("all")
    assert other.reason == "all" and child.reason == "child only"
    assert parent.link().reason == "all"


@pytest.mark.slow
@pytest.mark.parametrize("hard", [True, False])
def test_a_chain_of_links_has_no_end(hard: bool) -> None:
    """2.2: the token of each chunk is a link of the last: after thousands a request is heard at
    the end of the chain, a kill is thrown, and the chain is let go without descending it."""
    links = 20_000
    called: list[int] = []

    def process(token: typing.Any) -> None:
        for _ in range(links):
            token = token.link(timeout=3600)
        token.on_cancel(called.append, links)
        with token.shield(), token.shield():
            assert token.run(divmod, 7, 2) == (3, 1)
        if hard:
            gevent.sleep(60)
        token.sleep(60)

    run = Run(process).start()
    loop = gevent.get_hub().loop
    assert run.ask(hard=hard) is True
    run.join()
    assert isinstance(run.error, JobKilled if hard else JobCancelled)
    eventually(lambda: called == [links])
    before = loop.activecnt
    run.error = None
    gc.collect()
    assert loop.activecnt == before  # each link's timer was stopped by the request


def test_a_fork_disowns_a_chain_of_links() -> None:
    """7.5: in a child all clocks stop, however deep."""
    token = CancellationToken()
    loop = gevent.get_hub().loop
    before = loop.activecnt
    last = token
    for _ in range(5000):
        last = last.link(timeout=3600)
    assert loop.activecnt == before + 5000
    assert disown(token) == [] and loop.activecnt == before


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("of_a_job", [True, False])
def test_a_link_is_cancelled_from_a_native_thread(of_a_job: bool, waits: bool) -> None:
    """2.11: whoever waits or not: callbacks run, timers are stopped in the hub's thread."""
    where: list[object] = []
    run = Run(lambda token: token.wait()) if of_a_job else None
    token = run.start().token if run else CancellationToken()
    link = token.link(timeout=3600)
    link.on_cancel(lambda: where.append(gevent.get_hub()))
    waiter = gevent.spawn(link.wait) if waits else None
    gevent.sleep(0)
    assert in_native_thread(lambda: link.cancel("from afar")) is True
    assert link.reason == "from afar" and not token.cancelled
    eventually(lambda: where == [gevent.get_hub()])
    if waiter is not None:
        waiter.join()
    if run is not None:
        run.ask()
        run.join()


def test_what_other_threads_may_do() -> None:
    """api: they ask, cancel, link and register callbacks; the callbacks run where the job does."""
    run = Run(lambda token: token.wait()).start()
    token, ran = run.token, []

    def elsewhere() -> object:
        child = token.link(timeout=3600)
        undone = child.on_cancel(ran.append, "undone")
        assert undone.undo()
        handle = child.on_cancel(lambda: ran.append(gevent.get_hub()))
        VARIABLE.set("elsewhere")
        token.on_cancel(lambda: ran.append(VARIABLE.get()))
        assert token.cancel("enough") and not token.cancel("again")
        assert not handle.undo()
        handle.join()
        return token.check()

    assert in_native_thread(elsewhere) is token.get()
    eventually(lambda: sorted(map(str, ran)) == sorted([str(gevent.get_hub()), "elsewhere"]))
    run.join()


@pytest.mark.parametrize("what", ["run", "spawn", "sleep", "shield"])
def test_what_makes_no_sense_in_another_thread_is_refused_there(what: str) -> None:
    """api: no greenlet of the job can be there."""
    token = CancellationToken()
    arguments = {"run": (int,), "spawn": (int,), "sleep": (0,), "shield": ()}
    with pytest.raises(GeventqError, match=rf"token\.{what}\(\) works only in the thread"):
        in_native_thread(lambda: getattr(token, what)(*arguments[what]))


def test_a_link_of_an_ended_job_takes_no_request() -> None:
    """2.7: nothing has an effect after the end."""
    links: list[CancellationToken] = []
    Run(lambda token: links.append(token.link())).start().join()
    assert not links[0].cancel("late") and not links[0].cancelled


def test_a_link_has_its_own_deadline() -> None:
    """Kind `timeout`; the parent goes on."""
    parent = CancellationToken()
    child = parent.link(timeout=0.02)
    with pytest.raises(JobCancelled, match=r"timed out after 0\.02 s"):
        child.sleep(60)
    assert child.check() and child.get().kind == "timeout" and not parent.cancelled


def test_a_parent_holds_its_links_weakly() -> None:
    """2.13: a dropped link leaves neither the object nor its timer."""
    parent = CancellationToken()
    loop = gevent.get_hub().loop
    before = loop.activecnt
    child = weakref.ref(parent.link(timeout=3600))
    gc.collect()
    assert child() is None and loop.activecnt == before


def test_the_token_does_not_keep_its_attempt() -> None:
    """2.16: no garbage for the collector per job."""
    run = Run(lambda token: None).start().join()
    gc.collect()
    attempt, token = weakref.ref(run.attempt), run.token
    run.attempt = None  # type: ignore[assignment]
    run.greenlet.spawn_tree_locals = {}
    assert attempt() is None and not token.cancel()


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_times_are_checked(seconds: float) -> None:
    token = CancellationToken()
    for call in (token.sleep, token.link, lambda seconds: token.run(int, timeout=seconds)):
        with pytest.raises(ValueError, match="seconds"):
            call(seconds)
        with pytest.raises(TypeError, match="seconds"):
            call(True)
    with pytest.raises(TypeError, match="callable"):
        token.on_cancel(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="reason"):
        token.cancel(object())
    assert not token.cancelled


def test_times_may_be_timedeltas() -> None:
    """All times are seconds, as a float or a timedelta."""
    moment, long = datetime.timedelta(milliseconds=10), datetime.timedelta(hours=1)
    token = CancellationToken()
    token.sleep(moment)
    with token.shield(long):
        assert token.run(int, "7", timeout=long) == 7
    with pytest.raises(gevent.Timeout):
        token.run(gevent.sleep, 60, timeout=moment)
    linked = token.link(timeout=moment)
    request = linked.wait(long)
    assert request is not None and request.failed_reason() == "Job timed out after 0.01 s"
    assert token.wait(moment) is None
    with pytest.raises(gevent.Timeout):
        token.get(timeout=moment)
    assert linked.get(timeout=long) is linked.get() is request


def test_a_value_that_cannot_be_shown_is_refused_all_the_same() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(TypeError, match=r"reason: .*Mute without a repr"):
        CancellationToken().cancel(Mute())
