"""Connections to RabbitMQ: a line that is opened when it is needed, and what one queue hands out over it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.connection import make_url
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from adapters.together import cancellation_first
from app.ports import Unavailable

for _library in ("aio_pika", "aiormq"):  # what goes wrong there is raised, and said by who meets it
    logging.getLogger(_library).setLevel(logging.CRITICAL)

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 2.0  # what is asked for is answered within this, or the connection is no good
CLOSE_SECONDS = 1.0
# A publish is confirmed within this, or its outcome is unknown. In a storm confirmations take more than a second, and
# giving up what is on its way would make them take longer still; but a broker that confirms nothing at all is away. It
# is looked for so often, not timed, for it may be this process that is held up, with confirmations unread. What is
# fetched counts like what is confirmed; but it has twice as long, since nobody waits for just that.
CONFIRM_SECONDS = 5.0
LOOK_SECONDS, SILENT_LOOKS, SILENT_LOOKS_OF_A_GET = 0.25, 4, 8
HEARTBEAT_SECONDS = 1  # RabbitMQ gives up a peer that was silent for two to three of these, and hands out what it held
TAKE_SECONDS = 1.0
UNASKED_SECONDS = 0.5  # far more than a worker with a backlog lets pass between two takes

T = TypeVar("T")
Message = AbstractIncomingMessage


class NotTaken(Unavailable):
    """The broker has refused a message, for want of room."""


class Patience:
    """Of all that wait for confirmations on one line: it ends for all at once when none of them gets any."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, tuple[int, int]] = {}  # its first look, how many silent ones end it
        self._looks = self._heard = 0  # so far, and when something ended last
        self._next: asyncio.TimerHandle | None = None

    @contextmanager
    def lasts(self, limit: asyncio.Timeout, looks: int = SILENT_LOOKS) -> Iterator[None]:
        """While a confirmation is waited for within `limit`, which is entered inside without a pause."""
        self._limits[limit] = (self._looks, looks)
        if self._next is None:
            self._look_later()
        try:
            yield
        finally:
            del self._limits[limit]
            self._heard = self._looks

    def look(self) -> None:
        """Whether anything ended since the last looks; who has come meanwhile has waited no longer than he did."""
        self._looks += 1
        for limit, (joined, looks) in self._limits.items():
            if self._looks - max(joined, self._heard) >= looks and not limit.expired():
                limit.reschedule(0)

    def _look_later(self) -> None:
        self._next = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_while_anybody_waits)

    def _look_while_anybody_waits(self) -> None:
        self._next = None
        if self._limits:
            self.look()
            self._look_later()


