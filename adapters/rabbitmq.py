"""The broker on RabbitMQ: a quorum queue a lane, a reply queue a gateway boot. Redis stays the store and the fence.

Admission and its places, what is known of a request, deadlines and effects are Redis's, as with streams. An entry goes
to RabbitMQ after Redis has let it in, and is acknowledged last: effects, then replies, then the delivery. So a delivery
that comes again finds its done marker, and with it what was to be told, which is told again.

Queues, all durable, for a deployment named D:
    D.LANE           quorum; full: the publisher is refused; handed out too often: to D.LANE.dead
    D.LANE.dead      for a worker to bury
    D.replies.NODE   of a gateway boot; goes a minute after its reader
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)

from adapters import names
from adapters.lua import UNDO
from adapters.redis_link import LOOK_AGAIN_SECONDS, Batch, Link
from adapters.redis_state import GatewayState, WorkerState, letter, to_entry, to_fields, to_map, to_reply
from adapters.redis_store import DONE_KEPT_MS, Post, RedisStore
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
from app.settings import Fault

log = logging.getLogger("finthenticate")
for _library in ("aio_pika", "aiormq"):  # what goes wrong there is raised, and said by who meets it
    logging.getLogger(_library).setLevel(logging.CRITICAL)

LEAST_VERSION = (3, 10)
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 1.0  # a publish is confirmed within this, or its outcome is unknown
HEARTBEAT_SECONDS = 5  # a peer that is silent for twice as long is dead
TAKE_SECONDS = 1.0
LEFT_SECONDS = 1.0
REPLIES_AT_ONCE = 500
DELIVERY_LIMIT = 5  # a worker buries at the third; past this the broker itself takes it out
MOST_IN_A_LANE = 100_000  # the bound of admission is Redis's; this one is for what that has forgotten
DEAD_KEPT = 10_000
REPLIES_KEPT = 10_000
REPLIES_EXPIRE_MS = 60_000
SEEN_KEPT = 10_000
PROBE = "probe"  # the type of a message that only proves that its lane is written to

pack = msgspec.msgpack.encode
T = TypeVar("T")
Arguments = dict[str, Any]


def gateway(redis_url: str, amqp_url: str, deployment: str, node: str, max_queue: int) -> RabbitGateway:
    return RabbitGateway(Batch(Link(redis_url, "gateway")), amqp_url, deployment, node, max_queue)


def worker(redis_url: str, amqp_url: str, deployment: str, consumer: str) -> tuple[RabbitWorker, RedisStore]:
    batch = Batch(Link(redis_url, "worker"))
    store = RedisStore(batch, replies=None)
    return RabbitWorker(batch, store, amqp_url, deployment, consumer), store


class NotTaken(Unavailable):
    """The broker has refused a message, for want of room."""


class Line:
    """One connection with one channel, opened at first use, and again after a failure. Nothing is ever sent again."""

    def __init__(self, url: str, name: str, opened: Callable[[AbstractChannel], Awaitable[None]]) -> None:
        self._url, self._name, self._opened = url, name, opened
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._opening: asyncio.Task[AbstractChannel] | None = None

    async def channel(self) -> AbstractChannel:
        """Whoever comes while it is being opened waits for that one attempt, and shares its end."""
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        if self._opening is None:
            self._opening = asyncio.create_task(self._open_anew())
            self._opening.add_done_callback(self._opened_or_not)
        return await asyncio.shield(self._opening)

    async def publish(self, queue: str, body: bytes, id: str) -> bool:
        """True when the broker has it for good; False: there is no such queue. NotTaken where that is full."""
        channel = await self.channel()
        message = aio_pika.Message(body, message_id=id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        try:
            await attempt(channel.default_exchange.publish(message, queue), ANSWER_SECONDS)
        except PublishError:
            return False
        except DeliveryError:
            raise NotTaken(f"RabbitMQ: {queue} is full") from None
        except Unavailable:
            if channel is self._channel:  # what is in its buffers must not be sent when nobody counts on it any more
                await self._drop()
            raise
        return True

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._drop()

    def _opened_or_not(self, opening: asyncio.Task[AbstractChannel]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # told to whoever waits for it; perhaps nobody does any more

    async def _open_anew(self) -> AbstractChannel:
        await self._drop()
        try:
            self._channel = await attempt(self._open(), CONNECT_SECONDS)
        except BaseException:
            await self._drop()
            raise
        return self._channel

    @property
    def version(self) -> tuple[int, int]:
        """Of the server, once a channel is open."""
        properties = getattr(self._connection.transport.connection, "server_properties", {})  # type: ignore[union-attr]
        major, minor, *_ = (int(part) for part in re.findall(r"\d+", str(properties.get("version", "0.0"))))
        return major, minor

    async def _open(self) -> AbstractChannel:
        properties: Any = {"connection_name": f"finthenticate-{self._name}"}
        self._connection = await aio_pika.connect(
            self._url, client_properties=properties, heartbeat=HEARTBEAT_SECONDS, timeout=CONNECT_SECONDS
        )
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        await self._opened(channel)
        return channel

    async def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(connection.close(), ANSWER_SECONDS)


async def attempt(call: Awaitable[T], seconds: float) -> T:
    """The answer. DeliveryError is one; everything else that goes wrong is Unavailable: what was done is unknown."""
    try:
        return await asyncio.wait_for(call, seconds)
    except DeliveryError:
        raise
    except (AMQPError, OSError, TimeoutError, RuntimeError, EOFError) as error:
        raise Unavailable(f"RabbitMQ: {type(error).__name__}: {error}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable("RabbitMQ: the connection was lost") from None  # how aiormq says it to who waits


class Inbox:
    """What one queue hands out, so much of it at once. After a failure nothing of before can be acknowledged."""

    def __init__(self, url: str, name: str, make: Callable[[AbstractChannel], Awaitable[AbstractQueue]]) -> None:
        self._line = Line(url, name, self._opened)
        self._make = make
        self._queue: AbstractQueue | None = None
        self._consumer = ""
        self._waiting: deque[AbstractIncomingMessage] = deque()
        self._there = asyncio.Event()
        self._prefetch = 0
        self._gone = False

    async def take(self, most: int) -> list[AbstractIncomingMessage]:
        """Waits a moment for the first."""
        if self._gone:
            await self._line.close()
        channel = await self._line.channel()
        if most > self._prefetch:
            self._prefetch = most + most // 2  # what is being settled is not acknowledged yet
            await attempt(self._consume(channel), ANSWER_SECONDS)
        if not self._waiting:
            self._there.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._there.wait(), TAKE_SECONDS)
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    async def open(self) -> None:
        await self._line.channel()

    async def close(self) -> None:
        """What was not acknowledged is handed to somebody else."""
        await self._line.close()

    async def _opened(self, channel: AbstractChannel) -> None:
        self._waiting.clear()
        self._gone = False
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(self._cancelled)
        self._queue, self._consumer = await self._make(channel), ""
        if self._prefetch:
            await self._consume(channel)

    async def _consume(self, channel: AbstractChannel) -> None:
        """As much at once as is wanted now: that is fixed for the life of a consumer."""
        assert self._queue is not None  # made when the channel was opened
        if self._consumer:
            await self._queue.cancel(self._consumer)
        await channel.set_qos(prefetch_count=self._prefetch)
        self._consumer = await self._queue.consume(self._receive)

    def _cancelled(self, _: object) -> None:
        """The broker hands out nothing more here: the queue was deleted, or its node is gone."""
        self._gone = True
        self._there.set()

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        self._waiting.append(message)
        self._there.set()


async def acknowledge(message: AbstractIncomingMessage, *, multiple: bool = False) -> None:
    """Where its connection is gone it comes again, to somebody, and is found done."""
    with suppress(Unavailable):
        await attempt(message.ack(multiple=multiple), ANSWER_SECONDS)


class Queues:
    """The names of a deployment's queues, and how they are made."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment

    def lane(self, lane: Lane) -> str:
        return f"{self._deployment}.{lane}"

    def dead(self, lane: Lane) -> str:
        return f"{self.lane(lane)}.dead"

    def replies(self, node: str) -> str:
        return f"{self._deployment}.replies.{node}"

    async def make_lane(self, channel: AbstractChannel, lane: Lane) -> AbstractQueue:
        kept: Arguments = {"x-max-length": DEAD_KEPT}
        await channel.declare_queue(self.dead(lane), durable=True, arguments=kept)
        return await channel.declare_queue(
            self.lane(lane),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.dead(lane),
                "x-max-length": MOST_IN_A_LANE,
                "x-overflow": "reject-publish",
            },
        )

    async def make_lanes(self, channel: AbstractChannel) -> None:
        for lane in Lane:
            await self.make_lane(channel, lane)

    async def prove_lanes(self, channel: AbstractChannel) -> None:
        """Made, and written to: a quorum queue without a leader is declared like any other, and confirms nothing."""
        await self.make_lanes(channel)
        for lane in Lane:
            await channel.default_exchange.publish(aio_pika.Message(b"", type=PROBE), self.lane(lane))

    async def make_replies(self, channel: AbstractChannel, node: str) -> AbstractQueue:
        kept: Arguments = {"x-expires": REPLIES_EXPIRE_MS, "x-max-length": REPLIES_KEPT}
        return await channel.declare_queue(self.replies(node), durable=True, arguments=kept)


