"""Work that must not be done: entries that nobody can read, requests that kill, requests that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from redis import Redis

from adapters import names
from adapters.key_files import KeyFiles
from app import entries
from app.client import Answer, Client
from app.keys import Ring
from app.messages import Lane
from app.ports import Entry
from app.sealing import Envelope
from app.settings import Argon2, Secret, read_secrets
from tests.deployment import PASSWORD, Deployment, event_of, new_address
from tests.faults import Figures, Run, Scenario
from tests.faults.ground import (
    AT_ONCE,
    answered_twice,
    embedded,
    entries_of,
    hash_seconds,
    lanes_empty,
    log_in,
    paused,
    register,
    unheard_of,
    until,
)
from tests.test_secrecy import variants

INTERNAL = ("error", "internal")
BURIED_SECONDS = 2.0
DEADLINE_SLACK_SECONDS = 0.5

Fields = dict[bytes, bytes]


# --- entries that nobody can read ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canary:
    """What no letter and no file may show."""

    password: str
    code: str
    key: str

    def shown_in(self, text: bytes) -> bool:
        return any(variant.encode() in text for secret in vars(self).values() for variant in variants(secret))


@dataclass(frozen=True)
class Forge:
    """Makes entries out of genuine ones, with everything that a gateway has, or without the edge secret."""

    sealed: Envelope
    forged: Envelope
    canary: Canary

    @classmethod
    def of(cls, running: Deployment, canary: Canary) -> Forge:
        kid, key = KeyFiles(running.folder / "data").seal_keys(Ring.SEAL, private=False).current
        edge = read_secrets(running.environ, "edge").current
        other = Secret(edge.kid, os.urandom(32))
        sealed, forged = (Envelope.to(kid, key, secret, "request") for secret in (edge, other))
        return cls(sealed, forged, canary)

    def seal(self, genuine: Fields, body: bytes, *, event: str = "", forged: bool = False) -> Fields:
        """An entry in the genuine one's place that holds `body`."""
        envelope = self.forged if forged else self.sealed
        rid, node, said = (genuine[name].decode() for name in (b"r", b"n", b"e"))
        lane = Lane.HASH if said == "login" else Lane.FAST
        entry = Entry(rid, node, event or said, lane, int(genuine[b"d"]), envelope.wrapped, b"", genuine[b"s"].decode())
        box = envelope.seal(body, entries._bound(entry))
        return genuine | {b"e": entry.event.encode(), b"w": envelope.wrapped, b"x": box}

    def body(self, **data: object) -> bytes:
        secret = {"password": self.canary.password, "code": self.canary.code, "refreshToken": self.canary.key}
        origin = {"node": "0-node", "connection": "c", "ip": "192.0.2.1", "network": "192.0.2.1"}
        return orjson.dumps({"data": {**secret, **data}, "origin": origin})


# Each is put in the place of a genuine request whose client waits.
POISONS: dict[str, Callable[[Forge, Fields], Fields]] = {
    "another's envelope": lambda forge, genuine: genuine | {b"w": forge.sealed.wrapped},
    "noise for a box": lambda forge, genuine: genuine | {b"x": os.urandom(64)},
    "no edge secret": lambda forge, genuine: forge.seal(genuine, forge.body(email="a@b.c"), forged=True),
    "more time": lambda forge, genuine: genuine | {b"d": str(int(genuine[b"d"]) + 3_600_000).encode()},
    "not JSON": lambda forge, genuine: forge.seal(genuine, f"{vars(forge.canary)}".encode()),
    "no such event": lambda forge, genuine: forge.seal(genuine, forge.body(email="a@b.c"), event="no_such_event"),
    "does not fit": lambda forge, genuine: forge.seal(genuine, forge.body(email=5, refreshToken=["x"])),
    "not a request": lambda forge, genuine: forge.seal(genuine, orjson.dumps([forge.canary.password])),
}
# Each is nobody's request.
JUNK: list[dict[str, str]] = [
    {"hello": "world"},
    {"r": "0aaaa-half", "n": "node", "e": "login"},
    {"r": "0aaaa-soon", "n": "node", "e": "login", "d": "soon", "s": "", "p": "0", "w": "w", "x": "x"},
]


