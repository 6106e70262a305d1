"""Many at once: every reply reaches its own connection, every effect happens once, under any race."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis import Redis

from adapters import names
from app.client import Client, Closed
from app.messages import Lane
from tests.accounts import reset_code
from tests.deployment import PASSWORD, Databases, Deployment, event_of, in_lane, new_address

CLIENTS = 500
PATIENT: dict[str, Any] = {"timeout_ms": 30_000}  # how fast so many are served is not what is asked here


@pytest.fixture(scope="module")
def crowd(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two gateways and three workers on one Redis, limits off."""
    with databases() as url, Deployment.start(tmp_path_factory.mktemp("crowd"), url, gateways=2, workers=3) as running:
        yield running


def _hashed(deployment: Deployment, code: str) -> int:
    """How many logins of this code the audit has: each was one evaluation."""
    with Redis.from_url(deployment.redis_url) as redis:
        return sum(1 for _, fields in redis.xrange(names.EVENTS) if fields[b"code"] == code.encode())


async def test_five_hundred_clients_register_confirm_and_log_in_each_with_its_own_answers(crowd: Deployment) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    finished: Counter[str] = Counter()

    async def one(client: Client, number: int) -> None:
        address, password = new_address(), f"{PASSWORD} {number}"
        account = await crowd.sign_up(client, address, password, **PATIENT)
        login = await account.login(client, **PATIENT)
        data = (await client.ask("account", **PATIENT)).data
        assert (data["email"], data["userId"]) == (address, login.data["userId"])
        [session] = (await client.ask("sessions", **PATIENT)).data["sessions"]
        assert session["sessionId"] == login.data["sessionId"]
        assert client.pushes.empty(), "an answer to something that was not asked here"
        finished[login.data["userId"]] += 1

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(crowd.client(n)) for n in range(CLIENTS)]
        await asyncio.gather(*(one(client, n) for n, client in enumerate(clients)))

    assert len(finished) == CLIENTS
    with Redis.from_url(crowd.redis_url) as redis:
        outcomes = Counter(fields[b"event"] for _, fields in redis.xrange(names.EVENTS))
        shares = Counter(fields[b"worker"] for _, fields in redis.xrange(names.EVENTS))
        left = [in_lane(redis, lane) for lane in Lane]
    assert (outcomes[b"email_confirmed"], outcomes[b"login_success"]) == (CLIENTS, CLIENTS)
    assert left == [0] * len(Lane)
    assert all(share > CLIENTS // 10 for share in shares.values()) and len(shares) == 3, shares


async def test_a_hundred_registrations_of_one_address_make_one_account_with_the_confirmed_password(
    crowd: Deployment,
) -> None:
    address = new_address()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(crowd.client(n)) for n in range(100)]
        passwords = [f"{PASSWORD} {n}" for n in range(100)]
        accepted = await asyncio.gather(
            *(c.ask("register", email=address, password=p) for c, p in zip(clients, passwords, strict=True))
        )
        assert {answer.event for answer in accepted} == {"register_accepted"}
        codes = await crowd.mailed_codes(address, 5)

        async def confirm(client: Client, challenge: str) -> list[tuple[str, str | None]]:
            return [event_of(await client.ask("confirm_email", challenge=challenge, code=code)) for code in codes]

        answers = await asyncio.gather(
            *(confirm(client, answer.data["challenge"]) for client, answer in zip(clients, accepted, strict=True))
        )
        winners = [n for n, tried in enumerate(answers) if ("email_confirmed", None) in tried]
        logins = await asyncio.gather(
            *(c.ask("login", email=address, password=p) for c, p in zip(clients, passwords, strict=True))
        )

    assert len(codes) == 5, "at most five registrations are pending for an address"
    assert len(winners) == 1
    assert [n for n, login in enumerate(logins) if login.event == "login_success"] == winners
    assert len(crowd.mails(address)) == 5


async def test_fifty_refreshes_with_one_token_make_one_chain(crowd: Deployment) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(crowd.client(n)) for n in range(50)]
        account = await crowd.sign_up(clients[0])
        token = (await account.login(clients[0])).data["refreshToken"]
        answers = await asyncio.gather(*(client.ask("refresh", refreshToken=token) for client in clients))
        successors = {answer.data["refreshToken"] for answer in answers}
        again = await clients[0].ask("refresh", refreshToken=successors.pop())

    assert {answer.event for answer in answers} == {"token_refreshed"}
    assert not successors, "every one got the same successor"
    assert again.event == "token_refreshed"


