"""A worker that kills itself at named points, for tests; put in place only where FIN_TEST_FAILPOINTS asks for it.

taken     entries were handed out to it, and it has looked at none
checked   an attempt is reserved, and nothing decided
decided   an outcome is there, and nobody has been told
settling  the outcome is on its way to Redis, which will do it; no answer has been read
settled   the answer has been read
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from adapters import names
from adapters.lua import SETTLE
from adapters.redis_link import ANSWER_SECONDS, Batch, Command, Link
from adapters.redis_store import RedisStore
from adapters.redis_streams import RedisWorker
from app.messages import Lane
from app.ports import Delivery, Settlement
from app.records import Facts, Needs
from app.settings import Failpoints

log = logging.getLogger("finthenticate")


def armed(spec: Failpoints, url: str, consumer: str) -> tuple[RedisWorker, RedisStore]:
    """In place of redis_streams.worker."""
    links = {lane: Link(url, f"take-{lane}") for lane in Lane}
    fate = Fate(spec)
    batch = Batch(FailingLink(url, "worker", fate))
    store = FailingStore(batch, fate)
    return FailingWorker(batch, store, links, consumer, fate), store


class Fate:
    """Draws at each passage of a point. What address a request is about is learnt when it is checked."""

    def __init__(self, spec: Failpoints) -> None:
        self._points = spec.points
        self._random = random.Random(spec.seed)  # noqa: S311  # choices of a test
        self.about: dict[str, str] = {}  # request id -> address

    def meet(self, point: str, rids: Iterable[str]) -> None:
        """May not return."""
        for rid in rids:
            for failpoint in self._points:
                right = failpoint.name == point and self.about.get(rid, "").startswith(failpoint.about)
                if right and self._random.random() < failpoint.chance:
                    log.warning("killed on purpose", extra={"fields": {"point": point, "request": rid}})
                    os.kill(os.getpid(), signal.SIGKILL)


class FailingLink(Link):
    """The one that scripts travel over: `settling` is between the last byte sent and the first answer read."""

    def __init__(self, url: str, name: str, fate: Fate) -> None:
        super().__init__(url, name)
        self._fate = fate
        self._settling: list[str] = []

    async def pipeline(self, commands: Sequence[Command], *, seconds: float = ANSWER_SECONDS) -> list[Any]:
        # one pipeline at a time: a Batch sends the next when this one is answered
        settles = [command for command in commands if command[:2] == ("EVALSHA", SETTLE.sha)]
        self._settling = [command[3].removeprefix(names.done("")) for command in settles]
        return await super().pipeline(commands, seconds=seconds)

    async def _answer(self, connection: AbstractConnection) -> Any:  # type: ignore[override]
        settling, self._settling = self._settling, []
        if settling:
            writer = connection._writer
            assert writer is not None
            while writer.transport.get_write_buffer_size():  # uvloop writes when the turn of its loop ends
                await asyncio.sleep(0)
            self._fate.meet("settling", settling)
        return await Link._answer(connection)


class FailingStore(RedisStore):
    def __init__(self, batch: Batch, fate: Fate) -> None:
        super().__init__(batch)
        self._fate = fate

    async def check(self, rid: str, deadline: int, needs: Needs) -> Facts | str:
        self._fate.about[rid] = needs.email or ""
        facts = await super().check(rid, deadline, needs)
        if isinstance(facts, Facts):
            self._fate.meet("checked", [rid])
        return facts


class FailingWorker(RedisWorker):
    def __init__(self, batch: Batch, store: RedisStore, links: dict[Lane, Link], consumer: str, fate: Fate) -> None:
        super().__init__(batch, store, links, consumer)
        self._fate = fate

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        return self._taken(await super().take(lane, most))

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        return self._taken(await super().reap(lane, most, held))

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        rid = settlement.reply.rid
        self._fate.meet("decided", [rid])
        answer = await super().settle(delivery, settlement, patience)
        self._fate.meet("settled", [rid])
        if answer != "conflict":
            self._fate.about.pop(rid, None)
        return answer

    def _taken(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        self._fate.meet("taken", [delivery.entry.rid for delivery in deliveries if delivery.entry])
        return deliveries
