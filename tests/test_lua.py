"""The scripts on a real Redis: what each header says, and all or nothing under repetition, conflict and time."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from adapters import lua, names
from adapters.redis_link import MAX_PIPELINE, MOST_WAITING, Batch, Command, Link
from adapters.redis_mail import mail_queue
from adapters.redis_state import MOST_JOINED, WORKER_LIVES_MS
from adapters.redis_store import RECLAIM_MS, RECORD_KEPT_MS, RedisStore
from adapters.redis_streams import (
    SPOKEN_FOR_MS,
    TAKEN_OVER_AFTER_MS,
    RedisGateway,
    RedisWorker,
)
from app import entries
from app.messages import Code, EmailConfirmed, Lane, LoggedOut, SessionEnded, refusal
from app.ports import (
    Admitted,
    Delivery,
    Entry,
    Expired,
    Full,
    Known,
    LaneVitals,
    Record,
    Sealed,
    SealedMail,
    Settlement,
    Signed,
    State,
    Unavailable,
    Vitals,
)
from app.records import (
    Account,
    Challenge,
    ConfirmSession,
    Counts,
    CreateAccount,
    Device,
    EndSession,
    Facts,
    Identity,
    Limit,
    Mail,
    Needs,
    Notice,
    Outcome,
    PutChallenge,
    Recorded,
    RenewedCode,
    RotateSession,
    Session,
    StartSession,
    UpgradePassword,
    Verdict,
    Write,
)
from app.rules import DAY, HOUR, MINUTE, SESSIONS_PER_ACCOUNT
from tests.making import EDGE, EMAIL, account, challenge, device, session

SOON_MS = 10_000

# --- what the headers say -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interface:
    """What a script takes: numbers of KEYS and ARGV, and the names of the fields of its msgpack maps."""

    keys: frozenset[str]
    args: frozenset[str]
    fields: frozenset[str]


def documented(text: str) -> Interface:
    lines = list(itertools.takewhile(lambda line: line.startswith("--"), text.splitlines()))
    head = "\n".join(lines)
    fields = [name for line in lines if (found := re.match(r"--   ([a-z_]+(?:, [a-z_]+)*) ", line))
              for name in found[1].split(", ")]  # fmt: skip
    return Interface(
        frozenset(re.findall(r"^-- KEYS\[(\d+)\] \S", head, re.MULTILINE)),
        frozenset(re.findall(r"^-- ARGV\[(\d+(?:\.\.\.)?)\] \S", head, re.MULTILINE)),
        frozenset(fields),
    )


def used(text: str) -> Interface:
    body = "\n".join(line.partition("--")[0] for line in text.splitlines())
    maps = re.findall(r"local (\w+) = cmsgpack\.unpack\(ARGV\[\d+\]\)", body)
    fields = [name for map_ in maps for name in re.findall(rf"\b{map_}\.(\w+)", body)]
    rest = [f"{number}..." for number in re.findall(r"(?:unpack\(ARGV, |for n = )(\d+)(?:\)|, #ARGV do)", body)]
    return Interface(
        frozenset(re.findall(r"KEYS\[(\d+)\]", body)),
        frozenset(re.findall(r"ARGV\[(\d+)\]", body) + rest),
        frozenset(fields),
    )


@pytest.mark.parametrize("script", lua.SCRIPTS, ids=lambda script: script.name)
def test_the_header_of_a_script_says_exactly_what_its_body_takes(script: lua.Script) -> None:
    assert documented(script.source) == used(script.source)
    assert re.search(r"^-- Returns ", script.source, re.MULTILINE)


def test_every_script_of_the_folder_is_loaded_and_named_by_its_hash() -> None:
    folder = Path(str(lua.__file__)).parent
    assert {path.stem for path in folder.glob("*.lua")} == {"clock", *(script.name for script in lua.SCRIPTS)}
    assert len({script.sha for script in lua.SCRIPTS}) == len(lua.SCRIPTS)


SMALL = """-- A script.
-- KEYS[1] a key
-- ARGV[1] msgpack map:
--   rid     an id
--   a, b_c  two more, of which
--     this  is the explanation
-- ARGV[2...] the rest
-- Returns 1
local ask = cmsgpack.unpack(ARGV[1]) -- ask.said KEYS[9]
redis.call('SET', KEYS[1], ask.rid .. ask.a .. ask.b_c, unpack(ARGV, 2))
"""


def test_the_reading_of_headers_finds_what_is_there() -> None:
    expected = Interface(frozenset("1"), frozenset({"1", "2..."}), frozenset({"rid", "a", "b_c"}))
    assert documented(SMALL) == used(SMALL) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-- KEYS[1] a key\n", ""),
        ("-- KEYS[1] a key\n", "-- KEYS[1] a key\n-- KEYS[2] nobody's\n"),
        ("-- ARGV[2...] the rest\n", ""),
        ("ARGV, 2", "ARGV, 3"),
        ("--   rid     an id\n", ""),
        ("--   a, b_c  two", "--   a, b_c, d  three"),
        ("ask.b_c", "ask.rid"),
        ("KEYS[1], ask", "KEYS[2], ask"),
    ],
)
def test_a_header_that_says_something_else_is_found(before: str, after: str) -> None:
    changed = SMALL.replace(before, after)
    assert changed != SMALL
    assert documented(changed) != used(changed)


# --- a bench: the adapters on an empty database -------------------------------------------------------------------


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
        rid = rid or f"rid-{next(_numbers)}"
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


_numbers = itertools.count(1)


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


# --- admit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"same": "mac"}, {"same": "mac", "replay": True}],
    ids=["without a key", "with a key", "a question for a replay"],
)
async def test_an_admitted_entry_arrives_at_a_worker_as_it_was_sent(redis_url: str, more: dict[str, Any]) -> None:
    async with bench(redis_url) as parts:
        sent = entry(deadline=await parts.soon(), **more)
        assert await parts.admit(sent) == Admitted(place=1, position=1, eta_ms=None)
        [delivery] = await taken(parts)
        assert (delivery.entry, delivery.lane, delivery.deliveries) == (sent, Lane.HASH, 1)


@pytest.mark.parametrize(
    ("here", "slots", "rate", "expected"),
    [
        pytest.param(0, 2, 100, Admitted(1, 0, 10), id="nobody waits"),
        pytest.param(1, 2, 100, Admitted(1, 0, 20), id="the last free slot"),
        pytest.param(2, 2, 100, Admitted(1, 1, 30), id="the first to wait"),
        pytest.param(6, 2, 100, Admitted(1, 5, 70), id="the fifth to wait"),
        pytest.param(9, 2, 0.5, Full(8_000), id="no answer before the deadline"),
        pytest.param(19, 2, 2, Admitted(1, 18, 10_000), id="an answer just before the deadline"),
        pytest.param(20, 2, 1000, Full(10), id="full by count: half of it has to go"),
        pytest.param(20, 0, 0, Full(None), id="full by count, and nobody works"),
        pytest.param(0, 1, 0.01, Admitted(1, 0, 100_000), id="a free slot, however slow"),
        pytest.param(0, 0, 0, Admitted(1, 1, None), id="nobody works"),
        pytest.param(3, 0, 0, Admitted(1, 4, None), id="nobody works, three wait"),
    ],
)
async def test_a_request_is_admitted_with_its_place_or_refused_by_count_or_by_time(
    redis_url: str, here: int, slots: int, rate: float, expected: Admitted | Full
) -> None:
    async with bench(redis_url, most=20) as parts:
        lane = names.lane(Lane.HASH)
        for _ in range(here):
            await parts.redis.xadd(lane, {"r": "other"})
        if slots:
            await parts.redis.hset(names.CAPACITY, mapping={"hash:slots": slots, "hash:rate": rate})
        found = await parts.admit(entry(deadline=await parts.now() + 12_000))
        if expected == Full(8_000):  # an ETA of 20 s, less the 12 s that are left
            assert isinstance(found, Full)
            assert found.retry_after_ms is not None
            assert 8_000 <= found.retry_after_ms < 11_000
        else:
            assert found == expected
        admitted = isinstance(expected, Admitted)
        assert await parts.length(lane) == here + admitted
        assert int(await parts.redis.get(names.lane_count(Lane.HASH)) or 0) == admitted


async def test_one_lane_knows_nothing_of_the_other(redis_url: str) -> None:
    async with bench(redis_url, most=1) as parts:
        deadline = await parts.soon()
        assert isinstance(await parts.admit(entry("1", deadline)), Admitted)
        assert isinstance(await parts.admit(entry("2", deadline)), Full)
        assert isinstance(await parts.admit(entry("3", deadline, Lane.FAST)), Admitted)


@pytest.mark.parametrize("left", [0, -1, -60_000])
async def test_what_comes_after_its_deadline_is_not_admitted(redis_url: str, left: int) -> None:
    async with bench(redis_url) as parts:
        assert isinstance(await parts.admit(entry(deadline=await parts.now() + left)), Expired)
        assert await parts.length(names.lane(Lane.HASH)) == 0


async def test_places_are_numbered_in_the_order_of_the_lane(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        found = await asyncio.gather(*(parts.admit(entry(str(n), deadline)) for n in range(50)))
        places = {str(n): answer.place for n, answer in enumerate(found) if isinstance(answer, Admitted)}
        order = [delivery.entry.rid for delivery in await taken(parts, most=50) if delivery.entry]
        assert sorted(places, key=lambda rid: places[rid]) == order
        assert sorted(places.values()) == list(range(1, 51))


# --- admit: the same request again --------------------------------------------------------------------------------

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


async def test_the_same_request_joins_the_one_that_is_pending(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        assert isinstance(await ask(parts, "first", deadline=deadline), Admitted)
        for rid, node in (("second", "asker"), ("third", "node-b")):
            assert joins(await ask(parts, rid, node=node, deadline=deadline + 5000))
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker second", b"node-b third"]
        assert await known(parts) == {b"state": b"pending", b"rid": b"first", b"until": str(deadline).encode()}
        for key in (SAME, JOINED):
            assert await parts.redis.pexpiretime(key) == deadline + RECLAIM_MS
        assert await lane_length(parts) == 1
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"1"


async def test_eight_may_join_and_a_ninth_is_too_many(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        found = await asyncio.gather(*(ask(parts, f"{n}", deadline=deadline) for n in range(20)))
        assert isinstance(found[0], Admitted)
        assert all(joins(answer) for answer in found[1:9])
        assert found[9:] == [Known("crowded")] * 11
        assert MOST_JOINED == 8
        assert (await parts.redis.llen(JOINED), await lane_length(parts)) == (8, 1)


async def test_a_request_is_the_same_under_its_former_names(redis_url: str) -> None:
    """One gateway has the new edge secret as its current one already, the other has not."""
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        assert joins(await ask(parts, "second", same="new", formerly=("older", "mac")), "mac")
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker second"]
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        assert await ask(parts, "third", same="new", formerly=("mac",)) == Known("done", "mac")
        assert not await parts.redis.exists(names.same("new"), names.joined("new"), JOINED)
        assert isinstance(await ask(parts, "fourth", same="new", formerly=("older",)), Admitted)
        assert joins(await ask(parts, "fifth", same="older", formerly=("new",)), "new")
        assert joins(await ask(parts, "sixth", same="new", formerly=("mac",))), "its current name first"


async def test_a_full_lane_lets_the_same_request_join_and_keeps_nothing_of_a_new_one(redis_url: str) -> None:
    async with bench(redis_url, most=1) as parts:
        assert isinstance(await ask(parts, "first"), Admitted)
        assert joins(await ask(parts, "second"))
        assert isinstance(await ask(parts, "third", same="other"), Full)
        assert not await parts.redis.exists(names.same("other"), names.joined("other"))


async def test_what_comes_after_its_deadline_neither_joins_nor_is_known(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        past = await parts.now()
        assert isinstance(await ask(parts, "late", deadline=past), Expired)
        assert await known(parts) == {}
        await ask(parts, "first")
        assert isinstance(await ask(parts, "late", deadline=past), Expired)
        assert not await parts.redis.exists(JOINED)


@pytest.mark.parametrize("ago", [0, 1, 14_000])
async def test_a_pending_request_whose_deadline_has_passed_is_replaced_with_all_who_joined_it(
    redis_url: str, ago: int
) -> None:
    async with bench(redis_url) as parts:
        await ask(parts, "first")
        await ask(parts, "joined")
        await parts.redis.hset(SAME, "until", await parts.now() - ago)
        deadline = await parts.soon()
        assert isinstance(await ask(parts, "second", deadline=deadline), Admitted)
        assert await known(parts) == {b"state": b"pending", b"rid": b"second", b"until": str(deadline).encode()}
        assert await parts.redis.pexpiretime(SAME) == deadline + RECLAIM_MS
        assert not await parts.redis.exists(JOINED)
        assert joins(await ask(parts, "third"))
        assert await parts.redis.lrange(JOINED, 0, -1) == [b"asker third"]
        assert await lane_length(parts) == 2


async def test_a_request_without_a_key_or_with_another_one_never_joins(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for rid, same in (("1", ""), ("2", ""), ("3", "mac"), ("4", "cam")):
            assert isinstance(await ask(parts, rid, same=same), Admitted)
        assert sorted(await parts.redis.keys("*same*")) == sorted([SAME.encode(), names.same("cam").encode()])


@pytest.mark.parametrize("state", ["unknown", "pending", "done"])
async def test_a_question_for_a_replay_is_queued_whatever_is_known_and_changes_nothing_of_it(
    redis_url: str, state: str
) -> None:
    async with bench(redis_url) as parts:
        if state != "unknown":
            delivery = await in_hand(parts, same="mac")
            if state == "done":
                await parts.end(delivery, settlement("rid", outcome(), record=record()))
        before = await parts.redis.dump(SAME)
        for rid in ("one", "other"):
            assert isinstance(await ask(parts, rid, lane=Lane.FAST, replay=True), Admitted)
        assert await parts.redis.dump(SAME) == before
        assert not await parts.redis.exists(JOINED)
        assert await parts.length(names.lane(Lane.FAST)) == 2


async def test_a_request_whose_outcome_is_recorded_is_done_until_it_is_forgotten(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        for _ in range(2 * MOST_JOINED):
            assert await ask(parts, "again") == Known("done")
        assert (await parts.redis.exists(JOINED), await lane_length(parts)) == (0, 0)
        await parts.redis.delete(SAME)  # as its ten minutes do
        assert isinstance(await ask(parts, "later"), Admitted)


# --- NOSCRIPT -----------------------------------------------------------------------------------------------------


async def test_scripts_that_the_server_has_lost_are_loaded_again_and_each_runs_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        await parts.admit(entry("0", deadline))
        for _ in range(2):
            await parts.redis.script_flush()
            found = await asyncio.gather(*(parts.admit(entry(str(n), deadline)) for n in range(20)))
            assert all(isinstance(answer, Admitted) for answer in found)
        assert await parts.length(names.lane(Lane.HASH)) == 41


async def test_answers_after_a_lost_script_go_to_who_asked(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.script_flush()
        before = await parts.now()
        beat = (lua.BEAT, [names.WORKERS, names.CAPACITY], "name", msgspec.msgpack.encode({}), 4000)
        plain, now, again, later = await asyncio.gather(
            parts.batch.command("ECHO", "plain"),
            parts.batch.script(*beat),
            parts.batch.command("ECHO", "again"),
            parts.batch.script(*beat),
        )
        assert (plain, again) == (b"plain", b"again")
        assert before <= now[0] <= later[0] <= await parts.now()


async def test_a_script_that_fails_fails_alone(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.set(names.SESSIONS + "string", "not a hash")
        broken, whole = await asyncio.gather(
            parts.store.check("1", await parts.soon(), Needs(session_id="string")),
            parts.store.check("2", await parts.soon(), Needs(email=EMAIL)),
            return_exceptions=True,
        )
        assert isinstance(broken, ResponseError)
        assert isinstance(whole, Facts)


# --- check: what is read ------------------------------------------------------------------------------------------


async def test_nothing_is_found_in_an_empty_store(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        needs = Needs(email=EMAIL, session_id="s", challenge_id="c", devices=True, sessions=True)
        before = await parts.now()
        facts = await parts.check(needs)
        assert facts == Facts(now=facts.now, needs=needs)
        assert before <= facts.now <= await parts.now()
        assert await parts.redis.keys("*") == []


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


async def test_an_account_is_read_back_as_it_was_made(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(email=EMAIL, devices=True))
        assert (facts.account, facts.devices) == (made.account, (made.device,))
        assert (facts.session, facts.sessions, facts.challenge) == (None, (), None)


async def test_devices_and_sessions_are_read_only_where_they_are_needed(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await kept(parts)
        facts = await parts.check(Needs(email=EMAIL))
        assert (facts.devices, facts.sessions, facts.online) == ((), (), frozenset())


async def test_a_session_brings_its_account(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(session_id=made.session.id, devices=True, sessions=True))
        assert (facts.session, facts.account, facts.sessions) == (made.session, made.account, (made.session,))
        assert facts.devices == (made.device,)


@pytest.mark.parametrize("taken_", [False, True], ids=["free", "taken"])
async def test_a_challenge_brings_the_account_of_its_address(redis_url: str, taken_: bool) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts, user_id="0wrk1-another")
        made = await kept(parts) if taken_ else None
        facts = await parts.check(Needs(challenge_id=waits.id))
        assert facts.challenge == waits
        assert facts.account == (made.account if made else None)


async def put_challenge(parts: Bench, **changes: Any) -> Challenge:
    waits = await new_challenge(parts, **changes)
    await parts.made(PutChallenge(waits))
    return waits


async def new_challenge(parts: Bench, **changes: Any) -> Challenge:
    now = await parts.now()
    return challenge(expires=now + HOUR, code_expires=now + 10 * MINUTE, **changes)


async def test_an_address_decides_whose_account_is_read(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        facts = await parts.check(Needs(email="nobody@example.com", session_id=made.session.id))
        assert (facts.account, facts.session) == (None, made.session)


async def test_a_disabled_account_and_one_without_locale_are_read_as_such(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = account(status="disabled")
        await parts.made(CreateAccount(has, None, device()))
        assert (await parts.check(Needs(email=EMAIL))).account == has


async def test_all_living_sessions_are_listed_and_no_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        other = replace(made.session, id="0wrk1-other")
        await parts.made(StartSession(other, made.account, None))
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        now = await parts.now()
        await parts.redis.zadd(list_, {"expired": now - 1, "lost": now + DAY})
        facts = await parts.check(Needs(session_id=other.id, sessions=True))
        assert sorted(facts.sessions, key=lambda s: s.id) == sorted((made.session, other), key=lambda s: s.id)


@pytest.mark.parametrize(
    ("there", "too_many"), [(SESSIONS_PER_ACCOUNT - 1, 0), (SESSIONS_PER_ACCOUNT, 1), (SESSIONS_PER_ACCOUNT + 2, 3)]
)
async def test_a_login_reads_only_the_sessions_that_have_to_make_room_for_it(
    redis_url: str, there: int, too_many: int
) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        fields = await parts.redis.hgetall(names.SESSIONS + made.session.id)
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        now = await parts.now()
        await parts.redis.delete(list_)
        await parts.redis.zadd(list_, {"expired": now - 1})
        for n in range(there):
            await parts.redis.hset(names.SESSIONS + f"s{n}", mapping=fields)
            await parts.redis.zadd(list_, {f"s{n}": now + DAY + n})
        facts = await parts.check(Needs(email=EMAIL, crowd=True))
        assert [found.id for found in facts.sessions] == [f"s{n}" for n in range(too_many)]  # the first to end
        assert facts.online == frozenset()


async def test_online_is_who_is_authenticated_on_a_node_that_lives(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.living("node-a")
        online = {"node-a one": "s1", "node-a two": "s2", "node-dead one": "s3"}
        await parts.redis.hset(names.ONLINE + made.account.id, mapping=online)
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.online == {"s1", "s2"}


# --- check: done and expired --------------------------------------------------------------------------------------

ACCOUNT = Limit("account", "subject", 5, DAY, Counts.FAILURES, 30_000, 900_000, clears=True, waits=True)
TRIES = Limit("tries", "subject", 3, HOUR, Counts.FAILURES, waits=True)
USES = Limit("uses", "subject", 2, HOUR, Counts.USES)


async def held(parts: Bench, limit: Limit) -> int:
    return int(await parts.redis.zcard(names.held(limit.name, limit.subject)))


async def counted(parts: Bench, limit: Limit) -> int:
    return int(await parts.redis.hget(names.limit(limit.name, limit.subject), "n") or 0)


@pytest.mark.parametrize("left", [0, -1])
async def test_a_request_past_its_deadline_is_expired_and_reserves_nothing(redis_url: str, left: int) -> None:
    async with bench(redis_url) as parts:
        assert await parts.store.check("rid", await parts.now() + left, Needs(limits=(TRIES,))) == "expired"
        assert await held(parts, TRIES) == 0


async def test_a_settled_dropped_or_cancelled_request_is_done_and_reserves_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.settle(rid="settled")
        await parts.store.drop("dropped", (), ())
        await parts.gateway.cancel(["cancelled", "cancelled-too"])
        for rid in ("settled", "dropped", "cancelled", "cancelled-too"):
            assert await parts.store.check(rid, await parts.soon(), Needs(limits=(TRIES,))) == "done"
        assert await parts.store.check("settled", 0, Needs()) == "done"  # which matters more than its time
        assert await held(parts, TRIES) == 0


async def test_a_cancellation_comes_too_late_for_what_is_settled_and_ends_by_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.settle(rid="settled")
        await parts.gateway.cancel(["settled", "cancelled"])
        assert await parts.redis.get(names.done("settled")) == b"settled"
        assert await parts.redis.get(names.done("cancelled")) == b"cancelled"
        for rid in ("settled", "cancelled"):
            # as long as a copy can be about: the longest deadline and the time to reclaim it
            assert 40_000 < await parts.redis.pttl(names.done(rid)) <= 45_000


# --- check: reservations ------------------------------------------------------------------------------------------


async def test_checking_a_request_again_reserves_its_place_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            assert (await parts.check(Needs(limits=(replace(TRIES, most=1), USES)))).refused == {}
        assert (await held(parts, TRIES), await held(parts, USES)) == (1, 1)


async def test_of_two_hundred_at_once_only_as_many_get_in_as_there_are_places(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        needs = Needs(limits=(ACCOUNT,))
        found = await asyncio.gather(*(parts.store.check(f"{n}", deadline, needs) for n in range(200)))
        assert [isinstance(facts, Facts) for facts in found] == [True] * 5 + [False] * 195
        assert set(map(str, found[5:])) == {"wait"}
        assert await held(parts, ACCOUNT) == 5


async def test_a_limit_that_does_not_wait_refuses_while_its_places_are_reserved(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(2):
            assert (await parts.check(Needs(limits=(USES,)), rid=f"{n}")).refused == {}
        assert (await parts.check(Needs(limits=(USES,)), rid="third")).refused == {"uses": 1000}
        assert await held(parts, USES) == 2


async def test_a_request_that_has_to_wait_for_one_limit_reserves_none(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full = replace(TRIES, most=1)
        await parts.check(Needs(limits=(full,)), rid="first")
        assert await parts.store.check("second", await parts.soon(), Needs(limits=(USES, full))) == "wait"
        assert (await held(parts, USES), await held(parts, full)) == (0, 1)


async def test_a_request_that_one_limit_refuses_says_for_how_long(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.made(verdict=Verdict.FAILED, limits=(replace(TRIES, most=1),))
        await parts.redis.pexpire(names.limit("tries", "subject"), 60_000)
        refused = (await parts.check(Needs(limits=(USES, replace(TRIES, most=1))))).refused
        assert list(refused) == ["tries"]
        assert 55_000 < refused["tries"] <= 60_000


async def test_a_reservation_that_is_never_settled_ends_when_no_copy_can_be_about(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full, key = replace(TRIES, most=1), names.held("tries", "subject")
        deadline = await parts.soon()
        assert isinstance(await parts.store.check("first", deadline, Needs(limits=(full,))), Facts)
        assert int(await parts.redis.zscore(key, "first")) == deadline + RECLAIM_MS
        assert await parts.redis.pexpiretime(key) == deadline + RECLAIM_MS
        assert await parts.store.check("second", deadline, Needs(limits=(full,))) == "wait"
        await parts.redis.zadd(key, {"first": await parts.now() - 1})
        assert (await parts.check(Needs(limits=(full,)), rid="second")).refused == {}
        assert await parts.redis.zrange(key, 0, -1) == [b"second"]


async def test_limits_of_other_subjects_and_names_are_other_limits(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        full = replace(TRIES, most=1)
        await parts.check(Needs(limits=(full,)), rid="first")
        others = (replace(full, subject="other"), replace(full, name="other"))
        assert (await parts.check(Needs(limits=others), rid="second")).refused == {}


# --- settle: limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [ACCOUNT, TRIES, USES], ids=lambda limit: limit.name)
@pytest.mark.parametrize("verdict", Verdict)
async def test_a_reserved_place_is_spent_or_comes_back(redis_url: str, limit: Limit, verdict: Verdict) -> None:
    async with bench(redis_url) as parts:
        bad = Verdict.PASSED if limit is USES else Verdict.FAILED
        await parts.check(Needs(limits=(limit,)), rid="before")
        await parts.made(rid="before", verdict=bad, limits=(limit,))
        await parts.check(Needs(limits=(limit,)))
        assert (await counted(parts, limit), await held(parts, limit)) == (1, 1)
        await parts.made(rid="rid", verdict=verdict, limits=(limit,))
        expected = 2 if verdict is bad else 0 if verdict is Verdict.PASSED and limit.clears else 1
        assert (await counted(parts, limit), await held(parts, limit)) == (expected, 0)


@pytest.mark.parametrize("how", ["dropped", "expired", "done"])
async def test_the_place_of_what_is_not_evaluated_comes_back(redis_url: str, how: str) -> None:
    async with bench(redis_url) as parts:
        await parts.check(Needs(limits=(TRIES, USES)))
        if how == "dropped":
            await parts.store.drop("rid", (TRIES, USES), ())
        else:
            if how == "done":
                await parts.gateway.cancel(["rid"])
            left = -1 if how == "expired" else 10_000
            for verdict in (Verdict.FAILED, Verdict.PASSED):
                state = await parts.settle(rid="rid", verdict=verdict, limits=(TRIES, USES), left=left)
                assert state in (how, "done")
        for limit in (TRIES, USES):
            assert (await counted(parts, limit), await held(parts, limit)) == (0, 0)


async def fail(parts: Bench, limit: Limit = ACCOUNT) -> int:
    """An attempt that is let in and fails; the delay in ms that follows, 0 without one."""
    rid = f"attempt-{next(_numbers)}"
    assert (await parts.check(Needs(limits=(limit,)), rid=rid)).refused == {}
    await parts.made(rid=rid, verdict=Verdict.FAILED, limits=(limit,))
    closed = await parts.redis.hget(names.limit(limit.name, limit.subject), "closed")
    return int(closed) - await parts.now() if closed else 0


async def reopen(parts: Bench) -> None:
    """The delay has passed."""
    await parts.redis.hset(names.limit("account", "subject"), "closed", await parts.now())


async def test_five_failures_close_an_account_for_half_a_minute_doubling_to_fifteen(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert [await fail(parts) for _ in range(4)] == [0, 0, 0, 0]
        for seconds in (30, 60, 120, 240, 480, 900, 900):
            delay = await fail(parts)
            assert seconds * 1000 - 5000 < delay <= seconds * 1000
            refused = (await parts.check(Needs(limits=(ACCOUNT,)), rid="early")).refused
            assert seconds * 1000 - 5000 < refused["account"] <= seconds * 1000
            assert await held(parts, ACCOUNT) == 0
            await reopen(parts)


async def test_no_number_of_failures_makes_the_delay_longer_or_a_fault(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.hset(names.limit("account", "subject"), "n", 5_000)
        assert 895_000 < await fail(parts) <= 900_000


async def test_after_a_delay_there_is_one_attempt_at_a_time(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(5):
            await fail(parts)
        await reopen(parts)
        assert (await parts.check(Needs(limits=(ACCOUNT,)), rid="one")).refused == {}
        assert await parts.store.check("two", await parts.soon(), Needs(limits=(ACCOUNT,))) == "wait"
        await parts.made(rid="one", verdict=Verdict.UNJUDGED, limits=(ACCOUNT,))
        assert (await parts.check(Needs(limits=(ACCOUNT,)), rid="two")).refused == {}


async def test_a_success_forgets_the_failures_of_an_account_and_its_delay(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(5):
            await fail(parts)
        await reopen(parts)
        await parts.check(Needs(limits=(ACCOUNT,)), rid="right")
        await parts.made(rid="right", verdict=Verdict.PASSED, limits=(ACCOUNT,))
        assert not await parts.redis.exists(names.limit("account", "subject"))
        assert [await fail(parts) for _ in range(4)] == [0, 0, 0, 0]


async def test_places_that_are_reserved_count_with_those_that_are_spent(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            await fail(parts)
        for rid in ("fourth", "fifth"):
            assert (await parts.check(Needs(limits=(ACCOUNT,)), rid=rid)).refused == {}
        assert await parts.store.check("sixth", await parts.soon(), Needs(limits=(ACCOUNT,))) == "wait"


@pytest.mark.parametrize(("limit", "extended"), [(ACCOUNT, True), (TRIES, False)], ids=["a penalty", "a window"])
async def test_a_window_ends_by_itself_and_only_a_penalty_extends_it(
    redis_url: str, limit: Limit, extended: bool
) -> None:
    async with bench(redis_url) as parts:
        key = names.limit(limit.name, limit.subject)
        await fail(parts, limit)
        assert limit.window_ms - 5000 < await parts.redis.pttl(key) <= limit.window_ms
        await parts.redis.pexpire(key, 60_000)
        await fail(parts, limit)
        assert (await parts.redis.pttl(key) > 60_000) is extended


async def test_a_window_that_is_used_up_is_closed_without_a_penalty_until_it_ends(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for _ in range(3):
            assert await fail(parts, TRIES) == 0
        assert list((await parts.check(Needs(limits=(TRIES,)))).refused) == ["tries"]
        await parts.redis.delete(names.limit("tries", "subject"))  # as its end does
        assert (await parts.check(Needs(limits=(TRIES,)))).refused == {}


# --- settle: every write ------------------------------------------------------------------------------------------


async def test_a_confirmed_registration_is_an_account_and_its_challenge_is_gone(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        has = account(id=waits.user_id, password=waits.password)
        await parts.made(CreateAccount(has, waits, device()))
        facts = await parts.check(Needs(email=EMAIL, challenge_id=waits.id, devices=True))
        assert (facts.account, facts.devices, facts.challenge) == (has, (device(),), None)


async def test_a_challenge_ends_by_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        assert await parts.redis.pexpiretime(names.CHALLENGES + waits.id) == waits.expires


async def test_a_new_code_replaces_the_old_and_the_challenge_lives_no_longer_for_it(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        renewed = replace(waits, code_mac="wrk1:new", code_expires=waits.code_expires + 5000)
        assert await resend(parts, renewed) == "settled"
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == renewed
        assert await parts.redis.pexpiretime(names.CHALLENGES + waits.id) == waits.expires


async def resend(parts: Bench, renewed: Challenge, *limits: Limit) -> str:
    """Mail a new code for a challenge."""
    rid = f"rid-{next(_numbers)}"
    plan = settlement(rid, outcome(renewed=RenewedCode(renewed)), mails=((MAIL, sealed_mail(), limits),))
    return await parts.keep(rid, await parts.soon(), plan)


async def test_a_code_that_is_not_mailed_leaves_the_older_one_valid(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        made = [replace(waits, code_mac=f"wrk1:{n}", code_expires=waits.code_expires + n) for n in range(4)]
        for renewed in made:
            assert await resend(parts, renewed, MAILS_IP, MAILS) == "settled"  # two may be sent
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == made[1]
        assert await parts.length(names.MAIL) == 2
        await parts.redis.delete(names.limit(MAILS.name, MAILS.subject))  # as the end of its window does
        assert await resend(parts, made[3], MAILS_IP, MAILS) == "settled"
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == made[3]


async def test_a_code_is_renewed_by_the_first_mail_and_by_no_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        waits = await put_challenge(parts)
        none_left, renewed = replace(MAILS, most=0), replace(waits, code_mac="wrk1:new")
        mails = ((MAIL, sealed_mail("first"), (none_left,)), (MAIL, sealed_mail("second"), ()))
        plan = settlement("mailed", outcome(renewed=RenewedCode(renewed)), mails=mails)
        assert await parts.keep("mailed", await parts.soon(), plan) == "settled"
        assert [fields[b"id"] for _, fields in await parts.redis.xrange(names.MAIL)] == [b"second"]
        assert (await parts.check(Needs(challenge_id=waits.id))).challenge == waits


async def test_a_session_ends_by_itself_when_its_time_is_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        key, list_ = names.SESSIONS + made.session.id, names.USERS + made.account.id + names.SESSIONS_OF
        ends = made.session.created + 7 * DAY
        assert (await parts.redis.pexpiretime(key), await parts.redis.zscore(list_, made.session.id)) == (ends, ends)


async def test_a_new_session_clears_the_list_of_those_that_are_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        await parts.redis.zadd(list_, {"over": await parts.now() - 1})
        fresh = replace(made.session, id="0wrk1-fresh", created=await parts.now())
        await parts.made(StartSession(fresh, made.account, None))
        assert set(await parts.redis.zrange(list_, 0, -1)) == {made.session.id.encode(), b"0wrk1-fresh"}


async def test_the_trusted_device_of_a_session_has_been_seen_under_its_name(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        started = replace(made.session, id="0wrk1-second", device_ref=made.device.ref, device_name="New ‘name’")
        await parts.made(StartSession(started, made.account, made.device))
        facts = await parts.check(Needs(session_id=started.id, devices=True))
        assert facts.session == started
        assert facts.devices == (replace(made.device, name="New ‘name’", seen=started.created),)


async def test_a_rotation_counts_on_and_a_confirmation_only_sees(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        now = made.session.created + 5000
        await parts.made(RotateSession(made.session, now))
        rotated = replace(made.session, counter=made.session.counter + 1, rotated=now, seen=now)
        facts = await parts.check(Needs(session_id=made.session.id))
        assert facts.session == rotated
        await parts.made(ConfirmSession(rotated, now + 5000))
        assert (await parts.check(Needs(session_id=made.session.id))).session == replace(rotated, seen=now + 5000)
        ends = now + 5000 + 7 * DAY
        list_ = names.USERS + made.account.id + names.SESSIONS_OF
        assert await parts.redis.pexpiretime(names.SESSIONS + made.session.id) == ends
        assert await parts.redis.zscore(list_, made.session.id) == ends


async def test_however_often_it_is_seen_a_session_ends_thirty_days_after_its_login(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(ConfirmSession(made.session, made.session.created + 29 * DAY))
        ends = await parts.redis.pexpiretime(names.SESSIONS + made.session.id)
        assert ends == made.session.created + 30 * DAY


async def test_an_ended_session_is_known_as_ended_until_time_would_have_ended_it(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(EndSession(made.session, "logout"))
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.session == replace(made.session, ended="logout")
        assert facts.sessions == ()
        assert await parts.redis.pexpiretime(names.SESSIONS + made.session.id) == made.session.created + 7 * DAY


async def test_a_session_that_is_ended_twice_is_ended(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        states = await asyncio.gather(*(parts.settle(EndSession(made.session, f"reason {n}")) for n in range(5)))
        assert states == ["settled"] * 5
        facts = await parts.check(Needs(session_id=made.session.id, sessions=True))
        assert facts.session is not None
        assert facts.session.ended.startswith("reason")
        assert facts.sessions == ()


async def test_a_password_is_swapped_only_where_the_old_one_still_is(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        old = made.account.password
        states = [await parts.settle(UpgradePassword(made.account.id, old, f"pep1:new-{n}")) for n in range(20)]
        assert set(states) == {"settled"}  # somebody else was quicker: nothing to refuse a login for
        facts = await parts.check(Needs(email=EMAIL))
        assert facts.account == replace(made.account, password="pep1:new-0")
        await parts.made(UpgradePassword("0wrk1-nobody", old, "pep1:x"))
        assert not await parts.redis.exists(names.USERS + "0wrk1-nobody")


async def test_of_many_confirmations_of_one_address_one_makes_an_account(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = [await put_challenge(parts, id=f"c{n}", user_id=f"u{n}", password=f"pep1:{n}") for n in range(20)]
        writes = [CreateAccount(account(id=c.user_id, password=c.password), c, device(ref=c.id)) for c in made]
        states = await asyncio.gather(*map(parts.settle, writes))
        assert sorted(states) == ["conflict"] * 19 + ["settled"]
        winner = states.index("settled")
        facts = await parts.check(Needs(email=EMAIL, devices=True))
        assert facts.account == writes[winner].account
        assert [found.ref for found in facts.devices] == [f"c{winner}"]


async def test_of_many_rotations_of_one_token_one_counts(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        write = RotateSession(made.session, made.session.created)
        states = await asyncio.gather(*(parts.settle(write) for _ in range(50)))
        assert sorted(states) == ["conflict"] * 49 + ["settled"]
        facts = await parts.check(Needs(session_id=made.session.id))
        assert facts.session is not None
        assert facts.session.counter == made.session.counter + 1


# --- settle: conflicts --------------------------------------------------------------------------------------------

USER, SESSION, CHALLENGE = names.USERS + account().id, names.SESSIONS + session().id, names.CHALLENGES + challenge().id


@pytest.mark.parametrize(
    ("write", "change"),
    [
        pytest.param(
            CreateAccount(account(id="0wrk1-new"), None, device()), ("ECHO", ""), id="an account for a taken address"
        ),
        pytest.param(
            CreateAccount(account(email="new@example.com"), challenge(), device()),
            ("DEL", CHALLENGE),
            id="an account whose challenge is gone",
        ),
        pytest.param(
            CreateAccount(account(email="new@example.com"), challenge(), device()),
            ("HSET", CHALLENGE, "user", "0wrk1-other"),
            id="an account whose challenge is another's",
        ),
        pytest.param(RenewedCode(challenge()), ("DEL", CHALLENGE), id="a code for a challenge that is gone"),
        pytest.param(
            RenewedCode(challenge()), ("HSET", CHALLENGE, "email", "x@example.com"), id="a code for another's challenge"
        ),
        pytest.param(
            StartSession(session(id="0wrk1-new"), account(), None),
            ("HINCRBY", USER, "version", 1),
            id="a session of an account that changed",
        ),
        pytest.param(
            StartSession(session(id="0wrk1-new"), account(), None),
            ("DEL", USER),
            id="a session of an account that is gone",
        ),
        pytest.param(RotateSession(session(), 1), ("HINCRBY", SESSION, "counter", 1), id="a rotation that was quicker"),
        pytest.param(RotateSession(session(), 1), ("HSET", SESSION, "ended", "logout"), id="a rotation after the end"),
        pytest.param(RotateSession(session(), 1), ("DEL", SESSION), id="a rotation of nothing"),
        pytest.param(RotateSession(session(), 1), ("HSET", SESSION, "user", "x"), id="a rotation of another's session"),
        pytest.param(ConfirmSession(session(), 1), ("HSET", SESSION, "ended", "logout"), id="a sight after the end"),
        pytest.param(ConfirmSession(session(), 1), ("DEL", SESSION), id="a sight of nothing"),
        pytest.param(EndSession(session(), "logout"), ("DEL", SESSION), id="the end of nothing"),
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_a_conflict_leaves_everything_as_it_was(
    redis_url: str, write: Write | RenewedCode, change: tuple[str, ...], place: str
) -> None:
    async with bench(redis_url) as parts:
        await kept(parts)
        await put_challenge(parts)
        await parts.redis.execute_command(*change)
        await parts.check(Needs(limits=(TRIES, USES)))
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        await parts.living("asker")
        await parts.redis.hset(names.ONLINE + account().id, "asker here", "s")
        others: tuple[Write, ...] = (
            PutChallenge(await new_challenge(parts, id="0wrk1-other")),
            UpgradePassword(account().id, account().password, "pep1:new"),
        )
        renewed = write if isinstance(write, RenewedCode) else None
        first = () if isinstance(write, RenewedCode) else (write,)
        writes = (*first, *others) if place == "first" else (*others, *first)
        told = notice("logout")
        plan = settlement(
            "rid",
            outcome(*writes, identity=Identity(account().id, "new"), renewed=renewed),
            limits=(TRIES, USES),
            notices=((told, entries.sign_notice(EDGE, told)),),
            mails=((MAIL, sealed_mail(), (MAILS,)),),
            presence=("asker", "here"),
            record=record(),
        )
        before = await parts.snapshot()
        assert await parts.end(delivery, plan) == "conflict"
        assert await parts.snapshot() == before
        assert await pending(parts) == 1


async def test_an_untouched_session_and_account_are_no_conflict(redis_url: str) -> None:
    """The table above fails for its changes, and for nothing else."""
    async with bench(redis_url) as parts:
        made = await kept(parts)
        waits = await put_challenge(parts)
        assert await resend(parts, waits) == "settled"
        for write in (
            StartSession(replace(made.session, id="0wrk1-new"), made.account, None),
            RotateSession(made.session, made.session.created),
            ConfirmSession(made.session, made.session.created),
            EndSession(made.session, "logout"),
            CreateAccount(account(id=waits.user_id, email="new@example.com"), waits, device()),
        ):
            assert await parts.settle(write) == "settled"


# --- settle: once, in time, and with its delivery -----------------------------------------------------------------


async def test_a_settled_request_has_its_effect_its_reply_and_its_acknowledgement_together(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        has = account()
        done = outcome(CreateAccount(has, None, device()))
        assert await parts.end(delivery, settlement("rid", done)) == "settled"
        assert (await parts.check(Needs(email=EMAIL), rid="later")).account == has
        assert await parts.length(names.lane(Lane.HASH)) == 0
        assert await pending(parts) == 0
        assert await anext(parts.gateway.replies()) == Sealed("rid", b"box of rid")
        [(_, event)] = await parts.redis.xrange(names.EVENTS)
        assert event == {b"event": b"logged_out", b"code": b"ok", b"request": b"rid"}
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "asker") <= 60_000


async def test_a_request_that_is_delivered_twice_takes_effect_and_is_answered_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        for _ in range(2):
            await parts.admit(entry(deadline=deadline))
        first, copy = await taken(parts)
        await parts.check(Needs(limits=(USES,)))
        plan = settlement(
            "rid",
            outcome(PutChallenge(await new_challenge(parts))),
            limits=(USES,),
            mails=((MAIL, sealed_mail(), (MAILS,)),),
        )
        assert await parts.end(first, plan) == "settled"
        after = await parts.snapshot()
        assert await parts.end(copy, plan) == "done"
        again = await parts.snapshot()
        lane = names.lane(Lane.HASH).encode()
        assert {key for key in again | after if again.get(key) != after.get(key)} == {lane}
        assert await parts.length(names.lane(Lane.HASH)) == 0
        assert await pending(parts) == 0
        assert await counted(parts, USES) == 1


@pytest.mark.parametrize("left", [0, -1])
async def test_past_its_deadline_a_request_has_no_effect_and_no_reply_but_is_acknowledged(
    redis_url: str, left: int
) -> None:
    async with bench(redis_url) as parts:
        await parts.admit(entry(deadline=await parts.soon()))
        [delivery] = await taken(parts)
        assert delivery.entry is not None
        late = replace(delivery, entry=replace(delivery.entry, deadline=await parts.now() + left))
        plan = settlement("rid", outcome(CreateAccount(account(), None, device())), mails=((MAIL, sealed_mail(), ()),))
        assert await parts.end(late, plan) == "expired"
        keys = set(await parts.redis.keys("*"))
        assert keys == {
            names.lane(Lane.HASH).encode(),
            names.lane_count(Lane.HASH).encode(),
            names.done("rid").encode(),
        }
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.end(delivery, plan) == "done"


async def test_a_conflict_past_the_deadline_is_only_late(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.settle(EndSession(session(), "logout"), left=-1) == "expired"


async def test_a_cancelled_request_is_acknowledged_without_effect_or_reply(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.gateway.cancel(["rid"])
        plan = settlement("rid", outcome(CreateAccount(account(), None, device())))
        assert await parts.end(delivery, plan) == "done"
        assert (await parts.check(Needs(email=EMAIL), rid="later")).account is None
        assert await parts.length(names.REPLIES + "asker") == 0
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def test_a_dropped_request_is_done_acknowledged_and_unanswered(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.check(Needs(limits=(TRIES,)))
        await parts.worker.drop(delivery, (TRIES,))
        assert await parts.store.check("rid", await parts.soon(), Needs()) == "done"
        assert (await held(parts, TRIES), await counted(parts, TRIES)) == (0, 0)
        assert await parts.length(names.REPLIES + "asker") == 0
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def test_a_dead_letter_has_no_box_and_its_client_is_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        failure = entries.sign_failure(EDGE, "rid", Code.INTERNAL)
        await parts.worker.bury(delivery, "the seal does not hold", ("asker", failure), None, ())
        assert await anext(parts.gateway.replies()) == failure
        [(_, letter)] = await parts.redis.xrange(names.DEAD)
        assert set(letter) == {b"lane", b"reason", b"r", b"n", b"e", b"d"}
        assert (letter[b"r"], letter[b"reason"], letter[b"lane"]) == (b"rid", b"the seal does not hold", b"hash")
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.store.check("rid", await parts.soon(), Needs()) == "done"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"other": "y"}, id="other fields"),
        pytest.param({"d": None}, id="no deadline"),
        pytest.param({"d": "soon"}, id="a deadline in words"),
        pytest.param({"r": b"\xff"}, id="an id that is no text"),
        pytest.param({"s": None}, id="nothing of what it is the same as"),
        pytest.param({"s": b"\xff"}, id="the same as no text"),
        pytest.param({"p": None}, id="nothing of whether it asks for a replay"),
        pytest.param({"x": None}, id="no box"),
    ],
)
async def test_what_is_no_entry_is_taken_as_none_and_can_be_buried(redis_url: str, fields: dict[str, Any]) -> None:
    async with bench(redis_url) as parts:
        right: dict[str, Any] = {"r": "rid", "n": "n", "e": "login", "d": "1", "s": "", "p": "0", "w": "w", "x": "x"}
        altered = {name: value for name, value in (right | fields).items() if value is not None}
        await parts.redis.xadd(names.lane(Lane.HASH), fields if "other" in fields else altered)
        [delivery] = await taken(parts)
        assert delivery.entry is None
        await parts.worker.bury(delivery, "not an entry", None, None, ())
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)
        assert await parts.length(names.DEAD) == 1


# --- settle: mails ------------------------------------------------------------------------------------------------

MAIL = Mail("confirmation", EMAIL, "en", "12345678")
MAILS = Limit("mails", EMAIL, 2, HOUR, Counts.USES)
MAILS_IP = Limit("mails_ip", "192.0.2.7", 3, HOUR, Counts.USES)


def sealed_mail(id: str = "0wrk1-mail") -> SealedMail:
    return SealedMail(id, b"wrapped\xff\x00", b"box\xfe")


async def test_a_mail_arrives_at_the_mailer_as_it_was_sealed_and_is_gone_when_done(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        queue = mail_queue(redis_url, "mailer")
        try:
            await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
            [found] = await queue.take(10) or await queue.take(10)  # the first makes the group
            assert (found.mail, found.tries) == (sealed_mail(), 1)
            await queue.done(found.token)
            assert await parts.length(names.MAIL) == 0
        finally:
            await queue.close()


async def test_past_a_limit_a_mail_is_not_sent_and_everything_else_is_the_same(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(4):
            write = PutChallenge(await new_challenge(parts, id=f"c{n}"))
            await parts.made(write, mails=((MAIL, sealed_mail(f"m{n}"), (MAILS,)),))
        assert [fields[b"id"] for _, fields in await parts.redis.xrange(names.MAIL)] == [b"m0", b"m1"]
        assert await parts.redis.exists(*(names.CHALLENGES + f"c{n}" for n in range(4))) == 4
        assert await parts.length(names.REPLIES + "asker") == 4
        assert await counted(parts, MAILS) == 2


async def test_a_mail_that_one_limit_holds_back_spends_no_place_of_the_other(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        for n in range(4):
            await parts.made(mails=((MAIL, sealed_mail(f"m{n}"), (MAILS, MAILS_IP)),))
        assert (await counted(parts, MAILS), await counted(parts, MAILS_IP)) == (2, 2)
        other = replace(MAILS, subject="other@example.com")
        for n in range(4, 7):
            await parts.made(mails=((MAIL, sealed_mail(f"m{n}"), (other, MAILS_IP)),))
        assert (await counted(parts, other), await counted(parts, MAILS_IP)) == (1, 3)
        assert await parts.length(names.MAIL) == 3


async def test_the_window_of_a_mail_limit_begins_with_its_first_mail(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        key = names.limit(MAILS.name, MAILS.subject)
        await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
        assert HOUR - 5000 < await parts.redis.pttl(key) <= HOUR
        await parts.redis.pexpire(key, 60_000)
        await parts.made(mails=((MAIL, sealed_mail(), (MAILS,)),))
        assert await parts.redis.pttl(key) <= 60_000
        await parts.redis.delete(key)
        await parts.made(mails=((MAIL, sealed_mail("later"), (MAILS,)),))
        assert await parts.length(names.MAIL) == 3


async def test_two_mails_of_one_request_are_counted_one_by_one(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.made(mails=tuple((MAIL, sealed_mail(f"m{n}"), (MAILS,)) for n in range(4)))
        assert (await parts.length(names.MAIL), await counted(parts, MAILS)) == (2, 2)


# --- settle: what is remembered of a request with a key -----------------------------------------------------------


def record(code: Code | None = None, retry_after_ms: int | None = None, session_id: str = "") -> Record:
    """A recorded outcome, or with a code an error that is not."""
    box = b"outcome\x00\xff" if code is None else None
    return Record("mac", session_id, box, entries.sign_word(EDGE, "mac", code, retry_after_ms))


async def test_an_outcome_is_recorded_with_whose_it_is_for_ten_minutes(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        plan = settlement("rid", outcome(), record=record(session_id="0wrk1-session"))
        assert await parts.end(delivery, plan) == "settled"
        assert await parts.store.recall("mac") == Recorded(b"outcome\x00\xff", "0wrk1-session")
        assert RECORD_KEPT_MS == 10 * MINUTE
        assert RECORD_KEPT_MS - 5000 < await parts.redis.pttl(SAME) <= RECORD_KEPT_MS
        assert not await parts.redis.exists(JOINED)
        assert await anext(parts.gateway.replies()) == Sealed("rid", b"box of rid")


async def test_an_error_is_not_recorded_and_the_same_request_is_a_new_one(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(Code.RATE_LIMITED))) == "settled"
        assert await parts.store.recall("mac") is None
        assert not await parts.redis.exists(SAME, JOINED)
        assert isinstance(await ask(parts, "again"), Admitted)


@pytest.mark.parametrize("code", [None, Code.RATE_LIMITED], ids=["recorded", "an error"])
async def test_everybody_who_joined_gets_word_on_the_stream_of_his_node(redis_url: str, code: Code | None) -> None:
    async with bench(redis_url) as parts, bench(redis_url, node="node-b") as other:
        delivery = await in_hand(parts, same="mac")
        for rid, node in (("b1", "node-b"), ("a1", "asker"), ("b2", "node-b")):
            assert joins(await ask(parts, rid, node=node))
        remembers = record(code, 5000 if code else None)
        await parts.end(delivery, settlement("rid", outcome(), record=remembers))
        here, there = parts.gateway.replies(), other.gateway.replies()
        assert await anext(here) == Sealed("rid", b"box of rid")
        told = [(await anext(here)), (await anext(there)), (await anext(there))]
        assert told == [replace(remembers.word, rid=rid) for rid in ("a1", "b1", "b2")]
        opened = entries.open_signed(EDGE, remembers.word)
        assert opened == entries.OpenedWord("mac", code, 5000 if code else None)
        assert (await parts.length(names.REPLIES + "asker"), await parts.length(names.REPLIES + "node-b")) == (2, 2)
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "node-b") <= 60_000


async def test_a_request_that_nobody_joined_sends_no_word(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        assert await parts.redis.keys(names.REPLIES + "*") == [(names.REPLIES + "asker").encode()]
        assert await parts.length(names.REPLIES + "asker") == 1


@pytest.mark.parametrize("code", [None, Code.INTERNAL], ids=["recorded", "an error"])
@pytest.mark.parametrize("now", ["another's", "another's outcome", "nobody's"])
async def test_what_another_has_taken_the_place_of_is_left_alone(redis_url: str, now: str, code: Code | None) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.redis.delete(SAME)  # as the end of its deadline and of its time to be reclaimed does
        if now != "nobody's":
            second = await in_hand(parts, "second", same="mac")
            assert joins(await ask(parts, "joined", node="node-b"))
            if now == "another's outcome":
                await parts.end(second, settlement("second", outcome(), record=record(session_id="second's")))
        before, words = await parts.redis.dump(SAME), await parts.length(names.REPLIES + "node-b")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(code))) == "settled"
        assert await parts.redis.dump(SAME) == before
        assert await parts.length(names.REPLIES + "node-b") == words
        assert await parts.redis.llen(JOINED) == (1 if now == "another's" else 0)


@pytest.mark.parametrize("how", ["expired", "cancelled", "settled before", "dropped"])
async def test_what_is_not_evaluated_records_nothing_and_tells_nobody(redis_url: str, how: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined", node="node-b")
        before = await parts.redis.dump(SAME)
        plan = settlement("rid", outcome(), record=record())
        if how == "cancelled":
            await parts.gateway.cancel(["rid"])
        elif how == "settled before":
            await parts.settle(rid="rid")
        if how == "dropped":
            await parts.worker.drop(delivery, ())
        else:
            state = await parts.keep("rid", await parts.now() - 1 if how == "expired" else await parts.soon(), plan)
            assert state == ("expired" if how == "expired" else "done")
        assert await parts.redis.dump(SAME) == before
        assert await parts.length(names.REPLIES + "node-b") == 0
        assert await parts.store.recall("mac") is None


async def test_a_request_that_is_delivered_twice_is_recorded_and_told_of_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await ask(parts, "joined", node="node-b")
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(session_id="one"))) == "settled"
        assert await parts.end(delivery, settlement("rid", outcome(), record=record(session_id="other"))) == "done"
        assert await parts.store.recall("mac") == Recorded(b"outcome\x00\xff", "one")
        assert await parts.length(names.REPLIES + "node-b") == 1


async def test_a_settled_request_without_a_key_remembers_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.end(await in_hand(parts), settlement("rid", outcome()))
        assert await parts.redis.keys("*same*") == []


async def test_nothing_is_recalled_of_a_request_that_nobody_knows_or_that_is_pending(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.store.recall("mac") is None
        await ask(parts, "first")
        assert await parts.store.recall("mac") is None


async def test_what_is_forgotten_is_a_new_request_when_it_is_sent_again(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        recorded = await parts.store.recall("mac")
        assert recorded is not None
        await parts.store.forget("cam", recorded)  # nothing to forget
        await parts.store.forget("mac", replace(recorded, box=b"another outcome"))
        assert await ask(parts, "again") == Known("done")
        await parts.store.forget("mac", recorded)
        assert await parts.store.recall("mac") is None
        assert isinstance(await ask(parts, "later"), Admitted)


async def test_forgetting_leaves_alone_what_has_taken_the_place_of_what_was_recalled(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        await parts.end(delivery, settlement("rid", outcome(), record=record()))
        recorded = await parts.store.recall("mac")
        assert recorded is not None
        await parts.store.forget("mac", recorded)
        assert isinstance(await ask(parts, "anew"), Admitted)
        await parts.store.forget("mac", recorded)
        assert joins(await ask(parts, "other"))


async def test_a_buried_request_can_be_sent_again_and_those_who_joined_are_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts, same="mac")
        assert joins(await ask(parts, "other"))
        word = entries.sign_word(EDGE, "mac", Code.INTERNAL, None)
        await parts.worker.bury(delivery, "the worker failed", None, Record("mac", "", None, word), ())
        assert isinstance(await ask(parts, "again"), Admitted)


async def test_what_mails_is_not_done_while_too_many_mails_wait_and_can_be_answered_otherwise(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.redis_store.MAILS_KEPT", 2)
    async with bench(redis_url) as parts:
        mails = ((Mail("decoy", EMAIL), SealedMail("m", b"w", b"x"), ()),)
        for n in range(2):
            plan = settlement(f"{n}", outcome(), mails=mails)
            assert await parts.end(await in_hand(parts, f"{n}"), plan) == "settled"
        delivery = await in_hand(parts)
        before = await parts.snapshot()
        assert await parts.end(delivery, settlement("rid", outcome(PutChallenge(challenge())), mails=mails)) == "full"
        assert await parts.snapshot() == before
        assert await parts.end(delivery, settlement("rid", outcome())) == "settled"
        assert await parts.length(names.MAIL) == 2


# --- settle: notices and presence ---------------------------------------------------------------------------------


def notice(reason: str, user_id: str = account().id) -> Notice:
    return Notice(user_id, "s", SessionEnded(session_id="s", reason=reason), ("node-a", "one"), close=True)


async def notify(parts: Bench, *told: Notice) -> dict[Notice, Signed]:
    signed = {one: entries.sign_notice(EDGE, one) for one in told}
    await parts.made(notices=tuple(signed.items()))
    return signed


async def test_a_notice_goes_once_to_every_living_node_where_the_account_is_online(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a", "node-b", "node-idle")
        online = {f"node-{name}": "s" for name in ("a one", "a two", "a three", "b one", "dead one", "dead two")}
        await parts.redis.hset(names.ONLINE + account().id, mapping=online)
        told = notice("logout")
        signed = (await notify(parts, told))[told]
        assert await anext(parts.gateway.replies()) == signed
        opened = entries.open_signed(EDGE, signed)
        assert isinstance(opened, entries.OpenedNotice)
        assert (opened.user_id, opened.event, opened.close) == (account().id, "session_ended", True)
        lengths = {node: await parts.length(names.REPLIES + f"node-{node}") for node in ("a", "b", "idle", "dead")}
        assert lengths == {"a": 1, "b": 1, "idle": 0, "dead": 0}
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "node-b") <= 60_000


async def test_whoever_was_online_on_a_dead_node_is_so_no_longer(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        online = {"node-a one": "s1", "node-dead one": "s4", "node-dead two": "s5"}
        await parts.redis.hset(names.ONLINE + account().id, mapping=online)
        await notify(parts, notice("logout"))
        assert await parts.redis.hkeys(names.ONLINE + account().id) == [b"node-a one"]


async def test_an_account_that_is_nowhere_online_is_told_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        await parts.redis.hset(names.ONLINE + "0wrk1-other", "node-a one", "s")
        await notify(parts, notice("logout"))
        assert await parts.length(names.REPLIES + "node-a") == 0


async def test_several_notices_arrive_in_their_order(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a")
        await parts.redis.hset(names.ONLINE + account().id, "node-a two", "s")
        signed = await notify(parts, *(notice(f"reason {n}") for n in range(3)))
        replies = parts.gateway.replies()
        assert [await anext(replies) for _ in range(3)] == list(signed.values())


async def test_who_caused_a_notice_is_not_told_of_it_but_whoever_else_is_there(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        online = names.ONLINE + account().id
        for connection, told in (("node-a one", 0), ("node-a two", 1)):
            await parts.redis.hset(online, connection, "s")
            await notify(parts, notice("logout"))
            assert await parts.length(names.REPLIES + "node-a") == told


async def test_a_connection_that_is_authenticated_with_a_notice_is_not_there_yet_to_be_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        told = replace(notice("logout"), spare=("node-b", "other"))
        signed = ((told, entries.sign_notice(EDGE, told)),)
        plan = settlement("rid", outcome(identity=Identity(account().id, "s")), presence=HERE, notices=signed)
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        assert await parts.length(names.REPLIES + "node-a") == 0
        assert await parts.redis.hkeys(names.ONLINE + account().id) == [b"node-a one"]


HERE = ("node-a", "one")


@pytest.mark.parametrize(
    ("before", "after", "forget", "expected"),
    [
        pytest.param(None, Identity("u1", "s1"), False, {"u1": "s1"}, id="authenticated"),
        pytest.param(Identity("u1", "s0"), Identity("u1", "s1"), False, {"u1": "s1"}, id="another session of the same"),
        pytest.param(Identity("u0", "s0"), Identity("u1", "s1"), False, {"u1": "s1"}, id="somebody else"),
        pytest.param(Identity("u1", "s1"), None, True, {}, id="forgotten"),
        pytest.param(Identity("u1", "s1"), None, False, {"u1": "s1"}, id="neither"),
        pytest.param(None, None, True, {}, id="forgotten, nobody before"),
    ],
)
async def test_presence_follows_what_a_connection_is_authenticated_as(
    redis_url: str, before: Identity | None, after: Identity | None, forget: bool, expected: dict[str, str]
) -> None:
    async with bench(redis_url) as parts:
        if before is not None:
            await parts.redis.hset(names.ONLINE + before.user_id, "node-a one", before.session_id)
        done = outcome(identity=after, forget=forget)
        plan = settlement("rid", done, presence=HERE, previous=before)
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        found = {}
        for user in ("u0", "u1"):
            for name, session_id in (await parts.redis.hgetall(names.ONLINE + user)).items():
                assert name == b"node-a one"
                found[user] = session_id.decode()
        assert found == expected


async def test_presence_ends_by_itself_and_when_a_connection_leaves(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        plan = settlement("rid", outcome(identity=Identity("u1", "s1")), presence=HERE)
        await parts.keep("rid", await parts.soon(), plan)
        assert 29 * DAY < await parts.redis.pttl(names.ONLINE + "u1") <= 30 * DAY
        await parts.gateway.leave([("u1", "other"), ("u2", "one")])
        assert await parts.redis.exists(names.ONLINE + "u1")
        await parts.gateway.leave([("u1", "one")])
        assert not await parts.redis.exists(names.ONLINE + "u1")


async def test_what_is_secret_in_an_outcome_is_not_written_to_its_audit(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        done = Outcome("email_confirmed", EmailConfirmed(device_token="0wrk1.s3cret"), mails=(MAIL,))
        plan = settlement("rid", done, mails=((MAIL, sealed_mail(), (MAILS,)),))
        await parts.keep("rid", await parts.soon(), plan)
        everything = b"".join((await parts.snapshot()).values())
        assert b"s3cret" not in everything
        assert MAIL.code.encode() not in everything


async def test_a_refusal_is_recorded_with_its_code(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        done = Outcome("login_failure", refusal(Code.INVALID_CREDENTIALS), Verdict.FAILED)
        await parts.keep("rid", await parts.soon(), settlement("rid", done))
        [(_, event)] = await parts.redis.xrange(names.EVENTS)
        assert (event[b"event"], event[b"code"]) == (b"login_failure", b"invalid_credentials")


# --- patience: what may wait travels in company -------------------------------------------------------------------


class Counting(Link):
    """A real one that keeps how many commands each of its trips had."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test-patience")
        self.trips: list[int] = []

    async def pipeline(self, commands: Sequence[Command], **more: Any) -> list[Any]:
        self.trips.append(len(commands))
        return await super().pipeline(commands, **more)


