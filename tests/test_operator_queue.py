"""The operator's view of a real queue, and what `status` and `dead` say of a real deployment."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from adapters import names
from adapters.embedded_redis import EmbeddedRedis
from adapters.key_files import KeyFiles
from adapters.redis_link import Batch, Link
from adapters.redis_mail import mail_queue
from adapters.redis_operator import LETTERS_AT_ONCE, RedisOperator
from adapters.redis_state import NODE_LIVES_MS, WORKER_LIVES_MS
from adapters.redis_store import RedisStore, text
from adapters.redis_streams import RedisGateway, RedisWorker
from app import credit, entries
from app.keys import Ring
from app.mail import mailer
from app.messages import Lane
from app.ports import Backlog, LaneVitals, Letter, Overview, SealedMail, Unavailable, Undeliverable, Vitals
from app.records import Mail
from app.sealing import Opener, Sealer
from tests.deployment import ROOT, Deployment
from tests.making import EDGE

VITALS = Vitals(
    27.5,
    {
        Lane.FAST: LaneVitals(128, 500.0, 0, 1.5),
        Lane.HASH: LaneVitals(2, 60.25, 3, 40.0),
        Lane.SLOW: LaneVitals(2, 60.25, 1, 0.5),
    },
)
HASH = names.lane(Lane.HASH)


@asynccontextmanager
async def operator(url: str) -> AsyncIterator[tuple[RedisOperator, Any]]:
    found, redis = RedisOperator(Link(url, "test-operator")), Redis.from_url(url)
    try:
        yield found, redis
    finally:
        await found.close()
        await redis.aclose()


@asynccontextmanager
async def worker(url: str, name: str) -> AsyncIterator[RedisWorker]:
    batch = Batch(Link(url, "test-worker"))
    found = RedisWorker(batch, RedisStore(batch), {lane: Link(url, f"test-{lane}") for lane in Lane}, name)
    try:
        yield found
    finally:
        await found.close()


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    async def look() -> None:
        while not await true():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look(), seconds)


# --- a look -------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_is_seen_as_one_and_left_as_it_was(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        seen = await found.look()
        lanes = {lane: Backlog(0, 0) for lane in Lane}
        assert seen == Overview(seen.now, (), (), lanes, Backlog(0, 0), 0, None)
        seconds, _ = await redis.time()
        assert abs(seen.now - seconds * 1000) < 5000
        assert await redis.keys("*") == []


async def test_what_waits_and_what_is_in_hand_are_told_apart_and_how_old_they_are(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        seconds, _ = await redis.time()
        for age in (50, 40, 30, 20, 10):
            await redis.xadd(HASH, {"a": "b"}, id=f"{(seconds - age) * 1000}-0")
        assert (await found.look()).lanes[Lane.HASH].waiting == 5  # nobody has ever taken any: there is no group

        await redis.xgroup_create(HASH, names.GROUP, "0")
        taken = await redis.xreadgroup(names.GROUP, "one", {HASH: ">"}, count=3)
        [first, *_] = [id for _, entries in taken for id, _ in entries]
        await redis.xack(HASH, names.GROUP, first)
        await redis.xdel(HASH, first)
        depth = (await found.look()).lanes[Lane.HASH]
        assert (depth.waiting, depth.in_hand) == (2, 2)
        assert 20_000 <= (depth.oldest_waiting_ms or 0) < 25_000
        assert 40_000 <= (depth.oldest_in_hand_ms or 0) < 45_000

        await redis.xtrim(HASH, maxlen=0)
        assert (await found.look()).lanes[
            Lane.HASH
        ].waiting == 0  # two that are gone are in hand, until they are reaped


async def test_each_worker_is_seen_with_what_it_says_and_what_it_was_handed(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis), worker(redis_url, "alive") as living:
        first = (await living.beat(VITALS)).now
        while (last := (await living.beat(VITALS)).now) == first:
            pass
        for n in range(3):
            await redis.xadd(HASH, {"n": n})
        await redis.xgroup_create(HASH, names.GROUP, "0")
        for name, count in (("alive", 2), ("gone", 1)):
            await redis.xreadgroup(names.GROUP, name, {HASH: ">"}, count=count)
        await redis.xgroup_createconsumer(HASH, names.GROUP, "idle")

        alive, gone, idle = (await found.look()).workers
        assert (alive.name, alive.pending) == ("alive", {Lane.FAST: 0, Lane.HASH: 2, Lane.SLOW: 0})
        assert alive.beat is not None and alive.beat.alive
        assert (alive.beat.since, alive.beat.at, alive.beat.vitals) == (first, last, VITALS)
        assert (gone.name, gone.pending, gone.beat) == ("gone", {Lane.FAST: 0, Lane.HASH: 1, Lane.SLOW: 0}, None)
        assert (idle.name, idle.pending, idle.beat) == ("idle", dict.fromkeys(Lane, 0), None)


async def test_a_worker_that_was_not_heard_of_for_too_long_is_silent(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis), worker(redis_url, "w") as living:
        await living.beat(VITALS)
        said = msgspec.msgpack.decode(await redis.hget(names.WORKERS, "w"))
        for age, alive in ((WORKER_LIVES_MS - 2000, True), (WORKER_LIVES_MS + 1, False)):
            now = (await found.look()).now
            await redis.hset(names.WORKERS, "w", msgspec.msgpack.encode(said | {"at": now - age}))
            [seen] = (await found.look()).workers
            assert seen.beat is not None and seen.beat.alive is alive


@pytest.mark.parametrize("said", [b"", b"\xc1", msgspec.msgpack.encode({"at": 1, "lanes": {"hash": [1, 2.0]}})])
async def test_a_sign_of_life_that_cannot_be_read_is_none(redis_url: str, said: bytes) -> None:
    async with operator(redis_url) as (found, redis):
        await redis.hset(names.WORKERS, "odd", said)
        assert (await found.look()).workers == ()


async def test_gateways_that_were_heard_of_lately_are_seen_and_those_that_left_are_not(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        nodes = [RedisGateway(Batch(Link(redis_url, "test")), Link(redis_url, "test"), f"0-n{n}", 1) for n in range(3)]
        for node in nodes:
            clock, _ = await node.heartbeat()
        await redis.zadd(names.LIVING, {"0-dead": clock.now - NODE_LIVES_MS})
        assert (await found.look()).nodes == ("0-n0", "0-n1", "0-n2")
        await nodes[1].close()
        assert (await found.look()).nodes == ("0-n0", "0-n2")
        await nodes[0].heartbeat()
        assert await redis.zscore(names.LIVING, "0-dead") is None, "nobody keeps the dead"
        for node in nodes[::2]:
            await node.close()


async def test_how_far_the_stores_clock_is_ahead_is_seen(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        assert (await found.look()).ahead == 0
        now = (await found.look()).now
        await redis.hset(names.CLOCK, mapping={"last": now + 3_600_000, "ahead": 0})
        assert 3_599_000 < (await found.look()).ahead <= 3_600_000


async def test_mails_that_wait_and_the_newest_dead_letter_are_seen(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        for n in range(2):
            await redis.xadd(names.MAIL, {"id": f"m{n}"})
        await redis.xadd(names.DEAD, {"lane": "mail", "reason": "older"}, id="1-0")
        await redis.xadd(names.DEAD, {"lane": "hash", "reason": "newest", "r": "rid", "e": "login"}, id="1700-1")
        seen = await found.look()
        assert (seen.mail.waiting, seen.mail.in_hand, seen.dead) == (2, 0, 2)
        assert seen.mail.oldest_waiting_ms is not None and seen.mail.oldest_waiting_ms < 5000
        assert seen.newest == Letter("1700-1", 1700, "hash", "newest", "login", "rid")


@pytest.mark.parametrize("key", [names.DEAD, names.WORKERS, HASH])
async def test_what_redis_refuses_is_said_as_such(redis_url: str, key: str) -> None:
    async with operator(redis_url) as (found, redis):
        await redis.set(key, "neither a stream nor a hash")
        with pytest.raises(Unavailable, match="Redis refuses"):
            await found.look()


def test_what_ended_is_counted_from_one_beat_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(credit, "time", SimpleNamespace(monotonic=lambda: now))
    hold = credit.LaneHold(Lane.HASH, 2)
    turns = [credit.Turn(hold) for _ in range(5)]
    for turn in turns[:3]:
        turn.end()
        turn.end()  # a turn ends once
    now += 2
    assert (hold.held, hold.drained()) == (2, 1.5)
    now += 1
    assert hold.drained() == 0.0
    for turn in turns[3:]:
        turn.end()
    now += 0.5
    assert (hold.held, hold.drained()) == (0, 4.0)


# --- dead letters -------------------------------------------------------------------------------------------------

SEALED = SealedMail("0wrk1-mail", b"wrapped\xff\x00", b"box\xfe")


def fields_of(mail: SealedMail) -> dict[Any, Any]:
    return {"id": mail.id, "w": text(mail.wrapped), "x": text(mail.box)}


async def buried(url: str, *, kept: bool = True, reason: str = "not sent in 5 tries") -> None:
    """A mail that was taken and given up."""
    queue = mail_queue(url, "mailer")
    try:
        async with Redis.from_url(url) as redis:
            await redis.xadd(names.MAIL, fields_of(SEALED))
        [found] = await queue.take(1) or await queue.take(1)
        assert found.mail == SEALED
        await queue.bury(found.token, reason, found.mail if kept else None)
    finally:
        await queue.close()


async def test_letters_are_given_newest_first_however_many_there_are(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        assert await found.letters(None) == []
        count = 2 * LETTERS_AT_ONCE
        async with redis.pipeline() as pipe:
            for n in range(1, count + 1):
                pipe.xadd(names.DEAD, {"lane": "fast", "reason": "r"}, id=f"{n}-0")
            await pipe.execute()
        newest_first = [f"{n}-0" for n in range(count, 0, -1)]
        for most in (1, LETTERS_AT_ONCE, LETTERS_AT_ONCE + 1, count, 9 * count, None):
            assert [letter.id for letter in await found.letters(most)] == newest_first[:most]


async def test_a_letter_is_read_whatever_is_in_it(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        await redis.xadd(names.DEAD, {b"\xff": b"\xfe", "lane": b"\xff"}, id="7-0")
        assert await found.letters(1) == [Letter("7-0", 7, "\ufffd", "")]


async def test_a_mail_that_could_not_be_sent_keeps_its_box_and_is_queued_again_as_it_was(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        await buried(redis_url)
        [letter] = await found.letters(None)
        assert (letter.lane, letter.rid, letter.reason, letter.retryable) == (
            "mail",
            SEALED.id,
            "not sent in 5 tries",
            True,
        )
        assert await redis.xlen(names.MAIL) == 0
        assert await found.retry([letter.id]) == ["retried"]
        assert await found.letters(None) == []
        queue = mail_queue(redis_url, "another")
        assert [found.mail for found in await queue.take(10)] == [SEALED]
        await queue.close()


async def test_a_letter_that_two_operators_retry_at_once_is_one_mail(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis), operator(redis_url) as (other, _):
        await buried(redis_url)
        [letter] = await found.letters(None)
        verdicts = await asyncio.gather(*(who.retry([letter.id]) for who in (found, other) for _ in range(5)))
        assert sorted(verdict for [verdict] in verdicts) == ["retried"] + ["unknown"] * 9
        assert await redis.xlen(names.MAIL) == 1


async def test_what_was_not_kept_cannot_be_retried_and_stays(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        await buried(redis_url)
        await buried(redis_url, kept=False, reason="not a mail")
        request = (await redis.xadd(names.DEAD, {"lane": "hash", "reason": "r", "r": "rid", "e": "login"})).decode()
        _, unreadable, mail = [letter.id for letter in await found.letters(None)]
        asked = [request, unreadable, mail, "1-0"]
        assert await found.retry(asked) == ["request", "unreadable", "retried", "unknown"]
        assert [letter.id for letter in await found.letters(None)] == [request, unreadable]
        assert await redis.xlen(names.MAIL) == 1


async def test_a_letter_that_is_dropped_is_gone_for_good(redis_url: str) -> None:
    async with operator(redis_url) as (found, redis):
        ids = [(await redis.xadd(names.DEAD, {"lane": "fast", "reason": "r"})).decode() for _ in range(3)]
        assert await found.drop([ids[2], "1-0", ids[0]]) == [True, False, True]
        assert await found.drop([ids[0]]) == [False]
        assert [letter.id for letter in await found.letters(None)] == [ids[1]]


@pytest.mark.parametrize(
    "id", ["", "-", "+", "$", "*", "7", "7-*", "(7-0", " 7-0", "7-0\n", "٧-0", "18446744073709551616-0", "x"]
)
async def test_what_is_no_letters_id_names_none(redis_url: str, id: str) -> None:
    async with operator(redis_url) as (found, redis):
        await redis.xadd(names.DEAD, {"lane": "mail", "reason": "r", "id": "i", "w": "w", "x": "x"}, id="7-0")
        assert (await found.retry([id]), await found.drop([id])) == (["unknown"], [False])
        assert await redis.xlen(names.DEAD) == 1


async def test_a_mail_that_a_full_server_cannot_bury_stays_in_the_mailers_hand(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    try:
        async with Redis.from_url(server.url) as redis:
            queue = mail_queue(server.url, "mailer")
            await redis.xadd(names.MAIL, fields_of(SEALED))
            [taken] = await queue.take(1) or await queue.take(1)
            await redis.config_set("maxmemory", 1)
            with pytest.raises(Unavailable):
                await queue.bury(taken.token, "not sent in 5 tries", taken.mail)
            assert (await redis.xpending(names.MAIL, names.MAIL_GROUP))["pending"] == await redis.xlen(names.MAIL) == 1
            await redis.config_set("maxmemory", 0)
            await queue.bury(taken.token, "not sent in 5 tries", taken.mail)
            assert (await redis.xlen(names.MAIL), await redis.xlen(names.DEAD)) == (0, 1)
            await queue.close()
    finally:
        await server.stop()


class Post:
    """A Mailer that refuses while it is `shut`."""

    def __init__(self) -> None:
        self.shut, self.tries = True, 0
        self.sent: list[tuple[str, Mail]] = []

    async def send(self, mail: Mail, message_id: str) -> None:
        self.tries += 1
        if self.shut:
            raise Undeliverable("shut")
        self.sent.append((message_id, mail))


async def test_a_mail_that_was_given_up_is_sent_under_its_id_when_it_is_retried(redis_url: str, tmp_path: Path) -> None:
    keys, post = KeyFiles(tmp_path), Post()
    private = keys.seal_keys(Ring.MAIL, private=True)
    mail = Mail("confirmation", "ana@example.com", "en", "12345678")
    sealed = entries.pack_mail(Sealer(private, EDGE, "mail").envelope, "0wrk1-mail", mail)
    async with operator(redis_url) as (found, redis):
        await redis.xadd(names.MAIL, fields_of(sealed))
        await redis.xadd(names.MAIL, fields_of(replace(sealed, id="0wrk1-other")))  # the seal binds the id
        loop = mailer.MailerLoop(mail_queue(redis_url, "m"), post, Opener(private, EDGE, "mail"), EDGE)
        running = asyncio.create_task(loop.run())

        async def given_up() -> bool:
            return bool(await redis.xlen(names.DEAD) == 2)

        await until(given_up)
        letters = {letter.retryable: letter for letter in await found.letters(None)}
        assert (letters[True].reason, letters[True].rid, post.tries) == ("refused for good: shut", sealed.id, 1)
        assert (letters[False].lane, letters[False].rid) == ("mail", "")

        post.shut = False
        assert await found.retry([letters[True].id, letters[False].id]) == ["retried", "unreadable"]

        async def arrived() -> bool:
            return bool(post.sent) and not await redis.xlen(names.MAIL)

        await until(arrived)
        assert [(id, replace(sent, at=0)) for id, sent in post.sent] == [(sealed.id, mail)]
        assert [letter.id for letter in await found.letters(None)] == [letters[False].id]
        loop.stop()
        await asyncio.wait_for(running, 5)


# --- the commands -------------------------------------------------------------------------------------------------


async def start(folder: Path, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """A command with nothing in its environment but what is said here: no secret."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", *arguments),
        cwd=folder,
        env={**given, "PYTHONPATH": str(ROOT), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(folder: Path, *arguments: str, **environ: str) -> tuple[int | None, list[str], list[str]]:
    """Exit status, lines of stdout, lines of stderr."""
    process = await start(folder, *arguments, **environ)
    output, errors = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, output.decode().splitlines(), errors.decode().splitlines()


async def next_line(process: asyncio.subprocess.Process, beginning: str) -> str:
    """The next line that begins so."""
    assert process.stdout is not None
    while line := (await asyncio.wait_for(process.stdout.readline(), 20)).decode():
        if line.startswith(beginning):
            return line
    raise AssertionError("it ended")


async def interrupted(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), 10)
    return process.returncode, errors.decode()


