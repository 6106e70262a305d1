"""The queue as a client sees it: positions, deadlines, a full lane, unreadable entries, workers that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from adapters import names
from adapters.key_files import KeyFiles
from app.entries import pack_request
from app.frames import typed
from app.keys import Ring
from app.messages import Lane
from app.records import Origin
from app.sealing import Envelope
from app.settings import Secret
from tests.deployment import PASSWORD, Deployment, event_of, in_lane, new_address

SLOW = {"FIN_ARGON2": "m=65536,t=3,p=1", "FIN_HASH_THREADS": "1"}


@pytest.fixture
def idle(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A gateway and nobody who works for it; its lanes hold twenty."""
    folder = tmp_path_factory.mktemp("idle")
    with Deployment.start(folder, redis_url, workers=0, mailers=0, settings={"FIN_MAX_QUEUE": "20"}) as running:
        gateway = running.of("gateway")[0]
        running.wait_listening(gateway)
        yield running


async def test_without_a_worker_a_request_is_told_its_place_and_its_deadline_and_is_never_hashed_later(
    idle: Deployment,
) -> None:
    async with idle.client() as client:
        answer = await client.ask("login", email=new_address(), password="wrong", timeout_ms=300)
        idle.add("worker")
        idle.wait_ready(idle.of("gateway")[0])
        after = await client.ask("login", email=new_address(), password="wrong")

    assert event_of(answer) == ("error", "deadline_exceeded")
    assert [frame["event"] for frame in answer.progress] == ["queued"]
    assert answer.progress[0]["data"]["position"] == 1
    assert after.code == "invalid_credentials"
    with Redis.from_url(idle.redis_url) as redis:
        assert [fields[b"code"] for _, fields in redis.xrange(names.EVENTS)] == [b"invalid_credentials"]
        assert in_lane(redis, Lane.HASH) == 0


async def test_a_full_lane_refuses_at_once_and_says_when_to_come_again(idle: Deployment) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(idle.client()) for _ in range(5)]
        asked = [c.ask("login", email="a@b.c", password="x", timeout_ms=1000) for c in clients for _ in range(5)]
        answers = await asyncio.gather(*asked)

    full = [answer for answer in answers if answer.code == "overloaded"]
    assert len(full) == 5
    assert all(answer.data["retryable"] and answer.data["retryAfterMs"] >= 180 for answer in full)
    assert {answer.code for answer in answers} == {"overloaded", "deadline_exceeded"}


async def test_who_waits_is_told_a_position_that_only_falls(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("slow")
    with Deployment.start(folder, redis_url, mailers=0, settings=SLOW) as running:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(3)]
            asked = [c.ask("login", email=new_address(), password="x", timeout_ms=30_000) for c in clients * 8]
            answers = await asyncio.gather(*asked)

    positions = [[frame["data"]["position"] for frame in answer.progress] for answer in answers]
    assert {answer.code for answer in answers} == {"invalid_credentials"}
    assert all(told == sorted(told, reverse=True) and len(set(told)) == len(told) for told in positions)
    assert max(max(told, default=0) for told in positions) > 10
    assert max(len(told) for told in positions) >= 2
    assert all(frame["data"]["etaMs"] > 0 for answer in answers for frame in answer.progress)


