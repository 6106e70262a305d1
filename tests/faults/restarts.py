"""A rolling restart; and, from tests/faults/clocks.py, clocks that are wrong."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis import Redis

from adapters import names
from app.client import PROGRESS, Answer, Steady, steady
from app.messages import Lane
from app.settings import Argon2
from tests.deployment import PASSWORD, Deployment, Process, event_of, new_address
from tests.faults import Figures, Run, Scenario, clocks
from tests.faults.ground import embedded, entries_of, hash_seconds, http_status, paused, until

COST = {"FIN_ARGON2": "m=19456,t=2,p=1"}  # the default: a load is half of what the machine can hash
DRAIN_SECONDS = 15.0
SLOWEST_SECONDS = 4.5  # what a worker neither ends nor hands back is taken over after five
VISITORS = 12


@dataclass
class Line:
    """Watches a client. `cut`: what it sent before it was told that its gateway goes, and got no answer to."""

    cut: int = 0
    _open: set[str] = field(default_factory=set)
    _draining: bool = False

    def __call__(self, way: str, raw: bytes) -> None:
        frame = orjson.loads(raw)
        if way == "→":
            self._open |= set() if self._draining else {frame["id"]}
        elif frame["event"] == "connected":  # anew: the one before has ended
            self.cut += len(self._open)
            self._open, self._draining = set(), False
        elif frame["event"] == "draining":
            self._draining = True
        elif frame["event"] not in PROGRESS:
            self._open.discard(frame.get("id"))


@dataclass
class Visitors:
    """Clients that outlive their connections, and how long each answer took, in seconds."""

    running: Deployment
    urls: list[str]
    took: list[float] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    logins: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def client(self) -> AbstractAsyncContextManager[Steady]:
        self.lines.append(Line())
        return steady(*self.urls, watch=self.lines[-1])

    async def ask(self, client: Steady, event: str, success: str, **data: Any) -> Answer:
        began = time.monotonic()
        answer = await client.ask(event, **data)
        self.took.append(time.monotonic() - began)
        assert answer.event == success, (event, event_of(answer))
        return answer

    async def sign_up(self, client: Steady) -> str:
        address = new_address()
        challenge = (await self.ask(client, "register", "register_accepted", email=address, password=PASSWORD)).data
        code = await self.running.mailed_code(address)
        await self.ask(client, "confirm_email", "email_confirmed", challenge=challenge["challenge"], code=code)
        return address

    async def work(self, pause: float) -> None:
        """Sign up, then log in, refresh and look around, at a pace."""
        async with self.client() as client:
            address = await self.sign_up(client)
            while not self.stopping.is_set():
                await self.ask(client, "login", "login_success", email=address, password=PASSWORD)
                self.logins += 1
                assert client.tokens is not None
                await self.ask(client, "refresh", "token_refreshed", refreshToken=client.tokens["refreshToken"])
                await self.ask(client, "account", "account")
                await self.ask(client, "sessions", "sessions")
                await asyncio.sleep(pause)

    async def arrive(self, pause: float) -> None:
        """One sign-up after another: mails too are sent throughout."""
        async with self.client() as client:
            while not self.stopping.is_set():
                await self.sign_up(client)
                await asyncio.sleep(pause)


async def rolling_restart(run: Run) -> Figures:
    """Every process is replaced while clients are at work: no request fails."""
    restarts, slowest = 0, 0.0
    async with embedded(run.folder / "store") as server:
        with (
            Redis.from_url(server.url) as redis,
            Deployment.start(run.folder, server.url, gateways=2, workers=2, settings=COST) as running,
        ):
            visitors = Visitors(running, [running.url(n) for n in range(2)])
            pause = VISITORS * hash_seconds(Argon2()) / len(os.sched_getaffinity(0)) * 2
            async with asyncio.TaskGroup() as group:
                for _ in range(VISITORS):
                    group.create_task(visitors.work(pause))
                group.create_task(visitors.arrive(1.0))
                for number in range(run.size(test=1, full=3)):
                    for role, replace in (("worker", _succeed), ("mailer", _succeed), ("gateway", _in_place)):
                        for old in running.of(role):
                            before = len(visitors.took)
                            await until(lambda: len(visitors.took) > before + VISITORS, "clients at work")  # noqa: B023
                            run.say(f"round {number + 1}: a {role}, {before} requests so far")
                            slowest = max(slowest, await replace(running, old, redis))
                            restarts += 1
                before = len(visitors.took)
                await until(lambda: len(visitors.took) > before + 2 * VISITORS, "clients at work")
                visitors.stopping.set()
            evaluated = [entry for entry in entries_of(redis, names.EVENTS) if entry[b"event"] == b"login_success"]
            assert len(evaluated) == visitors.logins, "a login was evaluated twice"
            assert not redis.xlen(names.DEAD)
            assert max(visitors.took) < SLOWEST_SECONDS, f"an answer took {max(visitors.took):.1f} s"
            assert not any(line.cut for line in visitors.lines), "a gateway went with requests in hand"
    figures: Figures = {"requests": len(visitors.took), "restarts": restarts}
    return figures | {"slowest_s": round(max(visitors.took), 2), "drain_s": round(slowest, 2)}


async def _succeed(running: Deployment, old: Process, redis: Redis) -> float:
    """Its successor is at work before it is told to end; seconds that took."""
    new = running.add(old.role)
    await until(
        lambda: any(f":{new.popen.pid}:" in name for name in _at_work(redis, old.role)), f"a new {old.role}", 20
    )
    return await _drained(running, old)


async def _in_place(running: Deployment, old: Process, redis: Redis) -> float:
    """A gateway, on the same port: it has to go first, and with requests in hand."""
    with paused(running):
        await until(lambda: sum(redis.xlen(names.lane(lane)) for lane in Lane) > VISITORS / 2, "requests in hand")
        old.terminate()
        await until(lambda: http_status(old.port, "/readyz") != 200, "a gateway that drains")
    took = await _drained(running, old)
    new = running.add("gateway", port=old.port)
    await until(lambda: http_status(new.port, "/readyz") == 200, "a gateway that is ready", 20)
    return took


def _at_work(redis: Redis, role: str) -> list[str]:
    found: Any
    if role == "worker":
        found = redis.hkeys(names.WORKERS)
    else:
        found = [consumer["name"] for consumer in redis.xinfo_consumers(names.MAIL, names.MAIL_GROUP)]
    return [name.decode() for name in found]


async def _drained(running: Deployment, process: Process) -> float:
    began = time.monotonic()
    process.terminate()
    await until(lambda: process.popen.poll() is not None, f"{process.log.name} ends", DRAIN_SECONDS)
    assert process.popen.returncode == 0, process.log.read_text()
    running.processes.remove(process)
    return time.monotonic() - began


SCENARIOS: dict[str, Scenario] = {"rolling_restart": rolling_restart, **clocks.SCENARIOS}
