"""A flood from one network: it waits behind everybody else, and has all that they leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from redis import Redis

from adapters import names
from app.client import Answer, Client
from app.messages import MAX_IN_FLIGHT, Lane
from app.rules import FREE_SHARE
from tests.deployment import Databases, Deployment, event_of, in_lane, new_address
from tests.faults.ground import until

SETTINGS = {"FIN_TRUSTED_PROXIES": "127.0.0.1", "FIN_HASH_THREADS": "1", "FIN_ARGON2": "m=16384,t=1,p=1"}
FLOODER, FLOOD = "198.51.100.1", 36 * MAX_IN_FLIGHT
OTHERS = [f"192.0.2.{n}" for n in range(1, 11)]
EACH = 3  # of the others' logins
IN_HAND = 16  # more than a worker of one thread takes of the slow lane at its start, when nothing else is in its hand
REFUSED = ("login_failure", "invalid_credentials")


async def come(stack: AsyncExitStack, running: Deployment, address: str, logins: int) -> list[Client]:
    """Clients of one address, enough for so many logins at once."""
    headers = {"X-Forwarded-For": address}
    opening = (running.client(additional_headers=headers) for _ in range(-(-logins // MAX_IN_FLIGHT)))
    return [await stack.enter_async_context(client) for client in opening]


def ask(clients: list[Client], logins: int) -> list[asyncio.Task[Answer]]:
    turns = [client for client in clients for _ in range(MAX_IN_FLIGHT)][:logins]
    return [
        asyncio.create_task(client.ask("login", email=new_address(), password="x", timeout_ms=30_000))
        for client in turns
    ]


async def answered_once(clients: list[Client], asked: list[asyncio.Task[Answer]]) -> Counter[Any]:
    """What the answers were, when a second one for any request would have come too."""
    answers = await asyncio.gather(*asked)
    await asyncio.gather(*(client.ask("logout") for client in clients))
    assert all(client.pushes.empty() for client in clients), "a second answer, or one to nobody"
    return Counter(map(event_of, answers))


def evaluated(redis: Any, what: bytes = b"ip") -> list[str]:
    """Whence, or by `what` else, the logins were that were evaluated, in their order."""
    events = (fields for _, fields in redis.xrange(names.EVENTS))
    return [fields[what].decode() for fields in events if fields[b"event"] == b"login_failure"]


async def test_who_comes_after_a_flood_is_answered_before_most_of_it_and_everybody_is_answered_once(
    databases: Databases, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("flood")
    with (
        databases() as url,
        Redis.from_url(url) as redis,
        Deployment.start(folder, url, workers=0, mailers=0, settings=SETTINGS) as running,
    ):
        running.wait_listening(running.of("gateway")[0])
        async with AsyncExitStack() as stack:
            flooders = await come(stack, running, FLOODER, FLOOD)
            flood = ask(flooders, FLOOD)
            await until(
                lambda: in_lane(redis, Lane.HASH) + in_lane(redis, Lane.SLOW) == FLOOD, "a flood that waits", 20
            )
            assert in_lane(redis, Lane.HASH) == FREE_SHARE

            others = [await come(stack, running, address, EACH) for address in OTHERS]
            people = [client for clients in others for client in clients]
            asked = [task for clients in others for task in ask(clients, EACH)]
            await until(lambda: in_lane(redis, Lane.HASH) == FREE_SHARE + len(asked), "others that wait", 20)
            running.add("worker")

            answers = await asyncio.gather(*asked)
            flood_answered = sum(task.done() for task in flood)
            told = await answered_once(flooders, flood), await answered_once(people, asked)
        order = evaluated(redis)

    assert told == (Counter({REFUSED: FLOOD}), Counter({REFUSED: len(asked)}))
    assert flood_answered < FLOOD / 2
    assert Counter(order) == Counter({FLOODER: FLOOD, **dict.fromkeys(OTHERS, EACH)})
    last = max(n for n, address in enumerate(order) if address != FLOODER)
    assert order[:last].count(FLOODER) <= FREE_SHARE + IN_HAND
    positions = [frame["data"]["position"] for answer in answers for frame in answer.progress]
    assert max(positions) <= FREE_SHARE + len(asked)


async def test_a_flood_with_nobody_else_there_has_all_workers_and_is_answered_to_the_last_request(
    databases: Databases, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("alone")
    with (
        databases() as url,
        Redis.from_url(url) as redis,
        Deployment.start(folder, url, workers=2, mailers=0, settings=SETTINGS) as running,
    ):
        await until(lambda: redis.hlen(names.WORKERS) == 2, "workers", 20)
        async with AsyncExitStack() as stack:
            flooders = await come(stack, running, FLOODER, FLOOD)
            told = await answered_once(flooders, ask(flooders, FLOOD))
        admitted = int(redis.get(names.lane_count(Lane.SLOW)) or 0)
        workers = Counter(evaluated(redis, b"worker"))
        left = [in_lane(redis, lane) for lane in Lane]

    assert told == Counter({REFUSED: FLOOD})
    assert admitted > FLOOD / 2
    assert min(workers.values()) > FLOOD / 10 and len(workers) == 2
    assert left == [0] * len(Lane)
