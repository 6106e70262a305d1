"""Everything at once, by chance: whatever is admitted takes effect once and is answered once."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial

import pytest

from app.ports import Admitted, Delivery, Unavailable
from app.records import Verdict
from tests.brokers.asking import SEED
from tests.brokers.ground import TRIES, GatewaySide, Ground, WorkerSide, insist, rid_of, rids_of, until

REQUESTS = 150
WORKERS = 3


class Hand:
    """A worker as app/worker.py is one, with a mind of its own."""

    def __init__(self, side: WorkerSide, chance: random.Random, settled: list[str]) -> None:
        self._side, self._chance, self._settled = side, chance, settled
        self._holds: dict[asyncio.Task[None], Delivery] = {}
        self._loops = [asyncio.create_task(self._steady(turn)) for turn in (self._take, self._reap)]
        self._stopping = False

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._loops, *self._holds)

    def check(self) -> None:
        """What failed is said, instead of waited for."""
        for task in self._loops:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def die(self) -> None:
        """Without a word, with whatever it holds."""
        self._stopping = True
        self._side.wires.shut()
        for task in [*self._loops, *self._holds]:
            task.cancel()
        await asyncio.gather(*self._loops, *self._holds, return_exceptions=True)

    async def _steady(self, turn: object) -> None:
        while not self._stopping:
            try:
                await turn()  # type: ignore[operator]
            except Unavailable:
                await asyncio.sleep(0.05)

    async def _take(self) -> None:
        if len(self._holds) >= 8:
            await asyncio.sleep(0.01)
            return
        self._begin(await self._side.take(8 - len(self._holds)))

    async def _reap(self) -> None:
        self._begin(await self._side.reap(1, held=list(self._holds.values())))
        await asyncio.sleep(0.1)

    def _begin(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            task = asyncio.create_task(self._serve(delivery))
            self._holds[task] = delivery
            task.add_done_callback(lambda ended: self._holds.pop(ended))

    async def _serve(self, delivery: Delivery) -> None:
        await asyncio.sleep(self._chance.uniform(0, 0.03))
        with suppress(Unavailable):
            match self._chance.random():
                case fate if fate < 0.1:
                    await self._side.broker.give_back(delivery)
                case fate if fate < 0.2:
                    await self._side.broker.release(delivery)
                case _:
                    settle = partial(self._side.settle, delivery, verdict=Verdict.FAILED, limits=(TRIES,))
                    if await insist(settle, 5) == "settled":
                        self._settled.append(rid_of(delivery))


async def ask_all(gateway: GatewaySide, chance: random.Random, told: dict[str, bool]) -> None:
    deadline = await gateway.now() + 120_000
    for n in range(REQUESTS):
        rid = f"{gateway.node}-{n}"
        try:
            answer = await gateway.ask(rid, left=deadline - await gateway.now())
            assert isinstance(answer, Admitted), answer
            told[rid] = True
        except Unavailable:
            told[rid] = False
        await asyncio.sleep(chance.uniform(0, 0.01))


@pytest.mark.parametrize("round", range(2))
async def test_whatever_dies_or_is_cut_each_request_takes_effect_once_and_is_answered_once(
    ground: Ground, round: int
) -> None:
    print(f"seed {SEED}")
    chance = random.Random(f"{SEED} {round}")
    gateways = [await ground.gateway(node) for node in ("one", "two")]
    for gateway in gateways:
        gateway.listen()
    told: dict[str, bool] = {}
    settled: list[str] = []
    hands = [Hand(await ground.worker(), chance, settled) for _ in range(WORKERS)]
    asking = [asyncio.create_task(ask_all(gateway, chance, told)) for gateway in gateways]
    while not all(task.done() for task in asking):
        await asyncio.sleep(chance.uniform(0.05, 0.2))
        match chance.randrange(4):
            case 0:
                victim = hands.pop(chance.randrange(len(hands)))
                await victim.die()
                hands.append(Hand(await ground.worker(), chance, settled))
            case 1:
                chance.choice(gateways).wires.cut()
            case _:
                chance.choice(hands)._side.wires.cut()
    await asyncio.gather(*asking)

    async def all_answered() -> bool:
        for hand in hands:
            hand.check()
        heard = {rid for gateway in gateways for rid in rids_of(gateway.heard)}
        return {rid for rid, known in told.items() if known} <= heard

    await until(all_answered, "an answer to all that was admitted", 30)
    for hand in hands:
        await hand.stop()
    judge = await ground.worker()
    for gateway in gateways:
        heard = rids_of(await ground.echo(gateway, judge))
        assert len(heard) == len(set(heard)), "answered twice"
        assert all(rid.startswith(f"{gateway.node}-") for rid in heard)
    answered = {rid for gateway in gateways for rid in rids_of(gateway.heard) if not rid.startswith("echo")}
    # a worker that died or was cut may have settled what it does not know of
    assert len(settled) == len(set(settled)) and set(settled) <= answered <= set(told)
    assert await judge.spent(TRIES, len(answered))
