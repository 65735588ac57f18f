"""The options of a worker: each bad value is refused when the worker is made, whatever its kind,
with the option, the rule and the value; what is taken is kept in seconds."""

from __future__ import annotations

import datetime
import typing

import pytest

from geventq import Queue, Worker, WorkerArguments
from geventq.checks import Seconds
from geventq.job_options import Keep
from geventq.worker.settings import DEFAULTS, LATER, WorkerOptions

HINTS = {
    name: hint for name, hint in typing.get_type_hints(WorkerArguments).items() if name not in LATER
}
NAN, INFINITY = float("nan"), float("inf")


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _kinds(hint: object) -> set[object]:
    return set(typing.get_args(hint)) or {hint}


def _bad(name: str, hint: object) -> list[object]:
    """What an option of that type must refuse."""
    kinds = _kinds(hint)
    bad: list[object] = [b"bytes", object(), Unshowable(), lambda: 1]
    if type(None) not in kinds:
        bad.append(None)
    if Keep in kinds:
        return [*bad, -1, 1.5, "5", {"age": -1}, {"age": NAN}, {"count": True}, {"ages": 1}, [1]]
    if kinds & set(typing.get_args(Seconds)) - {int}:
        bad += ["5", True, -1, -0.1, NAN, INFINITY, 10**400, datetime.timedelta(-1), [5], "30 s"]
    elif bool in kinds:
        bad += [0, 1, "true", 1.0, []]
    elif int in kinds:
        bad += ["5", True, False, 1.0, -1, NAN, 2**53 + 1, datetime.timedelta(1)]
    elif str in kinds:
        bad += ["", 5, "\ud800", ["text"]]
    elif typing.get_origin(hint) is typing.Literal:
        bad += ["", "other", 5, True, ["soft"]]
    else:
        bad += [5, {"": print}, {5: print}, {"a": 5}, {"a": "b:c"}, [("a", print)]]
    if name in ("concurrency", "max_connections", "max_started_attempts", "lock_duration"):
        bad.append(0)
    if name == "lock_duration":
        bad += [0.0004, 0.0999, datetime.timedelta(milliseconds=99)]
    if name in ("stalled_interval", "drain_delay", "job_timeout", "lock_renew_time"):
        bad += [0, 0.0, datetime.timedelta()]
    return bad


@pytest.mark.parametrize("name", HINTS)
def test_every_bad_value_is_refused_with_option_and_rule(name: str) -> None:
    for value in _bad(name, HINTS[name]):
        with pytest.raises((TypeError, ValueError)) as raised:
            Worker("q", lambda job: None, **{name: value})  # type: ignore[misc, arg-type]
        assert str(raised.value).startswith(name), (value, raised.value)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^concurency: unknown option .* 5; known are concurr"):
        Worker("q", lambda job: None, concurency=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "name", [name for name, hint in HINTS.items() if datetime.timedelta in _kinds(hint)]
)
def test_every_time_may_be_a_timedelta(name: str) -> None:
    made = WorkerOptions.made({name: datetime.timedelta(seconds=12.5)})
    assert getattr(made, name) == 12.5
    whole = getattr(WorkerOptions.made({name: 12}), name)
    assert (whole, type(whole)) == (12.0, float)


def test_ages_in_removal_policies_may_be_a_timedelta() -> None:
    made = WorkerOptions.made({"remove_on_fail": {"age": datetime.timedelta(hours=1)}})
    assert made.remove_on_fail == {"age": 3600}


@pytest.mark.parametrize(("name", "least"), [("lock_duration", 0.1), ("stalled_interval", 0.001)])
def test_a_time_that_redis_cannot_keep_is_refused(name: str, least: float) -> None:
    assert getattr(WorkerOptions.made({name: least}), name) == least
    rule = rf"^{name}: at least {least} seconds are needed, got "
    for seconds in (least * 0.99, 5e-324):
        with pytest.raises(ValueError, match=rule):
            WorkerOptions.made({name: seconds})


def test_the_lock_is_renewed_well_before_it_ends() -> None:
    assert WorkerOptions(lock_duration=60).lock_renew_time == 30
    assert WorkerOptions(lock_duration=0.1).lock_renew_time == 0.05
    with pytest.raises(ValueError, match=r"^lock_renew_time: at most 0.8 .* \(24 s\), got 24.1"):
        WorkerOptions(lock_renew_time=24.1)
    with pytest.raises(ValueError, match=r"\(2000000 s\), got 2000001"):
        WorkerOptions(lock_duration=2_500_000, lock_renew_time=2_000_001)


def test_none_is_the_default_where_none_is_shown_and_nowhere_else() -> None:
    for name, hint in HINTS.items():
        if type(None) in _kinds(hint):
            assert DEFAULTS[name] is None
            assert WorkerOptions.made({name: None}) == WorkerOptions()


def test_who_gives_a_coroutine_function_is_told_how_asyncio_code_runs() -> None:
    async def process(job: object) -> None: ...

    with pytest.raises(TypeError, match=r"process: a plain function .*token\.run_coroutine"):
        Worker("q", process)


def test_queues_and_workers_say_in_a_debugger_which_one_they_are() -> None:
    worker = Worker("mails", lambda job: None, "redis://:secret@host:1/0")
    assert repr(worker) == f"<Worker {worker.id} of 'mails'>"
    assert repr(Queue("mails", "redis://:secret@host:1/0")) == "<Queue 'mails'>"
