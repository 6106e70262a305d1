"""The store's clock, beats, and the tag that every key carries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from adapters import names
from adapters.redis_state import WORKER_LIVES_MS
from app import entries
from app.messages import Lane
from app.ports import Admitted, Expired, Known, LaneVitals, State, Vitals
from app.records import Facts, Identity, Needs, Verdict
from tests.making import EDGE
from tests.store.bench import (
    ACCOUNT,
    HERE,
    MAIL,
    MAILS,
    SAME,
    SOON_MS,
    USES,
    Bench,
    another,
    ask,
    bench,
    consumers,
    entry,
    hung,
    in_hand,
    kept,
    lane_length,
    notice,
    outcome,
    pending,
    put_challenge,
    record,
    sealed_mail,
    settlement,
    taken,
)

# --- the store's clock ------------------------------------------------------------------------------------------------

SET_BACK_MS = 3_600_000


async def set_back(parts: Bench) -> None:
    """As if the server's clock had been an hour ahead until now."""
    await parts.redis.hset(names.CLOCK, mapping={"last": await parts.now() + SET_BACK_MS, "ahead": 0})


async def test_the_clock_is_the_servers_own_while_that_goes_forwards(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            before = await parts.now()
            told, _ = await parts.gateway.heartbeat()
            assert before <= told.now <= await parts.now() and told.ahead == 0
            facts = await parts.check(Needs())
            assert told.now <= facts.now and facts.ahead == 0


async def test_a_clock_that_is_set_back_goes_on_from_where_it_was_and_never_faster(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await set_back(parts)
        ahead = []
        for _ in range(5):
            told, _ = await parts.gateway.heartbeat()
            ahead += [told.now - await parts.now(), told.ahead]
        assert all(SET_BACK_MS - 1000 < ms <= SET_BACK_MS for ms in ahead)
        facts = await parts.store.check("rid", told.now + SOON_MS, Needs())
        assert isinstance(facts, Facts) and facts.now >= told.now
        assert SET_BACK_MS - 1000 < facts.ahead <= SET_BACK_MS
        assert abs(facts.seconds * 1000 - await parts.now()) < 2000, "tokens go by the server's own"


async def test_a_clock_that_was_set_right_again_is_the_servers_own_from_then_on(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        before = await parts.now()
        await parts.redis.hset(names.CLOCK, mapping={"last": before - 1000, "ahead": SET_BACK_MS})
        told, _ = await parts.gateway.heartbeat()
        assert before <= told.now <= await parts.now() and told.ahead == 0


async def test_when_the_clock_was_set_back_what_is_in_hand_begins_anew_to_look_idle(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await hung(parts, delivery)
        await set_back(parts)
        await parts.gateway.heartbeat()
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        await hung(parts, delivery)
        [again] = await parts.worker.reap(Lane.HASH, 64, ())
        assert again.deliveries == 2


async def test_what_had_expired_before_the_clock_was_set_back_is_not_good_again(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        delivery = await in_hand(parts, same="mac", deadline=deadline)
        await set_back(parts)
        assert isinstance(await parts.admit(entry("late", deadline)), Expired)
        assert await parts.store.check("rid", deadline, Needs()) == State.EXPIRED
        assert await parts.keep("rid", deadline, settlement("rid", outcome())) == "expired"
        assert isinstance(await ask(parts, "anew", deadline=deadline + 2 * SET_BACK_MS), Admitted), "it is over"
        assert delivery.entry is not None


async def test_an_outcome_is_given_again_for_ten_minutes_by_the_stores_clock(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        assert await ask(parts, "again") == Known("done")
        await set_back(parts)
        assert isinstance(await ask(parts, "anew", deadline=await parts.soon() + 2 * SET_BACK_MS), Admitted)


# --- beat -------------------------------------------------------------------------------------------------------------


def vitals(hash_ms: float = 33.5, **lanes: tuple[int, float]) -> Vitals:
    """Of each lane what is given, (slots, rate), and the same numbers of what is in hand and drained."""
    return Vitals(hash_ms, {Lane(lane): LaneVitals(*can, 3, 1.5) for lane, can in lanes.items()})


ONE = vitals(fast=(128, 500.5), hash=(2, 60.25))


async def capacity(parts: Bench) -> dict[str, tuple[int, float]]:
    """(slots, rate) of each lane that has workers of its own: the slow one has those of the hash lane."""
    found = {str(lane): (depth.slots, depth.rate) for lane, depth in (await parts.gateway.depths()).items()}
    assert found.pop("slow") == found["hash"]
    return found


async def test_what_all_living_workers_can_do_is_added_up(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await capacity(parts) == {"fast": (0, 0.0), "hash": (0, 0.0)}
        before = await parts.now()
        assert before <= (await parts.worker.beat(ONE)).now <= await parts.now()
        assert await capacity(parts) == {"fast": (128, 500.5), "hash": (2, 60.25)}
        await another(parts, redis_url, "second").beat(vitals(hash=(4, 100.5)))
        assert await capacity(parts) == {"fast": (128, 500.5), "hash": (6, 160.75)}
        await parts.worker.beat(vitals(hash=(1, 10.0)))  # a beat replaces the one before
        assert await capacity(parts) == {"fast": (0, 0.0), "hash": (5, 110.5)}
        assert await parts.redis.hget(names.CAPACITY, "workers") == b"2"


@pytest.mark.parametrize(
    ("age", "counts"),
    [
        pytest.param(WORKER_LIVES_MS - 2000, True, id="heard of lately"),
        pytest.param(WORKER_LIVES_MS + 1, False, id="silent for too long"),
        pytest.param(-WORKER_LIVES_MS - 2000, False, id="of a clock that was set back"),
    ],
)
async def test_a_worker_that_is_silent_is_forgotten(redis_url: str, age: int, counts: bool) -> None:
    async with bench(redis_url) as parts:
        heard = {"at": await parts.now() - age, "lanes": {"hash": [8, 200.0]}}
        await parts.redis.hset(names.WORKERS, "silent", msgspec.msgpack.encode(heard))
        await parts.worker.beat(ONE)
        assert (await capacity(parts))["hash"] == ((10, 260.25) if counts else (2, 60.25))
        assert await parts.redis.hexists(names.WORKERS, "silent") is counts


async def test_a_worker_that_leaves_counts_no_longer_and_after_the_last_nobody_works(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        other = another(parts, redis_url, "second")
        await parts.worker.beat(ONE)
        await other.beat(ONE)
        await other.leave()
        assert (await capacity(parts))["hash"] == (2, 60.25)
        await parts.worker.leave()
        assert not await parts.redis.exists(names.CAPACITY, names.WORKERS)


async def said(parts: Bench, name: str = "consumer") -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(await parts.redis.hget(names.WORKERS, name))
    return found


async def test_a_beat_tells_since_when_a_worker_runs_and_what_it_measured(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        first = (await parts.worker.beat(ONE)).now
        lanes = {"fast": [128, 500.5, 3, 1.5], "hash": [2, 60.25, 3, 1.5]}
        assert await said(parts) == {"at": first, "since": first, "hash_ms": 33.5, "lanes": lanes}
        while (second := (await parts.worker.beat(vitals(40.0, hash=(2, 50.0)))).now) == first:
            pass
        assert await said(parts) == {"at": second, "since": first, "hash_ms": 40, "lanes": {"hash": [2, 50, 3, 1.5]}}


async def test_a_worker_that_was_silent_or_whose_store_was_emptied_runs_since_it_began(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        first = (await parts.worker.beat(ONE)).now
        await parts.redis.delete(names.WORKERS)  # as another's beat does with who is silent
        await parts.worker.beat(ONE)
        assert (await said(parts))["since"] == first


async def test_a_worker_that_leaves_takes_its_name_out_of_every_lane(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.xgroup_create(names.lane(Lane.FAST), names.GROUP, "0", mkstream=True)
        await parts.redis.xgroup_createconsumer(names.lane(Lane.FAST), names.GROUP, "consumer")
        delivery = await in_hand(parts)
        await parts.redis.xgroup_createconsumer(names.lane(Lane.HASH), names.GROUP, "other")
        await parts.worker.drop(delivery, ())
        await parts.worker.beat(ONE)
        await parts.worker.leave()
        assert await consumers(parts) == {b"other": 0}
        assert await parts.redis.xinfo_consumers(names.lane(Lane.FAST), names.GROUP) == []
        assert not await parts.redis.exists(names.WORKERS)


async def test_a_worker_that_leaves_with_something_in_its_hand_keeps_its_name_and_nothing_is_lost(
    redis_url: str,
) -> None:
    async with bench(redis_url) as parts:
        await in_hand(parts)
        await parts.worker.leave()
        assert (await consumers(parts), await pending(parts)) == ({b"consumer": 1}, 1)


async def test_a_worker_can_leave_lanes_that_are_not_there(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.worker.leave()
        await parts.redis.xadd(names.lane(Lane.HASH), {"a": "stream without a group"})
        await parts.worker.leave()
        assert await parts.length(names.lane(Lane.HASH)) == 1


async def test_when_all_workers_die_at_once_what_they_could_do_ends_by_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.worker.beat(ONE)
        assert 0 < await parts.redis.pttl(names.CAPACITY) <= WORKER_LIVES_MS


async def test_depths_tell_how_many_of_a_lane_have_ended(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        for n in range(3):
            await parts.admit(entry(str(n), deadline))
        first, *_ = await taken(parts)
        await parts.worker.drop(first, ())
        depth = (await parts.gateway.depths())[Lane.HASH]
        assert (depth.ended, await lane_length(parts)) == (1, 2)


# --- all of it keeps to its keys --------------------------------------------------------------------------------------


async def test_every_key_carries_the_tag_of_its_shard(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await kept(parts)
        await put_challenge(parts)
        await parts.worker.beat(ONE)
        await parts.gateway.heartbeat()
        delivery = await in_hand(parts, same="mac")
        for rid, same in (("joined", "mac"), ("pending", "cam"), ("waits", "cam")):
            await ask(parts, rid, same)
        await parts.check(Needs(limits=(ACCOUNT, USES)))
        told = notice("logout")
        plan = settlement(
            "rid",
            outcome(verdict=Verdict.FAILED, identity=Identity("u", "s")),
            limits=(ACCOUNT, USES),
            mails=((MAIL, sealed_mail(), (MAILS,)),),
            notices=((told, entries.sign_notice(EDGE, told)),),
            presence=HERE,
            record=record(),
        )
        await parts.end(delivery, plan)
        keys = await parts.redis.keys("*")
        assert len(keys) > 15
        assert {SAME.encode(), names.same("cam").encode(), names.joined("cam").encode()} <= set(keys)
        assert all(key.startswith(b"fin:{0}:") for key in keys)
