"""TLS for a connection, by the settings that redis-py has for it.

Owns the context.  Must not know what is sent.  Imported only where ``rediss://`` is used.  No
greenlets run here; the handshake yields to the hub.
"""

from __future__ import annotations

import ssl
import typing

import gevent.socket
import gevent.ssl

from geventq.fork import connections as fork

__all__ = ["encrypted"]

_REQUIREMENTS: typing.Final = {
    None: ssl.CERT_NONE,
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


def encrypted(
    sock: gevent.socket.socket, host: str, settings: typing.Mapping[str, typing.Any]
) -> gevent.socket.socket:
    """`sock` after the handshake with `host`.  Raises `OSError` (whose subclass
    ``ssl.SSLError`` is) and `ValueError`."""
    since = fork.generation
    made = _context(settings).wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    fork.watch(made, since)
    try:
        made.do_handshake()
    except BaseException:
        made.close()
        raise
    return typing.cast(gevent.socket.socket, made)


def _context(settings: typing.Mapping[str, typing.Any]) -> typing.Any:
    """On gevent's own class: that of `create_default_context` would block the hub in a process
    that is not patched."""
    context: typing.Any = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    of = settings.get
    required = of("ssl_cert_reqs", "required")
    required = _REQUIREMENTS.get(required, required)  # a client may have the value itself
    context.check_hostname = required != ssl.CERT_NONE and of("ssl_check_hostname", True)
    context.verify_mode = required
    for flag in of("ssl_include_verify_flags") or ():
        context.verify_flags |= _flag(flag)
    for flag in of("ssl_exclude_verify_flags") or ():
        context.verify_flags &= ~_flag(flag)
    if of("ssl_certfile") or of("ssl_keyfile"):
        context.load_cert_chain(of("ssl_certfile"), of("ssl_keyfile"), password=of("ssl_password"))
    authorities = of("ssl_ca_certs"), of("ssl_ca_path"), of("ssl_ca_data")
    if any(authorities):
        context.load_verify_locations(*authorities)
    else:
        context.load_default_certs()
    if of("ssl_min_version") is not None:
        context.minimum_version = of("ssl_min_version")
    if of("ssl_ciphers"):
        context.set_ciphers(of("ssl_ciphers"))
    return context


def _flag(flag: str | int) -> int:
    """A flag of ``ssl.VerifyFlags``, by its name from a URL or as a client has it."""
    return ssl.VerifyFlags[flag] if isinstance(flag, str) else flag