@dataclass
class Patience:
    """A batch whose trips are counted; `beat` asks for a script with some patience in seconds."""

    link: Counting
    batch: Batch

    def beat(self, patience: float) -> asyncio.Future[Any]:
        keys = [names.WORKERS, names.CAPACITY]
        return self.batch.script(lua.BEAT, keys, "name", msgspec.msgpack.encode({}), 4000, patience=patience)


@asynccontextmanager
async def patience(url: str) -> AsyncIterator[Patience]:
    link = Counting(url)
    found = Patience(link, Batch(link))
    await found.beat(0.0)  # the scripts are loaded from here on
    link.trips.clear()
    try:
        yield found
    finally:
        await found.batch.close()


LONG, SHORT = 60.0, 0.05


@pytest.mark.parametrize("hurried", ["a script", "a command"])
async def test_who_is_patient_waits_for_the_first_who_is_not_and_travels_with_him(redis_url: str, hurried: str) -> None:
    async with patience(redis_url) as found:
        patient = [found.beat(LONG) for _ in range(3)]
        done, _ = await asyncio.wait(patient, timeout=SHORT)
        assert (len(done), found.link.trips) == (0, [])
        await (found.beat(0.0) if hurried == "a script" else found.batch.command("PING"))
        assert all(future.done() for future in patient)
        assert found.link.trips == [4]


