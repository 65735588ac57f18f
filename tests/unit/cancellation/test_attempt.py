"""Requests, the ladder, shields and time limits of an attempt (cancellation.md 2.1-2.11, 2.15)."""

from __future__ import annotations

import itertools
import time
import typing

import gevent
import pytest
from gevent.event import Event

from geventq import Cancellation, JobCancelled, JobKilled, LockLost
from geventq.cancellation import Attempt, request_all
from tests.support.attempts import Run
from tests.support.native import in_native_thread
from tests.support.waiting import at_best, eventually, never


def _forever(*_: object) -> None:
    gevent.sleep(60)


def test_no_token_is_made_at_arity_1() -> None:
    """2.1: nothing is paid for cancellation."""
    run = Run(_forever, with_token=False).start()
    assert run.attempt.token is None
    assert run.ask(hard=True)
    run.join()


def test_arity_1_asked_softly_is_no_effect() -> None:
    """2.2: `False` promises that nothing happened; nobody could have heard."""
    done = Event()
    run = Run(done.wait, with_token=False).start()
    assert not run.ask()
    assert run.attempt.strongest is None and run.attempt.stage is None
    done.set()
    assert run.join().result is True and run.told == []


def test_the_first_request_wins() -> None:
    """2.2: the token's value never changes; a later equal request is `False`."""
    run = Run(lambda token: token.wait()).start()
    assert run.ask("first")
    assert not run.ask("second")
    assert run.ask("third", retry=False)
    run.join()
    assert run.token.reason == "first" == run.token.get(timeout=0).reason
    assert run.attempt.strongest == run.attempt.request_in_force()
    assert run.attempt.strongest.reason == "third" and not run.attempt.strongest.retry


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token.set(1),
        lambda token: token.set_result(1),
        lambda token: token.set_exception(ValueError()),
        lambda token: token(gevent.spawn(int)),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_nobody_else_sets_the_token(
    change: typing.Callable[[typing.Any], None], asked: bool
) -> None:
    """2.2: set, set_result, set_exception and __call__ are guarded."""
    run = Run(_forever)
    if asked:
        run.ask()
    with pytest.raises(TypeError, match="set by cancel"):
        change(run.token)
    assert run.token.cancelled is asked


def test_hard_is_added_to_a_soft_request() -> None:
    """2.2: a later request adds hardness and says so."""
    run = Run(lambda token: _forever()).start()
    assert run.ask("softly")
    gevent.sleep(0.01)
    assert not run.greenlet.ready()
    assert run.ask("hard", hard=True)
    run.join()
    assert isinstance(run.error, JobKilled)
    assert run.error.cancellation.hard and run.error.cancellation.reason == "softly"


def test_a_shorter_grace_is_stronger_a_longer_is_not() -> None:
    """2.2: grace only ever gets shorter; it counts from the first request."""
    run = Run(lambda token: _forever(), hard=True, kill_after=60).start()
    begun = time.monotonic()
    assert run.ask()
    assert not run.ask(kill_after=120)
    assert run.attempt.stage == "grace" and not run.attempt.was_thrown
    assert run.ask(kill_after=0.05)
    run.join()
    assert time.monotonic() - begun > 0.045


def test_cancellation_is_level_triggered() -> None:
    """2.3: every later checkpoint raises again."""
    seen = []

    def process(token: typing.Any) -> None:
        token.wait()
        for checkpoint in (
            token.raise_if_cancelled,
            lambda: token.sleep(9),
            lambda: token.run(_forever),
        ) * 2:
            with pytest.raises(JobCancelled):
                checkpoint()
            seen.append(1)

    run = Run(process).start()
    run.ask(None)
    assert run.join().error is None and len(seen) == 6
    assert run.token.check() and run.token.reason is None


def test_after_the_end_nothing_has_an_effect() -> None:
    """2.7: a request after the processor returned is refused, from the token too."""
    run = Run(lambda token: token).start().join()
    assert not run.ask(hard=True) and not run.token.cancel("late")
    assert run.attempt.strongest is None and not run.token.cancelled


