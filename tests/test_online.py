"""Who is online, though the store was away when he left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from adapters import names
from tests.deployment import Deployment
from tests.servers import Kind, OwnServer, Server

pytestmark = pytest.mark.all


@pytest.fixture(scope="module")
def redis(own_server: OwnServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that may die."""
    with own_server(Kind.REDIS, tmp_path_factory.mktemp("redis")) as server:
        if not server.mortal:
            pytest.skip("a server that was given by a URL is not killed")
        yield server


async def test_who_leaves_while_redis_is_dead_is_not_online_when_it_is_back(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = redis.parts.geturl()
    with Deployment.start(tmp_path_factory.mktemp("online"), url) as deployment:
        async with deployment.account() as (client, account):
            user = (await account.login(client)).data["userId"]
            with Redis.from_url(url) as store:
                assert store.hlen(names.ONLINE + user) == 1
            await redis.kill()
        log = deployment.of("gateway")[0].log
        await until(lambda: '"not told"' in log.read_text())
        await redis.restart()
        with Redis.from_url(url) as store:
            await until(lambda: store.hlen(names.ONLINE + user) == 0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.02)
