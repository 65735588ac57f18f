"""Workers, bridges, groups and whatever else can be started and closed, under one roof.

Owns when its children live: it starts them, starts those again that died, gives up when one keeps
dying, and closes all in one order.  What a child does is its own business.

Greenlets: ``geventq-child-<n>`` for each child, in which it is started and waited for (or in which
its `run` runs), and while closing ``geventq-supervisor-close`` and ``geventq-child-close-<n>``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import typing

import gevent

from geventq import clock, wakeups
from geventq.checks import Seconds, check_integer, check_list, check_seconds, show
from geventq.deaths import Deaths
from geventq.errors import GeventqError
from geventq.fork.workers import watch
from geventq.guarded import Guarded, kill_all
from geventq.hubs import get_ident, in_thread_of, own_hub, wait_for
from geventq.outage import Outage
from geventq.signals import heeded
from geventq.stacks import JobStacks, printed_on_signal
from geventq.systemd import telling
from geventq.vigil import Condition
from geventq.worker import Worker

__all__ = ["Supervisor"]

Patience = typing.Callable[[typing.Any], float | None]
"""How many seconds a child has for closing; `None`: as many as it needs."""

_LEAVE: typing.Final = 2.0  # seconds in which a `run` has to return once its child was closed

log = logging.getLogger("geventq")


class Supervisor:
    """Starts `children`, starts those again that end or fail, and closes them together.

    A child has a `close`, and a `start`, which returns, or a `run`, which returns when the child
    has ended: a `Worker`, another supervisor, or anything like them.  One that died, or was closed
    by somebody else, lives again after a pause, which doubles from half a second on.  One that
    dies more than `max_restarts` times within `within` seconds is given up, and all the others
    are closed with it.  Raises `ValueError` or `TypeError` for a bad argument.
    """

    def __init__(
        self,
        children: typing.Iterable[typing.Any],
        *,
        max_restarts: int = 5,
        within: Seconds = 60.0,
    ) -> None:
        self._children = check_list("children", children)
        if not self._children:
            raise ValueError("children: at least one is needed, got none")
        for number, child in enumerate(self._children):
            _check_child(f"children[{number}]", child)
            if any(child is one for one in self._children[:number]):
                raise ValueError(f"children[{number}]: stands there twice, got {show(child)}")
        self._max_restarts = check_integer("max_restarts", max_restarts, 0)
        self._within = check_seconds("within", within, above_zero=True)
        self._term: _Term | None = None  # from start() to the end of close()
        self._given_up: GeventqError | None = None  # why the last one ended
        self._herald: typing.Callable[[], object] | None = None  # told of each close beforehand

    @property
    def is_running(self) -> bool:
        """Whether children that die live again."""
        return self._term is not None and not self._term.closes

    def start(self) -> None:
        """Start all children, the last ones to be closed first, and return when each was started
        or has failed for the first time.  Idempotent; after a close it begins anew.  Yields."""
        while self._term is not None and self._term.closes:
            self._wait_closed(self._term)
        if self._term is None:
            self._given_up = None
            self._term = _Term(
                self._children, self._max_restarts, self._within, self._closes_now, self._ended
            )
            self._term.start()
        term = self._term
        for tried in term.first_tries():
            wait_for(term.hub, tried)

    def before_closing(self, call: typing.Callable[[], object] | None) -> None:
        """`call` whenever it begins to close, in the hub's thread and before anything else
        happens; it must not yield.  One at a time; `None`: nobody.  For hosts of workers."""
        self._herald = call

    def _closes_now(self) -> None:
        if self._herald is not None:
            self._herald()

    def conditions(self) -> list[Condition]:
        """How its workers are, those of supervisors among the children too.  Does not yield."""
        closes = self._term is not None and self._term.closes
        return [
            one._replace(status="closing") if closes and one.status != "closed" else one
            for child in self._children
            if isinstance(child, Worker | Supervisor)
            for one in child.conditions()
        ]

    def running_jobs(self, current: typing.Any = None) -> list[JobStacks]:
        """The jobs of its workers with their stacks.  Does not yield."""
        return [
            one
            for child in self._children
            if isinstance(child, Worker | Supervisor)
            for one in child.running_jobs(current)
        ]

    def ping(self, server: str, timeout: float = 2.0) -> None:
        """Ask `server`, that of a worker's condition: raise `RedisUnavailableError` unless it
        answers within `timeout` seconds.  Yields."""
        for child in self._children:
            if isinstance(child, Worker | Supervisor) and any(
                one.server == server for one in child.conditions()
            ):
                child.ping(server, timeout)
                return

    def _ended(self, term: _Term) -> None:
        if self._term is term:
            self._term, self._given_up = None, term.given_up

    def run(self) -> None:
        """Start, and block until closed.  In the main thread the first SIGTERM or SIGINT closes
        each worker with its `close_timeout`, a second one with 0 (cancellation.md 7.2).  Under
        systemd (``Type=notify``) it is told there of the start, the end and each second.  Yields.

        Raises `GeventqError` if a child was given up, when all have closed.
        """
        with telling(self), printed_on_signal(self), heeded(self._signalled) as signals:
            self.start()
            if signals.came:
                self._signalled(signals.came)
            self.join()

    def _signalled(self, times: int) -> None:
        self.begin_to_close(at_once=times > 1)

    def begin_to_close(self, *, at_once: bool = False) -> None:
        """Begin to close each worker with its `close_timeout`, or `at_once` with 0, and return.
        From the thread in which it was started; does not yield."""
        if self._term is not None:
            self._term.close((lambda _: 0.0) if at_once else _own_patience)

    def join(self) -> None:
        """Block until it is closed; at once if it was not started.  Yields.  Raises
        `GeventqError` if a child was given up."""
        if self._term is not None:
            self._wait_closed(self._term)
        if self._given_up is not None:
            raise self._given_up

    def close(self, timeout: Seconds | None = None) -> None:
        """Close the children: those that are neither workers nor groups, then the workers side by
        side, then the groups.  `timeout` is for each child that takes one, as in `Worker.close`.
        Idempotent; a later call may shorten the time.  Inside a job or a listener of one of the
        workers, or the `run` or `close` of a child, it begins closing and returns.  Yields."""
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        self._close(lambda _: seconds)

    def _close(self, patience: Patience) -> None:
        term = self._term
        if term is None:
            return
        in_thread_of(term.hub, lambda: term.close(patience), gone=None)
        if not term.is_inside():
            self._wait_closed(term)

    @staticmethod
    def _wait_closed(term: _Term) -> None:
        wait_for(term.hub, term.done)

    def is_inside(self) -> bool:
        """Whether a job or a listener of one of the workers calls, or a child's own `run`: the
        close cannot be waited for there.  Does not yield."""
        return self._term is not None and self._term.is_inside()

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(_own_patience if kind is None else lambda _: 0.0)


class _Term:
    """From one start of a supervisor to the end of its close; `closes` is told that this begins,
    `ended` that it is over."""

    def __init__(
        self,
        children: list[typing.Any],
        max_restarts: int,
        within: float,
        closes: typing.Callable[[], None],
        ended: typing.Callable[[_Term], None],
    ) -> None:
        self.hub: typing.Any = own_hub()
        self.done = wakeups.Event()  # all is closed
        self.given_up: GeventqError | None = None
        self._within = within
        self._closes_now = closes
        self._ended = ended
        self._stop = wakeups.Event()  # no child lives again
        self._lives = [
            _Life(number, child, Deaths(max_restarts, within), self._stop, self._give_up)
            for number, child in enumerate(children)
        ]
        self._patience: Patience = _own_patience
        self._now_closing: list[_Life] = []  # at this moment, side by side
        self._closers: list[Guarded] = []
        self._left = [
            [one for one in self._lives if _place(one.child) == place] for place in range(3)
        ]
        outage = Outage("the supervisor", None, self._stop)
        self._closing = Guarded(self._close_all, "supervisor-close", outage)

    def start(self) -> None:
        """Does not yield."""
        watch(self)
        for life in sorted(self._lives, key=lambda one: _place(one.child), reverse=True):
            life.task.start()

    def first_tries(self) -> list[wakeups.Event]:
        """Each is set when its child was started, or was not."""
        return [life.tried for life in self._lives]

    @property
    def closes(self) -> bool:
        return self._stop.is_set()

    def is_inside(self) -> bool:
        """Whether who calls would wait for himself, if he waited for the close."""
        if self.hub.thread_ident != get_ident():
            return False
        if any(greenlet is gevent.getcurrent() for greenlet in self._greenlets()):
            return True
        insides = (getattr(life.child, "is_inside", None) for life in self._lives)
        return any(is_inside() for is_inside in insides if is_inside is not None)

    def die(self) -> list[typing.Any]:
        """In a forked child: what runs is the parent's (cancellation.md 7.5)."""
        self._ended(self)
        return self._greenlets()

    def _greenlets(self) -> list[typing.Any]:
        tasks = [self._closing, *self._closers, *(life.task for life in self._lives)]
        return [task.greenlet for task in tasks if task.greenlet is not None]

    # -- the end -----------------------------------------------------------------------------

    def _give_up(self, life: _Life, error: BaseException | None) -> None:
        why = "it ended, unasked" if error is None else f"{type(error).__name__}: {error}"
        self.given_up = GeventqError(
            f"supervisor: {life.name} died {life.deaths.counted} times within "
            f"{self._within:g} s and is given up; the last time: {why}"
        )
        self.given_up.__cause__ = error
        log.error("%s", self.given_up)
        self.close(_own_patience)

    def close(self, patience: Patience) -> None:
        """Begin to close, or bring the end nearer.  In the hub's thread; does not yield."""
        self._patience = patience
        if not self.closes:
            self._closes_now()
            self._stop.set()
            self._closing.start()
            return
        for life in self._now_closing:
            if life.takes_timeout:
                self._begin_to_close(life)

    def _close_all(self) -> None:
        while self._left:
            self._now_closing = self._left[0]
            if not self._closers:
                for life in self._now_closing:
                    self._begin_to_close(life)
            while not all(closer.done.is_set() for closer in self._closers):
                gevent.wait([closer.done for closer in self._closers])
            tasks = [life.task for life in self._now_closing]
            gevent.wait([task.done for task in tasks], timeout=_LEAVE)
            kill_all(tasks)
            self._left.pop(0)
            self._closers.clear()
        self._now_closing = []
        self._ended(self)
        self.done.set()

    def _begin_to_close(self, life: _Life) -> None:
        close = functools.partial(life.close, self._patience)
        outage = Outage(f"closing {life.name}", None, self._stop)
        closer = Guarded(close, f"child-close-{life.number}", outage)
        self._closers.append(closer)
        closer.start()


