"""take: to one worker only, in order, no more than asked for, and nothing is kept from the others."""

from __future__ import annotations

import asyncio
import time

from app.messages import Lane
from app.ports import Delivery
from tests.brokers.ground import Ground, named, rid_of, rids, until

MOMENT_SECONDS = 3.0


async def test_what_was_admitted_before_there_was_a_worker_is_taken(ground: Ground) -> None:
    gateway = await ground.gateway()
    await gateway.send(*named(3))
    worker = await ground.worker()
    assert rids(await worker.receive(3)) == named(3)


async def test_a_worker_is_handed_a_lane_in_its_order(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(30))
    found: list[Delivery] = []

    async def all_came() -> bool:
        for delivery in await worker.take(7):
            found.append(delivery)
            await worker.settle(delivery)
        return len(found) >= 30

    await until(all_came, "all of them")
    assert rids(found) == named(30)
    assert len({delivery.token for delivery in found}) == 30


async def test_a_request_is_handed_to_one_of_many_workers(ground: Ground) -> None:
    gateway = await ground.gateway()
    workers = [await ground.worker() for _ in range(4)]
    await gateway.send(*named(60))
    found: list[str] = []

    async def all_came() -> bool:
        for worker, taken in zip(workers, await asyncio.gather(*(worker.take(4) for worker in workers))):
            found.extend(rids(taken))
            for delivery in taken:
                await worker.settle(delivery)
        return len(found) >= 60

    await until(all_came, "all of them")
    assert sorted(found) == sorted(named(60))
    assert not any(await asyncio.gather(*(worker.take(4) for worker in workers)))


async def test_no_more_is_taken_than_was_asked_for(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(6))
    sizes = [len(await worker.take(1)), len(await worker.take(3)), len(await worker.take(1))]
    assert max(sizes) <= 3 and sizes[0] <= 1 and sizes[2] <= 1
    assert len(await worker.receive(6 - sum(sizes))) == 6 - sum(sizes)


async def test_with_nothing_there_it_waits_a_moment_and_takes_nothing(ground: Ground) -> None:
    worker = await ground.worker()
    await worker.take()
    began = time.monotonic()
    assert await worker.take() == []
    assert time.monotonic() - began < MOMENT_SECONDS


async def test_who_waits_is_handed_what_comes(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.take()
    waiting = asyncio.create_task(worker.receive_one())
    await gateway.send("rid")
    began = time.monotonic()
    assert rid_of(await waiting) == "rid"
    assert time.monotonic() - began < MOMENT_SECONDS


async def test_what_waits_is_shared_among_the_workers_that_ask(ground: Ground) -> None:
    gateway = await ground.gateway()
    workers = [await ground.worker() for _ in range(4)]
    for worker in workers:
        await worker.take(5)
    await gateway.send(*named(20))
    shares = await asyncio.gather(*(worker.receive(5) for worker in workers))
    assert sorted(rid for share in shares for rid in rids(share)) == sorted(named(20))


async def test_a_worker_that_takes_no_more_keeps_nothing_from_the_others(ground: Ground) -> None:
    gateway = await ground.gateway()
    busy, idle = await ground.worker(), await ground.worker()
    await busy.take(4)
    await gateway.send(*named(10))
    held = await busy.receive_one()  # and asks for nothing more
    found = await idle.receive(9, seconds=5)
    assert sorted([rid_of(held), *rids(found)]) == sorted(named(10))
    assert {delivery.deliveries for delivery in found} == {1}


async def test_a_worker_that_leaves_keeps_nothing_from_the_others_while_it_ends_what_it_has(ground: Ground) -> None:
    gateway = await ground.gateway()
    leaving, other = await ground.worker(), await ground.worker()
    await leaving.take(4)
    await gateway.send(*named(10))
    held = await leaving.receive_one()
    await leaving.broker.leave()
    found = await other.receive(9, seconds=5)
    assert {delivery.deliveries for delivery in found} == {1}
    assert await leaving.settle(held) == "settled"
    assert sorted([rid_of(held), *rids(found)]) == sorted(named(10))


async def test_a_worker_can_ask_for_more_than_before_and_loses_nothing_it_holds(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(8))
    held = await worker.receive(2)
    more = await worker.receive(6)
    assert rids([*held, *more]) == named(8)
    for delivery in (*held, *more):
        assert await worker.settle(delivery) == "settled"
    assert await worker.take() == []


async def test_however_much_a_worker_holds_it_can_take_more(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(60))
    found: list[Delivery] = []

    async def all_came() -> bool:
        found.extend(await worker.take(5))
        return len(found) >= 60

    await until(all_came, "all of them in one hand", 5)
    assert rids(found) == named(60)


async def test_a_lane_hands_out_only_its_own(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("slow one")
    await gateway.send("fast one", lane=Lane.FAST)
    assert rids(await worker.receive(1, Lane.FAST)) == ["fast one"]
    assert await worker.take(lane=Lane.FAST) == []
    assert rids(await worker.receive(1)) == ["slow one"]


async def test_what_no_gateway_wrote_is_handed_out_as_none_and_can_be_buried(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.take()
    await ground.junk(Lane.HASH)
    await gateway.send("rid")
    found = await worker.receive(2)
    assert [delivery.entry and delivery.entry.rid for delivery in found] == [None, "rid"]
    await worker.broker.bury(found[0], "not an entry", None, None, ())
    [letter] = await ground.letters()
    assert b"not an entry" in letter and b"hash" in letter
    assert await worker.settle(found[1]) == "settled"
    assert await worker.take() == []
