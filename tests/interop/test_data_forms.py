"""Every form of JSON crosses between the languages unchanged, in data, result and progress."""

from __future__ import annotations

import json
import typing

import pytest

from geventq import Job
from tests.interop.conftest import NodeQueue, Ran, Sides

FORMS: dict[str, typing.Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "empty text": "",
    "empty object": {},
    "empty array": [],
    "nested": {"a": [{"b": [[], {}, None]}], "": {"": ""}},
    "accents": "Größe: 5 µm, naïve façade",
    "outside the basic plane": "😀 𝒳 👨‍👩‍👧",
    "control characters": "\x00\x01\t\n\r\x7f\u2028\u2029",
    "quotes and slashes": '"\\/</script>',
    "lookalikes": "null NaN {} 1e5",
    "fraction": 0.1,
    "negative": -273.15,
    "huge": 1e21,
    "largest": 1.7976931348623157e308,
    "smallest": 5e-324,
    "largest exact integer": 2**53 - 1,
    "milliseconds": 1750000000123,
    "keys in many scripts": {"ключ": "значение", "鍵": "値"},
    "long": "x" * 1_000_000,
}


def same(left: object, right: object) -> bool:
    """Equal, and of the same JSON type: `1` and `True` are not the same."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True) or (
        isinstance(left, float | int)
        and not isinstance(left, bool)
        and not isinstance(right, bool)
        and left == right
    )


def test_what_geventq_writes_node_reads_and_returns(sides: Sides) -> None:
    queue = sides.queue()
    jobs = {form: queue.add("echo", value) for form, value in FORMS.items()}
    sides.node_worker(concurrency=5)
    for form, job in jobs.items():
        assert same(job.wait_until_finished(timeout=20), FORMS[form]), form


def test_what_node_writes_geventq_reads_and_returns(
    sides: Sides, node_queue: NodeQueue, echo: Ran
) -> None:
    ids = {form: node_queue.add("n", value)["id"] for form, value in FORMS.items()}
    sides.worker(echo, concurrency=5)
    waiter = sides.node("wait")
    for form, job_id in ids.items():
        waiter.say({"id": job_id})
        answer = waiter.hear_until(lambda message: "id" in message)[-1]
        assert same(answer.get("result", "missing"), FORMS[form]), form
    given = {job.id: job.data for job in echo.jobs}
    for form, job_id in ids.items():
        # Node stores data that is null as null
        assert same(given[job_id], FORMS[form]), form


def test_an_integer_that_node_cannot_hold_loses_only_its_last_digits(
    sides: Sides, node_queue: NodeQueue
) -> None:
    job = sides.queue().add("n", {"n": 2**60 + 1})
    assert node_queue("getJob", job.id)["data"]["n"] == pytest.approx(2**60, rel=1e-15)


def test_progress_of_any_form_is_seen_by_node(sides: Sides, node_queue: NodeQueue) -> None:
    forms = [value for form, value in FORMS.items() if form not in ("null", "long")]

    def reports(job: Job) -> None:
        for value in forms:
            job.update_progress(value)

    watcher = sides.node("events")
    job_id = node_queue.add("n", {})["id"]
    sides.worker(reports)
    heard = watcher.hear_until(lambda message: message["event"] == "completed")
    seen = [message["data"] for message in heard if message["event"] == "progress"]
    assert len(seen) == len(forms)
    assert all(map(same, seen, forms)), seen
    assert same(node_queue("getJob", job_id)["progress"], forms[-1])
