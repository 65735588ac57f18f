"""5.1, 5.8: requests to cancel that come by other channels, or from programs that know no more
than a queue and a job's id."""

from __future__ import annotations

import json
import os
import signal
import typing
import uuid

import gevent
import pytest
import redis

from geventq import (
    CancelBridge,
    CancellationToken,
    Job,
    Queue,
    RedisUnavailableError,
    Supervisor,
    Worker,
    clock,
    publish_cancel,
)
from geventq.cancel_secret import check_cancel_secret
from geventq.control.messages import CHANNEL
from tests.conftest import Make
from tests.support.calls import takes
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.told import ended, engine_of, listens
from tests.support.waiting import eventually


class Told:
    """Stands for a worker: keeps what it is asked."""

    def __init__(self, queue_name: str) -> None:
        self.queue_name = queue_name
        self.asked: list[tuple[typing.Any, ...]] = []

    def cancel_job(self, job_id: str, reason: typing.Any = None, **how: bool) -> bool:
        self.asked.append((job_id, reason, how))
        return True


SOFTLY = {"hard": False, "retry": True}


@pytest.fixture
def channel(prefix: str) -> str:
    """Channels know no prefixes: this one is the test's."""
    return f"{prefix}:cancel"


def message(job_id: str = "1", reason: typing.Any = None, queue: str = "q") -> str:
    return json.dumps({"queue": queue, "jobId": job_id, "reason": reason})


def endless(job: Job, token: CancellationToken) -> None:
    token.wait()
    token.raise_if_cancelled()


