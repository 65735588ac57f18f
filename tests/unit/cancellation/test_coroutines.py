"""`token.run_coroutine`: asyncio code in a job (2.13), patched and unpatched."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import time
import typing
import warnings

import gevent
import gevent.event
import pytest
from gevent import monkey

from geventq import CancellationToken, GeventqError, JobCancelled, JobKilled
from geventq.cancellation import calls, throws
from tests.support.attempts import Run
from tests.support.leaks import descriptors, native_threads
from tests.support.waiting import at_best, eventually


class Told:
    """A coroutine's steps, told to the hub's thread."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __contains__(self, step: str) -> bool:
        return step in self.steps

    async def wait(self, seconds: float = 60.0, result: object = "result") -> object:
        self.steps.append("begun")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.steps.append("cancelled")
            raise
        finally:
            self.steps.append("ended")
        return result


@pytest.fixture
def told() -> Told:
    return Told()


def _cancel_once_begun(told: Told, token: CancellationToken) -> None:
    gevent.spawn(lambda: eventually(lambda: "begun" in told) and token.cancel("enough"))


def test_the_result_and_the_error_arrive() -> None:
    """2.13: what the coroutine returns or raises; `SystemExit` stays an error of the call."""

    async def answer() -> int:
        return 7

    async def fail(error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    token = CancellationToken()
    assert token.run_coroutine(answer()) == 7
    for error in (ZeroDivisionError("z"), SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            token.run_coroutine(fail(error))
        assert raised.value is error


def test_it_runs_in_a_native_thread_beside_the_hub() -> None:
    """Three at once, each with a loop and a thread of its own; the hub turns all the while, and
    nothing in the job's thread looks as if a loop ran there: Django's ORM refuses that."""
    native = monkey.get_original("_thread", "get_ident")
    meet = gevent.event.Event()
    here = native()

    async def look(loops: set[int]) -> int:
        loops.add(id(asyncio.get_running_loop()))
        while not meet.is_set():
            await asyncio.sleep(0.005)
        return int(native())

    token, loops = CancellationToken(), set[int]()
    jobs = [gevent.spawn(token.run_coroutine, look(loops)) for _ in range(3)]
    eventually(lambda: len(loops) == 3)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    meet.set()
    threads = {job.get() for job in jobs}
    assert len(threads) == 3
    assert here not in threads


def test_djangos_orm_works_beside_it(told: Told) -> None:
    """Where `asyncio.run` runs in one job, the ORM refuses to work in all others."""
    async_unsafe = pytest.importorskip("django.utils.asyncio").async_unsafe
    from django.core.exceptions import SynchronousOnlyOperation

    query = async_unsafe("not in a loop")(lambda: "rows")
    token = CancellationToken()
    job = gevent.spawn(token.run_coroutine, told.wait(0.1))
    eventually(lambda: "begun" in told)
    assert query() == "rows"
    assert job.get() == "result"
    if monkey.is_module_patched("select"):  # else `asyncio.run` lets nobody else have a turn
        theirs = gevent.spawn(asyncio.run, told.wait(0.1))
        gevent.sleep(0.02)
        with pytest.raises(SynchronousOnlyOperation):
            query()
        with pytest.raises(RuntimeError, match="running event loop"):
            asyncio.run(refused := told.wait(0))
        refused.close()
        theirs.join()


def test_the_network_executors_and_look_ups_work() -> None:
    """Also where sockets, selectors and threads are patched."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))
        writer.close()

    async def talk() -> tuple[bytes, float]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("localhost", port)
        writer.write(b"hello")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        begun = time.perf_counter()
        await asyncio.gather(*[asyncio.to_thread(time.sleep, 0.1) for _ in range(4)])
        return answer, time.perf_counter() - begun

    def measure() -> float:
        answer, side_by_side = CancellationToken().run_coroutine(talk(), timeout=30)
        assert answer == b"hello"
        return side_by_side

    at_best(measure, lambda seconds: seconds < 0.35)


def test_contextvars_are_copied() -> None:
    """2.13: read there, and set without effect here."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    async def rename() -> str:
        before = name.get()
        name.set("theirs")
        return before

    name.set("mine")
    assert CancellationToken().run_coroutine(rename()) == "mine"
    assert name.get() == "mine"


def test_thread_locals_of_one_call_are_not_seen_by_the_next() -> None:
    """2.16: each has a thread of its own."""
    local = threading.local()

    async def leave() -> object:
        before = getattr(local, "value", None)
        local.value = "left"
        return before

    token = CancellationToken()
    assert [token.run_coroutine(leave()) for _ in range(5)] == [None] * 5


def test_a_soft_cancel_cancels_the_task(told: Told) -> None:
    """2.13: `JobCancelled` here, when the coroutine has ended there."""
    token = CancellationToken()
    _cancel_once_begun(told, token)
    with pytest.raises(JobCancelled, match="enough"):
        token.run_coroutine(told.wait())
    assert told.steps == ["begun", "cancelled", "ended"]


def test_a_kill_in_the_middle_cancels_the_task(told: Told) -> None:
    """2.10, 2.13: `JobKilled` leaves the processor when the coroutine has ended."""
    run = Run(lambda token: token.run_coroutine(told.wait()), hard=True).start()
    eventually(lambda: "begun" in told)
    assert run.ask()
    run.join()
    assert isinstance(run.error, JobKilled)
    assert told.steps == ["begun", "cancelled", "ended"]


def test_a_timeout_cancels_the_task(told: Told) -> None:
    token = CancellationToken()
    with pytest.raises(gevent.Timeout):
        token.run_coroutine(told.wait(), timeout=0.05)
    assert told.steps == ["begun", "cancelled", "ended"]
    assert not token.cancelled


def test_cleanup_of_a_cancelled_coroutine_goes_to_its_end() -> None:
    """2.13: it may await, also a thread, and what it awaits in a shield of asyncio's."""
    steps: list[str] = []

    async def commit() -> None:
        work = asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.2))
        steps.append("begun")
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await work
            steps.append("committed")
            await asyncio.sleep(0.05)
            steps.append("slept")
            raise

    token = CancellationToken()
    gevent.spawn(lambda: eventually(lambda: steps) and token.cancel())
    with pytest.raises(JobCancelled):
        token.run_coroutine(commit())
    assert steps == ["begun", "committed", "slept"]


