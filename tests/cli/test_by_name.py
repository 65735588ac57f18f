"""``geventq worker MODULE:PROCESSORS`` and ``around``: on the command line, in the environment, in
the file."""

from __future__ import annotations

import pytest

from geventq import Queue
from tests.support.programs import Programs

pytestmark = pytest.mark.slow

SHOP = """
import contextlib, os
from geventq import Processors

processors = Processors()

@processors("export")
def export(job):
    return "exported"

@processors("resize")
def resize(job, token):
    return type(token).__name__

entered = []

@contextlib.contextmanager
def noted(job):
    entered.append(job.name)
    yield

@contextlib.contextmanager
def broken(job, token):
    raise OSError("no database")
    yield

@processors("entered")
def show(job):
    return entered

nothing = {}
text = "text"
"""


@pytest.fixture
def shop(programs: Programs) -> Programs:
    programs.write("shop.py", SHOP)
    return programs


def test_a_module_is_a_list_of_what_a_worker_can_do(shop: Programs, queue: Queue) -> None:
    program = shop.geventq("worker", "shop:processors", "-q", "q", "--json")
    program.until_event("ready")
    for name in ("export", "resize", "delete"):
        queue.add(name)
    program.until_event("completed", 2)
    results = {one["name"]: one["result"] for one in program.events("completed")}
    assert results == {"export": "exported", "resize": "CancellationToken"}
    (failed,) = program.until_event("failed")
    assert failed["error"] == (
        "no processor for jobs named 'delete'; known are 'export', 'resize', 'entered'"
    )


TABLE = """
[[workers]]
queue = "q"
processor = "shop:processors"
around = ["shop:noted"]
"""


@pytest.mark.parametrize("source", ["line", "environment", "file"])
def test_around_is_named_in_each_of_the_three_places(
    shop: Programs, queue: Queue, source: str
) -> None:
    shop.write("geventq.toml", TABLE)
    plain = ("worker", "shop:processors", "-q", "q", "--json")
    if source == "line":
        program = shop.geventq(*plain, "--around", "shop:noted,shop:noted")
    elif source == "environment":
        program = shop.geventq(*plain, GEVENTQ_AROUND="shop:noted,shop:noted")
    else:
        program = shop.geventq("worker", "--config", "geventq.toml", "--json")
    program.until_event("ready")
    queue.add("entered")
    (done,) = program.until_event("completed")
    assert done["result"] == ["entered"] * (1 if source == "file" else 2)


def test_one_that_fails_fails_its_job_and_the_worker_goes_on(shop: Programs, queue: Queue) -> None:
    program = shop.geventq(
        *("worker", "shop:processors", "-q", "q", "--json", "--around", "shop:broken")
    )
    for _ in range(2):
        queue.add("export")
    failed = program.until_event("failed", 2)
    assert {one["error"] for one in failed} == {"no database"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shop:nothing"], "process: a mapping with at least one job name is needed, got {}"),
        (["shop:processors", "--around", "shop:gone"], "around[0]: 'shop' has no 'gone'"),
        (["shop:processors", "--around", "gone:x"], "around[0]: there is no module 'gone'"),
        (["shop:processors", "--around", "shop:noted,"], "--around: MODULE:NAME[,MODULE:NAME...]"),
        (["shop:processors", "--around", "shop:text"], "around[0]: 'shop:text' names a text"),
        (
            ["shop:processors", "--around", "shop:entered"],
            "around[0]: a callable is needed",
        ),
        (["shop:processors", "--around", "shop"], "around[0]: 'package.module:function' is needed"),
    ],
)
def test_a_wrong_one_is_told_by_its_place(
    shop: Programs, arguments: list[str], message: str
) -> None:
    program = shop.geventq("worker", *arguments, "-q", "q")
    assert program.ends() == 2
    assert message in program.err
    assert "Traceback" not in program.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('around = "shop:noted"', "workers[0]: around: a list of MODULE:NAME is needed, got 'sho"),
        ("around = [5]", "workers[0]: around[0]: text is needed, got 5"),
        ('around = ["shop:gone"]', "workers[0]: around[0]: 'shop' has no 'gone'"),
    ],
)
def test_so_it_is_in_the_file(shop: Programs, line: str, message: str) -> None:
    shop.write("geventq.toml", TABLE.replace('around = ["shop:noted"]', line))
    program = shop.geventq("worker", "--config", "geventq.toml")
    assert program.ends() == 2
    assert message in program.err
