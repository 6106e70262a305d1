"""Same request again: a key makes it one request, evaluated once, answered to everybody who sent it."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from adapters import names
from app.client import Client, Closed
from app.messages import Lane
from app.rules import GRID_MS
from tests.deployment import PASSWORD, Deployment, event_of, in_lane, new_address


def new_key() -> str:
    return secrets.token_urlsafe(18)


def evaluated(deployment: Deployment, user_id: str) -> int:
    """How many logins of an account were evaluated, by the audit."""
    with Redis.from_url(deployment.redis_url) as redis:
        entries = [fields for _, fields in redis.xrange(names.EVENTS)]
    return sum(1 for e in entries if (e[b"event"], e[b"user"]) == (b"login_success", user_id.encode()))


async def test_the_same_login_on_three_connections_of_two_nodes_and_later_on_a_fourth_is_one_session(
    either: Deployment,
) -> None:
    key = new_key()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(either.client(n)) for n in range(4)]
        account = await either.sign_up(clients[0])
        answers = await asyncio.gather(*(account.login(client, key=key) for client in clients[:3]))
        answers.append(await account.login(clients[3], key=key))
        assert all(answer.data == answers[0].data for answer in answers)
        assert evaluated(either, answers[0].data["userId"]) == 1
        for client in clients:
            assert (await client.ask("account")).data["email"] == account.email
        [session] = (await clients[3].ask("sessions")).data["sessions"]
        assert session["sessionId"] == answers[0].data["sessionId"]


async def test_after_its_session_was_ended_the_same_key_logs_in_anew(either: Deployment) -> None:
    key = new_key()
    async with either.account() as (client, account), either.client(1) as other:
        first = await account.login(client, key=key)
        await client.ask("logout")
        second = await account.login(other, key=key)
        third = await account.login(client, key=key)

    assert second.data["sessionId"] != first.data["sessionId"]
    assert third.data == second.data
    assert evaluated(either, first.data["userId"]) == 2


async def test_of_many_who_ask_again_after_the_session_ended_one_logs_in_and_all_get_its_session(
    deployment: Deployment,
) -> None:
    key = new_key()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(deployment.client(n)) for n in range(6)]
        account = await deployment.sign_up(clients[0])
        first = await account.login(clients[0], key=key)
        await clients[0].ask("logout")
        answers = await asyncio.gather(*(account.login(client, key=key) for client in clients))

    assert len({answer.data["sessionId"] for answer in answers} - {first.data["sessionId"]}) == 1
    assert evaluated(deployment, first.data["userId"]) == 2


async def test_what_a_session_asked_is_not_told_again_when_it_has_ended(deployment: Deployment) -> None:
    key, end = new_key(), new_key()
    rest = deployment.over("rest")
    async with rest.account() as (client, account), rest.client(1) as later:
        login = await account.login(client)
        await client.ask("account", key=key)
        await later.ask("authenticate", accessToken=login.data["accessToken"])
        ended = await client.ask("logout", key=end)
        again = await later.ask("account", key=key)
        ended_again = await later.ask("logout", key=end)

    assert event_of(again) == ("error", "not_authenticated")
    assert ended == ended_again


async def test_the_same_key_with_anything_else_is_another_request(either: Deployment) -> None:
    key = new_key()
    async with either.account() as (client, account):
        login = await account.login(client, key=key)
        wrong = await client.ask("login", key=key, email=account.email, password="wrong")
        elsewhere = await client.ask("login", key=key, email=new_address(), password=account.password)
        named = await account.login(client, key=key, deviceName="another name")
        other_event = await client.ask("refresh", key=key, refreshToken=login.data["refreshToken"])

    assert event_of(wrong) == event_of(elsewhere) == ("login_failure", "invalid_credentials")
    assert named.data["sessionId"] != login.data["sessionId"]
    assert other_event.event == "token_refreshed"


async def test_a_key_of_one_session_gets_nothing_of_anothers_answer(either: Deployment) -> None:
    key = new_key()
    async with either.account() as (first, one), either.account(1) as (second, other):
        await one.login(first)
        await other.login(second)
        mine = await first.ask("account", key=key)
        theirs = await second.ask("account", key=key)

    assert (mine.data["email"], theirs.data["email"]) == (one.email, other.email)


async def test_the_same_request_of_a_session_is_one_with_whichever_of_its_tokens_and_on_either_way(
    deployment: Deployment,
) -> None:
    key, rest = new_key(), deployment.over("rest")
    async with rest.account() as (client, account), deployment.client(1) as socket, rest.client(1) as later:
        login = await account.login(client)
        change = {"currentPassword": account.password, "newPassword": f"{account.password} and more"}
        first = await client.ask("change_password", key=key, **change)
        turned = await later.ask("refresh", refreshToken=login.data["refreshToken"])
        for other in (later, socket):
            assert (await other.ask("authenticate", accessToken=turned.data["accessToken"])).event == "authenticated"
        again = [await other.ask("change_password", key=key, **change) for other in (later, socket)]

    assert [first.event, *(answer.event for answer in again)] == ["password_changed"] * 3


async def test_a_long_answer_to_what_only_reads_is_not_kept(deployment: Deployment) -> None:
    kept = []
    async with deployment.account() as (client, account):
        for count in (1, 20):
            for _ in range(count):
                await account.login(client, deviceName="界" * 100)
            with Redis.from_url(deployment.redis_url) as redis:
                before = set(redis.scan_iter("*same:*"))
                assert (await client.ask("sessions", key=new_key())).event == "sessions"
                kept.append(len(set(redis.scan_iter("*same:*")) - before))

    assert kept == [1, 0]


async def test_a_refusal_is_recorded_and_not_evaluated_again(either: Deployment) -> None:
    key = new_key()
    async with either.account() as (client, account), either.client(1) as other:
        with Redis.from_url(either.redis_url) as redis:
            before = redis.xlen(names.EVENTS)
            answers = [
                await c.ask("login", key=key, email=account.email, password="wrong") for c in (client, other, client)
            ]
            audited = redis.xlen(names.EVENTS) - before

    assert {event_of(answer) for answer in answers} == {("login_failure", "invalid_credentials")}
    assert audited == 1


async def test_a_refusal_that_changed_and_counted_nothing_is_not_kept(deployment: Deployment) -> None:
    async with deployment.client() as client:
        with Redis.from_url(deployment.redis_url) as redis:
            before = set(redis.scan_iter("*same:*"))
            answers = [await client.ask("authenticate", key="k" * 16, accessToken="x") for _ in range(3)]
            after = set(redis.scan_iter("*same:*"))

    assert {event_of(answer) for answer in answers} == {("authentication_failed", "token_invalid")}
    assert after <= before


async def test_a_refresh_sent_again_gives_the_same_tokens_and_turns_once(either: Deployment) -> None:
    key = new_key()
    async with either.account() as (client, account):
        login = await account.login(client)
        answers = [await client.ask("refresh", key=key, refreshToken=login.data["refreshToken"]) for _ in range(3)]
        onwards = await client.ask("refresh", refreshToken=answers[0].data["refreshToken"])

    assert answers[0] == answers[1] == answers[2]
    assert onwards.event == "token_refreshed"


async def test_a_registration_sent_again_mails_one_code(either: Deployment) -> None:
    key, address = new_key(), new_address()
    async with either.client() as client:
        sent = [await client.ask("register", key=key, email=address, password=PASSWORD) for _ in range(3)]
        code = await either.mailed_code(address)
        confirmed = await client.ask("confirm_email", challenge=sent[2].data["challenge"], code=code)

    assert sent[0] == sent[1] == sent[2]
    assert confirmed.event == "email_confirmed"
    assert len(either.mails(address)) == 1


async def test_a_ninth_who_joins_is_told_to_come_again(deployment: Deployment) -> None:
    key = new_key()
    address = new_address()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(deployment.client(n)) for n in range(10)]
        for process in deployment.of("worker"):
            process.pause()
        try:
            asked = [
                asyncio.ensure_future(client.ask("login", key=key, email=address, password="wrong"))
                for client in clients
            ]
            first, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for process in deployment.of("worker"):
                process.go_on()
        answers = await asyncio.gather(*asked)

    assert [event_of(task.result()) for task in first] == [("error", "rate_limited")]
    assert sorted(str(answer.code) for answer in answers) == ["invalid_credentials"] * 9 + ["rate_limited"]


async def test_who_joined_a_request_that_came_to_nothing_is_evaluated_himself(deployment: Deployment) -> None:
    key = new_key()
    async with deployment.account() as (client, account), deployment.client(1) as other:
        for process in deployment.of("worker"):
            process.pause()
        try:
            first = asyncio.ensure_future(account.login(client, key=key, timeout_ms=400))
            with Redis.from_url(deployment.redis_url) as redis:

                async def pending() -> None:
                    while not in_lane(redis, Lane.HASH):
                        await asyncio.sleep(0.002)

                await asyncio.wait_for(pending(), 5)
            second = asyncio.ensure_future(account.login(other, key=key))
            with pytest.raises(AssertionError, match="deadline_exceeded"):
                await first
        finally:
            for process in deployment.of("worker"):
                process.go_on()
        login = await second
        assert evaluated(deployment, login.data["userId"]) == 1


async def test_who_joins_or_asks_again_learns_of_a_refusal_no_sooner_than_who_asked_first(
    deployment: Deployment,
) -> None:
    async with deployment.account() as (client, account), deployment.client(1) as other:
        key, took = new_key(), []

        async def guess(client: Client) -> None:
            began = time.monotonic()
            answer = await client.ask("login", key=key, email=account.email, password="wrong")
            took.append(time.monotonic() - began)
            assert answer.code == "invalid_credentials"

        await asyncio.gather(guess(client), guess(other))
        await guess(other)

    assert min(took) * 1000 > GRID_MS * 0.95  # clocks of the loop's timers are coarse


async def test_an_error_is_told_to_all_who_joined_and_is_not_recorded(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"FIN_FAILURES_PER_IP": "1"}
    with Deployment.start(tmp_path_factory.mktemp("joined"), redis_url, settings=settings) as running:
        async with running.client() as client, running.client() as other:
            await client.ask("login", email=new_address(), password="wrong")
            key, address = new_key(), new_address()
            asked = [c.ask("login", key=key, email=address, password="wrong") for c in (client, other)]
            answers = await asyncio.gather(*asked)
            with Redis.from_url(redis_url) as redis:
                left = list(redis.scan_iter("*same:*"))

    assert {event_of(answer) for answer in answers} == {("error", "rate_limited")}
    assert not left


@pytest.mark.streams
async def test_a_gateway_killed_in_a_login_the_client_gets_its_result_from_the_other_computed_once(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = new_key()
    settings = {"FIN_ARGON2": "m=65536,t=3,p=1", "FIN_HASH_THREADS": "1"}
    with Deployment.start(tmp_path_factory.mktemp("lost"), redis_url, gateways=2, settings=settings) as running:
        async with running.client(1) as other:
            account = await running.sign_up(other)
            async with running.client(0) as client:
                asked = asyncio.ensure_future(account.login(client, key=key))
                with Redis.from_url(redis_url) as redis:

                    async def admitted() -> None:
                        while not in_lane(redis, Lane.HASH):
                            await asyncio.sleep(0.002)

                    await asyncio.wait_for(admitted(), 5)
                running.kill(running.of("gateway")[0])
                killed = time.monotonic()
                with pytest.raises(Closed):
                    await asked
            login = await account.login(other, key=key)
            took = time.monotonic() - killed
            again = await account.login(other, key=key)
            sessions = (await other.ask("sessions")).data["sessions"]

    assert login.data == again.data
    assert evaluated(running, login.data["userId"]) == 1 and len(sessions) == 1
    print(f"the result came {took * 1000:.0f} ms after its gateway was killed")
    assert took < 1
