"""The exceptions of geventq.

Two families, on purpose.  `GeventqError` is an ordinary `Exception`: something went wrong, or
a processor asks for its job to be moved.  `JobCancelled` and `JobKilled` are `BaseException`s:
a loop with ``except Exception: log`` around each item must not eat a cancellation
(cancellation.md section 1).  Nothing here imports gevent or redis.
"""

from __future__ import annotations

import typing

from geventq.checks import Seconds, check_seconds, seconds_text

if typing.TYPE_CHECKING:
    from geventq.cancellation.request import Cancellation

__all__ = [
    "DelayedError",
    "GeventqError",
    "JobCancelled",
    "JobKilled",
    "LockLostError",
    "RateLimitError",
    "RedisUnavailableError",
    "UnrecoverableError",
    "WaitingChildrenError",
    "WaitingError",
]


# What `pickle` and `copy` make an error from anew, if its text is not its only argument: the
# class, the arguments, the attributes.
_Made = tuple[type, tuple[typing.Any, ...], dict[str, typing.Any]]


class GeventqError(Exception):
    """The base of every error that geventq raises, apart from `ValueError`/`TypeError` for
    arguments, `gevent.Timeout`, and the two cancellation exceptions below."""

    results: typing.Sequence[typing.Any] = ()
    """What `Queue.cancel_jobs` had done all the same, in the order of its jobs; `None` for one of
    which that is not known, or that was left as it is."""


class RedisUnavailableError(GeventqError, ConnectionError):
    """Redis could not be reached, did not answer in time, or refuses to serve for now
    (``LOADING``, ``READONLY``, ``OOM``...: cancellation.md 3.7).  The message names the host
    and the port, never the password."""

    may_be_done: bool = False
    """Whether what was asked for may have been carried out all the same, now or later: it had
    been sent, and no answer came (cancellation.md 3.6).  `False` is certain: nothing was done."""
    was_logged: bool = False
    """Whether the `geventq` logger has told of it, as the beginning of an outage."""


class LockLostError(GeventqError):
    """The attempt no longer owns its job: another worker may be running it, so this write
    was refused (cancellation.md 3.4).  `LockLost` tells what else has this name."""


class UnrecoverableError(GeventqError):
    """Raised by a processor: fail the job for good, whatever attempts are left."""


class _MoveError(GeventqError):
    """A processor asks for its job to be moved instead of being failed."""


class DelayedError(_MoveError):
    """Raised by a processor: put the job into *delayed* and run it again after `seconds`.
    The attempt is not counted.  `ValueError` or `TypeError` for what is no time."""

    def __init__(self, seconds: Seconds = 0.0) -> None:
        self.seconds = check_seconds("seconds", seconds)
        super().__init__(f"move to delayed for {seconds_text(self.seconds)} s")

    def __reduce__(self) -> _Made:
        return type(self), (self.seconds,), self.__dict__


class RateLimitError(_MoveError):
    """Raised by a processor: put the job back to the front of *waiting* and take no job for
    `seconds`.  The attempt is not counted.  `ValueError` or `TypeError` for what is no time."""

    def __init__(self, seconds: Seconds = 0.0) -> None:
        self.seconds = check_seconds("seconds", seconds)
        super().__init__(f"rate limited for {seconds_text(self.seconds)} s")

    def __reduce__(self) -> _Made:
        return type(self), (self.seconds,), self.__dict__


class WaitingError(_MoveError):
    """Raised by a processor: put the job back to the front of *waiting*.  The attempt is not
    counted."""

    def __init__(self) -> None:
        super().__init__("move to waiting")

    def __reduce__(self) -> _Made:
        return type(self), (), self.__dict__


class WaitingChildrenError(_MoveError):
    """Raised by a processor: put the job into *waiting-children* until its children are done.

    Not before there are flows: until then no job has children, and one that raises this fails for
    good, with a text that names it.
    """

    def __init__(self) -> None:
        super().__init__("move to waiting-children")

    def __reduce__(self) -> _Made:
        return type(self), (), self.__dict__


class JobCancelled(BaseException):
    """Raised at a checkpoint of a job that was cancelled.

    A `BaseException`, so that ``except Exception`` does not swallow it, and not a
    `GreenletExit`, because gevent takes one for a successful end (cancellation.md section 1).
    `cancellation` says who asked, why and how.
    """

    def __init__(self, cancellation: Cancellation) -> None:
        super().__init__(str(cancellation))
        self.cancellation = cancellation

    def __reduce__(self) -> _Made:
        return type(self), (self.cancellation,), self.__dict__


class JobKilled(JobCancelled):
    """Thrown into the greenlet of a job that is cancelled hard, wherever it sits."""
