"""RabbitMQ as the broker: it dies, cuts its connections, has no memory left; its workers die, come and go."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from tests.faults import Figures, NotPossible, Run, Scenario
from tests.faults.audit import Allowed
from tests.faults.load import NOBODY, Load, Shape
from tests.faults.redis import insist
from tests.faults.stage import Stage, stage
from tests.faults.worker import STORM, STRANDED_SECONDS, busy_again, joins
from tests.running import WRITTEN_DOWN_SECONDS
from tests.servers import Kind, Server, locate, server_of

BACK_SECONDS = 5.0  # the promise: from RabbitMQ's first answer to a login that works
FULL_SECONDS = 3.0
REFUSED_SECONDS = 3.0  # no answer may take longer while RabbitMQ confirms nothing
# Longer than RabbitMQ takes to be started again: what was confirmed is answered, and only the rest is `unavailable`.
SHAPE = Shape(owners=12, guessers=8, registrants=4, keyed_ms=30_000)
AWAY = Allowed(errors=frozenset({"unavailable"}))
Played = tuple[Stage, Server]


@asynccontextmanager
async def with_rabbit(run: Run, settings: Mapping[str, str] | None = None, **roles: int) -> AsyncIterator[Played]:
    source = locate(Kind.RABBITMQ, os.environ)
    if isinstance(source, str):
        raise NotPossible(source)
    server = server_of(source, run.folder / "rabbitmq")
    if not server.mortal:
        raise NotPossible("the given RabbitMQ is not ours to kill")
    await server.start()
    try:
        broker = {"FIN_BROKER_URL": server.parts.geturl(), "FIN_DEPLOYMENT": f"t{secrets.token_hex(4)}"}
        async with stage(run, settings={**broker, **(settings or {})}, **roles) as play:
            yield play, server
    finally:
        await server.stop()


async def rabbit_worker_killed(run: Run) -> Figures:
    """Workers die all the time, and what they held is handed to others: what was settled is told, and done once."""
    kills, choices = run.size(test=8, full=100), run.random
    async with with_rabbit(run, workers=3) as (play, _), Load.on(play.deployment, run.seed, SHAPE) as load:
        while play.killed < kills:
            run.say(f"{load.requests} requests, {play.killed} kills")
            await load.more(choices.randint(50, 150))
            play.kill(choices.choice(play.of("worker")), "worker")
            play.deployment.add("worker")
        await load.more(200)
        log = await load.stop()
        play.audit(log, Allowed(errors=frozenset({"internal"})))
    return play.figures(log)


async def rabbit_killed(run: Run) -> Figures:
    """RabbitMQ dies under load and is started again: nothing confirmed is lost, and logins work soon after."""

    async def kill(play: Stage, server: Server) -> float:
        await server.kill()
        play.kills["rabbitmq"] += 1
        await server.restart()
        return time.monotonic()

    return await _interrupted(run, run.size(test=3, full=20), kill)


async def rabbit_cut(run: Run) -> Figures:
    """RabbitMQ closes every connection under load: all go on over new ones, and nothing is lost or done twice."""

    async def cut(play: Stage, server: Server) -> float:
        await server.control("close_all_connections", "for a test")
        return time.monotonic()

    cuts = run.size(test=3, full=20)
    return {**await _interrupted(run, cuts, cut), "cuts": cuts}


async def _interrupted(run: Run, times: int, interrupt: Callable[[Stage, Server], Awaitable[float]]) -> Figures:
    """`interrupt` says when RabbitMQ could be reached again."""
    back: list[float] = []
    async with with_rabbit(run) as (play, server), Load.on(play.deployment, run.seed, SHAPE) as load:
        hand = load.hand()
        hand.patient = False
        address = await hand.sign_up()
        await asyncio.sleep(WRITTEN_DOWN_SECONDS)  # for its queues to be such as survive
        for n in range(times):
            run.say(f"{load.requests} requests, {n} of {times} times")
            await load.more(run.random.randint(100, 300))
            there = await interrupt(play, server)
            await insist(lambda: hand.login(address))
            back.append(time.monotonic() - there)
        await load.more(200)
        log = await load.stop()
        play.audit(log, AWAY)
        play.all_live()
    assert max(back) <= BACK_SECONDS, f"a login worked {max(back):.1f} s after RabbitMQ could be reached"
    return {**play.figures(log), "login after s": round(max(back), 2)}


async def rabbit_worker_stopped(run: Run) -> Figures:
    """What a hanging worker was handed is another's within seven seconds; when it wakes up it does nothing twice."""
    rounds, took = run.size(test=1, full=10), []
    async with (
        with_rabbit(run, gateways=1) as (play, _),
        Load.on(play.deployment, run.seed, NOBODY) as load,
    ):
        hand = load.hand()
        address = await hand.sign_up()
        for n in range(rounds):
            run.say(f"{n} of {rounds} rounds")
            worker = play.of("worker")[n % 2]
            worker.pause()  # and RabbitMQ hands it what it has asked for
            stopped = time.monotonic()
            try:
                await asyncio.gather(hand.login(address), *(hand.guess(f"hangs-{n}@load.test") for _ in range(5)))
            finally:
                took.append(time.monotonic() - stopped)
                worker.go_on()
            await busy_again(play, hand, worker)
        log = await load.stop()
        play.audit(log, Allowed())
    assert max(took) <= STRANDED_SECONDS, f"answered after {max(took):.1f} s"
    assert max(took) > 1.0, "the worker that hung was handed nothing: nothing was proved"
    return {"rounds": rounds, "requests": len(log.asked), "slowest s": round(max(took), 2)}


async def rabbit_worker_joins(run: Run) -> Figures:
    """A new worker helps at once, and one that stops hands back what it has, with RabbitMQ as with Redis."""
    async with with_rabbit(run, STORM, gateways=1, workers=1) as (play, _):
        return await joins(play)


async def rabbit_full(run: Run) -> Figures:
    """RabbitMQ has no memory left and confirms nothing: `unavailable` in time, and all is well when it has again."""
    times = run.size(test=1, full=5)
    async with with_rabbit(run) as (play, server), Load.on(play.deployment, run.seed, SHAPE) as load:
        hand = load.hand()
        hand.patient = False
        address = await hand.sign_up()
        refused: list[float] = []
        for n in range(times):
            run.say(f"{load.requests} requests, {n} of {times} times")
            await load.more(200)
            async with server.full():
                until = time.monotonic() + FULL_SECONDS
                while time.monotonic() < until:
                    began = time.monotonic()
                    await asyncio.gather(hand.login(address), return_exceptions=True)
                    refused.append(time.monotonic() - began)
                    await asyncio.sleep(0.05)
            await insist(lambda: hand.login(address))
        await load.more(200)
        log = await load.stop()
        play.audit(log, AWAY)
        play.all_live()
    assert max(refused) < REFUSED_SECONDS, f"an answer took {max(refused):.1f} s"
    return {**play.figures(log), "answered within s": round(max(refused), 2)}


SCENARIOS: dict[str, Scenario] = {
    "rabbit_killed": rabbit_killed,
    "rabbit_cut": rabbit_cut,
    "rabbit_worker_killed": rabbit_worker_killed,
    "rabbit_worker_stopped": rabbit_worker_stopped,
    "rabbit_worker_joins": rabbit_worker_joins,
    "rabbit_full": rabbit_full,
}
