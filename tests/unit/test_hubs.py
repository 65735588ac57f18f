"""Steps in another thread's hub, and what becomes of them when that thread ends."""

from __future__ import annotations

import typing

import gevent
from gevent import monkey

from geventq import hubs
from geventq.store.threads import life_of_this_thread
from geventq.wakeups import Event
from tests.support.native import in_native_thread
from tests.support.waiting import eventually

_start_thread = monkey.get_original("_thread", "start_new_thread")


class _Other:
    """Another native thread whose hub turns until `go` is called."""

    def __init__(self) -> None:
        self.made: list[typing.Any] = []  # its hub, and an event that nobody ever sets
        self._goes = False
        _start_thread(self._run, ())
        eventually(lambda: len(self.made) == 2)
        self.hub, self.event = self.made

    def _run(self) -> None:
        life_of_this_thread()  # its loop is closed when it has ended
        self.made += [hubs.own_hub(), Event()]
        while not self._goes:
            gevent.sleep(0.005)

    def go(self) -> None:
        self._goes = True

    def gone(self) -> _Other:
        self.go()
        eventually(lambda: hubs.has_ended(self.hub))
        return self


def test_a_step_runs_in_the_other_thread() -> None:
    other = _Other()
    assert hubs.in_thread_of(other.hub, hubs.get_ident, gone=0) == other.hub.thread_ident
    other.gone()


def test_a_step_in_a_thread_that_has_ended_is_not_waited_for() -> None:
    other = _Other().gone()
    assert hubs.in_thread_of(other.hub, lambda: "made", gone="gone") == "gone"
    hubs.wait_for(other.hub, other.event)


def test_who_waits_sees_that_the_other_thread_ends() -> None:
    other = _Other()
    waiting = gevent.spawn(in_native_thread, lambda: hubs.wait_for(other.hub, other.event))
    eventually(lambda: other.event.linkcount() == 1)
    assert not waiting.ready()
    other.go()
    waiting.get(timeout=20)


def test_a_step_is_not_made_in_a_thread_that_has_got_the_id_of_the_other() -> None:
    """The system gives a new thread the id of the one that has just ended."""
    other = _Other().gone()

    def call() -> tuple[bool, str]:
        is_same = hubs.get_ident() == other.hub.thread_ident
        return is_same, hubs.in_thread_of(other.hub, lambda: "made", gone="gone")

    for _ in range(20):
        is_same, answer = typing.cast("tuple[bool, str]", in_native_thread(call))
        assert answer == "gone"
        if is_same:
            break