def test_a_kill_that_was_decided_before_the_end_is_not_thrown_after_it() -> None:
    """2.9: request in the turn in which the processor returns: the throw finds an ended job."""
    done = Event()

    def process(token: object) -> str:
        done.wait()
        return "result"

    run = Run(process).start()
    done.set()  # the wake-up stands before the throw in the hub's callbacks
    assert run.ask(hard=True)
    assert run.join().result == "result" and not run.attempt.was_thrown


def test_a_kill_reaches_a_job_in_a_blocking_call() -> None:
    """2.10: hard without grace: thrown at the hub's next turn."""
    run = Run(_forever, hard=True).start()
    assert run.ask("now")
    gevent.sleep(0)
    assert run.greenlet.ready()
    assert isinstance(run.error, JobKilled) and run.error.cancellation.reason == "now"
    assert run.attempt.was_thrown and run.told == []


def test_grace_lets_the_job_hear_first() -> None:
    """1: hard means: cancel at once, kill after the grace."""
    run = Run(lambda token: token.wait().reason, hard=True, kill_after=5).start()
    run.ask("please")
    assert run.join().result == "please" and not run.attempt.was_thrown


@pytest.mark.slow
def test_the_ladder_to_its_end() -> None:
    """2.10: thrown, again every second, three times, then stuck: told once, with the stack."""

    def climb() -> list[float]:
        """The seconds after which it was thrown, and at last stuck."""
        at: list[float] = []
        go = Event()

        def stubborn(token: object) -> None:
            while not go.is_set():
                try:
                    go.wait()
                except JobKilled:
                    at.append(time.monotonic() - begun)

        run = Run(stubborn, hard=True).start()
        begun = time.monotonic()
        run.ask()
        eventually(lambda: "stuck" in run.told)
        at.append(time.monotonic() - begun)
        assert run.attempt.is_stuck and run.attempt.stage == "stuck" and "stubborn" in run.stack
        go.set()
        run.join()
        assert run.told == ["stuck"] and len(at) == 5
        assert all(later - sooner > 0.99 for sooner, later in itertools.pairwise(at))
        return at

    at_best(climb, lambda at: [round(seconds) for seconds in at] == [0, 1, 2, 3, 4])


def test_the_throw_waits_for_the_callbacks() -> None:
    """2.10: never before the callbacks have ended; they run side by side."""
    order = []
    inside = [Event(), Event()]

    def callback(mine: int) -> None:
        inside[mine].set()
        assert inside[1 - mine].wait(20)
        gevent.sleep(0.02)
        order.append("callback")

    def process(token: typing.Any) -> None:
        token.on_cancel(callback, 0)
        token.on_cancel(callback, 1)
        try:
            gevent.sleep(60)
        finally:
            order.append("killed")

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert order == ["callback", "callback", "killed"]


@pytest.mark.slow
def test_callbacks_hold_the_throw_back_one_second_at_most() -> None:
    """2.10, 2.11: a callback is stopped after a second, and the throw comes."""

    def killed_after() -> float:
        run = Run(lambda token: (token.on_cancel(gevent.sleep, 60), _forever()), hard=True).start()
        begun = time.monotonic()
        run.ask()
        run.join()
        assert isinstance(run.error, JobKilled)
        return time.monotonic() - begun

    assert at_best(killed_after, lambda seconds: seconds < 1.8) > 0.9


def test_callbacks_run_elsewhere_at_once_and_can_be_undone() -> None:
    """2.11: outside the job's greenlet; at once if already cancelled; errors are logged."""
    ran = []

    def process(token: typing.Any) -> None:
        token.on_cancel(lambda: ran.append(gevent.getcurrent()))
        undone = token.on_cancel(ran.append, "undone")
        assert undone.undo() and undone.undo()
        token.on_cancel(lambda: 1 / 0)
        token.wait()
        late = token.on_cancel(lambda: ran.append("late"))
        gevent.sleep(0)
        gevent.sleep(0)
        assert not late.undo()

    run = Run(process).start()
    run.ask()
    assert run.join().error is None
    assert ran[1:] == ["late"] and ran[0] is not run.greenlet