async def test_who_is_patient_travels_by_himself_with_his_like_when_his_patience_ends(redis_url: str) -> None:
    async with patience(redis_url) as found:
        loop = asyncio.get_running_loop()
        for _ in range(2):  # also a second time
            found.link.trips.clear()
            began = loop.time()
            patient = [found.beat(SHORT)]
            await asyncio.sleep(SHORT / 2)
            patient.append(found.beat(SHORT))  # does not make the first wait longer
            await asyncio.gather(*patient)
            assert SHORT * 0.9 <= loop.time() - began < SHORT * 10
            assert found.link.trips == [2]


async def test_a_hurried_trip_leaves_nothing_of_the_patience_of_those_it_took_along(redis_url: str) -> None:
    async with patience(redis_url) as found:
        first = [found.beat(SHORT), found.beat(SHORT)]
        await found.beat(0.0)
        later = found.beat(LONG)
        done, _ = await asyncio.wait([later], timeout=SHORT * 3)  # past the end of the first ones' patience
        assert all(future.done() for future in first)
        assert (done, found.link.trips) == (set(), [3])


async def test_who_comes_while_a_trip_is_under_way_travels_with_the_next_patient_or_not(redis_url: str) -> None:
    async with patience(redis_url) as found:
        hurried = found.beat(0.0)
        await asyncio.sleep(0)  # it is under way
        await asyncio.gather(hurried, found.beat(LONG), found.beat(0.0))
        assert found.link.trips == [1, 2]


