"""Workers inside gunicorn's gevent workers: `worker_hooks`, for gunicorn's configuration file.

Owns when a web process starts its geventq workers and how it drains them before it ends
(cancellation.md 7.3).  Must not know jobs or Redis, and imports nothing that a master process
without monkey-patching should not import.  One greenlet a web process,
``geventq-gunicorn``, looks whether gunicorn wants to stop; each worker is closed in a greenlet
``geventq-gunicorn-close``, and the hook `worker_exit` joins them all.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import time
import typing

import gevent
from gevent import monkey
from greenlet import getcurrent

from geventq import wakeups
from geventq.guarded import Guarded, kill_all
from geventq.outage import Outage

if typing.TYPE_CHECKING:
    from geventq.worker import Worker

__all__ = ["worker_hooks"]

log = logging.getLogger("geventq")

Factory = typing.Callable[[], "Worker | typing.Sequence[Worker]"]
Hooks = tuple[typing.Callable[[typing.Any], None], typing.Callable[[typing.Any, typing.Any], None]]

#: Seconds before gunicorn's `graceful_timeout` at which everything has ended; of a short one less,
#: if the jobs could not go back otherwise.
RESERVE: typing.Final = 2.0
#: Seconds that the process itself needs for its end.
LAST: typing.Final = 0.5
#: Seconds that a close may take past its own time-out, beside the workers' `kill_after`
#: (cancellation.md 7.1): the ladder's throws, and telling the end.  Only jobs that swallow a kill
#: need it, and they stall either way: of a short `graceful_timeout` it gets half.
LADDER: typing.Final = 5.0
#: Seconds that jobs which end when they are killed need to go back.
GIVE_BACK: typing.Final = 0.5
_LOOK: typing.Final = 0.1  # seconds between two looks at `worker.alive`
_NOTIFY: typing.Final = 1.0  # seconds between two signs of life to the master


def worker_hooks(factory: str | Factory) -> Hooks:
    """The two hooks that let each of gunicorn's gevent workers run geventq workers.

    In ``gunicorn.conf.py``::

        from geventq.integrations.gunicorn import worker_hooks

        worker_class = "gevent"
        post_worker_init, worker_exit = worker_hooks("shop.jobs:make_workers")

    `factory` is called in each web process, once, after monkey-patching and after the
    application was loaded; it returns a `Worker` or a list of them, not yet started.  A text
    ``"module:function"`` is imported only then, so that the master, which is not patched, does
    not import it.

    The workers stop taking jobs as soon as gunicorn asks the process to stop (TERM, HUP,
    ``max_requests``).  Running jobs may go on until shortly before ``graceful_timeout``, or for
    the worker's own `close_timeout` if that is shorter; then they are cancelled and go back.  For
    that they need `kill_after`, 1 s at least, and 1 s more; the log tells at the start if
    ``graceful_timeout`` is shorter.  At QUIT and INT they go back at once; at gunicorn's
    ``timeout``, too, unless the process is held up by what no signal reaches, code in C say: then
    their locks have to lapse.

    Raises `TypeError` or `ValueError` for what cannot name a factory.  A factory that fails,
    ``sys.exit()`` included, or returns no worker, another worker class than ``gevent``, a hook that
    runs before the process is patched, and no ``worker_exit`` raise at the start: gunicorn then
    says so and ends.  A ``worker_exit`` without the other is told when the process ends.  Who has
    hooks of these names already calls the two in them.
    """
    if isinstance(factory, str):
        module, colon, name = factory.partition(":")
        if not (colon and module and name) or not all(module.split(".")):
            raise ValueError(f"factory: 'package.module:function' is needed, got {factory!r}")
    elif not callable(factory):
        raise TypeError(
            f"factory: a callable or 'package.module:function' is needed, got {factory!r}"
        )
    residents: dict[int, _Resident] = {}  # by process: hooks outlive forks

    def post_worker_init(worker: typing.Any) -> None:
        _refuse_other_hosts(worker)
        residents.clear()
        with _named(factory, worker):
            made = _made(factory)
        residents[os.getpid()] = _Resident(worker, made)

    def worker_exit(server: typing.Any, worker: typing.Any) -> None:
        """gunicorn calls it in the process that ends, and for one that vanished in the master."""
        resident = residents.pop(os.getpid(), None)
        if resident is not None:
            resident.leave()
        elif worker.pid == os.getpid() and _is_left_out("post_worker_init", worker):
            log.error(
                "geventq.integrations.gunicorn: the configuration has no post_worker_init, so that "
                "no jobs ran in this process; write post_worker_init, worker_exit = "
                "worker_hooks(...)"
            )

    return post_worker_init, worker_exit


def _refuse_other_hosts(worker: typing.Any) -> None:
    """Before anything is imported or started."""
    kinds = {kind.__name__ for kind in type(worker).__mro__}
    if "Worker" not in kinds:  # when_ready and its like get the master
        raise RuntimeError(
            "geventq.integrations.gunicorn: this hook is called in the master, where no jobs can "
            "run; write post_worker_init, worker_exit = worker_hooks(...)"
        )
    if "GeventWorker" not in kinds:
        raise RuntimeError(
            "geventq.integrations.gunicorn: jobs run as greenlets, so gunicorn needs "
            f'worker_class = "gevent" in its configuration; it is {type(worker).__name__}'
        )
    if not monkey.is_module_patched("socket"):
        raise RuntimeError(
            "geventq.integrations.gunicorn: this process is not monkey-patched yet; write "
            "post_worker_init, worker_exit = worker_hooks(...), since gunicorn patches "
            "after its earlier hooks (post_fork among them)"
        )
    if _is_left_out("worker_exit", worker):
        raise RuntimeError(
            "geventq.integrations.gunicorn: the configuration has no worker_exit, so that jobs "
            "would be cut when a process ends; write post_worker_init, worker_exit = "
            "worker_hooks(...), or call the second one in a worker_exit of your own"
        )


def _is_left_out(hook: str, worker: typing.Any) -> bool:
    """Whether gunicorn's configuration says nothing of it."""
    setting = worker.cfg.settings[hook]
    return bool(setting.get() is setting.default)


