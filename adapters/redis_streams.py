"""The broker on Redis Streams: one stream a lane, one consumer group, one reply stream a gateway boot.

Acknowledging deletes (XACK and XDEL in the script that settles), so a stream's length is exactly what waits and what is
in hand. Groups begin at 0, never at $: what was admitted before a group existed is taken too.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import REAP, RELEASE, RETIRE, RETURN
from adapters.redis_link import Batch, Command, Link, refusal
from adapters.redis_state import (
    BLOCK_MS,
    BLOCK_SECONDS,
    GatewayState,
    WorkerState,
    letter,
    to_entry,
    to_fields,
    to_map,
)
from adapters.redis_store import RedisStore
from adapters.together import together
from app.messages import Lane
from app.ports import (
    Admitted,
    Delivery,
    Entry,
    Expired,
    Full,
    Known,
    Record,
    Sealed,
    Settlement,
    Signed,
)
from app.records import Limit

log = logging.getLogger("finthenticate")

TAKEN_OVER_AFTER_MS = 5_000  # far more than any work in hand takes: credit is about 100 ms of it
SPOKEN_FOR_MS = 1_000  # what is in a worker's hand for longer needs its word; far more than an answer is on its way
CONSUMER_GONE_MS = 600_000


def gateway(redis_url: str, node: str, max_queue: int) -> RedisGateway:
    return RedisGateway(Batch(Link(redis_url, "gateway")), Link(redis_url, "replies"), node, max_queue)


def worker(redis_url: str, consumer: str) -> tuple[RedisWorker, RedisStore]:
    batch = Batch(Link(redis_url, "worker"))
    store = RedisStore(batch)
    return RedisWorker(batch, store, {lane: Link(redis_url, f"take-{lane}") for lane in Lane}, consumer), store


class RedisGateway(GatewayState):
    """GatewayBroker for one node."""

    COUNT = "XLEN"

    @staticmethod
    def holds(lane: Lane) -> str:
        return names.lane(lane)

    async def admit(self, entry: Entry, patience: float) -> Admitted | Full | Expired | Known:
        return await self.let_in(entry, patience, "XADD", "*", *to_fields(entry))

    def replies(self) -> AsyncIterator[Sealed | Signed]:
        return self.words()


class RedisWorker(WorkerState):
    """WorkerBroker for one worker. `links`: a connection for each lane's blocking reads."""

    def __init__(self, batch: Batch, store: RedisStore, links: dict[Lane, Link], consumer: str) -> None:
        super().__init__(batch, consumer)
        self._store, self._links = store, links

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        entries = await read_group(self._links[lane], names.lane(lane), names.GROUP, self._consumer, most)
        return [_delivery(lane, id, fields) for id, fields in entries]

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        entry = delivery.entry
        assert entry is not None  # what could not be read is buried, not settled
        settled = await self._store.settle(entry, settlement, _acknowledge(delivery), patience)
        return settled.state

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        assert delivery.entry is not None
        await self._store.drop(delivery.entry.rid, limits, _acknowledge(delivery))

    async def give_back(self, delivery: Delivery) -> None:
        keys = [names.lane(delivery.lane), names.lane_count(delivery.lane)]
        await self._batch.script(RETURN, keys, names.GROUP, delivery.token)

    async def release(self, delivery: Delivery) -> None:
        args = (names.GROUP, self._consumer, TAKEN_OVER_AFTER_MS, delivery.token)
        await self._batch.script(RELEASE, [names.lane(delivery.lane)], *args)

    async def bury(
        self,
        delivery: Delivery,
        reason: str,
        failure: tuple[str, Signed] | None,
        record: Record | None,
        limits: tuple[Limit, ...],
    ) -> None:
        rid = delivery.entry.rid if delivery.entry else delivery.token
        await self._store.drop(rid, limits, _acknowledge(delivery), record, failure, letter(delivery, reason))

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        args = (names.GROUP, self._consumer, TAKEN_OVER_AFTER_MS, most, CONSUMER_GONE_MS, SPOKEN_FOR_MS)
        try:
            claimed = await self._batch.script(REAP, [names.lane(lane)], *args, *held)
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            return []  # `take` makes the group anew
        return [_delivery(lane, id, fields, deliveries + 1) for id, deliveries, fields in claimed]

    async def leave(self) -> None:
        retired = [self._batch.script(RETIRE, [names.lane(lane)], names.GROUP, self._consumer) for lane in self._links]
        await together(super().leave(), *retired)

    async def close(self) -> None:
        await super().close()
        for link in self._links.values():
            await link.close()


async def read_group(
    link: Link, stream: str, group: str, consumer: str, most: int, block_ms: int | None = None
) -> list[tuple[bytes, Any]]:
    """What nobody was handed yet."""
    block_ms = BLOCK_MS if block_ms is None else block_ms  # not a default, which would be what it was at the start
    command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", most, "BLOCK", block_ms, "STREAMS", stream, ">")
    try:
        answer = await link.call(*command, seconds=BLOCK_SECONDS)
    except ResponseError as error:
        # UNBLOCKED is how Redis 7.0 says that the stream was deleted under a blocked read
        if not any(word in str(error) for word in ("NOGROUP", "UNBLOCKED")):
            raise refusal(error) from None
        await _create_group(link, stream, group)
        return []
    return [(id, fields) for _, entries in answer or () for id, fields in entries]


async def _create_group(link: Link, stream: str, group: str) -> None:
    """At 0: nothing that is there already is passed over."""
    try:
        await link.call("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
        log.info("group made", extra={"fields": {"stream": stream}})
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise refusal(error) from None


def _acknowledge(delivery: Delivery) -> list[Command]:
    return _ended(names.lane(delivery.lane), names.GROUP, delivery.token)


def _ended(stream: str, group: str, id: str) -> list[Command]:
    return [("XACK", stream, group, id), ("XDEL", stream, id)]


def _delivery(lane: Lane, id: bytes, fields: Sequence[bytes] | None, deliveries: int = 1) -> Delivery:
    return Delivery(lane, id.decode(), to_entry(lane, to_map(fields or ())), deliveries)
