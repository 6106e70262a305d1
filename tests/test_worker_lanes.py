"""Which lane a worker serves when: what hashes goes first, and the slow lane has whatever threads that leaves."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from app import entries
from app.frames import typed
from app.keys import SealKeys
from app.messages import Lane
from app.ports import Clock, Delivery, Settlement, Vitals
from app.records import Facts, Limit, Needs
from app.sealing import Opener
from app.worker import Worker
from tests.deciding import SETTINGS
from tests.faults.ground import until as wait_until
from tests.making import CHEAP, EDGE, MINT, NOW, ORIGIN, PEPPER, Counting
from tests.test_in_flight import ENVELOPE
from tests.test_sealing import KEY

THREADS = 2
LATER = NOW + 30_000


class Paced(Counting):
    """Hashes when it is let; `begun` has the passwords in the order in which they came to it."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(1000)
        super().__init__(CHEAP, PEPPER)
        self.begun: list[str] = []
        self.let = threading.Semaphore(0)

    def verify(self, record: str, user_id: str, password: str) -> bool:
        self.begun.append(password)
        self.let.acquire()
        return super().verify(record, user_id, password)


class Queue:
    """A WorkerBroker and a Store in memory. `asked`: how many were asked for, by lane."""

    def __init__(self) -> None:
        self.lanes: dict[Lane, deque[Delivery]] = {lane: deque() for lane in Lane}
        self.there = asyncio.Event()
        self.asked: dict[Lane, int] = dict.fromkeys(Lane, 0)
        self.settled: list[str] = []
        self.dropped: list[str] = []
        self.released: list[str] = []
        self.vitals: Vitals | None = None
        self.now = NOW

    def put(self, lane: Lane, *rids: str, deadline: int = LATER) -> None:
        for rid in rids:
            frame = typed("login", {"email": f"{rid}@example.com", "password": rid}, "1")
            entry = entries.pack_request(ENVELOPE, rid, frame, ORIGIN, deadline, lane)
            self.lanes[lane].append(Delivery(lane, rid, entry))
        self.there.set()

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        self.asked[lane] += 1
        if not self.lanes[lane]:
            self.there.clear()
            try:
                await asyncio.wait_for(self.there.wait(), 0.05)
            except TimeoutError:
                return []
        waiting = self.lanes[lane]
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        self.settled.append(delivery.token)
        return "settled"

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        self.dropped.append(delivery.token)

    async def release(self, delivery: Delivery) -> None:
        self.released.append(delivery.token)

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        return []

    async def beat(self, vitals: Vitals) -> Clock:
        self.vitals = vitals
        return Clock(self.now)

    async def leave(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self, rid: str, deadline: int, needs: Needs) -> Facts | str:
        return Facts(self.now, needs)


until = partial(wait_until, what="what the worker is to do", seconds=5)


class Bench:
    def __init__(self) -> None:
        self.queue, self.hasher = Queue(), Paced()
        queue: Any = self.queue
        keys = SealKeys({}, {"key1": KEY})
        self.worker = Worker(
            replace(SETTINGS, hash_threads=THREADS),
            "worker",
            queue,
            queue,
            opener=Opener(keys, EDGE, "request"),
            mint=MINT,
            hasher=self.hasher,
            mail_keys=SealKeys({"key1": KEY.public_key()}, {}),
        )

    def let(self, count: int) -> None:
        self.hasher.let.release(count)

    async def begun(self, count: int) -> list[str]:
        await until(lambda: len(self.hasher.begun) >= count)
        return self.hasher.begun

    async def settled(self, count: int) -> list[str]:
        await until(lambda: len(self.queue.settled) >= count)
        return self.queue.settled


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """A worker of two threads that is let to hash; it ends well."""
    made = Bench()
    running = asyncio.create_task(made.worker.run())
    await until(lambda: made.queue.vitals)
    try:
        yield made
    finally:
        made.worker.stop()
        made.let(1000)
        await asyncio.wait_for(running, 5)


def named(stem: str, count: int) -> list[str]:
    return [f"{stem}{n}" for n in range(count)]