class Transport(TransportFactory):
    """Of one connection, so that it can be cut: a close waits for a peer that reads."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        kind = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self._writer = await kind.create(url, **kwargs)
        return reader, self._writer

    def cut(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class Line:
    """One connection with one channel, opened at first use, and again after a failure. Nothing is ever sent again."""

    def __init__(self, url: str, name: str, opened: Callable[[AbstractChannel], Awaitable[None]]) -> None:
        self._url, self._name, self._opened = url, name, opened
        self._connection: aio_pika.Connection | None = None
        self._transport = Transport()
        self._channel: AbstractChannel | None = None
        self._opening: asyncio.Task[AbstractChannel] | None = None
        self._patience = Patience()

    async def channel(self) -> AbstractChannel:
        """Whoever comes while it is being opened waits for that one attempt, and shares its end."""
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        if self._opening is None:
            self._opening = asyncio.create_task(self._open_anew())
            self._opening.add_done_callback(self._opened_or_not)
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            raise lost() from None

    async def publish(self, queue: str, body: bytes, id: str, headers: Mapping[str, Any] | None = None) -> bool:
        """True when the broker has it for good; False: there is no such queue. NotTaken where that is full."""
        channel = await self.channel()
        mode = aio_pika.DeliveryMode.PERSISTENT
        message = aio_pika.Message(body, message_id=id, delivery_mode=mode, headers=dict(headers or {}))
        limit = asyncio.timeout(CONFIRM_SECONDS)
        try:
            with self._patience.lasts(limit):
                await attempt(channel.default_exchange.publish(message, queue), limit)
        except PublishError:
            return False
        except DeliveryError:
            raise NotTaken(f"RabbitMQ: {queue} is full") from None
        except Unavailable:
            if channel is self._channel:  # what is in its buffers must not be sent when nobody counts on it any more
                await self._drop()
            raise
        return True

    async def get(self, queue: str) -> Message | None:
        """The first that waits there."""
        channel = await self.channel()
        limit = asyncio.timeout(CONFIRM_SECONDS)
        try:
            found = await attempt(channel.get_queue(queue, ensure=False), ANSWER_SECONDS)
            with self._patience.lasts(limit, SILENT_LOOKS_OF_A_GET):
                return await attempt(found.get(fail=False), limit)
        except Unavailable:
            if channel is self._channel:  # what may have been handed out is handed out again
                await self._drop()
            raise

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
        url = make_url(self._url, heartbeat=HEARTBEAT_SECONDS)
        self._connection = aio_pika.Connection(url, client_properties=properties)
        self._connection.kwargs["transport_factory"] = self._transport = Transport()
        cutting = asyncio.get_running_loop().call_later(CONNECT_SECONDS, self._transport.cut)  # as in `_drop`
        try:
            await self._connection.connect(timeout=CONNECT_SECONDS)
        finally:
            cutting.cancel()
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        await self._opened(channel)
        return channel

    async def _drop(self) -> None:
        """Closed for good, or it would be closed by a collector of garbage that waits for nothing. A close that is
        cancelled waits for the peer all the same, so it is not: its transport is cut instead, which ends it.
        """
        connection, transport, self._connection, self._channel = self._connection, self._transport, None, None
        if connection is None:
            return
        closing = asyncio.create_task(connection.close())
        closing.add_done_callback(lambda closed: closed.cancelled() or closed.exception())
        try:
            await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        finally:
            transport.cut()
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)


async def attempt(call: Awaitable[T], within: float | asyncio.Timeout) -> T:
    """The answer. DeliveryError is one; everything else that goes wrong is Unavailable: what was done is unknown.

    `within`: seconds, or a time-out that was not entered yet.
    """
    try:
        with cancellation_first():
            async with within if isinstance(within, asyncio.Timeout) else asyncio.timeout(within):
                return await call
    except DeliveryError:
        raise
    except (AMQPError, OSError, TimeoutError, RuntimeError, EOFError) as error:
        raise Unavailable(f"RabbitMQ: {type(error).__name__}: {error}") from error
    except asyncio.CancelledError:
        raise lost() from None


def lost() -> BaseException:
    """What a CancelledError means: that we are to end, or only that somebody has closed, or lost, the connection."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return Unavailable("RabbitMQ: the connection was lost")


