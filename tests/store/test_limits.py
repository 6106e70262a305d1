"""What becomes of a reserved place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters import names
from app.records import Limit, Needs, Verdict
from tests.store.bench import ACCOUNT, TRIES, USES, Bench, bench, counted, held, numbers, outcome, settlement


@pytest.mark.parametrize("limit", [ACCOUNT, TRIES, USES], ids=lambda limit: limit.name)
@pytest.mark.parametrize("verdict", Verdict)
async def test_a_reserved_place_is_spent_or_comes_back(redis_url: str, limit: Limit, verdict: Verdict) -> None:
    async with bench(redis_url) as parts:
        bad = Verdict.PASSED if limit is USES else Verdict.FAILED
        await parts.check(Needs(limits=(limit,)), rid="before")
        await parts.made(rid="before", verdict=bad, limits=(limit,))
        await parts.check(Needs(limits=(limit,)))
        assert (await counted(parts, limit), await held(parts, limit)) == (1, 1)
        await parts.made(rid="rid", verdict=verdict, limits=(limit,))
        expected = 2 if verdict is bad else 0 if verdict is Verdict.PASSED and limit.clears else 1
        assert (await counted(parts, limit), await held(parts, limit)) == (expected, 0)


@pytest.mark.parametrize("how", ["dropped", "expired", "done"])
async def test_the_place_of_what_is_not_evaluated_comes_back(redis_url: str, how: str) -> None:
    async with bench(redis_url) as parts:
        await parts.check(Needs(limits=(TRIES, USES)))
        if how == "dropped":
            await parts.store.drop("rid", (TRIES, USES), ())
        else:
            if how == "done":
                await parts.gateway.cancel(["rid"])
            left = -1 if how == "expired" else 10_000
            for verdict in (Verdict.FAILED, Verdict.PASSED):
                state = await parts.settle(rid="rid", verdict=verdict, limits=(TRIES, USES), left=left)
                assert state in (how, "done")
        for limit in (TRIES, USES):
            assert (await counted(parts, limit), await held(parts, limit)) == (0, 0)


async def fail(parts: Bench, limit: Limit = ACCOUNT) -> int:
    """An attempt that is let in and fails; the delay in ms that follows, 0 without one."""
    rid = f"attempt-{next(numbers)}"
    assert (await parts.check(Needs(limits=(limit,)), rid=rid)).refused == {}
    await parts.made(rid=rid, verdict=Verdict.FAILED, limits=(limit,))
    closed = await parts.redis.hget(names.limit(limit.name, limit.subject), "closed")
    return int(closed) - await parts.now() if closed else 0


async def reopen(parts: Bench) -> None:
    """The delay has passed."""
    await parts.redis.hset(names.limit("account", "subject"), "closed", await parts.now())


async def test_five_failures_close_an_account_for_half_a_minute_doubling_to_fifteen(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert [await fail(parts) for _ in range(4)] == [0, 0, 0, 0]
        for seconds in (30, 60, 120, 240, 480, 900, 900):
            delay = await fail(parts)
            assert seconds * 1000 - 5000 < delay <= seconds * 1000
            refused = (await parts.check(Needs(limits=(ACCOUNT,)), rid="early")).refused
            assert seconds * 1000 - 5000 < refused["account"] <= seconds * 1000
            assert await held(parts, ACCOUNT) == 0
            await reopen(parts)


async def test_no_number_of_failures_makes_the_delay_longer_or_a_fault(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.hset(names.limit("account", "subject"), "n", 5_000)
        assert 895_000 < await fail(parts) <= 900_000


async def test_after_a_delay_there_is_one_attempt_at_a_time(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(5):
            await fail(parts)
        await reopen(parts)
        assert (await parts.check(Needs(limits=(ACCOUNT,)), rid="one")).refused == {}
        assert await parts.store.check("two", await parts.soon(), Needs(limits=(ACCOUNT,))) == "wait"
        await parts.made(rid="one", verdict=Verdict.UNJUDGED, limits=(ACCOUNT,))
        assert (await parts.check(Needs(limits=(ACCOUNT,)), rid="two")).refused == {}


async def test_a_success_forgets_the_failures_of_an_account_and_its_delay(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(5):
            await fail(parts)
        await reopen(parts)
        await parts.check(Needs(limits=(ACCOUNT,)), rid="right")
        await parts.made(rid="right", verdict=Verdict.PASSED, limits=(ACCOUNT,))
        assert not await parts.redis.exists(names.limit("account", "subject"))
        assert [await fail(parts) for _ in range(4)] == [0, 0, 0, 0]


async def test_places_that_are_reserved_count_with_those_that_are_spent(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            await fail(parts)
        for rid in ("fourth", "fifth"):
            assert (await parts.check(Needs(limits=(ACCOUNT,)), rid=rid)).refused == {}
        assert await parts.store.check("sixth", await parts.soon(), Needs(limits=(ACCOUNT,))) == "wait"


@pytest.mark.parametrize(("limit", "extended"), [(ACCOUNT, True), (TRIES, False)], ids=["a penalty", "a window"])
async def test_a_window_ends_by_itself_and_only_a_penalty_extends_it(
    redis_url: str, limit: Limit, extended: bool
) -> None:
    async with bench(redis_url) as parts:
        key = names.limit(limit.name, limit.subject)
        await fail(parts, limit)
        assert limit.window_ms - 5000 < await parts.redis.pttl(key) <= limit.window_ms
        await parts.redis.pexpire(key, 60_000)
        await fail(parts, limit)
        assert (await parts.redis.pttl(key) > 60_000) is extended


async def test_a_window_that_is_used_up_is_closed_without_a_penalty_until_it_ends(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            assert await fail(parts, TRIES) == 0
        assert list((await parts.check(Needs(limits=(TRIES,)))).refused) == ["tries"]
        await parts.redis.delete(names.limit("tries", "subject"))  # as its end does
        assert (await parts.check(Needs(limits=(TRIES,)))).refused == {}


@pytest.mark.parametrize("verdict", Verdict)
async def test_a_place_that_does_not_count_comes_back_whatever_the_verdict(redis_url: str, verdict: Verdict) -> None:
    """A login holds a place of its device and of all others; only one of the two is meant."""
    other = replace(ACCOUNT, name="device")
    async with bench(redis_url) as parts:
        for limit in (ACCOUNT, other):
            await fail(parts, limit)
        await parts.check(Needs(limits=(ACCOUNT, other)), rid="login")
        plan = settlement("login", outcome(verdict=verdict, uncounted=("device",)), limits=(ACCOUNT, other))
        assert await parts.keep("login", await parts.soon(), plan) == "settled"
        expected = {Verdict.FAILED: 2, Verdict.PASSED: 0, Verdict.UNJUDGED: 1}[verdict]
        assert (await counted(parts, ACCOUNT), await counted(parts, other)) == (expected, 1)
        assert (await held(parts, ACCOUNT), await held(parts, other)) == (0, 0)