def test_a_call_in_an_executor_does_not_hold_a_cancel_up() -> None:
    """2.12: patched it ends with the job; a real thread runs on, and nobody waits for it."""
    begun = threading.Event()
    go = monkey.get_original("_thread", "allocate_lock")()
    go.acquire()

    def block() -> None:
        begun.set()
        if monkey.is_module_patched("threading"):
            time.sleep(60)
        else:
            go.acquire()

    token = CancellationToken()
    gevent.spawn(lambda: eventually(begun.is_set) and token.cancel())
    try:
        with pytest.raises(JobCancelled):
            token.run_coroutine(asyncio.to_thread(block))
    finally:
        go.release()


@pytest.mark.patched
def test_a_look_up_that_hangs_does_not_hold_a_cancel_up() -> None:
    """2.12: it goes to its end in a native thread, as every look-up does, and nobody waits."""
    go = monkey.get_original("_thread", "allocate_lock")()
    go.acquire()
    begun: list[bool] = []

    def look_up() -> None:
        def hang() -> None:
            begun.append(True)
            go.acquire()

        gevent.get_hub().threadpool.apply(hang)

    token = CancellationToken()
    gevent.spawn(lambda: eventually(lambda: begun) and token.cancel())
    try:
        with pytest.raises(JobCancelled):
            token.run_coroutine(asyncio.to_thread(look_up))
    finally:
        go.release()


