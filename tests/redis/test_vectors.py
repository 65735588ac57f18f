"""Every wire vector of what is built: what npm bullmq makes of a keyspace, we make of it.

The list is the index's own, so a vector that is missing from the folder is seen as missing here;
those of later stages are skipped with their reason.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import json
import os
import pathlib
import typing

import pytest
import redis

from geventq import clock
from geventq.errors import GeventqError
from tests.support.javascript import UNDEFINED, evaluate
from tests.support.servers import Server
from tests.support.vector_ops import Context, Refused, StandingClock, code_of, in_json
from tests.support.vectors import AREAS, OWN, Vector, differences, dump, load, read_all

VECTORS: typing.Final = read_all()
_COUNTED: typing.Final = {
    "meta": 6,
    "add": 26,
    "active": 20,
    "complete": 20,
    "fail": 14,
    "requeue": 3,
    "lock": 2,
    "stalled": 6,
    "pause": 5,
    "delayed": 5,
    "priority": 3,
    "remove": 5,
    "retry": 4,
    "update": 6,
    "getters": 7,
    "events": 2,
    "life": 1,
    "clean": 6,
    "drain": 3,
    "obliterate": 1,
}
_NOTHING_TAKEN: typing.Final = in_json([None, 0, 0, 0])  # Node says [] for it in places


@pytest.fixture(scope="module")
def server() -> collections.abc.Iterator[Server]:
    """Of its own: the vectors use prefix ``bull`` and an empty database."""
    with Server() as running:
        yield running


@pytest.fixture
def raw(server: Server) -> collections.abc.Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.area}-{vector.id}")
def test_vector(vector: Vector, server: Server, raw: redis.Redis) -> None:
    reason = vector.left_out()
    if reason is not None:
        pytest.skip(reason)
    _replay(vector, server, raw)


def _replay(vector: Vector, server: Server, raw: redis.Redis) -> None:
    load(raw, vector.before)
    turned = StandingClock(vector.told["clock_at_op_start"])
    context = Context(vector, raw, server.url, turned)
    code, result = None, UNDEFINED
    try:
        with clock.turned(turned):
            result = evaluate(vector.operation)(context)
    except Refused as refused:
        code = refused.code
    except GeventqError as error:
        code = error
    finally:
        context.close()
    _compare_end(vector, code, result)
    if code is not None:
        assert not differences(vector.after, dump(raw)), "a refused call has written"
        return
    found = differences(vector.after, dump(raw))
    assert not found, "\n".join([vector.title, vector.operation, *found])


def _compare_end(vector: Vector, code: object, result: object) -> None:
    expected = vector.told.get("error")
    if expected is None:
        assert code is None, f"refused: {code!r}"
        wanted = in_json(vector.told["result"])
        if wanted == "<undefined>":
            assert in_json(result) == wanted
        elif wanted != "<job>":
            assert in_json(result) == (wanted or _NOTHING_TAKEN) or result == wanted
    elif isinstance(code, int):
        assert code == expected["code"]
    else:
        assert isinstance(code, GeventqError), "not refused"
        assert "code" not in expected or expected["code"] in code_of(code)


@pytest.mark.skipif("GEVENTQ_VECTORS" in os.environ, reason="another folder has its own list")
def test_the_project_has_all_vectors_of_these_areas() -> None:
    """None got lost, and none is left out that could be replayed."""
    counted = {area: sum(vector.area == area for vector in VECTORS) for area in AREAS}
    assert counted == _COUNTED
    reasons = collections.Counter(vector.left_out() for vector in VECTORS)
    assert reasons.pop(None) == 127
    assert sum(reasons.values()) == 20, reasons


def _altered(alter: collections.abc.Callable[[dict[str, typing.Any]], object]) -> Vector:
    told = json.loads(json.dumps(TAKEN.told))
    alter(told)
    assert told != TAKEN.told
    return dataclasses.replace(TAKEN, told=told)


TAKEN: typing.Final = next(one for one in read_all(OWN) if one.id == "take-standard")


@pytest.mark.parametrize(
    "alter",
    [
        lambda told: told["after"]["bull:q:1"]["value"].update(processedOn="1750000000006"),
        lambda told: told["after"]["bull:q:1"]["value"].update(pb="somebody"),
        lambda told: told["after"]["bull:q:marker"].update(value=[["0", "1"]]),
        lambda told: told["after"]["bull:q:events"]["value"].pop(),
        lambda told: told["after"]["bull:q:events"]["value"].reverse(),
        lambda told: told["after"]["bull:q:1:lock"].update(pttl_about=28_000),
        lambda told: told["after"]["bull:q:1:lock"].update(pttl_about=32_000),
        lambda told: told["after"]["bull:q:1:lock"].pop("pttl_about"),
        lambda told: told["after"].pop("bull:q:1:lock"),
        lambda told: told["after"].update({"bull:q:x": {"type": "string", "value": "1"}}),
        lambda told: told.update(result=[None, 0, 0, 1]),
        lambda told: told.update(error={"message": "Missing key", "code": -1}),
    ],
)
def test_an_altered_vector_is_seen(
    server: Server,
    raw: redis.Redis,
    alter: collections.abc.Callable[[dict[str, typing.Any]], object],
) -> None:
    _replay(TAKEN, server, raw)
    with pytest.raises(AssertionError):
        _replay(_altered(alter), server, raw)


def test_another_folder_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``$GEVENTQ_VECTORS`` names it."""
    (tmp_path / "vectors").mkdir()
    told = {"id": "mine", "setup": "", "operation": "", "before": {}, "after": {}}
    (tmp_path / "vectors" / "001-mine.json").write_text(json.dumps(told))
    entry = {"id": "mine", "title": "one of mine", "area": "add", "file": "001-mine.json"}
    later = {"id": "x", "title": "x", "area": "flow", "file": "002-x.json"}
    (tmp_path / "index.json").write_text(json.dumps({"vectors": [entry, later]}))
    monkeypatch.setenv("GEVENTQ_VECTORS", str(tmp_path))
    (found,) = read_all()
    assert (found.id, found.told) == ("mine", told)