class _Life:
    """One child, from its first start to its end."""

    def __init__(
        self,
        number: int,
        child: typing.Any,
        deaths: Deaths,
        stop: wakeups.Event,
        give_up: typing.Callable[[_Life, BaseException | None], None],
    ) -> None:
        self.number = number
        self.child = child
        self.name = _name(child)
        self.deaths = deaths
        self._stop = stop
        self._give_up = give_up
        self._pause = 0.0  # seconds before the next start; kept if the greenlet is hit
        self.takes_timeout = _takes_timeout(child.close)
        self.tried = wakeups.Event()
        self.task = Guarded(
            self._live, f"child-{number}", Outage(f"waiting for {self.name}", None, stop)
        )

    def _live(self) -> None:
        while not self._waits_in_vain():
            began = clock.monotonic()
            try:
                self._live_once()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if isinstance(error, Exception) or not self._lives_elsewhere():
                    self._died(error, clock.monotonic() - began)
                if not isinstance(error, Exception):
                    raise
            else:
                self._died(None, clock.monotonic() - began)
            finally:
                self.tried.set()
        self.tried.set()

    def _lives_elsewhere(self) -> bool:
        """Whether this greenlet only waits for it: what is thrown here is no end of the child."""
        return hasattr(self.child, "join") and bool(getattr(self.child, "is_running", False))

    def _waits_in_vain(self) -> bool:
        """Wait before the next life; whether there is none."""
        self._stop.wait(self._pause)
        self._pause = 0.0
        return self._stop.is_set()

    def _live_once(self) -> None:
        """Returns when the child has ended."""
        start, join = getattr(self.child, "start", None), getattr(self.child, "join", None)
        run = getattr(self.child, "run", None)
        if join is None and run is not None:
            self.tried.set()
            run()
            return
        if start is not None:
            start()
        self.tried.set()
        if self._stop.is_set():  # it may have been closed before it had started
            self.close(lambda _: 0.0)
        if join is None:
            self._stop.wait()  # nobody can tell how it is
        else:
            join()

    def _died(self, error: BaseException | None, lived: float) -> None:
        if self._stop.is_set():
            if error is not None:
                log.error("supervisor: %s failed while closing", self.name, exc_info=error)
            return
        pause = self.deaths.died(lived)
        if pause is None:
            self._give_up(self, error)
            return
        self._pause = pause
        how = "ended" if error is None else "died"
        log.error(
            "supervisor: %s %s; it starts again in %g s", self.name, how, pause, exc_info=error
        )

    def close(self, patience: Patience) -> None:
        """Close the child; what that raises is logged.  Yields."""
        try:
            if isinstance(self.child, Supervisor):
                self.child._close(patience)
            elif self.takes_timeout:
                self.child.close(timeout=patience(self.child))
            else:
                self.child.close()
        except Exception:
            log.exception("supervisor: closing %s failed", self.name)


def _own_patience(child: typing.Any) -> float | None:
    """As long as the child's own options say."""
    seconds: float | None = getattr(getattr(child, "options", None), "close_timeout", None)
    return seconds


def _place(child: typing.Any) -> int:
    """In the order of the close: who asks others to do something, who works, who is asked how
    the workers are."""
    if isinstance(child, Worker):
        return 1
    return 2 if hasattr(child, "multi_call") else 0


def _name(child: typing.Any) -> str:
    kind = type(child).__name__
    queue = getattr(child, "queue_name", None)
    return f"{kind} of queue {queue}" if isinstance(queue, str) else kind


def _takes_timeout(close: typing.Callable[..., object]) -> bool:
    try:
        return "timeout" in inspect.signature(close).parameters
    except (TypeError, ValueError):  # of C code
        return False


def _check_child(field: str, child: object) -> None:
    def has(name: str) -> bool:
        return not isinstance(child, type) and callable(getattr(child, name, None))

    if not has("close"):
        raise TypeError(f"{field}: something that can be closed is needed, got {show(child)}")
