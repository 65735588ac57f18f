"""The processes behind test_pools.py: ``python -m tests.fault.pools SCENARIO ADDRESS``.

A scenario is a function ``ask(number)`` that asks the pool for something only this caller can
get back, and raises if it got something else.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import itertools  # noqa: E402
import sys  # noqa: E402
import typing  # noqa: E402

import gevent  # noqa: E402
import gevent.pywsgi  # noqa: E402

from geventq import JobKilled  # noqa: E402
from tests.support.attempts import Run  # noqa: E402

KILLS = 300
Ask = typing.Callable[[int], None]


def _own(said: object, number: int) -> None:
    if said != number:
        print(f"caller {number} got the answer {said!r}")
        sys.exit(1)


def redis_scenario(address: str) -> Ask:
    import redis

    client = redis.Redis.from_url(address, max_connections=8, decode_responses=True)

    def ask(number: int) -> None:
        _own(client.execute_command("ECHO", str(number)), str(number))  # type: ignore[arg-type]

    return ask


def queue_scenario(address: str) -> Ask:
    from geventq import Queue

    queue = Queue(f"pools-{id(object())}", connection=address, prefix="pools")

    def ask(number: int) -> None:
        job = queue.add("job", {"number": number})
        found = queue.get_job(job.id)
        assert found is not None
        _own(found.data["number"], number)

    return ask


def requests_scenario(address: str) -> Ask:
    import requests

    def answer(environ: dict[str, typing.Any], start: typing.Callable[..., object]) -> list[bytes]:
        gevent.sleep(0.001)
        start("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"][1:].encode()]

    server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), answer, log=None, error_log=None)
    server.start()
    session = requests.Session()
    session.trust_env = False

    def ask(number: int) -> None:
        got = session.get(f"http://127.0.0.1:{server.server_port}/{number}", timeout=10)
        _own(int(got.text), number)

    return ask


def psycopg2_scenario(address: str) -> Ask:
    import psycopg2
    import psycopg2.extensions
    import psycopg2.pool
    from gevent.socket import wait_read, wait_write

    def wait(connection: typing.Any) -> None:
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            if state == psycopg2.extensions.POLL_READ:
                wait_read(connection.fileno())
            else:
                wait_write(connection.fileno())

    psycopg2.extensions.set_wait_callback(wait)
    pool = psycopg2.pool.ThreadedConnectionPool(1, 8, address)

    def ask(number: int) -> None:
        connection = pool.getconn()
        failed = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("select %s + 0 * length(pg_sleep(0.001)::text)", (number,))
                _own(cursor.fetchone()[0], number)
            connection.rollback()
            failed = False
        finally:
            pool.putconn(connection, close=failed)

    return ask


def pymysql_scenario(address: str) -> Ask:
    import pymysql

    idle: list[typing.Any] = []

    def ask(number: int) -> None:
        connection = idle.pop() if idle else pymysql.connect(unix_socket=address, user="root")
        failed = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("select %s + sleep(0.001)", (number,))
                _own(cursor.fetchone()[0], number)
            failed = False
        finally:
            if failed:
                connection.close()
            else:
                idle.append(connection)

    return ask


def play(ask: Ask) -> int:
    """Kill callers at moments spread over their calls; how many kills there were."""
    numbers = itertools.count()

    def call_for_ever(token: object) -> None:
        while True:
            ask(next(numbers))

    for moment in range(KILLS):
        run = Run(call_for_ever, hard=True).start()
        gevent.sleep((moment % 37) * 1e-4)
        run.ask()
        beside = gevent.spawn(ask, next(numbers))
        run.join()
        if not isinstance(run.error, JobKilled):
            raise run.error or AssertionError("a call for ever ended")
        beside.get()
        ask(next(numbers))
    return KILLS


def main() -> None:
    scenario, address = sys.argv[1:]
    ask = globals()[f"{scenario}_scenario"](address)
    print(f"killed {play(ask)} in mid-call")


if __name__ == "__main__":
    main()
