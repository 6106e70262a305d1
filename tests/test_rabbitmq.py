"""RabbitMQ as the broker, as an operator meets it: what is wrong is said at the start, what is away heals."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

import aio_pika
import pytest

from adapters import amqp_queues, rabbitmq
from adapters.amqp_link import Line
from app.messages import Lane
from app.ports import Admitted, Full, Unavailable
from tests.brokers.ground import entry
from tests.deployment import PASSWORD, Deployment, new_address, secret
from tests.running import WRITTEN_DOWN_SECONDS, free_port
from tests.servers import Kind, OwnServer, Server
from tests.test_startup import app, ended

pytestmark = pytest.mark.all
SECRETS = {"FIN_EDGE_SECRET": secret(), "FIN_WORKER_SECRET": secret(), "FIN_PEPPER": secret()}


@pytest.fixture(scope="module")
def rabbit(own_server: OwnServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with own_server(Kind.RABBITMQ, tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


def url_of(rabbit: Server, user: str = "", vhost: str = "") -> str:
    parts = rabbit.parts
    return f"amqp://{user or f'{parts.username}:{parts.password}'}@{parts.hostname}:{parts.port}/{vhost}"


@pytest.mark.parametrize("role", ["gateway", "worker"])
@pytest.mark.parametrize(
    ("user", "vhost", "words"),
    [
        ("guest:wrong-password-of-ours", "", "refuses our name or password"),
        ("", "nowhere", "does not let us into the virtual host"),
    ],
)
def test_a_broker_that_does_not_let_us_in_is_said_in_a_sentence(
    rabbit: Server,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    role: str,
    user: str,
    vhost: str,
    words: str,
) -> None:
    settings = SECRETS | {"FIN_REDIS_URL": redis_url, "FIN_BROKER_URL": url_of(rabbit, user, vhost)}
    settings["FIN_PORT"] = str(free_port())
    status, lines = ended(app(role, tmp_path_factory.mktemp("refused"), **settings))

    assert status == 78
    assert len(lines) == 1 and "FIN_BROKER_URL" in lines[0] and words in lines[0]
    assert "wrong-password" not in lines[0]


@asynccontextmanager
async def channel_to(rabbit: Server) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    connection = await aio_pika.connect(url_of(rabbit))
    async with connection:
        yield await connection.channel()


async def test_a_queue_of_ours_that_is_made_otherwise_is_said_in_a_sentence(
    rabbit: Server, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with channel_to(rabbit) as channel:
        await channel.declare_queue(f"otherwise.{Lane.HASH}", durable=True)
    settings = SECRETS | {"FIN_REDIS_URL": redis_url, "FIN_BROKER_URL": url_of(rabbit), "FIN_DEPLOYMENT": "otherwise"}
    status, lines = await asyncio.to_thread(ended, app("worker", tmp_path_factory.mktemp("otherwise"), **settings))

    assert status == 78
    assert "FIN_BROKER_URL: a queue of ours exists with other arguments" in lines[0] and "otherwise.hash" in lines[0]


async def test_a_broker_that_is_not_there_at_the_start_is_waited_for_and_one_that_goes_is_missed(
    rabbit: Server, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not rabbit.mortal:
        pytest.skip("the given RabbitMQ is not ours to stop")
    await rabbit.kill()
    settings = {"FIN_BROKER_URL": url_of(rabbit), "FIN_DEPLOYMENT": "later"}
    with Deployment.start(tmp_path_factory.mktemp("later"), redis_url, workers=0, settings=settings) as running:
        running.add("worker")
        gateway = running.of("gateway")[0]
        await asyncio.to_thread(running.wait_listening, gateway)
        for _ in range(2):  # before it is there for the first time, and when it has gone
            async with running.client() as client:
                answer = await client.ask("register", email=new_address(), password=PASSWORD)
            assert answer.code == "unavailable" and answer.data["retryAfterMs"] > 0
            await asyncio.wait_for(asyncio.to_thread(until_ready, running, False), 10)
            await rabbit.restart()
            await asyncio.wait_for(asyncio.to_thread(until_ready, running, True), 20)
            declared = time.monotonic()
            async with running.account() as (client, account):
                await account.login(client)
            await asyncio.sleep(max(0.0, declared + WRITTEN_DOWN_SECONDS - time.monotonic()))
            await rabbit.kill()
        await rabbit.restart()


async def test_where_one_lane_is_full_a_gateway_that_starts_is_ready_and_the_others_take_what_is_sent(
    rabbit: Server, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_queues, "MOST_IN_A_LANE", 3)
    first, second = (rabbitmq.gateway(redis_url, url_of(rabbit), "full", node, 2000) for node in ("first", "second"))
    try:
        clock, _ = await first.heartbeat()
        numbers = itertools.count()

        async def ask(gateway: rabbitmq.RabbitGateway, lane: Lane) -> object:
            return await gateway.admit(entry(f"r{next(numbers)}", clock.now + 25_000, lane), 0.0)

        while isinstance(await ask(first, Lane.HASH), Admitted):
            assert next(numbers) < 200, "there is no end to the lane"
        await second.heartbeat()
        assert isinstance(await ask(second, Lane.HASH), Full)
        assert isinstance(await ask(second, Lane.FAST), Admitted)
    finally:
        await asyncio.gather(first.close(), second.close())


async def test_who_waits_for_a_connection_that_is_closed_meanwhile_is_told_so_and_not_cancelled() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async def nothing(_: object) -> None: ...

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        line = Line(f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/", "test", nothing)
        waiting = asyncio.create_task(line.channel())
        await asked.wait()
        await line.close()
        with pytest.raises(Unavailable):
            await waiting


def until_ready(running: Deployment, ready: bool) -> None:
    while True:
        try:
            with urlopen(running.url(scheme="http", path="/readyz")) as answer:
                if ready and json.load(answer)["checks"]["broker"]:
                    return
        except HTTPError as error:
            with error:
                if not ready and not json.load(error)["checks"]["broker"]:
                    return
