"""4.3, 5.1: a job is stopped by whoever asks, geventq or Node.js, wherever it runs, with the module
for Node workers that the guide shows."""

from __future__ import annotations

import typing

import gevent
import pytest

from geventq import CancellationToken, Job
from tests.interop.child import Child
from tests.interop.conftest import NodeQueue, Sides
from tests.support.guides import GUIDES, snippets
from tests.support.told import ended, engine_of, listens
from tests.support.waiting import eventually

Side = typing.Literal["geventq", "node"]

_SNIPPETS: typing.Final = snippets((GUIDES / "cancellation.md").read_text(), "js")
(MODULE,) = [text for text in _SNIPPETS if text.startswith("// cancels.mjs")]
(SIGNS,) = [text for text in _SNIPPETS if "killJob" in text]


def cancels(sides: Sides, *, heeds: bool = True, **options: typing.Any) -> Child:
    """A Node program with that module, and with a worker, which has these options."""
    return sides.node("cancels", guide=MODULE, signs=SIGNS, heeds=heeds, worker=options)


def hear(child: Child, event: str) -> dict[str, typing.Any]:
    return child.hear_until(lambda message: message["event"] == event)[-1]


def start_geventq(sides: Sides) -> list[str]:
    """A worker of ours, which hears messages; the ids that it runs."""
    begun: list[str] = []

    def patient(job: Job, token: CancellationToken) -> None:
        begun.append(job.id)
        token.sleep(60)

    subscription = engine_of(sides.worker(patient)).subscription
    eventually(lambda: subscription.is_up)
    return begun


@pytest.mark.parametrize("asks", ["geventq", "node"])
@pytest.mark.parametrize("runs", ["geventq", "node"])
def test_a_running_job_is_stopped_in_all_four_directions(
    sides: Sides, node_queue: NodeQueue, asks: Side, runs: Side
) -> None:
    """5.1: the message is one that both understand, and what came of it is seen by both."""
    queue = sides.queue()
    node = cancels(sides, autorun=runs == "node")
    begun = start_geventq(sides) if runs == "geventq" else []
    job = queue.add("patient")
    if runs == "node":
        assert hear(node, "run")["id"] == job.id
    else:
        eventually(lambda: begun)
    if asks == "node":
        node.say({"ask": [sides.name, job.id, "enough"]})
        assert hear(node, "asked")["listeners"] >= 1
    else:
        assert queue.cancel_job(job.id, "enough").status == "requested"
    read = ended(queue, job, "failed")
    expected = "stopped: enough" if runs == "node" else "Job cancelled: enough"
    assert read.failed_reason == expected
    assert node_queue.of_job(job.id, "getState") == "failed"
    assert node_queue("getJob", job.id)["failedReason"] == expected


def test_a_message_that_means_others_stops_no_job_of_a_node_worker(sides: Sides) -> None:
    """5.1: of another queue, prefix or database; one that names no job, or is no JSON."""
    queue = sides.queue()
    node = cancels(sides)
    job = queue.add("patient")
    hear(node, "run")
    with sides.client() as client:
        for text in (
            '{"queue": "other", "jobId": "1"}',
            f'{{"queue": "q", "jobId": "{job.id}", "prefix": "other", "db": 0}}',
            f'{{"queue": "q", "jobId": "{job.id}", "prefix": "{sides.prefix}", "db": 7}}',
            f'{{"queue": "q", "jobId": {job.id}}}',
            "null",
            "[",
        ):
            client.publish("bullmq:cancel", text)
    node.say({"ask": [sides.name, job.id, {"last": "of all"}]})  # heard after those
    assert hear(node, "failed")["reason"] == 'stopped: {"last":"of all"}'


def test_defa_stops_the_retry_on_a_node_worker_that_knows_nothing_of_us(sides: Sides) -> None:
    """4.3, 4.7: the run under way goes to its end; the next attempt fails without running."""
    queue = sides.queue()
    node = cancels(sides, heeds=False)
    job = queue.add("held", attempts=5)
    assert hear(node, "run")["id"] == job.id
    assert queue.cancel_job(job.id, "enough").status == "requested"
    node.say({"go": True})
    told = node.hear_until(lambda message: message.get("reason") == "Job cancelled: enough")
    assert [message["event"] for message in told] == ["failed", "failed"]  # and no second run
    assert told[0]["reason"] == "no luck"
    read = ended(queue, job, "failed")
    assert read.failed_reason == "Job cancelled: enough"
    assert read.attempts_made == 2


