"""A bench for the scripts: the adapters on an empty database, and the values that tests keep in it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis

from adapters import names
from adapters.redis_link import Batch, Link
from adapters.redis_store import RedisStore
from adapters.redis_streams import TAKEN_OVER_AFTER_MS, RedisGateway, RedisWorker
from app import entries
from app.messages import Code, Lane, LoggedOut, SessionEnded
from app.ports import Admitted, Delivery, Entry, Known, Record, Sealed, SealedMail, Settlement
from app.records import (
    Account,
    Challenge,
    Counts,
    CreateAccount,
    Device,
    Facts,
    Limit,
    Mail,
    Needs,
    Notice,
    Outcome,
    PutChallenge,
    RenewCode,
    Session,
    StartSession,
    Verdict,
    Write,
)
from app.rules import DAY, HOUR, MINUTE
from tests.making import EDGE, EMAIL, account, challenge, device, session

SOON_MS = 10_000


@dataclass
class Bench:
    redis: Any
    batch: Batch
    store: RedisStore
    gateway: RedisGateway
    worker: RedisWorker

    async def now(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def soon(self) -> int:
        return await self.now() + SOON_MS

    async def check(self, needs: Needs, rid: str = "rid") -> Facts:
        facts = await self.store.check(rid, await self.soon(), needs)
        assert isinstance(facts, Facts), facts
        return facts

    async def settle(
        self,
        *writes: Write,
        rid: str | None = None,
        verdict: Verdict = Verdict.PASSED,
        limits: tuple[Limit, ...] = (),
        left: int = 10_000,
        delivery: Sequence[tuple[Any, ...]] = (),
        **more: Any,
    ) -> str:
        """Settle a request of its own, unless it is named."""
        rid = rid or f"rid-{next(numbers)}"
        done = settlement(rid, outcome(*writes, verdict=verdict), limits=limits, **more)
        return await self.keep(rid, await self.now() + left, done, delivery)

    async def keep(self, rid: str, deadline: int, plan: Settlement, delivery: Sequence[Any] = ()) -> str:
        return (await self.store.settle(entry(rid, deadline), plan, delivery, 0.0)).state

    async def admit(self, sent: Entry) -> object:
        return await self.gateway.admit(sent, 0.0)

    async def end(self, delivery: Delivery, plan: Settlement) -> str:
        return await self.worker.settle(delivery, plan, 0.0)

    async def made(self, *writes: Write, **more: Any) -> None:
        assert await self.settle(*writes, **more) == "settled"

    async def snapshot(self) -> dict[bytes, bytes]:
        """Everything there is, to the byte."""
        keys = sorted(await self.redis.keys("*"))
        return {key: await self.redis.dump(key) for key in keys}

    async def living(self, *nodes: str) -> None:
        for node in nodes:
            await self.redis.set(names.NODES + node, "1")

    async def length(self, stream: str) -> int:
        return int(await self.redis.xlen(stream))


numbers = itertools.count(1)


@asynccontextmanager
async def bench(url: str, node: str = "asker", most: int = 2000) -> AsyncIterator[Bench]:
    redis, batch = Redis.from_url(url), Batch(Link(url, "test-worker"))
    store = RedisStore(batch)
    gateway = RedisGateway(Batch(Link(url, "test-gateway")), Link(url, "test-replies"), node, most)
    worker = RedisWorker(batch, store, {lane: Link(url, f"test-{lane}") for lane in Lane}, "consumer")
    try:
        yield Bench(redis, batch, store, gateway, worker)
    finally:
        await gateway.close()
        await worker.close()
        await redis.aclose()


# --- requests and what becomes of them --------------------------------------------------------------------------------


def outcome(*writes: Write, verdict: Verdict = Verdict.PASSED, **more: Any) -> Outcome:
    return Outcome("logged_out", LoggedOut(), verdict, writes=writes, **more)


def settlement(rid: str, done: Outcome, *, limits: tuple[Limit, ...] = (), **more: Any) -> Settlement:
    audit = {"event": done.event, "code": done.code, "request": rid}
    return Settlement(done, limits, Sealed(rid, b"box of " + rid.encode()), audit=audit, **more)


def entry(rid: str = "rid", deadline: int = 0, lane: Lane = Lane.HASH, **more: Any) -> Entry:
    made = Entry(rid, "asker", "login", lane, deadline, b"wrapped\x00\xff", b"box\xfe" + rid.encode())
    return replace(made, **more)


async def taken(parts: Bench, lane: Lane = Lane.HASH, most: int = 10) -> list[Delivery]:
    """What a worker takes; the first time it finds no group and makes it."""
    found = await parts.worker.take(lane, most)
    return list(found or await parts.worker.take(lane, most))


async def in_hand(
    parts: Bench, rid: str = "rid", lane: Lane = Lane.HASH, deadline: int | None = None, **more: Any
) -> Delivery:
    until = await parts.soon() if deadline is None else deadline
    assert isinstance(await parts.admit(entry(rid, until, lane, **more)), Admitted)
    [delivery] = await taken(parts, lane)
    return delivery


async def pending(parts: Bench, lane: Lane = Lane.HASH) -> int:
    return int((await parts.redis.xpending(names.lane(lane), names.GROUP))["pending"])


# --- the same request again -------------------------------------------------------------------------------------------

SAME, JOINED = names.same("mac"), names.joined("mac")


async def ask(parts: Bench, rid: str, same: str = "mac", deadline: int | None = None, **more: Any) -> object:
    """Send a request with a key."""
    until = await parts.soon() if deadline is None else deadline
    return await parts.admit(entry(rid, until, same=same, **more))


def joins(answer: object, formerly: str = "") -> bool:
    """It joined what has a deadline yet."""
    if not isinstance(answer, Known):
        return False
    return (answer.state, answer.formerly) == ("joined", formerly) and 0 < answer.left_ms <= SOON_MS


async def lane_length(parts: Bench) -> int:
    return await parts.length(names.lane(Lane.HASH))


async def known(parts: Bench) -> dict[bytes, bytes]:
    return dict(await parts.redis.hgetall(SAME))


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """An account with two devices and a session, as the store has it."""

    account: Account
    device: Device
    session: Session


async def kept(parts: Bench, **changes: Any) -> Kept:
    now = await parts.now()
    has = account(created=now, locale="pt-BR", terms="2024-01", **changes)
    of, started = device(), session(created=now, seen=now, rotated=now, user_id=has.id, device_name="Anas Gerät “1”")
    await parts.made(CreateAccount(has, None, of))
    await parts.made(StartSession(started, has, None))
    return Kept(has, of, started)


async def put_challenge(parts: Bench, **changes: Any) -> Challenge:
    waits = await new_challenge(parts, **changes)
    await parts.made(PutChallenge(waits))
    return waits


async def new_challenge(parts: Bench, **changes: Any) -> Challenge:
    now = await parts.now()
    return challenge(expires=now + HOUR, code_expires=now + 10 * MINUTE, **changes)


# --- limits -----------------------------------------------------------------------------------------------------------

ACCOUNT = Limit("account", "subject", 5, DAY, Counts.FAILURES, 30_000, 900_000, clears=True, waits=True)
TRIES = Limit("tries", "subject", 3, HOUR, Counts.FAILURES, waits=True)
USES = Limit("uses", "subject", 2, HOUR, Counts.USES)


async def held(parts: Bench, limit: Limit) -> int:
    return int(await parts.redis.zcard(names.held(limit.name, limit.subject)))


async def counted(parts: Bench, limit: Limit) -> int:
    return int(await parts.redis.hget(names.limit(limit.name, limit.subject), "n") or 0)


# --- mails, notices and what is remembered ----------------------------------------------------------------------------

MAIL = Mail("confirmation", EMAIL, "en", "12345678")
MAILS = Limit("mails", EMAIL, 2, HOUR, Counts.USES)
MAILS_IP = Limit("mails_ip", "192.0.2.7", 3, HOUR, Counts.USES)


def sealed_mail(id: str = "0wrk1-mail") -> SealedMail:
    return SealedMail(id, b"wrapped\xff\x00", b"box\xfe")


def record(code: Code | None = None, retry_after_ms: int | None = None, session_id: str = "") -> Record:
    """A recorded outcome, or with a code an error that is not."""
    box = b"outcome\x00\xff" if code is None else None
    return Record("mac", session_id, box, entries.sign_word(EDGE, "mac", code, retry_after_ms))


def notice(reason: str, user_id: str = account().id) -> Notice:
    return Notice(user_id, "s", SessionEnded(session_id="s", reason=reason), ("node-a", "one"), close=True)


HERE = ("node-a", "one")


async def resend(parts: Bench, renewed: Challenge, *limits: Limit) -> str:
    """Mail a new code for a challenge."""
    rid = f"rid-{next(numbers)}"
    plan = settlement(rid, outcome(if_mailed=(RenewCode(renewed),)), mails=((MAIL, sealed_mail(), limits),))
    return await parts.keep(rid, await parts.soon(), plan)


# --- workers ----------------------------------------------------------------------------------------------------------


def another(parts: Bench, url: str, name: str) -> RedisWorker:
    return RedisWorker(parts.batch, parts.store, {}, name)


async def hung(parts: Bench, delivery: Delivery, consumer: str = "dead") -> None:
    """Another consumer has held it for longer than any work takes."""
    idle = ("IDLE", TAKEN_OVER_AFTER_MS + 1, "RETRYCOUNT", 1)
    await parts.redis.execute_command(
        "XCLAIM", names.lane(delivery.lane), names.GROUP, consumer, 0, delivery.token, *idle
    )


async def consumers(parts: Bench) -> dict[bytes, int]:
    found = await parts.redis.xinfo_consumers(names.lane(Lane.HASH), names.GROUP)
    return {info["name"]: info["pending"] for info in found}