async def status(folder: Path, url: str) -> dict[str, Any]:
    code, [line], errors = await run(folder, "status", "--json", FIN_REDIS_URL=url)
    assert (code, errors) == (0, [])
    found: dict[str, Any] = json.loads(line)
    return found


async def test_a_deployment_is_shown_without_any_of_its_secrets(deployment: Deployment, tmp_path: Path) -> None:
    found = await status(tmp_path, deployment.redis_url)
    alive = [one for one in found["workers"] if one["state"] == "alive"]
    assert len(alive) == len(deployment.of("worker"))
    assert len(found["nodes"]) >= len(deployment.of("gateway"))
    assert set(found["lanes"]) == set(map(str, Lane))
    for one in alive:
        assert 0 <= one["beat_age_ms"] < one["up_ms"] + 2000 and one["hash_ms"] > 0
        assert all(lane["slots"] > 0 and lane["could_rate"] > 0 for lane in one["lanes"].values())
    code, lines, errors = await run(tmp_path, "status", FIN_REDIS_URL=deployment.redis_url)
    assert (code, errors) == (0, [])
    assert f"workers: {len(alive)} alive" in lines[0]
    assert all(any(line.startswith(one["name"]) for line in lines) for one in alive)


@pytest.mark.streams
async def test_workers_that_ended_well_leave_no_name_and_who_was_killed_is_gone(redis_url: str, tmp_path: Path) -> None:
    with Deployment.start(tmp_path, redis_url, workers=3, mailers=0) as running:
        async with operator(redis_url) as (found, redis):

            async def all_work() -> bool:
                return sum(seen.beat is not None for seen in (await found.look()).workers) == 3

            await until(all_work)
            for seen in (await found.look()).workers:  # as if each had taken something
                await redis.xgroup_createconsumer(HASH, names.GROUP, seen.name)
            first, second, third = running.of("worker")
            running.kill(first)
            assert second.end() == 0
            running.processes.remove(second)

            async def one_is_left() -> bool:
                workers = (await found.look()).workers
                return [seen.beat is None for seen in workers].count(True) == 1 and len(workers) == 2

            await until(one_is_left)
            states = sorted(one["state"] for one in (await status(tmp_path, redis_url))["workers"])
            assert states == ["alive", "gone"]
            assert third.end() == 0
            assert [seen.beat for seen in (await found.look()).workers] == [None]
    assert "NO WORKER IS ALIVE" in "".join((await run(tmp_path, "status", FIN_REDIS_URL=redis_url))[1])


