"""Django: ``manage.py geventq_worker`` in real processes on a real PostgreSQL, and jobs that are
added when a transaction commits."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import signal
import sys
import typing

import psycopg2
import pytest

from geventq import Job, Queue, RedisUnavailableError
from tests.support.databases import (  # noqa: F401 - two are fixtures
    mariadb_runs,
    mariadb_socket,
    postgresql_dsn,
    postgresql_runs,
)
from tests.support.programs import ROOT, Program, Programs
from tests.support.told import ended
from tests.support.waiting import eventually

django = pytest.importorskip("django")

pytestmark = [pytest.mark.database, pytest.mark.slow]

MANAGE = str(ROOT / "tests" / "apps" / "shop" / "manage.py")


class Shop:
    """The application: its worker processes, and a look at its tables from outside."""

    def __init__(self, programs: Programs, dsn: str, name: str) -> None:
        self.programs, self.dsn, self.name = programs, dsn, name
        self.environment = {"APP_POSTGRESQL": dsn.split(maxsplit=1)[0].removeprefix("host=")}
        self.environment |= {"APP_NAME": name}

    def manage(self, *arguments: str, **environment: str) -> Program:
        return self.programs.start(MANAGE, *arguments, **self.environment, **environment)

    def worker(self, *arguments: str, **environment: str) -> Program:
        program = self.manage(
            *("geventq_worker", "tests.apps.shop.jobs:processors", "-q", "q", "--json"),
            *arguments,
            **environment,
        )
        program.until_event("ready")
        return program

    def ask(self, text: str, *values: object) -> list[typing.Any]:
        connection = psycopg2.connect(self.dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(text, values)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def orders(self) -> list[str]:
        return self.ask("select number from shop_order order by number")

    def connections(self) -> int:
        found = self.ask(
            "select count(*) from pg_stat_activity where application_name = %s", self.name
        )
        return int(found[0])


@pytest.fixture
def shop(
    tmp_path: pathlib.Path,
    redis_url: str,
    prefix: str,
    postgresql_dsn: str,  # noqa: F811
) -> collections.abc.Iterator[Shop]:
    programs = Programs(tmp_path, GEVENTQ_REDIS_URL=redis_url, GEVENTQ_PREFIX=prefix)
    made = Shop(programs, postgresql_dsn, f"shop-{prefix}")
    made.ask("create table if not exists shop_order (id bigserial primary key, number text)")
    made.ask("truncate shop_order")
    yield made
    programs.end()


@pytest.mark.unpatched
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_job_has_connections_of_its_own_that_are_closed_when_it_ends(
    shop: Shop, queue: Queue, driver: str
) -> None:
    """2.16, 2.17: also where it fails, and of all databases that it used."""
    shop.worker(APP_DRIVER=driver)
    first, second = queue.add("buy", {"number": "1"}), queue.add("buy", {"number": "2"})
    backends = [*ended(queue, first, "completed").return_value]
    backends += ended(queue, second, "completed").return_value
    assert len(set(backends)) == 4
    failing = queue.add("fail", {"number": "3"})
    assert ended(queue, failing, "failed").failed_reason == "own"
    assert shop.orders() == ["1", "2"]
    eventually(lambda: shop.connections() == 0)


@pytest.mark.unpatched
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_twenty_jobs_at_once_never_share_a_transaction(
    shop: Shop, queue: Queue, driver: str
) -> None:
    shop.worker("-c", "20", APP_DRIVER=driver)
    jobs = [queue.add("together", {"number": str(number)}) for number in range(20)]
    results = [ended(queue, job, "completed").return_value for job in jobs]
    assert [one["seen"] for one in results] == [[str(number)] for number in range(20)]
    assert len({one["backend"] for one in results}) == 20
    assert shop.orders() == []
    eventually(lambda: shop.connections() == 0)


@pytest.mark.unpatched
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_killed_job_leaves_nothing_behind(shop: Shop, queue: Queue, driver: str) -> None:
    """Its query ends at the server, its transaction is rolled back, its connection is closed."""
    shop.worker("--cancel-mode", "hard", APP_DRIVER=driver)
    number = f"killed-{queue.prefix}"
    job = queue.add("slow", {"number": number})
    eventually(lambda: postgresql_runs(shop.dsn, "pg_sleep(60)") == 1)
    assert queue.cancel_job(job.id, "enough", wait=20).status == "stopped"
    eventually(lambda: shop.connections() == 0)
    assert shop.orders() == []
    ended(queue, queue.add("buy", {"number": "next"}), "completed")


@pytest.mark.unpatched
def test_a_killed_job_leaves_no_query_in_mariadb(
    shop: Shop,
    queue: Queue,
    mariadb_socket: str,  # noqa: F811
) -> None:
    """PyMySQL closes its connection by itself when a kill interrupts it."""
    shop.worker(APP_MARIADB=mariadb_socket)
    number = f"killed-{queue.prefix}"
    job = queue.add("slow in MariaDB", {"number": number})
    eventually(lambda: mariadb_runs(mariadb_socket, number))
    assert queue.cancel_job(job.id, "enough", hard=True, wait=20).status == "stopped"
    assert not mariadb_runs(mariadb_socket, number)


@pytest.mark.unpatched
@pytest.mark.parametrize(
    "command",
    [
        pytest.param([MANAGE], id="manage.py"),
        pytest.param(["-X", "dev", "-W", "ignore", MANAGE], id="with options"),
        pytest.param(["-m", "django"], id="python -m django"),
        pytest.param(["-m", "gevent.monkey", MANAGE], id="patched already"),
    ],
)
def test_the_process_is_patched_before_it_imports_anything(
    shop: Shop, queue: Queue, command: list[str]
) -> None:
    shop.programs.write(
        "early.py",
        "import socket, sys\n"
        "from tests.apps.shop.settings import *\n"
        "import requests\n"
        "def look(job):\n"
        "    import urllib3.util.connection, django.db.utils\n"
        "    return [urllib3.util.connection.socket.socket.__module__, sys.argv[1],"
        " sys.flags.dev_mode]\n",
    )
    program = shop.programs.start(
        *(*command, "geventq_worker", "early:look", "-q", "q", "--json"),
        *("--settings", "early", "--pythonpath", str(shop.programs.directory)),
        DJANGO_SETTINGS_MODULE="tests.apps.shop.settings",
        **shop.environment,
    )
    program.until_event("ready")
    job = queue.add("n")
    found = ended(queue, job, "completed").return_value
    assert found == ["gevent._socket3", "geventq_worker", "dev" in command]


@pytest.mark.unpatched
def test_a_project_beside_its_manage_py_is_found_from_anywhere(shop: Shop, queue: Queue) -> None:
    project = shop.programs.directory / "project"
    project.mkdir()
    (project / "manage.py").write_text(
        pathlib.Path(MANAGE).read_text().replace("tests.apps.shop.settings", "site_settings")
    )
    (project / "site_settings.py").write_text("from tests.apps.shop.settings import *\n")
    (project / "mails.py").write_text("def send(job): return 'sent'\n")
    program = shop.programs.start(
        *(str(project / "manage.py"), "geventq_worker", "mails:send", "-q", "q", "--json"),
        **shop.environment,
    )
    program.until_event("ready")
    assert ended(queue, queue.add("n"), "completed").return_value == "sent"


@pytest.mark.unpatched
def test_it_closes_at_a_signal_with_status_0(shop: Shop, queue: Queue) -> None:
    """7.2"""
    program = shop.worker()
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert program.events("closed")


@pytest.mark.unpatched
def test_processes_are_replaced(shop: Shop, queue: Queue) -> None:
    program = shop.manage(
        *("geventq_worker", "tests.apps.shop.jobs:processors", "-q", "q", "--json"),
        *("--processes", "2"),
    )
    pids = [one["pid"] for one in program.until_event("ready", 2)]
    assert len(set(pids)) == 2
    os.kill(pids[0], signal.SIGKILL)
    program.until_event("ready", 3)
    ended(queue, queue.add("buy", {"number": "1"}), "completed")
    program.signal(signal.SIGTERM)
    assert program.ends() == 0
    assert len(program.events("closed")) == 2


@pytest.mark.unpatched
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tests.apps.shop.jobs:gone", "-q", "q"], "process: 'tests.apps.shop.jobs' has no 'gone'"),
        (["tests.apps.shop.jobs:buy"], "MODULE:FUNCTION and -q QUEUE are needed"),
        (["tests.apps.shop.jobs:buy", "-q", "q", "-c", "0"], "concurrency: at least 1 is needed"),
        (
            ["tests.apps.shop.jobs:buy", "-q", "q", "--speed", "5"],
            "unrecognized arguments: --speed",
        ),
    ],
)
def test_wrong_usage_is_told_as_by_geventq_worker(
    shop: Shop, arguments: list[str], message: str
) -> None:
    program = shop.manage("geventq_worker", *arguments)
    assert program.ends() == 2
    assert message in program.err
    assert "Traceback" not in program.err


@pytest.mark.unpatched
def test_call_command_in_an_unpatched_process_says_what_to_do(shop: Shop) -> None:
    program = shop.manage(
        "shell",
        *("-c", "from django.core.management import call_command; call_command('geventq_worker')"),
    )
    assert program.ends() == 1
    assert "this process is not monkey-patched: run `manage.py geventq_worker`" in program.err


LATE = """
import django
django.setup()
from django.db import connection  # as a script does that imports its models first
from gevent import monkey
monkey.patch_all()
import gevent.event
from geventq import GeventqError, Queue, Worker
from geventq.integrations.django import around

