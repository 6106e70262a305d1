"""Challenges: answered once, by whom they are bound to, with the newest code that was mailed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from adapters import names
from adapters.redis_records import MOST_BOUND
from app.records import (
    Account,
    Attempt,
    BindChallenge,
    Challenge,
    ChangeAccount,
    CreateAccount,
    DecideLogin,
    EndChallenge,
    Mail,
    Needs,
    PutChallenge,
    RenewCode,
    StartSession,
    Write,
)
from app.rules import HOUR, MINUTE, NOTICES, NOTICES_PER_ACCOUNT, mail_limits
from app.settings import Limits
from tests.making import EMAIL, account, challenge, device, session
from tests.store.bench import MAILS, Bench, bench, counted, numbers, outcome, put_challenge, sealed_mail, settlement

KEY = names.CHALLENGES + challenge().id


async def read(parts: Bench) -> Challenge | None:
    return (await parts.check(Needs(challenge_id=challenge().id), rid=f"look-{next(numbers)}")).challenge


async def on_a_device(parts: Bench, **changes: Any) -> Challenge:
    """A login that waits for its device, bound to a connection."""
    of_device = {"kind": "device", "bound": "first", "password": "", "locale": "", "terms": ""} | changes
    return await put_challenge(parts, **of_device)


# --- ended once -------------------------------------------------------------------------------------------------------


async def test_of_fifty_who_answer_a_challenge_at_once_one_does(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await on_a_device(parts)
        has = account()
        await parts.made(CreateAccount(has, None, device()))

        def answered(n: int) -> tuple[Write, ...]:
            started = replace(session(created=waits.expires - HOUR, seen=waits.expires - HOUR), id=f"0wrk1-{n}")
            return StartSession(started, has, None), EndChallenge(waits)

        states = await asyncio.gather(*(parts.settle(*answered(n)) for n in range(50)))
        assert sorted(states) == ["conflict"] * 49 + ["settled"]
        assert await read(parts) is None
        assert await parts.redis.zcard(names.USERS + has.id + names.SESSIONS_OF) == 1
        assert len(await parts.redis.keys(names.SESSIONS + "*")) == 1


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(EndChallenge(challenge()), id="the end"),
        pytest.param(RenewCode(challenge()), id="a code"),
        pytest.param(DecideLogin(challenge().id, challenge().user_id, "approved"), id="a decision"),
        pytest.param(BindChallenge(challenge(), "another"), id="a connection"),
    ],
)
@pytest.mark.parametrize("change", ["it has gone", "it is another's"])
async def test_what_becomes_of_a_challenge_that_is_not_there_is_nothing(
    redis_url: str, write: Write, change: str
) -> None:
    async with bench(redis_url) as parts:
        if change == "it is another's":
            await put_challenge(parts, email="other@example.com", user_id="0wrk1-other")
        before = await parts.snapshot()
        for plan in (outcome(write), outcome(if_mailed=(write,))):
            mails = ((Mail("decoy", EMAIL), sealed_mail(), (MAILS,)),) if plan.if_mailed else ()
            found = await parts.keep("rid", await parts.soon(), settlement("rid", plan, mails=mails))
            assert found == "conflict"
        assert await parts.snapshot() == before, "nor does a part of it come back, which would never end"


async def test_a_challenge_ends_when_it_was_to_end_whatever_becomes_of_it_meanwhile(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await on_a_device(parts)
        for write in (
            RenewCode(replace(waits, code_mac="wrk1:new", code_expires=waits.expires + HOUR)),
            DecideLogin(waits.id, waits.user_id, "approved"),
            BindChallenge(waits, "another"),
        ):
            await parts.made(write)
            assert await parts.redis.pexpiretime(KEY) == waits.expires


# --- a code that is mailed --------------------------------------------------------------------------------------------


async def test_a_challenge_without_a_code_gets_it_with_the_mail_or_has_none(redis_url: str) -> None:
    """As a login on a new device has it: both are put in one step, the one with the code only if it is mailed."""
    async with bench(redis_url) as parts:
        for n, has_code in enumerate([True, True, False, False]):
            waits = challenge(id=f"c{n}", expires=await parts.now() + HOUR, code_mac="", code_expires=0)
            mailed = replace(waits, code_mac=f"wrk1:{n}", code_expires=await parts.now() + MINUTE)
            plan = outcome(PutChallenge(waits), if_mailed=(PutChallenge(mailed),))
            done = settlement(f"{n}", plan, mails=((Mail("new_device", EMAIL), sealed_mail(), (MAILS,)),))
            assert await parts.keep(f"{n}", await parts.soon(), done) == "settled"
            facts = await parts.check(Needs(challenge_id=f"c{n}"), rid=f"look-{n}")
            assert facts.challenge == (mailed if has_code else waits)
            assert await parts.redis.pexpiretime(names.CHALLENGES + f"c{n}") == waits.expires


async def test_a_reset_that_is_not_mailed_leaves_the_older_link_valid(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = account()
        await parts.made(CreateAccount(has, None, device()))
        for n in range(4):
            asked = challenge(id=f"r{n}", kind="reset", expires=await parts.now() + HOUR)
            plan = outcome(if_mailed=(PutChallenge(asked), ChangeAccount(has, replace(has, reset=asked.id))))
            done = settlement(f"{n}", plan, mails=((Mail("reset", EMAIL), sealed_mail(), (MAILS,)),))
            assert await parts.keep(f"{n}", await parts.soon(), done) == "settled"
            facts = await parts.check(Needs(email=EMAIL), rid=f"look-{n}")
            assert facts.account is not None
            has = facts.account
        assert has.reset == "r1"
        assert await parts.redis.exists(*(names.CHALLENGES + f"r{n}" for n in range(4))) == 2


async def test_the_limits_of_mails_are_those_of_their_kind(redis_url: str) -> None:
    """What strangers can cause is counted apart from what an account is told of itself."""
    limits, network = Limits(mails_per_account=2, mails_per_ip=3), "192.0.2.7"
    async with bench(redis_url) as parts:

        async def sent(kind: Any, to: str = EMAIL) -> bool:
            before = await parts.length(names.MAIL)
            mails = ((Mail(kind, to), sealed_mail(), mail_limits(limits, kind, to, network)),)
            await parts.made(mails=mails)
            return await parts.length(names.MAIL) > before

        assert [await sent(kind) for kind in ("reset", "confirmation", "already_registered")] == [True, True, False]
        assert [await sent("decoy", "other@example.com"), await sent("reset", "third@example.com")] == [True, False]
        assert [await sent("new_device") for _ in range(3)] == [True, True, False], "by itself, whatever strangers did"
        told = [await sent(kind) for _ in range(7) for kind in sorted(NOTICES)]
        assert told == [True] * NOTICES_PER_ACCOUNT + [False] * (21 - NOTICES_PER_ACCOUNT)
        [account_, _] = mail_limits(limits, "reset", EMAIL, network)
        assert await counted(parts, account_) == 2, "and those take none of their places"


# --- approved or refused ----------------------------------------------------------------------------------------------

ATTEMPT = Attempt("0wrk1-attempt", challenge().id, 42, 2_000_000_000_000, "0-node", "first")


async def asked(parts: Bench) -> Account:
    has = account(attempt=ATTEMPT.text)
    await parts.made(CreateAccount(has, None, device()))
    await on_a_device(parts)
    return has


@pytest.mark.parametrize("decided", ["approved", "refused"])
async def test_a_decision_is_told_to_its_challenge_and_the_next_may_ask(redis_url: str, decided: Any) -> None:
    async with bench(redis_url) as parts:
        has = await asked(parts)
        waits = await read(parts)
        assert waits is not None and waits.decided == ""
        await parts.made(ChangeAccount(has, replace(has, attempt="")), DecideLogin(waits.id, has.id, decided))
        facts = await parts.check(Needs(challenge_id=waits.id), rid="look")
        assert (facts.challenge, facts.account) == (replace(waits, decided=decided), replace(has, attempt=""))


async def test_of_many_decisions_one_counts(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await asked(parts)
        decisions: list[tuple[Write, ...]] = [
            (ChangeAccount(has, replace(has, attempt="")), DecideLogin(challenge().id, has.id, decided))
            for decided in ("refused", "approved") * 10
        ]
        states = await asyncio.gather(*(parts.settle(*writes) for writes in decisions))
        assert sorted(states) == ["conflict"] * 19 + ["settled"]
        found = await read(parts)
        assert found is not None
        assert found.decided == ("refused", "approved")[states.index("settled") % 2]


async def test_a_login_that_has_ended_meanwhile_cannot_be_decided_on(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await asked(parts)
        waits = await read(parts)
        assert waits is not None
        await parts.made(EndChallenge(waits))
        before = await parts.snapshot()
        late = (ChangeAccount(has, replace(has, attempt="")), DecideLogin(waits.id, has.id, "approved"))
        assert await parts.settle(*late) == "conflict"
        assert await parts.snapshot() == before


# --- bound ------------------------------------------------------------------------------------------------------------


async def test_one_more_connection_may_answer_a_challenge(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await on_a_device(parts)
        assert [waits.may_be_answered_by(name) for name in ("first", "second", "")] == [True, False, False]
        await parts.made(BindChallenge(waits, "second"))
        found = await read(parts)
        assert found == replace(waits, bound="first second")
        assert [found.may_be_answered_by(name) for name in ("first", "second", "")] == [True, True, False]


async def test_of_two_connections_at_once_one_is_bound_and_the_other_is_asked_again(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await on_a_device(parts)
        states = await asyncio.gather(*(parts.settle(BindChallenge(waits, name)) for name in ("second", "third")))
        assert sorted(states) == ["conflict", "settled"]
        found = await read(parts)
        assert found is not None
        await parts.made(BindChallenge(found, "third"))
        bound = await read(parts)
        assert bound is not None
        assert bound.may_be_answered_by("first") and bound.may_be_answered_by("third")


async def test_no_number_of_connections_makes_a_challenge_grow(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await on_a_device(parts)
        for n in range(3 * MOST_BOUND):
            found = await read(parts)
            assert found is not None
            await parts.made(BindChallenge(found, f"c{n}"))
        found = await read(parts)
        assert found is not None
        assert found.bound.split() == [f"c{n}" for n in range(2 * MOST_BOUND, 3 * MOST_BOUND)]


async def test_the_login_that_is_asked_about_moves_with_its_connection_or_not_at_all(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await asked(parts)
        waits = await read(parts)
        assert waits is not None
        moved = replace(ATTEMPT, node="0-other", connection="second")
        writes = (BindChallenge(waits, "second"), ChangeAccount(has, replace(has, attempt=moved.text)))
        await parts.redis.hset(names.USERS + has.id, "attempt", replace(ATTEMPT, id="0wrk1-newer").text)
        assert await parts.settle(*writes) == "conflict"
        assert await read(parts) == waits
        await parts.redis.hset(names.USERS + has.id, "attempt", ATTEMPT.text)
        assert await parts.settle(*writes) == "settled"
        facts = await parts.check(Needs(challenge_id=waits.id), rid="look")
        assert facts.account is not None
        assert Attempt.read(facts.account.attempt) == moved
        assert facts.challenge == replace(waits, bound="first second")
