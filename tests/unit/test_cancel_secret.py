"""8: the secret that requests to cancel are signed with: what it may be, what it signs, and that it
shows itself nowhere."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle
import typing

import pytest

from geventq import CancelBridge, Queue, Worker, WorkerGroup, clock
from geventq.cancel_secret import (
    VARIABLE,
    CancelSecret,
    _warn_of_guessing,
    check_cancel_secret,
    given_secret,
)
from geventq.control.messages import Call, Message, parse
from geventq.control.proofs import LIFE, Proofs
from tests.support.waiting import TurnedClock

SECRET: typing.Final = "seven horses in a row"
TEXT: typing.Final = b'{"queue":"q","reason":[1e3,"\xc3\xa4"]}'

TAKERS: typing.Final = {
    "Queue": lambda **options: Queue("q", **options),
    "Worker": lambda **options: Worker("q", print, **options),
    "WorkerGroup": lambda **options: WorkerGroup("q", **options),
    "CancelBridge": lambda **options: CancelBridge(**options),
}


@pytest.fixture(autouse=True)
def no_secret_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def made(text: str = SECRET) -> CancelSecret:
    return check_cancel_secret("cancel_secret", text)


# -- what it may be ------------------------------------------------------------------------------


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", "at least 4 characters are needed, got a secret of 0"),
        (" \n", "at least 4 characters are needed, got a secret of 0"),
        ("xyz", "at least 4 characters are needed, got a secret of 3"),
        ("long enough\nxyz", "at least 4 characters are needed, got a secret of 3"),
        ("xyzzy-\ud800", "text without lone surrogates is needed"),
        (b"xyzzy-as-bytes", "text is needed, got a bytes"),
        (12345678, "text is needed, got a int"),
        (["xyzzy-in-a-list"], "text is needed, got a list"),
    ],
)
def test_a_bad_one_is_refused_without_being_shown(taker: str, value: object, rule: str) -> None:
    """8: where it is given, with the field and the rule, and never the value."""
    with pytest.raises((TypeError, ValueError)) as raised:
        TAKERS[taker](cancel_secret=value)
    assert str(raised.value) == f"cancel_secret: {rule}"


@pytest.mark.parametrize("taker", TAKERS)
def test_one_of_the_environment_counts_where_none_is_given(
    taker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8: `$GEVENTQ_CANCEL_SECRET`; a bad one is refused by the variable's name."""
    monkeypatch.setenv(VARIABLE, "xyz")
    with pytest.raises(ValueError, match=r"^\$GEVENTQ_CANCEL_SECRET: at least 4 .* secret of 3$"):
        TAKERS[taker]()
    TAKERS[taker](cancel_secret=SECRET)
    monkeypatch.setenv(VARIABLE, "")
    TAKERS[taker]()


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "another secret")
    assert given_secret(SECRET).key == made().key  # type: ignore[union-attr]
    assert given_secret(None).key == made("another secret").key  # type: ignore[union-attr]
    assert Worker("q", print).options.cancel_secret.key == made("another secret").key  # type: ignore[union-attr]
    monkeypatch.delenv(VARIABLE)
    assert given_secret(None) is None


def test_white_space_around_it_makes_no_other_one() -> None:
    """A file's last line break above all."""
    assert made(f"  {SECRET}\r\n").proves(made().signed(TEXT))


@pytest.mark.parametrize("shown", [repr, str, "{!r}".format, lambda one: repr(vars(Worker))])
def test_nothing_shows_it(shown: typing.Callable[[object], str]) -> None:
    """8: not a repr of it, nor of what holds it; an option that is misspelt is not shown either."""
    worker = Worker("q", print, cancel_secret=SECRET)
    for one in (made(), worker, worker.options, Queue("q", cancel_secret=SECRET), [made()]):
        assert SECRET not in shown(one)
        assert SECRET.encode().hex() not in shown(one)
    with pytest.raises(ValueError, match=r"^cancel_secrets: unknown option") as raised:
        Worker("q", print, cancel_secrets=SECRET)  # type: ignore[call-arg]
    assert SECRET not in str(raised.value)


def test_a_copy_of_it_signs_alike() -> None:
    """What a worker is made with may be handed to another process."""
    for one in (copy.deepcopy(made()), pickle.loads(pickle.dumps(made()))):
        assert made().proves(one.signed(TEXT))


def test_of_a_short_one_it_is_said_once_that_it_can_be_guessed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """8: whoever hears a message may try all there are; what it is is not said."""
    _warn_of_guessing.cache_clear()
    for _ in range(3):
        made("x" * 15)
        made("y" * 16)
    (said,) = caplog.messages
    assert said.startswith("cancel_secret: whoever hears one signed message may guess")
    assert "xxx" not in said


# -- what it signs -------------------------------------------------------------------------------


def test_the_signature_is_over_the_text_as_it_is_sent() -> None:
    """8: any language can make it, and it is right whatever its JSON looks like."""
    signed = made().signed(TEXT)
    body = signed[: signed.rindex(b',"sig"')] + b"}"
    told = json.loads(signed)
    assert json.loads(body) == json.loads(TEXT) | {"key": made().key}
    assert told["sig"] == hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert made().proves(signed)
    bare = hmac.new(SECRET.encode(), TEXT, hashlib.sha256).hexdigest().encode()
    assert made().proves(TEXT[:-1] + b',"sig":"%b"}' % bare)


