"""What a worker held that died, hangs or was not heard of comes again; whoever is too late changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from app.messages import Lane
from app.ports import Delivery, Unavailable
from app.records import Verdict
from tests.brokers.adapters import TAKEN_OVER_SECONDS
from tests.brokers.ground import TRIES, GatewaySide, Ground, WorkerSide, insist, named, rid_of, rids, until

REAL_SECONDS = 7.0  # from the death of a worker until its work is in another's hand


def dies(worker: WorkerSide) -> None:
    worker.wires.shut()


async def test_what_a_dead_worker_held_is_handed_to_another(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(5))
    held = await worker.receive(5)
    dies(worker)
    other = await ground.worker()
    found = await other.receive(5)
    assert sorted(rids(found)) == named(5)
    assert {rid_of(d): d.entry for d in found} == {rid_of(d): d.entry for d in held}
    for delivery in found:
        assert await other.settle(delivery) == "settled"
    assert sorted(await gateway.answers(5)) == named(5)
    assert await other.take() == await other.reap() == []


async def test_each_time_it_is_handed_out_it_counts(ground: Ground) -> None:
    gateway = await ground.gateway()
    await gateway.send("rid")
    counts = []
    for _ in range(4):
        worker = await ground.worker()
        counts.append((await worker.receive_one()).deliveries)
        dies(worker)
    assert counts == [1, 2, 3, 4]


@pytest.mark.parametrize("first", ["who had it", "who has it"])
async def test_of_two_who_hold_the_same_the_first_settles_it_and_the_other_does_nothing(
    ground: Ground, first: str
) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    held = await worker.receive_one()
    worker.wires.cut()
    worker.wires.shut()
    other = await ground.worker()
    again = await other.receive_one()
    await worker.wires.open()
    both = [(worker, held, b"had"), (other, again, b"has")]
    if first == "who has it":
        both.reverse()
    states = [
        await insist(partial(side.settle, delivery, box=box, verdict=Verdict.FAILED, limits=(TRIES,)))
        for side, delivery, box in both
    ]
    assert states == ["settled", "done"]
    heard = await ground.echo(gateway, other)
    assert [getattr(reply, "box", b"") for reply in heard] == [both[0][2]]
    assert await other.spent(TRIES, 1)
    assert await other.take() == await other.reap() == []


async def late(worker: WorkerSide, delivery: Delivery, how: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "drop": lambda: worker.broker.drop(delivery, ()),
        "give_back": lambda: worker.broker.give_back(delivery),
        "release": lambda: worker.broker.release(delivery),
    }
    try:
        await calls[how]()  # type: ignore[misc]
    except Unavailable:
        return


@pytest.mark.parametrize("how", ["give_back", "release"])
async def test_who_hands_back_what_another_holds_by_now_doubles_nothing(ground: Ground, how: str) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    held = await worker.receive_one()
    worker.wires.shut()
    other = await ground.worker()
    again = await other.receive_one()
    await worker.wires.open()
    await late(worker, held, how)
    assert await other.settle(again) == "settled"
    for delivery in (*await other.take(), *await other.reap()):
        assert await other.settle(delivery) == "done"
    assert await ground.echo(gateway, other) and await gateway.answers(2)
    assert rids(await other.take()) == []


async def lose(ground: Ground, gateway: GatewaySide, worker: WorkerSide) -> None:
    """What is sent now is handed to the worker, and lost on its way there with the connection."""
    await worker.take()
    with worker.wires[ground.adapter.servers[0]].deaf():
        await gateway.send("rid")
        with suppress(Unavailable):
            for _ in range(20):
                assert await worker.take() == []


async def test_what_was_lost_on_its_way_to_a_worker_comes_again(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await lose(ground, gateway, worker)
    delivery = await worker.receive_one()
    assert rid_of(delivery) == "rid"
    assert await worker.settle(delivery) == "settled"
    assert await gateway.answers() == ["rid"]


async def test_what_was_lost_on_its_way_does_not_count_as_handed_out(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await lose(ground, gateway, worker)
    assert (await worker.receive_one()).deliveries == 1


@pytest.mark.parametrize("how", ["keeps it", "give_back", "release"])
async def test_what_a_living_worker_lost_with_its_connection_does_not_count_though_another_handed_it_back(
    ground: Ground, how: str
) -> None:
    gateway, worker = await ground.pair()
    other = await ground.worker()
    await gateway.send("rid")
    held = [await worker.receive_one()]
    for _ in range(2):
        worker.wires.cut()
        end = time.monotonic() + 0.3  # whether he gets it is the broker's to say
        while time.monotonic() < end:
            for delivery in await other.take():
                await other.broker.release(delivery)
        if how != "keeps it":
            await late(worker, held[-1], how)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            with suppress(Unavailable):
                held += [*await worker.reap(held=held), *await worker.take()]
    assert {delivery.deliveries for delivery in held} == {1}
    assert await insist(lambda: worker.settle(held[-1])) == "settled"
    assert await gateway.answers() == ["rid"]


async def test_what_a_worker_says_that_it_holds_is_handed_to_nobody_else(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.worker()
    await gateway.send(*named(3))
    held = await worker.receive(3)
    end = time.monotonic() + 3 * TAKEN_OVER_SECONDS
    while time.monotonic() < end:
        assert await worker.reap(0, held=held) == []
        assert await other.reap() == []
        assert await other.take() == []
    for delivery in held:
        assert await worker.settle(delivery) == "settled"
    assert sorted(await gateway.answers(3)) == named(3)


async def test_what_was_taken_just_now_is_taken_over_by_nobody(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.worker()
    await gateway.send("rid")
    held = await worker.receive_one()
    assert await other.reap() == await other.take() == []
    assert await worker.settle(held) == "settled"


async def test_who_takes_over_gets_no_more_at_once_than_he_asked_for(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(9))
    await worker.receive(9)
    dies(worker)
    other = await ground.worker()
    found: list[Delivery] = []

    async def all_came() -> bool:
        for batch in (await other.reap(2), await other.take(2)):
            assert len(batch) <= 2
            for delivery in batch:
                found.append(delivery)
                await other.settle(delivery)
        return len(found) >= 9

    await until(all_came, "all of them")
    assert sorted(rids(found)) == named(9)


async def test_of_many_who_take_over_each_request_goes_to_one(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(20))
    await worker.receive(20)
    dies(worker)
    others = [await ground.worker() for _ in range(3)]
    states: list[tuple[str, str]] = []

    async def serve(other: WorkerSide) -> None:
        for delivery in (*await other.reap(3), *await other.take(3)):
            states.append((rid_of(delivery), await other.settle(delivery)))

    async def all_came() -> bool:
        await asyncio.gather(*map(serve, others))
        return len(states) >= 20

    await until(all_came, "all of them")
    assert sorted(states) == sorted((rid, "settled") for rid in named(20))


async def test_a_lane_without_work_has_nothing_to_take_over(ground: Ground) -> None:
    worker = await ground.worker()
    for lane in Lane:
        assert await worker.reap(lane=lane) == []


@pytest.mark.all
@pytest.mark.unhurried
async def test_with_the_times_of_a_deployment_a_dead_workers_work_is_anothers_within_seconds(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.worker()
    await gateway.send("rid")
    await worker.receive_one()
    dies(worker)
    assert (await other.receive_one(seconds=REAL_SECONDS)).deliveries == 2


@pytest.mark.all
@pytest.mark.unhurried
async def test_with_the_times_of_a_deployment_what_a_hanging_worker_holds_is_anothers_within_seconds(
    ground: Ground,
) -> None:
    gateway, worker = await ground.pair()
    other = await ground.worker()
    await gateway.send("rid")
    held = await worker.receive_one()
    with worker.wires.frozen():
        delivery = await other.receive_one(seconds=REAL_SECONDS)
        assert delivery.deliveries == 2
        assert await other.settle(delivery) == "settled"
    assert await insist(lambda: worker.settle(held)) == "done"
    assert await gateway.answers() == ["rid"]
    assert await other.take() == []
