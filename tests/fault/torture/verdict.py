"""What came of a torture: the records and what is in Redis, held against each other.

Pure: lines and hashes go in, counts and violations come out.  What may never happen:

- *contradicted*: who was told `cancelled` or `stopped` was wrong: the job ran after that, or
  completed, although it was not asked for with ``retry=True``; who was told `finished`,
  `not_found` or `completed`, although it was otherwise; one that a request forbade to run again
  did; one that only a request can end ended otherwise; one failed that nobody had cancelled;
- *twice*: a job ran twice at once, its end was told twice, or it began more often than it may;
- *misplaced*: a job is not in exactly one place, and that one of its ends; or a lock is left; or
  what is in its hash does not agree with its place;
- *unanswered*: a request without an outcome.

Where a run was taken away from its worker (``force=True``), or its worker has lost the lock, a
soft worker lets it go on beside the next one (cancellation.md 3.3); its result is refused.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import typing

from tests.fault.ordeal.record import Line
from tests.fault.torture.app import KINDS, NOT_YET

__all__ = ["FINAL", "PLACES", "Verdict", "judge"]

FINAL: typing.Final = ("completed", "failed")
PLACES: typing.Final = (
    "wait",
    "paused",
    "active",
    "delayed",
    "prioritized",
    "waiting-children",
    *FINAL,
)
_STATUSES: typing.Final = (
    *("cancelled", "requested", "stopped", "completed", "finished", "not_found"),
    "unknown",  # Redis could not be reached, and it is asked again
)
#: Signs of life that a run may give after another has begun elsewhere: when a process that stood
#: still goes on, what is due comes in one turn of its hub, the end of the lock among it.
_LATE_TICKS: typing.Final = 2


@dataclasses.dataclass
class Run:
    """One run of a job."""

    name: str
    pid: int
    start: float
    end: float | None = None  # of its processor, or of its process
    ticks: list[float] = dataclasses.field(default_factory=list)
    told: list[str] = dataclasses.field(default_factory=list)

    def is_open_at(self, at: float) -> bool:
        """Whether a request of that moment finds it; where that is not certain, `False`."""
        return self.start < at and self.end is not None and at < self.end

    def is_alive_after(self, at: float) -> bool:
        return "lock_lost" not in self.told and sum(one > at for one in self.ticks) > _LATE_TICKS


@dataclasses.dataclass
class Answered:
    """One answer about one job."""

    number: int
    asked_at: float
    at: float
    status: str
    stage: str | None
    retry: bool
    force: bool


@dataclasses.dataclass
class Story:
    """All that is known of one job."""

    job_id: str
    kind: str = ""
    is_endless: bool = False
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    answers: list[Answered] = dataclasses.field(default_factory=list)
    ends: list[str] = dataclasses.field(default_factory=list)
    numbers: set[int] = dataclasses.field(default_factory=set)  # of all requests, heard or not
    is_hinted: bool = False
    places: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Verdict:
    """Counts, and the violations in words."""

    counts: collections.Counter[str]
    violations: list[str]

    def table(self) -> str:
        """The counts, a line a kind."""
        groups: dict[str, list[str]] = collections.defaultdict(list)
        for name, count in sorted(self.counts.items()):
            group, _, one = name.partition(": ")
            groups[group].append(f"{one} {count}" if one else str(count))
        return "\n".join(f"{group}: {', '.join(ones)}" for group, ones in groups.items())


def judge(
    lines: collections.abc.Iterable[Line],
    places: dict[str, list[str]],
    hashes: dict[str, dict[str, str]],
    violations: collections.abc.Iterable[str] = (),
) -> Verdict:
    """The verdict on all jobs; `places` has the ids in each place, and of the locks."""
    verdict = Verdict(collections.Counter(), list(violations))
    ordered = sorted(lines, key=lambda line: line.at)
    stories = _gather(ordered, verdict)
    for place, ids in places.items():
        for job_id in ids:
            if job_id not in stories:
                verdict.violations.append(f"misplaced: {job_id} is in {place}, and was not added")
            elif place == "lock":
                verdict.violations.append(f"misplaced: the lock of {job_id} is left")
            else:
                stories[job_id].places.append(place)
                verdict.counts[f"jobs: {place}"] += 1
    for story in stories.values():
        for what in _wrong_with(story, hashes.get(story.job_id, {})):
            verdict.violations.append(f"{what}: {story}")
    return verdict


def _gather(lines: list[Line], verdict: Verdict) -> dict[str, Story]:
    stories: dict[str, Story] = {}
    runs: dict[str, Run] = {}
    asked: dict[int, Line] = {}
    counts, missing = verdict.counts, set[tuple[int, str]]()
    for line in lines:
        what = line.what
        if line.tag == "added":
            story = stories.setdefault(what[0], Story(what[0]))
            story.kind, story.is_endless = what[1:]
            counts[f"added: {what[1]}"] += 1
        elif line.tag == "start":
            run, job_id, _, _ = what  # an add whose answer was late may run before it is told
            story = stories.setdefault(job_id, Story(job_id))
            runs[run] = story.runs[run] = Run(run, line.pid, line.at)
            counts["runs"] += 1
        elif line.tag == "tick":
            runs[what[0]].ticks.append(line.at)
        elif line.tag == "end":
            runs[what[0]].end = line.at
        elif line.tag == "told":
            counts[f"told: {what[1]}"] += 1
            if what[0] in runs:
                runs[what[0]].told.append(what[1])
            if what[1] in FINAL and what[2] in stories:
                stories[what[2]].ends.append(what[1])
        elif line.tag == "asked":
            asked[what[0]] = line
            missing |= {(what[0], job_id) for job_id in what[1]}
            for job_id in what[1]:
                if job_id in stories:
                    stories[job_id].numbers.add(what[0])
        elif line.tag == "answered":
            missing.discard((what[0], what[1]))
            _note_answer(line, asked[what[0]], stories, verdict)
        elif line.tag in ("cut", "hinted", "killed", "redis-hangs", "redis-stops", "stood-still"):
            counts[f"happened: {line.tag}"] += 1
            if line.tag == "hinted":
                stories[what].is_hinted = True
            if line.tag == "killed":
                for one in runs.values():
                    one.end = line.at if one.pid == what and one.end is None else one.end
    verdict.violations += [f"unanswered: {one}" for one in sorted(missing)]
    return stories


def _note_answer(line: Line, asked: Line, stories: dict[str, Story], verdict: Verdict) -> None:
    number, job_id, how, status, state, stage = line.what
    verdict.counts[f"answers: {status}"] += 1
    way = "forced" if how.get("force") else "hard" if how.get("hard") else "soft"
    verdict.counts[f"asked: {way}"] += 1
    if how.get("retry"):
        verdict.counts["asked: with retry"] += 1
    if stage is not None:
        verdict.counts[f"stages: {stage}"] += 1
    if status in ("cancelled", "requested", "stopped"):
        verdict.counts[f"was: {_said(state, stories.get(job_id))}"] += 1
    if status not in _STATUSES:
        verdict.violations.append(f"unanswered: {line}")
    if job_id not in stories:
        if status not in ("not_found", "unknown"):
            verdict.violations.append(f"contradicted: {job_id} does not exist: {line}")
        return
    stories[job_id].answers.append(
        Answered(
            *(number, asked.at, line.at, status, stage),
            retry=bool(how.get("retry")),
            force=bool(how.get("force")),
        )
    )


def _said(state: str, story: Story | None) -> str:
    """A state, in the words of the kinds."""
    if state == "active" and story is not None:
        return f"running {story.kind}"
    return "in back-off" if state == "delayed" and story and story.kind == "again" else state


def _wrong_with(story: Story, fields: dict[str, str]) -> collections.abc.Iterator[str]:
    yield from _wrong_place(story, fields)
    runs = sorted(story.runs.values(), key=lambda run: run.start)
    yield from _wrong_runs(story, runs, fields)
    for answer in story.answers:
        yield from _wrong_answer(story, answer, runs)
    if story.is_endless and "completed" in story.places:
        yield "contradicted: it never ends by itself, and is completed"
    if story.places == ["failed"] and story.kind != "fails" and not story.is_hinted:
        yield from _wrong_reason(story, fields.get("failedReason", ""))


def _wrong_reason(story: Story, reason: str) -> collections.abc.Iterator[str]:
    possible = {f'Job cancelled: {{"torture": {number}}}' for number in story.numbers}
    if story.kind == "again" and not all(answer.retry for answer in story.answers):
        possible.add(NOT_YET)  # an error of its own keeps its text, and is final (2.5)
    if reason not in possible:
        yield f"contradicted: nobody has asked for what it failed with: {reason}"


def _wrong_place(story: Story, fields: dict[str, str]) -> collections.abc.Iterator[str]:
    if len(story.places) != 1 or story.places[0] not in FINAL:
        yield f"misplaced: it is in {story.places}"
        return
    if "finishedOn" not in fields:
        yield f"misplaced: it has not finished: {fields}"
    if story.places == ["failed"] and "failedReason" not in fields:
        yield f"misplaced: it has no reason: {fields}"
    if story.places == ["completed"] and (
        "returnvalue" not in fields or "defa" in fields or "gqc" in fields
    ):
        yield f"misplaced: it is not what a completed job is: {fields}"
    if story.ends and story.ends[-1] not in story.places:
        yield f"contradicted: its end was told otherwise: {story.ends}"


def _wrong_runs(
    story: Story, runs: list[Run], fields: dict[str, str]
) -> collections.abc.Iterator[str]:
    if len(story.ends) > 1:
        yield "twice: its end was told again"
    forced = [answer.asked_at for answer in story.answers if answer.force]
    for number, run in enumerate(runs):
        for later in runs[number + 1 :]:
            if run.is_alive_after(later.start) and not any(at < later.start for at in forced):
                yield f"twice: it ran twice at once: {run} {later}"
    most = KINDS[story.kind][1].get("attempts", 1) if story.kind else 1
    made, stalls = int(fields.get("atm", 0)), int(fields.get("stc", 0))
    if made > most or len(runs) > made + stalls:
        yield f"twice: it has run too often: atm {made} of {most}, stc {stalls}"


def _wrong_answer(story: Story, answer: Answered, runs: list[Run]) -> collections.abc.Iterator[str]:
    later = [run for run in runs if run.start > answer.at]
    completed = "completed" in story.places
    status = answer.status
    if status == "cancelled" and (later or completed):
        yield f"contradicted: it was told to be cancelled: {answer}"
    if status == "stopped":
        found = [run for run in runs if run.start < answer.asked_at]
        if not answer.retry and (later or completed):
            yield f"contradicted: it was told to be stopped for good: {answer}"
        if not answer.force and any(run.is_alive_after(answer.at) for run in found):
            yield f"contradicted: it was told to be stopped, and ran on: {answer}"
    if status == "requested" and not answer.retry:
        # Without one that it found, the run that it was for may just have been taken.
        found_one = any("lock_lost" not in run.told and run.is_open_at(answer.at) for run in runs)
        if len(later) > (not found_one):
            yield f"contradicted: it was told to be asked, and was run again: {answer}"
    if status == "completed" and not completed:
        yield f"contradicted: it was told to be completed: {answer}"
    if status == "finished" and later:
        yield f"contradicted: it was told to be over: {answer}"
    if status == "not_found":
        yield f"contradicted: it exists: {answer}"
