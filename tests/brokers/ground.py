"""What scenarios stand on: gateways and workers on wires of their own, and the values that cross a broker."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import SplitResult

from redis import Redis

from app.messages import Lane, LoggedOut
from app.ports import (
    Admitted,
    Delivery,
    Entry,
    Expired,
    Full,
    GatewayBroker,
    Known,
    LaneVitals,
    Sealed,
    Settlement,
    Signed,
    Store,
    Unavailable,
    Vitals,
    WorkerBroker,
)
from app.records import Counts, Facts, Limit, Needs, Outcome, Verdict
from app.rules import HOUR
from tests.brokers.adapters import Adapter
from tests.brokers.wire import Wire
from tests.running import WRITTEN_DOWN_SECONDS, Kind, Server, version_at

T = TypeVar("T")
SECONDS = 15.0  # until something that has to come is given up
CLOSE_SECONDS = 15.0
LOOK_SECONDS = 0.02
LEFT_MS = 25_000
DATABASES = (5, 6)  # of a Redis: conftest's others are 1 and 2
Answer = Admitted | Full | Expired | Known
ECHO = "echo-"
_numbers = itertools.count(1)


async def until(holds: Callable[[], Awaitable[T]], what: str, seconds: float = SECONDS) -> T:
    """What `holds` comes to, once that is true; Unavailable meanwhile is not."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(Unavailable):
            if found := await holds():
                return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(LOOK_SECONDS)