def test_who_works_the_queue_is_asked_softly_and_for_this_run(
    redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """5.8: a bridge calls ``cancel_job(id, reason, hard=False, retry=True)``."""
    workers = [Told("q"), Told("other"), Told("q")]
    with CancelBridge(redis_url, channel, workers):
        assert redis_client.publish(channel, message("7", {"why": [1]})) == 1
        eventually(lambda: workers[2].asked)
    assert workers[0].asked == workers[2].asked == [("7", {"why": [1]}, SOFTLY)]
    assert workers[1].asked == []


def test_a_hard_request_of_another_program_stays_soft(
    redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """5.8: whoever may publish there may be anybody."""
    worker = Told("q")
    with CancelBridge(redis_url, channel, worker):
        redis_client.publish(channel, json.dumps({**json.loads(message()), "hard": True}))
        eventually(lambda: worker.asked)
    assert worker.asked == [("1", None, SOFTLY)]


def test_workers_may_come_and_go(redis_url: str, redis_client: redis.Redis, channel: str) -> None:
    workers = [Told("q")]
    with CancelBridge(redis_url, channel, workers):
        gone, came = workers.pop(), Told("q")
        workers.append(came)
        redis_client.publish(channel, message())
        eventually(lambda: came.asked)
    assert gone.asked == []


def test_without_workers_a_running_job_of_any_worker_hears_of_it(
    queue: Queue, make: Make, redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """5.8: it is published anew on the channel where all listen."""
    worker = make(endless)
    listens(worker)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    with CancelBridge(redis_url, channel):
        redis_client.publish(channel, message(job.id, "from afar", queue.name))
        eventually(lambda: queue.get_job_state(job.id) == "failed")
    found = queue.get_job(job.id)
    assert found is not None
    assert "from afar" in str(found.failed_reason)


def test_a_worker_of_another_server_is_reached(queue: Queue, make: Make, channel: str) -> None:
    """5.8: the message comes on a server where the worker does not listen."""
    worker = make(endless)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs)
    with Server() as elsewhere, CancelBridge(elsewhere.url, workers=[worker]):
        assert publish_cancel(elsewhere.url, queue.name, job.id, "moved") == 1
        eventually(lambda: queue.get_job_state(job.id) == "failed")


def test_a_worker_that_was_given_the_job_and_does_not_know_yet_is_reached(
    queue: Queue, proxy: Proxy, prefix: str, redis_url: str, channel: str, redis_client: redis.Redis
) -> None:
    """5.3, 5.8: the message comes between a take and its answer, as one on the workers' own channel
    may."""
    with Worker("q", endless, proxy.url, prefix) as worker:
        held = proxy.hold_answer(takes)
        job = queue.add("n")
        held.wait()
        with CancelBridge(redis_url, channel, [worker]):
            redis_client.publish(channel, message(job.id, "early"))
            eventually(lambda: engine_of(worker).hearing._kept)
            held.release()
            eventually(lambda: job.get_state() == "failed")


def test_what_no_worker_listens_to_by_itself_is_not_sent_round_in_circles(
    redis_url: str, redis_client: redis.Redis
) -> None:
    """A bridge of the common channel without workers publishes nothing on it."""
    with redis_client.pubsub() as ear, CancelBridge(redis_url):
        ear.subscribe(CHANNEL)
        assert publish_cancel(redis_url, "nobody's", "1") == 2
        assert publish_cancel(redis_url, "nobody's", "2") == 2
        heard = []
        while len(heard) < 2:
            one = ear.get_message(ignore_subscribe_messages=True, timeout=1)
            heard += [] if one is None else [json.loads(one["data"])["jobId"]]
        assert ear.get_message(ignore_subscribe_messages=True, timeout=0.2) is None
    assert heard == ["1", "2"]


GARBAGE = {
    "not JSON": b"{",
    "too large": b'"' + b"x" * 10_000_000 + b'"',
    "too deep": b"[" * 60_000,
    "no object": b"[1]",
    "no queue": b'{"jobId": "1"}',
    "a number": b'{"queue": "q", "jobId": 1}',
    "null": b'{"queue": "q", "jobId": null}',
    "call": b'{"queue":"q","call":"pause","prefix":"p","db":0,"nonce":"n","at":1}',
}


def test_what_nobody_understands_is_logged_once_a_kind_and_the_bridge_goes_on(
    redis_url: str, redis_client: redis.Redis, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    """5.6: counted, and ignored."""
    worker = Told("q")
    with CancelBridge(redis_url, channel, [worker]) as bridge:
        for _ in range(2):
            for payload in GARBAGE.values():
                redis_client.publish(channel, payload)
        redis_client.publish(channel, message("after"))
        eventually(lambda: worker.asked)
        assert [job_id for job_id, *_ in worker.asked] == ["after"]
        assert sum(bridge.ignored.counts.values()) == 2 * len(GARBAGE)
        assert set(bridge.ignored.counts) == {"not JSON", "too large", "wrong types", "a call"}
    told = [one.getMessage() for one in caplog.records if "was ignored" in one.getMessage()]
    assert len(told) == 4
    assert all(f"the bridge of channel {channel}" in one for one in told)


def test_a_worker_that_fails_keeps_nobody_else_from_hearing(
    redis_url: str, redis_client: redis.Redis, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Told):
        def cancel_job(self, job_id: str, reason: typing.Any = None, **how: bool) -> bool:
            raise RuntimeError("no")

    worker = Told("q")
    with CancelBridge(redis_url, channel, [Broken("q"), worker]):
        redis_client.publish(channel, message("1"))
        redis_client.publish(channel, message("2"))
        eventually(lambda: len(worker.asked) == 2)
    assert "cannot cancel job 1 of queue q" in caplog.text


def test_after_an_outage_it_hears_again(
    redis_url: str, redis_client: redis.Redis, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Told("q")
    with Proxy(redis_url) as proxy, CancelBridge(proxy.url, channel, [worker]):
        proxy.cut()
        eventually(lambda: redis_client.publish(channel, message()) or worker.asked)
        eventually(lambda: worker.asked)
    assert caplog.text.count("failed, trying again") <= 1


def test_it_starts_also_where_redis_is_not_there_yet(
    channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = CancelBridge("redis://127.0.0.1:1/0", channel)
    bridge.start()
    assert bridge.is_running
    eventually(lambda: "Redis at 127.0.0.1:1 failed, trying again: " in caplog.text)
    bridge.close()
    assert not bridge.is_running


def test_it_closes_again_and_again_and_starts_anew(
    redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """7.4: nothing is left; the test's fixture counts."""
    worker = Told("q")
    bridge = CancelBridge(redis_url, channel, [worker])
    bridge.close()
    for number in range(1, 3):
        bridge.start()
        bridge.start()
        assert redis_client.publish(channel, message()) == 1
        eventually(lambda number=number: len(worker.asked) == number)  # type: ignore[misc]
        bridge.close()
        bridge.close()
    assert redis_client.publish(channel, message()) == 0


def test_a_signal_ends_run(redis_url: str, channel: str) -> None:
    bridge = CancelBridge(redis_url, channel)
    running = gevent.spawn(bridge.run)
    eventually(lambda: bridge.is_running)
    os.kill(os.getpid(), signal.SIGTERM)
    running.get(timeout=60)
    assert not bridge.is_running


def test_a_supervisor_holds_worker_and_bridge_together(
    queue: Queue, redis_url: str, redis_client: redis.Redis, prefix: str, channel: str
) -> None:
    """The guide's complete setup; the bridge lives again when it was closed by somebody else."""
    worker = Worker(queue.name, endless, redis_url, prefix)
    bridge = CancelBridge(redis_url, channel, [worker])
    with Supervisor([bridge, worker]):
        bridge.close()
        eventually(lambda: bridge.is_running)
        job = queue.add("n")
        eventually(lambda: worker.active_jobs)
        eventually(lambda: redis_client.publish(channel, message(job.id, "r", queue.name)))
        eventually(lambda: queue.get_job_state(job.id) == "failed")
    assert not bridge.is_running


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"channel": ""}, ValueError, "channel"),
        ({"channel": 5}, TypeError, "channel"),
        ({"workers": "abc"}, TypeError, "workers: an iterable"),
        ({"workers": 5}, TypeError, "workers: an iterable"),
        ({"workers": [Told("q"), object()]}, TypeError, r"workers\[1\]"),
        ({"connection": 5}, TypeError, "connection"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, typing.Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        CancelBridge(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", "1"), ValueError, "queue"),
        ((5, "1"), TypeError, "queue"),
        (("q", ""), ValueError, "job_id"),
        (("q", None), TypeError, "job_id"),
        (("q", "1", object()), TypeError, "reason"),
        (("q", "1", float("nan")), ValueError, "reason"),
        (("q", "1", "x" * 16 * 1024), ValueError, "reason: at most 16384 bytes"),
    ],
)
def test_what_cannot_be_published_is_refused(
    redis_url: str, arguments: tuple[typing.Any, ...], error: type[Exception], text: str
) -> None:
    """5.6: a reason is JSON of at most 16 KiB."""
    with pytest.raises(error, match=text):
        publish_cancel(redis_url, *arguments)


def test_publishing_tells_of_an_outage() -> None:
    with pytest.raises(RedisUnavailableError):
        publish_cancel("redis://127.0.0.1:1/0", "q", "1")


# -- signed --------------------------------------------------------------------------------------

SECRET: typing.Final = "seven horses in a row"


def signed(secret: str = SECRET, *, age: float = 0.0, **members: object) -> bytes:
    """A message as a program in another language signs it."""
    told = {"queue": "q", "jobId": "1", "reason": "x", "prefix": "bull", "db": 0, "hard": True}
    told |= {"nonce": uuid.uuid4().hex, "atm": 0, "ts": 5, "retry": True}
    told |= {"at": int((clock.wall() - age) * 1000)}
    return check_cancel_secret("", secret).signed(json.dumps(told | members).encode())


def test_a_signed_message_is_passed_on_as_it_came(
    redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """8: so that a worker believes it too; what is not right is ignored, each kind told once."""
    right = signed()
    wrong = {
        "signed with another secret, or changed": signed("another secret"),
        "too old": signed(age=70),
        "replayed": right,
    }
    with (
        redis_client.pubsub() as ear,
        CancelBridge(redis_url, channel, cancel_secret=SECRET) as bridge,
    ):
        ear.subscribe(CHANNEL)
        ear.get_message(timeout=5)
        for one in (right, *wrong.values(), message("plain")):
            redis_client.publish(channel, one)
        heard: list[str] = []

        def told() -> bool:
            got = ear.get_message(timeout=0.01)
            heard.extend([got["data"]] if got and '"q"' in str(got["data"]) else [])
            return len(heard) == 2

        eventually(told)
        assert heard[0].encode() == right
        assert json.loads(heard[1]) == json.loads(message("plain"))
        assert bridge.ignored.counts == dict.fromkeys(wrong, 1)


def test_what_a_bridge_hands_over_stays_soft(
    redis_url: str, redis_client: redis.Redis, channel: str
) -> None:
    """8, 5.8: signed or not; what is wrongly signed is not handed over."""
    worker = Told("q")
    with CancelBridge(redis_url, channel, worker, cancel_secret=SECRET):
        redis_client.publish(channel, signed("another secret", jobId="0"))
        redis_client.publish(channel, signed())
        redis_client.publish(channel, message("2"))
        eventually(lambda: len(worker.asked) == 2)
    assert worker.asked == [("1", "x", SOFTLY), ("2", None, SOFTLY)]


def test_a_worker_believes_what_a_bridge_has_passed_on(
    queue: Queue, make: Make, redis_url: str, redis_client: redis.Redis, channel: str, prefix: str
) -> None:
    """8: a kill, asked by a program of another language that knows the job."""

    def process(job: Job) -> None:
        gevent.sleep(600)

    worker = make(process, cancel_secret=SECRET)
    job = queue.add("n")
    eventually(lambda: worker.active_jobs and engine_of(worker).subscription.is_up)
    database = engine_of(worker).hearing._database
    about = {"jobId": job.id, "prefix": prefix, "db": database}
    with CancelBridge(redis_url, channel, cancel_secret=SECRET):
        redis_client.publish(channel, signed(**about, ts=round(job.timestamp * 1000)))
        ended(queue, job, "failed")
