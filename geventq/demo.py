"""``geventq demo``: the whole story on the terminal, in some ten seconds, on a real server.

Six ordinary jobs in one worker: one is cancelled softly in mid-work, one is killed in a blocking
call, one is killed in a commit that is waited for, one loses its lock and runs again, one is
retried, one just runs.  A seventh runs in another process, and is cancelled from this one.  The
table at the end tells what became of each.  The exit status is 0 only if each ended as it should.

Greenlets: the board's and those of the worker; the story itself is told in the caller's.
"""

from __future__ import annotations

import functools
import typing
import uuid

import gevent
import gevent.socket

from geventq.cancellation import CancellationToken
from geventq.commands import second
from geventq.commands.board import Board
from geventq.commands.console import Console, safe
from geventq.errors import RedisUnavailableError
from geventq.events import QueueEvent, QueueEvents
from geventq.job import Job
from geventq.queue import Queue
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys
from geventq.worker import Worker

__all__ = ["run"]

_LIMIT: typing.Final = 25.0  # seconds that the story may take
_PAUSE: typing.Final = 0.8  # seconds in which a reader sees what has happened

# -- the jobs: what a user's processor may look like ---------------------------------------


def thumbnail(job: Job, token: CancellationToken) -> str:
    """Runs to its end; nothing happens to it."""
    for percent in range(10, 101, 10):
        gevent.sleep(0.12)
        job.update_progress(percent)
    return "640x480"


def mail(job: Job, token: CancellationToken) -> str:
    """Fails the first time; is retried after its back-off."""
    gevent.sleep(0.6)
    if job.attempts_made == 0:
        raise ConnectionError("the mail server hung up")
    return "sent at the second attempt"


def export(job: Job, token: CancellationToken) -> int:
    """Writes chunks, and looks at its token before each."""
    for percent in range(1, 101):
        token.raise_if_cancelled()
        gevent.sleep(0.04)
        job.update_progress(percent)
    return 100


def download(job: Job, token: CancellationToken) -> bytes:
    """Blocks in a socket, and looks at nothing."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        return ours.recv(1)  # nobody will ever write


def payment(job: Job, token: CancellationToken) -> str:
    """Commits; half a commit would be worse than none."""
    gevent.sleep(2.0)
    with token.shield():
        for percent in range(10, 101, 10):
            gevent.sleep(0.2)
            job.update_progress(percent)
    gevent.sleep(_LIMIT)
    return "never reached: the kill was thrown as the shield was left"


def report(job: Job, token: CancellationToken) -> str:
    """Loses its lock in the first run; the second one goes on where the first one was."""
    begin = job.progress if isinstance(job.progress, int) else 0
    for percent in range(begin, 101):
        token.sleep(0.03 if begin else 0.15)
        job.update_progress(percent)
    return f"went on at {begin} %" if begin else "not disturbed"


JOBS: typing.Final[dict[str, typing.Callable[[Job, CancellationToken], typing.Any]]] = {
    job.__name__: job for job in (thumbnail, mail, export, download, payment, report)
}
_OPTIONS: typing.Final[dict[str, dict[str, typing.Any]]] = {"mail": {"attempts": 2, "backoff": 1.0}}


def process(job: Job, token: CancellationToken) -> typing.Any:
    """The demo's processor: one function a job name."""
    return JOBS[job.name](job, token)


_ELSEWHERE: typing.Final = "elsewhere"  # the job of the second process


# -- how each must end -----------------------------------------------------------------------


class _Expected(typing.NamedTuple):
    """How a job must have ended: its state, its result or failure, and what proves the rest."""

    state: str
    text: str
    proof: typing.Callable[[Job], bool] = lambda job: True


_ENDINGS: typing.Final = {
    "thumbnail": _Expected("completed", "640x480"),
    "mail": _Expected(
        "completed", "sent at the second attempt", lambda job: job.attempts_made == 2
    ),
    "export": _Expected(
        "failed", "Job cancelled: the user left the page", lambda job: 40 <= job.progress < 100
    ),
    "download": _Expected("failed", "Job cancelled: it hangs"),
    "payment": _Expected(
        "failed", "Job cancelled: no answer from the shop", lambda job: job.progress == 100
    ),
    "report": _Expected("completed", "went on at", lambda job: job.stalled_counter == 1),
    _ELSEWHERE: _Expected(
        "failed", "Job cancelled: asked from another process", lambda job: 20 <= job.progress < 100
    ),
}