async def _unreadable(running: Deployment, redis: Redis, canary: Canary, lane: Lane) -> float:
    """One of each among requests of a lane: seconds until all were dead letters."""
    forge, stream, already = Forge.of(running, canary), names.lane(lane), redis.xlen(names.DEAD)
    async with running.client() as neighbour, running.client() as victim:
        address = await register(neighbour)

        def ask(client: Client, key: str | None = None) -> asyncio.Task[Answer]:
            if lane is Lane.FAST:
                asked = client.ask("refresh", refreshToken="x" if client is neighbour else canary.key, key=key)
            else:
                who = address if client is neighbour else new_address()
                password = PASSWORD if client is neighbour else canary.password
                asked = client.ask("login", email=who, password=password, key=key)
            return asyncio.create_task(asked)

        def put(fields: Any) -> None:
            redis.xadd(stream, fields)

        with paused(running):
            # They come first: what a worker blocks for is handed out to it even while it is stopped.
            before = [ask(neighbour) for _ in range(4)]
            await until(lambda: redis.xlen(stream) == 4, "neighbours that wait")
            victims = [ask(victim, f"{canary.key}-{number}") for number in range(len(POISONS))]
            await until(lambda: redis.xlen(stream) == 4 + len(victims), "requests that wait")
            waiting: Any = redis.xrange(stream)
            for (id, genuine), poisoned in zip(waiting[4:], POISONS.values(), strict=True):
                redis.xdel(stream, id)
                put(poisoned(forge, genuine))
            for junk in JUNK:
                put(junk)
            after = [ask(neighbour) for _ in range(4)]
            await until(lambda: redis.xlen(stream) == 8 + len(victims) + len(JUNK), "neighbours that wait")
        began = time.monotonic()
        wanted = already + len(POISONS) + len(JUNK)
        await until(lambda: redis.xlen(names.DEAD) >= wanted, "dead letters", BURIED_SECONDS)
        took = time.monotonic() - began
        told = dict(zip(POISONS, map(event_of, await asyncio.gather(*victims)), strict=True))
        assert set(told.values()) == {INTERNAL}, told
        right = ("login_success", None) if lane is Lane.HASH else ("refresh_failed", "token_invalid")
        neighbours = {event_of(answer) for answer in await asyncio.gather(*before, *after)}
        assert neighbours == {right}, neighbours
        await until(lambda: lanes_empty(redis), "lanes that get empty")
        await asyncio.gather(*(client.ask("refresh", refreshToken="y") for client in (victim, neighbour)))
        assert not answered_twice(victim) and not answered_twice(neighbour), "told two ends"
        assert redis.xlen(names.DEAD) == wanted, "a letter too many"
    return took


def _nothing_shows(running: Deployment, redis: Redis, canary: Canary) -> None:
    letters = entries_of(redis, names.DEAD)
    for letter in letters:
        assert set(letter) <= {b"lane", b"reason", b"r", b"n", b"e", b"d"}, set(letter)
        assert not canary.shown_in(b"\n".join(letter.values())), letter[b"reason"]
    files = [path.read_bytes() for path in (running.folder / "store").rglob("*.aof")]
    assert any(letters[-1][b"reason"] in file for file in files), "the AOF is somewhere else"
    assert not any(canary.shown_in(file) for file in files), "a secret is in the AOF"


# --- a request that kills whoever takes it ---------------------------------------------------------------------------


async def _deadly(running: Deployment, redis: Redis) -> tuple[int, float]:
    """Workers that it killed, and seconds until it was a dead letter."""
    deadly, already, killed = f"poison-{new_address()}", redis.xlen(names.DEAD), 0
    async with running.client() as client, running.client() as neighbour:
        address = await register(neighbour)
        with paused(running):
            # Before and after it, in the same hands: none of them has done anything.
            asked = [asyncio.create_task(log_in(neighbour, address, 30_000)) for _ in range(2)]
            await until(lambda: redis.xlen(names.lane(Lane.HASH)) == 2, "neighbours that wait")
            victim = asyncio.create_task(log_in(client, deadly, 30_000))
            await until(lambda: redis.xlen(names.lane(Lane.HASH)) == 3, "a request that kills")
            asked += [asyncio.create_task(log_in(neighbour, address, 30_000)) for _ in range(4)]
            await until(lambda: redis.xlen(names.lane(Lane.HASH)) == 7, "neighbours that wait")
        began = time.monotonic()

        def buried() -> bool:
            nonlocal killed
            for worker in running.of("worker"):
                if (status := worker.popen.poll()) is not None:
                    assert status == -signal.SIGKILL, worker.log.read_text()
                    running.processes.remove(worker)
                    running.add("worker", FIN_TEST_FAILPOINTS=FAILPOINT)
                    killed += 1
            return redis.xlen(names.DEAD) > already

        await until(buried, "a dead letter of what kills", 25)
        took = time.monotonic() - began
        answer = await victim
        assert event_of(answer) == INTERNAL, answer
        neighbours = [event_of(answer) for answer in await asyncio.gather(*asked)]
        assert set(neighbours) == {("login_success", None)}, f"neighbours of what kills: {neighbours}"
        await until(lambda: lanes_empty(redis), "lanes that get empty")
        await asyncio.gather(*(c.ask("refresh", refreshToken="y") for c in (client, neighbour)))
        assert not answered_twice(client) and not answered_twice(neighbour), "told two ends"
    assert killed == 2, f"{killed} workers were killed: it is not tried a third time"
    [letter] = entries_of(redis, names.DEAD)[already:]
    assert b"3" in letter[b"reason"], letter
    assert not list(redis.scan_iter(names.held("*", "*"))), "reservations that nobody holds"
    return killed, took


