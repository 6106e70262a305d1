"""drop, give_back, release, bury: the other ways out of a worker's hand."""

from __future__ import annotations

from app import entries
from app.messages import Code, Lane
from app.ports import LaneDepth, State
from app.records import Facts, Needs, Verdict
from tests.brokers.ground import TRIES, Ground, named, rid_of, rids, rids_of, until
from tests.making import EDGE

FAILURE = entries.sign_failure(EDGE, "rid", Code.INTERNAL)


async def test_what_is_dropped_has_ended_unanswered_and_gives_its_places_back(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    assert isinstance(await worker.check(Needs(limits=(TRIES,)), "rid"), Facts)
    await worker.broker.drop(delivery, (TRIES,))
    assert await worker.check(Needs(limits=(TRIES,)), "rid") == State.DONE
    assert await worker.spent(TRIES, 0)
    assert await worker.settle(delivery) == "done"
    assert await ground.echo(gateway, worker) == []
    assert await worker.take() == []
    assert (await gateway.broker.depths())[Lane.HASH].ended == 1


async def test_what_is_given_back_goes_to_the_tail_of_its_lane_and_is_there_once(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(3))
    delivery = await worker.receive_one()
    await worker.broker.give_back(delivery)
    found = await worker.receive(3)
    assert rids(found) == ["r1", "r2", "r0"]
    assert found[-1].entry == delivery.entry
    for each in found:
        assert await worker.settle(each) == "settled"
    assert sorted(await gateway.answers(3)) == named(3)
    assert await worker.take() == []


async def test_who_was_given_back_counts_as_new_in_his_lane_so_that_positions_add_up(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(3))
    await worker.broker.give_back(await worker.receive_one())
    [last] = await gateway.send("last")
    await worker.serve(4)

    async def all_ended() -> bool:
        return (await gateway.broker.depths())[Lane.HASH] == LaneDepth(last.place, 0, 0.0)

    await until(all_ended, "all places done with")


async def test_giving_back_does_not_count_as_handed_out_so_that_waiting_buries_nobody(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    for _ in range(7):
        delivery = await worker.receive_one()
        assert delivery.deliveries == 1
        await worker.broker.give_back(delivery)
    assert (await worker.receive_one()).deliveries == 1


async def test_what_is_released_is_soon_anothers(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    await worker.broker.release(delivery)
    other = await ground.worker()
    again = await other.receive_one(seconds=3)
    assert again.entry == delivery.entry
    assert await other.settle(again) == "settled"
    assert await worker.settle(delivery) == "done"
    assert await gateway.answers() == ["rid"]
    assert await other.take() == await worker.take() == []


async def test_what_is_released_is_soon_anothers_however_much_waits(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(60))
    delivery = await worker.receive_one()
    await worker.broker.release(delivery)
    other = await ground.worker()
    found: list[str] = []

    async def comes() -> bool:
        found.extend(rids([*await other.take(1), *await other.reap(1)]))
        return rid_of(delivery) in found

    await until(comes, "what was released", 3)
    assert len(found) < 30


async def test_what_was_released_does_not_count_as_handed_out(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    for _ in range(4):
        delivery = await worker.receive_one(seconds=5)
        assert delivery.deliveries == 1
        await worker.broker.release(delivery)
        worker = await ground.worker()
    assert (await worker.receive_one(seconds=5)).deliveries == 1


async def test_a_worker_that_leaves_hands_back_what_it_has_not_begun(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(4))
    held = await worker.receive(4)
    for delivery in held:
        await worker.broker.release(delivery)
    await worker.broker.leave()
    await worker.broker.close()
    other = await ground.worker()
    assert sorted(rids(await other.receive(4, seconds=3))) == named(4)


async def test_a_dead_letter_has_no_box_and_its_client_is_told(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid", box=b"this is sealed")
    delivery = await worker.receive_one()
    assert isinstance(await worker.check(Needs(limits=(TRIES,)), "rid"), Facts)
    await worker.broker.bury(delivery, "it kills its workers", ("asker", FAILURE), None, (TRIES,))
    assert await gateway.hears(1) == [FAILURE]
    [letter] = await ground.letters()
    assert all(word in letter for word in (b"it kills its workers", b"rid", b"login", b"hash"))
    assert not any(word in letter for word in (b"sealed", b"wrapped"))
    assert await worker.spent(TRIES, 0)
    assert await worker.settle(delivery) == "done"
    assert await worker.take() == []
    assert await gateway.answers(1) == []


async def test_the_client_of_what_another_has_settled_is_told_of_no_failure(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    assert await worker.settle(delivery) == "settled"
    await worker.broker.bury(delivery, "too late", ("asker", FAILURE), None, ())
    assert rids_of(await ground.echo(gateway, worker)) == ["rid"]
    assert await gateway.answers(len(gateway.heard))
    assert FAILURE not in gateway.heard


async def test_what_another_has_settled_is_no_dead_letter(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    assert await worker.settle(delivery) == "settled"
    await worker.broker.bury(delivery, "too late", None, None, ())
    assert await ground.letters() == []


async def test_what_is_buried_twice_is_one_dead_letter_and_its_client_is_told_once(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    for _ in range(2):
        await worker.broker.bury(delivery, "reason", ("asker", FAILURE), None, ())
    assert await ground.echo(gateway, worker) == [FAILURE]
    assert len(await ground.letters()) == 1


async def test_what_has_been_settled_is_neither_given_back_nor_released_nor_dropped(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    assert await worker.settle(delivery, verdict=Verdict.FAILED, limits=(TRIES,)) == "settled"
    await worker.broker.give_back(delivery)
    await worker.broker.release(delivery)
    await worker.broker.drop(delivery, (TRIES,))
    for again in await worker.take():
        assert await worker.settle(again) == "done"
    assert await gateway.answers() == ["rid"]
    assert await worker.spent(TRIES, 1)


async def test_giving_back_twice_makes_one_of_it(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid", "other")
    [delivery, _] = await worker.receive(2)
    await worker.broker.give_back(delivery)
    await worker.broker.give_back(delivery)
    assert rid_of(await worker.receive_one()) == "rid"
    assert await worker.take() == []