def test_a_callback_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """2.11: errors are logged, SystemExit too."""
    run = Run(lambda token: (token.on_cancel(lambda: 1 / 0), token.on_cancel(exit), token.wait()))
    run.start().ask()
    run.join()
    eventually(lambda: len(caplog.records) == 2)


def test_a_shield_holds_the_kill_until_its_exit() -> None:
    """2.9: thrown at the outermost exit, also when the block is left by `return`."""
    order = []

    def process(token: typing.Any) -> str:
        with token.shield():
            with token.shield():
                gevent.sleep(0.05)
            order.append("inner")
            assert token.check() and token.cancelled and token.reason == "enough"
            with pytest.raises(JobCancelled):
                token.raise_if_cancelled()
            token.sleep(0.01)
            assert token.run(lambda: gevent.sleep(0.01) or "end") == "end"
            order.append("outer")
            return "never"

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert order == ["inner", "outer"] and isinstance(run.error, JobKilled)
    assert run.attempt.was_thrown and run.told == []


def test_the_throw_finds_a_shield_that_was_entered_since_the_request() -> None:
    """2.9: the throw is decided in the hub: woken, shielded, then the throw's turn."""
    go, order = Event(), []

    def process(token: typing.Any) -> None:
        go.wait()
        with token.shield():
            gevent.sleep(0.02)
            order.append("committed")

    run = Run(process, hard=True).start()
    go.set()
    run.ask()
    run.join()
    assert order == ["committed"] and isinstance(run.error, JobKilled)


def test_a_kill_that_is_not_due_is_not_thrown_at_the_exit() -> None:
    """2.10: grace counts from the request, and a shield does not shorten it."""

    def process(token: typing.Any) -> str:
        with token.shield():
            gevent.sleep(0.01)
        return "result"

    run = Run(process, hard=True, kill_after=5).start()
    run.ask()
    assert run.join().result == "result"


def test_a_shield_has_a_cap(caplog: pytest.LogCaptureFixture) -> None:
    """2.9: after the cap a warning, and the throw."""

    def process(token: typing.Any) -> None:
        with token.shield(max=0.1):
            gevent.sleep(60)

    def killed_after() -> float:
        begun = time.monotonic()
        run = Run(process, hard=True).start()
        run.ask()
        run.join()
        assert isinstance(run.error, JobKilled)
        return time.monotonic() - begun

    assert at_best(killed_after, lambda seconds: seconds < 1) > 0.08
    eventually(lambda: "cap" in caplog.text)


@pytest.mark.parametrize("inner", ["left", "open", "of another greenlet"])
def test_each_shield_has_its_own_cap(inner: str) -> None:
    """2.9: shielded as long as some open shield's own cap has not run out: an inner one that was
    left lends its cap to nobody, one that is open, wherever, does."""
    seconds = 0.4 if inner == "open" else 0.2

    def hold(token: typing.Any) -> None:
        with token.shield(max=60):
            gevent.sleep(0.05)

    def process(token: typing.Any) -> None:
        with token.shield(max=0.2):
            if inner == "of another greenlet":
                gevent.spawn(hold, token).join()
            with token.shield(max=0.4 if inner == "open" else 60):
                gevent.sleep(60 if inner == "open" else 0.05)
            gevent.sleep(60)

    def killed_after() -> float:
        begun = time.monotonic()
        run = Run(process, hard=True).start()
        run.ask()
        run.join()
        assert isinstance(run.error, JobKilled)
        return time.monotonic() - begun

    assert at_best(killed_after, lambda took: took < seconds + 0.3) > seconds - 0.02


def test_a_shield_is_left_as_the_entry_it_is() -> None:
    """2.9: one shield, entered twice by one greenlet and once by another, left in any order."""
    order: list[str] = []

    def process(token: typing.Any) -> None:
        shield, inside, leave = token.shield(), Event(), Event()

        def other() -> None:
            with shield:
                inside.set()
                leave.wait()
                order.append("other")

        with shield:
            helper = token.spawn(other)
            inside.wait()
            with shield:
                gevent.sleep(0.01)
            order.append("inner")
        order.append("own")
        leave.set()
        helper.join()

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert order == ["inner", "own", "other"] and isinstance(run.error, JobKilled)