FAILPOINT = "checked=1/1@poison-"


async def poison(run: Run) -> Figures:
    """What cannot be read or kills its worker ends as a letter without a secret; its neighbours are served."""
    settings = {**AT_ONCE, "FIN_FAILURES_PER_ACCOUNT": "5", "FIN_FAILURES_PER_IP": "1000"}
    numbers, slowest = run.random, 0.0
    canary = Canary(*(f"{word}-{numbers.getrandbits(128):032x}" for word in ("Pässword", "Code", "key")))
    async with embedded(run.folder / "store") as server:
        with Deployment.start(run.folder, server.url, workers=0, mailers=0, settings=settings) as running:
            for _ in range(2):
                running.add("worker", FIN_TEST_FAILPOINTS=FAILPOINT)
            running.wait_ready(running.of("gateway")[0])
            with Redis.from_url(server.url) as redis:
                for number in range(run.size(test=1, full=20)):
                    for lane in (Lane.FAST, Lane.HASH):  # nobody here is beyond his share
                        run.say(f"unreadable in {lane}, round {number + 1}")
                        slowest = max(slowest, await _unreadable(running, redis, canary, lane))
                killed, took = 0, 0.0
                for number in range(run.size(test=1, full=5)):
                    run.say(f"deadly, round {number + 1}")
                    more, took = await _deadly(running, redis)
                    killed += more
                letters = redis.xlen(names.DEAD)
                _nothing_shows(running, redis, canary)
    return {"letters": letters, "buried_s": round(slowest, 3), "killed": killed, "deadly_s": round(took, 1)}


# --- nobody works ----------------------------------------------------------------------------------------------------


TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def all_dead(run: Run) -> Figures:
    """Without a worker every request is told its deadline, and none is hashed when workers come back."""
    requests, numbers = run.size(test=4, full=25), run.random
    cost = Argon2(65536, 8, 1)  # so that hashing any of what waits takes longer than a worker's start
    settings = {**AT_ONCE, "FIN_ARGON2": f"m={cost.memory_kib},t={cost.passes},p={cost.lanes}"}
    async with embedded(run.folder / "store") as server:
        with (
            Redis.from_url(server.url) as redis,
            Deployment.start(run.folder, server.url, gateways=2, workers=2, mailers=0, settings=settings) as running,
        ):
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(running.client(n)) for n in range(20)]
                address = await register(clients[0])
                workers = running.of("worker")
                started = sum(cpu_seconds(worker.popen.pid) for worker in workers)
                for worker in workers:
                    running.kill(worker)
                await unheard_of(redis)
                audited = redis.xlen(names.EVENTS)

                async def ask(client: Client, timeout_ms: int, keyed: bool) -> float:
                    """Seconds past its deadline."""
                    key, began = secrets.token_urlsafe(18) if keyed else None, time.monotonic()
                    data = {"email": address, "password": PASSWORD if timeout_ms % 3 else "wrong"}
                    answer = await client.ask("login", timeout_ms=timeout_ms, key=key, **data)
                    late = time.monotonic() - began - timeout_ms / 1000
                    assert event_of(answer) == ("error", "deadline_exceeded"), event_of(answer)
                    assert -0.01 < late < DEADLINE_SLACK_SECONDS, f"answered {late:.3f} s after its deadline"
                    return late

                async def visit(client: Client, deadlines: Sequence[int]) -> float:
                    return max([await ask(client, ms, ms % 2 == 0) for ms in deadlines])

                deadlines = [[numbers.randint(300, 3000) for _ in range(requests)] for _ in clients]
                run.say(f"{len(clients) * requests} requests and nobody works")
                slowest = max(await asyncio.gather(*map(visit, clients, deadlines)))
                waiting = sum(redis.xlen(names.lane(lane)) for lane in Lane)
                for _ in range(2):
                    running.add("worker")
                came = time.monotonic()
                await until(lambda: lanes_empty(redis), "lanes that get empty")
                empty = time.monotonic() - came
                assert redis.xlen(names.EVENTS) == audited, "a login that nobody waited for was evaluated"
                cpu = sum(cpu_seconds(worker.popen.pid) for worker in running.of("worker"))
                # half of the requests had a key, so nothing cancelled them
                hashed = (
                    f"{cpu:.1f} s of CPU, and {started:.1f} s for as many workers and one login: something was hashed"
                )
                assert cpu < started + waiting / 4 * hash_seconds(cost), hashed
                assert (await log_in(clients[0], address, 5000)).event == "login_success"
                assert not any(map(answered_twice, clients)), "told two ends"
    asked = len(clients) * requests
    assert waiting > asked / 2, "hardly anything waited"
    figures: Figures = {"requests": asked, "waiting": waiting, "late_s": round(slowest, 3)}
    return figures | {"empty_s": round(empty, 1), "cpu_s": round(cpu, 1)}


