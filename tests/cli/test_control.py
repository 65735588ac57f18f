"""``geventq cancel``, ``pause``, ``resume``, ``retry`` and ``workers``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import typing

import gevent
import gevent.event
import pytest
import redis

from geventq import JobSpec, Queue, UnrecoverableError, WorkerInfo
from geventq.store.scripts import load
from tests.cli.conftest import Here
from tests.conftest import Make
from tests.support.programs import Programs
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


def _polite(job: typing.Any, token: typing.Any) -> None:
    token.sleep(60)


def _fails(job: typing.Any, token: typing.Any) -> None:
    raise UnrecoverableError("no")


def _failed(queue: Queue, make: Make, *ids: str) -> None:
    """Jobs of these ids that have failed."""
    for job_id in ids:
        queue.add("n", job_id=job_id)
    worker = make(_fails)
    eventually(lambda: queue.get_job_counts("failed")["failed"] == len(ids))
    worker.close()


# -- cancel --------------------------------------------------------------------------------------


def test_jobs_that_wait_are_cancelled_in_the_order_of_the_arguments(
    here: Here, queue: Queue
) -> None:
    """4.1: with the reason, whatever stands where on the command line."""
    queue.add("n", job_id="a")
    queue.add("n", job_id="b", delay=60.0)
    given = ("cancel", "q", "b", "--reason", "not needed", "a", "--json")
    status, out, err = here(*given)
    assert (status, err) == (0, "")
    assert [(row["job_id"], row["status"], row["state"]) for row in json.loads(out)] == [
        ("b", "cancelled", "delayed"),
        ("a", "cancelled", "waiting"),
    ]
    job = queue.get_job("a")
    assert job is not None
    assert job.failed_reason == "Job cancelled: not needed"
    status, out, _ = here(*given)
    assert status == 1
    assert [row["status"] for row in json.loads(out)] == ["finished", "finished"]


def test_an_unknown_id_is_told_among_the_others(here: Here, queue: Queue) -> None:
    queue.add("n", job_id="a")
    status, out, _ = here("cancel", "q", "nobody", "a", "meta")
    assert status == 1
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["nobody", "not_found"],
        ["a", "cancelled"],
        ["meta", "not_found"],
    ]
    assert queue.get_job_state("a") == "failed"


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (("--all",), {"a", "b", "c"}),
        (("--name", "x"), {"a", "c"}),
        (("--state", "delayed"), {"b", "c"}),
        (("--name", "x", "--state", "delayed"), {"c"}),
        (("--all", "--name", "y"), {"b"}),
        (("--name", "z"), set()),
    ],
)
def test_filters_choose_by_all_that_they_say(
    here: Here, queue: Queue, words: tuple[str, ...], gone: set[str]
) -> None:
    queue.add("x", job_id="a")
    queue.add("y", job_id="b", delay=60.0)
    queue.add("x", job_id="c", delay=60.0)
    status, out, _ = here("cancel", "q", *words, "--dry-run", "--json")
    assert status == 0
    assert {row["job_id"] for row in json.loads(out)} == gone
    assert queue.get_job_count("failed") == 0
    status, out, _ = here("cancel", "q", *words, "--json")
    assert status == 0
    assert {row["job_id"] for row in json.loads(out)} == gone
    assert {job.id for job in queue.get_failed()} == gone
    if not gone:
        assert here("cancel", "q", *words) == (0, "no jobs to cancel in q\n", "")


def test_a_running_job_is_asked_or_waited_for(programs: Programs, queue: Queue, make: Make) -> None:
    """5.1, 5.4: another process runs it; without --wait it is only asked, which is done (0)."""
    make(_polite, concurrency=2)
    first, second = queue.add("n"), queue.add("n")
    eventually(lambda: queue.get_job_count("active") == 2)
    status, out, _ = programs.run("cancel", "q", first.id, "--json")
    (row,) = json.loads(out)
    assert (status, row["status"], row["state"]) == (0, "requested", "active")
    eventually(first.is_failed)
    status, out, _ = programs.run("cancel", "q", second.id, "--wait", "30", "--json")
    (row,) = json.loads(out)
    assert (status, row["status"]) == (0, "stopped")
    assert row["seconds"] >= 0
    assert second.is_failed()


def test_what_still_runs_when_the_wait_is_over_is_1(
    programs: Programs, queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    def deaf(job: typing.Any, token: typing.Any) -> str:
        while not queue.is_paused():
            gevent.sleep(0.01)
        return "done"

    make(deaf)
    job = queue.add("n")
    eventually(job.is_active)
    status, out, _ = programs.run("cancel", "q", job.id, "--wait", "0.2", "--json")
    assert (status, json.loads(out)[0]["status"]) == (1, "requested")
    waits = programs.geventq("cancel", "q", job.id, "--wait", "60", "--no-hard", "--json")
    record = f"{prefix}:q:{job.id}"
    eventually(lambda: len(json.loads(redis_client.hget(record, "gqc"))["nonces"]) == 2)
    queue.pause()
    assert waits.ends() == 1
    assert json.loads(waits.out)[0]["status"] == "completed"


def test_a_job_is_killed_or_taken_away(programs: Programs, queue: Queue, make: Make) -> None:
    """2.5, 4.5: --hard and --kill-after reach what looks at nothing; --force waits for nobody."""
    make(lambda job, token: gevent.sleep(60), concurrency=3)
    jobs = [queue.add("n") for _ in range(3)]
    eventually(lambda: queue.get_job_count("active") == 3)
    for job, words in zip(jobs, (("--hard",), ("--kill-after", "0.1"), ("--force",)), strict=True):
        status, out, _ = programs.run("cancel", "q", job.id, *words, "--wait", "30", "--json")
        assert (status, json.loads(out)[0]["status"]) == (0, "stopped"), words
        assert job.is_failed()


def test_with_retry_the_jobs_own_rules_say_what_follows(
    programs: Programs, queue: Queue, make: Make
) -> None:
    """2.6: this run only."""
    runs: list[int] = []

    def process(job: typing.Any, token: typing.Any) -> int:
        runs.append(job.attempts_made)
        if len(runs) == 1:
            token.sleep(60)
        return len(runs)

    make(process)
    job = queue.add("n", attempts=2)
    eventually(lambda: runs)
    assert programs.run("cancel", "q", job.id, "--retry")[0] == 0
    assert job.wait_until_finished(30) == 2


@pytest.mark.parametrize("words", [("--all",), ("--state", "waiting"), ("--name", "n"), ()])
@pytest.mark.parametrize("form", ["json", "lines"])
def test_an_outage_in_its_midst_tells_what_was_done(
    here: Here,
    queue: Queue,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    form: str,
) -> None:
    """It is 3, and standard output is whole."""
    jobs = queue.add_bulk([JobSpec("n")] * 700)
    monkeypatch.setenv("GEVENTQ_REDIS_URL", proxy.url)
    sha, calls = load("cancel").sha.encode(), itertools.count()
    second = proxy.hold_request(lambda sent: sha in sent and next(calls) == 1)
    ids = [job.id for job in jobs] if not words else []
    command = gevent.spawn(here, "cancel", "q", *words, *ids, *["--json"][form != "json" :])
    second.wait()
    with proxy.refusing():
        proxy.cut()
        status, out, err = command.get()
    assert status == 3
    assert proxy.url.split("/")[2] in err
    if form == "json":
        rows = json.loads(out)
    else:
        rows = [{"status": line.split()[1]} for line in out.splitlines()]
    known = 700 if words != ("--name", "n") else 500
    assert [row["status"] for row in rows] == ["cancelled"] * 500 + ["unknown"] * (known - 500)
    assert queue.get_job_count("failed") == 500


def test_a_job_that_has_to_be_left_stops_no_other(
    here: Here, queue: Queue, redis_client: redis.Redis, prefix: str
) -> None:
    """4.2: it has a parent; also where all are meant."""
    for job_id in ("a", "b", "c"):
        queue.add("n", job_id=job_id)
    redis_client.hset(f"{prefix}:q:b", "parentKey", f"{prefix}:q:none")
    status, out, err = here("cancel", "q", "a", "b", "--json")
    assert (status, [row["status"] for row in json.loads(out)]) == (1, ["cancelled", "unknown"])
    assert "job b of queue q is not running and has children, a parent" in err
    status, out, err = here("cancel", "q", "--all", "--json")
    assert status == 1
    assert {row["job_id"]: row["status"] for row in json.loads(out)} == {
        "b": "unknown",
        "c": "cancelled",
    }
    assert "job b" in err


def test_jobs_that_change_while_it_looks(
    here: Here,
    queue: Queue,
    proxy: Proxy,
    redis_client: redis.Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4.5: --force looks at a job first; one that was retried since then is looked at again, one
    that was removed is not found."""
    for job_id in ("a", "b"):
        queue.add("n", job_id=job_id, attempts=3)
        redis_client.lmove(f"{prefix}:q:wait", f"{prefix}:q:active", "RIGHT", "LEFT")
    monkeypatch.setenv("GEVENTQ_REDIS_URL", proxy.url)
    held = proxy.hold_request(load("cancel").sha.encode())
    command = gevent.spawn(here, "cancel", "q", "a", "b", "--force", "--retry", "--json")
    held.wait()
    redis_client.hset(f"{prefix}:q:a", "atm", 1)
    redis_client.lrem(f"{prefix}:q:active", 1, "b")
    redis_client.delete(f"{prefix}:q:b")
    held.release()
    status, out, _ = command.get()
    assert (status, [row["status"] for row in json.loads(out)]) == (1, ["stopped", "not_found"])
    assert redis_client.hget(f"{prefix}:q:a", "atm") == "2"
    assert queue.get_job_state("a") == "waiting"


