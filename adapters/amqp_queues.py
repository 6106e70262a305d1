"""The queues of a deployment on RabbitMQ, and whether that is fit to hold them.

Queues, all durable, for a deployment named D:
    D.LANE           quorum; full: the publisher is refused; handed out too often: to D.LANE.dead
    D.LANE.back      the same, for what was handed out and not begun: before all that waits
    D.LANE.dead      for a worker to bury
    D.replies.NODE   of a gateway boot; goes a minute after its reader
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import (
    AuthenticationError,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from adapters.amqp_link import Line, attempt
from adapters.redis_link import LOOK_AGAIN_SECONDS
from app.messages import Lane
from app.ports import Unavailable
from app.settings import Fault

LEAST_VERSION = (3, 10)
DELIVERY_LIMIT = 20  # by RabbitMQ's count, which its own deaths add to; past it a worker buries it
MOST_IN_A_LANE = 100_000  # the bound of admission is Redis's; this one is for what that has forgotten
DEAD_KEPT = 10_000
REPLIES_KEPT = 10_000
REPLIES_EXPIRE_MS = 60_000
PROBE = "probe"  # the type of a message that only proves that its lane is written to
PROBE_SECONDS = 1.0  # whoever asks meanwhile waits for this to know that the broker takes nothing

Arguments = dict[str, Any]


class Queues:
    """The names of a deployment's queues, and how they are made."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment

    def lane(self, lane: Lane) -> str:
        return f"{self._deployment}.{lane}"

    def back(self, lane: Lane) -> str:
        return f"{self.lane(lane)}.back"

    def dead(self, lane: Lane) -> str:
        return f"{self.lane(lane)}.dead"

    def replies(self, node: str) -> str:
        return f"{self._deployment}.replies.{node}"

    async def make_lane(self, channel: AbstractChannel, lane: Lane) -> AbstractQueue:
        kept: Arguments = {"x-max-length": DEAD_KEPT}
        await channel.declare_queue(self.dead(lane), durable=True, arguments=kept)
        ours: Arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead(lane),
            "x-max-length": MOST_IN_A_LANE,
            "x-overflow": "reject-publish",
        }
        await channel.declare_queue(self.back(lane), durable=True, arguments=ours)
        return await channel.declare_queue(self.lane(lane), durable=True, arguments=ours)

    async def make_lanes(self, channel: AbstractChannel) -> None:
        for lane in Lane:
            await self.make_lane(channel, lane)

    async def prove_lanes(self, channel: AbstractChannel) -> None:
        """Made, and written to: a quorum queue without a leader is declared like any other, and confirms nothing."""
        await self.make_lanes(channel)
        for lane in Lane:
            probe = channel.default_exchange.publish(aio_pika.Message(b"", type=PROBE), self.lane(lane))
            with suppress(DeliveryError):  # full: that is said by its leader
                await attempt(probe, PROBE_SECONDS)

    async def make_replies(self, channel: AbstractChannel, node: str) -> AbstractQueue:
        kept: Arguments = {"x-expires": REPLIES_EXPIRE_MS, "x-max-length": REPLIES_KEPT}
        return await channel.declare_queue(self.replies(node), durable=True, arguments=kept)


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
