"""``geventq demo``: the whole story on the terminal, in a few seconds, on a real server.

Jobs are cancelled softly in mid-work, killed in a blocking call, waited for in a shield, lose
their lock, and are retried; the table at the end tells what became of each.  The exit status is
0 only if each ended as it should.
"""

from __future__ import annotations

import sys
import time
import typing
import uuid

import gevent
import gevent.socket

from geventq.cancellation import CancellationToken, LockLost
from geventq.errors import GeventqError
from geventq.job import Job
from geventq.queue import Queue
from geventq.worker import Worker

__all__ = ["run"]

_LIMIT: typing.Final = 25.0  # seconds that the story may take


def process(job: Job, token: CancellationToken) -> typing.Any:
    """The demo's processor: one chapter a job name."""
    return _CHAPTERS[job.name](job, token)


def _chunks(job: Job, token: CancellationToken) -> int:
    for done in range(100):
        token.raise_if_cancelled()
        gevent.sleep(0.02)
        job.update_progress(done + 1)
    return 100


def _blocked(job: Job, token: CancellationToken) -> bytes:
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        return ours.recv(1)  # nobody will ever write


def _commit(job: Job, token: CancellationToken) -> str:
    gevent.sleep(0.2)
    with token.shield():
        for step in range(5):
            gevent.sleep(0.1)
            job.update_progress(f"commit {step + 1}/5")
    gevent.sleep(10)
    return "never reached: the kill was thrown as the shield was left"


def _forgetful(job: Job, token: CancellationToken) -> None:
    token.sleep(10)


def _flaky(job: Job, token: CancellationToken) -> str:
    if job.attempts_made == 0:
        raise ConnectionError("the other side hung up")
    return "second attempt"


def _plain(job: Job, token: CancellationToken) -> int:
    gevent.sleep(0.1)
    return sum(job.data["numbers"])


_CHAPTERS: typing.Final[dict[str, typing.Callable[[Job, CancellationToken], typing.Any]]] = {
    "plain": _plain,
    "chunked": _chunks,
    "blocked": _blocked,
    "commit": _commit,
    "lock": _forgetful,
    "flaky": _flaky,
}

# name -> how its story must end: the job's state, and a part of its text
_ENDS: typing.Final = {
    "plain": ("completed", "6"),
    "chunked": ("failed", "Job cancelled: no longer needed"),
    "blocked": ("failed", "Job cancelled: it hangs"),
    "commit": ("failed", "Job cancelled: shutting the shop"),
    "lock": ("lock lost", "lock of job"),
    "flaky": ("completed", "second attempt"),
}


class _Story:
    """Prints what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.lost: dict[str, str] = {}
        self.progress: dict[str, typing.Any] = {}

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self._begun:6.2f} s  {text}", flush=True)

    def listen(self, worker: Worker) -> None:
        say = self.say
        worker.on("active", lambda job: say(f"{job.name:<8} runs"))
        worker.on("progress", self._progress)
        worker.on("completed", lambda job, result: say(f"{job.name:<8} completed: {result!r}"))
        worker.on("cancelled", lambda job, said: say(f"{job.name:<8} {said}"))
        worker.on("retrying", lambda job, error: say(f"{job.name:<8} is tried again: {error}"))
        worker.on("lock_lost", self._lost)

    def _progress(self, job: Job, value: object) -> None:
        self.progress[job.name] = value
        if not isinstance(value, int) or value % 10 == 0:
            self.say(f"{job.name:<8} progress {value}")

    def _lost(self, job: Job, said: object) -> None:
        self.lost[job.name] = str(LockLost(job.id))
        self.say(f"{job.name:<8} lost its lock: stopped, so that it does not run twice")


def run(url: str) -> int:
    """Tell the story on the server at `url`; 0 if each job ended as it should."""
    name = f"demo-{uuid.uuid4().hex[:8]}"
    story = _Story()
    with Queue(name, url) as queue:
        worker = Worker(name, process, url, concurrency=10, lock_duration=2.0)
        story.listen(worker)
        jobs = {
            chapter: queue.add(
                chapter, {"numbers": [1, 2, 3]}, attempts=2 if chapter == "flaky" else 1
            )
            for chapter in _CHAPTERS
        }
        story.say(f"{len(jobs)} jobs are waiting in queue {name!r} of {url}")
        with worker:
            try:
                with gevent.Timeout(_LIMIT, TimeoutError(f"not over within {_LIMIT:g} s")):
                    _tell(queue, worker, jobs, story)
            except TimeoutError as error:
                story.say(str(error))
        return _table(queue, jobs, story)


def _tell(queue: Queue, worker: Worker, jobs: dict[str, Job], story: _Story) -> None:
    _until(lambda: story.progress.get("chunked", 0) >= 20 and "commit" in story.progress)
    story.say("cancel   chunked, softly: it stops at its next check")
    worker.cancel_job(jobs["chunked"].id, "no longer needed")
    story.say("kill     blocked: it sits in a socket and will not look")
    worker.cancel_job(jobs["blocked"].id, "it hangs", hard=True)
    story.say("kill     commit: it is in a shield, so the kill waits for the block's end")
    worker.cancel_job(jobs["commit"].id, "shutting the shop", hard=True)
    story.say("break    lock: its lock is taken away, as if this machine had been cut off")
    _steal(queue, jobs["lock"].id)
    ended = ("completed", "failed")
    waited_for = [job for chapter, job in jobs.items() if chapter != "lock"]
    _until(lambda: all(queue.get_job_state(job.id) in ended for job in waited_for))
    _until(lambda: "lock" in story.lost)


def _steal(queue: Queue, job_id: str) -> None:
    queue._store.break_lock(job_id)


def _until(condition: typing.Callable[[], object]) -> None:
    while not condition():
        gevent.sleep(0.01)


def _table(queue: Queue, jobs: dict[str, Job], story: _Story) -> int:
    print()
    good = True
    for chapter, (state, text) in _ENDS.items():
        job = queue.get_job(jobs[chapter].id)
        if job is None:
            raise GeventqError(f"job {jobs[chapter].id} is gone")
        if chapter in story.lost:
            found, told = "lock lost", story.lost[chapter]
        else:
            found = queue.get_job_state(job.id)
            told = repr(job.return_value) if found == "completed" else job.failed_reason or ""
        right = found == state and text in told
        good = good and right
        print(f"  {'ok' if right else 'WRONG':<6} {chapter:<8} {found:<10} {told}")
    print("\n  all as it should be" if good else "\n  NOT as it should be", flush=True)
    sys.stdout.flush()
    return 0 if good else 1
