"""A load of visitors over the gateways of a deployment.

    async with Load.on(deployment, seed) as load:
        await load.more(1000)
        log = await load.stop()

Faults are done meanwhile; tests/faults/audit.py holds the log against what Redis has at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis import Redis

from adapters import names
from app.messages import Lane
from tests.deployment import Deployment, in_lane
from tests.faults.log import Log
from tests.faults.mails import Mails
from tests.faults.visitors import KEYED_SECONDS, Guesser, Owner, Registrant, Visitor

# What the deployment under a load has to be set to: failures are counted, and nobody is refused for them.
SETTINGS = {"FIN_FAILURES_PER_ACCOUNT": "1000000"}
STOP_SECONDS = KEYED_SECONDS + 40.0  # by then the longest request has been answered or given up
EMPTY_SECONDS = 60.0
MAILED_SECONDS = 45.0  # what a mailer that died held is taken over after some twelve seconds
GRACE_SECONDS = 0.5  # in which a second answer would come, when nothing is in hand any more
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Shape:
    """How many visitors of each kind; the share of each kind that sends with keys; the deadline of both ways."""

    owners: int = 8
    guessers: int = 6
    registrants: int = 3
    keyed: float = 0.5
    plain_ms: int = 30_000
    keyed_ms: int = 10_000
    mail_seconds: float = MAILED_SECONDS  # past this a mail is lost


NOBODY = Shape(owners=0, guessers=0, registrants=0)


class Load:
    """Visitors at work. `requests` and `answers` are what was asked and what was answered so far."""

    def __init__(self, deployment: Deployment, seed: int, shape: Shape) -> None:
        self.log = Log()
        self._deployment = deployment
        self._shape, self._seed = shape, seed
        self._stopping = asyncio.Event()
        self._mails = Mails(deployment.folder / "data/outbox")
        self._visitors = [
            self._visitor(kind, number, keyed=number < round(count * shape.keyed))
            for kind, count in ((Owner, shape.owners), (Guesser, shape.guessers), (Registrant, shape.registrants))
            for number in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._hands = 0

    @classmethod
    @asynccontextmanager
    async def on(cls, deployment: Deployment, seed: int, shape: Shape | None = None) -> AsyncIterator[Load]:
        """Begun; ended at the end, however that comes."""
        load = cls(deployment, seed, shape or Shape())
        load._tasks = [asyncio.create_task(visitor.run()) for visitor in load._visitors]
        reader = asyncio.create_task(load._mails.run())
        try:
            yield load
        finally:
            for task in (*load._tasks, reader):
                task.cancel()
            await asyncio.gather(*load._tasks, reader, return_exceptions=True)
            await asyncio.gather(*(visitor.close() for visitor in load._visitors), return_exceptions=True)

    @property
    def requests(self) -> int:
        return len(self.log.asked)

    @property
    def answers(self) -> int:
        return sum(1 for asked in self.log.asked if asked.answer)

    async def more(self, requests: int) -> None:
        """Until so many more have been asked; AssertionError when nothing moves any more."""
        aim = self.requests + requests

        def reached() -> bool:
            self.check()
            return self.requests >= aim

        assert await until(reached, STOP_SECONDS), "the load has come to a stop"

    def check(self) -> None:
        """Raises what a visitor died of, which is never meant."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def stop(self) -> Log:
        """Let every visitor end what it is at, wait until nothing is in hand any more, and close: the whole log."""
        self._stopping.set()
        _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS) if self._tasks else (set(), set())
        if late:
            self.log.problems.append(f"{len(late)} visitors did not end in {STOP_SECONDS:.0f} s")
        self.check()
        if not await lanes_empty(self._deployment.redis_url, EMPTY_SECONDS):
            self.log.problems.append(f"the lanes did not become empty in {EMPTY_SECONDS:.0f} s")
        await asyncio.sleep(GRACE_SECONDS)
        await asyncio.gather(*(visitor.close() for visitor in self._visitors))
        await self._mails_read()
        self.log.mails = self._mails.count
        return self.log

    async def _mails_read(self) -> None:
        with Redis.from_url(self._deployment.redis_url) as redis:
            if not await until(lambda: not redis.xlen(names.MAIL), MAILED_SECONDS):
                self.log.problems.append(f"the mail stream did not become empty in {MAILED_SECONDS:.0f} s")
        self._mails.look()

    def hand(self, *, keyed: bool = False) -> Visitor:
        """One more visitor, who does only what it is told: in the same log, closed with the others."""
        self._hands += 1
        hand = self._visitor(Visitor, self._hands, keyed=keyed)
        self._visitors.append(hand)
        return hand

    def _visitor(self, kind: type[Visitor], number: int, *, keyed: bool) -> Visitor:
        return kind(
            f"{kind.__name__.lower()}-{number}",
            self._seed,
            self.log,
            self._mails,
            self._urls,
            self._stopping,
            keyed=keyed,
            timeout_ms=self._shape.keyed_ms if keyed else self._shape.plain_ms,
            mail_seconds=self._shape.mail_seconds,
        )

    def _urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{port}/ws" for port in self._deployment.ports]


async def lanes_empty(redis_url: str, seconds: float) -> bool:
    with Redis.from_url(redis_url) as redis:
        return await until(lambda: not any(in_lane(redis, lane) for lane in Lane), seconds)


async def until(reached: Callable[[], object], seconds: float) -> bool:
    """Whether it was, within that time."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while not reached():
        if clock() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
