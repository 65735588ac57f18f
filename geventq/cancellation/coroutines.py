"""`token.run_coroutine`: asyncio code of a job, in a native thread with a loop of its own.

In the job's own thread asyncio takes one loop for all that runs there: `asyncio.run` in a second
job fails, since "another loop is running", and what asks for the running loop in any job (Django's
ORM does) finds the first one's.

A greenlet of the job (calls.py) waits for the thread; what is thrown at it cancels the task, and
it ends when the thread has.  In the thread nothing belongs to the job's tree: what runs there is
ended by asyncio's own cancellation.  In a monkey-patched process the thread has a gevent hub, and
the loop waits in it: sockets, executors and look-ups are greenlets of that hub there, which a
loop on the system's own selector would never give a turn (seen).

Imports asyncio, and with it socket and ssl: not to be imported before a program is patched.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import threading
import typing

import gevent
import gevent.selectors
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
from greenlet import GreenletExit, getcurrent

from geventq import wakeups
from geventq.cancellation import calls

__all__ = ["run"]

T = typing.TypeVar("T")
Coroutine = typing.Coroutine[typing.Any, typing.Any, T]

_start_thread: typing.Final = monkey.get_original("_thread", "start_new_thread")
_allocate_lock: typing.Final = monkey.get_original("_thread", "allocate_lock")


def run(
    coroutine: Coroutine[T],
    timeout: float | None,
    signal: calls.Signal | None,
    owner: calls.CallOwner,
) -> T:
    """What the coroutine returns or raises; `signal` cancels it, `None` lets it go to its end."""
    return typing.cast(T, calls.run(_CoroutineCall(coroutine), timeout, signal, owner))


class _CoroutineCall:
    """One coroutine in its thread.  Called in the greenlet that waits for it."""

    def __init__(self, coroutine: Coroutine[typing.Any]) -> None:
        self._coroutine = coroutine
        self._lock = _allocate_lock()  # for what both threads write
        #: Made in the thread: its queue belongs to the hub there.
        self._executor: _Executor | None = None
        #: Where it runs; `None` before its first turn.
        self._task: asyncio.Task[typing.Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asks = 0  # how often it was asked to stop
        #: It ended by itself before it was asked: its outcome counts, whatever was thrown since.
        self.came_first = False
        self._value: typing.Any = None
        self._error: BaseException | None = None
        self._ended = wakeups.Event()  # the thread has nothing more to do; set in the hub

    def __call__(self) -> typing.Any:
        thrown: BaseException | None = None
        watcher = gevent.get_hub().loop.async_()  # keeps the hub waiting, as a timer would
        watcher.start(self._ended.set)
        try:
            todo = [functools.partial(self._run, contextvars.copy_context())]
            _start_thread(_run_thread, (todo, watcher.send))
            while not self._ended.is_set():
                try:
                    self._ended.wait()
                except BaseException as one:  # noqa: BLE001 (raised below)
                    thrown = one
                    self._cancel()
        finally:
            watcher.stop()
            watcher.close()
        error, self._error = self._error, None
        if thrown is not None and not self.came_first:
            raise thrown from error
        if error is not None:
            raise error
        return self._value

    def _cancel(self) -> None:
        """Each time it is asked; does not block."""
        with self._lock:
            self._asks += 1
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the thread ends
                loop.call_soon_threadsafe(self._cancel_tasks)

    # -- in the thread ------------------------------------------------------------------------

    def _run(self, context: contextvars.Context) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                executor = self._executor = _Executor()
                runner.get_loop().set_default_executor(executor)
                try:
                    self._value = runner.run(self._main(), context=context)
                finally:
                    if self._asks:
                        executor.stop()  # not before: the coroutine may wait for its calls
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the caller's  # noqa: BLE001
            self._error = error

    async def _main(self) -> typing.Any:
        with self._lock:
            self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
            if self._asks:
                raise asyncio.CancelledError
        try:
            return await self._coroutine
        finally:
            with self._lock:
                self.came_first = not self._asks

    def _cancel_tasks(self) -> None:
        """In the loop: cancel the coroutine; when asked again, all that still holds the loop up."""
        assert self._task is not None and self._executor is not None
        if self._task.done():
            self._executor.stop()
        for task in asyncio.all_tasks(self._loop) if self._asks > 1 else [self._task]:
            task.cancel()


def _run_thread(
    todo: list[typing.Callable[[], None]], ended: typing.Callable[[], object] | None
) -> None:
    """The native thread of one coroutine.

    Its frame must hold nothing of the job in the end: gevent keeps it for ever, with what is left
    of the hub (seen with gevent 26.9: the hub's last `LoopExit` is never freed).
    """
    assert ended is not None
    try:
        todo.pop()()
    finally:
        # Who asks for the current thread here makes a dummy for it, which nothing removes.
        vars(threading)["_active"].pop(threading.get_ident(), None)
        hub: typing.Any = get_hub_if_exists()
        # Look-ups and the like go to their end in the threads of that hub: nobody waits (2.12).
        is_busy = hub is not None and len(hub.threadpool) > 0
        if is_busy:
            ended()
        if hub is not None:
            hub.destroy(destroy_loop=True)
        if not is_busy:
            ended()
        hub = ended = None


def _loop_factory() -> typing.Callable[[], asyncio.AbstractEventLoop] | None:
    if not monkey.is_module_patched("threading"):
        return None  # as the program's policy makes loops
    return lambda: asyncio.SelectorEventLoop(gevent.selectors.GeventSelector())


class _Executor(concurrent.futures.ThreadPoolExecutor):
    """What `asyncio.to_thread` and name look-ups run in.

    Its threads are greenlets of the same native thread where a process is patched: a call under
    way ends with the job.  Real ones run on to their end, and nobody waits for that.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._is_stopped = False
        self._greenlets: set[typing.Any] = set()  # of the calls under way

    def submit(
        self, fn: typing.Callable[..., T], /, *args: typing.Any, **kwargs: typing.Any
    ) -> concurrent.futures.Future[T]:
        return super().submit(self._call, fn, args, kwargs)

    def _call(
        self,
        fn: typing.Callable[..., T],
        args: tuple[typing.Any, ...],
        kwargs: dict[str, typing.Any],
    ) -> T:
        current = getcurrent()
        self._greenlets.add(current)
        try:
            return fn(*args, **kwargs)
        finally:
            self._greenlets.discard(current)

    def stop(self) -> None:
        """The coroutine has ended, cancelled.  In the loop's thread; does not yield."""
        self._is_stopped = True
        if monkey.is_module_patched("threading"):
            for greenlet in self._greenlets:
                gevent.get_hub().loop.run_callback(greenlet.throw, GreenletExit())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._is_stopped:
            wait, cancel_futures = monkey.is_module_patched("threading"), True
        super().shutdown(wait, cancel_futures=cancel_futures)
