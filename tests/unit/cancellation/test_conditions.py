"""What a kill leaves of a condition variable that others wait for, too: whoever is next gets what
the killed one gives back, or was just given (cancellation.md 2.9)."""

from __future__ import annotations

import threading
import typing

import gevent
import pytest

from geventq import JobKilled
from tests.support.attempts import Run
from tests.support.waiting import eventually

pytestmark = pytest.mark.patched


class _Permits(typing.Protocol):
    """Something of which there is one."""

    def take(self) -> typing.Callable[[], object]:
        """Wait for it; what is returned gives it back."""


class _Semaphore:
    def __init__(self, kind: type[threading.Semaphore]) -> None:
        self._semaphore = kind(1)

    def take(self) -> typing.Callable[[], object]:
        self._semaphore.acquire()
        return self._semaphore.release


class _Condition:
    """As programs write it themselves."""

    def __init__(self, lock: typing.Any) -> None:
        self._free = threading.Condition(lock)
        self._is_free = True

    def take(self) -> typing.Callable[[], object]:
        with self._free:
            while not self._is_free:
                self._free.wait()
            self._is_free = False
        return self._give_back

    def _give_back(self) -> None:
        with self._free:
            self._is_free = True
            self._free.notify()


class _Connections:
    """SQLAlchemy's."""

    def __init__(self) -> None:
        pool = pytest.importorskip("sqlalchemy.pool")
        self._pool = pool.QueuePool(_Connection, pool_size=1, max_overflow=0)

    def take(self) -> typing.Callable[[], object]:
        return typing.cast(typing.Callable[[], object], self._pool.connect().close)


class _Connection:
    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


KINDS: dict[str, typing.Callable[[], _Permits]] = {
    "Semaphore": lambda: _Semaphore(threading.Semaphore),
    "BoundedSemaphore": lambda: _Semaphore(threading.BoundedSemaphore),
    "Condition": lambda: _Condition(None),
    "Condition of a lock": lambda: _Condition(threading.Lock()),
    "QueuePool": _Connections,
}


@pytest.fixture(params=KINDS)
def permits(request: pytest.FixtureRequest) -> _Permits:
    return KINDS[request.param]()


def _use(permits: _Permits, log: list[str], name: str) -> Run:
    """A job that takes it, keeps it until it is killed, and gives it back."""

    def process(token: object) -> None:
        give_back = permits.take()
        log.append(name)
        try:
            gevent.sleep(60)
        finally:
            give_back()

    return Run(process, hard=True).start()


def test_who_is_killed_with_its_holder_does_not_take_it_along(permits: _Permits) -> None:
    """Two jobs are killed in one turn: the one that has it and the first that waits for it."""
    log: list[str] = []
    has_it, is_first, is_second = (_use(permits, log, name) for name in ("A", "B", "C"))
    assert log == ["A"]
    assert has_it.ask()
    assert is_first.ask()
    eventually(lambda: "C" in log, what="the third job gets it")
    assert isinstance(has_it.join().error, JobKilled)
    assert isinstance(is_first.join().error, JobKilled)
    is_second.ask()
    is_second.join()
    permits.take()()


def test_who_gives_it_back_while_the_kill_lands_wakes_the_next(permits: _Permits) -> None:
    """Where giving back yields, the kill waits until it is done."""
    log: list[str] = []
    is_killed = gevent.event.Event()

    def process(token: object) -> None:
        give_back = permits.take()
        is_killed.wait()
        run.ask()  # thrown at the next turn of the hub
        give_back()
        gevent.sleep(60)

    run = Run(process, hard=True).start()
    others = [_use(permits, log, name) for name in ("B", "C")]
    is_killed.set()
    eventually(lambda: "B" in log, what="the next one gets it")
    assert isinstance(run.join().error, JobKilled)
    for other in others:
        other.ask()
    for other in others:
        other.join()
    permits.take()()


def test_a_kill_does_not_keep_a_semaphore_from_being_released() -> None:
    """While somebody else's release yields, it stands in line for the semaphore's own lock."""
    semaphore = threading.BoundedSemaphore(2)
    semaphore.acquire()

    def process(token: object) -> None:
        semaphore.acquire()
        gevent.spawn(semaphore.release)
        gevent.sleep(0)
        assert vars(semaphore)["_cond"]._lock.locked()
        run.ask()
        semaphore.release()
        gevent.sleep(60)

    run = Run(process, hard=True).start()
    assert isinstance(run.join().error, JobKilled)
    assert semaphore.acquire(blocking=False)
    assert semaphore.acquire(blocking=False)


@pytest.mark.parametrize("lock", [threading.Lock, threading.RLock])
def test_who_is_killed_while_another_is_about_to_notify_does_not_take_it_along(
    lock: typing.Callable[[], typing.Any],
) -> None:
    """Killed then, it would stand in the list of those who wait until it has the lock back."""
    condition = threading.Condition(lock())
    items: list[int] = []
    got: list[str] = []
    go_on = gevent.event.Event()

    def take(name: str) -> None:
        with condition:
            while not items:
                condition.wait()
            items.pop()
            got.append(name)
        gevent.sleep(60)

    def make() -> None:
        with condition:
            go_on.wait()
            items.append(17)
            condition.notify()

    first, second = (
        Run(lambda token, name=name: take(name), hard=True).start() for name in ("first", "second")
    )
    maker = gevent.spawn(make)
    gevent.sleep(0)
    first.ask()
    eventually(lambda: first.attempt.stage)
    gevent.sleep(0.01)  # the kill is due by now
    go_on.set()
    maker.join()
    eventually(lambda: got, what="somebody gets the item")
    assert isinstance(first.join().error, JobKilled)
    second.ask()
    second.join()


def test_a_kill_is_not_held_back_where_nobody_else_is_at_the_condition() -> None:
    """One who just waits is killed at once."""
    condition = threading.Condition()

    def wait(token: object) -> None:
        with condition:
            condition.wait()

    run = Run(wait, hard=True).start()
    run.ask()
    gevent.sleep(0)
    gevent.sleep(0)
    assert run.greenlet.ready()
    assert not vars(condition)["_waiters"]