async def test_what_still_waits_is_sent_when_the_batch_closes(redis_url: str) -> None:
    async with patience(redis_url) as found:
        patient = [found.beat(LONG) for _ in range(3)]
        await found.batch.close()
        assert all(future.done() and future.result() for future in patient)
        assert found.link.trips == [3]


async def test_what_nobody_waits_for_any_more_is_not_sent(redis_url: str) -> None:
    async with patience(redis_url) as found:
        given_up, patient = found.beat(LONG), found.beat(LONG)
        given_up.cancel()
        await found.beat(0.0)
        assert patient.done()
        assert found.link.trips == [2]


class Away(Link):
    """A server that does not answer."""

    trips = 0

    async def pipeline(self, commands: Sequence[Command], **more: Any) -> list[Any]:
        self.trips += 1
        await asyncio.sleep(0)
        raise Unavailable("away")


async def test_when_a_trip_fails_all_who_wait_behind_it_are_told_at_once() -> None:
    link = Away("redis://127.0.0.1:1/0", "test")
    batch = Batch(link)
    waiting = [batch.command("PING") for _ in range(3 * MAX_PIPELINE)]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in told} == {Unavailable}
    assert link.trips == 1
    with pytest.raises(Unavailable):
        await batch.command("PING")  # and whoever comes later tries anew
    assert link.trips == 2


