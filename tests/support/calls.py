"""Which of the worker's calls a request is, for the proxy's traps."""

from __future__ import annotations

from geventq.store.scripts import load

__all__ = ["completes", "recovers", "takes"]


def takes(request: bytes) -> bool:
    """A call of the settle script that asks for jobs."""
    return load("settle").sha.encode() in request and b"\r\n-1\r\n" not in request


def completes(request: bytes) -> bool:
    """A call of the settle script that brings a result."""
    return load("settle").sha.encode() in request and b"\r\nc\r\n" in request


def recovers(request: bytes) -> bool:
    """A search for jobs whose take was not answered."""
    return load("recover").sha.encode() in request