async def test_a_login_storm_does_not_delay_a_refresh(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("storm")
    with Deployment.start(folder, redis_url, settings=SLOW) as running:
        async with running.account() as (client, account), running.client() as storm:
            token = (await account.login(client)).data["refreshToken"]
            logins = [storm.ask("login", email=new_address(), password="x", timeout_ms=30_000) for _ in range(8)]
            waiting = asyncio.gather(*logins)
            refreshed = await client.ask("refresh", refreshToken=token)
            assert not waiting.done()
            assert refreshed.event == "token_refreshed" and not refreshed.progress
            await waiting


BAD_ENTRIES = {
    "nothing of an entry": {"hello": "world"},
    "half of one": {"r": "0aaaa-x", "n": "node", "e": "login"},
    "a deadline that is none": {"r": "0aaaa-x", "n": "node", "e": "login", "d": "soon", "w": "w", "x": "x"},
    "what cannot be unsealed": {"r": "0aaaa-x", "n": "n", "e": "login", "d": "9999999999999", "w": "w", "x": "x"},
    "bytes that are no text": {"r": b"\xff\xfe", "n": "n", "e": "login", "d": "9999999999999", "w": "w", "x": "x"},
}


@pytest.mark.streams
@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("name", BAD_ENTRIES)
async def test_an_unreadable_entry_goes_to_the_dead_letters_and_its_neighbours_are_answered(
    deployment: Deployment, lane: Lane, name: str
) -> None:
    with Redis.from_url(deployment.redis_url) as redis:
        before = redis.xlen(names.DEAD)
        async with deployment.client() as client:
            redis.xadd(names.lane(lane), BAD_ENTRIES[name])
            login = await client.ask("login", email=new_address(), password="x")
            refresh = await client.ask("refresh", refreshToken="x")

            async def buried() -> None:
                while redis.xlen(names.DEAD) == before or redis.xlen(names.lane(lane)):
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(buried(), 5)
        [(_, letter)] = redis.xrevrange(names.DEAD, count=1)

    assert (login.code, refresh.code) == ("invalid_credentials", "token_invalid")
    assert letter[b"lane"] == lane.encode() and letter[b"reason"]
    assert not {b"x", b"w"} & set(letter), "what was sealed is not kept"


@pytest.mark.streams
async def test_an_entry_whose_plain_fields_were_changed_is_not_evaluated(deployment: Deployment) -> None:
    """Somebody who can write to the stream moves a request to another gateway's name, or gives it more time."""
    with Redis.from_url(deployment.redis_url) as redis:
        [(_, last)] = redis.xrevrange(names.EVENTS, count=1)
        taken: list[dict[bytes, bytes]] = []
        async with deployment.client() as client:
            for process in deployment.of("worker"):
                process.pause()
            try:
                asked = asyncio.ensure_future(client.ask("login", email=new_address(), password="x"))

                async def there() -> None:
                    while not taken:
                        taken.extend(fields for _, fields in redis.xrange(names.lane(Lane.HASH)))
                        await asyncio.sleep(0.01)

                await asyncio.wait_for(there(), 5)
                later = str(int(taken[0][b"d"]) + 3_600_000)
                redis.xadd(names.lane(Lane.HASH), taken[0] | {b"r": b"0aaaa-other", b"d": later.encode()})
            finally:
                for process in deployment.of("worker"):
                    process.go_on()
            answer = await asked

            async def buried() -> None:
                while not any(f.get(b"r") == b"0aaaa-other" for _, f in redis.xrevrange(names.DEAD, count=5)):
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(buried(), 5)
        [(_, newest)] = redis.xrevrange(names.EVENTS, count=1)

    assert answer.code == "invalid_credentials"
    assert newest[b"request"] != b"0aaaa-other" and newest != last


@pytest.mark.streams
async def test_an_entry_sealed_without_the_edge_secret_is_buried_and_its_writer_learns_nothing(
    deployment: Deployment,
) -> None:
    """Somebody who can write to the stream, and has the workers' public key, lacks the edge secret."""
    kid, public_key = KeyFiles(deployment.folder / "data").seal_keys(Ring.SEAL, private=False).current
    own = deployment.environ["FIN_EDGE_SECRET"].partition(":")[0]
    forged_with = Secret(own, bytes(range(32)))
    envelope = Envelope.to(kid, public_key, forged_with, "request")
    frame = typed("login", {"email": new_address(), "password": "x"}, "1")
    rid = f"0{own}-forged"
    origin = Origin("0-nobody", "c", "192.0.2.1", "192.0.2.1")
    entry = pack_request(envelope, rid, frame, origin, 9_999_999_999_999, Lane.HASH)
    with Redis.from_url(deployment.redis_url) as redis:
        redis.xadd(
            names.lane(Lane.HASH),
            {"r": rid, "n": entry.node, "e": "login", "d": entry.deadline, "s": "", "p": 0, "w": entry.wrapped}
            | {"x": entry.box},
        )

        async def buried() -> dict[bytes, bytes]:
            while True:
                for _, letter in redis.xrevrange(names.DEAD, count=5):
                    if letter.get(b"r") == rid.encode():
                        return dict(letter)
                await asyncio.sleep(0.01)

        letter = await asyncio.wait_for(buried(), 5)
        audited = [fields for _, fields in redis.xrange(names.EVENTS) if fields[b"request"] == rid.encode()]

    assert letter[b"reason"] == b"the seal does not hold"
    assert not audited


@pytest.mark.streams
async def test_lanes_and_mail_stream_that_vanish_are_made_again_and_nobody_dies(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Deployment.start(tmp_path_factory.mktemp("vanish"), redis_url) as running:
        async with running.client() as client:
            await running.sign_up(client)
            with Redis.from_url(redis_url) as redis:
                redis.delete(*map(names.lane, Lane), names.MAIL)
            account = await running.sign_up(client)
            assert (await account.login(client)).event == "login_success"
        assert all(process.popen.poll() is None for process in running.processes)


@pytest.mark.streams
async def test_what_a_killed_worker_held_is_taken_over_and_answered_once(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    with Deployment.start(folder, redis_url, settings=SLOW) as running:
        async with running.account() as (client, account):
            asked = [asyncio.ensure_future(account.login(client, timeout_ms=30_000)) for _ in range(4)]
            with Redis.from_url(redis_url) as redis:

                async def in_hand() -> None:
                    while not redis.xpending(names.lane(Lane.HASH), names.GROUP)["pending"]:
                        await asyncio.sleep(0.005)

                await asyncio.wait_for(in_hand(), 5)
                running.kill(running.of("worker")[0])
                running.add("worker")
                answers = await asyncio.gather(*asked)
                sessions = (await client.ask("sessions")).data["sessions"]
                left = [redis.xlen(names.lane(lane)) for lane in Lane]

    assert len({answer.data["sessionId"] for answer in answers}) == len(sessions) == 4
    assert left == [0] * len(Lane)


async def test_a_worker_told_to_stop_ends_what_it_holds_and_nothing_fails(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Deployment.start(tmp_path_factory.mktemp("drain"), redis_url, workers=2) as running:
        async with running.client() as client:
            account = await running.sign_up(client, password=PASSWORD)
            stopping = False
            answers = []
            for n in range(60):
                answers += await asyncio.gather(*(account.login(client) for _ in range(4)))
                if n == 20 and not stopping:
                    running.of("worker")[0].terminate()
                    stopping = True

    assert len({answer.data["sessionId"] for answer in answers}) == 240


@pytest.mark.streams
async def test_a_worker_told_to_stop_hands_back_what_it_has_not_begun_and_another_does_it_soon(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    costly = {"FIN_ARGON2": "m=262144,t=6,p=1", "FIN_HASH_THREADS": "1"}  # more than a second each
    with Deployment.start(tmp_path_factory.mktemp("back"), redis_url, mailers=0, settings=costly) as running:
        async with running.client() as client:
            asked = [
                asyncio.ensure_future(client.ask("login", email=new_address(), password="x", timeout_ms=30_000))
                for _ in range(2)
            ]
            with Redis.from_url(redis_url) as redis:

                async def in_hand() -> None:
                    while redis.xpending(names.lane(Lane.HASH), names.GROUP)["pending"] < 2:
                        await asyncio.sleep(0.005)

                await asyncio.wait_for(in_hand(), 5)
                [first] = running.of("worker")
                running.add("worker")
                first.terminate()
                answers = await asyncio.gather(*asked)
                audited = [fields for _, fields in redis.xrange(names.EVENTS)]

    assert [event_of(answer) for answer in answers] == [("login_failure", "invalid_credentials")] * 2
    assert len(audited) == 2 and len({entry[b"worker"] for entry in audited}) == 2