async def test_the_slow_lane_has_all_threads_while_there_is_nothing_else() -> None:
    async with bench() as made:
        made.queue.put(Lane.SLOW, *named("s", 20))
        assert sorted(await made.begun(THREADS)) == ["s0", "s1"]
        made.let(20)
        assert sorted(await made.settled(20)) == sorted(named("s", 20))


async def test_what_hashes_waits_for_one_of_the_slow_lane_on_each_thread_and_for_no_more() -> None:
    async with bench() as made:
        made.queue.put(Lane.SLOW, *named("s", 20))
        await made.begun(THREADS)
        await until(lambda: made.worker._holds[Lane.SLOW].held > THREADS)  # more is in hand than at work
        made.queue.put(Lane.HASH, *named("h", 3))
        await until(lambda: made.worker._holds[Lane.HASH].held == 3)
        made.let(5)
        begun = await made.begun(THREADS + 5)
        assert sorted(begun[:2]) == ["s0", "s1"]
        assert sorted(begun[2:5]) == ["h0", "h1", "h2"]
        assert begun[5:] == ["s2", "s3"] or begun[5:] == ["s3", "s2"]


async def test_nothing_of_the_slow_lane_is_taken_while_what_hashes_waits_for_a_thread() -> None:
    async with bench() as made:
        made.queue.put(Lane.HASH, *named("h", 40))
        await made.begun(THREADS)
        await until(lambda: made.worker._holds[Lane.HASH].held > THREADS)
        await asyncio.sleep(0.1)  # a question that was asked before has come back
        made.queue.put(Lane.SLOW, *named("s", 5))
        asked = made.queue.asked[Lane.SLOW]
        for _ in range(30):
            made.let(1)
            await asyncio.sleep(0.005)
        assert len(made.queue.lanes[Lane.SLOW]) == 5
        assert made.queue.asked[Lane.SLOW] == asked, "it does not ask, and does not look in vain"
        made.let(15)
        settled = await made.settled(45)
        assert settled[-5:] and set(settled[-7:]) >= set(named("s", 5))


async def test_a_worker_of_which_nothing_is_wanted_but_to_stop_does_so_whatever_its_lanes_wait_for() -> None:
    async with bench() as made:
        made.queue.put(Lane.HASH, *named("h", 40))
        await made.begun(THREADS)
        await until(lambda: made.worker._holds[Lane.HASH].held > THREADS)
        made.queue.put(Lane.SLOW, "s0")
    assert "s0" not in made.queue.settled + made.queue.released


async def test_what_waits_in_hand_behind_others_until_its_deadline_is_dropped_and_never_hashed() -> None:
    async with bench() as made:
        made.queue.put(Lane.SLOW, "s0", "s1")
        await made.begun(THREADS)
        made.queue.put(Lane.SLOW, "late", deadline=NOW + 1)
        await until(lambda: made.worker._holds[Lane.SLOW].held == 3)
        await asyncio.sleep(0.01)  # the deadline passes by the worker's clock, which goes on from the last beat
        made.let(2)
        await until(lambda: made.queue.dropped)
        assert made.queue.dropped == ["late"]
        assert "late" not in made.hasher.begun


async def test_a_worker_that_stops_hands_back_what_it_has_not_begun_of_either_lane() -> None:
    async with bench() as made:
        made.queue.put(Lane.SLOW, *named("s", 4))
        await made.begun(THREADS)
        made.queue.put(Lane.HASH, *named("h", 2))
        await until(lambda: made.worker._holds[Lane.HASH].held == 2 and made.worker._holds[Lane.SLOW].held == 4)
        made.worker.stop()
        await until(lambda: made.worker._hands_back)
    assert sorted(made.queue.settled) == ["s0", "s1"]
    assert sorted(made.queue.released) == ["h0", "h1", "s2", "s3"]


async def test_a_worker_says_of_both_lanes_that_hash_what_its_threads_can_do() -> None:
    async with bench() as made:
        vitals = made.queue.vitals
        assert vitals is not None and list(vitals.lanes) == list(Lane)
        can = [(vitals.lanes[lane].slots, vitals.lanes[lane].rate) for lane in (Lane.HASH, Lane.SLOW)]
        assert can[0] == can[1] and can[0][0] == THREADS
