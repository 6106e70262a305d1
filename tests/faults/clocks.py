"""Clocks that are wrong, and one that jumps."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import orjson
from redis import Redis

from adapters import names
from app.client import Answer, Client, Verifier
from app.messages import Lane
from tests.deployment import PASSWORD, Account, Deployment, Process, event_of, new_address
from tests.faults import Figures, NotPossible, Run, Scenario
from tests.faults.ground import embedded, entries_of, log_in, paused, redis_on, until

HOUR = 3600.0
NEAR_SECONDS = 5.0
HEALED_SECONDS = 2.0
STEP_SECONDS = 59 * 60  # past every deadline, code, token and grace; a pending registration lives an hour


def faked(**how: str) -> dict[str, str]:
    """Environment of a process whose time of day is wrong; its stop-watch is right."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if found is None:
        raise NotPossible("libfaketime is not installed")
    # With the C library's malloc: Debian's Redis uses jemalloc, which asks for the time before that can be faked.
    return {"LD_PRELOAD": f"{found} libc.so.6", "DONT_FAKE_MONOTONIC": "1", **how}


def redis_time(redis: Redis) -> float:
    now: Any = redis.time()
    return float(now[0] + now[1] / 1e6)


def check_token(redis: Redis, access_token: str) -> None:
    claims = jwt.decode(access_token, options={"verify_signature": False})
    assert abs(claims["iat"] - redis_time(redis)) < NEAR_SECONDS and claims["exp"] == claims["iat"] + 600, claims


