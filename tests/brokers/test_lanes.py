"""The slow lane: a queue of its own behind what hashes, whose workers it has."""

from __future__ import annotations

import pytest

from app.messages import Lane
from app.ports import Admitted, Delivery, Full, LaneDepth
from tests.brokers.ground import Ground, named, rid_of, rids, until, vitals


async def test_a_slow_request_waits_behind_all_that_hashes_and_is_told_for_how_long(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=2, rate=100))
    await gateway.send(*named(5))
    assert await gateway.send(*named(3, "s"), lane=Lane.SLOW) == [Admitted(n, 3 + n, 50 + 10 * n) for n in (1, 2, 3)]
    assert await gateway.send("r5") == [Admitted(6, 4, 60)]  # before all of these


async def test_a_slow_request_need_not_wait_while_what_hashes_leaves_a_slot_free(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=2, rate=100))
    await gateway.send("rid")
    assert [(await gateway.send(rid, lane=Lane.SLOW))[0].position for rid in named(3, "s")] == [0, 1, 2]


async def test_a_slow_request_is_refused_where_what_goes_first_takes_longer_than_it_has(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=1, rate=1))
    await gateway.send(*named(5))
    answer = await gateway.ask("slow", left=3000, lane=Lane.SLOW)  # an ETA of 6 s
    assert isinstance(answer, Full)
    assert answer.retry_after_ms is not None
    assert 2000 <= answer.retry_after_ms <= 6000
    assert await worker.take(lane=Lane.SLOW) == []


async def test_the_slow_lane_is_full_by_itself(ground: Ground) -> None:
    gateway, worker = await ground.pair(most=3)
    await gateway.send(*named(3))
    await gateway.send(*named(3, "s"), lane=Lane.SLOW)
    assert isinstance(await gateway.ask("too many", lane=Lane.SLOW), Full)
    assert isinstance(await gateway.ask("too many"), Full)
    await worker.serve(1)
    await gateway.send("one more")
    assert isinstance(await gateway.ask("too many", lane=Lane.SLOW), Full)
    await worker.serve(1, Lane.SLOW)
    await gateway.send("another", lane=Lane.SLOW)


async def test_depths_tell_of_the_slow_lane_what_goes_before_it_and_who_works_for_both(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=2, rate=100))
    await gateway.send(*named(4))
    places = await gateway.send(*named(3, "s"), lane=Lane.SLOW)
    depth = (await gateway.broker.depths())[Lane.SLOW]
    assert depth == LaneDepth(0, 2, 100.0, before=4)
    assert [answer.place - depth.ended + depth.before - depth.slots for answer in places] == [
        answer.position for answer in places
    ]
    await worker.serve(3)
    await worker.serve(1, Lane.SLOW)
    depths = await gateway.broker.depths()
    assert depths[Lane.SLOW] == LaneDepth(1, 2, 100.0, before=1)
    assert depths[Lane.HASH] == LaneDepth(3, 2, 100.0)


@pytest.mark.parametrize("lane", Lane)
async def test_each_lane_is_handed_out_given_back_released_and_buried_by_itself(ground: Ground, lane: Lane) -> None:
    gateway, worker = await ground.pair()
    for each in Lane:
        await gateway.send(*named(3, each), lane=each)
    first, *_ = await worker.receive(3, lane)
    assert rid_of(first) == f"{lane}0" and first.lane is lane
    await worker.broker.give_back(first)
    again = await worker.receive_one(lane)
    assert (again.entry, again.deliveries) == (first.entry, 1)
    await worker.broker.release(again)
    other = await ground.worker()
    released = await other.receive_one(lane, seconds=5)
    assert (released.entry, released.deliveries) == (first.entry, 1)
    await other.broker.bury(released, "a reason", None, None, ())
    [letter] = await ground.letters()
    assert lane.encode() in letter and b"a reason" in letter
    for each in set(Lane) - {lane}:
        assert rids(await other.receive(3, each)) == named(3, each)


async def test_what_a_dead_worker_held_of_the_slow_lane_is_anothers(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(3, "s"), lane=Lane.SLOW)
    await worker.receive(3, Lane.SLOW)
    worker.wires.cut()
    other = await ground.worker()
    found: list[Delivery] = []

    async def all_came() -> bool:
        found.extend([*await other.take(lane=Lane.SLOW), *await other.reap(lane=Lane.SLOW, held=found)])
        return len(found) >= 3

    await until(all_came, "what the dead one held")
    assert sorted(rids(found)) == named(3, "s")
    assert {delivery.deliveries for delivery in found} == {2}
    for delivery in found:
        assert await other.settle(delivery) == "settled"
    assert await gateway.answers(3)
