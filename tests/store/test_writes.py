"""settle: every write, and the conflicts that undo nothing since nothing was done."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from adapters import names
from app import entries
from app.records import (
    ConfirmSession,
    CreateAccount,
    EndOthers,
    EndSession,
    Identity,
    Needs,
    NewestReset,
    PutChallenge,
    RenewCode,
    RotateSession,
    StartSession,
    UpgradePassword,
    Write,
)
from app.rules import DAY
from tests.making import EDGE, EMAIL, account, challenge, device, session
from tests.store.bench import (
    MAIL,
    MAILS,
    MAILS_IP,
    TRIES,
    USES,
    ask,
    bench,
    in_hand,
    kept,
    new_challenge,
    notice,
    outcome,
    pending,
    put_challenge,
    record,
    resend,
    sealed_mail,
    settlement,
)

# --- settle: every write ----------------------------------------------------------------------------------------------


async def test_a_confirmed_registration_is_an_account_and_its_challenge_is_gone(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        has = account(id=waits.user_id, password=waits.password)
        await parts.made(CreateAccount(has, waits, device()))
        facts = await parts.check(Needs(email=EMAIL, challenge_id=waits.id, devices=True))
        assert (facts.account, facts.devices, facts.challenge) == (has, (device(),), None)


async def test_a_challenge_ends_by_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        assert await parts.redis.pexpiretime(names.CHALLENGES + waits.id) == waits.expires


async def test_a_new_code_replaces_the_old_and_the_challenge_lives_no_longer_for_it(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        renewed = replace(waits, code_mac="wrk1:new", code_expires=waits.code_expires + 5000)
        assert await resend(parts, renewed) == "settled"
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == renewed
        assert await parts.redis.pexpiretime(names.CHALLENGES + waits.id) == waits.expires


async def test_a_code_that_is_not_mailed_leaves_the_older_one_valid(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        made = [replace(waits, code_mac=f"wrk1:{n}", code_expires=waits.code_expires + n) for n in range(4)]
        for renewed in made:
            assert await resend(parts, renewed, MAILS_IP, MAILS) == "settled"  # two may be sent
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == made[1]
        assert await parts.length(names.MAIL) == 2
        await parts.redis.delete(names.limit(MAILS.name, MAILS.subject))  # as the end of its window does
        assert await resend(parts, made[3], MAILS_IP, MAILS) == "settled"
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == made[3]


async def test_a_code_is_renewed_by_the_first_mail_and_by_no_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        none_left, renewed = replace(MAILS, most=0), replace(waits, code_mac="wrk1:new")
        mails = ((MAIL, sealed_mail("first"), (none_left,)), (MAIL, sealed_mail("second"), ()))
        plan = settlement("mailed", outcome(if_mailed=(RenewCode(renewed),)), mails=mails)
        assert await parts.keep("mailed", await parts.soon(), plan) == "settled"
        assert [fields[b"id"] for _, fields in await parts.redis.xrange(names.MAIL)] == [b"second"]
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == waits


async def test_a_session_ends_by_itself_when_its_time_is_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        key, list_ = names.SESSIONS + made.session.id, names.USERS + made.account.id + names.SESSIONS_OF
        ends = made.session.created + 7 * DAY
        assert (await parts.redis.pexpiretime(key), await parts.redis.zscore(list_, made.session.id)) == (ends, ends)


async def test_a_new_session_clears_the_list_of_those_that_are_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        await parts.redis.zadd(list_, {"over": await parts.now() - 1})
        fresh = replace(made.session, id="0wrk1-fresh", created=await parts.now())
        await parts.made(StartSession(fresh, made.account, None))
        assert set(await parts.redis.zrange(list_, 0, -1)) == {made.session.id.encode(), b"0wrk1-fresh"}


async def test_the_trusted_device_of_a_session_has_been_seen_under_its_name(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        started = replace(made.session, id="0wrk1-second", device_ref=made.device.ref, device_name="New ‘name’")
        await parts.made(StartSession(started, made.account, made.device))
        facts = await parts.check(Needs(session_id=started.id, devices=True))
        assert facts.session == started
        assert facts.devices == (replace(made.device, name="New ‘name’", seen=started.created),)


async def test_a_rotation_counts_on_and_a_confirmation_only_sees(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        now = made.session.created + 5000
        await parts.made(RotateSession(made.session, now))
        rotated = replace(made.session, counter=made.session.counter + 1, rotated=now, seen=now)
        facts = await parts.check(Needs(session_id=made.session.id))
        assert facts.session == rotated
        await parts.made(ConfirmSession(rotated, now + 5000))
        assert (await parts.check(Needs(session_id=made.session.id))).session == replace(rotated, seen=now + 5000)
        ends = now + 5000 + 7 * DAY
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        assert await parts.redis.pexpiretime(names.SESSIONS + made.session.id) == ends
        assert await parts.redis.zscore(list_, made.session.id) == ends


async def test_however_often_it_is_seen_a_session_ends_thirty_days_after_its_login(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(ConfirmSession(made.session, made.session.created + 29 * DAY))
        ends = await parts.redis.pexpiretime(names.SESSIONS + made.session.id)
        assert ends == made.session.created + 30 * DAY


async def test_an_ended_session_is_known_as_ended_until_time_would_have_ended_it(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(EndSession(made.session, "logout"))
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.session == replace(made.session, ended="logout")
        assert facts.sessions == ()
        assert await parts.redis.pexpiretime(names.SESSIONS + made.session.id) == made.session.created + 7 * DAY


@pytest.mark.parametrize("stays", ["", session().id])
async def test_all_sessions_but_one_end_those_too_that_nobody_has_read(redis_url: str, stays: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        unread = replace(made.session, id="0wrk1-unread")
        await parts.made(StartSession(unread, made.account, None))
        listed = names.USERS + made.account.id + names.SESSIONS_OF
        await parts.redis.zadd(listed, {"0wrk1-lost": made.session.created + DAY})  # of which nothing else is left
        await parts.made(EndOthers(made.account.id, stays, "password_reset"))
        for each in (made.session, unread):
            ended = "" if each.id == stays else "password_reset"
            facts = await parts.check(Needs(session_id=each.id, sessions=True))
            assert facts.session == replace(each, ended=ended)
            assert facts.sessions == ((made.session,) if stays else ())
        assert await parts.redis.zcard(listed) == (1 if stays else 0)
        assert not await parts.redis.exists(names.SESSIONS + "0wrk1-lost")


async def test_a_session_that_is_ended_twice_is_ended(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        states = await asyncio.gather(*(parts.settle(EndSession(made.session, f"reason {n}")) for n in range(5)))
        assert states == ["settled"] * 5
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.session is not None
        assert facts.session.ended.startswith("reason")
        assert facts.sessions == ()


async def test_a_password_is_swapped_only_where_the_old_one_still_is(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        old = made.account.password
        states = [await parts.settle(UpgradePassword(made.account.id, old, f"pep1:new-{n}")) for n in range(20)]
        assert set(states) == {"settled"}  # somebody else was quicker: nothing to refuse a login for
        facts = await parts.check(Needs(email=EMAIL))
        assert facts.account == replace(made.account, password="pep1:new-0")
        await parts.made(UpgradePassword("0wrk1-nobody", old, "pep1:x"))
        assert not await parts.redis.exists(names.USERS + "0wrk1-nobody")


async def test_of_many_confirmations_of_one_address_one_makes_an_account(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = [await put_challenge(parts, id=f"c{n}", user_id=f"u{n}", password=f"pep1:{n}") for n in range(20)]
        writes = [CreateAccount(account(id=c.user_id, password=c.password), c, device(ref=c.id)) for c in made]
        states = await asyncio.gather(*map(parts.settle, writes))
        assert sorted(states) == ["conflict"] * 19 + ["settled"]
        winner = states.index("settled")
        facts = await parts.check(Needs(email=EMAIL, devices=True))
        assert facts.account == writes[winner].account
        assert [found.ref for found in facts.devices] == [f"c{winner}"]


async def test_of_many_rotations_of_one_token_one_counts(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        write = RotateSession(made.session, made.session.created)
        states = await asyncio.gather(*(parts.settle(write) for _ in range(50)))
        assert sorted(states) == ["conflict"] * 49 + ["settled"]
        facts = await parts.check(Needs(session_id=made.session.id))
        assert facts.session is not None
        assert facts.session.counter == made.session.counter + 1


# --- settle: conflicts ------------------------------------------------------------------------------------------------

USER, SESSION, CHALLENGE = names.USERS + account().id, names.SESSIONS + session().id, names.CHALLENGES + challenge().id


@pytest.mark.parametrize(
    ("write", "change"),
    [
        pytest.param(
            CreateAccount(account(id="0wrk1-new"), None, device()), ("ECHO", ""), id="an account for a taken address"
        ),
        pytest.param(
            CreateAccount(account(email="new@example.com"), challenge(), device()),
            ("DEL", CHALLENGE),
            id="an account whose challenge is gone",
        ),
        pytest.param(
            CreateAccount(account(email="new@example.com"), challenge(), device()),
            ("HSET", CHALLENGE, "user_id", "0wrk1-other"),
            id="an account whose challenge is another's",
        ),
        pytest.param(RenewCode(challenge()), ("DEL", CHALLENGE), id="a code for a challenge that is gone"),
        pytest.param(
            RenewCode(challenge()), ("HSET", CHALLENGE, "email", "x@example.com"), id="a code for another's challenge"
        ),
        pytest.param(
            StartSession(session(id="0wrk1-new"), account(), None),
            ("HINCRBY", USER, "version", 1),
            id="a session of an account that changed",
        ),
        pytest.param(
            StartSession(session(id="0wrk1-new"), account(), None),
            ("DEL", USER),
            id="a session of an account that is gone",
        ),
        pytest.param(RotateSession(session(), 1), ("HINCRBY", SESSION, "counter", 1), id="a rotation that was quicker"),
        pytest.param(RotateSession(session(), 1), ("HSET", SESSION, "ended", "logout"), id="a rotation after the end"),
        pytest.param(RotateSession(session(), 1), ("DEL", SESSION), id="a rotation of nothing"),
        pytest.param(RotateSession(session(), 1), ("HSET", SESSION, "user", "x"), id="a rotation of another's session"),
        pytest.param(ConfirmSession(session(), 1), ("HSET", SESSION, "ended", "logout"), id="a sight after the end"),
        pytest.param(ConfirmSession(session(), 1), ("DEL", SESSION), id="a sight of nothing"),
        pytest.param(EndSession(session(), "logout"), ("DEL", SESSION), id="the end of nothing"),
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_a_conflict_leaves_everything_as_it_was(
    redis_url: str, write: Write, change: tuple[str, ...], place: str
) -> None:
    async with bench(redis_url) as parts:
        await kept(parts)
        await put_challenge(parts)
        await parts.redis.execute_command(*change)
        await parts.check(Needs(limits=(TRIES, USES)))
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        await parts.living("asker")
        await parts.redis.hset(names.ONLINE + account().id, "asker here", "s")
        others: tuple[Write, ...] = (
            PutChallenge(await new_challenge(parts, id="0wrk1-other")),
            UpgradePassword(account().id, account().password, "pep1:new"),
        )
        if_mailed = isinstance(write, RenewCode)
        first = () if if_mailed else (write,)
        writes = (*first, *others) if place == "first" else (*others, *first)
        told = notice("logout")
        plan = settlement(
            "rid",
            outcome(*writes, identity=Identity(account().id, "new"), if_mailed=(write,) if if_mailed else ()),
            limits=(TRIES, USES),
            notices=((told, entries.sign_notice(EDGE, told)),),
            mails=((MAIL, sealed_mail(), (MAILS,)),),
            presence=("asker", "here"),
            record=record(),
        )
        before = await parts.snapshot()
        assert await parts.end(delivery, plan) == "conflict"
        assert await parts.snapshot() == before
        assert await pending(parts) == 1


async def test_an_untouched_session_and_account_are_no_conflict(redis_url: str) -> None:
    """The table above fails for its changes, and for nothing else."""
    async with bench(redis_url) as parts:
        made = await kept(parts)
        waits = await put_challenge(parts)
        assert await resend(parts, waits) == "settled"
        for write in (
            StartSession(replace(made.session, id="0wrk1-new"), made.account, None),
            ConfirmSession(made.session, made.session.created),
            RotateSession(made.session, made.session.created),
            EndSession(made.session, "logout"),
            CreateAccount(account(id=waits.user_id, email="new@example.com"), waits, device()),
        ):
            assert await parts.settle(write) == "settled"


async def test_what_was_seen_later_meanwhile_stays_so(redis_url: str) -> None:
    """An outcome that is given again only asks whether its session lives."""
    async with bench(redis_url) as parts:
        made = await kept(parts)
        later = made.session.seen + 5 * DAY
        await parts.made(ConfirmSession(made.session, later))
        await parts.made(ConfirmSession(made.session, made.session.seen))
        key, list_ = names.SESSIONS + made.session.id, names.USERS + made.account.id + names.SESSIONS_OF
        ends = later + 7 * DAY
        assert (await parts.redis.pexpiretime(key), await parts.redis.zscore(list_, made.session.id)) == (ends, ends)
        assert (await parts.check(Needs(session_id=made.session.id))).session == replace(made.session, seen=later)


async def test_who_is_told_the_current_token_is_not_told_one_that_has_been_rotated(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(RotateSession(made.session, made.session.seen + 1))
        assert await parts.settle(ConfirmSession(made.session, made.session.seen + 2)) == "conflict"


async def test_the_list_of_an_accounts_sessions_ends_when_none_of_them_can_live(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        assert await parts.redis.pexpiretime(list_) == made.session.created + 7 * DAY
        later = made.session.seen + 3 * DAY
        await parts.made(ConfirmSession(made.session, later))
        assert await parts.redis.pexpiretime(list_) == later + 7 * DAY


async def test_the_newest_reset_counts_whatever_counted_when_it_was_decided(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.made(CreateAccount(account(reset="0wrk1-before"), None, device()))
        for id in ("0wrk1-one", "0wrk1-other"):  # both decided on the same facts
            await parts.made(NewestReset(account().id, id))
        facts = await parts.check(Needs(email=EMAIL))
        assert facts.account == account(reset="0wrk1-other")


async def test_since_when_a_password_is_the_one_it_is_and_when_a_login_began_are_read_as_written(
    redis_url: str,
) -> None:
    async with bench(redis_url) as parts:
        has, began = account(floor=4), challenge(kind="device", version=3, expires=await parts.now() + DAY)
        await parts.made(CreateAccount(has, None, device()))
        await parts.made(PutChallenge(began))
        facts = await parts.check(Needs(challenge_id=began.id))
        assert (facts.account, facts.challenge) == (has, began)
