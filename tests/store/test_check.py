"""check: what is read, and the attempts that are reserved."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from adapters import names
from adapters.redis_store import RECLAIM_MS
from app.records import CreateAccount, Facts, Needs, StartSession, Verdict
from app.rules import DAY, SESSIONS_PER_ACCOUNT
from tests.making import EMAIL, account, device
from tests.store.bench import ACCOUNT, TRIES, USES, bench, held, kept, put_challenge

# --- check: what is read ----------------------------------------------------------------------------------------------


async def test_nothing_is_found_in_an_empty_store(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        needs = Needs(email=EMAIL, session_id="s", challenge_id="c", devices=True, sessions=True)
        before = await parts.now()
        facts = await parts.check(needs)
        assert facts == Facts(now=facts.now, needs=needs)
        assert before <= facts.now <= await parts.now()
        assert await parts.redis.keys("*") == []


async def test_an_account_is_read_back_as_it_was_made(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(email=EMAIL, devices=True))
        assert (facts.account, facts.devices) == (made.account, (made.device,))
        assert (facts.session, facts.sessions, facts.challenge) == (None, (), None)


async def test_devices_and_sessions_are_read_only_where_they_are_needed(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await kept(parts)
        facts = await parts.check(Needs(email=EMAIL))
        assert (facts.devices, facts.sessions, facts.online) == ((), (), frozenset())


async def test_a_session_brings_its_account(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(session_id=made.session.id, devices=True, sessions=True))
        assert (facts.session, facts.account, facts.sessions) == (made.session, made.account, (made.session,))
        assert facts.devices == (made.device,)


@pytest.mark.parametrize("taken_", [False, True], ids=["free", "taken"])
async def test_a_challenge_brings_the_account_of_its_address(redis_url: str, taken_: bool) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts, user_id="0wrk1-another")
        made = await kept(parts) if taken_ else None
        facts = await parts.check(Needs(challenge_id=waits.id))
        assert facts.challenge == waits
        assert facts.account == (made.account if made else None)


async def test_an_address_decides_whose_account_is_read(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(email="nobody@example.com", session_id=made.session.id))
        assert (facts.account, facts.session) == (None, made.session)


async def test_a_disabled_account_and_one_without_locale_are_read_as_such(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = account(status="disabled")
        await parts.made(CreateAccount(has, None, device()))
        assert (await parts.check(Needs(email=EMAIL))).account == has


async def test_all_living_sessions_are_listed_and_no_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        other = replace(made.session, id="0wrk1-other")
        await parts.made(StartSession(other, made.account, None))
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        now = await parts.now()
        await parts.redis.zadd(list_, {"expired": now - 1, "lost": now + DAY})
        facts = await parts.check(Needs(session_id=other.id, sessions=True))
        assert sorted(facts.sessions, key=lambda s: s.id) == sorted((made.session, other), key=lambda s: s.id)


@pytest.mark.parametrize(
    ("there", "too_many"), [(SESSIONS_PER_ACCOUNT - 1, 0), (SESSIONS_PER_ACCOUNT, 1), (SESSIONS_PER_ACCOUNT + 2, 3)]
)
async def test_a_login_reads_only_the_sessions_that_have_to_make_room_for_it(
    redis_url: str, there: int, too_many: int
) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        fields = await parts.redis.hgetall(names.SESSIONS + made.session.id)
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        now = await parts.now()
        await parts.redis.delete(list_)
        await parts.redis.zadd(list_, {"expired": now - 1})
        for n in range(there):
            await parts.redis.hset(names.SESSIONS + f"s{n}", mapping=fields)
            await parts.redis.zadd(list_, {f"s{n}": now + DAY + n})
        facts = await parts.check(Needs(email=EMAIL, crowd=True))
        assert [found.id for found in facts.sessions] == [f"s{n}" for n in range(too_many)]  # the first to end
        assert facts.online == frozenset()


async def test_online_is_who_is_authenticated_on_a_node_that_lives(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.living("node-a")
        online = {"node-a one": "s1", "node-a two": "s2", "node-dead one": "s3"}
        await parts.redis.hset(names.ONLINE + made.account.id, mapping=online)
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.online == {"s1", "s2"}


# --- check: done and expired ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, -1])
async def test_a_request_past_its_deadline_is_expired_and_reserves_nothing(redis_url: str, left: int) -> None:
    async with bench(redis_url) as parts:
        assert await parts.store.check("rid", await parts.now() + left, Needs(limits=(TRIES,))) == "expired"
        assert await held(parts, TRIES) == 0


async def test_a_settled_dropped_or_cancelled_request_is_done_and_reserves_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.settle(rid="settled")
        await parts.store.drop("dropped", (), ())
        await parts.gateway.cancel(["cancelled", "cancelled-too"])
        for rid in ("settled", "dropped", "cancelled", "cancelled-too"):
            assert await parts.store.check(rid, await parts.soon(), Needs(limits=(TRIES,))) == "done"
        assert await parts.store.check("settled", 0, Needs()) == "done"  # which matters more than its time
        assert await held(parts, TRIES) == 0


async def test_a_cancellation_comes_too_late_for_what_is_settled_and_ends_by_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.settle(rid="settled")
        await parts.gateway.cancel(["settled", "cancelled"])
        assert await parts.redis.get(names.done("settled")) == b"settled"
        assert await parts.redis.get(names.done("cancelled")) == b"cancelled"
        for rid in ("settled", "cancelled"):
            # as long as a copy can be about: the longest deadline and the time to reclaim it
            assert 40_000 < await parts.redis.pttl(names.done(rid)) <= 45_000


# --- check: reservations ----------------------------------------------------------------------------------------------


async def test_checking_a_request_again_reserves_its_place_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            assert (await parts.check(Needs(limits=(replace(TRIES, most=1), USES)))).refused == {}
        assert (await held(parts, TRIES), await held(parts, USES)) == (1, 1)


async def test_of_two_hundred_at_once_only_as_many_get_in_as_there_are_places(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        needs = Needs(limits=(ACCOUNT,))
        found = await asyncio.gather(*(parts.store.check(f"{n}", deadline, needs) for n in range(200)))
        assert [isinstance(facts, Facts) for facts in found] == [True] * 5 + [False] * 195
        assert set(map(str, found[5:])) == {"wait"}
        assert await held(parts, ACCOUNT) == 5


async def test_a_limit_that_does_not_wait_refuses_while_its_places_are_reserved(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(2):
            assert (await parts.check(Needs(limits=(USES,)), rid=f"{n}")).refused == {}
        assert (await parts.check(Needs(limits=(USES,)), rid="third")).refused == {"uses": 1000}
        assert await held(parts, USES) == 2


async def test_a_request_that_has_to_wait_for_one_limit_reserves_none(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full = replace(TRIES, most=1)
        await parts.check(Needs(limits=(full,)), rid="first")
        assert await parts.store.check("second", await parts.soon(), Needs(limits=(USES, full))) == "wait"
        assert (await held(parts, USES), await held(parts, full)) == (0, 1)


async def test_a_request_that_one_limit_refuses_says_for_how_long(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.made(verdict=Verdict.FAILED, limits=(replace(TRIES, most=1),))
        await parts.redis.pexpire(names.limit("tries", "subject"), 60_000)
        refused = (await parts.check(Needs(limits=(USES, replace(TRIES, most=1))))).refused
        assert list(refused) == ["tries"]
        assert 55_000 < refused["tries"] <= 60_000


async def test_a_reservation_that_is_never_settled_ends_when_no_copy_can_be_about(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full, key = replace(TRIES, most=1), names.held("tries", "subject")
        deadline = await parts.soon()
        assert isinstance(await parts.store.check("first", deadline, Needs(limits=(full,))), Facts)
        assert int(await parts.redis.zscore(key, "first")) == deadline + RECLAIM_MS
        assert await parts.redis.pexpiretime(key) == deadline + RECLAIM_MS
        assert await parts.store.check("second", deadline, Needs(limits=(full,))) == "wait"
        await parts.redis.zadd(key, {"first": await parts.now() - 1})
        assert (await parts.check(Needs(limits=(full,)), rid="second")).refused == {}
        assert await parts.redis.zrange(key, 0, -1) == [b"second"]


async def test_limits_of_other_subjects_and_names_are_other_limits(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full = replace(TRIES, most=1)
        await parts.check(Needs(limits=(full,)), rid="first")
        others = (replace(full, subject="other"), replace(full, name="other"))
        assert (await parts.check(Needs(limits=others), rid="second")).refused == {}


async def test_another_session_is_read_beside_ones_own_and_brings_nothing_with_it(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        stranger = account(id="0wrk1-stranger", email="other@example.com")
        theirs = replace(made.session, id="0wrk1-theirs", user_id=stranger.id)
        await parts.made(CreateAccount(stranger, None, device(ref="theirs")))
        await parts.made(StartSession(theirs, stranger, None))
        needs = Needs(session_id=made.session.id, other_session_id=theirs.id, devices=True)
        facts = await parts.check(needs)
        assert (facts.session, facts.other_session, facts.account) == (made.session, theirs, made.account)
        assert facts.devices == (made.device,)
        facts = await parts.check(Needs(other_session_id=theirs.id, devices=True), rid="alone")
        assert (facts.session, facts.other_session, facts.account, facts.devices) == (None, theirs, None, ())
        facts = await parts.check(Needs(session_id=made.session.id, other_session_id="none"), rid="none")
        assert (facts.session, facts.other_session) == (made.session, None)
        facts = await parts.check(Needs(session_id=made.session.id, other_session_id=made.session.id), rid="own")
        assert facts.other_session == made.session


async def test_a_place_is_kept_as_long_as_it_was_to_be_whoever_reserves_another(redis_url: str) -> None:
    """Who asks with a short deadline beside others with long ones must not end their reservations."""
    async with bench(redis_url) as parts:
        key, now = names.held("tries", "subject"), await parts.now()
        for rid, left in (("long", 30_000), ("short", 100)):
            assert isinstance(await parts.store.check(rid, now + left, Needs(limits=(TRIES,))), Facts)
            assert await parts.redis.pexpiretime(key) == now + 30_000 + RECLAIM_MS
        assert int(await parts.redis.zscore(key, "short")) == now + 100 + RECLAIM_MS
