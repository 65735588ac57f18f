"""Large values: calls are counted in bytes, and the hub has its turns while they are written."""

from __future__ import annotations

import collections.abc
import gc
import typing

import gevent
import pytest

from geventq import Job, JobSpec, Queue, QueueEvents
from geventq.codec import decode, encode
from geventq.job import Life
from geventq.store.client import Client, Endpoint
from geventq.store.job_ends import Waiter
from geventq.store.keys import QueueKeys
from geventq.store.scripts import load
from geventq.store.stream import look_by
from tests.conftest import Make
from tests.support.told import Told
from tests.support.waiting import at_best, eventually, own_time

MEGABYTE: typing.Final = 1 << 20

ROWS: typing.Final = [
    {"id": number, "name": f"customer {number}", "price": number * 1.5, "tags": ["a", "b"]}
    for number in range(200_000)
]
#: Of some 15 to 20 MB as JSON.
LARGE: typing.Final[dict[str, object]] = {
    "rows": {"rows": ROWS},
    "one text": "x" * 20_000_000,
    "texts": {f"key {number}": "y" * 1000 for number in range(18_000)},
    "numbers": [[list(range(100)) for _ in range(200)] for _ in range(250)],
}


QUICK: typing.Final = ("rows", "one text")


def longest_gap(call: collections.abc.Callable[[], object]) -> float:
    """The longest time for which the hub had no turn during `call()`."""
    longest = 0.0

    def pulse() -> None:
        nonlocal longest
        while True:
            since = own_time()
            gevent.sleep(0.001)
            longest = max(longest, own_time() - since)

    pulsing = gevent.spawn(pulse)
    gevent.sleep(0.01)
    longest = 0.0
    try:
        call()
        gevent.sleep(0.002)
    finally:
        pulsing.kill()
    return longest


@pytest.mark.parametrize(
    "kind",
    [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in LARGE if one not in QUICK)],
)
@pytest.mark.parametrize("how", ["add", "update_data", "update_progress", "result"])
def test_writing_a_large_value_leaves_the_hub_its_turns(
    queue: Queue, make: Make, how: str, kind: str
) -> None:
    """3.1: renewals and everybody's I/O go on while 20 MB are written and sent."""
    value = LARGE[kind]
    job = queue.add("kept", delay=3600)

    def write() -> None:
        if how == "add":
            queue.add("n", value, delay=3600)
        elif how == "result":
            returned = queue.add("n", remove_on_complete=True)
            eventually(lambda: queue.get_job(returned.id) is None)
        else:
            getattr(job, how)(value)

    if how == "result":
        make(lambda job: value)
    at_best(lambda: longest_gap(write), lambda gap: gap < 0.3)


#: A quarter of it: some 4 to 5 MB.
QUARTER: typing.Final[dict[str, object]] = {
    "rows": {"rows": ROWS[:50_000]},
    "one text": "x" * 5_000_000,
    "texts": {f"key {number}": "y" * 1000 for number in range(4_500)},
    "numbers": [[list(range(100)) for _ in range(200)] for _ in range(62)],
}


@pytest.mark.parametrize("kind", QUARTER)
@pytest.mark.parametrize("how", ["data", "result", "wait", "page"])
def test_reading_a_large_value_leaves_the_hub_its_turns(
    queue: Queue, make: Make, how: str, kind: str
) -> None:
    """3.1: 5 MB are read at once, by whoever asks for them, but quickly."""
    value = QUARTER[kind]
    job = queue.add("n", value)
    make(lambda job: job.data)

    def read() -> object:
        if how == "wait":
            return job.wait_until_finished(60)
        if how == "page":
            return queue.get_completed()
        read = queue.get_job(job.id)
        assert read is not None
        return read.data if how == "data" else read.return_value

    assert job.wait_until_finished(60) == value
    at_best(lambda: longest_gap(read), lambda gap: gap < 0.3)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_does_not_look_through_what_is_being_read(is_on: bool) -> None:
    """It is as it was afterwards, also where the text is no JSON."""
    text = encode("rows", ROWS)
    collected: list[str] = []

    def collects(phase: str, info: dict[str, int]) -> None:
        collected.append(phase)

    (gc.enable if is_on else gc.disable)()
    gc.callbacks.append(collects)
    try:
        value = decode(text)
        assert collected.count("start") <= is_on  # once, when it is on again
        with pytest.raises(ValueError):
            decode(text[:-1])
        assert gc.isenabled() == is_on
    finally:
        gc.callbacks.remove(collects)
        gc.enable()
    assert value == ROWS


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Bytes of each settling call's arguments and of the jobs in its answer."""
    script_of = Client.script
    seen: list[tuple[int, int]] = []

    def script(
        self: Client, which: typing.Any, keys: typing.Any, args: typing.Any, **more: typing.Any
    ) -> typing.Any:
        reply = script_of(self, which, keys, args, **more)
        if which is load("settle"):
            sent = sum(len(one) for one in args if isinstance(one, str | bytes))
            seen.append((sent, sum(len(fields) for fields in reply[7::3])))
        return reply

    monkeypatch.setattr(Client, "script", script)
    return seen


def test_outcomes_that_travel_together_are_counted_in_bytes(
    queue: Queue, make: Make, sizes: list[tuple[int, int]]
) -> None:
    """3.6: a call with hundreds of large results would outlast the locks of all."""
    results = {"small": "x", "middle": "x" * 300_000, "large": "x" * 3_000_000}
    jobs = queue.add_bulk([JobSpec(name) for name in (*results, "middle") for _ in range(30)])
    worker = make(lambda job: results[job.name], concurrency=len(jobs), remove_on_complete=True)
    told = Told(worker)
    eventually(lambda: len(told.args("completed")) == len(jobs))
    assert max(sent for sent, _ in sizes) < 3_000_000 + MEGABYTE
    assert len([sent for sent, _ in sizes if sent > 3_000_000]) == 30
    assert told.args("error") == told.args("lock_lost") == []


