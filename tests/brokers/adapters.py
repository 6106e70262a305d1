"""The table of brokers, and what each does not promise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aio_pika
from redis.asyncio import Redis

from adapters import amqp_queues, names, rabbitmq, redis_streams
from app.messages import Lane
from app.ports import GatewayBroker, Store, WorkerBroker
from tests.running import Kind

Urls = Mapping[Kind, str]


@dataclass(frozen=True)
class Adapter:
    """`gateway`: of (urls, deployment, node, most requests in a lane); `worker`: of (urls, deployment, name).

    `deployment` names one that has a Redis database of its own and shares the other servers with all others.
    """

    name: str
    servers: tuple[Kind, ...]  # the broker's own first; the store is the last
    gateway: Callable[[Urls, str, str, int], GatewayBroker]
    worker: Callable[[Urls, str, str], tuple[WorkerBroker, Store]]
    modules: tuple[str, ...]  # whose times are made short
    junk: Callable[[Urls, str, Lane], Any]  # async: puts what no gateway wrote into a lane that a worker has looked at
    letters: Callable[[Urls, str], Any]  # async: every dead letter, as bytes with all that is kept of it
    clean: Callable[[Urls, str], Any]  # async: nothing of a deployment is left but in Redis
    lacks: Mapping[str, str] = field(default_factory=dict)  # scenario -> why it is not promised: it has to fail
    slow: bool = False  # plays only with -m ""

    @property
    def store(self) -> Kind:
        return self.servers[-1]


# What tests wait for, made short: constants of an adapter's modules, by name, where it has them.
SHORT = {
    "TAKEN_OVER_AFTER_MS": 500,
    "SPOKEN_FOR_MS": 100,
    "NODE_LIVES_MS": 600,
    "WORKER_LIVES_MS": 600,
    "BLOCK_MS": 20,
    "BLOCK_SECONDS": 1.0,
    "TAKE_SECONDS": 0.02,
    "CONNECT_SECONDS": 1.0,
    "ANSWER_SECONDS": 0.5,
    "CLOSE_SECONDS": 0.5,
    "LOOK_SECONDS": 0.125,
    "LEFT_SECONDS": 0.1,
    "MAILS_KEPT": 3,
}
TAKEN_OVER_SECONDS = SHORT["TAKEN_OVER_AFTER_MS"] / 1000
NODE_LIVES_SECONDS = SHORT["NODE_LIVES_MS"] / 1000


def shorten(adapter: Adapter, patch: Callable[[Any, str, Any], None]) -> None:
    """`patch`: MonkeyPatch.setattr."""
    for module in map(importlib.import_module, adapter.modules):
        for name, value in SHORT.items():
            if hasattr(module, name):
                patch(module, name, value)


async def _letters(urls: Urls, store: Kind) -> list[bytes]:
    async with Redis.from_url(urls[store]) as redis:
        found: Any = await redis.xrange(names.DEAD)
        return [b" ".join(part for pair in fields.items() for part in pair) for _, fields in found]


def _streams(name: str, kind: Kind, *, slow: bool = False) -> Adapter:
    async def junk(urls: Urls, deployment: str, lane: Lane) -> None:
        async with Redis.from_url(urls[kind]) as redis:
            await redis.xadd(names.lane(lane), {"what": b"no entry\x00\xff"})

    return Adapter(
        name=name,
        servers=(kind,),
        gateway=lambda urls, _, node, most: redis_streams.gateway(urls[kind], node, most),
        worker=lambda urls, _, consumer: redis_streams.worker(urls[kind], consumer),
        modules=("adapters.redis_streams", "adapters.redis_state", "adapters.redis_store"),
        junk=junk,
        letters=lambda urls, _: _letters(urls, kind),
        clean=_nothing,
        lacks={},
        slow=slow,
    )


async def _nothing(urls: Urls, deployment: str) -> None:
    """A test flushes the database itself."""


async def _delete_queues(urls: Urls, deployment: str) -> None:
    queues = amqp_queues.Queues(deployment)
    connection = await aio_pika.connect(urls[Kind.RABBITMQ])
    async with connection:
        channel = await connection.channel()
        for lane in Lane:
            for name in (queues.lane(lane), queues.back(lane), queues.dead(lane)):
                await channel.queue_delete(name)


async def _junk_by_amqp(urls: Urls, deployment: str, lane: Lane) -> None:
    connection = await aio_pika.connect(urls[Kind.RABBITMQ])
    async with connection:
        channel = await connection.channel()
        queue = amqp_queues.Queues(deployment).lane(lane)
        await channel.default_exchange.publish(aio_pika.Message(b"no entry\x00\xff"), queue)


def _rabbitmq(store: Kind) -> Adapter:
    return Adapter(
        name="rabbitmq",
        servers=(Kind.RABBITMQ, store),
        gateway=lambda urls, deployment, node, most: rabbitmq.gateway(
            urls[store], urls[Kind.RABBITMQ], deployment, node, most
        ),
        worker=lambda urls, deployment, consumer: rabbitmq.worker(
            urls[store], urls[Kind.RABBITMQ], deployment, consumer
        ),
        modules=("adapters.rabbitmq", "adapters.amqp_link", "adapters.redis_state", "adapters.redis_store"),
        junk=_junk_by_amqp,
        letters=lambda urls, _: _letters(urls, store),
        clean=_delete_queues,
        lacks={
            "test_what_was_lost_on_its_way_does_not_count_as_handed_out": "RabbitMQ counts whatever is put back to it",
        },
        slow=True,
    )


ADAPTERS = (_streams("redis", Kind.REDIS), _streams("valkey", Kind.VALKEY, slow=True), _rabbitmq(Kind.REDIS))