async def _unheard(running: Deployment, redis: Redis, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """A request that no worker looks at before its deadline; nor is it evaluated then."""
    before = _logins(redis)
    with paused(running):
        answer = await ask()
    await until(lambda: not redis.xlen(names.lane(Lane.HASH)), "a lane that gets empty")
    assert _logins(redis) == before, "work that had expired was hashed"
    return answer


def _logins(redis: Redis) -> list[bytes]:
    """The request ids of all that were evaluated."""
    ends = (b"login_success", b"login_failure")
    return [entry[b"request"] for entry in entries_of(redis, names.EVENTS) if entry[b"event"] in ends]


async def clock_of_roles(run: Run) -> Figures:
    """Whatever time processes believe it is, all lifetimes go by Redis's clock."""
    shifts = ("-1h", "+1h")
    async with embedded(run.folder / "store") as server:
        with (
            Redis.from_url(server.url) as redis,
            Deployment.start(run.folder, server.url, gateways=0, workers=0, mailers=0) as running,
        ):
            _add(running, "mailer", "+1h")
            gateway = _add(running, "gateway", "+1h")
            await asyncio.to_thread(running.wait_listening, gateway)
            _check_shift(gateway, HOUR)
            for shift in shifts:
                run.say(f"a worker at {shift}")
                async with running.client() as client:
                    waiting = [asyncio.create_task(log_in(client, new_address(), 20_000)) for _ in range(4)]
                    await until(lambda: redis.xlen(names.lane(Lane.HASH)) == 4, "requests that wait for a worker")
                    worker = _add(running, "worker", shift)
                    told = {event_of(answer) for answer in await asyncio.gather(*waiting)}
                    assert told == {("login_failure", "invalid_credentials")}, told
                _check_shift(worker, HOUR if shift == "+1h" else -HOUR)
                await asyncio.to_thread(running.wait_ready, gateway)
                await _journey(running, redis)
                assert await asyncio.to_thread(worker.end) == 0
                running.processes.remove(worker)
            for shift in shifts:
                _add(running, "worker", shift)
            await until(lambda: redis.hget(names.CAPACITY, "workers") == b"2", "both workers", 20)
            await _journey(running, redis)
            late = await _deadline(running, redis)
    return {"shifts": "gateway +1h, workers -1h +1h", "journeys": 3, "late_s": round(late, 3)}


def _add(running: Deployment, role: str, shift: str) -> Process:
    settings: dict[str, Any] = faked(FAKETIME=shift)
    return running.add(role, **settings)


def _check_shift(process: Process, seconds: float) -> None:
    """By the time it logs: else nothing would be proved."""
    logged = orjson.loads(process.log.read_bytes().splitlines()[0])["time"]
    assert abs(datetime.fromisoformat(logged).timestamp() - time.time() - seconds) < 60, logged


async def _journey(running: Deployment, redis: Redis) -> None:
    [gateway] = running.of("gateway")
    async with running.client() as client, running.client() as other:
        said = datetime.fromisoformat(client.hello["serverTime"]).timestamp()
        assert abs(said - redis_time(redis)) < NEAR_SECONDS, client.hello
        accepted = await client.ask("register", email=(address := new_address()), password=PASSWORD)
        mailed: Any = redis.hget(names.CHALLENGES + accepted.data["challenge"], "code_expires")
        assert abs(int(mailed) / 1000 - redis_time(redis) - 600) < NEAR_SECONDS, mailed
        code = await running.mailed_code(address)
        confirmed = await client.ask("confirm_email", challenge=accepted.data["challenge"], code=code)
        assert confirmed.event == "email_confirmed", event_of(confirmed)
        login = await log_in(client, address, 10_000)
        assert login.event == "login_success", event_of(login)
        check_token(redis, login.data["accessToken"])
        verifier = Verifier(
            "http://login.test", "finthenticate", jwks_url=f"http://127.0.0.1:{gateway.port}/.well-known/jwks.json"
        )
        await asyncio.to_thread(verifier.verify, login.data["accessToken"])
        authenticated = await other.ask("authenticate", accessToken=login.data["accessToken"])
        assert authenticated.event == "authenticated" and 590 <= authenticated.data["expiresIn"] <= 600, authenticated
        refreshed = await client.ask("refresh", refreshToken=login.data["refreshToken"])
        assert refreshed.event == "token_refreshed", f"a session that lives: {event_of(refreshed)}"
        check_token(redis, refreshed.data["accessToken"])
        [session] = (await other.ask("sessions")).data["sessions"]
        assert abs(datetime.fromisoformat(session["createdAt"]).timestamp() - redis_time(redis)) < NEAR_SECONDS
        assert (await client.ask("logout")).event == "logged_out"


async def _deadline(running: Deployment, redis: Redis) -> float:
    """Seconds that an answer came after its deadline."""
    async with running.client() as client:
        began = time.monotonic()
        answer = await _unheard(running, redis, lambda: log_in(client, new_address(), 400))
        late = time.monotonic() - began - 0.4
    assert event_of(answer) == ("error", "deadline_exceeded") and late < 1.0, (event_of(answer), late)
    return late


# --- the store's own clock -------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Of a Redis server, in seconds ahead of the true one; read by it at every look at the time."""

    path: Path

    def set(self, seconds: int) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(f"{seconds:+}\n")
        draft.replace(self.path)

    def environ(self) -> dict[str, str]:
        return dict(os.environ) | faked(FAKETIME_TIMESTAMP_FILE=str(self.path), FAKETIME_NO_CACHE="1")


@dataclass(frozen=True)
class Before:
    """What there was before the clock jumped."""

    account: Account
    challenge: str
    code: str
    access_token: str
    live: str  # a refresh token of a session that goes on
    rotated: str  # one that was rotated just now: for ten seconds it would get its successor again
    entry: dict[bytes, bytes]  # of a request that is settled: its deadline is 30 s away


async def clock_of_redis(run: Run) -> Figures:
    """Redis's clock jumps an hour ahead: what that expires has expired. It jumps back: that stays so."""
    clock = Clock(run.folder / "clock")
    clock.set(0)
    (store := run.folder / "store").mkdir()
    async with redis_on(store, clock.environ()) as url:
        with Redis.from_url(url) as redis, Deployment.start(run.folder, url, workers=2) as running:
            run.say("before")
            before, ahead = await _before(running, redis), 0.0
            run.say("an hour ahead")
            async with running.client() as client, running.client() as other:

                async def jumps_while_it_waits() -> Answer:
                    nonlocal ahead
                    asked = asyncio.create_task(log_in(client, before.account.email, 3000))
                    await until(lambda: redis.xlen(names.lane(Lane.HASH)), "a request that waits")
                    clock.set(STEP_SECONDS)
                    await until(lambda: redis_time(redis) - time.time() > STEP_SECONDS - 60, "a clock that jumps")
                    for worker in running.of("worker"):
                        worker.go_on()
                    ahead = await _heals(other)
                    return await asked

                answer = await _unheard(running, redis, jumps_while_it_waits)
                assert event_of(answer) == ("error", "deadline_exceeded"), event_of(answer)
            live = await _expired(running, redis, before)
            run.say("back again")
            clock.set(0)
            await until(lambda: abs(redis_time(redis) - time.time()) < 60, "a clock that jumps back")
            began = time.monotonic()
            await _still_expired(running, redis, before, live)
            back = time.monotonic() - began
    return {"step_s": STEP_SECONDS, "ahead_s": round(ahead, 1), "back_s": round(back, 1)}


async def _heals(client: Client) -> float:
    """Seconds until a request is in time again; a gateway looks at the store's clock each second."""
    began = time.monotonic()
    while event_of(await client.ask("refresh", refreshToken="x")) != ("refresh_failed", "token_invalid"):
        assert time.monotonic() - began < HEALED_SECONDS, "requests that are too late at once"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def _before(running: Deployment, redis: Redis) -> Before:
    async with running.client() as client, running.client() as waits:
        account = await running.sign_up(client)
        pending = await client.ask("register", email=(address := new_address()), password=PASSWORD)
        code = await running.mailed_code(address)
        live, other = [await account.login(client) for _ in range(2)]
        with paused(running):
            asked = asyncio.create_task(log_in(waits, account.email, 30_000))
            [entry] = await until(lambda: entries_of(redis, names.lane(Lane.HASH)), "a request that waits")
        assert (await asked).event == "login_success"
        rotated = await client.ask("refresh", refreshToken=other.data["refreshToken"])
        assert rotated.event == "token_refreshed", event_of(rotated)
    return Before(
        account=account,
        challenge=pending.data["challenge"],
        code=code,
        access_token=live.data["accessToken"],
        live=live.data["refreshToken"],
        rotated=other.data["refreshToken"],
        entry=entry,
    )


async def _expired(running: Deployment, redis: Redis, before: Before) -> str:
    """The refresh token of the session that lives on."""
    async with running.client() as client:
        await _code_is_dead(client, before)
        authenticated = await client.ask("authenticate", accessToken=before.access_token)
        assert event_of(authenticated) == ("authentication_failed", "token_expired"), event_of(authenticated)
    return await _all_works(running, redis, before.account, before.live)


async def _code_is_dead(client: Client, before: Before) -> None:
    confirmed = await client.ask("confirm_email", challenge=before.challenge, code=before.code)
    assert event_of(confirmed) == ("email_confirmation_failed", "code_expired"), f"a code: {event_of(confirmed)}"


async def _all_works(running: Deployment, redis: Redis, account: Account, refresh_token: str) -> str:
    """A login, its tokens over both transports, and a session that goes on: its next refresh token."""
    async with running.client() as client, running.client() as other, running.over("rest").client() as rest:
        login = await account.login(client)
        check_token(redis, login.data["accessToken"])
        authenticated = await other.ask("authenticate", accessToken=login.data["accessToken"])
        assert authenticated.event == "authenticated", f"a token just issued: {event_of(authenticated)}"
        await account.login(rest)
        told = await rest.ask("account")
        assert told.event == "account", f"a REST call with a token just issued: {event_of(told)}"
        refreshed = await client.ask("refresh", refreshToken=refresh_token)
        assert refreshed.event == "token_refreshed", f"a session that lives: {event_of(refreshed)}"
        check_token(redis, refreshed.data["accessToken"])
    return str(refreshed.data["refreshToken"])


async def _still_expired(running: Deployment, redis: Redis, before: Before, live: str) -> None:
    """But for access tokens, which are dated by Redis's own clock: others verify them by theirs."""
    async with running.client() as client:
        reused = await client.ask("refresh", refreshToken=before.rotated)  # first: its ten seconds are short
        assert event_of(reused) == ("refresh_failed", "token_reused"), f"a rotated token: {event_of(reused)}"
        fields: Any = before.entry
        redis.xadd(names.lane(Lane.HASH), fields)
        await _code_is_dead(client, before)
    await _all_works(running, redis, before.account, live)
    await until(lambda: not redis.xlen(names.lane(Lane.HASH)), "a lane that gets empty")
    assert _logins(redis).count(before.entry[b"r"]) == 1, "a settled request was evaluated a second time"


SCENARIOS: dict[str, Scenario] = {"clock_of_roles": clock_of_roles, "clock_of_redis": clock_of_redis}
