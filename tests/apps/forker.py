"""A program that forks while its worker's jobs wait in every way there is; run by test_fork.py.

    python -m tests.apps.forker URL PREFIX FILE {plain,patched} {os,gevent,multiprocessing} WHERE

Each job writes ``<way> <pid>`` to FILE as it is left.  Parent and child print one line of JSON.
"""

from __future__ import annotations

import sys

if sys.argv[4] == "patched":
    import gevent.monkey

    gevent.monkey.patch_all()

import gc
import json
import multiprocessing
import os
import queue as queues
import signal
import socket
import threading
import time
import typing

import gevent
import gevent.event
import gevent.lock
import gevent.monkey
import gevent.os
import gevent.queue
import gevent.select
import gevent.socket
import gevent.subprocess
import greenlet

from geventq import CancellationToken, GeventqError, Job, Queue, Worker
from geventq.store.client import Client, Endpoint

# Whoever started this may be killed, and a child of a fork may turn for ever: nothing of it lives
# longer than a test does.
signal.alarm(90)
os.register_at_fork(after_in_child=lambda: signal.alarm(90) and None)

URL, PREFIX, FILE, PATCHED, HOW, WHERE = sys.argv[1:7]

Way = typing.Callable[[CancellationToken], object]
WAYS: dict[str, Way] = {}
released = False
entered: set[str] = set()
record = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
real_sleep = gevent.monkey.get_original("time", "sleep")


def way(waits: Way) -> Way:
    WAYS[waits.__name__] = waits
    return waits


event, unset = gevent.event.Event(), gevent.event.Event()
answer: gevent.event.AsyncResult[int] = gevent.event.AsyncResult()
semaphore, lock = gevent.lock.Semaphore(0), gevent.lock.RLock()
items, full = gevent.queue.Queue(), gevent.queue.Queue(1)
channel, tasks = gevent.queue.Channel(), gevent.queue.JoinableQueue()
reader, writer = gevent.socket.socketpair()
plain_reader, plain_writer = socket.socketpair()
pipe_in, pipe_out = os.pipe()
poll_in, poll_out = os.pipe()
other = gevent.spawn(event.wait)
program = gevent.subprocess.Popen(["cat"], stdin=gevent.subprocess.PIPE)
full.put(1)
tasks.put(1)


def hold_lock() -> None:
    with lock:
        event.wait()


gevent.spawn(hold_lock)
gevent.sleep(0)


@way
def sleep_0(token: CancellationToken) -> None:
    while not released:
        gevent.sleep(0)


@way
def sleep(token: CancellationToken) -> None:
    while not released:
        gevent.sleep(0.01)


@way
def wait_with_limit(token: CancellationToken) -> None:
    while not released:
        unset.wait(0.02)


@way
def timeout(token: CancellationToken) -> None:
    while not released:
        with gevent.Timeout(0.02, False):
            unset.wait()


@way
def thread_pool(token: CancellationToken) -> None:
    gevent.get_hub().threadpool.apply(real_sleep, (0.3,))


@way
def subprocess_wait(token: CancellationToken) -> None:
    program.wait()


@way
def poll(token: CancellationToken) -> None:
    waits = gevent.select.poll()
    waits.register(poll_in, gevent.select.POLLIN)
    waits.poll()


@way
def token_sleep(token: CancellationToken) -> None:
    while not released:
        token.sleep(0.01)


@way
def token_run(token: CancellationToken) -> None:
    token.run(left_alone, "token_run_inside")


@way
def token_spawn(token: CancellationToken) -> None:
    token.spawn(left_alone, "token_spawn_inside").join()


@way
def spawn(token: CancellationToken) -> None:
    gevent.spawn(left_alone, "spawn_inside").join()


@way
def asked_to_stop(token: CancellationToken) -> None:
    """The fork comes in the grace, and a callback is under way."""
    token.on_cancel(left_alone, "on_cancel_inside")
    event.wait()


@way
def killed(token: CancellationToken) -> None:
    """The fork comes in the grace."""
    unset.wait()


@way
def time_limit(token: CancellationToken) -> None:
    """A link whose time runs out in the child, too."""
    link = token.link(timeout=0.3)
    link.on_cancel(lambda: left_alone("link_inside"))
    link.wait()
    gevent.sleep(0.05)


@way
def inner(token: CancellationToken) -> None:
    greenlet.greenlet(left_alone).switch("inner_inside")


def left_alone(name: str) -> None:
    try:
        event.wait()
    finally:
        os.write(record, f"{name} {os.getpid()}\n".encode())


WAYS.update(
    event=lambda token: event.wait(),
    async_result=lambda token: answer.get(),
    semaphore=lambda token: semaphore.acquire(),
    rlock=lambda token: lock.acquire() and lock.release(),
    queue_get=lambda token: items.get(),
    queue_put=lambda token: full.put(2),
    channel=lambda token: channel.get(),
    joinable=lambda token: tasks.join(),
    join=lambda token: other.join(),
    get=lambda token: other.get(),
    joinall=lambda token: gevent.joinall([other]),
    wait_any=lambda token: gevent.wait([other, event]),
    iwait=lambda token: list(gevent.iwait([other])),
    token_wait=lambda token: token.wait(0.5),
    recv=lambda token: reader.recv(1),
    select=lambda token: gevent.select.select([pipe_in], [], []),
    wait_read=lambda token: gevent.socket.wait_read(pipe_in),
)
if PATCHED == "patched":
    condition, mutex = threading.Condition(), threading.Lock()
    flag, line = threading.Event(), queues.Queue()  # type: ignore[var-annotated]
    mutex.acquire()

    @way
    def thread_condition(token: CancellationToken) -> None:
        with condition:
            condition.wait()

    @way
    def thread_join(token: CancellationToken) -> None:
        thread = threading.Thread(target=left_alone, args=("thread_inside",))
        thread.start()
        thread.join()

    WAYS.update(
        thread_lock=lambda token: mutex.acquire(),
        thread_event=lambda token: flag.wait(),
        thread_queue=lambda token: line.get(),
        plain_recv=lambda token: plain_reader.recv(1),
        time_sleep=lambda token: time.sleep(0.3),
    )