async def test_what_a_worker_ends_is_measured(redis_url: str, tmp_path: Path) -> None:
    with Deployment.start(tmp_path, redis_url, mailers=0) as running:
        async with operator(redis_url) as (found, _), running.client() as client:
            drained: dict[Lane, float] = {}

            async def both_drain() -> bool:
                await client.ask("login", email="a@example.com", password="x")
                await client.ask("refresh", refreshToken="x")
                for seen in (await found.look()).workers:
                    if seen.beat is not None:
                        drained.update({lane: v.drained for lane, v in seen.beat.vitals.lanes.items() if v.drained})
                return len(drained) == 2

            await until(both_drain)

            async def nothing_drains() -> bool:
                [seen] = (await found.look()).workers
                return seen.beat is not None and not any(v.drained for v in seen.beat.vitals.lanes.values())

            await until(nothing_drains)


async def test_dead_letters_are_listed_retried_and_dropped_by_commands(redis_url: str, tmp_path: Path) -> None:
    async def dead(*arguments: str) -> tuple[int | None, list[str]]:
        code, lines, errors = await run(tmp_path, "dead", *arguments, FIN_REDIS_URL=redis_url)
        assert errors == []
        return code, lines

    async with operator(redis_url) as (found, redis):
        await buried(redis_url)
        fields: Any = {"lane": "hash", "reason": "delivered 3 times", "r": "0edg1-rid", "e": "login"}
        request = (await redis.xadd(names.DEAD, fields)).decode()
        [mail] = [letter.id for letter in await found.letters(None) if letter.retryable]

        code, lines = await dead("list")
        assert code == 0 and [line.split()[0] for line in lines] == ["id", request, mail]
        assert "0edg1-rid" in lines[1] and lines[2].endswith("yes    not sent in 5 tries")
        code, [line] = await dead("list", "--json", "--most", "1")
        assert code == 0 and json.loads(line)["letters"][0]["request"] == "0edg1-rid"
        code, lines = await dead("retry", request, mail, "1-0")
        assert code == 1 and lines[1] == f"{mail}: queued again"
        assert "nothing to send again" in lines[0] and "no such letter" in lines[2]
        assert await redis.xlen(names.MAIL) == 1
        assert await dead("drop", "--all") == (0, ["1: dropped"])
        assert await redis.xlen(names.DEAD) == 0


