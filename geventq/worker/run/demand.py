"""What is asked of a run from elsewhere, and how much of it a worker with a secret believes
(cancellation.md 2.2, 4.6, 8).

Pure functions over records and messages: knows neither runs nor Redis; no greenlets run here.
"""

from __future__ import annotations

import dataclasses
import typing

if typing.TYPE_CHECKING:
    from geventq.cancellation import Cancellation
    from geventq.control.messages import Message
    from geventq.record import Record

__all__ = ["Demand", "OwnMode"]


class Demand(typing.NamedTuple):
    """What a record or a message asks of a run."""

    request: Cancellation
    hard: bool | None
    """`None`: the worker's own mode decides."""
    kill_after: float | None
    """Seconds; `None`: the worker's own."""
    nonces: tuple[str, ...]
    is_waited_for: bool


class OwnMode(typing.NamedTuple):
    """How a worker carries out what does not say it: its `cancel_mode` and `kill_after`."""

    is_hard: bool
    grace: float

    def asked_by(self, record: Record) -> Demand:
        """What a record asks.  Of several requests in it one may have left the grace to the
        worker: the shorter one counts."""
        kill_after, left = record.kill_after, record.leaves_grace
        if kill_after is not None and (self.is_hard if left is None else left):
            kill_after = min(kill_after, self.grace)
        return Demand(record.request, record.hard, kill_after, record.nonces, record.is_waited_for)

    def believed(self, asked: Demand, signed: typing.Sequence[Message]) -> Demand:
        """What is asked, with a kill only where one of the `signed` requests asks for it."""
        modes = {one.hard for one in signed}
        hard = True if True in modes else None if None in modes else False
        graces = [
            self.grace if one.kill_after is None else one.kill_after
            for one in signed
            if one.hard or (one.hard is None and (self.is_hard or one.kill_after is not None))
        ]
        return asked._replace(
            request=dataclasses.replace(asked.request, hard=hard is True),
            hard=hard,
            kill_after=min(graces, default=None),
        )

    def strength(self, asked: Demand) -> tuple[bool, float]:
        """Sorts demands by how soon they kill, if at all."""
        hard, kill_after = asked.hard, asked.kill_after
        if hard is None:
            hard = self.is_hard or kill_after is not None
        grace = self.grace if kill_after is None else kill_after
        return hard, -round(grace, 6) if hard else 0.0  # a record that was merged has 14 digits