async def test_only_so_much_waits_for_a_server_that_is_slow() -> None:
    batch = Batch(Away("redis://127.0.0.1:1/0", "test"))
    waiting = [batch.command("PING") for _ in range(MOST_WAITING + 5)]
    assert [future.done() for future in waiting] == [False] * MOST_WAITING + [True] * 5
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in told} == {Unavailable}


async def test_admitting_and_settling_wait_for_company_as_long_as_they_are_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        admitting = asyncio.ensure_future(parts.gateway.admit(entry(deadline=deadline), LONG))
        await asyncio.sleep(SHORT)
        assert not admitting.done()
        await parts.admit(entry("hurried", deadline))
        assert isinstance(await admitting, Admitted)
        first, second = await taken(parts)
        settling = asyncio.ensure_future(parts.worker.settle(first, settlement("rid", outcome()), LONG))
        await asyncio.sleep(SHORT)
        assert not settling.done()
        assert await parts.end(second, settlement("hurried", outcome())) == "settled"
        assert await settling == "settled"


# --- return -------------------------------------------------------------------------------------------------------


async def test_what_is_given_back_goes_to_the_tail_of_its_lane(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        keyed = entry("first", deadline, same="mac")
        for sent in (keyed, entry("second", deadline)):
            await parts.admit(sent)
        [delivery] = await taken(parts, most=1)
        await parts.worker.give_back(delivery)
        again = await taken(parts)
        assert [found.entry for found in again] == [entry("second", deadline), keyed]
        assert (await pending(parts), await parts.length(names.lane(Lane.HASH))) == (2, 2)
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"3"


async def test_what_is_in_hand_no_longer_is_not_given_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        lane = names.lane(Lane.HASH)
        await parts.redis.xgroup_destroy(lane, names.GROUP)
        await parts.redis.xgroup_create(lane, names.GROUP, "0")  # so that it will be handed out again
        await parts.worker.give_back(delivery)
        assert await parts.length(lane) == 1
        assert await parts.redis.get(names.lane_count(Lane.HASH)) == b"1"


async def test_what_has_been_ended_meanwhile_is_not_given_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.end(delivery, settlement("rid", outcome()))
        await parts.worker.give_back(delivery)
        assert await parts.length(names.lane(Lane.HASH)) == 0


async def test_giving_back_twice_makes_one_entry(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.worker.give_back(delivery)
        await parts.worker.give_back(delivery)
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (1, 0)


# --- reap ---------------------------------------------------------------------------------------------------------


async def hung(parts: Bench, delivery: Delivery, consumer: str = "dead") -> None:
    """Another consumer has held it for longer than any work takes."""
    idle = ("IDLE", TAKEN_OVER_AFTER_MS + 1, "RETRYCOUNT", 1)
    await parts.redis.execute_command(
        "XCLAIM", names.lane(delivery.lane), names.GROUP, consumer, 0, delivery.token, *idle
    )


async def consumers(parts: Bench) -> dict[bytes, int]:
    found = await parts.redis.xinfo_consumers(names.lane(Lane.HASH), names.GROUP)
    return {info["name"]: info["pending"] for info in found}


async def test_nothing_is_taken_over_where_there_is_no_group_or_nothing_hangs(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        await in_hand(parts)
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []


async def test_what_a_dead_worker_holds_is_taken_over_and_counted(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        for deliveries in (2, 3):
            await hung_again(parts, delivery, deliveries - 1)
            [again] = await parts.worker.reap(Lane.HASH, 64, ())
            assert again == replace(delivery, deliveries=deliveries)
            assert await parts.worker.reap(Lane.HASH, 64, ()) == []  # it is in hand now
        assert (await consumers(parts))[b"consumer"] == 1
        assert await parts.end(again, settlement("rid", outcome())) == "settled"
        assert (await parts.length(names.lane(Lane.HASH)), await pending(parts)) == (0, 0)


async def hung_again(parts: Bench, delivery: Delivery, times: int) -> None:
    idle = ("IDLE", TAKEN_OVER_AFTER_MS + 1, "RETRYCOUNT", times)
    await parts.redis.execute_command(
        "XCLAIM", names.lane(delivery.lane), names.GROUP, "dead", 0, delivery.token, *idle
    )


async def test_what_was_deleted_while_it_was_in_hand_haunts_nobody(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await hung(parts, delivery)
        await parts.redis.xdel(names.lane(Lane.HASH), delivery.token)
        assert await pending(parts) == 1
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        assert await pending(parts) == 0


async def reap(parts: Bench, *, idle: int = 0, most: int = 64, gone: int = 600_000) -> list[Any]:
    args = (names.GROUP, "consumer", idle, most, gone, SPOKEN_FOR_MS)
    found = await parts.batch.script(lua.REAP, [names.lane(Lane.HASH)], *args)
    return list(found)


async def test_no_more_is_taken_over_at_once_than_was_asked_for(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        for n in range(5):
            await parts.admit(entry(str(n), deadline))
        for delivery in await taken(parts):
            await hung(parts, delivery)
        first, rest = await reap(parts, idle=1000, most=2), await reap(parts, idle=1000)
        assert (len(first), len(rest)) == (2, 3)
        assert len({token for token, *_ in first + rest}) == 5


async def test_a_consumer_that_is_gone_is_removed_unless_it_holds_something(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await in_hand(parts)
        for name in ("gone", "holding"):
            await parts.redis.xgroup_createconsumer(names.lane(Lane.HASH), names.GROUP, name)
        await parts.admit(entry("other", await parts.soon()))
        await parts.redis.xreadgroup(names.GROUP, "holding", {names.lane(Lane.HASH): ">"})
        await reap(parts, idle=60_000)
        assert await consumers(parts) == {b"consumer": 1, b"gone": 0, b"holding": 1}  # it may come back yet
        await reap(parts, idle=60_000, gone=-1)
        assert await consumers(parts) == {b"consumer": 1, b"holding": 1}
        assert await pending(parts) == 2


async def test_a_worker_never_removes_itself(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.worker.drop(delivery, ())
        await reap(parts, gone=-1)
        assert await consumers(parts) == {b"consumer": 0}


async def test_a_lost_group_is_made_anew_and_passes_nothing_over(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await in_hand(parts)
        await parts.admit(entry("waiting", await parts.soon()))
        await parts.redis.xgroup_destroy(names.lane(Lane.HASH), names.GROUP)
        assert await parts.worker.reap(Lane.HASH, 64, ()) == []
        assert [found.entry.rid for found in await taken(parts) if found.entry] == ["rid", "waiting"]


async def test_what_a_worker_is_still_at_work_on_is_taken_over_by_nobody(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery, other = await in_hand(parts), another(parts, redis_url, "other")
        await hung(parts, delivery, "consumer")
        assert await parts.worker.reap(Lane.HASH, 0, [delivery.token]) == []
        assert await other.reap(Lane.HASH, 64, ()) == []
        await hung(parts, delivery, "consumer")
        assert [again.deliveries for again in await other.reap(Lane.HASH, 64, ())] == [2]
        await parts.worker.reap(Lane.HASH, 0, [delivery.token])
        assert (await consumers(parts))[b"other"] == 1, "what another has taken over stays with it"


async def test_what_was_lost_on_its_way_to_a_worker_comes_again_and_does_not_count_as_handed_out(
    redis_url: str,
) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        assert await parts.worker.reap(Lane.HASH, 0, ()) == []  # it may be on its way
        for _ in range(3):
            await hung(parts, delivery, "consumer")
            assert await parts.worker.reap(Lane.HASH, 0, ()) == [delivery]
            assert await parts.worker.reap(Lane.HASH, 0, ()) == []


async def test_what_was_not_begun_is_soon_anothers_and_does_not_count_as_handed_out(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery, other = await in_hand(parts), another(parts, redis_url, "other")
        for _ in range(5):
            await parts.worker.release(delivery)
            [again] = await other.reap(Lane.HASH, 64, ())
            assert again == delivery
            await other.release(delivery)
            assert await parts.worker.reap(Lane.HASH, 64, ()) == [delivery]
        await other.release(delivery)  # it holds it no longer
        assert await other.reap(Lane.HASH, 64, ()) == []


async def test_a_buried_request_gives_its_reserved_places_back(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        delivery = await in_hand(parts)
        await parts.check(Needs(limits=(ACCOUNT,)))
        assert await held(parts, ACCOUNT) == 1
        await parts.worker.bury(delivery, "delivered 3 times", None, None, (ACCOUNT,))
        assert (await held(parts, ACCOUNT), await counted(parts, ACCOUNT)) == (0, 0)


# --- the store's clock --------------------------------------------------------------------------------------------

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


# --- beat ---------------------------------------------------------------------------------------------------------


def vitals(hash_ms: float = 33.5, **lanes: tuple[int, float]) -> Vitals:
    """Of each lane what is given, (slots, rate), and the same numbers of what is in hand and drained."""
    return Vitals(hash_ms, {Lane(lane): LaneVitals(*can, 3, 1.5) for lane, can in lanes.items()})


ONE = vitals(fast=(128, 500.5), hash=(2, 60.25))


def another(parts: Bench, url: str, name: str) -> RedisWorker:
    return RedisWorker(parts.batch, parts.store, {}, name)


async def capacity(parts: Bench) -> dict[str, tuple[int, float]]:
    return {str(lane): (depth.slots, depth.rate) for lane, depth in (await parts.gateway.depths()).items()}


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


# --- all of it keeps to its keys ----------------------------------------------------------------------------------


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
