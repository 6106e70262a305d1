"""Signs of life, depths, leaving and closing; two deployments on one server."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.messages import Lane
from app.ports import Admitted, LaneDepth, Sealed, Unavailable
from tests.brokers.adapters import NODE_LIVES_SECONDS
from tests.brokers.ground import Ground, insist, named, rids, rids_of, until, vitals
from tests.brokers.test_settle import comes_online, notice


async def test_depths_tell_how_many_places_are_done_with_so_that_everybody_knows_who_is_ahead(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    assert await gateway.broker.depths() == {lane: LaneDepth(0, 0, 0.0) for lane in Lane}
    places = await gateway.send(*named(5))
    await worker.serve(2)
    ended = (await gateway.broker.depths())[Lane.HASH].ended
    assert [answer.place - ended for answer in places] == [-1, 0, 1, 2, 3]
    await worker.serve(3)
    assert (await gateway.broker.depths())[Lane.HASH].ended == 5


async def test_depths_are_the_same_at_every_node(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.gateway("other")
    await gateway.send(*named(3))
    await other.send(*named(2, "o"))
    await worker.serve(4)
    assert await gateway.broker.depths() == await other.broker.depths()
    assert (await gateway.broker.depths())[Lane.HASH].ended == 4


async def test_what_all_living_workers_can_do_is_added_up(ground: Ground) -> None:
    gateway = await ground.gateway()
    workers = [await ground.worker() for _ in range(3)]
    for slots, worker in enumerate(workers, 1):
        await worker.broker.beat(vitals(slots, rate=10.0 * slots))
    assert (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 6, 60.0)
    await workers[2].broker.beat(vitals(1, 5.0))
    assert (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 4, 35.0)
    await workers[1].broker.leave()
    assert (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 2, 15.0)


async def test_a_worker_that_is_silent_counts_no_longer(ground: Ground) -> None:
    gateway = await ground.gateway()
    silent, alive = await ground.worker(), await ground.worker()
    await silent.broker.beat(vitals(2, 20.0))

    async def alone() -> bool:
        await alive.broker.beat(vitals(1, 10.0))
        return (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 1, 10.0)

    assert not await alone()
    await until(alone, "only the living counts")


async def test_when_all_workers_are_silent_nobody_counts(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(2, 20.0))

    async def nobody() -> bool:
        return (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 0, 0.0)

    assert not await nobody()
    await until(nobody, "nobody counts")


async def test_all_tell_the_same_time_and_it_never_goes_back(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    times = []
    for _ in range(20):
        times.append((await gateway.broker.heartbeat())[0].now)
        times.append((await worker.broker.beat(vitals())).now)
    assert times == sorted(times)
    assert times[-1] - times[0] < 10_000


async def test_a_node_that_was_not_heard_of_is_told_so_once(ground: Ground) -> None:
    gateway = await ground.gateway_unheard()
    assert not (await gateway.broker.heartbeat())[1]
    assert not (await gateway.broker.heartbeat())[1]
    await asyncio.sleep(NODE_LIVES_SECONDS * 1.3)  # what is tested is that time passes without a sign of life
    assert (await gateway.broker.heartbeat())[1]
    assert not (await gateway.broker.heartbeat())[1]


async def test_that_a_node_was_not_heard_of_is_told_by_the_first_beat_that_succeeds(ground: Ground) -> None:
    gateway = await ground.gateway()
    broker = gateway.wires[ground.adapter.servers[0]]
    broker.shut()
    await asyncio.sleep(NODE_LIVES_SECONDS * 1.3)
    with pytest.raises(Unavailable):
        await gateway.broker.heartbeat()
    await broker.open()
    assert (await insist(gateway.broker.heartbeat))[1]
    assert not (await gateway.broker.heartbeat())[1]


async def test_a_node_whose_beat_succeeds_can_admit(ground: Ground) -> None:
    gateway = await ground.gateway_unheard(away=True)
    with pytest.raises(Unavailable):
        await gateway.broker.heartbeat()
    await gateway.wires.open()
    await insist(gateway.broker.heartbeat)
    assert isinstance(await gateway.ask("rid"), Admitted)


async def test_a_node_that_was_not_heard_of_is_not_told_what_concerns_its_connections(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    lapsed = await ground.gateway("lapsed")
    await comes_online(lapsed, worker)
    await asyncio.sleep(NODE_LIVES_SECONDS * 1.3)
    await gateway.send("rid")
    await worker.serve(1, notices=(notice("reason"),))
    assert (await lapsed.broker.heartbeat())[1]
    assert await ground.echo(lapsed, worker) == []


async def test_a_node_that_was_not_heard_of_still_gets_its_replies(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    await asyncio.sleep(NODE_LIVES_SECONDS * 1.3)
    await worker.serve(1)
    assert await gateway.answers() == ["rid"]


async def test_replies_end_when_the_broker_is_closed(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    await worker.serve(1)
    await gateway.hears(1)
    await asyncio.wait_for(gateway.broker.close(), 5)
    assert gateway.listening is not None
    await asyncio.wait_for(gateway.listening, 5)


async def test_a_worker_that_leaves_with_something_in_its_hand_can_still_settle_it(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    await worker.broker.leave()
    assert await worker.settle(delivery) == "settled"
    await worker.broker.close()
    assert await gateway.answers() == ["rid"]


async def test_what_a_worker_held_when_it_closed_is_handed_to_another(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(3))
    await worker.receive(3)
    await worker.broker.leave()
    await worker.broker.close()
    other = await ground.worker()
    assert sorted(rids(await other.receive(3))) == named(3)


async def test_a_worker_can_leave_before_there_was_any_work(ground: Ground) -> None:
    worker = await ground.worker()
    await worker.broker.leave()
    await worker.broker.close()


async def test_two_deployments_on_one_server_know_nothing_of_each_other(ground: Ground) -> None:
    other = await ground.other()
    gateway, worker = await ground.pair(most=1)
    same_name, stranger = await other.pair(most=1)
    await gateway.send("here", same="mac")
    assert await stranger.take() == await stranger.reap() == []
    await same_name.send("there", same="mac")
    await stranger.broker.beat(vitals(3, 30.0))
    assert (await gateway.broker.depths())[Lane.HASH] == LaneDepth(0, 0, 0.0)
    assert rids(await worker.receive(1)) == ["here"]
    await stranger.serve(1)
    assert await same_name.answers() == ["there"]
    assert await ground.echo(gateway, worker) == []


async def test_two_nodes_get_each_its_own_of_many_replies(ground: Ground) -> None:
    sides = [await ground.gateway(node) for node in ("one", "two")]
    worker = await ground.worker()
    for n in range(30):
        for side in sides:
            await side.send(f"{side.node}-{n}")
    await worker.serve(60)
    for side in sides:
        assert await side.answers(30) == [f"{side.node}-{n}" for n in range(30)]
        assert all(isinstance(reply, Sealed) for reply in side.heard)
        assert rids_of(side.heard) == [reply.rid for reply in side.heard]


async def test_a_push_and_a_reply_of_one_settling_both_arrive(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await comes_online(gateway, worker, "other connection")
    await gateway.send("rid")
    told, signed = notice("reason", ("asker", "one"))
    await worker.serve(1, notices=((told, signed),))
    heard = await gateway.hears(2)
    assert signed in heard and rids_of(heard) == ["rid"]
    assert replace(signed, rid="") == signed