def test_all_waits_for_what_runs_when_everybody_was_asked(
    here: Here, queue: Queue, make: Make
) -> None:
    """5.4: those that wait are gone at once, and the last lines say how far the others are."""
    go = gevent.event.Event()

    def process(job: typing.Any, token: typing.Any) -> None:
        token.wait()
        if job.name == "deaf":
            go.wait()
        token.raise_if_cancelled()

    make(process, concurrency=2)
    queue.add("deaf", job_id="deaf")
    queue.add("polite", job_id="polite")
    eventually(lambda: queue.get_job_count("active") == 2)
    queue.add("n", job_id="waits")
    command = gevent.spawn(here, "cancel", "q", "--all", "--wait", "0.5")
    eventually(lambda: queue.get_job_state("waits") == "failed")
    status, out, _ = command.get()
    assert status == 1
    first, *others = out.splitlines()
    assert first.split()[:2] == ["waits", "cancelled"]
    said = {line.split()[0]: line for line in others}
    assert "stopped" in said["polite"]
    assert " s" in said["polite"]
    assert "requested" in said["deaf"]
    assert said["deaf"].endswith("seen")
    go.set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--wait", "30"), (0, "stopped", "failed")),
        ((), (0, "requested", "failed")),
        # Its run was asked once: a second request would stop what follows it as well.
        (("--wait", "30", "--retry"), (1, "requested", "delayed")),
    ],
)
def test_a_job_that_was_taken_after_its_page_was_read(
    here: Here,
    queue: Queue,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: tuple[int, str, str],
) -> None:
    """5.4: it was asked while it ran, so it is not told as one that was over before, also if it
    has ended when all were asked."""
    cancel_jobs, calls = Queue.cancel_jobs, 0

    def slowly(self: Queue, *args: typing.Any, **options: typing.Any) -> typing.Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            make(lambda job, token: token.sleep(60))
            eventually(lambda: queue.get_job_state("a") == "active")
        results = cancel_jobs(self, *args, **options)
        if calls == 1:
            eventually(lambda: queue.get_job_state("a") not in ("active", "waiting"))
        return results

    queue.add("n", job_id="a", attempts=2, backoff=60)
    monkeypatch.setattr(Queue, "cancel_jobs", slowly)
    status, out, _ = here("cancel", "q", "--all", "--json", *words)
    rows = [row["status"] for row in json.loads(out)]
    assert (status, *rows, queue.get_job_state("a")) == said


