"""The secret that requests to cancel are signed with (cancellation.md 8).

What is signed is a text, a JSON object, as it is sent: no member can be left out, and nothing is
ever encoded anew.  The signature is its last member, ``"sig"``: the HMAC-SHA256, in hex, of the
text without that member.  The member before it, ``"key"``, tells secrets apart, and gives none
away.

Owns the secret's rules, signing and verifying; knows nothing of what the texts say.  A secret
never appears in a message, a repr or a log.  No greenlets run here.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import typing

__all__ = ["VARIABLE", "CancelSecret", "check_cancel_secret", "given_secret"]

VARIABLE: typing.Final = "GEVENTQ_CANCEL_SECRET"
"""The environment variable that stands in where no secret is given."""

_SHORTEST: typing.Final = 4  # characters: what is shorter is a placeholder, or was cut off
_GUESSED: typing.Final = 16  # whoever hears a message may try what is shorter, at home
_SEAL: typing.Final = re.compile(rb',"sig":"([0-9a-f]{64})"\}\Z')
_KEY_OF: typing.Final = b"geventq cancel_secret"

log = logging.getLogger("geventq")


class CancelSecret:
    """One secret, or several, of which the first signs and each is believed."""

    __slots__ = ("_secrets", "key", "keys")

    def __init__(self, secrets: typing.Sequence[bytes]) -> None:
        self._secrets = secrets
        names = [_digest(secret, _KEY_OF)[:8] for secret in secrets]
        self.key = names[0]
        """What the one that signs is told by: eight letters and digits."""
        self.keys = " ".join(names)
        """The same of each that is believed."""

    def __repr__(self) -> str:
        return f"<CancelSecret {self.keys}>"

    def signed(self, text: bytes) -> bytes:
        """`text`, a JSON object with members, with its signature."""
        body = text[:-1] + b',"key":"%b"' % self.key.encode()
        return body + b',"sig":"%b"}' % _digest(self._secrets[0], body + b"}").encode()

    def proves(self, data: bytes) -> bool:
        """Whether one of the secrets has signed all of `data`."""
        from hmac import compare_digest

        seal = _SEAL.search(data)
        if seal is None:
            return False
        body, signature = data[: seal.start()] + b"}", seal[1].decode()
        return any(compare_digest(_digest(one, body), signature) for one in self._secrets)


def _digest(secret: bytes, text: bytes) -> str:
    import hmac  # loads OpenSSL: only where there is a secret

    return hmac.digest(secret, text, "sha256").hex()


def check_cancel_secret(field: str, value: object) -> CancelSecret:
    """The secret that `field` gives: text of at least 4 characters, or several, one a line.  Of one
    with less than 16 it is said in the log, once, that it can be guessed.

    White space around a line does not count, so that a file's last line break makes no other
    secret.  Raises `TypeError` or `ValueError`, which never show the value.
    """
    if isinstance(value, CancelSecret):
        return value
    if not isinstance(value, str):
        raise TypeError(f"{field}: text is needed, got a {type(value).__name__}")
    lines = [line for line in map(str.strip, value.splitlines()) if line]
    if not lines or min(map(len, lines)) < _SHORTEST:
        length = min(map(len, lines), default=0)
        raise ValueError(
            f"{field}: at least {_SHORTEST} characters are needed, got a secret of {length}"
        )
    if min(map(len, lines)) < _GUESSED:
        _warn_of_guessing(field)
    try:
        return CancelSecret([line.encode() for line in lines])
    except UnicodeEncodeError:
        raise ValueError(f"{field}: text without lone surrogates is needed") from None


@functools.cache  # once a process
def _warn_of_guessing(field: str) -> None:
    log.warning(
        "%s: whoever hears one signed message may guess a secret of less than %d characters: 32 "
        "random bytes are better (openssl rand -hex 32)",
        field,
        _GUESSED,
    )


def given_secret(value: object) -> CancelSecret | None:
    """The secret of the argument ``cancel_secret=``; for `None` that of the environment, if there
    is one.  Raises as `check_cancel_secret`."""
    if value is not None:
        return check_cancel_secret("cancel_secret", value)
    text = os.environ.get(VARIABLE)
    return check_cancel_secret(f"${VARIABLE}", text) if text else None