@pytest.mark.parametrize("priority", [0, 7])
def test_jobs_that_are_taken_together_are_counted_in_bytes(
    queue: Queue,
    make: Make,
    redis_client: typing.Any,
    prefix: str,
    sizes: list[tuple[int, int]],
    priority: int,
) -> None:
    """wire-format 9.4: those that a call had popped too many go back to where they were, and all
    are taken in their order."""
    data = {"text": "x" * 400_000}
    jobs = queue.add_bulk([JobSpec("n", data, {"priority": priority}) for _ in range(20)])
    worker = make(lambda job: None, concurrency=100)
    told = Told(worker)
    eventually(lambda: len(told.args("completed")) == len(jobs))
    entries = [fields for _, fields in redis_client.xrange(f"{prefix}:q:events")]
    taken = [fields["jobId"] for fields in entries if fields["event"] == "active"]
    assert taken == [job.id for job in jobs]
    assert 400_000 < max(size for _, size in sizes) < 2 * MEGABYTE


def test_a_job_that_is_larger_than_a_call_is_taken(
    queue: Queue, make: Make, sizes: list[tuple[int, int]]
) -> None:
    read: list[int] = []

    def process(job: Job) -> None:
        read.append(len(job.data))

    make(process, concurrency=10)
    for _ in range(3):
        queue.add("n", "x" * 3_000_000)
    eventually(lambda: len(read) == 3)
    assert read == [3_000_000] * 3
    assert max(taken for _, taken in sizes) < 3_000_000 + MEGABYTE


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each call's answers."""
    original = Client.call
    sizes: list[int] = []

    def call(self: Client, *args: typing.Any, **options: typing.Any) -> typing.Any:
        answer = original(self, *args, **options)
        sizes.append(_size(answer))
        return answer

    monkeypatch.setattr(Client, "call", call)
    return sizes


@pytest.mark.slow
def test_adding_very_many_jobs_leaves_the_hub_its_turns(queue: Queue) -> None:
    """3.1: each of them is small, and all of them take long to write, and to answer."""
    specs = [JobSpec("n", {"text": "x" * 300}, {"delay": 3600}) for _ in range(50_000)]
    at_best(lambda: longest_gap(lambda: queue.add_bulk(specs)), lambda gap: gap < 0.3)


@pytest.mark.parametrize("how", ["a page", "chosen by their names", "a log"])
def test_what_is_read_at_once_is_counted_in_bytes(
    queue: Queue, answers: list[int], how: str
) -> None:
    """3.1: a thousand jobs of some megabytes would hold up the server, and everybody's renewals,
    and take it gigabytes of memory."""
    text = "x" * (MEGABYTE // 2)
    if how == "a log":
        job = queue.add("n")
        for number in range(20):
            job.log(f"{number}{text}")
    else:
        for number in range(20):
            queue.add("n", {"number": number, "text": text}, delay=number + 3600)
    answers.clear()
    if how == "a page":
        found = [job.data["number"] for job in queue.get_delayed()]
    elif how == "a log":
        found = [int(row.rstrip("x")) for row in queue.get_job_logs(job.id)]
    else:
        found = [int(one.job_id) - 1 for one in queue.cancel_jobs(name="n", dry_run=True)]
    assert sorted(found) == list(range(20))
    assert max(answers) < 3 * MEGABYTE


def test_ends_are_asked_for_in_calls_that_are_counted_in_bytes(
    queue: Queue, make: Make, answers: list[int]
) -> None:
    """Of many jobs, those that are kept and those of which only the events tell."""
    kept = [queue.add("n", number) for number in range(12)]
    gone = [queue.add("n", number, remove_on_complete=True) for number in range(12)]
    told = Told(make(lambda job: str(job.data) + "x" * (MEGABYTE // 2), concurrency=24))
    eventually(lambda: len(told.args("completed")) == 24)
    answers.clear()
    waits = [gevent.spawn(job.wait_until_finished, 20) for job in [*kept, *gone]]
    waiters = {job.id: Waiter(Life(None)) for job in kept}
    with queue._store.ends_of_jobs().listening(waiters):
        ends = [waiter.answer.get(timeout=20) for waiter in waiters.values()]
    results = [wait.get(timeout=20) for wait in waits]
    assert [result.rstrip("x") for result in results] == [str(n) for n in range(12)] * 2
    assert {how for how, _ in ends} == {"completed"}
    assert max(answers) < 3 * MEGABYTE


def _size(answer: typing.Any) -> int:
    if isinstance(answer, list):
        return sum(map(_size, answer))
    return len(answer) if isinstance(answer, bytes) else 0


def test_events_are_read_in_calls_that_are_counted_in_bytes(
    redis_url: str, prefix: str, redis_client: typing.Any
) -> None:
    """However large the results that they tell of are; and none is missed by that."""
    for number in range(40):
        fields = {"event": "completed", "jobId": str(number), "returnvalue": "1" * 200_000}
        redis_client.xadd(f"{prefix}:q:events", fields)
    client = Client(Endpoint.of(redis_url))
    seen = look_by(client, QueueKeys(prefix, "q"), "0-0")
    client.close()
    assert _size([list(entry) for entry in seen.entries]) < 2 * MEGABYTE
    assert seen.is_full
    with QueueEvents("q", redis_url, prefix, last_event_id="0-0") as events:
        heard = [event.job_id for _, event in zip(range(40), events, strict=False)]
    assert heard == [str(number) for number in range(40)]
