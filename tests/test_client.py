"""The client for Python programs, against real gateways."""

from __future__ import annotations

import asyncio

import jwt
import pytest

from app.client import Verifier, connect, steady
from tests.deployment import Deployment


@pytest.mark.streams
async def test_a_steady_client_gets_its_login_from_the_other_gateway_when_its_own_is_killed(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"FIN_ARGON2": "m=65536,t=3,p=1", "FIN_HASH_THREADS": "1"}
    with Deployment.start(tmp_path_factory.mktemp("steady"), redis_url, gateways=2, settings=settings) as running:
        first, second = running.url(0), running.url(1)
        async with running.client(1) as other:
            account = await running.sign_up(other)
        async with steady(first, second) as client:
            assert (await client.ask("logout")).code == "not_authenticated"
            asked = asyncio.ensure_future(client.ask("login", email=account.email, password=account.password))
            await asyncio.sleep(0)
            running.kill(running.of("gateway")[0])
            login = await asked
            sessions = (await client.ask("sessions")).data["sessions"]

    assert login.event == "login_success"
    assert [session["sessionId"] for session in sessions] == [login.data["sessionId"]]


async def test_a_steady_client_is_who_it_was_after_a_reconnect(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Deployment.start(tmp_path_factory.mktemp("again"), redis_url, gateways=2) as running:
        first, second = running.url(0), running.url(1)
        async with running.client(1) as other:
            account = await running.sign_up(other)
        async with steady(first, second) as client:
            await client.ask("login", email=account.email, password=account.password)
            before = client.tokens
            refreshed = await client.refresh()
            running.kill(running.of("gateway")[0])
            me = await client.ask("account")

    assert me.data["email"] == account.email
    assert before is not None and refreshed.data["refreshToken"] != before["refreshToken"]


async def test_a_verifier_accepts_what_the_service_signed_and_nothing_else(deployment: Deployment) -> None:
    url = deployment.url(0, "http", "/.well-known/jwks.json")
    async with deployment.account() as (client, account):
        login = (await account.login(client)).data

    def verify() -> None:
        verifier = Verifier("http://login.test", "finthenticate", jwks_url=url)
        claims = verifier.verify(login["accessToken"])
        assert (claims["sub"], claims["sid"]) == (login["userId"], login["sessionId"])
        head, body, signature = login["accessToken"].split(".")
        other = Verifier("http://login.test", "another", jwks_url=url)
        for bad, judge in ((f"{head}.{body}.{signature[::-1]}", verifier), (login["accessToken"], other)):
            with pytest.raises(jwt.InvalidTokenError):
                judge.verify(bad)

    await asyncio.to_thread(verify)


async def test_asking_on_a_connection_that_ends_raises_and_never_hangs(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from app.client import Closed

    with Deployment.start(tmp_path_factory.mktemp("ends"), redis_url, workers=0, mailers=0) as running:
        gateway = running.of("gateway")[0]
        running.wait_listening(gateway)
        async with connect(running.url()) as client:
            asked = asyncio.ensure_future(client.ask("login", email="a@b.c", password="x"))
            await asyncio.sleep(0)
            running.kill(gateway)
            with pytest.raises(Closed):
                await asked
            with pytest.raises(Closed):
                await client.ask("logout")