class _Story:
    """Tells what happens, on a board."""

    def __init__(self, board: Board, ids: dict[str, str], second_pid: int) -> None:
        self.board = board
        self.where = f"in process {second_pid}"  # of the second one
        self._ids = ids
        self.progress: dict[str, int] = {}
        self.over: set[str] = set()
        self.cancelled: set[str] = set()
        self.lost_locks: set[str] = set()

    def listen(self, worker: Worker) -> None:
        """Hear of everything that the worker tells."""
        show = self.board.set
        worker.on("active", lambda job: show(job.name, "runs"))
        worker.on("progress", self._progressed)
        worker.on("completed", self._completed)
        worker.on("cancelled", lambda job, said: self.cancelled.add(job.name))  # before `failed`
        worker.on("failed", self._failed)
        worker.on("retrying", lambda job, error: show(job.name, "waits", f"{error}; again in 1 s"))
        worker.on("lock_lost", self._lost)
        worker.on("stalled", functools.partial(self._brought_back, worker))

    def listen_elsewhere(self, events: QueueEvents) -> None:
        """Hear of the job of the second process, as its queue's events tell."""
        show = self.board.set
        events.on("active", lambda event: show(_ELSEWHERE, "runs", self.where))
        events.on("progress", self._progressed_elsewhere)
        events.on("failed", self._failed_elsewhere)

    def _progressed_elsewhere(self, event: QueueEvent) -> None:
        self.progress[_ELSEWHERE] = percent = event.data["data"]
        self.board.progress(_ELSEWHERE, percent / 100)

    def _failed_elsewhere(self, event: QueueEvent) -> None:
        self.over.add(_ELSEWHERE)
        reason = event.data["failedReason"]
        state = "cancelled" if reason.startswith("Job cancelled") else "failed"
        self.board.set(_ELSEWHERE, state, reason)

    def _progressed(self, job: Job, percent: int) -> None:
        self.progress[job.name] = percent
        self.board.progress(job.name, percent / 100)

    def _completed(self, job: Job, result: object) -> None:
        self.over.add(job.name)
        self.board.set(job.name, "completed", str(result), done=1.0)

    def _failed(self, job: Job, error: BaseException) -> None:
        self.over.add(job.name)
        state = "cancelled" if job.name in self.cancelled else "failed"
        self.board.set(job.name, state, str(error))

    def _lost(self, job: Job, said: object) -> None:
        self.lost_locks.add(job.name)
        self.board.set(job.name, "stopped", "its lock is not ours any more")

    def _brought_back(self, worker: Worker, job_id: str) -> None:
        runs = any(job.id == job_id for job in worker.active_jobs)  # `active` was told before
        for name, one in self._ids.items():
            if one == job_id:
                state = "runs" if runs else "waits"
                self.board.set(name, state, "the stalled check has brought it back")


def run(url: str, prefix: str = "bull", *, only_json: bool = False) -> int:
    """Tell the story on the server at `url`; 0 if each job ended as it should.  Yields.

    Leaves nothing behind in Redis.  Raises `RedisUnavailableError` where there is none.
    """
    name = f"demo-{uuid.uuid4().hex[:8]}"
    endpoint = Endpoint.of(url)
    client = Client(endpoint)
    keys = QueueKeys(prefix, name)
    console = Console(only_json)
    console.line(
        f"geventq demo: seven jobs, two processes, queue {name} on {endpoint.describe()}\n"
    )
    ids: dict[str, str] = {}
    with Queue(name, url, prefix) as queue, Queue(f"{name}-2", url, prefix) as second_queue:
        queues = dict.fromkeys(JOBS, queue) | {_ELSEWHERE: second_queue}
        try:
            for job, its_queue in queues.items():
                ids[job] = its_queue.add(job, **_OPTIONS.get(job, {})).id
            worker = Worker(
                *(name, process, url, prefix),
                concurrency=len(JOBS),
                lock_duration=2.0,
                lock_renew_time=0.5,
                stalled_interval=1.0,  # a lock that is gone is missed well before: by a renewal
                close_timeout=0.0,  # when the story is over, nobody waits for a job that is not
            )
            with (
                QueueEvents(second_queue.name, url, prefix, last_event_id="0-0") as events,
                second.running(second_queue.name, url, prefix) as pid,
                Board(queues, console) as board,
            ):
                story = _Story(board, ids, pid)
                story.listen(worker)
                story.listen_elsewhere(events)
                with worker:
                    _tell(
                        *(worker, second_queue, ids, story),
                        lambda job: _break_lock(client, keys, ids[job]),
                    )
            return _table(queues, ids, console)
        except RedisUnavailableError:
            ids.clear()  # what is there cannot be reached, and each try would take its time
            raise
        finally:
            if ids:
                _clear(queues, client, ids)
            client.close()