def test_every_changed_byte_makes_it_wrong() -> None:
    """8: over every member."""
    signed = made().signed(TEXT)
    for at in range(len(signed)):
        changed = bytearray(signed)
        changed[at] ^= 1
        assert not made().proves(bytes(changed)), at
    for other in (b"", b"{}", TEXT, signed + b" ", signed[:-1], b" " + signed, signed * 2):
        assert not made().proves(other)


def test_no_member_can_be_put_behind_the_signature_or_before_it() -> None:
    signed = made().signed(TEXT)
    assert not made().proves(signed[:-1] + b',"hard":true}')
    assert not made().proves(b'{"hard":true,' + signed[1:])
    # A second signature signs the first.
    assert made().proves(made().signed(signed))


def test_of_several_the_first_signs_and_each_is_believed() -> None:
    """8: so a secret is changed without a gap."""
    old, both, new = made("the old one"), made("the new one\n\nthe old one"), made("the new one")
    assert both.proves(old.signed(TEXT))
    assert both.proves(new.signed(TEXT))
    assert new.proves(both.signed(TEXT))
    assert not old.proves(both.signed(TEXT))
    assert both.key == new.key
    assert both.keys.split() == [new.key, old.key]


# -- what is believed ----------------------------------------------------------------------------


def message(nonce: str, at: float, **members: object) -> bytes:
    told = {"queue": "q", "jobId": "1", "prefix": "bull", "db": 0, "atm": 0, "ts": 1, "hard": True}
    return json.dumps(told | {"nonce": nonce, "at": int(at)} | members).encode()


def call(nonce: str, at: float) -> bytes:
    told = {"queue": "q", "call": "pause", "args": [], "prefix": "bull", "db": 0, "nonce": nonce}
    return json.dumps(told | {"at": int(at)}).encode()


@pytest.fixture
def server_clock() -> clock.ServerClock:
    """A server whose clock is an hour ahead."""
    told = clock.ServerClock()
    told.told(clock.wall_ms() + 3_600_000, clock.monotonic())
    return told


@pytest.mark.parametrize("text", [message, call])
def test_it_counts_once_and_for_a_minute_of_the_servers_clock(
    turned_clock: TurnedClock,
    server_clock: clock.ServerClock,
    text: typing.Callable[[str, float], bytes],
) -> None:
    """8: a message expires after 60 s, and its nonce counts once."""
    proofs = Proofs(made(), server_clock)

    def doubt(nonce: str, at: float) -> str | None:
        return proofs.doubt(parse(made().signed(text(nonce, at))))

    now = server_clock.now_ms()
    assert doubt("a", now) is None
    assert doubt("a", now) == "replayed"
    assert doubt("b", now) is None
    assert doubt("c", now - LIFE - 1000) == "too old"
    assert doubt("c", now + LIFE + 1000) == "too old"
    assert doubt("late", now - LIFE + 5000) is None
    assert doubt("early", now + LIFE - 5000) is None
    turned_clock.advance(50)
    assert doubt("a", now) == "replayed"
    assert doubt("early", now + LIFE - 5000) == "replayed"
    turned_clock.advance(20)
    assert doubt("a", now) == "too old"
    assert doubt("early", now + LIFE - 5000) == "replayed"
    assert doubt("d", server_clock.now_ms()) is None


def test_only_what_is_signed_is_remembered_and_only_for_a_minute(
    turned_clock: TurnedClock, server_clock: clock.ServerClock
) -> None:
    """8: the memory is bounded, and whoever has no secret cannot fill it."""
    proofs = Proofs(made(), server_clock)
    other = made("another secret")
    for number in range(1000):
        told = parse(other.signed(message(f"x{number}", server_clock.now_ms())))
        assert proofs.doubt(told) == "signed with another secret, or changed"
        assert proofs.doubt(parse(message(f"x{number}", server_clock.now_ms()))) == "unsigned"
    assert len(proofs._nonces) == 0
    for number in range(300):
        told = parse(made().signed(message(f"n{number}", server_clock.now_ms())))
        assert proofs.doubt(told) is None
        turned_clock.advance(1)
    assert len(proofs._nonces) <= 61


def test_without_a_word_of_the_server_this_machines_clock_counts(turned_clock: TurnedClock) -> None:
    proofs = Proofs(made(), clock.ServerClock())
    assert proofs.doubt(parse(made().signed(message("a", clock.wall_ms())))) is None
    turned_clock.advance(61)
    assert proofs.doubt(parse(made().signed(message("b", clock.wall_ms() - 61_000)))) == "too old"


def test_what_is_parsed_is_what_was_signed() -> None:
    told = parse(made().signed(message("n", 5, killAfter=2.5)))
    assert isinstance(told, Message)
    assert (told.nonce, told.hard, told.kill_after) == ("n", True, 2.5)
    asked = parse(made().signed(call("n", 5)))
    assert isinstance(asked, Call)
    assert (asked.method, asked.nonce, asked.at) == ("pause", "n", 5)