@pytest.mark.parametrize("retry", [False, True])
def test_a_job_is_taken_away_from_a_node_worker_that_lives(sides: Sides, retry: bool) -> None:
    """4.5: at once, by whatever name its lock has; what the worker says of that run is refused,
    and only with `retry=True` it runs again."""
    queue = sides.queue()
    node = cancels(sides, heeds=False, concurrency=2)
    job = queue.add("held", attempts=3)
    assert hear(node, "run")["id"] == job.id
    result = queue.cancel_job(job.id, "taken", force=True, retry=retry)
    assert (result.status, result.state) == ("stopped", "active")
    if retry:
        assert hear(node, "run")["id"] == job.id, "by its own rules"
        assert job.get_state() == "active"
    else:
        assert job.get_state() == "failed"
    node.say({"go": True})
    read = ended(queue, job, "failed")
    expected = ("no luck", 3) if retry else ("Job cancelled: taken", 1)
    assert (read.failed_reason, read.attempts_made) == expected


def test_a_job_that_does_not_run_is_cancelled_without_any_worker(
    sides: Sides, node_queue: NodeQueue
) -> None:
    """4.2: one that Node added is failed by geventq alone, and a retry by Node runs it."""
    job = node_queue.add("patient", {}, delay=60_000)
    queue = sides.queue()
    assert queue.cancel_job(job["id"], "enough").status == "cancelled"
    assert node_queue("getJob", job["id"])["failedReason"] == "Job cancelled: enough"
    node_queue.of_job(job["id"], "retry")
    node = cancels(sides)
    assert hear(node, "run")["id"] == job["id"]
    node.say({"ask": [sides.name, job["id"], "the test is over"]})
    hear(node, "failed")


@pytest.mark.parametrize("secret", ["seven horses in a row", "sieben Pferde für 1 Ross"])
def test_node_signs_and_a_worker_with_the_secret_kills(sides: Sides, secret: str) -> None:
    """8: with the function that the guide shows; with another secret nothing happens."""
    running: list[str] = []

    def deaf(job: Job) -> None:
        running.append(job.id)
        gevent.sleep(600)

    worker = sides.worker(deaf, cancel_secret=secret, concurrency=2)
    listens(worker)
    queue = sides.queue()
    node = cancels(sides, autorun=False)
    job, other = queue.add("a/b"), queue.add("n")
    eventually(lambda: len(running) == 2)
    node.say({"kill": ["another secret", other.id, "enough"]})
    hear(node, "asked")
    node.say({"kill": [secret, job.id, {"why": ["é", 1e21, 0.1]}]})
    assert hear(node, "asked")["listeners"] >= 1
    read = ended(queue, job, "failed")
    assert read.failed_reason == 'Job cancelled: {"why": ["é", 1e+21, 0.1]}'
    assert [one.id for one in worker.active_jobs] == [other.id]
    counts = engine_of(worker).subscription.ignored.counts
    assert counts == {"signed with another secret, or changed": 1}


def test_what_workers_write_about_their_secret_disturbs_no_node_program(
    sides: Sides, node_queue: NodeQueue
) -> None:
    """8: a field of `meta` that Node neither reads nor removes; an obliterate removes it."""
    worker = sides.worker(lambda job: job.data, cancel_secret="seven horses in a row")
    queue = sides.queue()
    with sides.client() as client:
        eventually(lambda: client.hexists(f"{sides.prefix}:q:meta", "gqs"))
        assert "gqs" in node_queue("getMeta")
        assert node_queue("isPaused") is False
        node_queue("pause")
        node_queue("resume")
        job = queue.add("n", 5)
        assert job.wait_until_finished(30) == 5
        worker.close()
        node_queue("obliterate")
        assert not client.exists(f"{sides.prefix}:q:meta")