@pytest.fixture(scope="module")
def limited(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Five failures an account, as by default; the other limits off."""
    settings = {"FIN_FAILURES_PER_ACCOUNT": "5", "FIN_ARGON2": "m=8192,t=1,p=1"}
    folder = tmp_path_factory.mktemp("limited")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, settings=settings) as running:
        yield running


@pytest.mark.parametrize("known", [True, False], ids=["known address", "unknown address"])
async def test_of_two_hundred_wrong_passwords_at_once_five_are_hashed_and_the_rest_is_told_to_wait(
    limited: Deployment, known: bool
) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(limited.client(n)) for n in range(50)]
        address = (await limited.sign_up(clients[0])).email if known else new_address()
        before = _hashed(limited, "invalid_credentials")
        answers = await asyncio.gather(
            *(client.ask("login", email=address, password=f"wrong {n}") for client in clients for n in range(4))
        )

    codes = Counter(answer.code for answer in answers)
    assert codes == {"invalid_credentials": 5, "too_many_attempts": 195}
    assert _hashed(limited, "invalid_credentials") - before == 5
    refused = [answer.data for answer in answers if answer.code == "too_many_attempts"]
    assert all(data["retryable"] and 0 < data["retryAfterMs"] <= 30_000 for data in refused)


async def test_twenty_right_passwords_at_once_are_twenty_sessions(limited: Deployment) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(limited.client(n)) for n in range(20)]
        account = await limited.sign_up(clients[0])
        answers = await asyncio.gather(*(account.login(client) for client in clients))
        sessions = (await clients[0].ask("sessions")).data["sessions"]

    assert len({answer.data["sessionId"] for answer in answers}) == 20
    assert len(sessions) == 20


async def test_four_failures_and_a_success_start_the_count_anew(limited: Deployment) -> None:
    async with limited.account() as (client, account):
        for _ in range(3):
            for _ in range(4):
                wrong = await client.ask("login", email=account.email, password="wrong")
                assert wrong.code == "invalid_credentials"
            await account.login(client)


@pytest.fixture(scope="module")
def slow(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Hashing takes long enough for others to pass while a new password is hashed; limits off."""
    settings = {"FIN_ARGON2": "m=16384,t=2,p=1"}
    with (
        databases() as url,
        Deployment.start(tmp_path_factory.mktemp("slow"), url, gateways=2, workers=2, settings=settings) as running,
    ):
        yield running


@pytest.mark.parametrize("how", ["reset_password", "change_password"])
async def test_no_login_with_the_old_password_outlives_the_new_one_however_they_race(
    slow: Deployment, how: str
) -> None:
    """Logins pass between the reading of the sessions and the change: those sessions end too, and their sockets."""
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(slow.client())
        account = await slow.sign_up(owner)
        mine = await account.login(owner, deviceToken=account.device_token)
        clients = [await stack.enter_async_context(slow.client(n)) for n in range(6)]
        begun, told, was_in = asyncio.Event(), Counter[str](), set[Client]()

        async def log_in(client: Client) -> None:
            try:
                while not told["invalid_credentials"]:
                    answer = await client.ask(
                        "login", email=account.email, password=PASSWORD, deviceToken=account.device_token
                    )
                    told[answer.code or answer.event] += 1
                    was_in.update([client] if not answer.code else [])
                    begun.set()
            except Closed:
                told["closed"] += 1

        if how == "reset_password":
            await owner.ask("request_password_reset", email=account.email)
            proof = {"email": account.email, "code": await reset_code(slow, account.email)}
        else:
            proof = {"currentPassword": PASSWORD}
        logins = asyncio.gather(*map(log_in, clients))
        await asyncio.wait_for(begun.wait(), 10)
        changed = await owner.ask(how, newPassword="another horse battery staple", **proof)
        await asyncio.wait_for(logins, 30)
        codes = await asyncio.wait_for(asyncio.gather(*(client.close_code for client in was_in)), 5)

        with Redis.from_url(slow.redis_url) as redis:
            living = redis.zrange(names.USERS + mine.data["userId"] + names.SESSIONS_OF, 0, -1)
    print(dict(told))
    assert changed.event in ("password_reset", "password_changed"), changed.data
    assert set(codes) == {4401}
    assert living == ([] if how == "reset_password" else [mine.data["sessionId"].encode()])
