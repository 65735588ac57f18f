"""`Supervisor` and `Deaths`: who is started again, when, who is given up, and in which order all
are closed."""

from __future__ import annotations

import collections.abc
import typing

import gevent
import gevent.event
import pytest

from geventq import GeventqError, Supervisor, Worker, clock
from geventq import deaths as deaths_module
from geventq.deaths import SOUND, Deaths
from tests.support.waiting import TurnedClock, eventually


class Child:
    """Lives until it is closed or told to die."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name = name
        self.log: list[str] = [] if log is None else log
        self.started = 0
        self.fails: BaseException | None = None
        self._end = gevent.event.Event()
        self._error: BaseException | None = None

    def start(self) -> None:
        self.started += 1
        self.log.append(f"{self.name} starts")
        if self.fails is not None:
            raise self.fails
        self._end.clear()

    def join(self) -> None:
        self._end.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def die(self, error: BaseException | None = None) -> None:
        self._error = error
        self._end.set()

    def close(self) -> None:
        self.log.append(f"{self.name} closes")
        self._end.set()


class Runner(Child):
    """Has a `run` and no `start`."""

    start = join = None  # type: ignore[assignment]

    def run(self) -> None:
        self._end.clear()
        self.started += 1
        if self.fails is not None:
            raise self.fails
        Child.join(self)


class Group(Child):
    def multi_call(self) -> None:
        """What makes it one."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths_module, "_FIRST", 0.01)


@pytest.fixture
def turned() -> collections.abc.Iterator[TurnedClock]:
    source = TurnedClock()
    with clock.turned(source):
        yield source


# -- counting deaths -----------------------------------------------------------------------------


def test_each_pause_of_a_series_is_longer_and_a_sound_life_begins_a_new_one() -> None:
    deaths = Deaths()
    assert [deaths.died(1.0) for _ in range(4)] == [0.01, 0.02, 0.04, 0.08]
    assert [deaths.died(0.0) for _ in range(20)][-1] == 0.01 * 2**10
    assert deaths.died(SOUND + 1) == 0.01
    assert deaths.died(1.0) == 0.02


def test_without_a_limit_the_pauses_end_at_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    deaths = Deaths()
    assert [deaths.died(0.0) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_only_deaths_within_the_time_count(turned: TurnedClock) -> None:
    turned.stop()
    deaths = Deaths(max_restarts=2, within=10.0)
    for _ in range(5):
        assert deaths.died(0.0) is not None
        turned.advance(5.1)
    assert deaths.died(0.0) is not None
    assert deaths.died(0.0) is None


@pytest.mark.parametrize("max_restarts", [0, 1, 5, 60])
@pytest.mark.parametrize("within", [0.5, 60.0, 3600.0])
def test_the_pauses_alone_keep_no_child_from_being_given_up(
    turned: TurnedClock, monkeypatch: pytest.MonkeyPatch, max_restarts: int, within: float
) -> None:
    monkeypatch.undo()
    turned.stop()
    deaths = Deaths(max_restarts, within)
    for _ in range(max_restarts):
        pause = deaths.died(0.0)
        assert pause is not None
        turned.advance(pause)
    assert deaths.died(0.0) is None


# -- living ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Child, Runner])
@pytest.mark.parametrize(
    "error", [None, ValueError("no"), SystemExit(3), gevent.GreenletExit(), gevent.Timeout()]
)
def test_a_child_that_ends_in_any_way_lives_again(
    kind: type[Child], error: BaseException | None
) -> None:
    child = kind()
    with Supervisor([child]):
        assert child.started == 1
        child.die(error)
        eventually(lambda: child.started == 2)
        child.die(error)
        eventually(lambda: child.started == 3)


def test_one_that_dies_leaves_the_others_alone() -> None:
    mortal, other = Child(), Child()
    with Supervisor([mortal, other]):
        mortal.die(ValueError("no"))
        eventually(lambda: mortal.started == 2)
        assert other.started == 1


@pytest.mark.parametrize("kind", [Child, Runner])
def test_one_that_keeps_dying_is_given_up_and_all_are_closed(kind: type[Child]) -> None:
    child, other = kind(), Child("other")
    child.fails = OSError("no such device")
    supervisor = Supervisor([child, other], max_restarts=2)
    with pytest.raises(GeventqError, match=r"died 3 times within 60 s.*OSError: no such device"):
        supervisor.run()
    assert child.started == 3
    assert other.log == ["other starts", "other closes"]
    assert not supervisor.is_running


def test_one_whose_run_returns_again_and_again_is_given_up_as_that() -> None:
    class Short:
        def run(self) -> None:
            pass

        def close(self) -> None:
            pass

    with pytest.raises(GeventqError, match=r"Short died 1 times.*last time: it ended, unasked"):
        Supervisor([Short()], max_restarts=0).run()


def test_who_only_started_it_learns_of_it_from_join() -> None:
    child = Child()
    child.fails = OSError("no")
    supervisor = Supervisor([child], max_restarts=0)
    supervisor.start()
    with pytest.raises(GeventqError, match="given up"):
        supervisor.join()
    supervisor.close()
    child.fails = None
    supervisor.start()  # begins anew, and has forgotten
    assert supervisor.is_running
    supervisor.close()
    supervisor.join()


# -- closing -----------------------------------------------------------------------------------


def test_a_close_that_fails_stops_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Child):
        def close(self) -> None:
            super().close()
            raise RuntimeError("no")

    group = Group("group")
    supervisor = Supervisor([Stubborn(), group])
    supervisor.start()
    supervisor.close()
    assert group.log[-1] == "group closes"
    assert "closing Stubborn failed" in caplog.text