def test_a_result_that_came_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.13: the coroutine has returned, and its thread is about to tell, as the request comes."""
    token = CancellationToken()
    ask = gevent.get_hub().loop.run_callback_threadsafe
    cancelled = monkey.get_original("_thread", "allocate_lock")()
    cancelled.acquire()

    def cancel() -> None:
        token.cancel("late")
        gevent.get_hub().loop.run_callback(cancelled.release)

    async def work() -> str:
        async def linger() -> None:
            try:
                await asyncio.sleep(60)
            finally:  # the loop is being closed: the coroutine has ended
                ask(cancel)
                cancelled.acquire()

        work.task = asyncio.ensure_future(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return "result"

    assert token.run_coroutine(work()) == "result"
    assert token.cancelled


def test_what_a_swallowing_coroutine_returns_does_not_count(told: Told) -> None:
    """2.13, as with `run`: it was cancelled, whatever it made of it."""

    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await told.wait()
        return "result"

    token = CancellationToken()
    _cancel_once_begun(told, token)
    with pytest.raises(JobCancelled):
        token.run_coroutine(stubborn())


def test_a_coroutine_that_swallows_each_cancel_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.13: asked again each second, three times, then told as stuck; waited for all the
    same."""
    monkeypatch.setattr(calls, "INTERVAL", 0.05)
    monkeypatch.setattr(throws, "GAP", 0.01)
    go, asked = threading.Event(), 0

    async def survive() -> None:
        nonlocal asked
        while not go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                asked += 1

    run = Run(lambda token: token.run_coroutine(survive())).start()
    gevent.sleep(0.05)
    assert run.ask()
    eventually(lambda: run.told == ["stuck"])
    assert asked == 4
    assert not run.greenlet.ready()
    go.set()
    run.join()
    assert isinstance(run.error, JobCancelled)


def test_inside_a_shield_it_goes_to_its_end(told: Told) -> None:
    """2.9: softly cancelled, and killed."""

    def process(token: CancellationToken) -> object:
        with token.shield():
            return token.run_coroutine(told.wait(0.2))

    for hard in (False, True):
        told.steps.clear()
        run = Run(process).start()
        eventually(lambda: "begun" in told)
        assert run.ask(hard=hard)
        run.join()
        assert told.steps == ["begun", "ended"]
        assert (run.result == "result") is not hard
        assert isinstance(run.error, JobKilled) is hard


@pytest.mark.parametrize("given", [None, 7, "text", asyncio.sleep, lambda: None])
def test_anything_but_a_coroutine_is_refused(given: typing.Any) -> None:
    with pytest.raises(TypeError, match="needs a coroutine, which calling an `async def`"):
        CancellationToken().run_coroutine(given)


def test_a_coroutine_that_is_not_begun_is_closed(told: Told) -> None:
    """Python warns of one that nobody awaited."""
    token = CancellationToken()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="timeout"):
            token.run_coroutine(told.wait(), timeout=-1)
        with pytest.raises(TypeError, match="timeout"):
            token.run_coroutine(told.wait(), timeout=typing.cast(float, "soon"))
        with pytest.raises(GeventqError, match="only in the thread"):
            gevent.get_hub().threadpool.apply(
                lambda: _raised(token.run_coroutine, told.wait()).get()
            )
        token.cancel()
        with pytest.raises(JobCancelled):
            token.run_coroutine(told.wait())
        gc.collect()
    assert told.steps == []


def _raised(call: typing.Callable[..., object], *args: object) -> typing.Any:
    """The outcome of a call in another thread; the pool would print what it raises."""
    result = gevent.event.AsyncResult()
    try:
        result.set(call(*args))
    except BaseException as error:
        result.set_exception(error)
    return result


def test_nothing_is_left_of_many_calls() -> None:
    """7.4: threads, descriptors, what `threading` knows; also of those that were cancelled."""
    known = vars(threading)["_active"]

    def many(times: int) -> None:
        for n in range(times):
            token = CancellationToken()
            call = gevent.spawn(_raised, token.run_coroutine, asyncio.sleep(0.001))
            if n % 2:
                gevent.sleep(n * 1e-5)
                token.cancel()
            call.join()

    CancellationToken().run_coroutine(asyncio.sleep(0))
    gevent.get_hub().threadpool.apply(int)
    threads, remembered = native_threads(), len(known)
    many(4)
    eventually(lambda: native_threads() <= threads)
    open_before = len(descriptors())
    many(100)
    eventually(lambda: native_threads() <= threads)
    eventually(lambda: len(known) <= remembered)
    eventually(lambda: len(descriptors()) <= open_before)


def test_a_forked_child_ends_without_the_thread(told: Told) -> None:
    """7.5: in the child the thread is not there, and nobody waits for it."""
    token = CancellationToken()
    job = gevent.spawn(_raised, token.run_coroutine, told.wait())
    eventually(lambda: "begun" in told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: threads and a fork
        child = os.fork()
    if not child:
        os._exit(0 if CancellationToken().run_coroutine(_answer()) == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    token.cancel()
    assert isinstance(job.get().exception, JobCancelled)


async def _answer() -> int:
    await asyncio.sleep(0.01)
    return 7