def _name_of(factory: str | Factory) -> str:
    return factory if isinstance(factory, str) else getattr(factory, "__qualname__", repr(factory))


@contextlib.contextmanager
def _named(factory: str | Factory, worker: typing.Any) -> typing.Iterator[None]:
    """What the block raises names the factory, and is what makes gunicorn say so and end: for a
    `SystemExit`, or a `gevent.Timeout`, it would start one process after the other."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the factory {_name_of(factory)} of worker_hooks")
        raise
    except BaseException as error:
        # Of gunicorn's own end by QUIT or `timeout`, which may meet a factory that takes its time.
        if isinstance(error, KeyboardInterrupt) or not worker.alive:
            raise
        said = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"factory {_name_of(factory)}: it has raised {said}") from error


def _made(factory: str | Factory) -> list[Worker]:
    """What the factory returned, as a list."""
    from geventq.worker import Worker

    make = _loaded(factory) if isinstance(factory, str) else factory
    name = _name_of(factory)
    made: typing.Any = make()
    workers: list[typing.Any] = list(made) if isinstance(made, list | tuple) else [made]
    for one in workers:
        if not isinstance(one, Worker):
            raise TypeError(f"factory {name}: a Worker or a list of Workers is needed, got {one!r}")
    if not workers:
        raise ValueError(f"factory {name}: at least one Worker is needed, got {made!r}")
    return workers


def _loaded(factory: str) -> Factory:
    module_name, _, path = factory.partition(":")
    found: typing.Any = importlib.import_module(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ValueError(f"factory: {module_name!r} has no {path!r}") from None
    if not callable(found):
        raise TypeError(f"factory: {factory!r} is not callable")
    return typing.cast(Factory, found)


def _kill_after(worker: Worker) -> float:
    """Seconds from the cancellation of a close to the kill (cancellation.md 7.1)."""
    return max(worker.options.kill_after, 1.0)


class _Resident:
    """The geventq workers of one web process, from its start to its end."""

    def __init__(self, host: typing.Any, workers: list[Worker]) -> None:
        self._host = host
        self._workers = workers
        self._at_once = False  # jobs go back without being waited for
        self._deadline: float | None = None  # set once, when gunicorn wants to stop
        self._closing: list[Guarded] = []
        self._left = wakeups.Event()
        self._outage = Outage(
            "draining for gunicorn", ", ".join(one.queue_name for one in workers), self._left
        )
        # Gunicorn closes its file before it calls `worker_exit`, where we still have to tell the
        # master that the process lives (seen with gunicorn 27.0).
        self._pulse = os.dup(host.tmp.fileno())
        self._heed_quick_ends()
        self._tell_if_too_short()
        started: list[Worker] = []
        try:
            for worker in workers:
                worker.start()
                started.append(worker)
        except BaseException:
            for worker in started:
                worker.close(0)
            os.close(self._pulse)
            raise
        self._watch = Guarded(self._look, "gunicorn", self._outage)
        self._watch.start()

    def _heed_quick_ends(self) -> None:
        """Learn of QUIT, INT and ``timeout``, which gunicorn tells by hooks of its own: the ones
        that are configured are called as before."""
        from geventq.cancellation import tree  # nothing that the master needs

        settings = self._host.cfg
        interrupted, aborted = settings.worker_int, settings.worker_abort

        def worker_int(worker: typing.Any) -> None:
            self._at_once = True
            interrupted(worker)

        def worker_abort(worker: typing.Any) -> None:
            self._at_once = True
            aborted(worker)
            # gunicorn goes on with `sys.exit(1)`, in whatever greenlet holds the process up: a job
            # fails by it, and "1" would be the reason.
            if tree.marked(getcurrent()) is not None:
                raise SystemExit(
                    "it held up its web process for longer than gunicorn's timeout of "
                    f"{worker.cfg.timeout:g} s"
                )

        settings.set("worker_int", worker_int)
        settings.set("worker_abort", worker_abort)

    def _look(self) -> None:
        """Until gunicorn wants this process to stop.  `alive` is a plain attribute, which nothing
        announces: gunicorn itself looks at it once a second."""
        while self._host.alive and not self._left.wait(_LOOK):
            pass
        self._begin()

    def _begin(self) -> None:
        """Close all workers, side by side.  Idempotent; a later call may shorten the time."""
        if self._deadline is None:
            graceful = self._host.cfg.graceful_timeout
            seconds = max(graceful - RESERVE, min(self._going_back(), graceful - LAST))
            self._deadline = time.monotonic() + seconds
        elif not self._at_once:
            return
        for worker in self._workers:
            close = functools.partial(
                worker.close, self._time_for(worker), "gunicorn stops this process"
            )
            closing = Guarded(close, "gunicorn-close", self._outage)
            self._closing.append(closing)
            closing.start()

    def _going_back(self) -> float:
        """Seconds in which jobs go back that do not end by themselves, but when they are killed."""
        return max(_kill_after(worker) for worker in self._workers) + GIVE_BACK

    def _tell_if_too_short(self) -> None:
        """What no close can mend, while it can still be configured."""
        needed, graceful = self._going_back() + LAST, self._host.cfg.graceful_timeout
        if graceful < needed:
            log.warning(
                "gunicorn's graceful_timeout of %g s is too short: running jobs need up to %g s to "
                "go back to their queue (kill_after, at least 1 s, and 1 s more); those that have "
                "not by then stall, and run again when their locks have lapsed",
                graceful,
                needed,
            )

    def _time_for(self, worker: Worker) -> float:
        """Seconds for which running jobs may go on."""
        if self._at_once or self._deadline is None:
            return 0.0
        options = worker.options
        left = self._deadline - time.monotonic()
        kill_after = _kill_after(worker)
        ending = max(kill_after + GIVE_BACK, min(kill_after + LADDER, left / 2))
        seconds = max(0.0, left - ending)
        if options.close_timeout is not None:
            seconds = min(seconds, options.close_timeout)
        return seconds

    def leave(self) -> None:
        """The last thing that the process does: see that the jobs have ended or gone back."""
        self._left.set()
        self._watch.join()
        self._begin()
        assert self._deadline is not None
        ends = [closing.done for closing in self._closing]
        while not all(end.is_set() for end in ends):
            left = self._deadline - time.monotonic()
            if left <= 0:
                log.error("gunicorn's graceful_timeout is over; jobs that still run will stall")
                break
            self._notify()
            gevent.wait(ends, timeout=min(left, _NOTIFY))
        kill_all(self._closing, timeout=1.0)
        os.close(self._pulse)

    def _notify(self) -> None:
        """Tell the master that this process lives, as gunicorn does it (its ``workertmp.py``)."""
        now = time.monotonic()
        os.utime(self._pulse, (now, now))