def _tell(
    worker: Worker,
    second_queue: Queue,
    ids: dict[str, str],
    story: _Story,
    break_lock: typing.Callable[[str], None],
) -> None:
    say, until = story.board.say, _until
    try:
        with gevent.Timeout(_LIMIT, TimeoutError(f"the story is not over within {_LIMIT:g} s")):
            until(lambda: story.progress.get("export", 0) >= 40)
            say("cancel export, softly: its token is set, it stops at its next check")
            worker.cancel_job(ids["export"], "the user left the page", retry=False)
            until(lambda: "export" in story.over)
            gevent.sleep(_PAUSE)
            say("kill download: it sits in a socket and looks at nothing")
            worker.cancel_job(ids["download"], "it hangs", hard=True, retry=False)
            until(lambda: "download" in story.over)
            gevent.sleep(_PAUSE)
            until(lambda: story.progress.get("payment", 0) >= 20)
            say("kill payment: it commits in a shield, so the kill waits for that")
            worker.cancel_job(ids["payment"], "no answer from the shop", hard=True, retry=False)
            until(lambda: "payment" in story.over)
            gevent.sleep(_PAUSE)
            say("break report's lock, as if this machine had been cut off too long")
            break_lock("report")
            until(lambda: "report" in story.lost_locks)
            say("report was stopped before anybody else could run it; it will come back")
            until(lambda: story.progress.get(_ELSEWHERE, 0) >= 20)
            say(f"cancel elsewhere: it runs {story.where}, which has to hear of it")
            asked = second_queue.cancel_job(
                ids[_ELSEWHERE], "asked from another process", wait=_LIMIT
            )
            say(f"elsewhere is {asked.status}, {asked.seconds or 0:.3f} s after it was asked")
            until(lambda: story.over == set(_ENDINGS))
    except TimeoutError as error:
        say(str(error))


def _break_lock(client: Client, keys: QueueKeys, job_id: str) -> None:
    """As an expiry would: its worker does not hold the job any more."""
    client.execute("DEL", keys.of_job(job_id).lock, again=True)


def _until(condition: typing.Callable[[], object]) -> None:
    while not condition():
        gevent.sleep(0.01)


def _table(queues: dict[str, Queue], ids: dict[str, str], console: Console) -> int:
    """What became of each job, by what Redis says; 0 if each ended as it should."""
    rows = []
    for name, ending in _ENDINGS.items():
        job = queues[name].get_job(ids[name])
        state = queues[name].get_job_state(ids[name])
        text = ""
        if job is not None:
            text = str(job.return_value) if state == "completed" else job.failed_reason or ""
        right = (
            *(job is not None, state == ending.state, ending.text in text),
            job is not None and ending.proof(job),
        )
        rows.append({"job": name, "state": state, "text": text, "ok": all(right)})
    console.line("\nWhat became of each, as Redis has it:\n")
    for row in rows:
        mark = "ok" if row["ok"] else "WRONG"
        console.line(f"  {mark:<6} {row['job']:<10} {row['state']:<10} {safe(str(row['text']))}")
    good = all(row["ok"] for row in rows)
    console.line("\n  All as it should be." if good else "\n  NOT as it should be.")
    console.data(rows)
    return 0 if good else 1


def _clear(queues: dict[str, Queue], client: Client, ids: dict[str, str]) -> None:
    for job, queue in queues.items():
        if job in ids:
            queue.remove(ids[job])
    for queue in set(queues.values()):
        keys = QueueKeys(queue.prefix, queue.name)
        own = vars(keys).keys() - {"base", "name", "prefix"}
        client.execute("UNLINK", *(getattr(keys, one) for one in own))
        _clear_answers(client, keys)


def _clear_answers(client: Client, keys: QueueKeys) -> None:
    """What requests have left, which would go by itself within a minute."""
    cursor, words = b"0", ("MATCH", f"{keys.base}gq:*", "COUNT", 1000)
    while True:
        cursor, found = client.execute("SCAN", cursor, *words, again=True)
        if found:
            client.execute("UNLINK", *found)
        if cursor == b"0":
            return