class RabbitGateway(GatewayState):
    """GatewayBroker for one node."""

    COUNT = "ZCARD"

    def __init__(self, batch: Batch, url: str, deployment: str, node: str, max_queue: int) -> None:
        super().__init__(batch, node, max_queue)
        self._queues = queues = Queues(deployment)
        self._line = Line(url, "gateway", queues.prove_lanes)
        self._inbox = Inbox(url, "replies", lambda channel: queues.make_replies(channel, node))
        self._offset = time.time() * 1000 - time.monotonic() * 1000
        self._seen: dict[str, None] = {}
        self._lapsed = False  # it counted as dead, and nobody was told yet
        self._closed = False

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

    async def replies(self) -> AsyncIterator[Sealed | Signed]:
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
                await acknowledge(messages[-1], multiple=True)

    async def heartbeat(self) -> tuple[Clock, bool]:
        clock, lapsed = await super().heartbeat()
        self._lapsed |= lapsed
        self._offset = clock.now - time.monotonic() * 1000
        forgotten = [("ZREMRANGEBYSCORE", self.holds(lane), "-inf", clock.now - DONE_KEPT_MS) for lane in Lane]
        await asyncio.gather(*(self._batch.command(*command) for command in forgotten))
        await self._open()  # a node is not ready before it could admit
        lapsed, self._lapsed = self._lapsed, False
        return clock, lapsed

    async def close(self) -> None:
        self._closed = True
        await super().close()
        await self._line.close()
        await self._inbox.close()

    async def _open(self) -> None:
        """Both ways: the lanes take what is written, and its reply has somewhere to go."""
        await asyncio.gather(self._line.channel(), self._inbox.open())

    async def _undo(self, entry: Entry) -> None:
        keys = [names.done(entry.rid), self.holds(entry.lane)]
        if entry.same and not entry.replay:
            keys += [names.same(entry.same), names.joined(entry.same)]
        await self._batch.script(UNDO, keys, entry.rid, DONE_KEPT_MS)

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
        self._inboxes = {
            lane: Inbox(url, f"take-{lane}", lambda channel, lane=lane: queues.make_lane(channel, lane))  # type: ignore[misc]
            for lane in Lane
        }
        self._in_hand: dict[str, tuple[Lane, AbstractIncomingMessage, float]] = {}  # since when, monotonic
        self._tokens = 0

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        messages = await self._inboxes[lane].take(most)
        for probe in (message for message in messages if message.type == PROBE):
            await acknowledge(probe)
        return [
            self._delivery(lane, message, int(str((message.headers or {}).get("x-delivery-count", 0))) + 1)
            for message in messages
            if message.type != PROBE
        ]

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
        await self.release(delivery)

    async def release(self, delivery: Delivery) -> None:
        """To the tail of its lane, as a new message: what the broker itself puts back it counts as handed out."""
        if delivery.token in self._in_hand and delivery.entry is not None:
            body = self._in_hand[delivery.token][1].body
            if await self._line.publish(self._queues.lane(delivery.lane), body, delivery.entry.rid):
                await self._acknowledge(delivery)

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
        """What dead workers held the broker hands out by itself; what it has given up is left to take, and what is here
        and nobody is at work on goes back to it."""
        await self._put_back(lane, frozenset(held))
        channel = await self._line.channel()
        queue = await attempt(channel.get_queue(self._queues.dead(lane), ensure=False), ANSWER_SECONDS)
        found: list[Delivery] = []
        while len(found) < most:
            message = await attempt(queue.get(fail=False), ANSWER_SECONDS)
            if message is None:
                break
            found.append(self._delivery(lane, message, DELIVERY_LIMIT + 1))
        return found

    async def close(self) -> None:
        for inbox in self._inboxes.values():
            await inbox.close()
        await super().close()
        await self._line.close()

    def _delivery(self, lane: Lane, message: AbstractIncomingMessage, deliveries: int) -> Delivery:
        self._tokens += 1
        token = str(self._tokens)
        self._in_hand[token] = (lane, message, time.monotonic())
        return Delivery(lane, token, _entry(lane, message.body), deliveries)

    def _forget(self, entry: Entry) -> list[tuple[str, ...]]:
        return [("ZREM", names.lane_open(entry.lane), entry.rid)]

    async def _tell(self, rid: str, posts: Sequence[Post]) -> None:
        """To each node what is for it. A node that is dead has no queue, and need not know."""
        await asyncio.gather(
            *(
                self._line.publish(self._queues.replies(node), pack(fields), f"{rid}:{n}")
                for n, (node, fields) in enumerate(posts)
            )
        )

    async def _acknowledge(self, delivery: Delivery) -> None:
        if (held := self._in_hand.pop(delivery.token, None)) is not None:
            await acknowledge(held[1])

    async def _put_back(self, lane: Lane, held: frozenset[str]) -> None:
        long_ago = time.monotonic() - LEFT_SECONDS
        for token, (its_lane, message, since) in list(self._in_hand.items()):
            if its_lane is lane and since < long_ago and token not in held:
                del self._in_hand[token]
                with suppress(Unavailable):  # its connection is gone: it is back already
                    await attempt(message.nack(requeue=True), ANSWER_SECONDS)


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