def test_an_interrupt_leaves_whole_json(programs: Programs, queue: Queue, make: Make) -> None:
    """What was done is told, also if somebody does not wait for the rest."""
    go = gevent.event.Event()
    make(lambda job: go.wait())  # it hears of nothing
    queue.add("n")
    eventually(lambda: queue.get_job_count("active") == 1)
    queue.add_bulk([JobSpec("n")] * 3)
    command = programs.geventq("cancel", "q", "--all", "--no-hard", "--wait", "60", "--json")
    command.until_out("cancelled")
    eventually(lambda: queue.get_active()[0].cancellation)
    command.signal(signal.SIGINT)
    assert command.ends() == 130
    assert [row["status"] for row in json.loads(command.out)] == ["cancelled"] * 3
    go.set()


@pytest.mark.slow
def test_of_very_many_jobs_no_hash_is_read(
    here: Here, queue: Queue, redis_client: redis.Redis
) -> None:
    """By their ids alone, page by page, each of them once; and without a filter on the name."""
    queue.add_bulk([JobSpec("n")] * 10_500)
    redis_client.config_resetstat()
    status, out, _ = here("cancel", "q", "--all", "--json")
    assert (status, len(json.loads(out))) == (0, 10_500)
    assert len({row["job_id"] for row in json.loads(out)}) == 10_500
    assert queue.get_job_count("failed") == 10_500
    stats = typing.cast(dict[str, typing.Any], redis_client.info("commandstats"))
    assert "cmdstat_hgetall" not in stats


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "ids, or one of --all"),
        (("a", "--all"), "ids make no sense"),
        (("a", "--name", "n"), "ids make no sense"),
        (("a", "--wait", "soon"), "--wait: seconds"),
        (("a", "--kill-after", "x"), "--kill-after: seconds"),
        (("a", "--kill-after", "1", "--no-hard"), "kill_after"),
        (("a", "--wait", "-1"), "wait"),
        (("--name", ""), "name"),
        (("--state", "tired"), "--state"),
        (("a", "--reason", "x" * 20_000), "reason: at most"),
        (("a", "--unknown"), "--unknown"),
    ],
)
def test_a_wrong_cancel_is_2_and_changes_nothing(
    here: Here, queue: Queue, words: tuple[str, ...], said: str
) -> None:
    queue.add("n", job_id="a")
    status, out, err = here("cancel", "q", *words, "--json")
    assert (status, out) == (2, "")
    assert said in err
    assert queue.get_job_state("a") == "waiting"


