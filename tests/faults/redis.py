"""A Redis that dies, hangs, or loses everything: what it acknowledged is kept, and all go on by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.deployment import Process
from tests.faults import Figures, Run, Scenario
from tests.faults.audit import CHECKS, Allowed
from tests.faults.load import Load, Shape
from tests.faults.stage import stage
from tests.faults.visitors import Lost, Visitor

BACK_SECONDS = 2.0  # the promise: from Redis's first answer to a login that works
STALL_SECONDS = 5.0
MOST_GROWN_MB = 64.0  # of a gateway whose Redis hangs: far less than what clients could have sent meanwhile
AGAIN_SECONDS = 0.05
AWAY = Allowed(
    errors=frozenset({"unavailable", "deadline_exceeded", "internal", "overloaded"}),
    closes=frozenset({1012}),  # a node that counted as dead sends its clients elsewhere
)


async def redis_killed(run: Run) -> Figures:
    """Redis dies under load and is started again: nothing acknowledged is lost, and logins work at once."""
    kills, choices = run.size(test=4, full=50), run.random
    back: list[float] = []
    async with (
        stage(run) as play,
        Load.on(play.deployment, run.seed, Shape(owners=12, guessers=8, registrants=4)) as load,
    ):
        hand = load.hand()
        hand.patient = False
        address = await hand.sign_up()
        for n in range(kills):
            run.say(f"{load.requests} requests, {n} kills")
            await load.more(choices.randint(100, 500))
            os.kill(play.server.pid, signal.SIGKILL)
            play.kills["redis"] += 1
            await play.server.wait()
            await play.server.start()
            answers = time.monotonic()
            await insist(lambda: hand.login(address))
            back.append(time.monotonic() - answers)
        await load.more(200)
        log = await load.stop()
        play.audit(log, AWAY)
        play.all_live()
    assert max(back) <= BACK_SECONDS, f"a login worked {max(back):.1f} s after Redis answered"
    return {**play.figures(log), "login after s": round(max(back), 2)}


async def flushall(run: Run) -> Figures:
    """Redis loses everything under load: whoever comes next can register and log in, and nobody has to be restarted."""
    times = run.size(test=1, full=10)
    back: list[float] = []
    shape = Shape(plain_ms=5000, keyed_ms=5000, mail_seconds=5.0)
    async with stage(run) as play, Load.on(play.deployment, run.seed, shape) as load:
        hand = load.hand()
        hand.patient = False
        for n in range(times):
            run.say(f"{load.requests} requests, {n} of {times} times")
            await load.more(300)
            play.redis.flushall()
            lost = time.monotonic()
            await insist(lambda: sign_up_and_log_in(hand))
            back.append(time.monotonic() - lost)
        log = await load.stop()
        play.all_live()
        # all that it had acknowledged is gone; but everybody still gets one answer
        state = play.state()
        found = [problem for name in ("missing", "doubled", "left_over") for problem in CHECKS[name](log, state, AWAY)]
        assert not found, "\n".join(found)
    assert max(back) <= BACK_SECONDS, f"registration and login worked after {max(back):.1f} s"
    return {"requests": len(log.asked), "flushes": times, "login after s": round(max(back), 2)}


async def redis_stopped(run: Run) -> Figures:
    """Redis hangs for five seconds under load: all are told something in time, and a gateway's memory is bounded."""
    times = run.size(test=1, full=10)
    # some deadlines pass while it hangs
    shape = Shape(owners=16, guessers=64, registrants=4, plain_ms=3000, keyed_ms=4000)
    grown = 0.0
    async with stage(run) as play, Load.on(play.deployment, run.seed, shape) as load:
        for n in range(times):
            run.say(f"{load.requests} requests, {n} of {times} times")
            await load.more(500)
            gateways = play.of("gateway")
            before = [resident_mb(gateway) for gateway in gateways]
            os.kill(play.server.pid, signal.SIGSTOP)
            try:
                stalled = time.monotonic()
                while time.monotonic() < stalled + STALL_SECONDS:
                    grown = max(grown, *(resident_mb(g) - b for g, b in zip(gateways, before, strict=True)))
                    await asyncio.sleep(0.1)
            finally:
                os.kill(play.server.pid, signal.SIGCONT)
            await load.more(500)
        log = await load.stop()
        play.audit(log, AWAY)
        play.all_live()
    assert grown < MOST_GROWN_MB, f"a gateway grew by {grown:.0f} MB while Redis hung"
    return {**play.figures(log), "grown MB": round(grown, 1)}


async def insist(act: Callable[[], Awaitable[object]]) -> None:
    """Again and again until it works."""
    deadline = time.monotonic() + 30
    while True:
        try:
            await act()
            return
        except Lost:
            assert time.monotonic() < deadline, "nothing works any more"
            await asyncio.sleep(AGAIN_SECONDS)


async def sign_up_and_log_in(hand: Visitor) -> None:
    await hand.login(await hand.sign_up())


def resident_mb(process: Process) -> float:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


SCENARIOS: dict[str, Scenario] = {
    "redis_killed": redis_killed,
    "flushall": flushall,
    "redis_stopped": redis_stopped,
}
