"""What came of an ordeal: the records and what is in Redis, held against each other.

Pure: lines and hashes go in, counts and violations come out.  What is counted:

- *lost*: an add was confirmed, and in the end the job is nowhere;
- *doubled*: an add stored two jobs, or one that was refused stored one; or a job ran in two
  places: a run still showed signs of life after a later one had begun;
- *too often*: a job began although its end had been told, was told to have ended twice, or began
  more often than it ended, stalled and was given back;
- *active*: left in `active`, or locked, when all was calm;
- *contradicted*: a cancel that took effect was told as completed, or the job ran again although
  that was forbidden; one that was cancelled from afar before it ran did run; a waiter was told
  another end than the job had; or a job is completed, and each of its runs was told otherwise.

After the data were taken away nothing is expected of what was added before.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import json
import typing

from tests.fault.ordeal.app import KINDS
from tests.fault.ordeal.record import Line

__all__ = ["COLUMNS", "Verdict", "judge"]

COLUMNS: typing.Final = (
    *("added", "run", "lost", "doubled", "too often", "active", "contradicted"),
)
#: Signs of life that a run may give after another has begun elsewhere: when a process that stood
#: still goes on, what is due comes in one turn of its hub, the end of the lock among it.
_LATE_TICKS: typing.Final = 2
_ENDS: typing.Final = ("completed", "failed")


@dataclasses.dataclass
class Run:
    """One run of one job's processor."""

    name: str
    pid: int
    start: float
    ticks: list[float] = dataclasses.field(default_factory=list)
    told: list[str] = dataclasses.field(default_factory=list)
    asked: list[bool] = dataclasses.field(default_factory=list)  # `retry` of each request

    def __repr__(self) -> str:
        last = f"{self.ticks[-1]:.3f}" if self.ticks else "none"
        return (
            f"<run {self.name} from {self.start:.3f}, {len(self.ticks)} ticks, the last at {last}, "
            f"asked {self.asked}, told {self.told}>"
        )


@dataclasses.dataclass
class Given:
    """One add, by its serial number, and what came of it."""

    serial: str
    kind: str
    at: float
    ids: set[str] = dataclasses.field(default_factory=set)  # answered, or seen running
    added_at: float | None = None
    may_be_stored: bool = True
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    ends: list[tuple[float, str]] = dataclasses.field(default_factory=list)  # as they were told
    waited: list[typing.Any] = dataclasses.field(default_factory=list)
    cancelled: list[tuple[float, str]] = dataclasses.field(default_factory=list)  # from afar
    stored: list[dict[str, str]] = dataclasses.field(default_factory=list)
    is_excused: bool = False  # the data were taken away meanwhile


class Verdict:
    """Counts by the fault during which a job was added, and the violations in words."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.violations: list[str] = []

    def violated(self, phase: str, column: str, what: str) -> None:
        self.counts[phase][column] += 1
        self.violations.append(f"{phase}: {column}: {what}")


def judge(
    lines: collections.abc.Iterable[Line],
    stored: dict[str, dict[str, str]],
    left: dict[str, list[str]],
    phases: list[tuple[float, str]],
    losses: list[tuple[float, float]],
) -> Verdict:
    """The verdict on all jobs that were added; `phases` are the beginnings of the faults."""
    given = _gather(sorted(lines, key=lambda line: line.at))
    for job_id, fields in stored.items():
        serial = json.loads(fields["data"])["serial"]
        if serial in given:
            given[serial].ids.add(job_id)
            given[serial].stored.append(fields)
    verdict = Verdict()
    for one in given.values():
        phase = next((name for at, name in reversed(phases) if at <= one.at), phases[0][1])
        one.is_excused = any(one.at <= until for _, until in losses)
        _judge_one(verdict, phase, one)
    for what, ids in left.items():
        for job_id in ids:
            verdict.violated(phases[-1][1], "active", f"{what}: {job_id}")
    return verdict


def _gather(lines: list[Line]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    runs: dict[str, tuple[Given, Run]] = {}
    for line in lines:
        what = line.what
        if line.tag == "adding":
            given.setdefault(what[0], Given(what[0], what[1], line.at))
        elif line.tag == "start":
            run, job_id, serial, _ = what
            if serial not in given:  # of an earlier round, which has been judged
                continue
            one = given[serial]
            one.ids.add(job_id)
            one.runs[run] = Run(run, line.pid, line.at)
            runs[run] = (one, one.runs[run])
        elif line.tag in ("tick", "asked") and what[0] in runs:
            run_of = runs[what[0]][1]
            if line.tag == "tick":
                run_of.ticks.append(line.at)
            else:
                run_of.asked.append(what[1])
        elif line.tag in ("added", "refused", "told", "waited", "cancelled"):
            serial = what[2] if line.tag == "told" else what[0]
            if serial in given:
                _note(given[serial], line, runs)
    return given


def _note(one: Given, line: Line, runs: dict[str, tuple[Given, Run]]) -> None:
    what = line.what
    if line.tag == "added":
        one.added_at = line.at
        one.ids.add(what[1])
        one.may_be_stored = True
    elif line.tag == "refused":
        one.may_be_stored = what[1] or len(one.ids) > 0
    elif line.tag == "waited":
        one.waited.append(what[1:])
    elif line.tag == "cancelled":
        one.cancelled.append((line.at, what[1]))
    else:
        run, event, _ = what
        if event in _ENDS:
            one.ends.append((line.at, event))
        if run in runs:
            runs[run][1].told.append(event)


def _judge_one(verdict: Verdict, phase: str, one: Given) -> None:
    counts = verdict.counts[phase]
    counts["added"] += one.added_at is not None
    counts["run"] += bool(one.runs)
    runs = sorted(one.runs.values(), key=lambda run: run.start)
    for run in runs:
        _judge_told(verdict, phase, one, run)
    if one.is_excused:
        return
    if one.added_at is not None and not one.stored:
        verdict.violated(phase, "lost", f"{one.serial} {one.kind} {sorted(one.ids)} runs {runs}")
    _judge_doubles(verdict, phase, one, runs)
    _judge_ends(verdict, phase, one, runs)
    _judge_waits(verdict, phase, one)
    _judge_cancels(verdict, phase, one, runs)


def _judge_told(verdict: Verdict, phase: str, one: Given, run: Run) -> None:
    """Each attempt's end is told once, and what was told of a request holds."""
    told = [event for event in run.told if event != "stuck"]
    if told and told not in (
        *(["completed"], ["failed"], ["retrying"], ["lock_lost"], ["cancelled"]),
        *(["cancelled", "failed"], ["cancelled", "retrying"]),
    ):
        verdict.violated(phase, "too often", f"{one.serial} told {told}")
    if run.asked and "completed" in told and _heard(run):
        verdict.violated(phase, "contradicted", f"{one.serial} completed although asked: {run}")
    if False in run.asked and "retrying" in told:
        verdict.violated(phase, "contradicted", f"{one.serial} retried although asked: {run}")