def test_a_run_that_does_not_end_when_it_is_closed_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf:
        def run(self) -> None:
            gevent.sleep(3600)

        def close(self) -> None:
            """Has no effect."""

    monkeypatch.setattr("geventq.supervisor._LEAVE", 0.01)
    supervisor = Supervisor([Deaf()])
    supervisor.start()
    supervisor.close()  # else the test leaves a greenlet behind


def test_one_that_starts_while_it_is_closed_is_not_left_behind() -> None:
    """start() is under way, close() is called before it returns, and start() goes on."""
    go = gevent.event.Event()

    class Slow(Child):
        def start(self) -> None:
            go.wait()
            super().start()

    child = Slow("slow")
    supervisor = Supervisor([child])
    starting = gevent.spawn(supervisor.start)
    eventually(lambda: supervisor.is_running)
    closing = gevent.spawn(supervisor.close)
    eventually(lambda: child.log == ["slow closes"])
    go.set()
    gevent.joinall([starting, closing], raise_error=True)
    assert child.log == ["slow closes", "slow starts", "slow closes"]


@pytest.mark.parametrize("where", ["run", "close"])
def test_a_child_may_close_the_supervisor_that_it_lives_under(where: str) -> None:
    """The call returns there, and nobody is killed for it."""
    returned: list[str] = []

    class Closing(Runner):
        def run(self) -> None:
            if where == "run":
                supervisor.close()
                returned.append(where)
            super().run()

        def close(self) -> None:
            if where == "close":
                supervisor.close()
                returned.append(where)
            super().close()

    supervisor = Supervisor([Closing()])
    supervisor.start()
    supervisor.close()
    supervisor.join()
    assert returned == [where]


def test_one_supervisor_may_be_the_child_of_another() -> None:
    child = Child()
    child.fails = OSError("no")
    inner = Supervisor([child], max_restarts=1)
    with pytest.raises(GeventqError, match="Supervisor died 3 times"):
        Supervisor([inner], max_restarts=2).run()
    assert child.started == 6


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("children", "options", "error", "text"),
    [
        ([], {}, ValueError, "children: at least one"),
        ([None], {}, TypeError, r"children\[0\]: something that can be closed"),
        ([Child(), Worker], {}, TypeError, r"children\[1\]"),
        ("abc", {}, TypeError, "children"),
        ([Child()], {"max_restarts": -1}, ValueError, "max_restarts"),
        ([Child()], {"max_restarts": 1.5}, TypeError, "max_restarts"),
        ([Child()], {"within": 0}, ValueError, "within"),
        ([Child()], {"within": "60"}, TypeError, "within"),
    ],
)
def test_bad_arguments_are_named(
    children: typing.Any, options: dict[str, typing.Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Supervisor(children, **options)


def test_a_child_stands_there_once() -> None:
    child = Child()
    with pytest.raises(ValueError, match=r"children\[1\]: stands there twice"):
        Supervisor([child, child])
