"""5.6: what is published by anybody is checked before it means anything."""

from __future__ import annotations

import json
import logging
import typing

import pytest

from geventq.control.messages import LARGEST, Call, Ignored, Message, Refused, parse

PLAIN: typing.Final = {"queue": "q", "jobId": "1", "reason": {"a": []}}
OURS: typing.Final = PLAIN | {
    "prefix": "bull",
    "db": 0,
    "nonce": "n",
    "atm": 2,
    "ts": 17,
    "at": 2000,
    "hard": True,
    "killAfter": 1.5,
    "retry": False,
    "by": "me",
    "waits": True,
    "forced": False,
}


def sent(message: object) -> bytes:
    return json.dumps(message).encode()


def test_a_plain_message_asks_softly_and_for_this_run_only() -> None:
    """5.1: what else it says is not for whoever has no record to show."""
    message = parse(sent(PLAIN | {"hard": True, "retry": False, "killAfter": 0, "forced": True}))
    assert isinstance(message, Message)
    assert (message.queue, message.job_id, message.nonce) == ("q", "1", None)
    assert (message.hard, message.kill_after, message.is_forced) == (None, None, False)
    request = message.request
    assert (request.reason, request.kind) == ({"a": []}, "remote")
    assert (request.hard, request.retry) == (False, True)


def test_a_message_of_ours() -> None:
    message = parse(sent(OURS))
    assert isinstance(message, Message)
    assert (message.prefix, message.database, message.nonce) == ("bull", 0, "n")
    assert (message.attempts_made, message.timestamp, message.is_waited_for) == (2, 17, True)
    assert (message.hard, message.kill_after) == (True, 1.5)
    request = message.request
    assert (request.hard, request.retry, request.requested_at) == (True, False, 2.0)
    assert request.requested_by == "me"
    assert message.signed is None


CALL = {
    "queue": "q",
    "call": "ping",
    "args": [1],
    "prefix": "bull",
    "db": 0,
    "nonce": "n",
    "at": 17,
}


def test_a_call_to_a_worker() -> None:
    """5.7."""
    assert parse(sent(CALL)) == Call("q", "ping", [1], "bull", 0, "n", 17)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: None} for name in CALL if name not in ("queue", "args", "call")),
        *({name: {}} for name in CALL),
        *({"nonce": nonce} for nonce in ("", "a:b", "n" * 65, "n\n")),
        {"at": -1},
    ],
    ids=str,
)
def test_a_call_that_is_no_call_is_refused(wrong: dict[str, object]) -> None:
    """5.6: a nonce becomes part of a key, so that it may not be just anything."""
    with pytest.raises(Refused) as refused:
        parse(sent(CALL | wrong))
    assert refused.value.kind == "wrong types"


def without(member: str) -> dict[str, object]:
    return {name: value for name, value in OURS.items() if name != member}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"queue": NaN}', "not JSON"),
        (b"[" * 30_000, "not JSON"),
        (b'{"queue":"q","jobId":"1","reason":' + b"[" * 9000 + b"]" * 9000 + b"}", "*"),
        (b" " * (LARGEST + 1), "too large"),
        (b"x" * 10 * 2**20, "too large"),
        (b"[]", "wrong types"),
        (b"null", "wrong types"),
        (b'"text"', "wrong types"),
        *[(sent({**PLAIN, "queue": one}), "wrong types") for one in (None, 1, [], {}, True)],
        *[(sent({**PLAIN, "jobId": one}), "wrong types") for one in (None, "", 1, [], {}, 1.5)],
        *[(sent({**PLAIN, "nonce": one}), "wrong types") for one in ("n", 1, [], False)],
        *[(sent(without(one)), "wrong types") for one in ("prefix", "db", "atm", "ts", "at")],
        *[(sent({**OURS, "db": one}), "wrong types") for one in (-1, 0.5, "0", True, 10**30)],
        *[(sent({**OURS, "hard": one}), "wrong types") for one in (1, "yes", [])],
        *[(sent({**OURS, "killAfter": one}), "wrong types") for one in (-1, "1", True, 1e300)],
        *[(sent({**OURS, "atm": one}), "wrong types") for one in (-1, 0.5, "1", None)],
        *[(sent({**OURS, "at": one}), "wrong types") for one in ("now", -5, None)],
        *[(sent({**OURS, "by": one}), "wrong types") for one in (1, [], {})],
        *[(sent({**OURS, "waits": one}), "wrong types") for one in (1, "x")],
        (sent({"queue": "q", "call": 1}), "wrong types"),
    ],
)
def test_garbage_is_refused_by_its_kind(data: bytes, kind: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(data)
    assert kind in ("*", refused.value.kind)
    assert str(refused.value)


def test_each_kind_is_told_once_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    ignored = Ignored("the workers of queue q", "q")
    with caplog.at_level(logging.WARNING, "geventq"):
        for _ in range(3):
            ignored.note("not JSON", "why")
            ignored.note("too large", "why")
    assert len(caplog.messages) == 2
    assert ignored.counts == {"not JSON": 3, "too large": 3}