class Inbox:
    """What one queue hands out. After a failure nothing of before can be acknowledged.

    The broker hands out no more than was asked for at once, whatever is in hand; and what nobody asks for any more goes
    to `surplus`, nothing following it, so that others get it. Without `surplus` the queue has no other readers.
    """

    def __init__(
        self,
        url: str,
        name: str,
        make: Callable[[AbstractChannel], Awaitable[AbstractQueue]],
        surplus: Callable[[Sequence[Message]], Awaitable[None]] | None = None,
    ) -> None:
        self._line = Line(url, name, self._opened)
        self._make, self._surplus = make, surplus
        self._queue: AbstractQueue | None = None
        self._changing = asyncio.Lock()  # the consumer
        self._tags = itertools.count(1)  # names of consumers, never used again
        self._before = 0  # the last of them that is of a connection that is gone
        self._consumer = ""  # "": the broker hands out nothing
        self._most = 0  # of what the consumer has handed out may be unacknowledged
        self._in_hand: set[int] = set()  # tags of what the consumer has handed out, unacknowledged
        self._waiting: deque[Message] = deque()
        self.lost: list[Message] = []  # of `_waiting`, with their connection
        self._there = asyncio.Event()
        self._asking = 0
        self._unasked: asyncio.TimerHandle | None = None
        self._resting: set[asyncio.Task[None]] = set()
        self._gone = False

    async def take(self, most: int) -> list[Message]:
        """Waits a moment for the first."""
        self._asking += 1
        try:
            async with self._changing:
                await self._ask_for(most)
            if not self._waiting:
                self._there.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TAKE_SECONDS):
                        await self._there.wait()
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        finally:
            self._asking -= 1
            self._rest_later()

    async def acknowledge(self, message: Message, *, multiple: bool = False) -> None:
        """Where its connection is gone, or takes nothing, it comes again, to somebody, and is found done."""
        if message.consumer_tag == self._consumer:
            last = message.delivery_tag or 0
            self._in_hand -= {tag for tag in self._in_hand if tag == last or (multiple and tag < last)}
        if lives(message) and not await acknowledge(message, multiple=multiple):
            await self.close()

    async def rest(self, *, unless_asked: bool = False) -> None:
        """Nothing more is handed out here until the next `take`; what is here unasked for goes to `surplus`."""
        async with self._changing:
            if unless_asked and self._asking:
                return
            found: list[Message] = []
            try:
                await self._cancel()
                found = list(self._waiting)
                self._waiting.clear()
                if found and self._surplus is not None:
                    await self._surplus(found)
            except Unavailable:  # then it goes back with its connection
                self.lost += (message for message in found if not message.processed)
                await self.close()

    async def open(self) -> None:
        await self._line.channel()

    async def close(self) -> None:
        """What was not acknowledged is handed to somebody else."""
        if self._unasked is not None:
            self._unasked.cancel()
        await self._line.close()
        self._forget()

    async def _ask_for(self, most: int) -> None:
        if self._gone:
            await self._line.close()
        channel = await self._line.channel()
        if self._consumer and most <= self._most and (self._waiting or len(self._in_hand) < self._most):
            return
        try:
            most = max(most, self._most)
            await self._cancel()
            assert self._queue is not None  # made when the channel was opened
            await attempt(channel.set_qos(prefetch_count=most), ANSWER_SECONDS)
            self._consumer, self._most = str(next(self._tags)), most
            await attempt(self._queue.consume(self._receive, consumer_tag=self._consumer), ANSWER_SECONDS)
        except Unavailable:
            await self._line.close()
            self._forget()
            raise

    async def _cancel(self) -> None:
        """A consumer's prefetch is fixed for its life. What it has handed out stays in hand."""
        if self._consumer:
            assert self._queue is not None
            await attempt(self._queue.cancel(self._consumer), ANSWER_SECONDS)
        self._consumer, self._most = "", 0
        self._in_hand.clear()

    def _rest_later(self) -> None:
        if self._unasked is not None:
            self._unasked.cancel()
        if self._surplus is not None:
            self._unasked = asyncio.get_running_loop().call_later(UNASKED_SECONDS, self._rest_unless_asked)

    def _rest_unless_asked(self) -> None:
        if self._consumer:
            task = asyncio.create_task(self.rest(unless_asked=True))
            self._resting.add(task)
            task.add_done_callback(self._resting.discard)

    async def _opened(self, channel: AbstractChannel) -> None:
        self._forget()
        self._before = next(self._tags)
        channel.close_callbacks.add(lambda *_: self._there.set())  # who waits for what comes asks again
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(self._cancelled)
        self._queue = await self._make(channel)

    def _forget(self) -> None:
        """With its connection went all that was here."""
        self.lost += self._waiting if self._surplus is not None else ()
        self._waiting.clear()
        self._in_hand.clear()
        self._consumer, self._most, self._gone = "", 0, False

    def _cancelled(self, _: object) -> None:
        """The broker hands out nothing more here: the queue was deleted, or its node is gone."""
        self._gone = True
        self._there.set()

    async def _receive(self, message: Message) -> None:
        if int(message.consumer_tag or 0) > self._before:
            if message.consumer_tag == self._consumer:
                self._in_hand.add(message.delivery_tag or 0)
            self._waiting.append(message)
            self._there.set()


def lives(message: Message) -> bool:
    """Whether it is still ours: its connection has not ended."""
    try:
        return not message.channel.is_closed
    except ChannelInvalidStateError:
        return False


async def acknowledge(message: Message, *, multiple: bool = False) -> bool:
    """Whether the connection took it."""
    try:
        await attempt(message.ack(multiple=multiple), ANSWER_SECONDS)
    except Unavailable:
        return False
    return True
