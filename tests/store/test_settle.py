"""settle: once, in time, with its delivery, its mails and what is remembered of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters import names
from adapters.redis_mail import mail_queue
from adapters.redis_store import RECORD_KEPT_MS
from app import entries
from app.messages import Code, Lane
from app.ports import Admitted, Known, Record, Sealed, SealedMail
from app.records import CreateAccount, EndSession, Mail, Needs, PutChallenge, Recorded
from app.rules import HOUR, MINUTE
from tests.making import EDGE, EMAIL, account, challenge, device, session
from tests.store.bench import (
    JOINED,
    MAIL,
    MAILS,
    MAILS_IP,
    SAME,
    TRIES,
    USES,
    ask,
    bench,
    counted,
    entry,
    held,
    in_hand,
    joins,
    new_challenge,
    outcome,
    pending,
    record,
    sealed_mail,
    settlement,
    taken,
)

# --- settle: once, in time, and with its delivery ---------------------------------------------------------------------


async def test_a_settled_request_has_its_effect_its_reply_and_its_acknowledgement_together(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        has = account()
        done = outcome(CreateAccount(has, None, device()))
        assert await parts.end(delivery, settlement("rid", done)) == "settled"
        assert (await parts.check(Needs(email=EMAIL), rid="later")).account == has
        assert await parts.length(names.lane(Lane.HASH)) == 0
        assert await pending(parts) == 0
        assert await anext(parts.gateway.replies()) == Sealed("rid", b"box of rid")
        [(_, event)] = await parts.redis.xrange(names.EVENTS)
        assert event == {b"event": b"logged_out", b"code": b"ok", b"request": b"rid"}
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "asker") <= 60_000


async def test_a_request_that_is_delivered_twice_takes_effect_and_is_answered_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        for _ in range(2):
            await parts.admit(entry(deadline=deadline))
        first, copy = await taken(parts)
        await parts.check(Needs(limits=(USES,)))
        plan = settlement(
            "rid",
            outcome(PutChallenge(await new_challenge(parts))),
            limits=(USES,),
            mails=((MAIL, sealed_mail(), (MAILS,)),),
        )
        assert await parts.end(first, plan) == "settled"
        after = await parts.snapshot()
        assert await parts.end(copy, plan) == "done"
        again = await parts.snapshot()
        lane = names.lane(Lane.HASH).encode()
        assert {key for key in again | after if again.get(key) != after.get(key)} == {lane}
        assert await parts.length(names.lane(Lane.HASH)) == 0
        assert await pending(parts) == 0
        assert await counted(parts, USES) == 1


@pytest.mark.parametrize("left", [0, -1])
async def test_past_its_deadline_a_request_has_no_effect_and_no_reply_but_is_acknowledged(
    redis_url: str, left: int
) -> None:
    async with bench(redis_url) as parts:
        await parts.admit(entry(deadline=await parts.soon()))
        [delivery] = await taken(parts)
        assert delivery.entry is not None
        late = replace(delivery, entry=replace(delivery.entry, deadline=await parts.now() + left))
        plan = settlement("rid", outcome(CreateAccount(account(), None, device())), mails=((MAIL, sealed_mail(), ()),))
        assert await parts.end(late, plan) == "expired"
        keys = set(await parts.redis.keys("*"))
        assert keys == {
            names.lane(Lane.HASH).encode(),
            names.lane_count(Lane.HASH).encode(),
            names.done("rid").encode(),
        }
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.end(delivery, plan) == "done"


async def test_a_conflict_past_the_deadline_is_only_late(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.settle(EndSession(session(), "logout"), left=-1) == "expired"


async def test_a_cancelled_request_is_acknowledged_without_effect_or_reply(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.gateway.cancel(["rid"])
        plan = settlement("rid", outcome(CreateAccount(account(), None, device())))
        assert await parts.end(delivery, plan) == "done"
        assert (await parts.check(Needs(email=EMAIL), rid="later")).account is None
        assert await parts.length(names.REPLIES + "asker") == 0
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def test_a_dropped_request_is_done_acknowledged_and_unanswered(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.check(Needs(limits=(TRIES,)))
        await parts.worker.drop(delivery, (TRIES,))
        assert await parts.store.check("rid", await parts.soon(), Needs()) == "done"
        assert (await held(parts, TRIES), await counted(parts, TRIES)) == (0, 0)
        assert await parts.length(names.REPLIES + "asker") == 0
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def test_a_dead_letter_has_no_box_and_its_client_is_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        failure = entries.sign_failure(EDGE, "rid", Code.INTERNAL)
        await parts.worker.bury(delivery, "the seal does not hold", ("asker", failure), None, ())
        assert await anext(parts.gateway.replies()) == failure
        [(_, letter)] = await parts.redis.xrange(names.DEAD)
        assert set(letter) == {b"lane", b"reason", b"r", b"n", b"e", b"d"}
        assert (letter[b"r"], letter[b"reason"], letter[b"lane"]) == (b"rid", b"the seal does not hold", b"hash")
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.store.check("rid", await parts.soon(), Needs()) == "done"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"other": "y"}, id="other fields"),
        pytest.param({"d": None}, id="no deadline"),
        pytest.param({"d": "soon"}, id="a deadline in words"),
        pytest.param({"r": b"\xff"}, id="an id that is no text"),
        pytest.param({"s": None}, id="nothing of what it is the same as"),
        pytest.param({"s": b"\xff"}, id="the same as no text"),
        pytest.param({"p": None}, id="nothing of whether it asks for a replay"),
        pytest.param({"x": None}, id="no box"),
    ],
)
async def test_what_is_no_entry_is_taken_as_none_and_can_be_buried(redis_url: str, fields: dict[str, Any]) -> None:
    async with bench(redis_url) as parts:
        right: dict[str, Any] = {"r": "rid", "n": "n", "e": "login", "d": "1", "s": "", "p": "0", "w": "w", "x": "x"}
        altered = {name: value for name, value in (right | fields).items() if value is not None}
        await parts.redis.xadd(names.lane(Lane.HASH), fields if "other" in fields else altered)
        [delivery] = await taken(parts)
        assert delivery.entry is None
        await parts.worker.bury(delivery, "not an entry", None, None, ())
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.length(names.DEAD) == 1


# --- settle: mails ----------------------------------------------------------------------------------------------------


async def test_a_mail_arrives_at_the_mailer_as_it_was_sealed_and_is_gone_when_done(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        queue = mail_queue(redis_url, "mailer")
        try:
            await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
            [found] = await queue.take(10) or await queue.take(10)  # the first makes the group
            assert (found.mail, found.tries) == (sealed_mail(), 1)
            await queue.done(found.token)
            assert await parts.length(names.MAIL) == 0
        finally:
            await queue.close()


async def test_past_a_limit_a_mail_is_not_sent_and_everything_else_is_the_same(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(4):
            write = PutChallenge(await new_challenge(parts, id=f"c{n}"))
            await parts.made(write, mails=((MAIL, sealed_mail(f"m{n}"), (MAILS,)),))
        assert [fields[b"id"] for _, fields in await parts.redis.xrange(names.MAIL)] == [b"m0", b"m1"]
        assert await parts.redis.exists(*(names.CHALLENGES + f"c{n}" for n in range(4))) == 4
        assert await parts.length(names.REPLIES + "asker") == 4
        assert await counted(parts, MAILS) == 2


async def test_a_mail_that_one_limit_holds_back_spends_no_place_of_the_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(4):
            await parts.made(mails=((MAIL, sealed_mail(f"m{n}"), (MAILS, MAILS_IP)),))
        assert (await counted(parts, MAILS), await counted(parts, MAILS_IP)) == (2, 2)
        other = replace(MAILS, subject="other@example.com")
        for n in range(4, 7):
            await parts.made(mails=((MAIL, sealed_mail(f"m{n}"), (other, MAILS_IP)),))
        assert (await counted(parts, other), await counted(parts, MAILS_IP)) == (1, 3)
        assert await parts.length(names.MAIL) == 3


async def test_the_window_of_a_mail_limit_begins_with_its_first_mail(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        key = names.limit(MAILS.name, MAILS.subject)
        await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
        assert HOUR - 5000 < await parts.redis.pttl(key) <= HOUR
        await parts.redis.pexpire(key, 60_000)
        await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
        assert await parts.redis.pttl(key) <= 60_000
        await parts.redis.delete(key)
        await parts.made(mails=((MAIL, sealed_mail("later"), (MAILS,)),))
        assert await parts.length(names.MAIL) == 3


async def test_two_mails_of_one_request_are_counted_one_by_one(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.made(mails=tuple((MAIL, sealed_mail(f"m{n}"), (MAILS,)) for n in range(4)))
        assert (await parts.length(names.MAIL), await counted(parts, MAILS)) == (2, 2)


# --- settle: what is remembered of a request with a key ---------------------------------------------------------------


async def test_an_outcome_is_recorded_with_whose_it_is_for_ten_minutes(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        plan = settlement("rid", outcome(), record=record(session_id="0wrk1-session"))
        assert await parts.end(delivery, plan) == "settled"
        assert await parts.store.recall("mac") == Recorded(b"outcome\x00\xff", "0wrk1-session")
        assert RECORD_KEPT_MS == 10 * MINUTE
        assert RECORD_KEPT_MS - 5000 < await parts.redis.pttl(SAME) <= RECORD_KEPT_MS
        assert not await parts.redis.exists(JOINED)
        assert await anext(parts.gateway.replies()) == Sealed("rid", b"box of rid")


async def test_an_error_is_not_recorded_and_the_same_request_is_a_new_one(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(Code.RATE_LIMITED))) == "settled"
        assert await parts.store.recall("mac") is None
        assert not await parts.redis.exists(SAME, JOINED)
        assert isinstance(await ask(parts, "again"), Admitted)


@pytest.mark.parametrize("code", [None, Code.RATE_LIMITED], ids=["recorded", "an error"])
async def test_everybody_who_joined_gets_word_on_the_stream_of_his_node(redis_url: str, code: Code | None) -> None:
    async with bench(redis_url) as parts, bench(redis_url, node="node-b") as other:
        delivery = await in_hand(parts, same="mac")
        for rid, node in (("b1", "node-b"), ("a1", "asker"), ("b2", "node-b")):
            assert joins(await ask(parts, rid, node=node))
        remembers = record(code, 5000 if code else None)
        await parts.end(delivery, settlement("rid", outcome(), record=remembers))
        here, there = parts.gateway.replies(), other.gateway.replies()
        assert await anext(here) == Sealed("rid", b"box of rid")
        told = [(await anext(here)), (await anext(there)), (await anext(there))]
        assert told == [replace(remembers.word, rid=rid) for rid in ("a1", "b1", "b2")]
        opened = entries.open_signed(EDGE, remembers.word)
        assert opened == entries.OpenedWord("mac", code, 5000 if code else None)
        assert (await parts.length(names.REPLIES + "asker"), await parts.length(names.REPLIES + "node-b")) == (2, 2)
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "node-b") <= 60_000


async def test_a_request_that_nobody_joined_sends_no_word(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        assert await parts.redis.keys(names.REPLIES + "*") == [(names.REPLIES + "asker").encode()]
        assert await parts.length(names.REPLIES + "asker") == 1


@pytest.mark.parametrize("code", [None, Code.INTERNAL], ids=["recorded", "an error"])
@pytest.mark.parametrize("now", ["another's", "another's outcome", "nobody's"])
async def test_what_another_has_taken_the_place_of_is_left_alone(redis_url: str, now: str, code: Code | None) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.redis.delete(SAME)  # as the end of its deadline and of its time to be reclaimed does
        if now != "nobody's":
            second = await in_hand(parts, "second", same="mac")
            assert joins(await ask(parts, "joined", node="node-b"))
            if now == "another's outcome":
                await parts.end(second, settlement("second", outcome(), record=record(session_id="second's")))
        before, words = await parts.redis.dump(SAME), await parts.length(names.REPLIES + "node-b")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(code))) == "settled"
        assert await parts.redis.dump(SAME) == before
        assert await parts.length(names.REPLIES + "node-b") == words
        assert await parts.redis.llen(JOINED) == (1 if now == "another's" else 0)


@pytest.mark.parametrize("how", ["expired", "cancelled", "settled before", "dropped"])
async def test_what_is_not_evaluated_records_nothing_and_tells_nobody(redis_url: str, how: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined", node="node-b")
        before = await parts.redis.dump(SAME)
        plan = settlement("rid", outcome(), record=record())
        if how == "cancelled":
            await parts.gateway.cancel(["rid"])
        elif how == "settled before":
            await parts.settle(rid="rid")
        if how == "dropped":
            await parts.worker.drop(delivery, ())
        else:
            state = await parts.keep("rid", await parts.now() - 1 if how == "expired" else await parts.soon(), plan)
            assert state == ("expired" if how == "expired" else "done")
        assert await parts.redis.dump(SAME) == before
        assert await parts.length(names.REPLIES + "node-b") == 0
        assert await parts.store.recall("mac") is None


async def test_a_request_that_is_delivered_twice_is_recorded_and_told_of_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined", node="node-b")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(session_id="one"))) == "settled"
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(session_id="other"))) == "done"
        assert await parts.store.recall("mac") == Recorded(b"outcome\x00\xff", "one")
        assert await parts.length(names.REPLIES + "node-b") == 1


async def test_a_settled_request_without_a_key_remembers_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.end(await in_hand(parts), settlement("rid", outcome()))
        assert await parts.redis.keys("*same*") == []


async def test_nothing_is_recalled_of_a_request_that_nobody_knows_or_that_is_pending(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.store.recall("mac") is None
        await ask(parts, "first")
        assert await parts.store.recall("mac") is None


async def test_what_is_forgotten_is_a_new_request_when_it_is_sent_again(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        recorded = await parts.store.recall("mac")
        assert recorded is not None
        await parts.store.forget("cam", recorded)  # nothing to forget
        await parts.store.forget("mac", replace(recorded, box=b"another outcome"))
        assert await ask(parts, "again") == Known("done")
        await parts.store.forget("mac", recorded)
        assert await parts.store.recall("mac") is None
        assert isinstance(await ask(parts, "later"), Admitted)


async def test_forgetting_leaves_alone_what_has_taken_the_place_of_what_was_recalled(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        recorded = await parts.store.recall("mac")
        assert recorded is not None
        await parts.store.forget("mac", recorded)
        assert isinstance(await ask(parts, "anew"), Admitted)
        await parts.store.forget("mac", recorded)
        assert joins(await ask(parts, "other"))


async def test_a_buried_request_can_be_sent_again_and_those_who_joined_are_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        assert joins(await ask(parts, "other"))
        word = entries.sign_word(EDGE, "mac", Code.INTERNAL, None)
        await parts.worker.bury(delivery, "the worker failed", None, Record("mac", "", None, word), ())
        assert isinstance(await ask(parts, "again"), Admitted)


async def test_what_mails_is_not_done_while_too_many_mails_wait_and_can_be_answered_otherwise(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.redis_store.MAILS_KEPT", 2)
    async with bench(redis_url) as parts:
        mails = ((Mail("decoy", EMAIL), SealedMail("m", b"w", b"x"), ()),)
        for n in range(2):
            plan = settlement(f"{n}", outcome(), mails=mails)
            assert await parts.end(await in_hand(parts, f"{n}"), plan) == "settled"
        delivery = await in_hand(parts)
        before = await parts.snapshot()
        assert await parts.end(delivery, settlement("rid", outcome(PutChallenge(challenge())), mails=mails)) == "full"
        assert await parts.snapshot() == before
        assert await parts.end(delivery, settlement("rid", outcome())) == "settled"
        assert await parts.length(names.MAIL) == 2
