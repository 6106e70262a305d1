"""Workers that die and workers that hang: what they held is finished by others, once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from adapters import names
from app.client import Answer
from app.messages import MAX_IN_FLIGHT, Lane
from app.settings import FAILPOINTS
from tests.deployment import Process, in_lane
from tests.faults import Figures, Run, Scenario
from tests.faults.audit import Allowed
from tests.faults.load import NOBODY, Load, Shape, until
from tests.faults.stage import Stage, stage
from tests.faults.visitors import Visitor

RECLAIM_SECONDS = 5.0  # without a sign of life for this long a worker has lost what it holds
STRANDED_SECONDS = 7.0  # the promise: from the kill until all it held is answered
SLOW = {"FIN_ARGON2": "m=65536,t=3,p=1", "FIN_HASH_THREADS": "1"}  # a hash takes long enough to be caught in it
STORM = {"FIN_ARGON2": "m=12288,t=1,p=1", "FIN_HASH_THREADS": "1"}  # one worker needs some ten seconds for it
WAITING, WARM = 1000, 100
JOINED_SECONDS = 1.0  # the promise: from a new worker's first word until it has ended a request
FASTER = 1.2  # of two on a machine whose cores are shared with all the others, at least
GONE_SECONDS = 3.0  # for a worker that stops: it hands back what it has not begun after one
BURIED = Allowed(errors=frozenset({"internal"}))  # what was in the hand of two who died is given up, and said so


async def worker_killed(run: Run) -> Figures:
    """Workers die all the time, at every point of a request's way and anywhere between; others finish it."""
    least, kills = run.size(test=1500, full=20_000), run.size(test=12, full=200)
    shape = Shape(owners=16, guessers=12, registrants=4, keyed_ms=30_000)  # what two deaths delay still ends in time
    chance, choices = run.size(test=400, full=700), run.random
    numbers = iter(range(run.seed, run.seed + 1_000_000))

    def failpoints() -> str:
        return " ".join(f"{point}=1/{chance}" for point in FAILPOINTS) + f" seed={next(numbers)}"

    async with stage(run, workers=0) as play:
        for _ in range(3):
            play.deployment.add("worker", FIN_TEST_FAILPOINTS=failpoints())
        play.deployment.wait_ready(play.of("gateway")[0])
        async with Load.on(play.deployment, run.seed, shape) as load:
            next_kill = time.monotonic() + choices.uniform(1, 4)
            while load.requests < least or play.killed < kills:
                load.check()
                run.say(f"{load.requests} requests, {play.killed} kills")
                play.dead("worker")
                if time.monotonic() > next_kill and (living := play.of("worker")):
                    play.kill(choices.choice(living), "external")
                    next_kill = time.monotonic() + choices.uniform(1, 4)
                for _ in range(3 - len(play.of("worker"))):
                    play.deployment.add("worker", FIN_TEST_FAILPOINTS=failpoints())
                await asyncio.sleep(0.05)
            replace_all(play)
            log = await load.stop()
        play.audit(log, BURIED)
    return play.figures(log)


def replace_all(play: Stage) -> None:
    """From here on nobody kills himself: what is in hand can end."""
    for worker in play.of("worker"):
        if worker.popen.poll() is None:
            play.kill(worker, "external")
    play.dead("worker")
    for _ in range(3):
        play.deployment.add("worker")


# --- single faults ---------------------------------------------------------------------------------------------------


async def stranded(run: Run) -> Figures:
    """What one dead worker held is answered within seven seconds, again and again."""
    took: list[float] = []
    held = 0
    async with (
        stage(run, gateways=1, workers=2, settings=SLOW) as play,
        Load.on(play.deployment, run.seed, NOBODY) as load,
    ):
        hand = load.hand()
        address = await hand.sign_up()
        for n in range(times := run.size(test=2, full=20)):
            run.say(f"{n} of {times} workers dead")
            asked = asyncio.gather(hand.login(address), *(hand.guess(f"stranded-{n}@load.test") for _ in range(5)))
            worker, entries = await caught(play)
            play.kill(worker, "worker")
            killed = time.monotonic()
            play.deployment.add("worker")
            await asked
            took.append(time.monotonic() - killed)
            held += len(entries)
        log = await load.stop()
        play.audit(log, Allowed())
    assert max(took) <= STRANDED_SECONDS, f"answered after {max(took):.1f} s"
    return {"kills": len(took), "in hand": held, "slowest s": round(max(took), 2)}