# -- pause, resume, retry, workers ---------------------------------------------------------------


def test_a_queue_is_paused_and_goes_on(here: Here, queue: Queue) -> None:
    assert here("pause", "q") == (0, "paused q\n", "")
    assert queue.is_paused()
    assert here("resume", "q", "--json") == (0, '{"queue": "q", "paused": false}\n', "")
    assert not queue.is_paused()


def test_all_failed_jobs_run_again(here: Here, queue: Queue, make: Make) -> None:
    _failed(queue, make, "a", "b")
    status, out, _ = here("retry", "q", "--json")
    assert (status, json.loads(out)) == (0, {"queue": "q", "retried": 2})
    assert queue.get_job_counts("waiting", "failed") == {"waiting": 2, "failed": 0}
    assert here("retry", "q") == (0, "retried 0 failed jobs of q\n", "")


def test_jobs_are_retried_one_by_one(here: Here, queue: Queue, make: Make) -> None:
    _failed(queue, make, "a", "b")
    status, out, _ = here("retry", "q", "b", "nobody", "b", "--json")
    assert status == 1
    assert json.loads(out) == [
        {"job_id": "b", "status": "retried"},
        {"job_id": "nobody", "status": "not_found"},
        {"job_id": "b", "status": "waiting"},
    ]
    assert queue.get_job_state("a") == "failed"
    assert here("retry", "q", "a") == (0, f"{'a':>12}  retried\n", "")


