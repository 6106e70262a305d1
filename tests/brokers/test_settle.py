"""settle: every effect, the reply and the acknowledgement, once; or nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app import entries
from app.messages import Lane, LoggedOut, SessionEnded
from app.ports import Sealed, SealedMail, Signed, State
from app.records import CreateAccount, Facts, Identity, Mail, Needs, Notice, Outcome, PutChallenge, Verdict
from tests.brokers.ground import TRIES, GatewaySide, Ground, WorkerSide, named, rid_of, rids_of, until
from tests.brokers.test_admit import record
from tests.making import EDGE, EMAIL, account, challenge, device

USER = account().id
COMES = Outcome("logged_out", LoggedOut(), identity=Identity(USER, "session"))


def notice(reason: str, spare: tuple[str, str] = ("", "")) -> tuple[Notice, Signed]:
    told = Notice(USER, "session", SessionEnded(session_id="session", reason=reason), spare)
    return told, entries.sign_notice(EDGE, told)


async def comes_online(gateway: GatewaySide, worker: WorkerSide, connection: str = "one") -> None:
    """The user is authenticated on a connection of the node from here on, and the node has read the answer."""
    rid = f"{gateway.node} {connection} comes"
    await gateway.send(rid, lane=Lane.FAST)
    await worker.serve(1, Lane.FAST, outcome=COMES, presence=(gateway.node, connection))
    gateway.listen()

    async def answered() -> bool:
        return rid in rids_of(gateway.heard)

    await until(answered, "an answer")
    gateway.heard.clear()


async def test_a_reply_arrives_at_the_node_that_asked_and_at_no_other(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.gateway("other")
    await gateway.send("rid")
    delivery = await worker.receive_one()
    box = bytes(range(256)) * 64
    assert await worker.settle(delivery, box=box) == "settled"
    assert await gateway.hears(1) == [Sealed("rid", box)]
    assert await ground.echo(other, worker) == []


async def test_replies_arrive_in_the_order_in_which_they_were_settled(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    gateway.listen()
    await gateway.send(*named(40))
    found = (await worker.receive(40))[::-1]
    for delivery in found:
        await worker.settle(delivery)
    assert await gateway.answers(40) == [rid_of(delivery) for delivery in found]


async def test_a_hundred_that_are_settled_at_once_are_answered_each_once(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(100))
    states = await asyncio.gather(
        *(worker.settle(delivery, patience=0.01 * (n % 2)) for n, delivery in enumerate(await worker.receive(100)))
    )
    assert set(states) == {"settled"}
    assert sorted(await gateway.answers(100)) == sorted(named(100))
    assert await worker.take() == []


async def test_replies_that_came_before_the_node_read_any_are_read(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send(*named(3))
    await worker.serve(3)
    assert await gateway.answers(3) == named(3)


async def test_who_settles_twice_is_told_that_it_is_done_and_nothing_happens_again(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    states = [
        await worker.settle(delivery, verdict=Verdict.FAILED, limits=(TRIES,), box=box) for box in (b"one", b"two")
    ]
    assert states == ["settled", "done"]
    assert await gateway.hears(1) == [Sealed("rid", b"one")]
    assert await ground.echo(gateway, worker) == [Sealed("rid", b"one")]
    assert await worker.spent(TRIES, 1)
    assert await worker.take() == []


async def test_past_its_deadline_nothing_is_done_but_that_it_has_ended(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid", left=400)
    delivery = await worker.receive_one()
    assert isinstance(await worker.check(Needs(limits=(TRIES,)), "rid", left=300), Facts)
    assert delivery.entry is not None
    deadline = delivery.entry.deadline

    async def passed() -> bool:
        return await gateway.now() > deadline

    await until(passed, "its deadline")
    put = Outcome("logged_out", LoggedOut(), Verdict.FAILED, writes=(PutChallenge(challenge()),))
    assert await worker.settle(delivery, outcome=put, limits=(TRIES,)) == "expired"
    facts = await worker.check(Needs(challenge_id=challenge().id))
    assert isinstance(facts, Facts) and facts.challenge is None
    assert await worker.spent(TRIES, 0)
    assert await ground.echo(gateway, worker) == []
    assert await worker.take() == []


async def test_what_was_cancelled_has_no_effect_and_no_reply(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid", "other")
    await gateway.broker.cancel(["rid"])
    assert await worker.check(Needs(limits=(TRIES,)), "rid") == State.DONE
    [cancelled, other] = await worker.receive(2)
    assert await worker.settle(cancelled, verdict=Verdict.FAILED, limits=(TRIES,)) == "done"
    assert await worker.settle(other) == "settled"
    assert rids_of(await ground.echo(gateway, worker)) == ["other"]
    assert await worker.spent(TRIES, 0)
    assert await worker.take() == []


async def test_a_cancellation_comes_too_late_for_what_is_settled(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    await worker.serve(1)
    await gateway.broker.cancel(["rid", "unknown"])
    assert await gateway.answers() == ["rid"]


async def test_a_conflict_leaves_everything_as_it_was_and_can_be_decided_again(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    other = await ground.gateway("other")
    await comes_online(other, worker)
    taken = Outcome("logged_out", LoggedOut(), Verdict.PASSED, writes=(CreateAccount(account(), None, device()),))
    await gateway.send("first", "second")
    [first, second] = await worker.receive(2)
    assert await worker.settle(first, outcome=taken) == "settled"
    late = replace(taken, verdict=Verdict.FAILED, writes=(PutChallenge(challenge()), *taken.writes))
    assert await worker.settle(second, outcome=late, limits=(TRIES,), notices=(notice("late"),)) == "conflict"
    facts = await worker.check(Needs(email=EMAIL, challenge_id=challenge().id))
    assert isinstance(facts, Facts) and facts.account == account() and facts.challenge is None
    assert await ground.echo(other, worker) == []
    assert rids_of(await ground.echo(gateway, worker)) == ["first"]
    assert await worker.settle(second) == "settled"
    assert rids_of(await ground.echo(gateway, worker)) == ["first", "second"]
    assert await worker.spent(TRIES, 0)


async def test_while_too_many_mails_wait_what_mails_is_not_done_and_can_be_answered_otherwise(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    mails = tuple((Mail("decoy", EMAIL), SealedMail(f"m{n}", b"w\x00", b"x\xff"), ()) for n in range(3))
    await gateway.send("first", "second")
    [first, second] = await worker.receive(2)
    assert await worker.settle(first, mails=mails) == "settled"
    assert await worker.settle(second, mails=mails[:1], verdict=Verdict.FAILED, limits=(TRIES,)) == "full"
    assert rids_of(await ground.echo(gateway, worker)) == ["first"]
    assert await worker.settle(second) == "settled"
    assert rids_of(await ground.echo(gateway, worker)) == ["first", "second"]
    assert await worker.spent(TRIES, 0)


async def test_a_notice_goes_once_to_each_node_where_the_account_is_online_but_not_to_who_caused_it(
    ground: Ground,
) -> None:
    gateway, worker = await ground.pair()
    there, spared, nowhere = [await ground.gateway(node) for node in ("there", "spared", "nowhere")]
    for connection in ("one", "two"):
        await comes_online(there, worker, connection)
    await comes_online(spared, worker)
    await gateway.send("rid")
    told = [notice(reason, ("spared", "one")) for reason in ("first", "second")]
    for side in (there, spared, nowhere):
        await side.now()  # alive still
    await worker.serve(1, notices=tuple(told))
    assert await there.hears(2) == [signed for _, signed in told]
    assert await ground.echo(spared, worker) == await ground.echo(nowhere, worker) == []
    assert await gateway.answers() == ["rid"]


async def test_a_connection_that_has_left_is_told_nothing(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    there = await ground.gateway("there")
    await comes_online(there, worker)
    await there.broker.leave([(USER, "one"), ("nobody", "two")])
    await gateway.send("rid")
    await worker.serve(1, notices=(notice("reason"),))
    assert await ground.echo(there, worker) == []


async def test_an_outcome_is_recorded_and_told_once_however_often_it_is_delivered(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("first", same="mac")
    await gateway.ask("second", same="mac")
    delivery = await worker.receive_one()
    for box in (b"one", b"two"):
        await worker.settle(delivery, record=record(box))
    recorded = await worker.store.recall("mac")
    assert recorded is not None and recorded.box == b"one"
    assert len(await ground.echo(gateway, worker)) == 2


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.PASSED, Verdict.UNJUDGED])
async def test_a_reserved_place_is_spent_by_a_failure_and_else_comes_back(ground: Ground, verdict: Verdict) -> None:
    gateway, worker = await ground.pair()
    await gateway.send("rid")
    delivery = await worker.receive_one()
    for _ in range(2):  # checking again reserves nothing more
        assert isinstance(await worker.check(Needs(limits=(TRIES,)), "rid"), Facts)
    assert await worker.settle(delivery, verdict=verdict, limits=(TRIES,)) == "settled"
    assert await worker.spent(TRIES, 1 if verdict is Verdict.FAILED else 0)


async def test_a_node_that_is_gone_harms_nobody(ground: Ground) -> None:
    gateway, worker = await ground.pair()
    gone = await ground.gateway("gone")
    await comes_online(gone, worker)
    await gone.send("lost")
    await gone.broker.close()
    await gateway.send("rid")
    [lost, delivery] = await worker.receive(2)
    assert await worker.settle(lost) == "settled"
    assert await worker.settle(delivery, notices=(notice("reason"),)) == "settled"
    assert await gateway.answers() == ["rid"]
    assert await worker.take() == []