async def worker_stopped(run: Run) -> Figures:
    """A worker that hangs loses what it holds to another; whoever is later, of two or of many copies, does nothing."""
    rounds = run.size(test=1, full=10)
    answered: list[float] = []
    async with (
        stage(run, gateways=1, workers=2, settings=SLOW) as play,
        Load.on(play.deployment, run.seed, NOBODY) as load,
    ):
        hand = load.hand()
        address = await hand.sign_up()
        for n in range(rounds):
            run.say(f"{n} of {rounds} rounds")
            answered.append(await _stopped_and_late(play, hand, address, n))
            await _stopped_and_first(play, hand, address, n)
            await _copied(play, hand, address, n)
        log = await load.stop()
        play.audit(log, Allowed())
    assert max(answered) <= STRANDED_SECONDS, f"answered after {max(answered):.1f} s"
    return {"rounds": rounds, "requests": len(log.asked), "slowest s": round(max(answered), 2)}


async def _stopped_and_late(play: Stage, hand: Visitor, address: str, n: int) -> float:
    """It hangs with work in hand, the other one finishes that, and it wakes up. Seconds until all was answered."""
    asked = asyncio.gather(hand.login(address), *(hand.guess(f"late-{n}@load.test") for _ in range(5)))
    worker, _ = await caught(play)
    worker.pause()
    stopped = time.monotonic()
    try:
        await asked
    finally:
        took = time.monotonic() - stopped
        worker.go_on()
    await busy_again(play, hand, worker)
    return took


async def _stopped_and_first(play: Stage, hand: Visitor, address: str, n: int) -> None:
    """It hangs, another takes over and hangs too; the first one wakes up and is the one who settles."""
    asked = asyncio.gather(hand.login(address), hand.guess(f"first-{n}@load.test"))
    first, entries = await caught(play)
    first.pause()
    [second] = (worker for worker in play.of("worker") if worker is not first)
    try:
        taken = await until(lambda: set(held_by(play, second)) & set(entries), RECLAIM_SECONDS + 3)
        second.pause()
        assert taken, "what a stopped worker held was not taken over"
        assert set(held_by(play, second)) & set(entries), "it was too quick to be stopped; the hash is not slow enough"
        first.go_on()
        await asked
    finally:
        first.go_on()
        second.go_on()
    await busy_again(play, hand, second)


async def _copied(play: Stage, hand: Visitor, address: str, n: int) -> None:
    """The entry is in the stream five times."""
    for worker in play.of("worker"):
        worker.pause()
    try:
        asked = asyncio.gather(hand.login(address), hand.guess(f"copied-{n}@load.test"))
        lane = names.lane(Lane.HASH)
        assert await until(lambda: play.redis.xlen(lane) == 2, 5)
        for _, fields in play.redis.xrange(lane):
            for _ in range(4):
                play.redis.xadd(lane, fields)
    finally:
        for worker in play.of("worker"):
            worker.go_on()
    await asked


async def busy_again(play: Stage, hand: Visitor, worker: Process) -> None:
    """What it held when it was stopped is behind it: it has served a request that came later, alone."""
    others = [other for other in play.of("worker") if other is not worker]
    for other in others:
        other.pause()
    try:
        await hand.guess("later@load.test")
    finally:
        for other in others:
            other.go_on()


async def worker_joins(run: Run) -> Figures:
    """A worker that is started while a thousand logins wait helps at once; one that stops hands back what it has."""
    async with stage(run, gateways=1, workers=1, settings=STORM) as play:
        return await joins(play)