async def insist(ask: Callable[[], Awaitable[T]], seconds: float = SECONDS) -> T:
    """Again and again while it is Unavailable, as a worker does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(LOOK_SECONDS)


class Wires(dict[Kind, Wire]):
    """Of one side, to each of its servers."""

    async def open(self) -> None:
        for wire in self.values():
            await wire.open()

    def cut(self) -> None:
        for wire in self.values():
            wire.cut()

    def shut(self) -> None:
        for wire in self.values():
            wire.shut()

    async def close(self) -> None:
        for wire in self.values():
            await wire.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with ExitStack() as stack:
            for wire in self.values():
                stack.enter_context(wire.frozen())
            yield


@dataclass
class GatewaySide:
    node: str
    broker: GatewayBroker
    wires: Wires
    heard: list[Sealed | Signed] = field(default_factory=list)
    listening: asyncio.Task[None] | None = None

    async def now(self) -> int:
        clock, _ = await insist(self.broker.heartbeat)
        return clock.now

    async def ask(self, rid: str = "rid", *, left: int = LEFT_MS, patience: float = 0.0, **more: Any) -> Answer:
        """Send a request, whatever comes of it."""
        return await self.broker.admit(entry(rid, await self.now() + left, node=self.node, **more), patience)

    async def send(self, *rids: str, **more: Any) -> list[Admitted]:
        """Send requests one after another; each is admitted."""
        found = []
        for rid in rids:
            answer = await self.ask(rid, **more)
            assert isinstance(answer, Admitted), answer
            found.append(answer)
        return found

    def listen(self) -> None:
        async def hear() -> None:
            async for reply in self.broker.replies():
                self.heard.append(reply)

        if self.listening is None:
            self.listening = asyncio.create_task(hear())

    async def hears(self, count: int, seconds: float = SECONDS) -> list[Sealed | Signed]:
        """The first that it is told, so many of them; never more."""
        self.listen()

        async def enough() -> bool:
            return len(self.heard) >= count

        await until(enough, f"{count} replies at {self.node}, which has heard {self.heard}", seconds)
        assert len(self.heard) == count, self.heard
        return self.heard

    async def answers(self, count: int = 1) -> list[str]:
        """Whose replies it gets, when there are so many."""
        return rids_of(await self.hears(count))


@dataclass
class WorkerSide:
    name: str
    broker: WorkerBroker
    store: Store
    wires: Wires
    received: list[Delivery] = field(default_factory=list)

    async def take(self, most: int = 10, lane: Lane = Lane.HASH) -> list[Delivery]:
        found = list(await self.broker.take(lane, most))
        assert len(found) <= most
        return found

    async def reap(self, most: int = 10, lane: Lane = Lane.HASH, held: Sequence[Delivery] = ()) -> list[Delivery]:
        """At most `most` from others, and what was lost on its way here."""
        return list(await self.broker.reap(lane, most, [delivery.token for delivery in held]))

    async def receive(self, count: int = 1, lane: Lane = Lane.HASH, seconds: float = SECONDS) -> list[Delivery]:
        """So many deliveries, in the order in which they come, by whichever way; what came so before stays in hand."""
        found: list[Delivery] = []

        async def enough() -> bool:
            found.extend(await self.take(count - len(found), lane))
            if len(found) < count:
                found.extend(await self.reap(count - len(found), lane, [*self.received, *found]))
            return len(found) >= count

        await until(enough, f"{count} deliveries at {self.name}", seconds)
        assert len(found) == count, found
        self.received += found
        return found

    async def receive_one(self, lane: Lane = Lane.HASH, seconds: float = SECONDS) -> Delivery:
        [delivery] = await self.receive(1, lane, seconds)
        return delivery

    async def receive_named(self, rid: str) -> Delivery:
        """The one of this name. What comes before it was settled already, and is said to be."""
        while rid_of(delivery := await self.receive_one()) != rid:
            assert await self.settle(delivery) == "done"
        return delivery

    async def settle(self, delivery: Delivery, patience: float = 0.0, **more: Any) -> str:
        return await self.broker.settle(delivery, settlement(rid_of(delivery), **more), patience)

    async def serve(self, count: int, lane: Lane = Lane.HASH, **more: Any) -> None:
        """Receive and settle so many, one after another."""
        for delivery in await self.receive(count, lane):
            assert await self.settle(delivery, **more) == "settled"

    async def check(self, needs: Needs, rid: str = "asks", left: int = LEFT_MS) -> Facts | str:
        clock = await self.broker.beat(vitals())
        return await self.store.check(rid, clock.now + left, needs)

    async def spent(self, limit: Limit, most: int) -> bool:
        """Whether exactly `most` places of the limit are spent or reserved."""
        found = []
        for places in (most, most + 1):
            facts = await self.check(Needs(limits=(replace(limit, most=places),)), rid=f"asks {secrets.token_hex(4)}")
            assert isinstance(facts, Facts)
            found.append(bool(facts.refused))
            # what this question itself reserves for a while is told apart by asking the smaller one first
        return found == [True, False]


class Ground:
    """A deployment of one adapter: empty, and closed when the test ends."""

    def __init__(self, adapter: Adapter, servers: dict[Kind, Server], number: int = 0) -> None:
        self.adapter, self.servers = adapter, servers
        self.deployment = f"t{secrets.token_hex(5)}"
        self._number = number
        self._sides: list[GatewaySide | WorkerSide] = []
        self._others: list[Ground] = []
        self._began = time.monotonic()

    async def __aenter__(self) -> Ground:
        for server in self.servers.values():
            if not version_at(server.source.kind, server.parts):
                await server.restart()  # an earlier test has left it dead
        with Redis.from_url(self.urls()[self.adapter.store]) as redis:
            redis.flushdb()
        return self

    async def __aexit__(self, *_: object) -> None:
        for other in self._others:
            await other.__aexit__()
        try:
            await asyncio.wait_for(asyncio.gather(*(side.broker.close() for side in self._sides)), CLOSE_SECONDS)
        finally:
            for side in self._sides:
                await side.wires.close()
                if isinstance(side, GatewaySide) and side.listening is not None:
                    side.listening.cancel()
            await self.adapter.clean(self.urls(), self.deployment)

    async def other(self) -> Ground:
        """Another deployment on the same servers."""
        ground = Ground(self.adapter, self.servers, self._number + 1)
        self._others.append(await ground.__aenter__())
        return ground

    async def gateway(self, node: str = "asker", most: int = 2000) -> GatewaySide:
        """A node that lives."""
        side = await self.gateway_unheard(node, most)
        await side.now()
        return side

    async def gateway_unheard(self, node: str = "asker", most: int = 2000, *, away: bool = False) -> GatewaySide:
        """A node that has said nothing yet; `away`: its servers are."""
        wires = await self._wires(away)
        side = GatewaySide(node, self.adapter.gateway(self.urls(wires), self.deployment, node, most), wires)
        self._sides.append(side)
        return side

    async def worker(self, name: str = "", *, away: bool = False) -> WorkerSide:
        wires, name = await self._wires(away), name or f"worker-{next(_numbers)}"
        side = WorkerSide(name, *self.adapter.worker(self.urls(wires), self.deployment, name), wires)
        self._sides.append(side)
        return side

    async def pair(self, most: int = 2000) -> tuple[GatewaySide, WorkerSide]:
        return await self.gateway(most=most), await self.worker()

    async def echo(self, gateway: GatewaySide, worker: WorkerSide) -> list[Sealed | Signed]:
        """All that the gateway was told before a request that is answered now: what is not among it was not told."""
        gateway.listen()

        async def send() -> str:
            rid = f"{ECHO}{next(_numbers)}"  # whether an earlier one was queued may be unknown
            await gateway.send(rid, lane=Lane.FAST)
            return rid

        rid = await insist(send)

        async def answered() -> bool:
            for delivery in [*await worker.take(lane=Lane.FAST), *await worker.reap(lane=Lane.FAST)]:
                await insist(partial(worker.settle, delivery))
            return rid in rids_of(gateway.heard)

        await until(answered, "an answer to the last request")
        return [reply for reply in gateway.heard if not reply.rid.startswith(ECHO)]

    async def junk(self, lane: Lane) -> None:
        await self.adapter.junk(self.urls(), self.deployment, lane)

    async def letters(self) -> list[bytes]:
        found: list[bytes] = await self.adapter.letters(self.urls(), self.deployment)
        return found

    def urls(self, wires: Wires | None = None) -> dict[Kind, str]:
        """Through the wires, or straight."""
        return {kind: self._url(kind, server.parts, wires) for kind, server in self.servers.items()}

    def _url(self, kind: Kind, parts: SplitResult, wires: Wires | None) -> str:
        user = parts.netloc.rpartition("@")[0]
        host = f"127.0.0.1:{wires[kind].port}" if wires else parts.netloc.rpartition("@")[2]
        path = f"/{DATABASES[self._number]}" if kind is self.adapter.store else parts.path
        return parts._replace(netloc=f"{user}@{host}" if user else host, path=path).geturl()

    async def _wires(self, away: bool) -> Wires:
        wires = Wires({kind: Wire(server) for kind, server in self.servers.items()})
        await wires.open()
        if away:
            wires.shut()
        return wires

    @asynccontextmanager
    async def killed(self, kind: Kind) -> AsyncIterator[None]:
        """The server is dead meanwhile, by SIGKILL; not before it has written down what queues it has."""
        if kind is Kind.RABBITMQ:
            await asyncio.sleep(max(0.0, self._began + WRITTEN_DOWN_SECONDS - time.monotonic()))
        await self.servers[kind].kill()
        try:
            yield
        finally:
            await self.servers[kind].restart()


# --- values ----------------------------------------------------------------------------------------------------------

TRIES = Limit("tries", "subject", most=1000, window_ms=HOUR, counts=Counts.FAILURES)


def entry(rid: str, deadline: int, lane: Lane = Lane.HASH, **more: Any) -> Entry:
    made = Entry(rid, "asker", "login", lane, deadline, b"wrapped\x00\xff\r\n", b"box\xfe\x00" + rid.encode())
    return replace(made, **more)


def settlement(
    rid: str,
    *,
    verdict: Verdict = Verdict.PASSED,
    limits: tuple[Limit, ...] = (),
    box: bytes = b"",
    outcome: Outcome | None = None,
    **more: Any,
) -> Settlement:
    """`more`: the rest of a Settlement."""
    outcome = outcome or Outcome("logged_out", LoggedOut(), verdict)
    reply = Sealed(rid, box or b"reply\x00\xff\r\n" + rid.encode())
    return Settlement(outcome, limits, reply, audit={"event": outcome.event, "request": rid}, **more)


def vitals(slots: int = 0, rate: float = 0.0) -> Vitals:
    return Vitals(10.0, {Lane.HASH: LaneVitals(slots, rate, 0, 0.0)} if slots else {})


def rid_of(delivery: Delivery) -> str:
    assert delivery.entry is not None, delivery
    return delivery.entry.rid


def rids(deliveries: Sequence[Delivery]) -> list[str]:
    return [rid_of(delivery) for delivery in deliveries]


def rids_of(heard: Sequence[Sealed | Signed]) -> list[str]:
    """Whose replies these are, in their order; words and notices are none."""
    return [reply.rid for reply in heard if isinstance(reply, Sealed)]


def named(count: int, stem: str = "r") -> list[str]:
    return [f"{stem}{n}" for n in range(count)]