def release() -> None:
    """Wake whatever waits, in this process, and by files in the other one too."""
    global released
    released = True
    event.set()
    answer.set(1)
    semaphore.release()
    items.put(1)
    full.get(block=False)
    tasks.task_done()
    gevent.spawn(channel.put, 1)
    for end in (writer, plain_writer):
        end.send(b"x")
    for descriptor in (pipe_out, poll_out):
        os.write(descriptor, b"x")
    assert program.stdin is not None
    program.stdin.close()
    if PATCHED == "patched":
        flag.set()
        line.put(1)
        mutex.release()
        gevent.spawn(notify)


def notify() -> None:
    with condition:
        condition.notify_all()


def process(job: Job, token: CancellationToken) -> int:
    if job.data == "plain":
        return os.getpid()
    if job.data == "fork":
        while len(entered) < len(WAYS):
            gevent.sleep(0.001)
        do_fork(job)
        return os.getpid()
    entered.add(job.data)
    try:
        WAYS[job.data](token)
    finally:
        os.write(record, f"{job.data} {os.getpid()}\n".encode())
    return os.getpid()


told: list[str] = []
queue = Queue("q", URL, PREFIX)
client = Client(Endpoint.of(URL))
worker = Worker("q", process, URL, PREFIX, concurrency=len(WAYS) + 1)  # and the one that forks
worker.on("completed", lambda job, result: told.append(job.id))
parent = os.getpid()
ended: list[str] = []
users_turns = 0
at_fork: set[bytes] = set()


def do_fork(job: Job | None = None) -> None:
    """Fork, and wait for the child's end: only the child holds the pipe open then."""
    worker.pause()  # what the child adds is for the child to run
    worker.cancel_job("asked_to_stop")
    worker.cancel_job("killed", kill_after=0.2)
    if WHERE != "thread":  # which has connections of its own
        at_fork.update(connections())
    alive, held = os.pipe()
    if HOW == "gevent":
        gc.freeze()  # as its documentation recommends before a fork
    if HOW == "multiprocessing":
        multiprocessing.get_context("fork").Process(target=in_child, args=(job,)).start()
    elif not (os.fork() if HOW == "os" else gevent.os.fork()):
        in_child(job)
        if WHERE == "job-returns":
            ended.append("the child's job")
            return
        gc.collect()
        sys.exit()  # the interpreter's end must run no job's `finally` either
    os.close(held)
    gevent.socket.wait_read(alive)
    ended.append("child")


def say(**said: typing.Any) -> None:
    os.write(1, (json.dumps(said) + "\n").encode())


def in_child(job: Job | None) -> None:
    before = worker.id
    told.clear()
    dead = {
        "is_running": worker.is_running,
        "active_jobs": len(worker.active_jobs),
        "cancel_job": worker.cancel_job("event"),
        "cancel_all_jobs": worker.cancel_all_jobs(),
    }
    worker.close()
    refused = []
    if job is not None:
        for call in (
            lambda: job.update_progress(1),
            lambda: job.update_data({}),
            lambda: job.log("row"),
            lambda: job.extend_lock(1),
        ):
            try:
                call()
            except GeventqError as error:
                refused.append(str(error))
    release()
    turns = users_turns
    worker.resume()
    worker.start()
    added = queue.add("n", "plain", job_id="child's")
    result = added.wait_until_finished(10)
    while WHERE != "thread" and users_turns < turns + 40:  # 0.4 s of the user's own greenlet
        gevent.sleep(0.001)
    new_id = worker.id != before
    loop, seconds = gevent.get_hub().loop, 0.2
    first = loop.iteration
    gevent.sleep(seconds)
    busy = (loop.iteration - first) / seconds
    worker.close(5)
    say(
        who="child",
        dead=dead,
        refused=refused,
        new_id=new_id,
        own=result == os.getpid(),
        told=told,
        busy=busy,
    )


def connections() -> set[bytes]:
    return {line.split()[0] for line in client.execute("CLIENT", "LIST").splitlines()}


def turn() -> None:
    global users_turns
    while True:
        gevent.sleep(0.01)
        users_turns += 1


def main() -> None:
    user = gevent.spawn(turn)
    worker.start()
    for name in WAYS:
        queue.add("n", name, job_id=name, attempts=1)
    if WHERE.startswith("job"):
        queue.add("n", "fork", job_id="fork")
    while len(entered) < len(WAYS):
        gevent.sleep(0.001)
    gevent.sleep(0.02)
    if WHERE == "main":
        do_fork()
    elif WHERE == "thread":
        at_fork.update(connections())
        start = gevent.monkey.get_original("_thread", "start_new_thread")
        start(do_fork, ())
    with gevent.Timeout(20):
        while not ended:
            gevent.sleep(0.01)
    if os.getpid() != parent:
        return  # the program goes on in the child, too
    lost = at_fork - connections()
    worker.resume()
    if not released:
        release()
    limit = gevent.Timeout.start_new(10)
    try:
        while worker.active_jobs:
            gevent.sleep(0.005)
    except gevent.Timeout:
        raise AssertionError([job.id for job in worker.active_jobs]) from None
    finally:
        limit.close()
    worker.close(5)
    user.kill()
    say(who="parent", pid=parent, lost=len(lost), ways=sorted(WAYS))


main()
