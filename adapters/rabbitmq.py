"""The broker on RabbitMQ: a quorum queue a lane, a reply queue a gateway boot. Redis stays the store and the fence.

Admission and its places, what is known of a request, deadlines and effects are Redis's, as with streams. An entry goes
to RabbitMQ after Redis has let it in, and is acknowledged last: effects, then replies, then the delivery. So a delivery
that comes again finds its done marker, and with it what was to be told, which is told again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from adapters import names
from adapters.amqp_link import Inbox, Line, Message, NotTaken, lives
from adapters.amqp_queues import DELIVERY_LIMIT, PROBE, Queues
from adapters.lua import UNDO
from adapters.redis_link import Batch, Link
from adapters.redis_state import GatewayState, WorkerState, letter, to_entry, to_fields, to_map, to_reply
from adapters.redis_store import DONE_KEPT_MS, REPLIES_KEPT, REPLIES_KEPT_MS, Post, RedisStore, text
from adapters.together import together
from app.messages import Lane
from app.ports import (
    Admitted,
    Clock,
    Delivery,
    Entry,
    Expired,
    Full,
    Known,
    Record,
    Sealed,
    Settlement,
    Signed,
    Unavailable,
)
from app.records import Limit

log = logging.getLogger("finthenticate")

LEFT_SECONDS = 1.0  # what a worker has had for longer and is not at work on, it has left
REPLIES_AT_ONCE = 500
SEEN_KEPT = 10_000
TIMES_BEFORE = "times-before"  # the header of a message that was handed out in vain before it was written anew

pack = msgspec.msgpack.encode
T = TypeVar("T")


def gateway(redis_url: str, amqp_url: str, deployment: str, node: str, max_queue: int) -> RabbitGateway:
    reader = Link(redis_url, "replies")
    return RabbitGateway(Batch(Link(redis_url, "gateway")), reader, amqp_url, deployment, node, max_queue)


def worker(redis_url: str, amqp_url: str, deployment: str, consumer: str) -> tuple[RabbitWorker, RedisStore]:
    batch = Batch(Link(redis_url, "worker"))
    store = RedisStore(batch, replies=None)
    return RabbitWorker(batch, store, amqp_url, deployment, consumer), store


async def _merged(*sources: AsyncIterator[T]) -> AsyncIterator[T]:
    """What any of them yields, as it comes, and what any of them raises; ends when all have."""
    coming: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(1)

    async def pour(source: AsyncIterator[T]) -> None:
        try:
            async for each in source:
                await coming.put((each,))
        except Exception as error:
            await coming.put(error)
        else:
            await coming.put(None)

    pouring = [asyncio.create_task(pour(source)) for source in sources]
    try:
        for _ in pouring:
            while (found := await coming.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found[0]
    finally:
        for task in pouring:
            task.cancel()


class RabbitGateway(GatewayState):
    """GatewayBroker for one node."""

    COUNT = "ZCARD"

    def __init__(self, batch: Batch, reader: Link, url: str, deployment: str, node: str, max_queue: int) -> None:
        super().__init__(batch, reader, node, max_queue)
        self._queues = queues = Queues(deployment)
        self._line = Line(url, "gateway", queues.prove_lanes)
        self._inbox = Inbox(url, "replies", lambda channel: queues.make_replies(channel, node))
        self._offset = time.time() * 1000 - time.monotonic() * 1000
        self._seen: dict[str, None] = {}
        self._lapsed = False  # it counted as dead, and nobody was told yet

    @staticmethod
    def holds(lane: Lane) -> str:
        return names.lane_open(lane)

    async def admit(self, entry: Entry, patience: float) -> Admitted | Full | Expired | Known:
        await self._open()  # away: said before anything is let in
        now = int(time.monotonic() * 1000 + self._offset)
        answer = await self.let_in(entry, patience, "ZADD", now, entry.rid)
        if isinstance(answer, Admitted):
            try:
                if not await self._line.publish(self._queues.lane(entry.lane), pack(to_fields(entry)), entry.rid):
                    await self._line.close()  # its queue was deleted: it is made with the next connection
                    raise Unavailable("RabbitMQ: the lane has no queue")
            except NotTaken:
                await self._undo(entry)
                return Full(None)
            except Unavailable:
                await self._undo(entry)  # whoever sends it again need not wait for what may never come
                raise
        return answer

    def replies(self) -> AsyncIterator[Sealed | Signed]:
        return _merged(self._replies(), self.words())

    async def _replies(self) -> AsyncIterator[Sealed | Signed]:
        while not self._closed:
            try:
                messages = await self._inbox.take(REPLIES_AT_ONCE)
            except Unavailable as error:
                log.warning("replies cannot be read", extra={"fields": {"reason": str(error)}})
                await asyncio.sleep(0.2)
                continue
            for message in messages:
                if self._is_new(message.message_id or "") and (reply := _reply(message.body)) is not None:
                    yield reply
            if messages:
                await self._inbox.acknowledge(messages[-1], multiple=True)

    async def heartbeat(self) -> tuple[Clock, bool]:
        clock, lapsed = await super().heartbeat()
        self._lapsed |= lapsed
        self._offset = clock.now - time.monotonic() * 1000
        forgotten = [("ZREMRANGEBYSCORE", self.holds(lane), "-inf", clock.now - DONE_KEPT_MS) for lane in Lane]
        await together(*(self._batch.command(*command) for command in forgotten))
        await self._open()  # a node is not ready before it could admit
        lapsed, self._lapsed = self._lapsed, False
        return clock, lapsed

    async def close(self) -> None:
        await super().close()
        await self._line.close()
        await self._inbox.close()

    async def _open(self) -> None:
        """Both ways: the lanes take what is written, and its reply has somewhere to go."""
        await together(self._line.channel(), self._inbox.open())

    async def _undo(self, entry: Entry) -> None:
        keys, word = [names.done(entry.rid), self.holds(entry.lane)], entry.in_vain or Signed(b"", b"")
        if entry.same and not entry.replay:
            keys += [names.same(entry.same), names.joined(entry.same)]
        about = (names.REPLIES, REPLIES_KEPT, REPLIES_KEPT_MS, text(word.body), text(word.mac))
        await self._batch.script(UNDO, keys, entry.rid, DONE_KEPT_MS, *about)

    def _is_new(self, id: str) -> bool:
        """What a worker tells again after a failure has been told already, perhaps."""
        if id in self._seen:
            return False
        self._seen[id] = None
        if len(self._seen) > SEEN_KEPT:
            del self._seen[next(iter(self._seen))]
        return True


class RabbitWorker(WorkerState):
    """WorkerBroker for one worker. `store` gives what is to be told to nodes back to its caller."""

    def __init__(self, batch: Batch, store: RedisStore, url: str, deployment: str, consumer: str) -> None:
        super().__init__(batch, consumer)
        self._store = store
        self._queues = queues = Queues(deployment)
        self._line = Line(url, "worker", queues.make_lanes)
        self._inboxes = {lane: self._inbox(url, lane) for lane in Lane}
        self._in_hand: dict[str, Held] = {}  # by token
        self._tokens = 0

    def _inbox(self, url: str, lane: Lane) -> Inbox:
        async def hand_back(messages: Sequence[Message]) -> None:
            befores = await together(*map(self._in_vain, messages))
            await together(*map(partial(self._put_there, self._queues.back(lane), lane), messages, befores))

        return Inbox(url, f"take-{lane}", lambda channel: self._queues.make_lane(channel, lane), hand_back)

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        inbox = self._inboxes[lane]
        found = await inbox.take(most)
        for probe in (message for message in found if message.type == PROBE):
            await inbox.acknowledge(probe)
        deliveries = (self._delivery(lane, message) for message in found if message.type != PROBE)
        return await together(*deliveries) or await self._handed_back(lane, 1)

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        entry = delivery.entry
        assert entry is not None  # what could not be read is buried, not settled
        settled = await self._store.settle(entry, settlement, self._forget(entry), patience)
        if settled.state not in ("conflict", "full"):
            await self._tell(entry.rid, settled.posts)
            await self._acknowledge(delivery)
        return settled.state

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        entry = delivery.entry
        assert entry is not None
        settled = await self._store.drop(entry.rid, limits, self._forget(entry))
        await self._tell(entry.rid, settled.posts)
        await self._acknowledge(delivery)

    async def give_back(self, delivery: Delivery) -> None:
        await self._return(self._queues.lane(delivery.lane), delivery.token)

    async def release(self, delivery: Delivery) -> None:
        await self._return(self._queues.back(delivery.lane), delivery.token)

    async def bury(
        self,
        delivery: Delivery,
        reason: str,
        failure: tuple[str, Signed] | None,
        record: Record | None,
        limits: tuple[Limit, ...],
    ) -> None:
        entry = delivery.entry
        rid = entry.rid if entry else f"{self._consumer}-{delivery.token}"
        delivered = self._forget(entry) if entry else []
        settled = await self._store.drop(rid, limits, delivered, record, failure, letter(delivery, reason))
        await self._tell(rid, settled.posts)
        await self._acknowledge(delivery)

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        """What dead workers held the broker hands out by itself. What is here and nobody is at work on goes back; left
        to take is what others handed back, and what the broker has given up."""
        long_ago = time.monotonic() - LEFT_SECONDS  # by the clock by which `held` is all that is at work
        await self._excuse(lane)  # that needs no RabbitMQ
        await self._line.channel()
        await self._put_back(lane, frozenset(held), long_ago)
        found = await self._handed_back(lane, most)
        while len(found) < most and (message := await self._line.get(self._queues.dead(lane))) is not None:
            found.append(replace(await self._delivery(lane, message), deliveries=DELIVERY_LIMIT + 1))
        return found

    async def _handed_back(self, lane: Lane, most: int) -> list[Delivery]:
        """In a busy lane looked for by `reap` alone, which is soon enough."""
        found: list[Delivery] = []
        while len(found) < most and (message := await self._line.get(self._queues.back(lane))) is not None:
            found.append(await self._delivery(lane, message))
        return found

    async def leave(self) -> None:
        await together(super().leave(), *(inbox.rest() for inbox in self._inboxes.values()))

    async def close(self) -> None:
        await together(*(inbox.rest() for inbox in self._inboxes.values()))
        await together(*(inbox.close() for inbox in self._inboxes.values()))
        await super().close()
        await self._line.close()

    async def _delivery(self, lane: Lane, message: Message) -> Delivery:
        self._tokens += 1
        token = str(self._tokens)
        self._in_hand[token] = held = Held(lane, message)
        try:
            held.deliveries = 1 + await self._in_vain(message)
        finally:
            held.since = time.monotonic()
        return Delivery(lane, token, _entry(lane, message.body), held.deliveries)

    async def _in_vain(self, message: Message) -> int:
        """How often it was handed out before. RabbitMQ's own count says only that it was: its death and every lost
        connection add to it, though no worker died of anything. So what comes again is counted in Redis by who gets it.
        """
        before, again = number(message, TIMES_BEFORE), number(message, "x-delivery-count") > 0
        if not before and not again:
            return 0
        try:  # what is written anew is looked up, since it may have been excused meanwhile
            return max(0, await self._add(message, int(again)))
        except Unavailable:
            return before + again

    async def _add(self, message: Message, count: int) -> int:
        key = names.again(message.message_id or "")
        calls = (("INCRBY", key, count), ("PEXPIRE", key, DONE_KEPT_MS))
        total, _ = await together(*(self._batch.command(*call) for call in calls))
        return int(total)

    async def _excuse(self, lane: Lane) -> None:
        """What a lost connection took out of the hand of a worker that lives has not killed it: it will not count."""
        lost = self._inboxes[lane].lost
        while lost:
            message = lost.pop()
            try:
                await self._add(message, -1)
            except Unavailable:
                lost.append(message)
                raise
        for held in list(self._in_hand.values()):
            if held.lane is lane:
                await self._excuse_if_lost(held)

    async def _excuse_if_lost(self, held: Held) -> None:
        if not held.excused and not lives(held.message):
            held.excused = True
            try:
                await self._add(held.message, -1)
            except Unavailable:
                held.excused = False
                raise

    def _forget(self, entry: Entry) -> list[tuple[str, ...]]:
        return [("ZREM", names.lane_open(entry.lane), entry.rid)]

    async def _tell(self, rid: str, posts: Sequence[Post]) -> None:
        """To each node what is for it. A node that is dead has no queue, and need not know."""
        await together(
            *(
                self._line.publish(self._queues.replies(node), pack(fields), f"{rid}:{n}")
                for n, (node, fields) in enumerate(posts)
            )
        )

    async def _acknowledge(self, delivery: Delivery) -> None:
        if (held := self._in_hand.pop(delivery.token, None)) is not None:
            await self._inboxes[held.lane].acknowledge(held.message)

    async def _put_back(self, lane: Lane, held: frozenset[str], long_ago: float) -> None:
        """It has not killed its worker, whatever became of it, and so does not count."""
        left = [
            token
            for token, its in self._in_hand.items()
            if its.lane is lane and its.since < long_ago and token not in held
        ]
        await together(*(self._return(self._queues.back(lane), token) for token in left))

    async def _return(self, queue: str, token: str) -> None:
        """Once, however often it is asked; after Unavailable it is in hand again."""
        if (held := self._in_hand.pop(token, None)) is not None:
            try:
                await self._put_there(queue, held.lane, held.message, held.deliveries - 1)
                await self._excuse_if_lost(held)
            except Unavailable:
                self._in_hand[token] = held
                raise

    async def _put_there(self, queue: str, lane: Lane, message: Message, before: int) -> None:
        """As a new message, since the broker counts what it puts back itself as handed out once more."""
        if not lives(message):
            return  # it is back already
        headers = {TIMES_BEFORE: before}
        if message.type == PROBE or await self._line.publish(queue, message.body, message.message_id or "", headers):
            await self._inboxes[lane].acknowledge(message)


@dataclass
class Held:
    """`deliveries`: this one included. `excused`: its connection is lost, and that does not count."""

    lane: Lane
    message: Message
    since: float = math.inf  # time.monotonic(), once it is known how often it was handed out
    deliveries: int = 1
    excused: bool = False


def number(message: Message, header: str) -> int:
    """0 where there is none: who can write to the queue can write anything."""
    found = (message.headers or {}).get(header, 0)
    return found if isinstance(found, int) else 0


def _entry(lane: Lane, body: bytes) -> Entry | None:
    fields = _fields(body)
    return to_entry(lane, fields) if fields is not None else None


def _reply(body: bytes) -> Sealed | Signed | None:
    fields = _fields(body)
    return to_reply(fields) if fields is not None else None


def _fields(body: bytes) -> dict[str, bytes] | None:
    """Names and values in turn, as `pack` packed them."""
    try:
        flat = msgspec.msgpack.decode(body, type=list[Any])
        return to_map([item if isinstance(item, bytes) else str(item).encode() for item in flat])
    except (msgspec.MsgspecError, ValueError):
        return None