# --- nobody waits ----------------------------------------------------------------------------------------------------

ONE_THREAD = {"FIN_ARGON2": "m=65536,t=2,p=1", "FIN_HASH_THREADS": "1", "FIN_FAILURES_PER_ACCOUNT": "5"}


async def no_delay(run: Run) -> Figures:
    """Guesses that expire or are cancelled before their turn count for nothing: the owner logs in at once."""
    guesses, rounds, seconds = 100, run.size(test=1, full=10), list[float]()
    async with embedded(run.folder / "store") as server:
        settings = {**AT_ONCE, **ONE_THREAD, "FIN_MAX_QUEUE": str(2 * guesses)}
        with (
            Redis.from_url(server.url) as redis,
            Deployment.start(run.folder, server.url, mailers=0, settings=settings) as running,
        ):
            async with running.client() as client:
                address = await register(client)
                for number in range(rounds):
                    for way in (_expire, _cancel):
                        run.say(f"round {number + 1}: guesses{way.__name__.replace('_', ' ')}")
                        await way(running, redis, address, guesses // 2)
                        seconds.append(await _owner_enters(redis, client, address))
    return {"guesses": rounds * guesses, "owner_s": round(max(seconds), 3)}


def hashing(redis: Redis) -> int:
    """Requests that wait to be hashed, those beyond a network's share included."""
    return int(sum(redis.xlen(names.lane(lane)) for lane in (Lane.HASH, Lane.SLOW)))


async def guess(client: Client, address: str, timeout_ms: int) -> Answer:
    return await client.ask("login", email=address, password="wrong", timeout_ms=timeout_ms)


async def _expire(running: Deployment, redis: Redis, address: str, guesses: int) -> None:
    with paused(running):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(-(-guesses // 8))]
            await unheard_of(redis)
            asked = [guess(clients[n // 8], address, 500) for n in range(guesses)]
            told = {event_of(answer) for answer in await asyncio.gather(*asked)}
            assert told == {("error", "deadline_exceeded")}, told
            assert hashing(redis) == guesses


async def _cancel(running: Deployment, redis: Redis, address: str, guesses: int) -> None:
    """Others' logins keep the only thread busy until all of those who guess have gone."""
    evaluated = redis.xlen(names.EVENTS)
    async with AsyncExitStack() as others:
        busy = [await others.enter_async_context(running.client()) for _ in range(2)]
        first = [asyncio.create_task(log_in(one, new_address(), 30_000)) for one in busy for _ in range(8)]
        await until(lambda: redis.xlen(names.lane(Lane.HASH)) > 12, "a thread that is busy")
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(-(-guesses // 8))]
            asked = [asyncio.create_task(guess(clients[n // 8], address, 30_000)) for n in range(guesses)]
            await until(lambda: hashing(redis) > guesses, "guesses that wait")
        gone = await asyncio.gather(*asked, return_exceptions=True)
        assert not any(isinstance(end, Answer) for end in gone), "a guess was answered before it was cancelled"
        assert not all(task.done() for task in first), "the thread was not busy for long enough"
        await asyncio.gather(*first)
    await until(lambda: lanes_empty(redis), "lanes that get empty")
    assert redis.xlen(names.EVENTS) == evaluated + len(first), "a guess that nobody waited for was evaluated"


async def _owner_enters(redis: Redis, client: Client, address: str) -> float:
    """Seconds of the owner's login, the first after the guesses."""
    await until(lambda: lanes_empty(redis), "lanes that get empty")
    assert not [redis.hgetall(key) for key in redis.scan_iter(names.limit("account", f"{address}*"))], "a failure"
    assert not list(redis.scan_iter(names.held("*", "*"))), "a reservation"
    began = time.monotonic()
    answer = await log_in(client, address, 5000)
    assert answer.event == "login_success", answer
    return time.monotonic() - began


SCENARIOS: dict[str, Scenario] = {"poison": poison, "all_dead": all_dead, "no_delay": no_delay}