def test_old_jobs_are_deleted(
    here: Here, queue: Queue, make: Make, redis_client: redis.Redis, prefix: str
) -> None:
    """All that have completed, unless something else is said; no grace by default."""
    _failed(queue, make, "a", "b")
    queue.add("n", job_id="c")
    assert here("clean", "q") == (0, "deleted 0 completed jobs of q\n", "")
    status, out, _ = here("clean", "q", "--state", "failed", "--grace", "60", "--json")
    assert (status, json.loads(out)) == (0, {"queue": "q", "cleaned": 0, "ids": []})
    redis_client.zadd(f"{prefix}:q:failed", {"a": 1})
    status, out, _ = here("clean", "q", "--state", "failed", "--limit", "1", "--json")
    assert (status, json.loads(out)) == (0, {"queue": "q", "cleaned": 1, "ids": ["a"]})
    assert here("clean", "q", "--state", "failed") == (0, "deleted 1 failed jobs of q\n", "")
    assert here("clean", "q", "--state", "waiting")[0] == 0
    assert queue.get_job_count() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "QUEUE"),
        (("q", "--state", "waiting-children"), "--state"),
        (("q", "--grace", "soon"), "--grace: seconds"),
        (("q", "--grace", "-1"), "grace: seconds must not"),
        (("q", "--limit", "0"), "--limit: at least 1"),
        (("q", "--limit", "x"), "--limit"),
        (("q", "an-id"), "an-id"),
    ],
)
def test_a_wrong_clean_is_2_and_deletes_nothing(
    here: Here, queue: Queue, words: tuple[str, ...], said: str
) -> None:
    queue.add("n")
    status, out, err = here("clean", *words, "--json")
    assert (status, out) == (2, "")
    assert said in err
    assert queue.get_job_count() == 1


def test_workers_are_told(here: Here, make: Make) -> None:
    assert here("workers", "q", "--json") == (0, "[]\n", "")
    assert here("workers", "q") == (0, "no workers of q\n", "")
    make(_polite, name="first")
    rows: list[dict[str, object]] = eventually(
        lambda: json.loads(here("workers", "q", "--json")[1]), what="a worker"
    )
    (row,) = rows
    assert (row["name"], row["queue_name"], row["pid"]) == ("first", "q", os.getpid())
    assert set(row) == {field.name for field in dataclasses.fields(WorkerInfo)}
    assert "first" in here("workers", "q")[1]


def test_the_parser_imports_nothing_that_the_worker_command_has_to_patch_first(
    programs: Programs,
) -> None:
    """gevent warns of modules that were imported before it has patched them."""
    text = "import sys\nfrom geventq import cli\ncli._parser()\n"
    text += "print(sorted({'redis', 'ssl', 'gevent.socket'} & set(sys.modules)))\n"
    programs.write("parse.py", text)
    program = programs.start("parse.py")
    assert program.ends() == 0
    assert (program.out, program.err) == ("[]\n", "")


# -- signed --------------------------------------------------------------------------------------

SECRET: typing.Final = "seven horses in a row"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_commands_sign_with_the_secret_of_the_environment(
    programs: Programs, queue: Queue, source: str
) -> None:
    """8: a worker has it from there, or from its file; it shows nowhere."""
    secret = {"GEVENTQ_CANCEL_SECRET": SECRET}
    if source == "file":
        tables = f"""
            [worker]
            cancel_secret = "{SECRET}"
            [[workers]]
            queue = "q"
            processor = "tasks:process"
        """
        path = programs.write("geventq.toml", tables)
        path.chmod(0o600)
        worker = programs.geventq("worker", "--config", str(path), "--json")
    else:
        worker = programs.geventq("worker", "tasks:process", "-q", "q", "--json", **secret)
    job = queue.add("stubborn")
    eventually(lambda: queue.get_job_state(job.id) == "active", 60)
    status, out, _ = programs.run("cancel", "q", job.id, "--hard", "--wait", "1", "--json")
    (row,) = json.loads(out)
    assert (status, row["status"], row["stage"]) == (1, "requested", "refused")
    status, _, err = programs.run("cancel", "q", job.id, "--force")
    assert status == 1
    assert "only with the cancel_secret" in err
    words = ("cancel", "q", job.id, "--hard", "--wait", "60", "--json")
    status, out, _ = programs.run(*words, **secret)
    assert (status, json.loads(out)[0]["status"]) == (0, "stopped")
    status, _, err = programs.run(*words, GEVENTQ_CANCEL_SECRET="tom")
    assert status == 2
    assert "$GEVENTQ_CANCEL_SECRET: at least 4 characters are needed" in err
    command = pathlib.Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    assert SECRET not in worker.out + worker.err + command.decode()
