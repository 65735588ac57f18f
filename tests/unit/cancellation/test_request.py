"""What a request says and how two merge (cancellation.md 2.2, 2.3, 2.6)."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import typing

import pytest

from geventq import Cancellation, LockLost


@pytest.mark.parametrize("reason", [None, "", 0, False, [], {}])
def test_a_cancellation_is_truthy_whatever_the_reason(reason: object) -> None:
    """2.3: a reason of `None` is a reason."""
    assert Cancellation(reason)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Cancellation(), "Job cancelled"),
        (Cancellation(""), "Job cancelled"),
        (Cancellation("too dear"), "Job cancelled: too dear"),
        (Cancellation({"code": 7}), 'Job cancelled: {"code": 7}'),
        (Cancellation("déjà vu"), "Job cancelled: déjà vu"),
        (Cancellation(0), "Job cancelled: 0"),
        (Cancellation(LockLost("17"), "lock_lost"), 'Job cancelled: {"lockLost": "17"}'),
        (Cancellation.timed_out(0.5), "Job timed out after 0.5 s"),
        (Cancellation.timed_out(30.0), "Job timed out after 30 s"),
        (Cancellation.timed_out(14 * 86400.0), "Job timed out after 1209600 s"),
        (Cancellation.timed_out(1234567.25), "Job timed out after 1234567.25 s"),
        (Cancellation.timed_out(0.1 + 0.2), "Job timed out after 0.3 s"),
        (Cancellation.timed_out(1e-9), "Job timed out after 1e-09 s"),
    ],
)
def test_the_failed_reason(said: Cancellation, text: str) -> None:
    """2.6: the text a cancelled job fails with."""
    assert said.failed_reason() == text


@pytest.mark.parametrize("reason", ["x" * 16_382, ["\u00e9" * 8_000], "\x01" * 2_730])
def test_a_reason_has_16_kib_of_json_at_most(reason: typing.Any) -> None:
    """5.6: wherever it is given, for it may have to be recorded."""
    assert Cancellation(reason).reason == reason
    longer = reason + "xxxxx" if isinstance(reason, str) else [*reason, "x" * 400]
    with pytest.raises(ValueError, match="reason: at most 16384 bytes of JSON"):
        Cancellation(longer)


def test_a_sentence_names_the_reason() -> None:
    assert "too dear" in str(Cancellation("too dear"))
    assert "17" in str(Cancellation(LockLost("17"), "lock_lost"))


@pytest.mark.parametrize(
    "said",
    [
        Cancellation({"a": [1, None]}, "remote", True, False, 5.5, "ops"),
        Cancellation(LockLost("17"), "lock_lost"),
        Cancellation.timed_out(3),
    ],
)
def test_json_and_back(said: Cancellation) -> None:
    assert Cancellation.from_json(json.loads(json.dumps(said.to_json()))) == said


@pytest.mark.parametrize(
    "record",
    [{}, {"kind": "user"}, [], None, {**Cancellation().to_json(), "hard": 1}]
    + [{**Cancellation().to_json(), "kind": kind} for kind in ("nobody", 3, None)],
)
def test_another_shape_is_refused(record: typing.Any) -> None:
    with pytest.raises(ValueError, match=r"cancellation|kind"):
        Cancellation.from_json(record)


def test_a_reason_that_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError, match="reason"):
        Cancellation(object())
    with pytest.raises(ValueError, match="reason"):
        Cancellation(float("nan"))
    with pytest.raises(ValueError, match="reason"):
        Cancellation("\ud800")


def test_what_was_checked_is_what_is_kept() -> None:
    """2.3: the reason's owner may change it afterwards; what is told is what was asked."""
    reason: dict[str, typing.Any] = {"codes": [1, {"deep": (2, 3)}]}
    request = Cancellation(reason)
    reason["codes"][1]["deep"] = object()
    reason["late"] = float("nan")
    assert request.reason == {"codes": [1, {"deep": [2, 3]}]}
    assert json.loads(json.dumps(request.to_json()))["reason"] == request.reason
    assert dataclasses.replace(request, hard=True).reason == request.reason


@pytest.mark.parametrize("reason", [{"codes": [1]}, [{"codes": 1}]], ids=["a dict", "a list"])
def test_who_reads_a_reason_cannot_change_it(reason: typing.Any) -> None:
    """2.2, 2.6: a job that writes into what its token shows fails with what was asked all the same,
    and no other reader sees it."""
    request = Cancellation(reason, retry=False)
    text, told = request.failed_reason(), request.to_json()
    for read in (request.reason, dataclasses.replace(request, hard=True).reason):
        if isinstance(read, dict):
            read["codes"].append(object())
        else:
            read[0]["codes"] = float("nan")
    assert request.reason == reason
    assert (request.failed_reason(), request.to_json()) == (text, told)
    for again in (copy.copy(request), pickle.loads(pickle.dumps(request))):
        assert (again, again.reason) == (request, reason)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ({"file": "caf\udce9.txt"}, ValueError),
        ({"caf\udce9.txt": 1}, ValueError),
        (["a", ["b", "\ud800"]], ValueError),
        ({"n": float("inf")}, ValueError),
        ({"s": {1, 2}}, TypeError),
        ({"b": b"x"}, TypeError),
        ({(1, 2): 3}, TypeError),
    ],
)
def test_a_reason_is_refused_at_the_door_by_the_rules_of_the_wire(
    reason: object, error: type[Exception]
) -> None:
    """2.3: by the encoder that will write it: what passes can be sent, stored and told."""
    with pytest.raises(error, match="reason"):
        Cancellation(reason)


def test_a_reason_that_contains_itself_is_refused() -> None:
    reason: list[object] = []
    reason.append(reason)
    with pytest.raises(ValueError, match="reason"):
        Cancellation(reason)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cancellation().reason = "other"  # type: ignore[misc]


FIRST = Cancellation("first", "user", requested_at=1.0)


@pytest.mark.parametrize(
    ("first", "later", "merged"),
    [
        # nothing stronger
        (FIRST, Cancellation("later", "user"), FIRST),
        (FIRST, Cancellation("later", "shutdown"), FIRST),
        # what is stronger is added; of equals the first gives the text
        (FIRST, Cancellation("later", "remote", hard=True), dataclasses.replace(FIRST, hard=True)),
        # no retry decides the outcome, and so gives the text
        (
            FIRST,
            Cancellation("later", "user", retry=False, requested_at=2.0),
            Cancellation("later", "user", retry=False, requested_at=2.0),
        ),
        # a user's request outranks a time limit, which outranks a shutdown
        (
            Cancellation("bye", "shutdown", hard=True),
            Cancellation("late", "timeout", requested_at=2.0),
            Cancellation("late", "timeout", hard=True, requested_at=2.0),
        ),
        (
            Cancellation("late", "timeout"),
            Cancellation("p", "parent", requested_at=2.0),
            Cancellation("p", "parent", requested_at=2.0),
        ),
        # a lost lock ends the attempt whatever was asked
        (
            Cancellation("no", "user", retry=False),
            Cancellation(LockLost("17"), "lock_lost", requested_at=2.0),
            Cancellation(LockLost("17"), "lock_lost", retry=False, requested_at=2.0),
        ),
    ],
)
def test_merging(first: Cancellation, later: Cancellation, merged: Cancellation) -> None:
    """2.2: a later request adds what is stronger, and only that."""
    assert first.merged(later) == merged
    if merged is first:
        assert first.merged(later) is first