@pytest.mark.parametrize("arguments", ["status --nothing", "status --watch 0", "dead", "dead retry", "dead list 1-0"])
async def test_what_is_no_command_is_said_before_anything_is_asked(tmp_path: Path, arguments: str) -> None:
    code, lines, [error] = await run(tmp_path, *arguments.split(), FIN_PORT="no port")
    assert (code, lines) == (64, [])
    assert "usage: python -m app" in error or "--watch must be" in error


@pytest.mark.parametrize("arguments", ["status", "status --json", "dead list", "dead drop --all"])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", ""])
async def test_a_queue_that_is_away_is_said_in_one_sentence(tmp_path: Path, arguments: str, url: str) -> None:
    code, lines, [error] = await run(tmp_path, *arguments.split(), FIN_REDIS_URL=url)
    assert (code, lines) == (69, [])
    assert error.startswith("finthenticate: the queue does not answer: ")


async def test_a_watch_goes_on_until_ctrl_c_and_that_is_no_fault(redis_url: str, tmp_path: Path) -> None:
    process = await start(tmp_path, "status", "--watch", "1", FIN_REDIS_URL=redis_url)
    for _ in range(2):
        await next_line(process, "dead letters: 0")
    assert await interrupted(process) == (0, "")


async def test_a_watch_begins_before_the_server_and_outlives_it(tmp_path: Path) -> None:
    process = await start(tmp_path, "status", "--watch", "1", FIN_DATA_DIR=str(tmp_path / "data"))
    assert "no embedded server runs" in await next_line(process, "The queue does not answer: ")
    for _ in range(2):
        server = EmbeddedRedis(tmp_path / "data")
        await server.start()
        await next_line(process, "dead letters: 0")
        await server.stop()
        await next_line(process, "The queue does not answer: ")
    assert await interrupted(process) == (0, "")


async def test_a_watch_clears_a_terminal_before_each_table(redis_url: str, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    given = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "status", "--watch", "1"),
        cwd=tmp_path,
        env={**given, "PYTHONPATH": str(ROOT), "FIN_REDIS_URL": redis_url},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    try:
        while shown.count(b"dead letters") < 2:
            shown += await asyncio.wait_for(asyncio.to_thread(os.read, leader, 65536), 20)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        os.close(leader)
    assert shown.startswith(b"\x1b[H\x1b[2J") and shown.count(b"\x1b[H\x1b[2J") == 2
