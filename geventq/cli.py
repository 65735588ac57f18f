"""The command ``geventq``: run a worker, add jobs, list jobs, watch the demo.

Owns arguments, the configuration file, exit statuses and what is printed.  Exit status: 0 done,
1 refused, 2 usage, 3 Redis could not be reached.  Errors go to stderr without a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import typing

from geventq.errors import GeventqError, RedisUnavailableError

__all__ = ["main"]

REFUSED: typing.Final = 1
USAGE: typing.Final = 2
UNREACHABLE: typing.Final = 3


class _UsageError(Exception):
    """The command line or the configuration cannot be used."""


def main(arguments: typing.Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.run is None:
        parser.print_usage(sys.stderr)
        return USAGE
    try:
        return int(given.run(given))
    except RedisUnavailableError as error:
        return _fail(str(error), UNREACHABLE)
    except (_UsageError, ValueError, TypeError) as error:
        return _fail(str(error), USAGE)
    except GeventqError as error:
        return _fail(str(error), REFUSED)


def _fail(text: str, status: int) -> int:
    print(f"geventq: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--redis", metavar="URL", help="where Redis is; default: embedded:")
    common.add_argument("--prefix", help="the first part of every key (bull)")
    common.add_argument("--json", action="store_true", help="print JSON only")
    parser = argparse.ArgumentParser(prog="geventq", description="Run background jobs, stop them.")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands")

    demo = commands.add_parser("demo", help="watch jobs run and be cancelled", parents=[common])
    demo.set_defaults(run=_demo)

    worker = commands.add_parser("worker", help="run the jobs of a queue", parents=[common])
    worker.add_argument("processor", nargs="?", metavar="MODULE:FUNCTION")
    worker.add_argument("-q", "--queue")
    worker.add_argument("-c", "--concurrency", type=int)
    worker.add_argument("--name")
    worker.add_argument("--cancel-mode", choices=("soft", "hard"))
    worker.add_argument("--kill-after", type=float, metavar="SECONDS")
    worker.add_argument("--close-timeout", type=float, metavar="SECONDS")
    worker.add_argument("--lock-duration", type=float, metavar="SECONDS")
    worker.add_argument("--config", metavar="FILE")
    worker.set_defaults(run=_worker)

    add = commands.add_parser("add", help="add a job", parents=[common])
    add.add_argument("queue")
    add.add_argument("name")
    add.add_argument("data", nargs="?", metavar="JSON")
    add.add_argument("--delay", type=float, metavar="SECONDS")
    add.add_argument("--priority", type=int)
    add.add_argument("--attempts", type=int)
    add.add_argument("--job-id")
    add.set_defaults(run=_add)

    jobs = commands.add_parser("jobs", help="list the jobs of a queue", parents=[common])
    jobs.add_argument("queue")
    jobs.add_argument("--state", action="append")
    jobs.add_argument("--limit", type=int, default=100)
    jobs.set_defaults(run=_jobs)
    return parser


def _url(given: argparse.Namespace, config: typing.Mapping[str, typing.Any] | None = None) -> str:
    """The command line over the environment over the file; last a server of one's own."""
    in_file = (config or {}).get("url")
    return given.redis or os.environ.get("GEVENTQ_REDIS_URL") or in_file or "embedded:"


def _add(given: argparse.Namespace) -> int:
    from geventq.options import LEFT_OUT
    from geventq.queue import Queue

    data: typing.Any = LEFT_OUT
    if given.data is not None:
        try:
            data = json.loads(given.data)
        except ValueError as error:
            raise _UsageError(f"JSON: {error}: {given.data!r}") from None
    names = ("delay", "priority", "attempts", "job_id")
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    with Queue(given.queue, _url(given), given.prefix or "bull") as queue:
        job = queue.add(given.name, data, **options)
    print(json.dumps({"id": job.id}) if given.json else f"added job {job.id} to {given.queue}")
    return 0


def _jobs(given: argparse.Namespace) -> int:
    from geventq.queue import Queue

    with Queue(given.queue, _url(given), given.prefix or "bull") as queue:
        states = given.state or list(queue.get_job_counts())
        rows = [
            {"id": job.id, "name": job.name, "state": state}
            for state in states
            for job in queue.get_jobs(state, 0, given.limit - 1)
        ]
    if given.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['id']:>12}  {row['state']:<16}  {row['name']}")
    if not rows:
        print(f"no jobs in {given.queue}")
    return 0


def _worker(given: argparse.Namespace) -> int:
    from gevent import monkey

    monkey.patch_all()  # before the user's module is imported
    sys.path.insert(0, os.getcwd())
    from geventq.worker import Worker

    config = _configuration(given.config)
    settings = dict(config.get("worker", {}))
    named = ("concurrency", "name", "cancel_mode", "kill_after", "close_timeout", "lock_duration")
    for name in named:
        from_environment = os.environ.get(f"GEVENTQ_{name.upper()}")
        if from_environment is not None:
            settings[name] = _number(name, from_environment)
        if getattr(given, name) is not None:
            settings[name] = getattr(given, name)
    in_file = settings.pop("processor", None), settings.pop("queue", None)
    processor, queue = given.processor or in_file[0], given.queue or in_file[1]
    if not processor or not queue:
        raise _UsageError("worker: MODULE:FUNCTION and -q QUEUE are needed")
    connection = config.get("connection", {})
    url = os.environ["GEVENTQ_REDIS_URL"] = _url(given, connection)
    prefix = given.prefix or connection.get("prefix", "bull")
    _check_reachable(url)
    worker = Worker(queue, processor, url, prefix, **settings)
    _print_events(worker)
    print(f"worker of {queue}: {processor}, concurrency {worker.concurrency}", flush=True)
    worker.run()
    return 0


def _number(name: str, text: str) -> typing.Any:
    if name in ("name", "cancel_mode"):
        return text
    try:
        return int(text) if name == "concurrency" else float(text)
    except ValueError:
        raise _UsageError(f"GEVENTQ_{name.upper()}: a number is needed, got {text!r}") from None


def _configuration(path: str | None) -> dict[str, typing.Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise _UsageError(f"config: {path}: {error}") from None


def _check_reachable(url: str) -> None:
    from geventq.store.connection import Client, Endpoint

    client = Client(Endpoint.of(url))
    try:
        client.execute("PING")
    finally:
        client.close()


def _print_events(worker: typing.Any) -> None:
    """Say on stdout what runs and what is cancelled."""

    def say(text: str) -> typing.Callable[..., None]:
        return lambda job, *rest: print(
            f"{text} {job.id} {job.name}" + (f": {rest[0]}" if rest else ""), flush=True
        )

    for event in ("active", "completed", "failed", "retrying", "cancelled", "lock_lost", "stuck"):
        worker.on(event, say(event))


def _demo(given: argparse.Namespace) -> int:
    from geventq.demo import run

    url = os.environ["GEVENTQ_REDIS_URL"] = _url(given)
    _check_reachable(url)
    return run(url)
