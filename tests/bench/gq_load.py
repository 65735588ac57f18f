"""HTTP requests at a steady pace, in a process of their own; tells how long each took.

A request's time counts from the moment when it was due, so that one which had to wait for its turn
here is not flattered.
"""

from __future__ import annotations

import time

import gevent
import gevent.socket

from tests.bench.orders import hear, options, say


def ask(port: int, path: str) -> None:
    """One request on a connection of its own.  Raises `AssertionError` for another answer than
    200."""
    with gevent.socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while data := sock.recv(65536):
            head = head or data
        assert head.startswith(b"HTTP/1.1 200 "), head


def main() -> None:
    given = options()
    say({"ready": True})
    while True:
        order = hear()
        count, pause = order["requests"], 1 / order["rate"]
        took: list[float] = []

        def one(due: float, path: str, took: list[float] = took) -> None:
            ask(given["port"], path)
            took.append((time.perf_counter() - due) * 1e3)

        began = time.perf_counter()
        asking = []
        for number in range(count):
            due = began + number * pause
            gevent.sleep(max(0.0, due - time.perf_counter()))
            path = order["paths"][number % len(order["paths"])]
            asking.append(gevent.spawn(one, due, path))
        gevent.joinall(asking, raise_error=True)
        say({"milliseconds": took})


if __name__ == "__main__":
    main()