async def joins(play: Stage) -> Figures:
    """With whatever broker; all is measured by Redis's clock."""
    async with AsyncExitStack() as stack:
        count = WAITING + WAITING // 4  # some are done before the last one asks
        clients = [
            await stack.enter_async_context(play.deployment.client(checked=False))
            for _ in range(count // MAX_IN_FLIGHT)
        ]

        def ask(most: int) -> list[Awaitable[Answer]]:
            turns = [client for client in clients for _ in range(MAX_IN_FLIGHT)][:most]
            return [
                client.ask("login", email=f"{n}@load.test", password="wrong", timeout_ms=30_000)
                for n, client in enumerate(turns)
            ]

        first_answers = await asyncio.gather(*ask(WARM))
        enough = (WAITING + WARM) / 30  # a second: else the last ones are refused, since they would wait for too long
        assert await until(lambda: float(play.redis.hget(names.CAPACITY, "hash:rate") or 0) > enough, 10), "too slow"
        asked = asyncio.gather(*ask(count))
        waiting = (Lane.HASH, Lane.SLOW)  # all of one network
        assert await until(lambda: sum(in_lane(play.redis, lane) for lane in waiting) >= WAITING, 20), (
            "they do not wait"
        )
        started, newcomer = _now(play), play.deployment.add("worker")
        assert await until(lambda: len(_ended(play, newcomer)) >= 150, 20), "the new worker does not work"
        joined = _since(play, newcomer)
        told = _now(play)
        newcomer.terminate()
        assert await asyncio.to_thread(newcomer.popen.wait, 20) == 0
        gone = _now(play)
        answers = [*first_answers, *await asked]
    codes = Counter(answer.code for answer in answers)
    assert set(codes) <= {"invalid_credentials", "deadline_exceeded"}, codes  # the latter where the machine is too slow
    events = _ended(play)
    assert len(events) == len({rid for _, rid in events}) >= codes["invalid_credentials"], "not each of them once"
    assert not play.redis.exists(names.DEAD), "what was handed back was taken for what kills its worker"
    first = _ended(play, newcomer)[0][0]
    slow, fast = (
        sum(1 for at, _ in events if begin <= at < end) * 1000 / (end - begin)
        for begin, end in ((started, joined), (first, told))
    )
    assert first - joined <= JOINED_SECONDS * 1000, f"it took work {first - joined} ms after it had joined"
    assert fast >= FASTER * slow, f"{slow:.0f} a second without it, {fast:.0f} with it"
    assert gone - told <= GONE_SECONDS * 1000, f"it took {gone - told} ms to stop"
    return {
        "requests": len(answers),
        "too late": codes["deadline_exceeded"],
        "first ended ms after it joined": first - joined,
        "after its start": first - started,
        "a second without it": round(slow),
        "with it": round(fast),
        "stopped within ms": gone - told,
    }


def _now(play: Stage) -> int:
    seconds, micros = play.redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def _since(play: Stage, worker: Process) -> int:
    """Its first word, in ms."""
    for name, said in play.redis.hgetall(names.WORKERS).items():
        if int(name.split(b":")[1]) == worker.popen.pid:
            about: dict[str, Any] = msgspec.msgpack.decode(said)
            return int(about["since"])
    raise AssertionError("it is not among the workers")


def _ended(play: Stage, worker: Process | None = None) -> list[tuple[int, str]]:
    """When each request was ended, in ms, and its id: by this worker, whose name has its process id, or by anybody."""
    return [
        (int(id.split(b"-")[0]), fields[b"request"].decode())
        for id, fields in play.redis.xrange(names.EVENTS)
        if worker is None or int(fields[b"worker"].split(b":")[1]) == worker.popen.pid
    ]


async def caught(play: Stage) -> tuple[Process, list[str]]:
    """A worker with hash work in hand, and the ids of its entries."""
    found: list[tuple[Process, list[str]]] = []

    def look() -> bool:
        found.extend((worker, ids) for worker in play.of("worker") if (ids := held_by(play, worker)))
        return bool(found)

    assert await until(look, 5), "no worker took anything"
    return found[0]


def held_by(play: Stage, worker: Process) -> list[str]:
    """Ids of the entries of the hash lane in the hand of a worker, whose name has its process id."""
    about = play.redis.xpending_range(names.lane(Lane.HASH), names.GROUP, "-", "+", 100)
    return [one["message_id"].decode() for one in about if int(one["consumer"].split(b":")[1]) == worker.popen.pid]


SCENARIOS: dict[str, Scenario] = {
    "worker_killed": worker_killed,
    "stranded": stranded,
    "worker_stopped": worker_stopped,
    "worker_joins": worker_joins,
}
