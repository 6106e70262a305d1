"""admit: a place, a refusal, or the same request joined."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters import names
from adapters.redis_state import MOST_JOINED
from adapters.redis_store import RECLAIM_MS
from app.messages import Lane
from app.ports import Admitted, Expired, Full, Known
from tests.store.bench import (
    JOINED,
    SAME,
    ask,
    bench,
    entry,
    in_hand,
    joins,
    known,
    lane_length,
    outcome,
    record,
    settlement,
    taken,
)

# --- admit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"same": "mac"}, {"same": "mac", "replay": True}],
    ids=["without a key", "with a key", "a question for a replay"],
)
async def test_an_admitted_entry_arrives_at_a_worker_as_it_was_sent(redis_url: str, more: dict[str, Any]) -> None:
    async with bench(redis_url) as parts:
        sent = entry(deadline=await parts.soon(), **more)
        assert await parts.admit(sent) == Admitted(place=1, position=1, eta_ms=None)
        [delivery] = await taken(parts)
        assert (delivery.entry, delivery.lane, delivery.deliveries) == (sent, Lane.HASH, 1)


@pytest.mark.parametrize(
    ("here", "slots", "rate", "expected"),
    [
        pytest.param(0, 2, 100, Admitted(1, 0, 10), id="nobody waits"),
        pytest.param(1, 2, 100, Admitted(1, 0, 20), id="the last free slot"),
        pytest.param(2, 2, 100, Admitted(1, 1, 30), id="the first to wait"),
        pytest.param(6, 2, 100, Admitted(1, 5, 70), id="the fifth to wait"),
        pytest.param(9, 2, 0.5, Full(8_000), id="no answer before the deadline"),
        pytest.param(19, 2, 2, Admitted(1, 18, 10_000), id="an answer just before the deadline"),
        pytest.param(20, 2, 1000, Full(10), id="full by count: half of it has to go"),
        pytest.param(20, 0, 0, Full(None), id="full by count, and nobody works"),
        pytest.param(0, 1, 0.01, Admitted(1, 0, 100_000), id="a free slot, however slow"),
        pytest.param(0, 0, 0, Admitted(1, 1, None), id="nobody works"),
        pytest.param(3, 0, 0, Admitted(1, 4, None), id="nobody works, three wait"),
    ],
)
async def test_a_request_is_admitted_with_its_place_or_refused_by_count_or_by_time(
    redis_url: str, here: int, slots: int, rate: float, expected: Admitted | Full
) -> None:
    async with bench(redis_url, most=20) as parts:
        lane = names.lane(Lane.HASH)
        for _ in range(here):
            await parts.redis.xadd(lane, {"r": "other"})
        if slots:
            await parts.redis.hset(names.CAPACITY, mapping={"hash:slots": slots, "hash:rate": rate})
        found = await parts.admit(entry(deadline=await parts.now() + 12_000))
        if expected == Full(8_000):  # an ETA of 20 s, less the 12 s that are left
            assert isinstance(found, Full)
            assert found.retry_after_ms is not None
            assert 8_000 <= found.retry_after_ms < 11_000
        else:
            assert found == expected
        admitted = isinstance(expected, Admitted)
        assert await parts.length(lane) == here + admitted
        assert int(await parts.redis.get(names.lane_count(Lane.HASH)) or 0) == admitted


@pytest.mark.parametrize(
    ("before", "here", "slots", "rate", "expected"),
    [
        pytest.param(0, 0, 2, 100, Admitted(1, 0, 10), id="nobody waits"),
        pytest.param(1, 0, 2, 100, Admitted(1, 0, 20), id="the last free slot"),
        pytest.param(2, 0, 2, 100, Admitted(1, 1, 30), id="the first to wait, behind others"),
        pytest.param(30, 3, 2, 100, Admitted(1, 32, 340), id="behind others and behind its own"),
        pytest.param(90, 3, 2, 2, Full(35_000), id="no answer before the deadline, for the others"),
        pytest.param(40, 19, 2, 1000, Admitted(1, 58, 60), id="the last for which there is room"),
        pytest.param(40, 20, 2, 1000, Full(50), id="full by its own count: the others and half of it have to go"),
        pytest.param(40, 20, 0, 0, Full(None), id="full, and nobody works"),
        pytest.param(3, 2, 0, 0, Admitted(1, 6, None), id="nobody works, five wait"),
    ],
)
async def test_the_slow_lane_is_full_by_itself_and_comes_after_what_hashes_in_place_and_time(
    redis_url: str, before: int, here: int, slots: int, rate: float, expected: Admitted | Full
) -> None:
    async with bench(redis_url, most=20) as parts:
        for lane, count in ((Lane.HASH, before), (Lane.SLOW, here)):
            for _ in range(count):
                await parts.redis.xadd(names.lane(lane), {"r": "other"})
        if slots:  # those of the hash lane count: a worker of before there were slow ones has no others
            await parts.redis.hset(names.CAPACITY, mapping={"hash:slots": slots, "hash:rate": rate})
        found = await parts.admit(entry(deadline=await parts.now() + 12_000, lane=Lane.SLOW))
        if expected == Full(35_000):  # an ETA of 47 s, less the 12 s that are left
            assert isinstance(found, Full) and found.retry_after_ms is not None
            assert 35_000 <= found.retry_after_ms < 38_000
        else:
            assert found == expected
        assert await parts.length(names.lane(Lane.SLOW)) == here + isinstance(expected, Admitted)
        assert await parts.length(names.lane(Lane.HASH)) == before


async def test_a_flood_in_the_slow_lane_takes_nothing_from_what_hashes(redis_url: str) -> None:
    async with bench(redis_url, most=20) as parts:
        for _ in range(20):
            await parts.redis.xadd(names.lane(Lane.SLOW), {"r": "other"})
        await parts.redis.hset(names.CAPACITY, mapping={"hash:slots": 2, "hash:rate": 1.0})
        assert await parts.admit(entry(deadline=await parts.soon())) == Admitted(1, 0, 1000)


async def test_one_lane_knows_nothing_of_the_other(redis_url: str) -> None:
    async with bench(redis_url, most=1) as parts:
        deadline = await parts.soon()
        assert isinstance(await parts.admit(entry("1", deadline)), Admitted)
        assert isinstance(await parts.admit(entry("2", deadline)), Full)
        assert isinstance(await parts.admit(entry("3", deadline, Lane.FAST)), Admitted)


@pytest.mark.parametrize("left", [0, -1, -60_000])
async def test_what_comes_after_its_deadline_is_not_admitted(redis_url: str, left: int) -> None:
    async with bench(redis_url) as parts:
        assert isinstance(await parts.admit(entry(deadline=await parts.now() + left)), Expired)
        assert await parts.length(names.lane(Lane.HASH)) == 0


async def test_places_are_numbered_in_the_order_of_the_lane(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        found = await asyncio.gather(*(parts.admit(entry(str(n), deadline)) for n in range(50)))
        places = {str(n): answer.place for n, answer in enumerate(found) if isinstance(answer, Admitted)}
        order = [delivery.entry.rid for delivery in await taken(parts, most=50) if delivery.entry]
        assert sorted(places, key=lambda rid: places[rid]) == order
        assert sorted(places.values()) == list(range(1, 51))


# --- admit: the same request again ------------------------------------------------------------------------------------


async def test_the_same_request_joins_the_one_that_is_pending(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        assert isinstance(await ask(parts, "first", deadline=deadline), Admitted)
        for rid, node in (("second", "asker"), ("third", "node-b")):
            assert joins(await ask(parts, rid, node=node, deadline=deadline + 5000))
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker second", b"node-b third"]
        assert await known(parts) == {b"state": b"pending", b"rid": b"first", b"until": str(deadline).encode()}
        for key in (SAME, JOINED):
            assert await parts.redis.pexpiretime(key) == deadline + RECLAIM_MS
        assert await lane_length(parts) == 1
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"1"


async def test_eight_may_join_and_a_ninth_is_too_many(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        found = await asyncio.gather(*(ask(parts, f"{n}", deadline=deadline) for n in range(20)))
        assert isinstance(found[0], Admitted)
        assert all(joins(answer) for answer in found[1:9])
        assert found[9:] == [Known("crowded")] * 11
        assert MOST_JOINED == 8
        assert (await parts.redis.llen(JOINED), await lane_length(parts)) == (8, 1)


async def test_a_request_is_the_same_under_its_former_names(redis_url: str) -> None:
    """One gateway has the new edge secret as its current one already, the other has not."""
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        assert joins(await ask(parts, "second", same="new", formerly=("older", "mac")), "mac")
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker second"]
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        assert await ask(parts, "third", same="new", formerly=("mac",)) == Known("done", "mac")
        assert not await parts.redis.exists(names.same("new"), names.joined("new"), JOINED)
        assert isinstance(await ask(parts, "fourth", same="new", formerly=("older",)), Admitted)
        assert joins(await ask(parts, "fifth", same="older", formerly=("new",)), "new")
        assert joins(await ask(parts, "sixth", same="new", formerly=("mac",))), "its current name first"


async def test_a_full_lane_lets_the_same_request_join_and_keeps_nothing_of_a_new_one(redis_url: str) -> None:
    async with bench(redis_url, most=1) as parts:
        assert isinstance(await ask(parts, "first"), Admitted)
        assert joins(await ask(parts, "second"))
        assert isinstance(await ask(parts, "third", same="other"), Full)
        assert not await parts.redis.exists(names.same("other"), names.joined("other"))


async def test_what_comes_after_its_deadline_neither_joins_nor_is_known(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        past = await parts.now()
        assert isinstance(await ask(parts, "late", deadline=past), Expired)
        assert await known(parts) == {}
        await ask(parts, "first")
        assert isinstance(await ask(parts, "late", deadline=past), Expired)
        assert not await parts.redis.exists(JOINED)


@pytest.mark.parametrize("ago", [0, 1, 14_000])
async def test_a_pending_request_whose_deadline_has_passed_is_replaced_with_all_who_joined_it(
    redis_url: str, ago: int
) -> None:
    async with bench(redis_url) as parts:
        await ask(parts, "first")
        await ask(parts, "joined")
        await parts.redis.hset(SAME, "until", await parts.now() - ago)
        deadline = await parts.soon()
        assert isinstance(await ask(parts, "second", deadline=deadline), Admitted)
        assert await known(parts) == {b"state": b"pending", b"rid": b"second", b"until": str(deadline).encode()}
        assert await parts.redis.pexpiretime(SAME) == deadline + RECLAIM_MS
        assert not await parts.redis.exists(JOINED)
        assert joins(await ask(parts, "third"))
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker third"]
        assert await lane_length(parts) == 2


async def test_a_request_without_a_key_or_with_another_one_never_joins(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for rid, same in (("1", ""), ("2", ""), ("3", "mac"), ("4", "cam")):
            assert isinstance(await ask(parts, rid, same=same), Admitted)
        assert sorted(await parts.redis.keys("*same*")) == sorted([SAME.encode(), names.same("cam").encode()])


@pytest.mark.parametrize("state", ["unknown", "pending", "done"])
async def test_a_question_for_a_replay_is_queued_whatever_is_known_and_changes_nothing_of_it(
    redis_url: str, state: str
) -> None:
    async with bench(redis_url) as parts:
        if state != "unknown":
            delivery = await in_hand(parts, same="mac")
            if state == "done":
                await parts.end(delivery, settlement("rid", outcome(), record=record()))
        before = await parts.redis.dump(SAME)
        for rid in ("one", "other"):
            assert isinstance(await ask(parts, rid, lane=Lane.FAST, replay=True), Admitted)
        assert await parts.redis.dump(SAME) == before
        assert not await parts.redis.exists(JOINED)
        assert await parts.length(names.lane(Lane.FAST)) == 2


async def test_a_request_whose_outcome_is_recorded_is_done_until_it_is_forgotten(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        for _ in range(2 * MOST_JOINED):
            assert await ask(parts, "again") == Known("done")
        assert (await parts.redis.exists(JOINED), await lane_length(parts)) == (0, 0)
        await parts.redis.delete(SAME)  # as its ten minutes do
        assert isinstance(await ask(parts, "later"), Admitted)