@pytest.mark.slow
def test_the_ladders_clock_stands_still_in_a_cleanup_shield() -> None:
    """2.9: a shield entered in a `finally` is not cut by the second throw, nor by stuck."""
    order = []

    def process(token: typing.Any) -> None:
        try:
            gevent.sleep(60)
        finally:
            with token.shield():
                gevent.sleep(1.5)
                order.append("rolled back")

    run = Run(process, hard=True).start()
    run.ask()
    run.join()
    assert order == ["rolled back"] and run.told == []


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
def test_a_cap_is_a_finite_time(bad: float) -> None:
    with pytest.raises(ValueError, match="max"):
        Run(_forever).token.shield(bad)
    with pytest.raises(TypeError, match="max"):
        Run(_forever).token.shield("30")


def test_a_time_limit_kills_where_nobody_could_hear() -> None:
    """2.15: kind `timeout`, hard at arity 1."""
    run = Run(_forever, with_token=False, timeout=0.05).start().join()
    assert isinstance(run.error, JobKilled) and run.error.cancellation.kind == "timeout"
    assert run.error.cancellation.failed_reason() == "Job timed out after 0.05 s"


def test_a_time_limit_is_soft_in_a_soft_worker() -> None:
    """2.15: with a token in a soft worker the limit asks."""
    run = Run(lambda token: token.wait().kind, timeout=0.05).start()
    assert run.join().result == "timeout" and not run.attempt.was_thrown


def test_a_processors_own_timeout_keeps_its_meaning() -> None:
    """2.15: `gevent.Timeout` used by the processor is its own."""

    def process(token: typing.Any) -> str:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            token.run(gevent.sleep, 60)
        with gevent.Timeout(0.01, False):
            token.sleep(60)
        return "on"

    assert Run(process, hard=True).start().join().result == "on"


def test_a_lost_lock_ends_the_attempt_whatever_was_asked() -> None:
    """2.2: hard mode kills without the grace."""
    run = Run(_forever, hard=True, kill_after=60).start()
    run.ask("wait", retry=False)
    lost = Cancellation(LockLost("17"), "lock_lost")
    assert run.attempt.request(lost, hard=None, kill_after=None)
    run.join()
    assert run.attempt.was_lock_lost and run.attempt.strongest
    assert run.attempt.strongest.reason == LockLost("17")


def test_the_failure_of_one_spares_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """7.1, 2.2: who asks many asks all, whatever happens with one; and is told of it."""
    runs = [Run(_forever, hard=True).start() for _ in range(3)]
    attempts = [run.attempt for run in runs]
    request = Attempt.request

    def one_is_broken(attempt: Attempt, *arguments: typing.Any, **options: typing.Any) -> bool:
        if attempt is attempts[1]:
            raise RecursionError("too deep")
        return request(attempt, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "request", one_is_broken)
        assert request_all(attempts, Cancellation("all"), hard=True, kill_after=None) == 2
    for run in (runs[0], runs[2]):
        assert isinstance(run.join().error, JobKilled)
    eventually(lambda: "could not be asked to stop" in caplog.text)
    assert runs[1].ask()
    runs[1].join()


def test_a_request_from_another_thread() -> None:
    """`cancel_job` may be used from any native thread."""
    run = Run(lambda token: token.wait().reason).start()
    assert in_native_thread(lambda: run.ask("from afar")) is True
    assert run.join().result == "from afar"


def test_a_late_kill_never_reaches_the_next_attempt_in_the_same_greenlet() -> None:
    """2.16: two attempts in one greenlet; the throw of the first falls due in the second."""
    go, ran = Event(), []
    first = Run(lambda token: go.wait(), hard=True)
    second = Run(lambda token: gevent.sleep(0.05) or "whole")

    def both() -> None:
        first._run()
        second._run()

    greenlet = gevent.spawn(both)
    gevent.sleep(0)
    go.set()
    assert first.ask()
    greenlet.join()
    ran.append(second.result)
    assert ran == ["whole"] and second.error is None and not second.attempt.was_thrown
    never(lambda: second.told, 0.01)
