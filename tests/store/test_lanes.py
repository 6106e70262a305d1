"""What was handed out comes back: return and reap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapters import lua, names
from adapters.redis_streams import SPOKEN_FOR_MS, TAKEN_OVER_AFTER_MS
from app.messages import Lane
from app.ports import Delivery
from app.records import Needs
from tests.store.bench import (
    ACCOUNT,
    Bench,
    another,
    bench,
    consumers,
    counted,
    entry,
    held,
    hung,
    in_hand,
    outcome,
    pending,
    settlement,
    taken,
)

# --- return -----------------------------------------------------------------------------------------------------------


async def test_what_is_given_back_goes_to_the_tail_of_its_lane(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        keyed = entry("first", deadline, same="mac")
        for sent in (keyed, entry("second", deadline)):
            await parts.admit(sent)
        [delivery] = await taken(parts, most=1)
        await parts.worker.give_back(delivery)
        again = await taken(parts)
        assert [found.entry for found in again] == [entry("second", deadline), keyed]
        assert (await pending(parts), await parts.length(names.lane(Lane.HASH))) == (2, 2)
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"3"


async def test_what_is_in_hand_no_longer_is_not_given_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        lane = names.lane(Lane.HASH)
        await parts.redis.xgroup_destroy(lane, names.GROUP)
        await parts.redis.xgroup_create(lane, names.GROUP, "0")  # so that it will be handed out again
        await parts.worker.give_back(delivery)
        assert await parts.length(lane) == 1
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"1"


async def test_what_has_been_ended_meanwhile_is_not_given_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.end(delivery, settlement("rid", outcome()))
        await parts.worker.give_back(delivery)
        assert await parts.length(names.lane(Lane.HASH)) == 0


async def test_giving_back_twice_makes_one_entry(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.worker.give_back(delivery)
        await parts.worker.give_back(delivery)
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (1, 0)


# --- reap -------------------------------------------------------------------------------------------------------------


async def test_nothing_is_taken_over_where_there_is_no_group_or_nothing_hangs(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        await in_hand(parts)
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []


async def test_what_a_dead_worker_holds_is_taken_over_and_counted(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        for deliveries in (2, 3):
            await hung_again(parts, delivery, deliveries - 1)
            [again] = await parts.worker.reap(Lane.HASH, 64, ())
            assert again == replace(delivery, deliveries=deliveries)
            assert await parts.worker.reap(Lane.HASH, 64, ()) == []  # it is in hand now
        assert (await consumers(parts))[b"consumer"] == 1
        assert await parts.end(again, settlement("rid", outcome())) == "settled"
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def hung_again(parts: Bench, delivery: Delivery, times: int) -> None:
    idle = ("IDLE", TAKEN_OVER_AFTER_MS + 1, "RETRYCOUNT", times)
    await parts.redis.execute_command(
        "XCLAIM", names.lane(delivery.lane), names.GROUP, "dead", 0, delivery.token, *idle
    )


async def test_what_was_deleted_while_it_was_in_hand_haunts_nobody(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await hung(parts, delivery)
        await parts.redis.xdel(names.lane(Lane.HASH), delivery.token)
        assert await pending(parts) == 1
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        assert await pending(parts) == 0


async def reap(parts: Bench, *, idle: int = 0, most: int = 64, gone: int = 600_000) -> list[Any]:
    args = (names.GROUP, "consumer", idle, most, gone, SPOKEN_FOR_MS)
    found = await parts.batch.script(lua.REAP, [names.lane(Lane.HASH)], *args)
    return list(found)


async def test_no_more_is_taken_over_at_once_than_was_asked_for(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        for n in range(5):
            await parts.admit(entry(str(n), deadline))
        for delivery in await taken(parts):
            await hung(parts, delivery)
        first, rest = await reap(parts, idle=1000, most=2), await reap(parts, idle=1000)
        assert (len(first), len(rest)) == (2, 3)
        assert len({token for token, *_ in first + rest}) == 5


async def test_a_consumer_that_is_gone_is_removed_unless_it_holds_something(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await in_hand(parts)
        for name in ("gone", "holding"):
            await parts.redis.xgroup_createconsumer(names.lane(Lane.HASH), names.GROUP, name)
        await parts.admit(entry("other", await parts.soon()))
        await parts.redis.xreadgroup(names.GROUP, "holding", {names.lane(Lane.HASH): ">"})
        await reap(parts, idle=60_000)
        assert await consumers(parts) == {b"consumer": 1, b"gone": 0, b"holding": 1}  # it may come back yet
        await reap(parts, idle=60_000, gone=-1)
        assert await consumers(parts) == {b"consumer": 1, b"holding": 1}
        assert await pending(parts) == 2


async def test_a_worker_never_removes_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.worker.drop(delivery, ())
        await reap(parts, gone=-1)
        assert await consumers(parts) == {b"consumer": 0}


async def test_a_lost_group_is_made_anew_and_passes_nothing_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await in_hand(parts)
        await parts.admit(entry("waiting", await parts.soon()))
        await parts.redis.xgroup_destroy(names.lane(Lane.HASH), names.GROUP)
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        assert [found.entry.rid for found in await taken(parts) if found.entry] == ["rid", "waiting"]


async def test_what_a_worker_is_still_at_work_on_is_taken_over_by_nobody(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery, other = await in_hand(parts), another(parts, redis_url, "other")
        await hung(parts, delivery, "consumer")
        assert await parts.worker.reap(Lane.HASH, 0, [delivery.token]) == []
        assert await other.reap(Lane.HASH, 64, ()) == []
        await hung(parts, delivery, "consumer")
        assert [again.deliveries for again in await other.reap(Lane.HASH, 64, ())] == [2]
        await parts.worker.reap(Lane.HASH, 0, [delivery.token])
        assert (await consumers(parts))[b"other"] == 1, "what another has taken over stays with it"


async def test_what_was_lost_on_its_way_to_a_worker_comes_again_and_does_not_count_as_handed_out(
    redis_url: str,
) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        assert await parts.worker.reap(Lane.HASH, 0, ()) == []  # it may be on its way
        for _ in range(3):
            await hung(parts, delivery, "consumer")
            assert await parts.worker.reap(Lane.HASH, 0, ()) == [delivery]
            assert await parts.worker.reap(Lane.HASH, 0, ()) == []


async def test_what_was_not_begun_is_soon_anothers_and_does_not_count_as_handed_out(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery, other = await in_hand(parts), another(parts, redis_url, "other")
        for _ in range(5):
            await parts.worker.release(delivery)
            [again] = await other.reap(Lane.HASH, 64, ())
            assert again == delivery
            await other.release(delivery)
            assert await parts.worker.reap(Lane.HASH, 64, ()) == [delivery]
        await other.release(delivery)  # it holds it no longer
        assert await other.reap(Lane.HASH, 64, ()) == []


async def test_a_buried_request_gives_its_reserved_places_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.check(Needs(limits=(ACCOUNT,)))
        assert await held(parts, ACCOUNT) == 1
        await parts.worker.bury(delivery, "delivered 3 times", None, None, (ACCOUNT,))
        assert (await held(parts, ACCOUNT), await counted(parts, ACCOUNT)) == (0, 0)
