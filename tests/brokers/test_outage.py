"""Servers that die, are away, hang or are full; connections that are cut; answers that are lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

import pytest

from app.messages import Lane
from app.ports import Delivery, Full, Unavailable
from app.records import Needs, Verdict
from tests.brokers.asking import SEED, ask, asked_again, settle_all
from tests.brokers.ground import (
    TRIES,
    Ground,
    WorkerSide,
    entry,
    insist,
    named,
    rid_of,
    rids,
    rids_of,
    until,
    vitals,
)

TOLD_SECONDS = 8.0  # until whoever asks a server that is away, hangs or is full is told so
BACK_SECONDS = 10.0  # from a server's return until it is used again


@pytest.mark.mortal
async def test_of_what_is_asked_while_a_server_dies_all_that_was_admitted_is_there_and_nothing_twice(
    ground: Ground,
) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    gateway = await ground.gateway(most=100_000)
    deadline = await gateway.now() + 60_000
    told: dict[str, str] = {}
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            batch = [f"r{len(told) + n}" for n in range(20)]
            answers = await asyncio.gather(*(ask(gateway, rid, deadline) for rid in batch))
            told.update(zip(batch, answers, strict=True))
            await asyncio.sleep(0.02)

    async def asked(more: int) -> None:
        goal = list(told.values()).count("admitted") + more

        async def enough() -> bool:
            return list(told.values()).count("admitted") >= goal

        await until(enough, "more that were admitted")

    asking = asyncio.create_task(keep_asking())
    try:
        for kind in ground.servers:
            await asked(chance.randint(50, 150))
            async with ground.killed(kind):
                pass
        await asked(20)
    finally:
        stop.set()
        await asking
    settled = await settle_all(await ground.worker(), told)

    async def all_answered() -> bool:
        gateway.listen()
        return len(gateway.heard) >= len(settled)

    await until(all_answered, f"{len(settled)} answers")
    assert sorted(rids_of(gateway.heard)) == sorted(settled)


@pytest.mark.mortal
async def test_when_the_server_died_what_was_in_hand_is_settled_once_and_replies_that_were_not_read_are_there(
    ground: Ground,
) -> None:
    reader, worker = await ground.pair()
    late = await ground.gateway("late")
    await late.send(*named(5))
    await reader.send("before")
    await worker.serve(6)
    await reader.hears(1)
    held_ones = [f"held {rid}" for rid in named(10)]
    await reader.send(*held_ones)
    held = await worker.receive(10)
    async with ground.killed(ground.adapter.servers[0]):
        pass
    states = [await insist(partial(worker.settle, d, verdict=Verdict.FAILED, limits=(TRIES,))) for d in held]
    assert set(states) == {"settled"}
    other = await ground.worker()
    assert sorted(rids_of(await ground.echo(reader, other))) == sorted(["before", *held_ones])
    for delivery in (*await insist(other.take), *await insist(other.reap)):
        assert await other.settle(delivery) == "done"
    assert await other.spent(TRIES, 10)
    assert sorted(rids_of(await ground.echo(reader, other))) == sorted(["before", *held_ones])
    assert await late.answers(5) == named(5)


async def test_replies_go_on_where_they_were_after_the_server_was_away(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(9))
    await worker.serve(3)
    await gateway.hears(3)
    gateway.wires.shut()
    await worker.serve(6)
    await gateway.wires.open()
    assert await gateway.answers(9) == named(9)


async def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(ground: Ground) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    gateway, worker = await ground.pair()
    gateway.listen()
    deadline = await gateway.now() + 60_000
    told: dict[str, str] = {}
    settled: list[str] = []
    done = asyncio.Event()

    async def work() -> None:
        while not done.is_set():
            try:
                for delivery in [*await worker.take(5), *await worker.reap(5)]:
                    if await insist(partial(worker.settle, delivery)) in ("settled", "done"):
                        settled.append(rid_of(delivery))
            except Unavailable:
                await asyncio.sleep(0.02)

    working = asyncio.create_task(work())
    try:
        for n in range(60):
            told[f"r{n}"] = await ask(gateway, f"r{n}", deadline)
            if n % 6 == 0:
                chance.choice([gateway.wires, worker.wires]).cut()

        async def all_answered() -> bool:
            return {rid for rid, state in told.items() if state == "admitted"} <= set(rids_of(gateway.heard))

        await until(all_answered, "an answer to everything")
    finally:
        done.set()
        await working
    heard = rids_of(gateway.heard)
    assert len(heard) == len(set(heard))
    assert set(heard) <= set(settled) <= set(told)


async def test_who_lost_the_answer_to_admit_finds_it_queued_once_or_not_at_all(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("before")
    deadline = await gateway.now() + 30_000
    told = {"before": "admitted"}
    for kind in ground.servers:
        with gateway.wires[kind].deaf():
            told[str(kind)] = await ask(gateway, str(kind), deadline)
        assert told[str(kind)] == "unknown"
    told["after"] = await insist(lambda: asked_again(gateway, deadline))
    settled = await settle_all(worker, told)
    assert sorted(await gateway.answers(len(settled))) == sorted(settled)
    assert await worker.take() == []


async def test_who_lost_the_connection_while_he_asked_finds_it_queued_once_or_not_at_all(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("before")
    deadline = await gateway.now() + 30_000
    told = {"before": "admitted"}
    for kind in ground.servers:
        with gateway.wires[kind].losing():
            told[str(kind)] = await ask(gateway, str(kind), deadline)
    told["after"] = await insist(lambda: asked_again(gateway, deadline))
    settled = await settle_all(worker, told)
    assert sorted(await gateway.answers(len(settled))) == sorted(settled)


async def test_who_lost_the_answer_to_settle_asks_again_and_it_is_settled_once_with_its_reply(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    gateway.listen()
    for kind in ground.servers:
        rid = f"settled without {kind}"
        await gateway.send(rid)
        delivery = await worker.receive_named(rid)
        settle = partial(worker.settle, delivery, verdict=Verdict.FAILED, limits=(TRIES,))
        with worker.wires[kind].deaf(), pytest.raises(Unavailable):
            await settle()
        assert await insist(settle) in ("settled", "done")
    expected = [f"settled without {kind}" for kind in ground.servers]
    assert await gateway.answers(len(expected)) == expected
    other = await ground.worker()
    for again in (*await other.take(), *await other.reap()):
        assert await other.settle(again) == "done"
    assert rids_of(await ground.echo(gateway, other)) == expected
    assert await other.spent(TRIES, len(expected))


async def test_a_worker_that_died_before_it_knew_of_its_settling_leaves_it_done_and_answered(ground: Ground) -> None:
    gateway = await ground.gateway()
    gateway.listen()
    for kind in ground.servers:
        dying = await ground.worker()
        rid = f"dead without {kind}"
        await gateway.send(rid)
        delivery = await dying.receive_named(rid)
        with dying.wires[kind].deaf(), pytest.raises(Unavailable):
            await dying.settle(delivery)
        dying.wires.shut()
        worker = await ground.worker()

        async def answered(worker: WorkerSide = worker, rid: str = rid) -> bool:
            for again in [*await worker.take(), *await worker.reap()]:
                assert await worker.settle(again) in ("settled", "done")
            return rid in rids_of(gateway.heard)

        await until(answered, "an answer, whoever gives it")
        await worker.broker.close()
    heard = rids_of(await ground.echo(gateway, await ground.worker()))
    assert heard == [f"dead without {kind}" for kind in ground.servers]


async def test_servers_that_are_away_at_the_start_are_said_to_be_and_used_when_they_are_there(ground: Ground) -> None:
    helper = await ground.gateway("helper")
    deadline = await helper.now() + 60_000
    gateway = await ground.gateway_unheard(away=True)
    worker = await ground.worker(away=True)
    gateway.listen()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: gateway.broker.admit(entry("early", deadline), 0.0),
        gateway.broker.heartbeat,
        gateway.broker.depths,
        lambda: worker.broker.take(Lane.HASH, 1),
        lambda: worker.broker.reap(Lane.HASH, 1, []),
        lambda: worker.broker.beat(vitals()),
        lambda: worker.store.check("early", deadline, Needs()),
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await call()
        assert time.monotonic() - began < TOLD_SECONDS
    for side in (gateway, worker):
        await side.wires.open()
    began = time.monotonic()
    await insist(lambda: gateway.send("rid"))
    delivery = await worker.receive_one()
    assert rid_of(delivery) == "rid"
    assert await insist(lambda: worker.settle(delivery)) == "settled"
    assert await gateway.answers() == ["rid"]
    assert time.monotonic() - began < BACK_SECONDS


async def test_servers_that_hang_keep_nobody_waiting_for_long(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(6))
    held = await worker.receive(6)
    deadline = await gateway.now() + 60_000
    gateway.listen()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "admit": lambda: gateway.broker.admit(entry("late", deadline), 0.0),
        "cancel": lambda: gateway.broker.cancel(["x"]),
        "depths": gateway.broker.depths,
        "leave": lambda: gateway.broker.leave([("user", "connection")]),
        "heartbeat": gateway.broker.heartbeat,
        "take": lambda: worker.broker.take(Lane.FAST, 1),
        "settle": lambda: worker.settle(held[0]),
        "drop": lambda: worker.broker.drop(held[1], ()),
        "bury": lambda: worker.broker.bury(held[2], "reason", None, None, ()),
        "reap": lambda: worker.broker.reap(Lane.HASH, 1, []),
        "beat": lambda: worker.broker.beat(vitals()),
        "check": lambda: worker.store.check("rid", deadline, Needs()),
        "recall": lambda: worker.store.recall("same"),
    }
    slow: dict[str, float] = {}

    async def timed(name: str, call: Callable[[], Awaitable[object]]) -> None:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await call()
        if (took := time.monotonic() - began) > TOLD_SECONDS:
            slow[name] = took

    with ExitStack() as stack:
        for side in (gateway, worker):
            stack.enter_context(side.wires.frozen())
        await asyncio.gather(*(timed(name, call) for name, call in calls.items()))
    assert not slow
    await insist(lambda: gateway.send("after"))

    async def all_ended() -> bool:
        for delivery in [*await worker.take(), *await worker.reap()]:
            await worker.settle(delivery)
        return "after" in rids_of(gateway.heard)

    await until(all_ended, "an answer after the outage")
    assert len(rids_of(gateway.heard)) == len(set(rids_of(gateway.heard)))


async def test_however_much_is_sent_to_a_server_that_reads_nothing_any_more_everybody_is_told_in_time(
    ground: Ground,
) -> None:
    gateway = await ground.gateway()
    await gateway.send("before")
    deadline = await gateway.now() + 60_000
    for kind in ground.servers:
        with gateway.wires[kind].frozen():
            began = time.monotonic()
            asked = (ask(gateway, f"{kind} {n}", deadline, box=bytes(400_000)) for n in range(40))
            async with asyncio.timeout(3 * TOLD_SECONDS):
                assert set(await asyncio.gather(*asked)) == {"unknown"}
            assert time.monotonic() - began < TOLD_SECONDS
        await insist(partial(gateway.send, f"after {kind}"))


@pytest.mark.parametrize("which", ["the broker's", "the store"])
@pytest.mark.mortal
async def test_a_full_server_is_said_to_be_unavailable_in_time_and_used_when_there_is_room(
    ground: Ground, which: str
) -> None:
    kind = ground.adapter.servers[0] if which == "the broker's" else ground.adapter.store
    gateway, worker = await ground.pair()
    gateway.listen()
    await gateway.send("before")
    delivery = await worker.receive_one()
    deadline = await gateway.now() + 60_000
    told: dict[str, str] = {}
    async with ground.servers[kind].full():
        began = time.monotonic()
        for n in range(2):
            told[f"full {n}"] = await ask(gateway, f"full {n}", deadline)
        assert set(told.values()) == {"unknown"}
        with pytest.raises(Unavailable):
            await worker.settle(delivery)
        assert time.monotonic() - began < 3 * TOLD_SECONDS
    assert await insist(lambda: worker.settle(delivery)) in ("settled", "done")
    told["after"] = await insist(lambda: asked_again(gateway, deadline))
    settled = await settle_all(worker, told)
    expected = sorted(["before", *settled])
    assert sorted(await gateway.answers(len(expected))) == expected


async def test_whoever_closes_while_the_servers_are_away_is_not_kept_waiting(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    gateway.listen()
    await gateway.send("rid")
    held: list[Delivery] = await worker.receive(1)
    assert rids(held) == ["rid"]
    for side in (gateway, worker):
        side.wires.shut()
        began = time.monotonic()
        await side.broker.close()
        assert time.monotonic() - began < TOLD_SECONDS
    assert gateway.listening is not None
    await asyncio.wait_for(gateway.listening, TOLD_SECONDS)


async def test_a_refusal_for_want_of_room_is_no_outage(ground: Ground) -> None:
    gateway = await ground.gateway(most=0)
    assert isinstance(await gateway.ask("rid"), Full)
