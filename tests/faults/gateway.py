"""Gateways that die: who sent with a key asks the next one, and gets the one result."""

from __future__ import annotations

import asyncio

from tests.faults import Figures, Run, Scenario
from tests.faults.audit import Allowed
from tests.faults.load import Load, Shape
from tests.faults.stage import Stage, stage

KEYED = Shape(owners=12, guessers=8, registrants=4, keyed=1.0)
CUT_OFF = Allowed(closes=frozenset({1006}))  # by the death of its gateway, and nothing else


async def gateway_killed(run: Run) -> Figures:
    """Gateways die under load, one after another; every client gets its answer, and what it asked was done once."""
    kills, choices = run.size(test=4, full=50), run.random
    async with stage(run) as play, Load.on(play.deployment, run.seed, KEYED) as load:
        while play.killed < kills:
            run.say(f"{load.requests} requests, {play.killed} kills")
            await load.more(choices.randint(50, 250))
            await kill_one(play, choices.randrange(2))
        await load.more(100)
        log = await load.stop()
        play.audit(log, CUT_OFF)
    lost = sum(1 for sending in log.sendings if sending.closed is not None)
    assert lost, "no request was under way when a gateway died: nothing was proved"
    return play.figures(log)


async def kill_one(play: Stage, which: int) -> None:
    """SIGKILL, and another one on the same port, listening."""
    gateway = play.of("gateway")[which]
    play.kill(gateway, "gateway")
    successor = play.deployment.add("gateway", port=gateway.port)
    await asyncio.to_thread(play.deployment.wait_ready, successor)


SCENARIOS: dict[str, Scenario] = {"gateway_killed": gateway_killed}
