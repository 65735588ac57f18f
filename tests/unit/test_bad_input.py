"""Bad input: an error that names field, rule and value, before anything is written.

Every call here goes to a port where no Redis is: what reached it would raise
`RedisUnavailableError` instead.
"""

from __future__ import annotations

import collections.abc
import datetime
import decimal
import typing

import pytest

from geventq import CancelBridge, JobSpec, Queue, QueueEvents, Supervisor, Worker, detach
from geventq.options import _CHECKS

NOWHERE: typing.Final = "redis://127.0.0.1:1"
NAN, INFINITY = float("nan"), float("inf")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Incomparable:
    """As an array is, whose comparison is no bool."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")


ANYTHING: typing.Final[dict[str, typing.Any]] = {
    "true": True,
    "false": False,
    "text": "5",
    "empty": "",
    "bytes": b"5",
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "negative fraction": -0.5,
    "nan": NAN,
    "infinity": INFINITY,
    "minus infinity": -INFINITY,
    "huge": 10**400,
    "complex": 1j,
    "decimal": decimal.Decimal(1),
    "list": [1],
    "tuple": (),
    "set": {1},
    "dict": {},
    "unknown key": {"foo": 1},
    "key that is no text": {5: 1},
    "date": datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
    "time before": datetime.timedelta(seconds=-1),
    "surrogate": "\ud800",
    "object": object(),
    "unprintable": Unprintable(),
    "incomparable": Incomparable(),
    "function": len,
    "class": int,
}
SECONDS: typing.Final = {"zero", "fraction"}
WHOLE: typing.Final = {"zero"}
FLAG: typing.Final = {"true", "false"}
POLICY: typing.Final = {"true", "false", "zero", "dict"}
# What of `ANYTHING` each option takes.
TAKEN: typing.Final[dict[str, set[str]]] = {
    "attempts": WHOLE,
    "backoff": SECONDS,
    "continue_parent_on_failure": {"false"},
    "deduplication": set(),
    "delay": SECONDS,
    "fail_parent_on_failure": {"false"},
    "ignore_dependency_on_failure": {"false"},
    "job_id": set(),
    "keep_logs": WHOLE,
    "lifo": FLAG,
    "parent": set(),
    "priority": WHOLE,
    "remove_dependency_on_failure": {"false"},
    "remove_on_complete": POLICY,
    "remove_on_fail": POLICY,
    "size_limit": WHOLE,
    "stack_trace_limit": WHOLE,
    "telemetry": {"dict"},
    "timeout": {"fraction"},
    "timestamp": SECONDS,
}


@pytest.fixture
def queue() -> collections.abc.Iterator[Queue]:
    with Queue("q", NOWHERE) as queue:
        yield queue


def refusal(field: str, call: collections.abc.Callable[[], object]) -> str:
    """What is wrong with the refusal of a bad `field`; nothing if it is as it should be."""
    try:
        call()
    except (ValueError, TypeError) as error:
        text = str(error)
        name, _, rest = text.partition(": ")
        rule, _, value = rest.rpartition(", got ")
        whole = name.split("[")[0] == field and rule and value and len(text) < 400
        return "" if whole else text
    except Exception as error:
        return f"not refused before the call: {error!r}"
    return "not refused"


def wrong(
    field: str, taken: set[str], *calls: collections.abc.Callable[[typing.Any], object]
) -> dict[str, str]:
    """The kinds of `ANYTHING`, but for those `taken`, that a call does not refuse as it should."""
    return {
        kind: said
        for kind, value in ANYTHING.items()
        for call in (calls if kind not in taken else ())
        if (said := refusal(field, lambda call=call, value=value: call(value)))
    }


def test_the_table_has_every_option() -> None:
    assert set(TAKEN) == set(_CHECKS)


@pytest.mark.parametrize("option", TAKEN)
def test_every_option_with_every_kind_of_wrong_value(queue: Queue, option: str) -> None:
    assert not wrong(
        option,
        TAKEN[option],
        lambda value: queue.add("n", **{option: value}),
        lambda value: queue.add_bulk([JobSpec("n"), JobSpec("n", None, {option: value})]),
        lambda value: Queue("q", NOWHERE, default_job_options={option: value}),
    )
    for kind in TAKEN[option]:
        Queue("q", NOWHERE, default_job_options={option: ANYTHING[kind]})


@pytest.mark.parametrize(
    ("option", "member", "taken"),
    [
        ("backoff", "delay", SECONDS),
        ("backoff", "jitter", SECONDS),
        ("backoff", "type", {"text"}),
        ("remove_on_complete", "age", SECONDS),
        ("remove_on_complete", "count", WHOLE),
        ("remove_on_fail", "limit", set[str]()),
        ("telemetry", "metadata", {"text", "empty"}),
        ("telemetry", "omit_context", FLAG),
    ],
)
def test_every_member_of_an_option_with_every_kind_of_wrong_value(
    queue: Queue, option: str, member: str, taken: set[str]
) -> None:
    sound = {"type": "fixed", "delay": 1} if option == "backoff" else {}
    assert not wrong(
        option, taken, lambda value: queue.add("n", **{option: {**sound, member: value}})
    )


def test_names_of_jobs_and_queues_with_every_kind_of_wrong_value(queue: Queue) -> None:
    text = {"text"}
    assert not wrong("name", text, queue.add, lambda value: queue.add_bulk([JobSpec(value)]))
    assert not wrong("queue name", text, Queue)
    assert not wrong("prefix", text, lambda value: Queue("q", prefix=value))


@pytest.mark.parametrize(
    "data",
    [
        *(NAN, [INFINITY], {"a": -INFINITY}, {1, 2}, b"bytes", object(), "\ud800", len),
        *({"\udfff": 1}, decimal.Decimal(1), datetime.timedelta(1), {(1, 2): 3}, 1j),
    ],
)
def test_data_that_is_not_json(queue: Queue, data: typing.Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^data.*: .+ is not JSON"):
        queue.add("n", data)


def test_data_in_itself(queue: Queue) -> None:
    circular: list[typing.Any] = []
    circular.append(circular)
    with pytest.raises(ValueError, match=r"^data: not JSON: nested"):
        queue.add("n", circular)


@pytest.mark.parametrize("options", [5, "delay", [], ["delay"], 0, False, "", b""])
def test_options_that_are_no_dict(queue: Queue, options: typing.Any) -> None:
    with pytest.raises(TypeError, match=r"^options: a dict is needed, got "):
        queue.add_bulk([JobSpec("n", None, options)])


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("job_id", lambda queue: queue.get_job(5)),
        ("job_id", lambda queue: queue.get_job(b"5")),
        ("job_id", lambda queue: queue.get_job("\ud800")),
        ("job_id", lambda queue: queue.get_job_state(None)),
        ("job_id", lambda queue: queue.get_job_logs(5)),
        ("job_id", lambda queue: queue.remove(5)),
        ("job_id", lambda queue: queue.remove("")),
        ("job_id", lambda queue: queue.remove("meta")),
        ("job_id", lambda queue: queue.remove("5:processed")),
        ("job_id", lambda queue: queue.remove("repeat:nightly")),
        ("specs", lambda queue: queue.add_bulk(5)),
        ("specs", lambda queue: queue.add_bulk([("n", {})])),
        ("state", lambda queue: queue.get_jobs("asleep")),
        ("state", lambda queue: queue.get_jobs([5])),
        ("states", lambda queue: queue.get_jobs(5)),
        ("start", lambda queue: queue.get_jobs("waiting", True)),
        ("end", lambda queue: queue.get_waiting(0, 1.5)),
        ("ascending", lambda queue: queue.get_jobs("waiting", ascending=1)),
        ("state", lambda queue: queue.get_job_count("asleep")),
        ("priorities", lambda queue: queue.get_counts_per_priority(5)),
        ("priorities", lambda queue: queue.get_counts_per_priority([-1])),
        ("priorities", lambda queue: queue.get_counts_per_priority(["1"])),
        ("state", lambda queue: queue.retry_jobs("active")),
        ("state", lambda queue: queue.retry_jobs(None)),
        ("until", lambda queue: queue.retry_jobs(until=NAN)),
        ("until", lambda queue: queue.retry_jobs(until="now")),
        ("length", lambda queue: queue.trim_events(-1)),
        ("length", lambda queue: queue.trim_events(True)),
        ("max_events", lambda queue: Queue("q", max_events=-1)),
        ("max_events", lambda queue: Queue("q", max_events=True)),
        ("default_job_options", lambda queue: Queue("q", default_job_options=[])),
    ],
)
def test_arguments_of_the_other_calls(
    queue: Queue, field: str, call: collections.abc.Callable[[typing.Any], object]
) -> None:
    assert not refusal(field, lambda: call(queue))


WORKER: typing.Final = Worker("q", print, NOWHERE)
CALLABLE: typing.Final = {"function", "class"}


@pytest.mark.parametrize(
    ("field", "taken", "call"),
    [
        ("state", set(), lambda queue, value: queue.retry_jobs(value)),
        ("state", set(), lambda queue, value: queue.clean(0, 1, value)),
        ("state", set(), lambda queue, value: queue.cancel_jobs(state=value)),
        ("state", set(), lambda queue, value: list(queue.unfinished_ids(value))),
        ("where", CALLABLE, lambda queue, value: queue.cancel_jobs(where=value)),
        ("event", set(), lambda queue, value: WORKER.on(value, print)),
        ("event", set(), lambda queue, value: WORKER.off(value, print)),
        ("listener", CALLABLE, lambda queue, value: WORKER.on("completed", value)),
        ("listener", CALLABLE, lambda queue, value: QueueEvents("q", NOWHERE).on("x", value)),
        ("block", FLAG, lambda queue, value: WORKER.get_next_job("token", block=value)),
        ("token", {"text"}, lambda queue, value: WORKER.get_next_job(value)),
        ("cancel_mode", set(), lambda queue, value: Worker("q", print, cancel_mode=value)),
        ("hints", set(), lambda queue, value: Worker("q", print, hints=value)),
        ("watchdog", {"false"}, lambda queue, value: Worker("q", print, watchdog=value)),
        ("limiter", set(), lambda queue, value: Worker("q", print, limiter=value)),
        ("fn", CALLABLE, lambda queue, value: detach(value)),
        ("children", set(), lambda queue, value: Supervisor([value])),
        ("workers", {"tuple", "dict"}, lambda queue, value: CancelBridge(NOWHERE, workers=value)),
    ],
)
def test_arguments_with_every_kind_of_wrong_value(
    queue: Queue,
    field: str,
    taken: set[str],
    call: collections.abc.Callable[[typing.Any, typing.Any], object],
) -> None:
    assert not wrong(field, taken, lambda value: call(queue, value))


@pytest.mark.parametrize("value", ["", b"", b"5", bytearray(b"5")])
def test_text_is_no_list(queue: Queue, value: typing.Any) -> None:
    for field, call in (("specs", queue.add_bulk), ("priorities", queue.get_counts_per_priority)):
        assert not refusal(field, lambda call=call: call(value))


def test_names_of_the_queues_keys_are_no_jobs(queue: Queue) -> None:
    """Their hashes would be taken for jobs."""
    for name in ("meta", "repeat:nightly", "de:x", "metrics:completed", "5:processed"):
        assert queue.get_job(name) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"hard": False, "kill_after": 1},
            "kill_after: makes no sense with hard=False, got 1.0",
        ),
        ({"hard": 1}, "hard: True or False is needed, got 1"),
        ({"hard": "yes", "kill_after": 1}, "hard: True or False is needed, got 'yes'"),
        ({"hard": True, "kill_after": -1}, "kill_after: seconds must not be negative, got -1"),
        ({"kill_after": "1"}, "kill_after: seconds as a number or a timedelta are needed"),
    ],
)
def test_a_kill_is_checked_alike_here_and_from_afar(
    options: dict[str, typing.Any], says: str
) -> None:
    worker = Worker("q", print, NOWHERE)
    with Queue("q", NOWHERE) as queue:
        for cancel in (worker.cancel_job, queue.cancel_job):
            with pytest.raises((ValueError, TypeError)) as caught:
                cancel("1", "no", **options)
            assert says in str(caught.value)