def _heard(run: Run) -> bool:
    """Whether the job went on after it was asked: it looks, or is killed, at the next tick."""
    return bool(run.ticks) and len(run.ticks) < 29


def _judge_doubles(verdict: Verdict, phase: str, one: Given, runs: list[Run]) -> None:
    if len(one.ids) > 1:
        verdict.violated(phase, "doubled", f"{one.serial} was stored as {sorted(one.ids)}")
    if one.added_at is None and not one.may_be_stored and one.ids:
        verdict.violated(phase, "doubled", f"{one.serial} was refused for certain, and is stored")
    for number, run in enumerate(runs):
        for later in runs[number + 1 :]:
            late = [at for at in run.ticks if at > later.start]
            if len(late) > _LATE_TICKS:
                verdict.violated(
                    phase, "doubled", f"{one.serial} {one.kind} ran twice at once: {run} {later}"
                )


def _judge_ends(verdict: Verdict, phase: str, one: Given, runs: list[Run]) -> None:
    if len(one.ends) > 1:
        verdict.violated(phase, "too often", f"{one.serial} ended as {one.ends}")
    if (
        runs
        and any(fields["state"] == "completed" for fields in one.stored)
        and all(run.told and "completed" not in run.told for run in runs)
    ):
        verdict.violated(
            phase, "contradicted", f"{one.serial} is completed, told otherwise: {runs}"
        )
    late = [run for run in runs if one.ends and run.start > one.ends[0][0]]
    if late:
        verdict.violated(phase, "too often", f"{one.serial} ran after its end: {late}")
    for fields in one.stored:
        made, stalls = int(fields.get("atm", 0)), int(fields.get("stc", 0))
        most = KINDS[one.kind][1].get("attempts", 1)
        back = sum(run.told == ["cancelled"] for run in runs)
        if made > most or len(runs) > made + stalls + back:
            verdict.violated(
                phase, "too often", f"{one.serial} atm {made} of {most} stc {stalls}: {runs}"
            )


def _judge_waits(verdict: Verdict, phase: str, one: Given) -> None:
    state = {fields["state"] for fields in one.stored}
    for end in one.waited:
        if end[0] not in state:
            verdict.violated(phase, "contradicted", f"{one.serial} is {state}, told {end}")


def _judge_cancels(verdict: Verdict, phase: str, one: Given, runs: list[Run]) -> None:
    """``cancelled`` means that it will not run; after ``requested`` the run that the request was
    for may begin, and no other."""
    state = {fields["state"] for fields in one.stored}
    for at, status in one.cancelled:
        later = [run for run in runs if run.start > at]
        if len(later) > (status == "requested") and status in ("cancelled", "requested"):
            verdict.violated(phase, "contradicted", f"{one.serial} was {status}, and ran: {later}")
        if status == "cancelled" and "completed" in state:
            verdict.violated(phase, "contradicted", f"{one.serial} was {status}, and completed")