other_failed = gevent.event.Event()

def process(job):
    with connection.cursor() as cursor:
        assert other_failed.wait(60)
        cursor.execute("select 1")
    return "done"

with Queue("q", prefix={prefix!r}) as queue:
    jobs = [queue.add("n") for _ in range(2)]
    worker = Worker("q", process, prefix={prefix!r}, around=[around], concurrency=2)
    worker.on("failed", lambda job, error: other_failed.set())
    with worker:
        for job in jobs:
            try:
                print(job.wait_until_finished(60))
            except GeventqError as error:
                print(error)
"""


@pytest.mark.unpatched
def test_jobs_of_a_process_that_was_patched_too_late_share_no_connection(
    shop: Shop, prefix: str
) -> None:
    """All but one fail, with a sentence that says why; that one is not disturbed."""
    shop.programs.write("late.py", LATE.format(prefix=prefix))
    program = shop.programs.start(
        *("-W", "ignore", "late.py"),
        DJANGO_SETTINGS_MODULE="tests.apps.shop.settings",
        **shop.environment,
    )
    assert program.ends() == 0, program.told()
    done, failed = sorted(program.out.splitlines())  # whichever was begun first
    assert done == "done", program.told()
    assert "has the same database connection: Django was imported before" in failed


# -- in this process -------------------------------------------------------------------------------


@pytest.fixture
def database(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> collections.abc.Iterator[None]:
    """Django, set up in this process for good, with the connections of one test."""
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    if "tests.apps.shop.settings" not in sys.modules:
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.apps.shop.settings")
        django.setup()
    yield
    from django.db import connections

    connections.close_all()


@pytest.mark.usefixtures("database")
def test_a_job_is_added_when_the_transaction_commits(queue: Queue) -> None:
    from django.db import transaction

    from geventq.integrations.django import add_on_commit

    data = {"number": "1"}
    with transaction.atomic():
        assert add_on_commit(queue, "export", data, priority=3) is None  # type: ignore[func-returns-value]
        data["number"] = "changed meanwhile"
        with transaction.atomic():
            add_on_commit(queue, "inner")
        assert queue.get_job_count() == 0
    export, inner = sorted(queue.get_jobs(["prioritized", "waiting"]), key=lambda job: job.name)
    assert (export.name, export.data, export.priority) == ("export", {"number": "1"}, 3)
    assert (inner.name, inner.data) == ("inner", {})


@pytest.mark.usefixtures("database")
def test_none_is_added_when_it_is_rolled_back(queue: Queue) -> None:
    from django.db import transaction

    from geventq.integrations.django import add_on_commit

    with pytest.raises(ValueError, match="own"), transaction.atomic():
        add_on_commit(queue, "export")
        raise ValueError("own")
    with transaction.atomic():
        with pytest.raises(ValueError, match="own"), transaction.atomic():
            add_on_commit(queue, "of the savepoint")
            raise ValueError("own")
        add_on_commit(queue, "outer")
    assert [job.name for job in queue.get_waiting()] == ["outer"]


@pytest.mark.usefixtures("database")
def test_without_a_transaction_it_is_added_at_once(queue: Queue) -> None:
    from geventq.integrations.django import add_on_commit

    add_on_commit(queue, "export", using="replica")
    assert [job.name for job in queue.get_waiting()] == ["export"]


@pytest.mark.usefixtures("database")
def test_the_transaction_is_that_of_the_database_named(queue: Queue) -> None:
    from django.db import transaction

    from geventq.integrations.django import add_on_commit

    with transaction.atomic(using="replica"):
        add_on_commit(queue, "default")
        add_on_commit(queue, "replica", using="replica")
        assert [job.name for job in queue.get_waiting()] == ["default"]
    assert sorted(job.name for job in queue.get_waiting()) == ["default", "replica"]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("name", "data", "options", "kind", "message"),
    [
        ("export", {}, {"delya": 5}, ValueError, "'delya': unknown option"),
        ("export", {}, {"delay": -1}, ValueError, "delay: "),
        ("export", {"x": float("nan")}, {}, ValueError, r"data\['x'\]: NaN is not JSON"),
        ("export", object(), {}, TypeError, "data: "),
        ("", {}, {}, ValueError, "name: must not be empty"),
    ],
)
def test_what_is_wrong_with_it_raises_at_the_call(
    queue: Queue,
    name: str,
    data: object,
    options: typing.Any,
    kind: type[Exception],
    message: str,
) -> None:
    """And not when it commits, where nobody could mend it."""
    from django.db import transaction

    from geventq.integrations.django import add_on_commit

    with transaction.atomic():
        with pytest.raises(kind, match=message):
            add_on_commit(queue, name, data, **options)
        with pytest.raises(TypeError, match=r"^queue: a Queue is needed, got 'exports'"):
            add_on_commit("exports", "export")  # type: ignore[arg-type]
    assert queue.get_job_count() == 0


@pytest.mark.usefixtures("database")
def test_a_redis_that_is_away_is_told_to_whoever_commits(prefix: str, shop: Shop) -> None:
    """What was committed stays: the outbox way is for those who cannot have that."""
    from django.db import transaction

    from geventq.integrations.django import add_on_commit
    from tests.apps.shop.models import Order

    with (
        Queue("q", "redis://127.0.0.1:1/0", prefix, timeout=0.2) as away,
        pytest.raises(RedisUnavailableError),
        transaction.atomic(),
    ):
        Order.objects.create(number="1")
        add_on_commit(away, "export")
    assert shop.orders() == ["1"]


@pytest.mark.unpatched
@pytest.mark.usefixtures("database")
def test_around_refuses_a_process_whose_jobs_would_share_connections(
    queue: Queue, redis_url: str, prefix: str
) -> None:
    from geventq import Worker
    from geventq.integrations.django import around

    def process(job: Job) -> None: ...

    with Worker("q", process, redis_url, prefix, around=[around]):
        reason = ended(queue, queue.add("n"), "failed").failed_reason or ""
    assert "this process is not monkey-patched" in reason
    assert "manage.py geventq_worker" in reason
