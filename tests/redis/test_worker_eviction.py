"""A server that evicts takes locks and jobs: whoever starts a worker there is told."""

from __future__ import annotations

import typing

import gevent
import pytest

from geventq import Worker
from geventq.store.client import Client
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "volatile-ttl"])
def test_a_policy_that_evicts_is_warned_of_once_at_each_start(
    caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    """wire-format 17: as BullMQ warns."""
    with Server(options=("--maxmemory-policy", policy)) as server:
        worker = Worker("q", lambda job: None, server.url)
        for starts in (1, 2):
            worker.start()
            with server.client() as client:
                eventually(lambda: client.info("commandstats").get("cmdstat_info"))
                asked = client.info("commandstats")["cmdstat_info"]["calls"]
            assert asked
            if policy != "noeviction":
                text = f"maxmemory-policy {policy}"
                eventually(lambda text=text, starts=starts: caplog.text.count(text) == starts)
            worker.close()
        assert ("maxmemory-policy" in caplog.text) == (policy != "noeviction")


def test_while_redis_cannot_be_reached_the_look_waits(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7: the other parts tell of the outage; the warning comes when there is an answer."""
    execute = Client.execute

    def evicts(self: Client, *command: typing.Any, **more: typing.Any) -> typing.Any:
        reply = execute(self, *command, **more)
        return b"# Memory\r\nmaxmemory_policy:allkeys-lfu\r\n" if command[0] == "INFO" else reply

    monkeypatch.setattr(Client, "execute", evicts)
    with Proxy(redis_url) as proxy:
        url = proxy.url
        proxy.refuse()
        worker = Worker("q", lambda job: None, url, prefix)
        errors: list[BaseException] = []
        worker.on("error", errors.append)
        worker.start()
        eventually(lambda: errors)
        gevent.sleep(0.05)
        assert "maxmemory-policy" not in caplog.text
        proxy.accept()
        eventually(lambda: "maxmemory-policy allkeys-lfu" in caplog.text)
        assert not any("eviction" in str(error) for error in errors)
        worker.close()
