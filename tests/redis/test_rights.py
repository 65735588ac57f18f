"""3.7, 8: whatever a user may not do, no script of ours is left half done.

Each script is called as it is in use, by the wire vectors and some calls of our own, each time as
a user who lacks one of its commands, or knows only some of the keys, or has one of the roles of
``conf/users.acl``.  Then it is carried out whole, or refused, and nothing was written.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import dataclasses
import typing

import pytest
import redis

from geventq import GeventqError, JobSpec, Queue, clock
from geventq.store.client import Client, Endpoint
from geventq.store.keys import QueueKeys
from geventq.store.members import Members
from geventq.store.scripts import _OPTIONAL, load
from tests.support.access import ROLES
from tests.support.javascript import evaluate
from tests.support.servers import Server, server_binaries
from tests.support.vector_ops import Context, Refused, StandingClock
from tests.support.vectors import Vector, read_all
from tests.support.vectors import load as load_keys
from tests.support.waiting import TurnedClock
from tests.unit.test_scripts import NAMES

USER: typing.Final = "limited"
WITH_WORKERS: typing.Final = ("workers-client-names",)
SCENES_A_SCRIPT: typing.Final = 3
KEYS: typing.Final = QueueKeys("bull", "q")

#: Rights to some keys: the queue's but no job's, jobs' but not the queue's, all but not to write.
SOME_KEYS: typing.Final = ("~bull:q:[a-z]*", "~bull:q:[0-9]*", "%R~bull:*", "~bull:q:wait")


@dataclasses.dataclass
class Scene:
    """A keyspace, and what somebody does with it."""

    name: str
    prepare: collections.abc.Callable[[redis.Redis], None]
    act: collections.abc.Callable[[redis.Redis, str], object]


# -- scenes ---------------------------------------------------------------------------------------


def of_vector(vector: Vector) -> Scene:
    def act(raw: redis.Redis, url: str) -> None:
        turned = StandingClock(vector.told["clock_at_op_start"])
        context = Context(vector, raw, url, turned)
        try:
            with clock.turned(turned):
                evaluate(vector.operation)(context)
        except Refused:
            pass
        finally:
            context.close()

    return Scene(vector.id, lambda raw: load_keys(raw, vector.before), act)


def some_jobs(raw: redis.Redis) -> None:
    """Jobs: 1 and 2 wait, 3 has a priority, 4 is delayed, 5 and 6 run, 7 is not kept, 8 failed."""
    raw.flushall()
    plain, kept = {"timestamp": "1"}, {"opts": '{"removeOnFail":true}'}
    for job_id in range(1, 9):
        raw.hset(f"bull:q:{job_id}", mapping=plain | (kept if job_id == 7 else {}))
    raw.rpush(KEYS.wait, 1, 2, 7)
    raw.zadd(KEYS.prioritized, {"3": 2**32 + 1})
    raw.zadd(KEYS.delayed, {"4": 2e15})
    raw.zadd(KEYS.failed, {"8": 1})
    raw.rpush(KEYS.active, 5, 6)
    for job_id in (5, 6):
        raw.set(f"bull:q:{job_id}:lock", f"gq:w:{job_id}", px=60_000)


def by_queue(call: collections.abc.Callable[[Queue], object]) -> Scene:
    def act(raw: redis.Redis, url: str) -> None:
        with Queue("q", url) as queue:
            call(queue)

    return Scene("by the queue", some_jobs, act)


def by_client(call: collections.abc.Callable[[Client], object]) -> Scene:
    def act(raw: redis.Redis, url: str) -> None:
        client = Client(Endpoint.of(url))
        try:
            call(client)
        finally:
            client.close()

    return Scene("by its arguments", some_jobs, act)


def script(name: str, *args: str | int, job: str = "5") -> Scene:
    keys = KEYS.of_job(job)
    return by_client(lambda client: client.script(load(name), keys, args))


OWN: typing.Final = [
    by_queue(lambda queue: queue.cancel_jobs(list("1234567"), "no")),
    by_queue(lambda queue: queue.cancel_jobs(list("1256"), "no", force=True)),
    by_queue(lambda queue: queue.cancel_jobs(["5"], "no", retry=False)),
    by_queue(lambda queue: queue.cancel_jobs(where=lambda job: True)),
    by_queue(
        lambda queue: queue.add_bulk(
            [
                JobSpec("n"),
                JobSpec("n", options={"delay": 9}),
                JobSpec("n", options={"priority": 2}),
                JobSpec("n", options={"lifo": True}),
                JobSpec("n", options={"job_id": "mine"}),
            ]
        )
    ),
    by_queue(lambda queue: queue.clean(0, state="waiting")),
    by_queue(lambda queue: queue.pause()),
    by_queue(lambda queue: queue.retry_jobs()),
    by_queue(lambda queue: queue.promote_jobs()),
    by_client(lambda client: Members(client, KEYS).beat("w", {"a": 1}, "s", timeout=5)),
    by_client(lambda client: Members(client, KEYS).fresh()),
    by_client(lambda client: Members(client, KEYS).reply("nonce", b"{}", timeout=5)),
    script("hand_on"),
    script("sweep", KEYS.base, -1, "5", "gq:w:5"),
    script("record_request", "gq:w:5", "{}", "text"),
    script("recover", KEYS.base, "gq:w:5", 90_000, 0),
    script("renew", KEYS.base, 90_000, "5", "gq:w:5"),
    script("extend_lock", "gq:w:5", 90_000, "5"),
    script("get_end", KEYS.base, "1"),
    script("read_events", "0-0", 10),
    script("clear_logs", 0),
    script("stalled", KEYS.base, 1, 1000, 1, "begin", 0),
    *[
        of_vector(one)
        for one in read_all()
        if one.left_out() is None and one.id not in WITH_WORKERS
    ],
]


# -- the servers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=server_binaries())
def server(request: pytest.FixtureRequest) -> collections.abc.Iterator[Server]:
    with Server(binary=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def raw(server: Server) -> collections.abc.Iterator[redis.Redis]:
    with server.client() as client:
        # Connected before a test's look at what is open.
        if not client.eval("return redis.acl_check_cmd and 1 or 0", 0):
            pytest.skip("a server before Redis 7.0 cannot be asked what a user may do")
        yield client


def kept(raw: redis.Redis) -> dict[str, tuple[bytes, int]]:
    """Every key, with its end."""
    with redis.Redis(unix_socket_path=raw.get_connection_kwargs()["path"]) as plain:
        keys = sorted(plain.scan_iter(count=1000))
        pipeline = plain.pipeline(transaction=False)
        for key in keys:
            pipeline.dump(key).pexpiretime(key)
        found = pipeline.execute()
    return dict(zip(keys, zip(found[::2], found[1::2], strict=True), strict=True))


@dataclasses.dataclass
class Watch:
    """What scripts were called, and which of them were refused and had written."""

    raw: redis.Redis
    called: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    half_done: list[str] = dataclasses.field(default_factory=list)
    name: str | None = None  # of the script that is looked at

    def play(self, scene: Scene, url: str, name: str | None = None) -> list[str]:
        """Which scripts the scene calls; of `name` it is seen whether it is refused cleanly."""
        self.name = name
        self.called.clear()
        scene.prepare(self.raw)
        with contextlib.suppress(GeventqError):
            scene.act(self.raw, url)
        return self.called

    def around(self, run: collections.abc.Callable[[], typing.Any], name: str) -> typing.Any:
        self.called.append(name)
        if name != self.name:
            return run()
        before = kept(self.raw)
        try:
            return run()
        except GeventqError as error:
            if any(word in str(error) for word in ("NOPERM", "ACL failure", "permission")):
                self.refused.append(str(error))
            if kept(self.raw) != before:
                self.half_done.append(str(error))
            raise


@pytest.fixture
def watch(raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(raw)
    plain = Client.script

    def watched(self: Client, script: typing.Any, *args: typing.Any, **more: typing.Any) -> object:
        return watch.around(lambda: plain(self, script, *args, **more), script.name)

    monkeypatch.setattr(Client, "script", watched)
    return watch


_scenes: dict[str, dict[str, list[Scene]]] = {}


@pytest.fixture
def scenes(server: Server, watch: Watch) -> dict[str, list[Scene]]:
    """By script, of which there are enough."""
    if server.url not in _scenes:
        by_script = collections.defaultdict(list)
        for scene in OWN:
            for name in set(watch.play(scene, server.url)):
                by_script[name].append(scene)
        _scenes[server.url] = by_script
    return _scenes[server.url]


def limited(server: Server, raw: redis.Redis, *rules: str) -> str:
    """A URL of a user with these rules."""
    raw.execute_command("ACL", "SETUSER", USER, "reset", "on", ">pw", "&*", *rules)
    return f"unix://{USER}:pw@{server.socket_path}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_who_lacks_a_command_is_refused_before_the_first_write(
    server: Server, raw: redis.Redis, watch: Watch, scenes: dict[str, list[Scene]], name: str
) -> None:
    """And told its name, whichever command of a script it is, whether this call comes to it or
    not."""
    assert scenes[name], "nobody calls it here"
    for command in load(name).commands:
        url = limited(server, raw, "~*", "+@all", f"-{command}")
        watch.refused.clear()
        for scene in scenes[name][:SCENES_A_SCRIPT]:
            watch.play(scene, url, name)
            if name in watch.called and command not in _OPTIONAL:
                assert watch.refused, f"{scene.name} without {command}"
                text = watch.refused.pop()
                assert f"+{command.lower()} " in text, text
                assert f"the user '{USER}' the script {name} on bull:q:*" in text, text
    assert watch.half_done == []


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_only_some_keys_or_has_a_role_leaves_nothing_half_done(
    server: Server, raw: redis.Redis, watch: Watch, scenes: dict[str, list[Scene]], name: str
) -> None:
    rights = [(keys, "+@all") for keys in SOME_KEYS]
    for role in ROLES.values():
        rights.append(("~bull:*", *[f"+{command}" for command in role.commands()]))
    for rules in rights:
        url = limited(server, raw, *rules)
        for scene in scenes[name][:SCENES_A_SCRIPT]:
            watch.play(scene, url, name)
    assert watch.half_done == []


def test_rights_that_are_taken_away_are_missed_within_ten_seconds(
    server: Server, raw: redis.Redis, turned_clock: TurnedClock
) -> None:
    """A client that was allowed to go on asks again."""
    url = limited(server, raw, "~*", "+@all")
    some_jobs(raw)
    with Queue("q", url) as queue:
        queue.add("n")
        raw.execute_command("ACL", "SETUSER", USER, "-xtrim")
        before = kept(raw)
        turned_clock.advance(10.0)
        with pytest.raises(GeventqError, match=r"it needs \+xtrim on keys like bull:q:0"):
            queue.add("n")
        assert kept(raw) == before
        raw.execute_command("ACL", "SETUSER", USER, "+xtrim")
        queue.add("n")
