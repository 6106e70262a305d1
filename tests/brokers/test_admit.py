"""admit: let in with a place, or refused at once; durable; the same request joins itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from app import entries
from app.messages import Code, Lane
from app.ports import Admitted, Expired, Full, Known, Record, Unavailable
from tests.brokers.ground import Answer, Ground, entry, named, rid_of, rids, until, vitals
from tests.making import EDGE

WORD = entries.sign_word(EDGE, "mac", None, None)
IN_VAIN = entries.sign_word(EDGE, "mac", Code.UNAVAILABLE, None)


def record(box: bytes | None = b"outcome\x00\xff", session_id: str = "") -> Record:
    return Record("mac", session_id, box, WORD)


@pytest.mark.parametrize(
    ("lane", "same", "replay"),
    [
        (Lane.HASH, "", False),
        (Lane.HASH, "mac", False),
        (Lane.FAST, "", False),
        (Lane.SLOW, "", False),
        (Lane.FAST, "mac", True),
    ],
    ids=["without a key", "with a key", "in the fast lane", "in the slow lane", "a question for a replay"],
)
async def test_an_admitted_request_arrives_as_it_was_sent(ground: Ground, lane: Lane, same: str, replay: bool) -> None:
    gateway, worker = await ground.pair()
    box = bytes(range(256)) * 64  # of the largest frame there is
    now = await gateway.now()
    await gateway.send("rid", lane=lane, same=same, replay=replay, box=box)
    delivery = await worker.receive_one(lane)
    arrived = delivery.entry
    assert arrived is not None
    assert (arrived.rid, arrived.node, arrived.event, arrived.lane) == ("rid", "asker", "login", lane)
    assert (arrived.wrapped, arrived.box, arrived.same, arrived.replay) == (b"wrapped\x00\xff\r\n", box, same, replay)
    assert 25_000 <= arrived.deadline - now < 30_000
    assert (delivery.lane, delivery.deliveries) == (lane, 1)


async def test_places_are_numbered_in_the_order_of_the_lane_and_who_waits_knows_behind_how_many(ground: Ground) -> None:
    gateway = await ground.gateway()
    assert await gateway.send(*named(3)) == [Admitted(n, n, None) for n in (1, 2, 3)]
    assert await gateway.send("other", lane=Lane.FAST) == [Admitted(1, 1, None)]


async def test_a_request_need_not_wait_while_there_is_a_free_slot(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=2, rate=100))
    assert [(await gateway.send(rid))[0].position for rid in named(5)] == [0, 0, 1, 2, 3]


async def test_who_waits_is_told_for_how_long_by_what_the_workers_can_do(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=1, rate=50))
    assert [(await gateway.send(rid))[0].eta_ms for rid in named(3)] == [20, 40, 60]


async def test_a_full_lane_refuses_at_once_and_lets_in_again_when_one_has_ended(ground: Ground) -> None:
    gateway, worker = await ground.pair(most=3)
    await gateway.send(*named(3))
    began = time.monotonic()
    assert await gateway.ask("too many") == Full(None)
    assert time.monotonic() - began < 2
    await worker.serve(1)
    await gateway.send("one more")
    assert isinstance(await gateway.ask("again too many"), Full)
    assert sorted(rids(await worker.receive(3))) == ["one more", "r1", "r2"]


async def test_what_is_in_hand_takes_room_as_what_waits_does(ground: Ground) -> None:
    gateway, worker = await ground.pair(most=2)
    await gateway.send(*named(2))
    in_hand = await worker.receive(2)
    assert isinstance(await gateway.ask("third"), Full)
    await worker.settle(in_hand[0])
    await gateway.send("third")


async def test_of_many_at_once_from_two_gateways_as_many_get_in_as_there_is_room(ground: Ground) -> None:
    sides = [await ground.gateway(node, most=20) for node in ("one", "two")]
    worker = await ground.worker()
    answers = await asyncio.gather(*(side.ask(f"{side.node}-{n}") for n in range(25) for side in sides))
    admitted = [answer for answer in answers if isinstance(answer, Admitted)]
    assert sorted(answer.place for answer in admitted) == list(range(1, 21))
    assert sum(isinstance(answer, Full) for answer in answers) == 30
    assert len(set(rids(await worker.receive(20)))) == 20
    assert await worker.take() == []


async def test_what_could_not_be_answered_by_its_deadline_is_refused_with_when_to_come_again(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await worker.broker.beat(vitals(slots=1, rate=0.5))
    await gateway.send("first", left=4000)
    await gateway.send("second", left=10_000)
    answer = await gateway.ask("third", left=3000)  # an ETA of 6 s
    assert isinstance(answer, Full)
    assert answer.retry_after_ms is not None
    assert 2000 <= answer.retry_after_ms <= 6000


async def test_one_lane_is_full_and_the_other_is_not(ground: Ground) -> None:
    gateway = await ground.gateway(most=1)
    await gateway.send("first")
    assert isinstance(await gateway.ask("second"), Full)
    await gateway.send("third", lane=Lane.FAST)


@pytest.mark.parametrize("left", [0, -60_000])
async def test_what_comes_after_its_deadline_is_refused_and_told_the_time(ground: Ground, left: int) -> None:
    gateway, worker = await ground.pair()
    before = await gateway.now()
    answer = await gateway.ask(left=left)
    assert isinstance(answer, Expired)
    assert before <= answer.now <= await gateway.now()
    assert await worker.take() == []


async def test_who_is_patient_is_admitted_by_the_end_of_his_patience_and_arrives_once(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    began = time.monotonic()
    answers = await asyncio.gather(*(gateway.ask(rid, patience=0.1) for rid in named(10)))
    assert all(isinstance(answer, Admitted) for answer in answers)
    assert time.monotonic() - began < 2
    assert sorted(rids(await worker.receive(10))) == named(10)


async def test_five_hundred_at_once_arrive_each_once(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    answers = await asyncio.gather(*(gateway.ask(rid) for rid in named(500)))
    places = [answer.place for answer in answers if isinstance(answer, Admitted)]
    assert sorted(places) == list(range(1, 501))
    found = await worker.receive(500)
    assert sorted(rids(found)) == sorted(named(500))
    assert await worker.take() == []


# --- the same request again ------------------------------------------------------------------------------------------


def joined(answer: Answer, formerly: str = "") -> bool:
    if not (isinstance(answer, Known) and answer.state == "joined"):
        return False
    return answer.formerly == formerly and 0 < answer.left_ms <= 25_000


async def test_the_same_request_joins_the_one_that_is_pending_wherever_it_is_sent(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    elsewhere = await ground.gateway("elsewhere")
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="mac"))
    delivery = await worker.receive_one()
    assert joined(await elsewhere.ask("third", same="mac"))  # in hand is pending too
    assert rid_of(delivery) == "first"
    assert await worker.take() == []


async def test_who_joined_is_told_of_the_end_on_his_own_node(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    elsewhere = await ground.gateway("elsewhere")
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="mac"))
    assert joined(await elsewhere.ask("third", same="mac"))
    await worker.serve(1, record=record())
    heard = await gateway.hears(2)
    assert {reply.rid for reply in heard} == {"first", "second"}
    assert replace(WORD, rid="second") in heard
    assert await elsewhere.hears(1) == [replace(WORD, rid="third")]


async def test_eight_may_join_and_a_ninth_is_too_many(ground: Ground) -> None:
    gateway = await ground.gateway()
    await gateway.send("first", same="mac")
    assert all([joined(await gateway.ask(rid, same="mac")) for rid in named(8)])
    assert await gateway.ask("ninth", same="mac") == Known("crowded")


async def test_what_is_done_is_said_to_be_until_it_is_forgotten(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac")
    await worker.serve(1, record=record(session_id="session"))
    assert await gateway.ask("second", same="mac") == Known("done")
    recorded = await worker.store.recall("mac")
    assert recorded is not None
    assert (recorded.box, recorded.session_id) == (b"outcome\x00\xff", "session")
    await gateway.send("question", same="mac", replay=True, lane=Lane.FAST)  # whatever is known, it is let in
    await worker.store.forget("mac", recorded)
    await gateway.send("third", same="mac")


async def test_an_error_is_not_recorded_but_told_to_who_joined(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="mac"))
    await worker.serve(1, record=record(box=None))
    assert replace(WORD, rid="second") in await gateway.hears(2)
    assert await worker.store.recall("mac") is None
    await gateway.send("third", same="mac")


async def test_a_request_is_known_under_its_former_names(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="new", formerly=("older", "mac")), "mac")
    await worker.serve(1, record=record())
    assert await gateway.ask("third", same="new", formerly=("mac", "older")) == Known("done", "mac")
    await gateway.send("fourth", same="new", formerly=("older",))


async def test_a_pending_request_whose_deadline_has_passed_is_replaced(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac", left=300)
    delivery = await worker.receive_one()
    answer = await gateway.ask("second", same="mac")
    while isinstance(answer, Known):
        await asyncio.sleep(answer.left_ms / 1000)
        answer = await gateway.ask("second", same="mac")
    assert isinstance(answer, Admitted)
    assert await worker.settle(delivery, record=record()) == "expired"
    assert rid_of(await worker.receive_one()) == "second"
    assert joined(await gateway.ask("third", same="mac"))


async def test_of_the_same_request_from_ten_at_once_one_is_admitted(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    answers = await asyncio.gather(*(gateway.ask(rid, same="mac") for rid in named(9)))
    assert sum(isinstance(answer, Admitted) for answer in answers) == 1
    assert sum(map(joined, answers)) == 8
    await worker.receive_one()
    assert await worker.take() == []


async def test_a_full_lane_lets_the_same_request_join_and_keeps_nothing_of_a_new_one(ground: Ground) -> None:
    gateway, worker = await ground.pair(most=1)
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="mac"))
    assert isinstance(await gateway.ask("third", same="another"), Full)
    await worker.serve(1, record=record(box=None))
    await gateway.send("fourth", same="another")


async def test_a_buried_request_tells_who_joined_and_can_be_sent_again(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac")
    assert joined(await gateway.ask("second", same="mac"))
    word = entries.sign_word(EDGE, "mac", Code.INTERNAL, None)
    delivery = await worker.receive_one()
    await worker.broker.bury(delivery, "reason", None, Record("mac", "", None, word), ())
    assert await gateway.hears(1) == [replace(word, rid="second")]
    await gateway.send("third", same="mac")


async def test_who_joined_one_that_may_not_have_been_queued_is_told_of_its_end_or_at_once_that_it_was_in_vain(
    ground: Ground,
) -> None:
    gateway, worker = await ground.pair()
    joins = await ground.gateway("elsewhere", most=0)  # lets nothing in
    asked = entry("first", await gateway.now() + 20_000, same="mac", in_vain=IN_VAIN)

    async def has_joined() -> bool:
        return joined(await joins.ask("second", same="mac"))

    with gateway.wires[ground.adapter.servers[0]].deaf():
        asking = asyncio.create_task(gateway.broker.admit(asked, 0.0))
        await until(has_joined, "a request that can be joined")
        with pytest.raises(Unavailable):
            await asking
    ended = [await worker.settle(delivery, record=record()) for delivery in await worker.receive()]
    assert await joins.hears(1) == [replace(WORD if ended == ["settled"] else IN_VAIN, rid="second")]
    assert isinstance(await gateway.ask("third", same="mac"), Known if ended == ["settled"] else Admitted)