async def check_broker(url: str, deployment: str) -> None:
    """Wait for the broker, then Fault where it is too old, does not let us in, or has our queues made otherwise."""
    while True:
        try:
            await _check_broker(url, deployment)
            return
        except Unavailable as away:
            if (fault := _fault(away.__cause__)) is not None:
                raise Fault(f"FIN_BROKER_URL: {fault}") from None
            await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def _check_broker(url: str, deployment: str) -> None:
    line = Line(url, "check", Queues(deployment).make_lanes)
    try:
        await line.channel()
        if line.version < LEAST_VERSION:
            raise Fault(f"FIN_BROKER_URL: RabbitMQ is {'.'.join(map(str, line.version))}, older than 3.10.")
    finally:
        await line.close()


def _fault(cause: BaseException | None) -> str | None:
    """A sentence for what no waiting mends."""
    if isinstance(cause, AuthenticationError | ProbableAuthenticationError):
        return "RabbitMQ refuses our name or password."
    if isinstance(cause, ChannelPreconditionFailed):
        return f"a queue of ours exists with other arguments; delete it, or set FIN_DEPLOYMENT ({cause})."
    if isinstance(cause, InvalidFrameError) and "OpenOk" in str(cause):  # how aiormq says NOT_ALLOWED
        return "RabbitMQ does not let us into the virtual host that the URL names."
    return None
